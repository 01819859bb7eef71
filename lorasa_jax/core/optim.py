"""One optimiser per slot, that is per trunk and per owner; by default Adam with a norm clip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from lorasa_jax.config import require
from lorasa_jax.core.types import PyTree
from lorasa_jax.deltas.owners import choose, per_owner


class Optimizer(NamedTuple):
    """An optimiser of stacked slots: every leaf of a tree is [slots, ...].

    Attributes:
        init: `init(params) -> state`.
        apply: `apply(params, state, grads, lr, moved=None) -> (params, state, norms)`.
            `norms` [slots] are the gradient norms before clipping. If `moved` [slots] is
            false, parameters and moments of the slot stay unchanged to the bit.
    """

    init: Callable[[PyTree], PyTree]
    apply: Callable[..., tuple[PyTree, PyTree, Array]]


Rule = Callable[[Float[Array, ""] | float], optax.GradientTransformation]
"""Maps a learning rate to an optax transformation, such as `optax.adamw` or
`lambda rate: optax.chain(optax.clip(1.0), optax.sgd(rate))`. Its updates are added to the parameters.

The rate is an input of every step. It differs between trunks, adapters, critic and forks, and it may be annealed.
So the transformation's state must not depend on it.
"""


def clipped_adam(max_grad_norm: float, eps: float) -> Rule:
    """Returns Adam (Kingma & Ba 2015) with global-norm clipping."""

    def rule(rate: Float[Array, ""] | float) -> optax.GradientTransformation:
        scale = optax.scale_by_adam(eps=eps), optax.scale_by_learning_rate(rate)
        return optax.chain(optax.clip_by_global_norm(max_grad_norm), *scale)

    return rule


def slotted(rule: Rule) -> Optimizer:
    """Returns the optimiser that gives every slot its own transformation."""

    def apply(
        params: PyTree,
        state: PyTree,
        grads: PyTree,
        lr: Float[Array, ""] | float,
        moved: Bool[Array, " slots"] | None = None,
    ) -> tuple[PyTree, PyTree, Float[Array, " slots"]]:
        updates, new_state = per_owner(rule(lr)).update(grads, state, params)
        new = optax.apply_updates(params, updates), new_state
        if moved is not None:  # select, so that a step has the same last bits whether all slots move or only some
            new = choose(moved, new, (params, state))
        return *new, jax.vmap(optax.tree.norm)(grads)

    return Optimizer(init=per_owner(rule(1.0)).init, apply=apply)


def require_rule(rule: Any) -> None:
    """Tests a rule on one small parameter.

    Raises:
        ConfigError: the rule is no function of the learning rate that returns an optax transformation, or the
            transformation's state holds the rate, which could then not change.
    """
    wanted = "optimizer must be a function of the learning rate that returns an optax transformation, like optax.adamw"
    hint = "; write lambda rate: ..." if isinstance(rule, optax.GradientTransformation) else ""
    require(callable(rule), f"{wanted}, got a {type(rule).__name__}{hint}")
    made = rule(1.0), rule(2.0)
    kind = type(made[0]).__name__
    require(all(isinstance(one, optax.GradientTransformation) for one in made), f"{wanted}; it returned a {kind}")
    states = [jax.tree.leaves(one.init({"kernel": jnp.zeros((2, 2))})) for one in made]
    same = all(bool(jnp.array_equal(one, other)) for one, other in zip(*states, strict=True))
    require(
        same, "the state of optimizer contains the learning rate, so the rate could not change; apply it to the updates"
    )
