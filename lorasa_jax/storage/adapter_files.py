"""Adapters of a trained team as files, and on other backbones.

A team's adapters are a folder of deltas (`lorasa_jax.deltas.files`), one PEFT adapter folder per agent. Its `about`
holds the trunk of each agent, the shapes of the trunk, the environment and task, and a SHA-256 of the backbone.

These functions are found in `lorasa_jax.adapters`. They are for what each agent has for itself: adapters of
roles, and of several levels, are refused.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lorasa_jax.config import require
from lorasa_jax.core.trees import by_path, digest, nested, not_finite
from lorasa_jax.core.types import PolicyParams, PyTree
from lorasa_jax.deltas.algebra import Deltas
from lorasa_jax.deltas.files import SPEC_FILE, load_with_about
from lorasa_jax.deltas.files import save as save_deltas
from lorasa_jax.deltas.spec import Spec, make_spec
from lorasa_jax.learning.system import System

_FACTORS, _WHOLE = frozenset({"left", "right", "full"}), frozenset({"kernel", "bias"})


@dataclass(frozen=True)
class AdapterConfig:
    """What adapters are, and what they stand on.

    Attributes:
        env: family of environments they were trained in.
        task: the task.
        rank: r.
        scale: alpha / r.
        groups: the trunk of each owner.
        trunk: the shape of every leaf of one trunk, by its path.
        backbone: SHA-256 of all trunks they were trained on (`lorasa_jax.core.trees.digest`).
    """

    env: str
    task: str
    rank: int
    scale: float
    groups: tuple[int, ...]
    trunk: dict[str, tuple[int, ...]]
    backbone: str


class TeamAdapters(NamedTuple):
    """The adapters of a team, without a backbone.

    Attributes:
        own: as `PolicyParams.agents`, `{"agent": ...}` with leaves [N, ...].
        about: what they are.
    """

    own: PyTree
    about: AdapterConfig


# Writing and reading


def describe(params: PolicyParams, system: System) -> AdapterConfig:
    """Returns what a team's adapters are.

    Args:
        params: of one seed.
        system: of the phase in which they were trained.
    """
    config, sharing = system.config, system.actor.sharing
    level = config.adapter_levels[0]
    return AdapterConfig(
        env=config.env,
        task=system.env.spec.name,
        rank=level.rank,
        scale=level.scale,
        groups=sharing.groups,
        trunk={name: tuple(leaf.shape[1:]) for name, leaf in by_path(params.shared).items()},
        backbone=digest(params.shared),
    )


def save(directory: Path | str, params: PolicyParams, system: System) -> Path:
    """Writes a team's adapters into a new folder, whole or not at all, and returns its path.

    Args:
        directory: the folder; must not exist.
        params: of one seed, trunks and adapters.
        system: of the phase in which they were trained.

    Raises:
        ConfigError: there are no low-rank adapters, or they hold NaN; the folder exists.
        OSError: it cannot be written.
    """
    directory = Path(directory)
    require(not directory.exists(), f"{directory} exists already; name another folder for the adapters")
    require(bool(params.agents), f"under sharing {system.config.sharing} agents own no adapters in this phase")
    _require_built_in(system)
    require_own(params.agents, system)
    own = params.agents["agent"]
    require(
        all(parts.keys() <= _FACTORS for parts in own.values()),
        "only low-rank adapters are kept in files, not whole layers",
    )
    needed = jax.eval_shape(system.actor.init, jax.random.key(0))
    found, wanted = ({name: leaf.shape for name, leaf in by_path(tree).items()} for tree in (params, needed))
    require(found == wanted, "these parameters have not the shapes of one team; take the parameters of one seed")
    about = describe(params, system)
    deltas = Deltas({f"{layer}/kernel": parts for layer, parts in own.items()}, _spec(about, own))
    return save_deltas(directory, deltas, dataclasses.asdict(about))


def _spec(about: AdapterConfig, layers: Iterable[str]) -> Spec:
    """The spec of adapters on these layers of the trunk."""
    trunk = nested({name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in about.trunk.items()})
    return make_spec(trunk, [f"{layer}/kernel" for layer in layers], about.rank, about.scale * about.rank)


def load(directory: Path | str) -> TeamAdapters:
    """Returns the adapters in a folder.

    Raises:
        ConfigError: they are missing, damaged, hold NaN, or are not what they say they are.
    """
    deltas, fields = load_with_about(directory)
    about = _checked(deltas, fields, f"{Path(directory) / SPEC_FILE}")
    own = {target.path.removesuffix("/kernel"): dict(deltas.arrays[target.path]) for target in deltas.spec.targets}
    return TeamAdapters({"agent": own}, about)


def _require_built_in(system: System) -> None:
    module = system.config.actor.module
    require(
        not module,
        f"these files are for adapters of the built-in network, not of {module}; a checkpoint keeps them, and "
        "lorasa_jax.deltas.save writes deltas of any network",
    )


def require_own(own: PyTree, system: System) -> None:
    """Refuses what agents share with others, and what is neither a correction nor a layer."""
    alone = own.keys() <= {"agent"}
    layers = own.get("agent", {}).values()
    known = all(isinstance(parts, dict) and (parts.keys() <= _FACTORS or parts.keys() <= _WHOLE) for parts in layers)
    require(
        alone and known,
        "only low-rank adapters, or layers, of each agent's own can be moved; those of sharing "
        f"{system.config.sharing} with levels {' '.join(system.config.levels)} are of another kind",
    )


def _require_finite(leaves: Mapping[str, Any], where: str) -> None:
    wrong = not_finite(leaves)
    require(wrong is None, f"{wrong} in {where} holds NaN or infinity")


def _is_count(value: Any, least: int = 1) -> bool:
    return type(value) is int and least <= value < 2**24


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_trunk(value: Any) -> bool:
    return isinstance(value, dict) and all(
        re.fullmatch(r"\w+/(kernel|bias|scale|embedding)", name)
        and isinstance(shape, list)
        and 1 <= len(shape) <= 2
        and all(map(_is_count, shape))
        for name, shape in value.items()
    )


def _is_numbering(value: Any) -> bool:
    numbers = isinstance(value, list) and bool(value) and all(_is_count(entry, 0) for entry in value)
    return numbers and set(value) == set(range(max(value) + 1))


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "rank": _is_count,
    "scale": lambda value: type(value) in (int, float) and 0 < value < 1e9,
    "groups": _is_numbering,
    "trunk": _is_trunk,
    "backbone": lambda value: _is_text(value) and bool(re.fullmatch("[0-9a-f]{64}", value)),
    "env": _is_text,
    "task": _is_text,
}
"""What each field of `about` has to be."""


def _checked(deltas: Deltas, fields: Mapping[str, Any], where: str) -> AdapterConfig:
    """What a team's deltas are; refuses others."""
    for name, is_good in _FIELDS.items():
        require(name in fields and is_good(fields[name]), f"{name} of about in {where} is missing or invalid")
    about = AdapterConfig(**{name: fields[name] for name in _FIELDS} | {
        "trunk": {name: tuple(shape) for name, shape in fields["trunk"].items()}, "groups": tuple(fields["groups"])
    })  # fmt: skip
    n = deltas.n_owners
    require(len(about.groups) == n, f"groups in {where} is of {len(about.groups)} agents, but there are {n} owners")
    layers = [target.path.removesuffix("/kernel") for target in deltas.spec.targets]
    require(
        {f"{layer}/kernel" for layer in layers} <= about.trunk.keys() and deltas.spec == _spec(about, layers),
        f"targets in {where} do not fit trunk, rank and scale of about there",
    )
    return about


