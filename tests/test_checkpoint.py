"""A run comes back from disk to the bit, or is refused by name."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, assert_same, row_of, small_config, two_phases

from lorasa_jax import checkpoint
from lorasa_jax.checkpoint import complete, drop_after, load, load_team, read_item, take_snapshot, write
from lorasa_jax.config import ConfigError
from lorasa_jax.envs.toy import make_toy
from lorasa_jax.loop import ADAPTERS, SHARED, RunState
from lorasa_jax.saver import Saver
from lorasa_jax.switching import Evaluation
from lorasa_jax.trees import by_path, nested
from lorasa_jax.types import TrainState


def run_state(train: TrainState, phase: str) -> RunState:
    """A run of one seed, with numbers that JSON has to carry to the last bit."""
    return RunState(
        phase=phase,
        train=jax.tree.map(lambda leaf: leaf[None], train),
        switch_steps=(None,) if phase == SHARED else (64,),
        curve=(Evaluation(32, (0.1 + 0.2,), (0.0,)), Evaluation(64, (float(np.float32(1 / 3)),), (1.0,))),
        random_return=(-1e-300,),
        evaluation_interval=5,
        compile_seconds=1.5,
        train_seconds=2 / 3,
    )


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run at two of its moments, one in each phase, in memory and on disk."""
    phases = two_phases()
    first = phases.shared(phases.init(KEY))
    second = phases.adapters(phases.adapters(phases.graft(first)))
    states = {SHARED: run_state(first, SHARED), ADAPTERS: run_state(second, ADAPTERS)}
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    paths = {phase: write(directory, take_snapshot(state, phases.config)) for phase, state in states.items()}
    return SimpleNamespace(config=phases.config, env=phases.env, states=states, directory=directory, paths=paths)


@pytest.fixture
def copy(kept: SimpleNamespace, tmp_path: Path) -> Path:
    """The later checkpoint, to be damaged, beside an older one."""
    shutil.copytree(kept.directory, tmp_path / "checkpoints")
    return tmp_path / "checkpoints" / kept.paths[ADAPTERS].name


