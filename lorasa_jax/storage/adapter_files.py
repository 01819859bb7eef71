"""Adapters of a trained team as files, and on other backbones.

A team's adapters are a folder of deltas (`lorasa_jax.deltas.files`), one PEFT adapter folder per agent. Its `about`
says which team they come from (`Origin`). Any network works.

`lorasa_jax.adapters` exports these functions. They only take adapters of individual agents: adapters of
roles, or of several levels, are an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lorasa_jax.config import require
from lorasa_jax.core.trees import by_path, digest
from lorasa_jax.core.types import PolicyParams, PyTree
from lorasa_jax.deltas.algebra import Deltas
from lorasa_jax.deltas.files import SPEC_FILE, is_count, load_with_about, require_finite
from lorasa_jax.deltas.files import save as save_deltas
from lorasa_jax.learning.system import System
from lorasa_jax.sharing.variants import by_layer


@dataclass(frozen=True)
class Origin:
    """The team that adapters come from.

    Attributes:
        env: family of the environment in which they were trained.
        task: the task.
        groups: the trunk of each owner.
        trunk: the shape of every leaf of one trunk, by path.
        backbone: SHA-256 of all trunks on which they were trained (`lorasa_jax.core.trees.digest`).
    """

    env: str
    task: str
    groups: tuple[int, ...]
    trunk: dict[str, tuple[int, ...]]
    backbone: str


class TeamAdapters(NamedTuple):
    """The adapters of a team, without a backbone.

    Attributes:
        deltas: the deltas of all agents, with leaves [N, ...] and the paths of one trunk.
        about: the team that they come from.
    """

    deltas: Deltas
    about: Origin

    @property
    def own(self) -> PyTree:
        """The same as `PolicyParams.agents`, `{"agent": ...}` with leaves [N, ...]."""
        return {"agent": by_layer(self.deltas.arrays)}

    @property
    def rank(self) -> int:
        """r, the same on all layers."""
        return self.deltas.spec.targets[0].rank

    @property
    def scale(self) -> float:
        """alpha / r, the same on all layers."""
        return self.deltas.spec.targets[0].alpha / self.rank


def deltas_of(params: PolicyParams, system: System, scope: str = "agent") -> Deltas:
    """Returns the low-rank adapters of all owners of a scope, with the paths of one trunk.

    Args:
        params: the parameters of one seed.
        system: the system of their phase.
        scope: the owners: `agent`, `unit_type` or `team`.

    Raises:
        ConfigError: there are no such adapters.
    """
    level = system.actor.sharing.stacks.get(scope)
    found: tuple[Deltas, ...] = ()
    if level is not None and scope in params.agents:
        _, found = level.adapter.apply(jax.tree.map(lambda leaf: leaf[0], params.shared), params.agents[scope])
    require(len(found) == 1, f"this team has no low-rank adapters of scope {scope}")
    return found[0]


def require_shapes(what: str, tree: PyTree, needed: Mapping[str, tuple[int, ...]]) -> None:
    """Raises `ConfigError` unless the tree has exactly the needed leaves and shapes."""
    found = {name: tuple(leaf.shape) for name, leaf in by_path(tree).items()}
    for name in sorted({*found, *needed}):
        there, here = ("absent" if name not in shapes else list(shapes[name]) for shapes in (found, needed))
        require(there == here, f"{what}: {name} is {there}, and must be {here}")


def shapes_of(system: System) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a system's parameters, for one seed."""
    return {name: leaf.shape for name, leaf in by_path(jax.eval_shape(system.actor.init, jax.random.key(0))).items()}


# Writing and reading


