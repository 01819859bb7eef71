"""Where a run's arrays live: on one device, or spread over those of one process or of several.

Two layouts, each a mesh of one axis:

`rows`  every device has rows (seeds, points of a grid) of its own, and works on them alone: `shard_map` around the
        mapped function, no communication, and no loop of one device waits for another's.
`envs`  every device has environments of all rows. Parameters are on all devices, and the compiler adds the sums over
        devices where a gradient or a statistic needs them.

What the compiler cannot see for itself is in what order to merge the axis of environments with another one so that each
device keeps its own: `join` and `part` know, and are plain reshapes wherever environments are not spread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from lorasa_jax.config import Config, ConfigError
from lorasa_jax.core.axes import ENVS
from lorasa_jax.core.types import PyTree, RolloutState, Trajectory

ROWS = "rows"
"""Name of the other layout, and of its mesh's axis."""

Shard = Literal["auto", "rows", "envs", "off"]

WORTHWHILE = 32
"""Environments that a device must be left with before they are spread without being asked to."""


class Layout(NamedTuple):
    """How the arrays of a run are spread.

    Attributes:
        mesh: the devices, along one axis named `rows` or `envs`; None: one device.
    """

    mesh: Mesh | None = None

    @property
    def by(self) -> str | None:
        """What is spread: `rows`, `envs`, or nothing."""
        return self.mesh.axis_names[0] if self.mesh else None

    def rows_each(self, n_rows: int) -> int:
        """Returns how many of the rows one device works on."""
        return n_rows // self.mesh.size if self.mesh and self.by == ROWS else n_rows

    def trace(self, function: Callable, shapes: tuple[PyTree, ...]) -> Any:
        """Returns the traced program of a function of `rows_each` rows, for all rows and devices.

        Args:
            function: mapped over its leading axis, of rows.
            shapes: its arguments for all rows, or their shapes.
        """
        if self.mesh is None:
            return jax.jit(function).trace(*shapes)
        if self.by == ROWS:
            rows = PartitionSpec(ROWS)
            own = jax.shard_map(function, mesh=self.mesh, in_specs=rows, out_specs=rows, check_vma=False)
            place = NamedSharding(self.mesh, rows)
            return jax.jit(own, in_shardings=place, out_shardings=place).trace(*shapes)
        with jax.set_mesh(self.mesh):  # which tells `shards` that environments are spread
            inner = jax.jit(function)
            places = self.places(shapes), self.places(inner.trace(*shapes).out_info)
            return jax.jit(inner, in_shardings=places[0], out_shardings=places[1]).trace(*shapes)

    def places(self, tree: PyTree) -> PyTree:
        """Returns the sharding of every leaf of a tree of all rows, [K, ...]."""

        def place(part: PyTree) -> PyTree:
            if self.by == ROWS:
                return all_of(part, ROWS)
            if isinstance(part, RolloutState):
                return all_of(part, None, ENVS)
            if isinstance(part, Trajectory):
                return all_of(part, None, None, ENVS)._replace(inputs=all_of(part.inputs))
            return all_of(part)

        def all_of(part: PyTree, *axes: str | None) -> PyTree:
            assert self.mesh is not None
            sharding = NamedSharding(self.mesh, PartitionSpec(*axes))
            return jax.tree.map(lambda _: sharding, part)

        return jax.tree.map(place, tree, is_leaf=lambda part: isinstance(part, RolloutState | Trajectory))

    def place(self, tree: PyTree) -> PyTree:
        """Returns a tree of all rows, the same on every process, spread over the devices."""
        return jax.tree.map(_put, tree, self.places(tree)) if self.mesh else tree


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _put(leaf: Any, sharding: NamedSharding) -> Array:
    """The leaf on the devices of all processes; `device_put` takes no keys to those of others."""
    if sharding.is_fully_addressable or not getattr(leaf, "is_fully_addressable", True):
        return jax.device_put(leaf, sharding)
    if _is_key(leaf):
        return jax.random.wrap_key_data(_put(jax.random.key_data(leaf), sharding))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def choose_layout(
    shard: Shard, n_rows: int, config: Config, status: Callable[[str], None] = lambda text: None
) -> Layout:
    """Returns the layout of a run on the devices there are, as many of them as can have equal shares.

    Args:
        shard: `rows`, `envs` or `off` (one device); `auto`: what keeps more devices busy, rows if it is all the same;
            environments only where at least `WORTHWHILE` of them are left to every device.
        n_rows: seeds and points of a grid, K.
        config: of the run.
        status: is told where devices are left without work.

    Raises:
        ConfigError: there are several processes, and not something to do for each.
    """
    n_blocks = config.n_envs // config.ppo.minibatches
    shares = {ROWS: n_rows, ENVS: n_blocks, "off": 1}
    processes = jax.process_count()
    owned = [[d for d in jax.devices() if d.process_index == p] for p in range(processes)]

    def most(by: str) -> int:
        """How many devices of each process can have equal shares; 0: not even one."""
        fits = [each for each in range(1, min(map(len, owned)) + 1) if shares[by] % (each * processes) == 0]
        if (shard, by, processes) == ("auto", ENVS, 1):
            fits = [each for each in fits if each == 1 or config.n_envs >= WORTHWHILE * each]
        return max(fits, default=0)

    choices = [ROWS, ENVS] if n_rows > 1 else [ENVS]
    by = max(choices, key=most) if shard == "auto" else shard
    if not most(by):
        raise ConfigError(_too_few(by, n_rows, n_blocks, processes))
    used = [device for devices in owned for device in devices[: most(by)]]
    if jax.device_count() > 1 and shard != "off":
        status(_shares(by, n_rows, config, len(used)))
    if len(used) == 1:
        return Layout()
    return Layout(_mesh(by, used))


