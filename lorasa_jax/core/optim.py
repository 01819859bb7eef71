"""One Adam and one norm clip per slot: per trunk, and per agent."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from lorasa_jax.core.types import PyTree


class Optimizer(NamedTuple):
    """An optimiser of stacked slots: every leaf of a tree is [slots, ...].

    Attributes:
        init: `init(params) -> state`.
        apply: `apply(params, state, grads, lr, moved=None) -> (params, state, norms)`.
            `norms` [slots] are those of the gradients before clipping. Where `moved`
            [slots] says no, parameters and moments stay as they are, to the bit.
    """

    init: Callable[[PyTree], PyTree]
    apply: Callable[..., tuple[PyTree, PyTree, Array]]


def slotted_adam(max_grad_norm: float, eps: float) -> Optimizer:
    """Returns Adam (Kingma & Ba 2015) with global-norm clipping, one of each per slot."""
    transform = optax.chain(optax.clip_by_global_norm(max_grad_norm), optax.scale_by_adam(eps=eps))

    def apply(
        params: PyTree,
        state: PyTree,
        grads: PyTree,
        lr: Float[Array, ""],
        moved: Bool[Array, " slots"] | None = None,
    ) -> tuple[PyTree, PyTree, Float[Array, " slots"]]:
        updates, new_state = jax.vmap(transform.update)(grads, state)
        new_params = jax.tree.map(lambda p, u: p - lr * u, params, updates)
        norms = jax.vmap(optax.tree.norm)(grads)
        if moved is None:
            return new_params, new_state, norms

        def keep(new: Array, old: Array) -> Array:
            return jnp.where(moved.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        return jax.tree.map(keep, new_params, params), jax.tree.map(keep, new_state, state), norms

    return Optimizer(init=jax.vmap(transform.init), apply=apply)
