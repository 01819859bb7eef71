"""An agent's id as a lookup: what a network does with a one-hot id, without the one-hot vector.

The trunk's first kernel has a row for every id. Only one of them counts for an agent, so its network is given what it
observes, and that row: a team of N agents costs N times one, not N^2. Parameters are those of the one-hot input, and
so are outputs and gradients, up to rounding. What an agent owns alone has but the one row.

Where the input is normalised, the one-hot vector has a part in its mean and deviation. With m and d these two, of
the observation o and the id of agent i together, and g and b the norm's scale and bias,

    K^T y = K_o^T (g_o (o - m) / d + b_o) + (1 / d) g_i K_i + (-m / d) sum_j g_j K_j + sum_j b_j K_j

where the last two sums are over all ids, and the same for all samples.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

EPSILON = 1e-5
"""Of the normalisation of inputs."""


class NormBesideId(nn.Module):
    """LayerNorm of an input that a one-hot id would follow, and what the id's weights are to be multiplied with.

    Attributes:
        n_ids: length of the one-hot vector.
    """

    n_ids: int

    @nn.compact
    def __call__(self, x: Float[Array, "R D"], mask: Bool[Array, " D"] | None = None) -> Float[Array, "R D+3"]:
        """Returns the normalised columns, zero where the mask says no, and -m / d, 1, 1 / d."""
        width = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (width,))
        bias = self.param("bias", nn.initializers.zeros_init(), (width,))
        used = jnp.ones(width, bool) if mask is None else mask
        count = jnp.sum(used) + self.n_ids
        mean, square = ((jnp.sum(y, axis=-1, keepdims=True, where=used) + 1.0) / count for y in (x, x**2))
        inverse = jax.lax.rsqrt(jnp.maximum(square - mean**2, 0.0) + EPSILON)
        y = jnp.where(used, (x - mean) * inverse * scale + bias, 0.0)
        return jnp.concatenate([y, -mean * inverse, jnp.ones_like(mean), inverse], axis=-1)


def append_one(x: Float[Array, "R D"]) -> Float[Array, "R D+1"]:
    """Returns an input that is not normalised, and what the id's weights are to be multiplied with: 1."""
    return jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)


def looked_up(trunk: dict[str, Any], layer: str, n_ids: int, agent: Int[Array, ""]) -> tuple[dict[str, Any], Array]:
    """Returns an agent's trunk for inputs without its id, and the row of its id.

    The rows of ids in the first layer's kernel, [D + N, H], become as few as `NormBesideId` or `append_one` ask for.
    The agent's own is the last of them; it is zero there and given beside, so that a kernel that agents share
    remains one matrix for all of them.

    Args:
        trunk: for inputs with a one-hot id.
        layer: the name of the first layer.
        n_ids: N.
        agent: i.
    """
    params, norm = dict(trunk), trunk.get("input_norm")
    common, row = _rows(params[layer]["kernel"], norm, n_ids, agent)
    params[layer] = {**params[layer], "kernel": jnp.concatenate([common, jnp.zeros_like(common[:1])])}
    if norm is not None:
        params["input_norm"] = {name: leaf[:-n_ids] for name, leaf in norm.items()}
    return params, row


def beside(own_row: Float[Array, " H"], n_in: int) -> dict[str, Array]:
    """Returns the row that `looked_up` gives beside a kernel, as a correction of rank one: its last row is this."""
    return {"left": jnp.zeros((n_in, 1), own_row.dtype).at[-1].set(1.0), "right": own_row[None]}


def looked_up_own(
    own: dict[str, Any], trunk: dict[str, Any], layer: str, n_ids: int, agent: Int[Array, ""]
) -> dict[str, Any]:
    """Returns what an owner has, of low-rank corrections, for inputs without the agent's id.

    Args:
        own: the factors by layer; the first layer's have a row for every id, or one for the agent's own alone.
        trunk: for inputs with a one-hot id.
        layer: the name of the first layer.
        n_ids: N.
        agent: i.
    """
    n_seen = len(trunk[layer]["kernel"]) - n_ids

    def one(name: str, matrix: Array) -> Array:
        if name == "right":
            return matrix
        alone = len(matrix) == n_seen + 1
        norm = trunk.get("input_norm")
        if alone and norm is not None:
            norm = {name: leaf[-n_ids + agent][None] for name, leaf in norm.items()}
        common, row = _rows(matrix, norm, 1 if alone else n_ids, jnp.zeros_like(agent) if alone else agent)
        return jnp.concatenate([common, row[None]])

    return {**own, layer: {name: one(name, leaf) for name, leaf in own[layer].items()}} if layer in own else own


def _rows(
    matrix: Float[Array, "I O"], norm: dict[str, Array] | None, n_ids: int, agent: Int[Array, ""]
) -> tuple[Float[Array, "J O"], Float[Array, " O"]]:
    """Rows that do not depend on the agent, and the one that does."""
    seen, ids = matrix[:-n_ids], matrix[-n_ids:]
    if norm is None:
        return seen, ids[agent]
    scale, bias = norm["scale"][-n_ids:], norm["bias"][-n_ids:]
    return jnp.concatenate([seen, (scale @ ids)[None], (bias @ ids)[None]]), scale[agent] * ids[agent]


# Corrections of an agent's own


def narrow(trunk: dict[str, Any], layer: str, n_ids: int) -> dict[str, Any]:
    """Returns a trunk whose first layer has a single row for ids: what an agent's own corrections are made for.

    A correction that no one shares needs no rows for the ids of others: their input is always zero; where the input
    is normalised, it is the same small number for all samples but for -m / d.
    """
    return {**trunk, layer: {**trunk[layer], "kernel": trunk[layer]["kernel"][: -n_ids + 1 or None]}}


def widen(own: dict[str, Any], layer: str, n_ids: int, agent: Int[Array, ""]) -> dict[str, Any]:
    """Returns the same corrections with a row for every id, zero but for the agent's own."""

    def one(name: str, matrix: Array) -> Array:
        if name == "right":
            return matrix
        ids = jnp.zeros((n_ids, *matrix.shape[1:]), matrix.dtype).at[agent].set(matrix[-1])
        return jnp.concatenate([matrix[:-1], ids])

    return {**own, layer: {name: one(name, leaf) for name, leaf in own[layer].items()}} if layer in own else own