def bits(tree: Any) -> Any:
    """The tree with its keys as numbers."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if checkpoint._is_key(leaf) else leaf, tree)


def refusal(path: Path, config: Any = None, env: Any = None) -> str:
    with pytest.raises(ConfigError) as error:
        load(path, config or two_phases().config, env or two_phases().env)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("phase", [SHARED, ADAPTERS])
def test_a_run_comes_back_to_the_bit_and_steps_on_alike(kept: SimpleNamespace, phase: str) -> None:
    loaded, state = load(kept.paths[phase], kept.config, kept.env), kept.states[phase]
    assert loaded._replace(train=None) == state._replace(train=None)
    assert jax.tree.structure(loaded.train) == jax.tree.structure(state.train)
    assert jax.tree.map(jnp.result_type, loaded.train) == jax.tree.map(jnp.result_type, state.train)
    assert_same(bits(loaded.train), bits(state.train))
    step = getattr(two_phases(), phase)
    assert_same(bits(step(row_of(loaded.train, 0))), bits(step(row_of(state.train, 0))))


def test_every_leaf_stands_in_one_item(kept: SimpleNamespace) -> None:
    state = kept.states[ADAPTERS]
    items = take_snapshot(state, kept.config).items
    assert sum(len(arrays) for arrays in items.values()) == len(jax.tree.leaves(state.train))
    names = " ".join(items["train"])
    for part in ("critic", "actor_opt", "critic_opt", "value_norm", "rollout", "key", "iteration"):
        assert part in names
    assert "learner/actor/" not in names


def test_a_snapshot_owns_its_memory(kept: SimpleNamespace) -> None:
    snapshot = take_snapshot(kept.states[SHARED], kept.config)
    assert all(array.flags.owndata for arrays in snapshot.items.values() for array in arrays.values())


def test_a_backbone_is_read_without_the_rest(kept: SimpleNamespace, copy: Path) -> None:
    for item in ("adapters", "train"):
        shutil.rmtree(copy / item)
    assert_same(read_item(copy, "shared"), kept.states[ADAPTERS].train.learner.actor.shared)
    with pytest.raises(ConfigError, match="has no item 'trunk'; it has shared, adapters, train"):
        read_item(copy, "trunk")


@pytest.mark.parametrize("phase", [SHARED, ADAPTERS])
def test_a_team_is_read_without_what_only_training_needs(kept: SimpleNamespace, tmp_path: Path, phase: str) -> None:
    path = shutil.copytree(kept.paths[phase], tmp_path / kept.paths[phase].name)
    shutil.rmtree(path / "train")
    team, actor = load_team(path, kept.config, kept.env), kept.states[phase].train.learner.actor
    assert_same(team.params, actor)
    assert_same(row_of(team.weights.actors, 0), team.system.weights(row_of(actor, 0)))
    with pytest.raises(ConfigError, match=r"in checkpoint .* but probe_death needs float32"):
        load_team(path, kept.config, make_toy("probe_death", 4))
    with pytest.raises(ConfigError, match=r"learner/inputs/.* is missing from checkpoint"):
        load_team(path, replace(kept.config, standardise=True), kept.env)


def test_a_team_is_read_with_its_critic_where_asked(kept: SimpleNamespace) -> None:
    team = load_team(kept.paths[ADAPTERS], kept.config, kept.env, valued=True)
    learner = kept.states[ADAPTERS].train.learner
    assert_same((team.params, team.critic, team.value_norm), (learner.actor, learner.critic, learner.value_norm))


def test_agents_that_own_nothing_leave_no_item(kept: SimpleNamespace) -> None:
    assert not (kept.paths[SHARED] / "adapters").exists()


@pytest.mark.parametrize("item", ["shared", "adapters", "train", "meta", "files.json", "_CHECKPOINT_METADATA"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_file_is_named_with_what_else_there_is(copy: Path, item: str, damage: str) -> None:
    files = [copy / item] if (copy / item).is_file() else [path for path in (copy / item).rglob("*") if path.is_file()]
    file = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flip" else content[:-1])
    message = refusal(copy)
    what = "damaged or missing" if item == "files.json" else "missing" if damage == "remove" else "damaged"
    assert f"{file.relative_to(copy)} of checkpoint {copy} is {what}" in message
    older = complete(copy.parent)[0]
    assert message.endswith(f"an older one is there: --resume {older}")
    load(older, two_phases().config, two_phases().env)


def test_a_missing_item_and_a_missing_checkpoint_are_named(copy: Path) -> None:
    shutil.rmtree(copy / "train")
    assert "train/" in refusal(copy)
    shutil.rmtree(copy)
    assert refusal(copy).startswith(f"there is no checkpoint {copy}; an older one is there")
    oldest = complete(copy.parent)[0]
    (oldest / "files.json").unlink()
    assert refusal(oldest).endswith("there is no older one: start the run again, in another directory")


def test_a_change_of_any_leaf_is_noticed(kept: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one that the files do not show, such as another type."""
    path, restore = kept.paths[ADAPTERS], checkpoint._restore
    meta = restore(path, "meta")
    for item, described in meta["leaves"].items():
        good = by_path(restore(path, item))
        for name, array in good.items():
            wrong = array.view(np.uint8) if array.dtype == bool else array.astype(np.complex64)
            for changed in (wrong, array[..., None], np.flip(array) if len(np.unique(array)) > 1 else ~(array > 0)):
                spoilt = nested({**good, name: changed})
                monkeypatch.setattr(checkpoint, "_restore", lambda path, item, described, spoilt=spoilt: spoilt)
                with pytest.raises(ConfigError, match=f"{name} in {item} of checkpoint .* is not what was written"):
                    checkpoint._read(path, item, described)
        rest = {name: array for name, array in good.items() if name != next(iter(good))}
        monkeypatch.setattr(checkpoint, "_restore", lambda path, item, described, rest=rest: nested(rest))
        with pytest.raises(ConfigError, match="is not what was written"):
            checkpoint._read(path, item, described)