def save(directory: Path | str, params: PolicyParams, system: System) -> Path:
    """Writes a team's adapters into a new folder atomically, and returns its path.

    Args:
        directory: the folder; must not exist.
        params: trunks and adapters of one seed.
        system: the system of the phase in which they were trained.

    Raises:
        ConfigError: there are no low-rank adapters, not only agents own some, they contain NaN, or the folder exists.
        OSError: the folder cannot be written.
    """
    deltas, config = deltas_of(params, system), system.config
    require(
        len(params.agents) == 1,
        f"a folder holds adapters of agents only, but levels {' '.join(config.levels)} include others; "
        'save each level with lorasa_jax.deltas.save(folder, team.deltas("team")), team.deltas("agent")',
    )
    require_shapes("these are not the parameters of one seed", params, shapes_of(system))
    about = Origin(
        env=config.env,
        task=system.env.spec.name,
        groups=system.actor.sharing.groups,
        trunk={name: tuple(leaf.shape[1:]) for name, leaf in by_path(params.shared).items()},
        backbone=digest(params.shared),
    )
    return save_deltas(directory, deltas, asdict(about))


def load(directory: Path | str) -> TeamAdapters:
    """Returns the adapters in a folder.

    Raises:
        ConfigError: they are missing, damaged, inconsistent, or contain NaN.
    """
    deltas, fields = load_with_about(directory)
    where = f"{Path(directory) / SPEC_FILE}"
    for name, is_good in _FIELDS.items():
        require(name in fields and is_good(fields[name]), f"{name} of about in {where} is missing or invalid")
    trunk = {name: tuple(shape) for name, shape in fields["trunk"].items()}
    about = Origin(fields["env"], fields["task"], tuple(fields["groups"]), trunk, fields["backbone"])
    n, targets = deltas.n_owners, deltas.spec.targets
    require(len(about.groups) == n, f"groups in {where} is of {len(about.groups)} agents, but there are {n} owners")
    fits = all(target.path.endswith("/kernel") and trunk.get(target.path) == target.shape for target in targets)
    alike = len({(target.rank, target.alpha) for target in targets}) == 1
    require(fits and alike, f"targets in {where} must be kernels of the trunk in about, with one rank and one alpha")
    return TeamAdapters(deltas, about)


def _is_trunk(value: Any) -> bool:
    shapes = value.values() if isinstance(value, dict) else [None]
    return all(isinstance(shape, list) and len(shape) < 32 and all(map(is_count, shape)) for shape in shapes)


def _is_numbering(value: Any) -> bool:
    numbers = isinstance(value, list) and bool(value) and all(is_count(entry, least=0) for entry in value)
    return numbers and set(value) == set(range(len(set(value))))


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "env": lambda value: isinstance(value, str),
    "task": lambda value: isinstance(value, str),
    "groups": _is_numbering,
    "trunk": _is_trunk,
    "backbone": lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{64}", value)),
}
"""The check of each field of `about`."""


# On a backbone


def attach(
    backbone: PolicyParams | Path | str, adapters: TeamAdapters, *, seed: int = 0, any_backbone: bool = False
) -> PolicyParams:
    """Returns the policies of a backbone with these adapters.

    The system that plays them must use the scale of their training: alpha / rank of its configuration must be
    `adapters.scale`. The shapes do not show it, so it is not checked.

    Args:
        backbone: parameters of one seed, of which only the trunks are used, or a checkpoint.
        adapters: the result of `load`.
        seed: the seed of the checkpoint, counted from 0.
        any_backbone: allow a backbone on which they were not trained, if the shapes are equal.

    Raises:
        ConfigError: the backbone is another one, does not fit, or contains NaN.
    """
    where, about = "this backbone", adapters.about
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
    needed = {name: (max(about.groups) + 1, *shape) for name, shape in about.trunk.items()}
    require_shapes(f"these adapters, of {about.task}, do not fit {where}", shared, needed)
    require_finite(by_path(shared), where)
    require(
        any_backbone or digest(shared) == about.backbone,
        f"these adapters were not trained on {where}; give any_backbone=True to attach them even so",
    )
    return PolicyParams(shared, adapters.own)
