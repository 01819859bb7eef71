"""Layouts: a run's arrays on one device, or spread over the devices of one or several processes.

There are two layouts, each a mesh of one axis:

`rows`  every device has its own rows (seeds, points of a grid). `shard_map` is around the mapped function. Devices do
        not communicate, and no loop of one device waits for another device.
`envs`  every device has environments of all rows. Parameters are on all devices. The compiler adds sums over devices
        for gradients and statistics.

The compiler cannot find the order in which to merge the axis of environments with another axis so that each device
keeps its own environments. `core/axes.py` has functions for this.
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
"""Name of the layout of rows, and of its mesh axis."""

Shard = Literal["auto", "rows", "envs", "off"]

WORTHWHILE = 32
"""Minimum number of environments per device for spreading them under `auto`."""


class Layout(NamedTuple):
    """The layout of a run's arrays.

    Attributes:
        mesh: the devices, along one axis named `rows` or `envs`; None: one device.
    """

    mesh: Mesh | None = None

    @property
    def by(self) -> str | None:
        """The spread axis: `rows`, `envs`, or None."""
        return self.mesh.axis_names[0] if self.mesh else None

    def rows_each(self, n_rows: int) -> int:
        """Returns the number of rows per device."""
        return n_rows // self.mesh.size if self.mesh and self.by == ROWS else n_rows

    def trace(self, function: Callable, shapes: tuple[PyTree, ...]) -> Any:
        """Returns the traced program of a function of `rows_each` rows, for all rows and devices.

        Args:
            function: a function mapped over a leading axis of rows.
            shapes: its arguments for all rows, or their shapes.
        """
        if self.mesh is None:
            return jax.jit(function).trace(*shapes)
        if self.by == ROWS:
            rows = PartitionSpec(ROWS)
            own = jax.shard_map(function, mesh=self.mesh, in_specs=rows, out_specs=rows, check_vma=False)
            place = NamedSharding(self.mesh, rows)
            return jax.jit(own, in_shardings=place, out_shardings=place).trace(*shapes)
        with jax.set_mesh(self.mesh):  # read by `shards`
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
        """Spreads a tree of all rows, equal on every process, over the devices."""
        return jax.tree.map(_put, tree, self.places(tree)) if self.mesh else tree


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _put(leaf: Any, sharding: NamedSharding) -> Array:
    """Puts a leaf on the devices of all processes; `device_put` does not support keys on devices of other processes."""
    if sharding.is_fully_addressable or not getattr(leaf, "is_fully_addressable", True):
        return jax.device_put(leaf, sharding)
    if _is_key(leaf):
        return jax.random.wrap_key_data(_put(jax.random.key_data(leaf), sharding))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def choose_layout(
    shard: Shard, n_rows: int, config: Config, status: Callable[[str], None] = lambda text: None
) -> Layout:
    """Returns the layout of a run on as many of the available devices as can have equal shares.

    Args:
        shard: `rows`, `envs` or `off` (one device); `auto`: the axis that keeps more devices busy, rows if both are
            equal. Environments only if every device has at least `WORTHWHILE` of them.
        n_rows: seeds and points of a grid, K.
        config: the run's configuration.
        status: receives a message about the used devices.

    Raises:
        ConfigError: the work cannot be divided among several processes.
    """
    n_blocks = config.n_envs // config.ppo.minibatches
    shares = {ROWS: n_rows, ENVS: n_blocks, "off": 1}
    processes = jax.process_count()
    owned = [[d for d in jax.devices() if d.process_index == p] for p in range(processes)]

    def most(by: str) -> int:
        """The number of devices per process that can have equal shares; 0: none."""
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
    """The message about used devices, and about how to use the others."""
    runs, count = by == ROWS, jax.device_count()
    who = f"{count}" if used == count else f"{used} of {count}"
    text = f"{n_rows} runs side by side" if runs else f"{config.n_envs} environments"
    text = f"{text} on {who} devices"
    if used == count:
        return text
    if runs:
        return f"{text}, because devices have equal shares; a multiple of {count} runs would use all"
    return (
        f"{text}; a larger --n-envs may use all {count}: each needs at least {WORTHWHILE} environments, and an equal "
        f"share of each of the {config.ppo.minibatches} minibatches"
    )


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
    """Returns a tree whose leaves this process can read completely, even if processes share them.

    All processes must call it at the same time.
    """
    meshes = [leaf.sharding.mesh for leaf in jax.tree.leaves(tree) if not getattr(leaf, "is_fully_addressable", True)]
    if not meshes:
        return tree
    everywhere = NamedSharding(meshes[0], PartitionSpec())
    return jax.jit(lambda tree: tree, out_shardings=everywhere)(tree)


def fetch(tree: PyTree) -> PyTree:
    """Returns copies of arrays on the host, complete on every process."""
    return jax.tree.map(np.array, local(tree))


def row(tree: PyTree, k: int) -> PyTree:
    """Returns one row of a tree of all rows, including keys, on the default device."""

    def one(leaf: Any) -> Any:
        if _is_key(leaf):
            return jax.random.wrap_key_data(one(jax.random.key_data(leaf)))
        return jnp.array(np.asarray(leaf)[k])

    return jax.tree.map(one, local(tree))


# Several processes


def is_leader() -> bool:
    """Returns whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def anywhere(flag: bool) -> bool:
    """Returns whether the flag is true in any process; all processes must call it at the same time."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental.multihost_utils import process_allgather

    return bool(np.any(process_allgather(np.array(flag))))
