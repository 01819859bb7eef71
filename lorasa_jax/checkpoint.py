"""Checkpoints: a run between two iterations on disk, whole or not at all, and read back only if nothing in it changed.

A checkpoint is a directory `checkpoints/ROWS` of the run, named by the rows of `metrics.jsonl` that came before it:

=============  ==========================================================================
`shared`       trunks, [K, G, ...]: the backbone, which can be read without the rest
`adapters`     what agents own, [K, N, ...]; absent where they own nothing
`train`        everything else: critic, optimisers, value statistics, environments, keys
`meta`         JSON: the configuration, what the loop knows besides, and of every array its
               shape, type and SHA-256
`files.json`   SHA-256 of every file of the above, and of this list itself
=============  ==========================================================================

The arrays are written by orbax. It reads flipped bits and other types without a word, hence
the digests; and where it stumbles over a damaged file it says so at length, hence a look at the files before it.
A checkpoint gets its name when all of it has been written; what has another name is none.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lorasa_jax.config import Config, ConfigError, changed_settings, require
from lorasa_jax.devices import local
from lorasa_jax.envs.base import Env
from lorasa_jax.loop import ADAPTERS, SHARED, RunState
from lorasa_jax.programs import over_seeds
from lorasa_jax.switching import Evaluation
from lorasa_jax.system import System, is_two_phase, make_system
from lorasa_jax.trainer import graft, make_trainer
from lorasa_jax.trees import by_path, nested, not_finite
from lorasa_jax.types import PolicyParams, PyTree, TrainState, Weights

KEEP = 2
"""Complete checkpoints that stay."""
FORMAT = 3
"""Changes where what is written changes."""
SHARED_ITEM, ADAPTERS_ITEM, TRAIN_ITEM = "shared", "adapters", "train"
_HOMES = {SHARED_ITEM: "learner/actor/shared/", ADAPTERS_ITEM: "learner/actor/agents/", TRAIN_ITEM: ""}
"""Where in a `TrainState` the leaves of each item live; a leaf belongs to the first that fits."""
_META, _FILES = "meta", "files.json"

Arrays = dict[str, np.ndarray]
Described = dict[str, dict[str, Any]]
_TYPES = re.compile("bool|u?int(8|16|32|64)|b?float16|float(32|64)|complex64")
_MOST = 2**30
"""Numbers in one item that are believed; a run of a million environments has fewer."""


class Snapshot(NamedTuple):
    """A copy of a run on the host, ready to be written.

    Attributes:
        rows: iterations of all seeds so far, which name the checkpoint.
        items: by item, and by the leaf's path in it, the arrays.
        meta: what JSON can hold.
    """

    rows: int
    items: dict[str, Arrays]
    meta: dict[str, Any]


def take_snapshot(state: RunState, config: Config) -> Snapshot:
    """Returns a copy of the run; keys as their bits."""
    items: dict[str, Arrays] = {item: {} for item in _HOMES}
    for name, leaf in by_path(local(state.train)).items():
        item = next(item for item, home in _HOMES.items() if name.startswith(home))
        bits = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        items[item][name.removeprefix(_HOMES[item])] = np.array(bits)
    known = state._asdict()
    del known["train"]
    meta = {
        "format": FORMAT,
        "config": settings(config),
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
        "run": known,
    }
    return Snapshot(state.rows, {item: arrays for item, arrays in items.items() if arrays}, meta)


def settings(config: Config) -> dict[str, Any]:
    """Returns the settings that decide what a run computes, as JSON gives them back."""
    whole = dataclasses.asdict(config)
    return json.loads(json.dumps({field.name: whole[field.name] for field in dataclasses.fields(Config)}))


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _describe(array: np.ndarray) -> dict[str, Any]:
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    return {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": digest}


# Writing


def write(directory: Path, snapshot: Snapshot, keep: int | None = KEEP) -> Path:
    """Writes a checkpoint below `directory`, drops all but the last two (`keep`; None: all stay), and returns its path.

    Raises:
        OSError: it could not be written, for instance because the disk is full; what was there before still is.
    """
    import orbax.checkpoint as ocp  # takes its time, and many runs never need it

    directory = directory.absolute()  # orbax asks for it
    path, unfinished = directory / str(snapshot.rows), directory / f"{snapshot.rows}.unfinished"
    directory.mkdir(parents=True, exist_ok=True)
    _require_space(directory, snapshot)
    described = {item: {name: _describe(a) for name, a in arrays.items()} for item, arrays in snapshot.items.items()}
    # Orbax writes no empty arrays; their shape says all there is to know.
    trees = {item: nested({name: a for name, a in arrays.items() if a.size}) for item, arrays in snapshot.items.items()}
    args = {item: ocp.args.StandardSave(tree) for item, tree in trees.items() if tree}
    args[_META] = ocp.args.JsonSave({**snapshot.meta, "leaves": described})
    try:
        with _orbax() as checkpointer:
            checkpointer.save(unfinished, args=ocp.args.Composite(**args))
        files = _digests(unfinished)
        (unfinished / _FILES).write_text(json.dumps({"sha256": _digest_of(files), "files": files}))
        unfinished.rename(path)
        for older in complete(directory)[:-keep] if keep else ():
            _remove(older)
    except ValueError as error:  # how orbax passes on what the file system said
        code = errno.ENOSPC if "RESOURCE_EXHAUSTED" in str(error) else errno.EIO
        raise OSError(code, os.strerror(code)) from error
    finally:
        clean(directory)
    return path


def _require_space(directory: Path, snapshot: Snapshot) -> None:
    """Orbax reports a full disk with pages of traces; a look ahead spares them in all but the rarest cases."""
    needed = 2 * sum(array.nbytes for arrays in snapshot.items.values() for array in arrays.values()) + 2**20
    if shutil.disk_usage(directory).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _digests(directory: Path) -> dict[str, str]:
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != _FILES)
    return {str(path.relative_to(directory)): _digest(path) for path in files}


def complete(directory: Path) -> list[Path]:
    """Returns the complete checkpoints below a directory, oldest first."""
    if not directory.is_dir():
        return []
    return sorted((path for path in directory.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))


def clean(directory: Path) -> None:
    """Removes what interrupted writing left below a directory."""
    for path in directory.iterdir() if directory.is_dir() else ():
        if not path.name.isdecimal():
            shutil.rmtree(path)


def drop_after(path: Path) -> None:
    """Removes the checkpoints that are later than this one, since the run now goes on from here."""
    for later in complete(path.parent):
        if int(later.name) > int(path.name):
            _remove(later)


def _remove(path: Path) -> None:
    """Takes the name away first: half a checkpoint is none."""
    removed = path.with_name(f"{path.name}.removed")
    path.rename(removed)
    shutil.rmtree(removed)


# Reading


def load(path: Path, config: Config, env: Env) -> RunState:
    """Returns the run that a checkpoint holds, on the default device.

    Args:
        path: the checkpoint.
        config: of the run that goes on: the checkpoint's own, or with a larger budget where
            nothing so far depended on it.
        env: its environment.

    Raises:
        ConfigError: the checkpoint is damaged, or belongs to another run.
    """
    meta = read_meta(path)
    _require_same_run(path, meta["config"], config, env)
    run = meta["run"]
    run["switch_steps"] = tuple(run["switch_steps"])
    run["curve"] = tuple(Evaluation(step, *map(tuple, values)) for step, *values in run["curve"])
    run["random_return"] = tuple(run["random_return"])
    template = _template(config, env, run["phase"])
    needed = by_path(template)
    _require_needed(path, meta["leaves"], needed, "this run")
    found = {
        _HOMES[item] + name: array
        for item, described in meta["leaves"].items()
        for name, array in _read(path, item, described).items()
    }
    leaves = [_place(found[name], expected) for name, expected in needed.items()]
    train = jax.tree.unflatten(jax.tree.structure(template), leaves)
    return RunState(train=train, **run)


class SavedTeam(NamedTuple):
    """What it takes to play with the teams of a checkpoint.

    Attributes:
        system: of the phase the run was in.
        params: of the actors of all seeds, leaves [K, ...].
        inputs: statistics by which what they see is standardised, [K, ...].
        critic: its parameters, [K, ...]; empty unless asked for.
        value_norm: the critic's units, [K, ...]; likewise.
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


