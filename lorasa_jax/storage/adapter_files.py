"""Adapters as files, and on other backbones.

A team's adapters are a folder, laid out as PEFT's are:

============================  ===============================================================
`adapter_config.json`         rank, scale and layers, the trunk of each owner, the shapes of the
                              trunk, what they were trained on, and a SHA-256 of the backbone
`adapter_model.safetensors`   float32, `LAYER/left` [N, in, r] and `LAYER/right` [N, r, out], or
                              `LAYER/full` [N, in, out] where the rank is no smaller than the layer
============================  ===============================================================

What is read may come from anybody. Nothing in it is run, no array is read before its name, shape and
type are known to be right, and what does not fit is refused in one line.

These functions are found in `lorasa_jax.adapters`. They are for what each agent has for itself: adapters of
roles, and of several levels, are refused.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lorasa_jax.config import ConfigError, require
from lorasa_jax.core.trees import by_path, digest, nested, not_finite
from lorasa_jax.core.types import PolicyParams, PyTree
from lorasa_jax.files import whole
from lorasa_jax.learning.system import System
from lorasa_jax.sharing.variants import low_rank

FORMAT = 3
"""Changes where what is written changes."""
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_FACTORS, _WHOLE = frozenset({"left", "right", "full"}), frozenset({"kernel", "bias"})
_LARGEST_CONFIG = 2**20


@dataclass(frozen=True)
class AdapterConfig:
    """What adapters are, and what they stand on.

    Attributes:
        env: family of environments they were trained in.
        task: the task.
        rank: r.
        scale: alpha / r.
        layers: the layers that have one.
        groups: the trunk of each owner.
        trunk: the shape of every leaf of one trunk, by its path.
        backbone: SHA-256 of all trunks they were trained on (`lorasa_jax.core.trees.digest`).
    """

    env: str
    task: str
    rank: int
    scale: float
    layers: tuple[str, ...]
    groups: tuple[int, ...]
    trunk: dict[str, tuple[int, ...]]
    backbone: str

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every leaf of the adapters, by its path; nothing is allocated."""
        adapter = low_rank(self.rank, self.scale, self.layers)
        trunk = nested({name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in self.trunk.items()})
        own = jax.eval_shape(adapter.init, jax.random.key(0), trunk)
        return {name: (len(self.groups), *leaf.shape) for name, leaf in by_path(own).items()}


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
        layers=tuple(params.agents["agent"]),
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
    from safetensors.numpy import save as to_bytes

    directory = Path(directory)
    require(not directory.exists(), f"{directory} exists already; name another folder for the adapters")
    require(bool(params.agents), f"under sharing {system.config.sharing} agents own no adapters in this phase")
    _require_built_in(system)
    require_own(params.agents, system)
    own = {name: np.ascontiguousarray(leaf) for name, leaf in by_path(params.agents["agent"]).items()}
    parts = {name.rpartition("/")[2] for name in own}
    require(parts <= _FACTORS, "only low-rank adapters are kept in files, not whole layers")
    about = describe(params, system)
    fields = _to_json(about)
    wrong = next((name for name, is_good in _FIELDS.items() if not is_good(fields[name])), None)
    require(wrong is None, f"{wrong} of these adapters is not that of one team; take the parameters of one seed")
    _require_fit({name: (array.shape, str(array.dtype)) for name, array in own.items()}, about, "these parameters")
    _require_finite(own, "these adapters")

    directory.parent.mkdir(parents=True, exist_ok=True)
    with whole(directory) as folder:
        folder.mkdir()
        (folder / CONFIG_FILE).write_text(json.dumps(fields, indent=2) + "\n")
        (folder / WEIGHTS_FILE).write_bytes(to_bytes(own))
    return directory


def load(directory: Path | str) -> TeamAdapters:
    """Returns the adapters in a folder.

    Raises:
        ConfigError: they are missing, damaged, hold NaN, or are not what they say they are.
    """
    from safetensors import SafetensorError, safe_open

    directory = Path(directory)
    about = _read_config(directory / CONFIG_FILE)
    path = directory / WEIGHTS_FILE
    require(path.is_file(), f"there is no {WEIGHTS_FILE} in {directory}")
    types = {"F32": "float32"}
    try:
        with safe_open(path, framework="numpy") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (no dictionary)
            found = {
                name: (tuple(part.get_shape()), types.get(part.get_dtype(), part.get_dtype()))
                for name, part in parts.items()
            }
            _require_fit(found, about, str(path))
            own = {name: file.get_tensor(name) for name in found}
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(f"{path} is no valid safetensors file: {_one_line(error)}") from None
    _require_finite(own, str(path))
    return TeamAdapters({"agent": jax.tree.map(jnp.asarray, nested(own))}, about)


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


def _require_fit(found: Mapping[str, tuple[tuple[int, ...], str]], about: AdapterConfig, where: str) -> None:
    expected = about.shapes
    for name in sorted(expected.keys() ^ found.keys()):
        raise ConfigError(f"{name} {'is missing from' if name in expected else 'has no place in'} {where}")
    for name, (shape, dtype) in sorted(found.items()):
        require(
            (shape, dtype) == (expected[name], "float32"),
            f"{name} in {where} is {dtype}{list(shape)}, and must be float32{list(expected[name])}",
        )


def _require_finite(leaves: Mapping[str, Any], where: str) -> None:
    wrong = not_finite(leaves)
    require(wrong is None, f"{wrong} in {where} holds NaN or infinity")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _to_json(about: AdapterConfig) -> dict[str, Any]:
    """The configuration in the words of PEFT, where it has some."""
    known = dataclasses.asdict(about)
    rank, scale = known.pop("rank"), known.pop("scale")
    peft = {"peft_type": "LORA", "r": rank, "lora_alpha": scale * rank, "target_modules": known.pop("layers")}
    return json.loads(json.dumps({"format": FORMAT, **peft, **known}))


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
    "r": _is_count,
    "lora_alpha": lambda value: type(value) in (int, float) and 0 < value < 1e9,
    "target_modules": lambda value: isinstance(value, list) and bool(value) and all(map(_is_text, value)),
    "groups": _is_numbering,
    "trunk": _is_trunk,
    "backbone": lambda value: _is_text(value) and bool(re.fullmatch("[0-9a-f]{64}", value)),
    "env": _is_text,
    "task": _is_text,
}
"""What each field of `adapter_config.json` has to be."""


def _read_config(path: Path) -> AdapterConfig:
    require(path.is_file(), f"there are no adapters in {path.parent}: it has no {CONFIG_FILE}")
    require(path.stat().st_size <= _LARGEST_CONFIG, f"{path} is larger than any that was written as adapters")
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        fields = None
    require(isinstance(fields, dict), f"{path} is no valid JSON that holds fields by name")
    require(
        fields.get("format") == FORMAT,
        f"{path} has format {str(fields.get('format'))[:20]}, and this version of lorasa_jax reads {FORMAT}",
    )
    for name, is_good in _FIELDS.items():
        require(name in fields and is_good(fields[name]), f"{name} in {path} is missing, or not what it has to be")
    trunk = {name: tuple(shape) for name, shape in fields["trunk"].items()}
    for layer in fields["target_modules"]:
        require(f"{layer}/kernel" in trunk, f"target_modules in {path} names {layer!r}, which the trunk there lacks")
    return AdapterConfig(
        env=fields["env"],
        task=fields["task"],
        rank=fields["r"],
        scale=fields["lora_alpha"] / fields["r"],
        layers=tuple(fields["target_modules"]),
        groups=tuple(fields["groups"]),
        trunk=trunk,
        backbone=fields["backbone"],
    )


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
