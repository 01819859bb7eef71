"""Checkpoints of runs: from the state between two iterations to items of arrays, and back.

A checkpoint is the directory `checkpoints/ROWS` of a run. ROWS is the number of rows of `metrics.jsonl` before it.
`storage/arrays.py` writes, checks and reads it. Its items are

| item       | content |
|---|---|
| `shared`   | the trunks, [K, G, ...]: the backbone, which can be read without the rest |
| `adapters` | the agents' own parameters, [K, N, ...]; absent if there are none |
| `best`     | the actors of the best teams so far in this phase, and their evaluations |
| `train`    | everything else: critic, optimisers, value statistics, environments, keys |
| `meta`     | the configuration, and the other variables of the loop |
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from lorasa_jax.config import Config, ConfigError, changed_settings, require
from lorasa_jax.core.trees import by_path, not_finite
from lorasa_jax.core.types import PolicyParams, PyTree, TrainState, Weights
from lorasa_jax.envs.base import Env
from lorasa_jax.learning.switching import Evaluation
from lorasa_jax.learning.system import Parts, System, is_two_phase, make_system, names_of, require_same_parts
from lorasa_jax.learning.trainer import attach_adapters, make_trainer
from lorasa_jax.running.devices import local
from lorasa_jax.running.programs import over_seeds
from lorasa_jax.running.state import ADAPTERS, SHARED, Best, RunState
from lorasa_jax.storage.arrays import Arrays, Described, Snapshot, is_list, read_arrays, read_meta, require_ours

SHARED_ITEM, ADAPTERS_ITEM, BEST_ITEM, TRAIN_ITEM = "shared", "adapters", "best", "train"
_HOMES = {
    SHARED_ITEM: "learner/actor/shared/",
    ADAPTERS_ITEM: "learner/actor/agents/",
    BEST_ITEM: "best/",
    TRAIN_ITEM: "",
}
"""The prefix of each item's leaves among those of a run (`_leaves_of`); a leaf belongs to the first match."""


def take_snapshot(state: RunState, config: Config) -> Snapshot:
    """Returns a copy of the run, with the bits of keys."""
    return _snapshot(state.rows, _leaves_of(local((state.train, state.best))), state, config)


def take_team(rows: int, config: Config, phase: str, params: PolicyParams, inputs: PyTree) -> Snapshot:
    """Returns a copy of one team, with only the arrays that `load_team` needs to play.

    Args:
        rows: iterations of the run, which name the checkpoint.
        config: the settings of the run, for one seed.
        phase: the phase of the run.
        params: the parameters of the actors.
        inputs: the input statistics.
    """
    learner = jax.tree.map(lambda leaf: leaf[None], {"actor": params, "inputs": inputs})
    no_arrays: Any = None
    state = RunState(phase, no_arrays, no_arrays, (), (), (), 1, 0.0, 0.0)
    return _snapshot(rows, by_path({"learner": learner}), state, config)


def _snapshot(rows: int, leaves: dict[str, Any], state: RunState, config: Config) -> Snapshot:
    """Sorts the leaves into items, and takes from the state everything but its arrays."""
    items: dict[str, Arrays] = {item: {} for item in _HOMES}
    for name, leaf in leaves.items():
        item = next(item for item, home in _HOMES.items() if name.startswith(home))
        bits = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        items[item][name.removeprefix(_HOMES[item])] = np.array(bits)
    meta = {
        "config": settings(config),
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
        "run": {name: value for name, value in state._asdict().items() if name not in ("train", "best")},
    }
    return Snapshot(rows, {item: arrays for item, arrays in items.items() if arrays}, meta)


def _leaves_of(arrays: tuple[TrainState, Best]) -> dict[str, Any]:
    """The leaves of a run by path: those of `TrainState`, and those of `Best` below `best`."""
    train, best = arrays
    return {**by_path(train), **by_path({"best": best})}