def load_team(path: Path, config: Config, env: Env, *, valued: bool = False) -> SavedTeam:
    """Returns the teams of a checkpoint, without what only training needs.

    Args:
        path: the checkpoint.
        config: of its run, or with another task.
        env: to play in: the run's own, or another of the same shapes.
        valued: with the critic, which says what their play is worth.

    Raises:
        ConfigError: the checkpoint is damaged, does not fit the environment, or holds NaN.
    """
    meta = read_meta(path)
    system = make_system(config, env, adapting=meta["run"]["phase"] == ADAPTERS)
    key = jax.random.key(0)
    learner = {"actor": jax.eval_shape(system.actor.init, key), "inputs": system.inputs.init()}
    if valued:
        learner |= {"critic": jax.eval_shape(system.critic.init, key), "value_norm": system.value_norm.init()}
    template = jax.eval_shape(lambda: jax.tree.map(lambda leaf: jnp.zeros((config.seeds, *leaf.shape)), learner))
    needed = by_path({"learner": template})
    items = {item: leaves for item, leaves in meta["leaves"].items() if item != TRAIN_ITEM}
    if config.standardise or valued:
        known = {name: leaf for name, leaf in meta["leaves"].get(TRAIN_ITEM, {}).items() if name in needed}
        items[TRAIN_ITEM] = known
    _require_needed(path, items, needed, env.spec.name)
    found: Arrays = {}
    for item in items:
        arrays = _read(path, item, meta["leaves"][item])
        found |= {_HOMES[item] + name: arrays[name] for name in items[item]}
    wrong = not_finite(found)
    require(wrong is None, f"{wrong} in checkpoint {path} holds NaN or infinity")
    leaves = [_place(found[name], expected) for name, expected in needed.items()]
    parts = jax.tree.unflatten(jax.tree.structure(template), leaves)
    return SavedTeam(system, parts.pop("actor"), **parts)


