"""Optimisers of deltas, with one state and one clip per owner."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool


def per_owner(transform: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Returns an optax transformation of stacked leaves [N, ...] that treats every owner separately.

    It is `transform` mapped over the first axis of parameters, gradients and state: each owner has its own moments,
    its own step count and its own global-norm clip. In addition to the arguments of `transform`, `update` takes

    `moved` [N] booleans: owners to update. The states of the others stay unchanged to the bit. Their updates are -0.0,
    so `optax.apply_updates` leaves their parameters unchanged to the bit. Put the whole chain inside `per_owner`,
    because later transformations may change this zero.

    Other extra arguments are mapped over their first axis, N.

    Examples:
        >>> import jax.numpy as jnp, optax
        >>> from lorasa_jax import deltas
        >>> optimizer = deltas.per_owner(optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-3)))
        >>> params = {"w": jnp.ones((3, 4))}  # of three owners
        >>> state = optimizer.init(params)
        >>> moved = jnp.array([True, False, False])
        >>> updates, state = optimizer.update(params, state, params, moved=moved)
        >>> (optax.apply_updates(params, updates)["w"] == params["w"]).all(axis=1)
        Array([False,  True,  True], dtype=bool)
    """
    transform = optax.with_extra_args_support(transform)

    def update(
        updates: Any, state: Any, params: Any = None, *, moved: Bool[Array, " N"] | None = None, **extra: Any
    ) -> tuple[Any, Any]:
        def update_owner(updates: Any, state: Any, params: Any, extra: dict[str, Any]) -> tuple[Any, Any]:
            return transform.update(updates, state, params, **extra)

        new_updates, new_state = jax.vmap(update_owner)(updates, state, params, extra)
        if moved is None:
            return new_updates, new_state
        # -0.0 is the neutral element of addition: x + (-0.0) has the bits of x, also if x is -0.0.
        still = jax.tree.map(lambda update: jnp.full_like(update, -0.0), new_updates)
        return choose(moved, new_updates, still), choose(moved, new_state, state)

    return optax.GradientTransformationExtraArgs(jax.vmap(transform.init), update)


def choose(moved: Bool[Array, " N"], new: Any, old: Any) -> Any:
    """Returns the new rows of owners that moved, and the old ones of the others, [N, ...] each."""

    def by_row(new: Array, old: Array) -> Array:
        return jnp.where(moved.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    return jax.tree.map(by_row, new, old)
