"""Merges the axis of environments with another axis inside a program, and splits it again.

Environments may be spread over devices (`lorasa_jax.running.devices`). These functions merge their axis in an order in
which each device keeps its own environments. The compiler does not find this order by itself. If environments are not
spread, the functions are plain reshapes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array

from lorasa_jax.core.types import PyTree

ENVS = "envs"
"""Name of the mesh axis that environments are spread along."""


def shards() -> int:
    """Returns the number of devices over which the currently traced program spreads its environments."""
    return jax.sharding.get_abstract_mesh().shape.get(ENVS, 1)


def _pieces(n_envs: Any) -> int:  # a number, or a symbolic size in an exported program
    return shards() if n_envs % shards() == 0 else 1


def spread(tree: PyTree) -> PyTree:
    """Returns arrays [E, ...] spread like the environments, if the number of devices divides E."""

    def one(x: Array) -> Array:
        return x if _pieces(x.shape[0]) == 1 else jax.lax.with_sharding_constraint(x, PartitionSpec(ENVS))

    return jax.tree.map(one, tree)


def merge_axes(x: Array, axis: int = 0) -> Array:
    """Returns axes A and E, `axis` and the next one, as one axis A * E.

    Spread environments are merged in the order [device, A, environments of the device], so no
    environment moves. Otherwise this is a reshape.
    """
    n_envs = x.shape[axis + 1]
    pieces = _pieces(n_envs)
    if pieces > 1:
        x = x.reshape(*x.shape[: axis + 1], pieces, n_envs // pieces, *x.shape[axis + 2 :])
        x = jnp.moveaxis(x, axis + 1, axis)
    return jax.lax.collapse(x, axis, axis + 2 + (pieces > 1))


def split_axes(x: Array, length: int, axis: int = 0) -> Array:
    """Inverts `merge_axes`: returns the two axes of sizes `length` and E."""
    n_envs = x.shape[axis] // length
    pieces = _pieces(n_envs)
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    if pieces > 1:
        x = jnp.moveaxis(x.reshape(*before, pieces, length, n_envs // pieces, *after), axis, axis + 1)
    return x.reshape(*before, length, n_envs, *after)


def by_shard(function: Callable[[Array, Array | None], Array], x: Array, index: Array | None, axis: int) -> Array:
    """Applies a function that selects environments, on each device to its own environments.

    Args:
        function: `(x, index) -> selected`, with the selected environments on axis `axis - 1`.
        x: an array with environments on `axis`.
        index: environments to select, [Q, ...]; the d-th part of it selects from the d-th device. None: all.
        axis: the axis of environments in x.
    """
    pieces = shards()
    if pieces == 1:
        return function(x, index)
    each = x.shape[axis] // pieces
    x = x.reshape(*x.shape[:axis], pieces, each, *x.shape[axis + 1 :])
    if index is not None:
        first = each * jnp.arange(pieces).reshape(-1, *(1,) * index.ndim)
        index = index.reshape(pieces, -1, *index.shape[1:]) - first
    picked = jax.vmap(function, in_axes=(axis, None if index is None else 0), out_axes=axis - 1)(x, index)
    return jax.lax.collapse(picked, axis - 1, axis + 1)
