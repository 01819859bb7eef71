"""No third outcome: what is asked for trains with finite numbers, or is refused in one line before anything is kept.

Settings are drawn at random over the small games, every field, some of them wrong; environments are drawn with one
contradiction each.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import make_bits

from lorasa_jax.config import Config, ConfigError, CriticConfig, NetworkConfig, PPOConfig
from lorasa_jax.envs import make_env
from lorasa_jax.envs.base import Env, TimeStep
from lorasa_jax.envs.toy import GAMES
from lorasa_jax.running import programs
from lorasa_jax.running.loop import MUST_BE_FINITE, run
from lorasa_jax.running.state import Diverged, Report
from lorasa_jax.sharing.schemes import SCHEMES

NETWORK: dict[str, tuple] = {
    "hidden": (2, 4), "layers": (0, 1, 1, 2), "layers_after": (0, 1), "recurrent": (True, False),
    "activation": ("relu", "tanh"), "layer_norm": (True, False), "input_norm": (True, False), "gain": (0.0, 1, 2.0),
    "gru_init": ("stacked", "gates"), "gain_after": (0.5, 1.0),
}  # fmt: skip
CRITIC = {**NETWORK, "scope": ("auto", "team", "agent", "own"), "separate": (False, False, True)}
PPO: dict[str, tuple] = {
    "epochs": (1, 2), "minibatches": (1, 2, 4, 3), "chunk_length": (0, 2, 4, 3), "lr": (1e-3, 1e-2, 1),
    "critic_lr": (1e-3,), "adapter_lr": (None, 1e-3), "trunk_optimizer": (None, None, "carry", "restart"),
    "anneal_lr": (True, False), "adam_eps": (1e-8, 1e-5), "max_grad_norm": (0.5, math.inf),
    "clip_eps": (0.2, 0.9, math.inf), "ratio": ("joint", "per_dim"), "value_clip": (0.2, math.inf),
    "huber_delta": (1.0, math.inf), "value_coef": (0.0, 1.0), "entropy_coef": (0, 0.01), "gamma": (0, 0.9, 1),
    "gae_lambda": (0.0, 0.95, 1.0), "loop_order": ("agent", "epoch"), "two_stage": (True, False),
    "advantage_norm": ("rollout", "minibatch"), "mask_dead": (True, False), "value_norm": (True, False),
}  # fmt: skip
TOP: dict[str, tuple] = {
    "task": tuple(GAMES), "algo": ("mappo", "mappo", "a2po", "sequential"), "sharing": tuple(SCHEMES),
    "groups": (None, None, (0, 0), (0, 1, 0), [0, 1, 0, 1]), "seed": (0, 7, 2**32 - 2, np.int64(3)), "seeds": (1, 1, 2),
    "switch_step": ("auto", 0, 1, 20), "rank": (1, 3, 64),
    "levels": (("agent",), ("unit_type:2",), ("team", "unit_type:1@0.1", "agent"), ("team:1/head",)),
    "freeze_trunk": (None, None, False), "alpha": (None, 0.5),
    "placement": (("all",), ("head",), ("early", "late"), ("gru_*",)),
    "n_envs": (1, 2, 4), "rollout_length": (4, 8, 12), "evaluations": (1, 3), "eval_episodes": (1, 3),
    "time_limit": ("bootstrap", "terminal"), "reset_on_death": (True, False), "standardise": (True, False),
    "n_agents": (None, None, 1, 2, 3),
}  # fmt: skip
WRONG = (
    None, "", "nonsense", "Auto", "False", True, -1, 0, 0.5, 2.5, math.nan, math.inf, -math.inf, 1e300, 1e-300, 2**31,
    2**32, 10**20, (), (0,), (-1,), ("fc9",), [], {}, np.nan, np.float64(0.3), np.zeros(2), b"agent", object(),
)  # fmt: skip


class Watch:
    """Notes what a run tells and offers; `kept`: it has begun, and a command would have written something."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.kept = False

    def begin(self, state: Any) -> None:
        self.kept = True

    def status(self, text: str) -> None:
        assert "\n" not in text

    def __call__(self, report: Report, state: Any) -> None:
        self.reports.append(report)