def test_another_game_is_refused_by_the_leaf_that_does_not_fit(kept: SimpleNamespace) -> None:
    message = refusal(kept.paths[ADAPTERS], env=make_toy("probe_death", 4))
    assert "this run needs" in message
    assert "learner/actor" in message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "synchronisation"}, "of another run: task is specialisation there, synchronisation here"),
        ({"ppo": replace(two_phases().config.ppo, lr=1.0)}, "ppo.lr is 0.003 there, 1.0 here"),
        ({"seed": 1}, "seed is 0 there, 1 here"),
        ({"total_steps": 1600}, "total-steps can only grow"),
    ],
)
def test_another_configuration_is_refused_by_its_setting(
    kept: SimpleNamespace, changes: dict[str, Any], said: str
) -> None:
    assert said in refusal(kept.paths[SHARED], replace(kept.config, **changes))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sharing": "ps"}, None),
        ({"sharing": "lorasa", "switch_step": 64}, None),
        ({"sharing": "ps", "ppo": {"anneal_lr": True}}, "anneal-lr"),
        ({"sharing": "lorasa", "switch_step": "auto"}, "switch-step auto"),
        ({"sharing": "lorasa", "switch_step": 3199}, "fell into the last iteration"),
    ],
)
def test_a_budget_grows_where_nothing_followed_from_it(settings: dict[str, Any], said: str | None) -> None:
    config, env = small_config(**settings), two_phases().env
    then, longer = checkpoint.settings(config), replace(config, total_steps=6400)
    if said is None:
        return checkpoint._require_same_run(Path(), then, longer, env)
    with pytest.raises(ConfigError, match=said):
        checkpoint._require_same_run(Path(), then, longer, env)


def numbered(state: RunState, iteration: int) -> RunState:
    return state._replace(train=state.train._replace(iteration=jnp.array([iteration])))


def test_the_last_two_complete_checkpoints_stay(kept: SimpleNamespace, tmp_path: Path) -> None:
    for iteration in (8, 9, 10):
        write(tmp_path, take_snapshot(numbered(kept.states[SHARED], iteration), kept.config))
    assert [path.name for path in complete(tmp_path)] == ["9", "10"]
    assert len(list(tmp_path.iterdir())) == 2
    drop_after(tmp_path / "9")
    assert [path.name for path in complete(tmp_path)] == ["9"]


def test_what_was_not_finished_is_no_checkpoint_and_goes(kept: SimpleNamespace, copy: Path) -> None:
    shutil.copytree(copy, copy.with_name("90.unfinished"))
    (copy.with_name("91.unfinished.orbax-checkpoint-tmp") / "train").mkdir(parents=True)
    assert complete(copy.parent)[-1] == copy
    saver = Saver(copy.parent, kept.config, 1e9, pytest.fail)
    assert {path.name for path in copy.parent.iterdir()} == {path.name for path in kept.directory.iterdir()}
    saver.close()


