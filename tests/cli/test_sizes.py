"""The table of sizes, against the formulas."""

from __future__ import annotations

from typing import Any

import pytest

from lorasa_jax.cli import sizes
from lorasa_jax.cli.flags import parse
from lorasa_jax.envs import Env, EnvSpec

N = 5


def team(width: int, actions: int) -> Env:
    """Only its sizes are looked at."""
    nothing: Any = None
    return Env(EnvSpec("sizes", N, width, 50, actions, 10, team_reward=True), nothing, nothing)


def network(width: int, actions: int) -> int:
    """The paper's network: kernels and biases, then the scales and shifts of six normalisations."""
    kernels = [(width, 64), (64, 64), (64, 64), (64, 192), (64, 192), (64, 64), (64, actions)]
    return sum((i + 1) * o for i, o in kernels) + 2 * (width + 5 * 64)


@pytest.fixture
def paper() -> sizes.SizesConfig:
    return parse(sizes.SizesConfig, ["--env", "smax", "--preset", "paper", "--groups", "0", "0", "1", "1", "1"])


@pytest.mark.parametrize(("width", "actions"), [(127, 10), (80, 6)])
def test_every_scheme_has_the_size_that_its_formula_says(paper: sizes.SizesConfig, width: int, actions: int) -> None:
    rank, plain = 8, network(width, actions)

    def adapters(width: int) -> int:
        head = rank * (64 + actions) if rank < actions else 64 * actions
        return rank * (width + 64) + 896 * rank + head

    with_id, head = plain + N * 64, 65 * actions  # an embedding for every id
    weights = 64 * (width + actions) + 9 * 64 * 64  # two layers, the GRU, one more layer
    known = {  # shared, per agent, what is trained, by whom; what is trained in the second phase, by whom
        "ps": (plain, 0, plain, 1),
        "ps_id": (with_id, 0, with_id, 1),
        "ps_restart": (with_id, 0, with_id, 1, with_id, 1),
        "nps": (0, plain, N * plain, N),
        "mtl": (plain - head, head, plain - head + N * head, 1 + N),
        "hyper": (plain + rank * weights, rank, plain + rank * (weights + N), 1 + N),
        "mask": (plain, weights, plain + N * weights, 1 + N),
        "lorasa": (with_id, adapters(width), with_id, 1, N * adapters(width), N),
        "lorasa_joint": (with_id, adapters(width), with_id, 1, with_id + N * adapters(width), 1 + N),
        "seps": (2 * plain, 0, 2 * plain, 2),
        "seps_lora": (2 * plain, adapters(width), 2 * plain, 2, N * adapters(width), N),
    }
    _, *table = sizes.rows(paper, team(width, actions))
    for name, *row in table:
        shared, per_agent, *trained = known.pop(name)
        actors = shared + N * per_agent
        numbers = [f"{x:,}" for x in (shared, per_agent, actors)]
        # Two moments of four bytes for every number, and a count for every slot.
        kept = [f"{8 * size + 4 * slots:,} B" for size, slots in zip(trained[::2], trained[1::2], strict=True)]
        assert row == [*numbers, f"{actors / (N * plain):.2f}", *kept, *["-"] * (2 - len(kept))]
    assert not known


def test_the_width_that_matches_is_the_closest(paper: sizes.SizesConfig) -> None:
    env = team(80, 6)
    hidden, size, goal = sizes.nps_width(sizes.as_scheme(paper, "lorasa") or paper, env)

    def separate(hidden: int) -> int:
        kernels = [(80, 1), (1, 1), (1, 1), (1, 3), (1, 3), (1, 1)]
        inside = sum((i * (hidden if i == 1 else 1) + 1) * o * hidden for i, o in kernels)
        return N * (inside + (hidden + 1) * 6 + 2 * (80 + 5 * hidden))

    assert (size, goal) == (separate(hidden), network(80, 6) + N * 64 + N * (8 * (80 + 64) + 896 * 8 + 64 * 6))
    assert abs(size - goal) == min(abs(separate(h) - goal) for h in range(1, 100))


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    sizes.main(["--env", "toy"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| scheme | shared | per agent | actors |")
    assert {line.count("|") for line in lines} == {8}
    assert "| seps | needs --groups |" in "\n".join(lines)
    sizes.main(["--env", "toy", "--match", "ps"])
    assert capsys.readouterr().out.startswith("--sharing nps --actor.hidden ")


@pytest.mark.parametrize(
    ("argv", "said"),
    [(["--match", "lorsa"], "no scheme 'lorsa' (did you mean 'lorasa'"), (["--match", "seps"], "seps needs groups")],
)
def test_what_cannot_be_matched_is_one_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        sizes.main(["--env", "toy", *argv])
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1