def _mesh(by: str, used: Sequence[jax.Device]) -> Mesh:
    return Mesh(np.array(used), (by,), axis_types=(jax.sharding.AxisType.Auto,))


def _shares(by: str, n_rows: int, config: Config, used: int) -> str:
    """What is shared by how many of the devices, and what would occupy the others."""
    runs, count = by == ROWS, jax.device_count()
    who = f"{count}" if used == count else f"{used} of {count}"
    text = f"{n_rows} runs side by side" if runs else f"{config.n_envs} environments"
    text = f"{text} on {who} devices"
    if used == count:
        return text
    if runs:
        return f"{text}, which have equal shares; a multiple of {count} would occupy all"
    return f"{text}; all need equal shares of each of {config.ppo.minibatches} minibatches, and many environments"


def _too_few(by: str, n_rows: int, n_blocks: int, processes: int) -> str:
    if by == ROWS:
        return f"{n_rows} rows cannot be shared by {processes} processes; take a multiple of {processes}, or shard envs"
    if by == ENVS:
        return (
            f"n-envs / ppo.minibatches = {n_blocks} environments cannot be shared by {processes} processes; "
            f"take a multiple of {processes}"
        )
    return f"shard off uses one device, but there are {processes} processes; start one"


# On the host


def local(tree: PyTree) -> PyTree:
    """Returns a tree with all its leaves where this process can read them: whole, where processes share them.

    All processes must ask for it at the same time.
    """
    meshes = [leaf.sharding.mesh for leaf in jax.tree.leaves(tree) if not getattr(leaf, "is_fully_addressable", True)]
    if not meshes:
        return tree
    everywhere = NamedSharding(meshes[0], PartitionSpec())
    return jax.jit(lambda tree: tree, out_shardings=everywhere)(tree)


def fetch(tree: PyTree) -> PyTree:
    """Returns copies of arrays on the host, of every process."""
    return jax.tree.map(np.array, local(tree))


def row(tree: PyTree, k: int) -> PyTree:
    """Returns one row of a tree of all rows, on the default device; keys too."""

    def one(leaf: Any) -> Any:
        if _is_key(leaf):
            return jax.random.wrap_key_data(one(jax.random.key_data(leaf)))
        return jnp.array(np.asarray(leaf)[k])

    return jax.tree.map(one, local(tree))


# Several processes


def is_leader() -> bool:
    """Says whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def anywhere(flag: bool) -> bool:
    """Says whether the flag holds in any process; all must ask at the same time."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental.multihost_utils import process_allgather

    return bool(np.any(process_allgather(np.array(flag))))