def outcome(make: Callable[[], tuple[Config, Env]], late: bool = False) -> str:
    """Trains two iterations; returns `trained`, or the line in which the settings were refused.

    Args:
        make: makes the settings and the environment.
        late: the fault lies in values, which are not seen before the environment is played.
    """
    watch = Watch()
    try:
        config, env = make()
        result = run(config, env, [watch])
    except Diverged as error:
        assert late and error.culprit and "\n" not in str(error), error
        return error.culprit
    except ConfigError as error:
        assert str(error) and "\n" not in str(error), error
        assert late or not watch.kept, f"refused after something was kept: {error}"
        return str(error)
    for report in watch.reports:
        for name in MUST_BE_FINITE:
            assert np.isfinite(report.metrics[name][report.active]).all(), name
    for play, measured in result.final.items():
        assert all(np.isfinite(values).all() for values in measured.values()), play
    return "trained"


def draw_settings(seed: int) -> tuple[dict[str, Any], bool]:
    """Returns settings by section, and whether one of them was drawn among the wrong ones."""
    rng = random.Random(seed)

    def pick(fields: dict[str, tuple], share: float) -> dict[str, Any]:
        return {name: rng.choice(values) for name, values in fields.items() if rng.random() < share}

    # Small sizes first, so that most draws are quick to compile.
    tiny = {"hidden": 4, "layers": 1, "layers_after": 0, "recurrent": False}
    small = {"n_envs": 2, "rollout_length": 4, "eval_episodes": 2, "rank": 2, "evaluations": 2}
    sections = {
        "": small | pick(TOP, 0.4),
        "actor": tiny | pick(NETWORK, 0.25),
        "critic": tiny | pick(CRITIC, 0.25),
        "ppo": {"epochs": 1, "chunk_length": 2} | pick(PPO, 0.25),
    }
    wrong = rng.random() < 0.5
    if wrong:
        section = rng.choice(list(sections))
        fields = {"": TOP, "actor": NETWORK, "critic": CRITIC, "ppo": PPO}[section]
        sections[section][rng.choice(list(fields))] = rng.choice(WRONG)
    return sections, wrong


def make_settings(sections: dict[str, Any]) -> tuple[Config, Env]:
    top = dict(sections[""])
    sizes = [top["n_envs"], top["rollout_length"]]
    if all(isinstance(size, int) and 0 < size < 100 for size in sizes):
        top["total_steps"] = 2 * sizes[0] * sizes[1]
    config = Config(
        env="toy",
        actor=NetworkConfig(**sections["actor"]),
        critic=CriticConfig(**sections["critic"]),
        ppo=PPOConfig(**sections["ppo"]),
        **top,
    )
    return config, make_env(config)


def at(field: str, change: Callable[[Any], Any]) -> Callable[[TimeStep], TimeStep]:
    return lambda seen: seen._replace(**{field: change(getattr(seen, field))})


def each(words: str, fields: str, change: Callable[[Any], Any]) -> dict[str, Callable[[TimeStep], TimeStep]]:
    return {f"{field} {words}": at(field, change) for field in fields.split()}


ENDS = "terminated truncated won"
SHAPES: dict[str, Callable[[TimeStep], TimeStep]] = {
    **each("without its first axis", "obs state avail alive reward", lambda x: x[0]),
    **each("twice as long", "obs state avail alive", lambda x: jnp.concatenate([x, x])),
    **each("as text", "obs state reward won", lambda x: "text"),
    **each("left out", "obs avail terminated truncated", lambda x: None),
    **each("as numbers", f"avail alive {ENDS}", lambda x: 1.0 * x),
    **each("of every agent", ENDS, lambda x: jnp.stack([x, x])),
    "reward of the team": at("reward", jnp.sum),
}
VALUES: dict[str, Callable[[TimeStep], TimeStep]] = {
    **each("not a number", "obs state reward", lambda x: x * jnp.nan),
    **each("without bound", "obs state reward", lambda x: x + jnp.inf),
    "nothing to do": at("avail", jnp.zeros_like),
    "nothing to do for one": at("avail", lambda x: x.at[1].set(False)),
    "never over": at("truncated", jnp.zeros_like),
    "won at once": at("won", jnp.ones_like),
    "paid unequally": at("reward", lambda x: x + jnp.arange(2.0)),
}
FINE: dict[str, Callable[[TimeStep], TimeStep]] = {
    "as it is": lambda seen: seen,
    "whole numbers": at("obs", lambda x: x.astype(jnp.int32)),
    "half as exact": at("state", lambda x: x.astype(jnp.float16)),
    "a list": at("reward", list),
    "nobody alive": at("alive", jnp.zeros_like),
    "over both ways": lambda seen: seen._replace(terminated=seen.truncated),
}
SIZES = ("n_agents", "obs_dim", "state_dim", "n_actions", "episode_limit")
SPECS: tuple[dict[str, Any], ...] = (
    *({name: wrong} for name in SIZES for wrong in (0, -1, 9, 2.5)),
    {"obs_widths": (1,)}, {"obs_widths": (9, 1)}, {"roles": (0, 2)}, {"roles": (0,)}, {"n_roles": 2}, {"n_roles": -1},
    {"continuous": True}, {"team_reward": "yes"}, {"role_names": ("a",)}, {"name": 3},
)  # fmt: skip