def settings(config: Config) -> dict[str, Any]:
    """Returns the settings that determine the results of a run, as JSON types."""
    whole = dataclasses.asdict(config)
    return json.loads(json.dumps({field.name: whole[field.name] for field in dataclasses.fields(Config)}))


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def load(path: Path, config: Config, env: Env, **parts: Unpack[Parts]) -> RunState:
    """Returns the run that a checkpoint holds, on the default device.

    Args:
        path: the checkpoint.
        config: the settings of the resumed run: those of the checkpoint, or a larger budget if
            earlier steps did not depend on it.
        env: its environment.
        parts: `policy_loss` and `optimizer` of the run, if it has its own (`lorasa_jax.learning.system.Parts`).

    Raises:
        ConfigError: the checkpoint is damaged, or belongs to another run.
    """
    meta = read_run(path)
    _require_whole(path, meta)
    _require_same_run(path, meta["config"], config, env)
    run = meta["run"]
    require_same_parts(run["parts"], parts, f"the run of checkpoint {path}")
    run["switch_steps"] = tuple(run["switch_steps"])
    run["curve"] = tuple(Evaluation(step, *map(tuple, values)) for step, *values in run["curve"])
    run["random_return"] = tuple(run["random_return"])
    template = _template(config, env, run["phase"], parts)
    needed = _leaves_of(template)
    require(
        "pace" not in needed or "pace" in meta["leaves"].get(TRAIN_ITEM, {}),
        f"checkpoint {path} is of an older version, in which the learning rate of adapters with the factor auto was "
        "fixed; finish the run with that version",
    )
    _require_needed(path, meta["leaves"], needed, "this run")
    found = {
        _HOMES[item] + name: array
        for item, described in meta["leaves"].items()
        for name, array in read_arrays(path, item, described).items()
    }
    leaves = [_place(found[name], expected) for name, expected in needed.items()]
    train, best = jax.tree.unflatten(jax.tree.structure(template), leaves)
    return RunState(train=train, best=best, **run)


class SavedTeam(NamedTuple):
    """The teams of a checkpoint, for play.

    Attributes:
        system: the system of the run's phase.
        params: the parameters of the actors of all seeds, leaves [K, ...].
        inputs: the statistics that standardise observations, [K, ...].
        critic: the critic's parameters, [K, ...]; empty unless requested.
        value_norm: the statistics of the critic's values, [K, ...]; empty unless requested.
    """

    system: System
    params: PolicyParams
    inputs: PyTree
    critic: PyTree = ()
    value_norm: PyTree = ()

    @property
    def weights(self) -> Weights:
        """Every agent's full weights, [K, ...]."""
        return Weights(jax.vmap(self.system.weights)(self.params), self.inputs)


def load_team(
    path: Path, config: Config, env: Env, *, valued: bool = False, best: bool = False, **parts: Unpack[Parts]
) -> SavedTeam:
    """Returns the teams of a checkpoint, without the data that only training needs.

    Args:
        path: the checkpoint.
        config: the settings of its run, or the same with another task.
        env: the environment to play in, with the shapes of the run's environment.
        valued: also load the critic, which values and gradients need.
        best: the teams with the best evaluations of the run's phase, instead of the last ones.
        parts: the parts of the run's system; only needed if `valued`.

    Raises:
        ConfigError: the checkpoint is damaged, does not fit the environment, or contains NaN, or the parts differ.
    """
    meta = read_run(path)
    if valued or best:
        _require_whole(path, meta)
    if valued or names_of(parts):
        require_same_parts(meta["run"]["parts"], parts, f"the run of checkpoint {path}")
    system = make_system(config, env, adapting=meta["run"]["phase"] == ADAPTERS, **parts)
    key = jax.random.key(0)
    learner = {"actor": jax.eval_shape(system.actor.init, key), "inputs": system.inputs.init()}
    wanted = {"best": learner} if best else {"learner": learner}
    if valued:
        judge = {"critic": jax.eval_shape(system.critic.init, key), "value_norm": system.value_norm.init()}
        wanted["learner"] = wanted.get("learner", {}) | judge
    template = jax.eval_shape(lambda: jax.tree.map(lambda leaf: jnp.zeros((config.seeds, *leaf.shape)), wanted))
    needed = by_path(template)
    items = {item: meta["leaves"][item] for item in (SHARED_ITEM, ADAPTERS_ITEM) if item in meta["leaves"] and not best}
    for item in (BEST_ITEM, TRAIN_ITEM):
        described = meta["leaves"].get(item, {})
        known = {name: leaf for name, leaf in described.items() if _HOMES[item] + name in needed}
        items |= {item: known} if known else {}
    _require_needed(path, items, needed, env.spec.name)
    found: Arrays = {}
    for item in items:
        arrays = read_arrays(path, item, meta["leaves"][item])
        found |= {_HOMES[item] + name: arrays[name] for name in items[item]}
    wrong = not_finite(found)
    require(wrong is None, f"{wrong} in checkpoint {path} holds NaN or infinity")
    leaves = [_place(found[name], expected) for name, expected in needed.items()]
    read: dict[str, dict[str, Any]] = jax.tree.unflatten(jax.tree.structure(template), leaves)
    flat = {name: part for where in read.values() for name, part in where.items()}
    return SavedTeam(system, flat.pop("actor"), **flat)


