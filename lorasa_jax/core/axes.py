"""The axis of environments inside a program: merged with another axis, and split again.

Environments may be spread over devices (`lorasa_jax.running.devices`). The compiler does not know
in which order to merge their axis with another one so that each device keeps its own environments. These functions
know. Where environments are not spread they are plain reshapes.
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
    """Returns over how many devices the environments of the program that is being traced are spread."""
    return jax.sharding.get_abstract_mesh().shape.get(ENVS, 1)


def _pieces(n_envs: Any) -> int:  # a number, or the symbol of any number in a program that is exported
    return shards() if n_envs % shards() == 0 else 1


def spread(tree: PyTree) -> PyTree:
    """Returns arrays [E, ...] that a program makes, spread like its environments where E can be divided."""

    def one(x: Array) -> Array:
        return x if _pieces(x.shape[0]) == 1 else jax.lax.with_sharding_constraint(x, PartitionSpec(ENVS))

    return jax.tree.map(one, tree)


def merge_axes(x: Array, axis: int = 0) -> Array:
    """Returns axes A and E, `axis` and the next one, as one axis A * E.

    Spread environments are merged in the order [device, A, those of the device], so that none
    has to move; otherwise this is a reshape.
    """
    n_envs = x.shape[axis + 1]
    pieces = _pieces(n_envs)
    if pieces > 1:
        x = x.reshape(*x.shape[: axis + 1], pieces, n_envs // pieces, *x.shape[axis + 2 :])
        x = jnp.moveaxis(x, axis + 1, axis)
    return jax.lax.collapse(x, axis, axis + 2 + (pieces > 1))


def split_axes(x: Array, length: int, axis: int = 0) -> Array:
    """Returns what `merge_axes` made one axis as the two that they were, of sizes `length` and E."""
    n_envs = x.shape[axis] // length
    pieces = _pieces(n_envs)
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    if pieces > 1:
        x = jnp.moveaxis(x.reshape(*before, pieces, length, n_envs // pieces, *after), axis, axis + 1)
    return x.reshape(*before, length, n_envs, *after)


def by_shard(function: Callable[[Array, Array | None], Array], x: Array, index: Array | None, axis: int) -> Array:
    """Returns what a function picks from environments, each device picking from its own.

    Args:
        function: `(x, index) -> picked`, whose axis `axis - 1` is the one of what was picked.
        x: environments on `axis`.
        index: environments, [Q, ...], those in the d-th part of which lie on the d-th device; None: all.
        axis: of x.
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