def draw_env(seed: int) -> tuple[Config, Callable[[], Env], str, str]:
    """Returns settings, a maker of an environment, the kind of contradiction it has, and its name."""
    rng = random.Random(seed)
    kind = rng.choice(("shape", "shape", "spec", "value", "fine"))
    if kind == "spec":
        changes, change = rng.choice(SPECS), FINE["as it is"]
        name = str(changes)
    else:
        changes, (name, change) = {}, rng.choice(sorted({"shape": SHAPES, "value": VALUES, "fine": FINE}[kind].items()))
    spec_of = rng.choice([{}, {"team_reward": False}]) if name != "paid unequally" else {}
    net = {"hidden": 4, "layers": 1, "layers_after": 0, "recurrent": rng.random() < 0.3}
    config = Config(
        env="own",
        n_envs=4,
        rollout_length=4,
        total_steps=32,
        evaluations=2,
        eval_episodes=2,
        sharing=rng.choice(("ps", "ps_id", "nps", "lorasa", "mtl")),
        algo=rng.choice(("mappo", "a2po")),
        time_limit=rng.choice(("bootstrap", "terminal")),
        standardise=rng.random() < 0.2,
        actor=NetworkConfig(**net),
        critic=CriticConfig(**net),
        ppo=PPOConfig(epochs=1, chunk_length=2),
    )

    def make() -> Env:
        env = make_bits(change)
        return env._replace(spec=replace(env.spec, **{**spec_of, **changes}))

    return config, make, kind, name


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Compiles without optimising: every draw is another program, and runs for milliseconds."""
    monkeypatch.setitem(programs.OPTIONS, "xla_backend_optimization_level", "0")
    programs.compiler_options.cache_clear()
    yield
    programs.compiler_options.cache_clear()


def check_settings(seed: int) -> str:
    sections, _ = draw_settings(seed)
    said = outcome(lambda: make_settings(sections))
    print(seed, sections, said)
    return said


def check_env(seed: int) -> str:
    config, make, kind, name = draw_env(seed)
    said = outcome(lambda: (config, make()), late=kind == "value")
    print(seed, kind, name, said)
    if kind == "fine":
        assert said == "trained"
    elif kind in ("shape", "value"):
        assert said.startswith("bits: "), said
    else:
        harmless = name in ("{'episode_limit': 9}", "{'continuous': True}")
        assert (said == "trained") == harmless, said
    return said


@pytest.mark.parametrize("seed", range(1000, 1003))
def test_some_settings_train_or_are_refused(seed):
    check_settings(seed)


@pytest.mark.parametrize("seed", range(1000, 1003))
def test_some_environments_train_or_are_refused(seed):
    check_env(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(500))
def test_settings_train_or_are_refused(seed):
    check_settings(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_environments_train_or_are_refused(seed):
    check_env(seed)


def test_draws_reach_both_outcomes():
    """Neither outcome is the only one that is drawn, and a wrong value is among half of the settings."""
    wrong = [draw_settings(seed)[1] for seed in range(500)]
    assert 200 < sum(wrong) < 300
    assert {draw_env(seed)[2] for seed in range(200)} == {"shape", "spec", "value", "fine"}