def _require_whole(path: Path, meta: dict[str, Any]) -> None:
    """Refuses a checkpoint of `take_team`. Checkpoints of runs also have the best teams."""
    require(
        BEST_ITEM in meta["leaves"],
        f"checkpoint {path} has only what one team needs to play, without critic, optimisers and best teams; "
        "name a checkpoint of its run",
    )


def _require_needed(path: Path, items: dict[str, Described], needed: dict[str, Any], who: str) -> None:
    """Compares the described leaves of a checkpoint with the needed ones, before any is read."""
    found = {_HOMES[item] + name: leaf for item, described in items.items() for name, leaf in described.items()}
    for name in sorted(needed.keys() ^ found.keys()):
        where = "is missing from" if name in needed else f"is unknown to {who}, but is in"
        raise ConfigError(f"{name} {where} checkpoint {path}")
    for name, expected in needed.items():
        here = jax.eval_shape(jax.random.key_data, expected) if _is_key(expected) else expected
        then = found[name]
        require(
            (then["shape"], then["dtype"]) == (list(here.shape), str(here.dtype)),
            f"{name} in checkpoint {path} is {then['dtype']}{then['shape']}, but {who} needs "
            f"{here.dtype}{list(here.shape)}",
        )


def read_run(path: Path) -> dict[str, Any]:
    """Returns the `meta` of a run's checkpoint, and checks the types of its entries.

    Raises:
        ConfigError: there is no such checkpoint, or it is damaged.
    """
    meta = read_meta(path)
    require_ours(path, _is_run(meta))
    return meta


def _is_run(meta: dict[str, Any]) -> bool:
    run, config = meta.get("run"), meta.get("config")
    if not (isinstance(run, dict) and isinstance(config, dict)):
        return False
    run.setdefault("parts", {})  # older runs used the parts of the library
    numbers = (int, float)
    return (
        meta["leaves"].keys() <= _HOMES.keys()
        and isinstance(config.get("total_steps"), int)
        and run.keys() == set(RunState._fields) - {"train", "best"}
        and run["phase"] in (SHARED, ADAPTERS)
        and is_list(run["switch_steps"], int, type(None))
        and is_list(run["random_return"], *numbers)
        and is_list(run["curve"], list)
        and all(map(_is_evaluation, run["curve"]))
        and isinstance(run["evaluation_interval"], int)
        and isinstance(run["inherited"], int)
        and isinstance(run["parts"], dict)
        and is_list([*run["parts"].values()], str)
        and run["evaluation_interval"] > 0
        and all(isinstance(run[name], numbers) for name in ("compile_seconds", "train_seconds"))
    )


def _is_evaluation(row: Any) -> bool:
    return (
        isinstance(row, list)
        and len(row) == len(Evaluation._fields)
        and isinstance(row[0], int)
        and all(is_list(values, int, float) for values in row[1:])
    )


def _template(config: Config, env: Env, phase: str, parts: Parts) -> tuple[TrainState, Best]:
    """The shapes of the states of all seeds, and of their best teams."""
    keys = jnp.stack([jax.random.key(config.seed)] * config.seeds)
    states = jax.eval_shape(over_seeds(make_trainer(config, env, **parts).init, config.seeds), keys)
    if phase == ADAPTERS:
        second = make_trainer(config, env, adapting=True, **parts)
        states = jax.eval_shape(over_seeds(lambda state: attach_adapters(second, state), config.seeds), states)
    return states, jax.eval_shape(Best.none, states)


def _place(array: np.ndarray, expected: Any) -> jax.Array:
    """An array on the device, or a key if one is expected."""
    # Without a copy, the device may use this memory, and an update would overwrite it.
    leaf = jnp.array(array, copy=True)
    return jax.random.wrap_key_data(leaf) if _is_key(expected) else leaf


def _require_same_run(path: Path, then: dict[str, Any], config: Config, env: Env) -> None:
    now = settings(config)
    for name, before, after in changed_settings(then, now):
        require(name == "total-steps", f"checkpoint {path} is of another run: {name} is {before} there, {after} here")
    if then == now:
        return
    budget = then["total_steps"]
    require(config.total_steps > budget, f"total-steps can only grow: checkpoint {path} is of a run of {budget:,}")
    require(
        not config.ppo.anneal_lr,
        "total-steps cannot change: with ppo.anneal-lr the learning rates so far depended on it",
    )
    if not is_two_phase(config, env):
        return
    require(
        isinstance(config.switch_step, int),
        f"total-steps cannot change: with switch-step {config.switch_step} the time of the switch depends on it",
    )
    require(
        dataclasses.replace(config, total_steps=budget).switch_iteration == config.switch_iteration,
        f"total-steps cannot change: switch-step {config.switch_step} fell into the last iteration, "
        "and would come later in a longer run",
    )