def _require_needed(path: Path, items: dict[str, Described], needed: dict[str, Any], who: str) -> None:
    """Compares what a checkpoint says it holds with what is needed, before anything is read."""
    found = {_HOMES[item] + name: leaf for item, described in items.items() for name, leaf in described.items()}
    for name in sorted(needed.keys() ^ found.keys()):
        where = "is missing from" if name in needed else f"is not known to {who}, but stands in"
        raise ConfigError(f"{name} {where} checkpoint {path}")
    for name, expected in needed.items():
        here = jax.eval_shape(jax.random.key_data, expected) if _is_key(expected) else expected
        then = found[name]
        require(
            (then["shape"], then["dtype"]) == (list(here.shape), str(here.dtype)),
            f"{name} in checkpoint {path} is {then['dtype']}{then['shape']}, but {who} needs "
            f"{here.dtype}{list(here.shape)}",
        )


def read_meta(path: Path) -> dict[str, Any]:
    """Returns the `meta` of a checkpoint."""
    require(path.is_dir(), f"there is no checkpoint {path}{_elsewhere(path)}")
    inside = complete(path / "checkpoints")
    require(not inside, f"{path} is a run; name one of its checkpoints, such as {inside[-1] if inside else path}")
    meta = _restore(path, _META)
    version = meta.get("format") if isinstance(meta, dict) else None
    require(
        version == FORMAT,
        f"checkpoint {path} has format {str(version)[:20]}, this version of lorasa_jax reads {FORMAT}; "
        "go on with the one that wrote it",
    )
    require(_is_meta(meta), f"{_META} of checkpoint {path} is not what lorasa_jax writes{_elsewhere(path)}")
    return meta


def _is_meta(meta: dict[str, Any]) -> bool:
    """Says whether everything that is read has the type that is expected of it."""
    leaves, run, config = meta.get("leaves"), meta.get("run"), meta.get("config")
    if not (isinstance(leaves, dict) and isinstance(run, dict) and isinstance(config, dict)):
        return False
    numbers = (int, float)
    return (
        leaves.keys() <= _HOMES.keys()
        and all(isinstance(item, dict) and all(map(_is_description, item.values())) for item in leaves.values())
        and isinstance(config.get("total_steps"), int)
        and run.keys() == set(RunState._fields) - {"train"}
        and run["phase"] in (SHARED, ADAPTERS)
        and _is_list(run["switch_steps"], int, type(None))
        and _is_list(run["random_return"], *numbers)
        and _is_list(run["curve"], list)
        and all(map(_is_evaluation, run["curve"]))
        and isinstance(run["evaluation_interval"], int)
        and isinstance(run["inherited"], int)
        and run["evaluation_interval"] > 0
        and all(isinstance(run[name], numbers) for name in ("compile_seconds", "train_seconds"))
    )


def _is_evaluation(row: Any) -> bool:
    return (
        isinstance(row, list)
        and len(row) == len(Evaluation._fields)
        and isinstance(row[0], int)
        and all(_is_list(values, int, float) for values in row[1:])
    )


def _is_list(value: Any, *types: type) -> bool:
    return isinstance(value, list) and all(isinstance(entry, types) for entry in value)


def _is_description(leaf: Any) -> bool:
    return (
        isinstance(leaf, dict)
        and leaf.keys() == {"shape", "dtype", "sha256"}
        and _is_list(leaf["shape"], int)
        and all(0 <= size < 2**31 for size in leaf["shape"])
        and isinstance(leaf["dtype"], str)
        and _TYPES.fullmatch(leaf["dtype"]) is not None
    )


def read_item(path: Path, item: str) -> dict[str, Any]:
    """Returns the arrays of one item as nested dictionaries: the trunks alone, say, by `shared`.

    Raises:
        ConfigError: the checkpoint has no such item, or is damaged.
    """
    items = read_meta(path)["leaves"]
    require(item in items, f"checkpoint {path} has no item {item!r}; it has {', '.join(items)}")
    return nested(_read(path, item, items[item]))