# On a backbone


def attach(
    backbone: PolicyParams | Path | str, adapters: TeamAdapters, *, seed: int = 0, any_backbone: bool = False
) -> PolicyParams:
    """Returns the policies that adapters make of a backbone.

    The system that plays them must scale them as they were trained: alpha / rank of its configuration is
    `adapters.about.scale`, which no shape shows.

    Args:
        backbone: parameters of one seed, of which only the trunks count, or a checkpoint.
        adapters: as `load` gives them.
        seed: which of a checkpoint's seeds, counted from 0.
        any_backbone: also take one that they were not trained on, if its shapes are the same.

    Raises:
        ConfigError: the backbone is another one, does not fit, or holds NaN.
    """
    where = "this backbone"
    if isinstance(backbone, PolicyParams):
        shared = backbone.shared
    else:
        from lorasa_jax.storage.arrays import read_item
        from lorasa_jax.storage.checkpoints import SHARED_ITEM

        where = f"the backbone in {backbone}"
        seeds = read_item(Path(backbone), SHARED_ITEM)
        n_seeds = len(jax.tree.leaves(seeds)[0])
        require(0 <= seed < n_seeds, f"seed must count one of the {n_seeds} seeds in {backbone} from 0, got {seed}")
        shared = jax.tree.map(lambda leaf: jnp.asarray(leaf[seed]), seeds)
    about, n_trunks = adapters.about, max(adapters.about.groups) + 1
    found = {name: tuple(leaf.shape) for name, leaf in by_path(shared).items()}
    for name in sorted({*found, *about.trunk}):
        needed = (n_trunks, *about.trunk[name]) if name in about.trunk else None
        require(
            found.get(name) == needed,
            f"these adapters, of {about.task}, do not fit {where}: {name} is {shape_in_words(found.get(name))} there, "
            f"and they need {shape_in_words(needed)}",
        )
    _require_finite(by_path(shared), where)
    require(
        any_backbone or digest(shared) == about.backbone,
        f"these adapters were not trained on {where}; give any_backbone=True to attach them even so",
    )
    return PolicyParams(shared, adapters.own)


def shape_in_words(shape: tuple[int, ...] | None) -> str:
    """Returns a shape as a message says it."""
    return "absent" if shape is None else str(list(shape))