@pytest.mark.parametrize("every", [0.0, 1e9])
def test_states_are_taken_in_time_at_the_switch_and_at_the_end(
    kept: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: float
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(Saver, "take", lambda self, state: taken.append(state.rows))
    saver = Saver(tmp_path, kept.config, every, pytest.fail)
    last = kept.config.iterations
    for iteration, phase in ((0, SHARED), (1, SHARED), (2, ADAPTERS), (3, ADAPTERS), (last, ADAPTERS)):
        saver(numbered(kept.states[phase], iteration))
    saver.close()
    assert taken == ([1, 2, 3, last] if every == 0 else [2, last])


def test_a_full_disk_is_said_and_the_run_goes_on(
    kept: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import orbax.checkpoint as ocp

    said: list[str] = []
    saver = Saver(tmp_path, kept.config, 0.0, said.append)

    def take(iteration: int) -> None:
        saver.take(numbered(kept.states[SHARED], iteration))
        saver.wait()

    def full(*args: Any, **kwargs: Any) -> None:
        raise ValueError("RESOURCE_EXHAUSTED: Error writing: [OS error 28: No space left on device]")

    take(1)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        take(2)
    with monkeypatch.context() as patch:
        patch.setattr(ocp.Checkpointer, "save", full)
        take(3)
    assert len(said) == 2
    for line in said:
        assert os.strerror(errno.ENOSPC) in line
        assert line.endswith(f"the last one is still {tmp_path / '1'}; the run goes on")
    take(4)
    saver.close()
    assert len(said) == 2
    assert [path.name for path in tmp_path.iterdir() if path.name not in "14"] == []


# From anybody: every digest right, and yet


def forge(path: Path) -> None:
    """Makes the list of files true again."""
    list_files(path, checkpoint._digests(path))


def list_files(path: Path, files: Any) -> None:
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    listed = json.dumps({"sha256": digest, "files": files})
    (path / "files.json").write_text(listed)


@pytest.mark.parametrize("name", ["shared/../../../run/metrics.jsonl", "/etc/passwd", "..", "shared/a\0b"])
def test_a_list_that_leads_out_of_the_checkpoint_is_refused(copy: Path, name: str) -> None:
    list_files(copy, {**checkpoint._digests(copy), name: "0" * 64})
    assert refusal(copy) == f"{name!r} in checkpoint {copy} leads out of it; no checkpoint that was written does"


def test_a_link_that_leads_out_of_the_checkpoint_is_refused(copy: Path) -> None:
    (copy / "shared" / "more").symlink_to("/etc")
    forge(copy)
    assert "'shared/more' in checkpoint" in refusal(copy)


@pytest.mark.parametrize("files", [[], "x", {"meta/x": 3}, {"meta/" + "x" * 5000: "0"}])
def test_a_list_of_anything_else_is_refused(copy: Path, files: Any) -> None:
    list_files(copy, files)
    refusal(copy)


def change_meta(path: Path, place: tuple[str, ...], value: Any) -> None:
    """Writes another value into `meta`."""
    (file,) = [file for file in (path / "meta").iterdir() if file.read_bytes().startswith(b"{")]
    meta = json.loads(file.read_text())
    branch = meta
    for name in place[:-1]:
        branch = branch[name]
    branch[place[-1]] = value
    file.write_text(json.dumps(meta))
    forge(path)


KERNEL = ("leaves", "shared", "fc1/kernel")


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("format",), 99, "has format 99"),
        *(
            (place, value, "meta of checkpoint")
            for place, value in [
                (("leaves",), []), (("leaves", "evil"), {}), (("leaves", "shared"), []), (KERNEL, {}),
                ((*KERNEL, "shape"), [-1]), ((*KERNEL, "shape"), [2**31]), ((*KERNEL, "shape"), "1"),
                ((*KERNEL, "dtype"), "object"), ((*KERNEL, "dtype"), []), (("run",), {}), (("config",), 3),
                (("config", "total_steps"), None),
                (("run", "phase"), "evil"), (("run", "phase"), []), (("run", "evil"), 1), (("run", "curve"), [[1]]),
                (("run", "curve"), [3]), (("run", "curve"), [[1, [0.5], None]]), (("run", "random_return"), None),
                (("run", "evaluation_interval"), 0),
                (("run", "switch_steps"), ["x"]), (("run", "train_seconds"), "x"),
            ]
        ),
        ((*KERNEL, "shape"), [2**30, 2**30], "but this run needs float32[1, 1, "),
        ((*KERNEL, "dtype"), "float64", "but this run needs float32[1, 1, "),
        ((*KERNEL, "sha256"), 3, "fc1/kernel in shared of checkpoint"),
    ],
)  # fmt: skip
def test_a_description_that_lies_is_refused(copy: Path, place: tuple[str, ...], value: Any, said: str) -> None:
    change_meta(copy, place, value)
    assert said in refusal(copy)


def test_no_room_is_made_for_arrays_of_other_shapes(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import orbax.checkpoint as ocp

    change_meta(copy, (*KERNEL, "shape"), [2**30, 2])
    with pytest.raises(ConfigError, match="more than is believed"):
        read_item(copy, "shared")
    change_meta(copy, (*KERNEL, "shape"), [2**20, 2])
    read = ocp.Checkpointer.restore

    def only_meta(self: Any, path: Any, args: Any) -> Any:
        assert set(args.keys()) == {"meta"}
        return read(self, path, args=args)

    monkeypatch.setattr(ocp.Checkpointer, "restore", only_meta)
    with pytest.raises(ConfigError, match=r"fc1/kernel in shared of checkpoint .* is not what was written"):
        read_item(copy, "shared")


class Trap:
    """A pickle that leaves a trace where it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("item", ["meta", "shared", "files.json"])
def test_what_is_no_checkpoint_is_refused_and_never_run(copy: Path, tmp_path: Path, item: str) -> None:
    home = copy / item
    files = [home] if home.is_file() else [path for path in home.rglob("*") if path.is_file()]
    for content in (pickle.dumps(Trap(tmp_path / "trap")), b"[" * 100_000, b"\xff"):
        for file in files:
            if file.name != "commit_success.txt":
                file.write_bytes(content)
        if item != "files.json":
            forge(copy)
        refusal(copy)
    assert not (tmp_path / "trap").exists()