def _read(path: Path, item: str, described: Described) -> Arrays:
    """The arrays of an item, each of them as `meta` describes it."""
    size = sum(math.prod(leaf["shape"]) for leaf in described.values())
    require(size <= _MOST, f"{item} of checkpoint {path} says it holds {size:,} numbers, more than is believed")
    empty = {name: np.zeros(leaf["shape"], leaf["dtype"]) for name, leaf in described.items() if 0 in leaf["shape"]}
    stored = by_path(_restore(path, item, described)) if len(empty) < len(described) else {}
    arrays = {name: np.asarray(array) for name, array in {**stored, **empty}.items()}
    for name, leaf in described.items():
        same = name in arrays and _describe(arrays[name]) == leaf
        require(same, f"{name} in {item} of checkpoint {path} is not what was written{_elsewhere(path)}")
    return arrays


def _restore(path: Path, item: str, described: Described | None = None) -> Any:
    """What orbax reads, from files that are as they were written."""
    import orbax.checkpoint as ocp

    wrong = next((name for name, digest in _files(path, item).items() if _digest(path / name) != digest), None)
    if wrong is not None:
        what = "is damaged" if os.path.exists(path / wrong) else "is missing"
        raise ConfigError(f"{wrong} of checkpoint {path} {what}{_elsewhere(path)}")
    how = ocp.args.JsonRestore() if item == _META else ocp.args.StandardRestore()
    try:
        for name, leaf in by_path(_stored(path / item) if described else {}).items():
            # Orbax makes room for an array before it finds out whether its numbers are there.
            expected = (described or {}).get(name)
            same = expected and (list(leaf.shape), str(leaf.dtype)) == (expected["shape"], expected["dtype"])
            require(bool(same), f"{name} in {item} of checkpoint {path} is not what was written{_elsewhere(path)}")
        with _orbax() as checkpointer:
            return checkpointer.restore(path.absolute(), args=ocp.args.Composite(**{item: how}))[item]
    except ConfigError:
        raise
    except Exception as error:  # whatever its files lead orbax to
        said = " ".join(str(error).split())[:100]
        raise ConfigError(f"{item} of checkpoint {path} cannot be read ({said}){_elsewhere(path)}") from None


def _stored(path: Path) -> Any:
    """The shapes and types of the arrays that an item's files hold, without reading them."""
    import orbax.checkpoint as ocp

    return ocp.StandardCheckpointHandler().metadata(path.absolute()).tree


def _orbax() -> Any:
    """What writes and reads; of several processes each for itself alone, without waiting for the others."""
    import orbax.checkpoint as ocp

    if jax.process_count() == 1:
        return ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
    )
    handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=alone))
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _files(path: Path, item: str) -> dict[str, str]:
    """The digests of the files that reading an item takes: its own, and those beside the items."""
    try:
        listed = json.loads((path / _FILES).read_text())
        texts = all(isinstance(digest, str) for digest in listed["files"].values())
        whole = texts and listed["sha256"] == _digest_of(listed["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    require(whole, f"{_FILES} of checkpoint {path} is damaged or missing{_elsewhere(path)}")
    home = path.resolve()
    for found in (*listed["files"], *(str(found.relative_to(path)) for found in path.rglob("*"))):
        inside = "\0" not in found and (path / found).resolve().is_relative_to(home)
        require(inside, f"{found!r} in checkpoint {path} leads out of it; no checkpoint that was written does")
    return {name: digest for name, digest in listed["files"].items() if name.startswith(f"{item}/") or "/" not in name}


def _digest_of(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "none"
    except OSError:
        return "none"


def _elsewhere(path: Path) -> str:
    older = [other for other in complete(path.parent) if path.name.isdecimal() and int(other.name) < int(path.name)]
    if older:
        return f"; an older one is there: --resume {older[-1]}"
    return "; there is no older one: start the run again, in another directory"


def _template(config: Config, env: Env, phase: str) -> TrainState:
    """The shapes of all seeds' states."""
    keys = jnp.stack([jax.random.key(config.seed)] * config.seeds)
    states = jax.eval_shape(over_seeds(make_trainer(config, env).init, config.seeds), keys)
    if phase == ADAPTERS:
        second = make_trainer(config, env, adapting=True)
        states = jax.eval_shape(over_seeds(lambda state: graft(second, state), config.seeds), states)
    return states


def _place(array: np.ndarray, expected: Any) -> jax.Array:
    """An array on the device, as a key where one is expected."""
    # A copy: the device may otherwise work on this memory, and an update writes over its state.
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
        "total-steps cannot change: with ppo.anneal-lr the learning rates so far followed from it",
    )
    if not is_two_phase(config, env):
        return
    require(
        config.switch_step != "auto",
        "total-steps cannot change: with switch-step auto the time of the switch follows from it",
    )
    require(
        dataclasses.replace(config, total_steps=budget).switch_iteration == config.switch_iteration,
        f"total-steps cannot change: switch-step {config.switch_step:,} fell into the last iteration, "
        "and would come later in a longer run",
    )
