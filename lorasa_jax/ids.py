"""An agent's id as a lookup: what a network does with a one-hot id, without the one-hot vector.

The trunk's first kernel has a row for every id. Only one of them counts for an agent, so its network is given what it
observes, and that row: a team of N agents costs N times one, not N^2. Parameters are those of the one-hot input, and
so are outputs and gradients, up to rounding.

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


def looked_up(variables: dict[str, Any], layer: str, n_ids: int, agent: Int[Array, ""]) -> dict[str, Any]:
    """Returns the variables of an agent's network, `params` and `delta`, for inputs without its id.

    The rows of ids in the first layer's matrices, [D + N, ...], become as few as `NormBesideId` or `append_one` ask
    for. The agent's own row of the kernel becomes a correction of rank one beside the others, so that the rest of a
    shared kernel remains one matrix for all agents.

    Args:
        variables: for inputs with a one-hot id.
        layer: the name of the first layer.
        n_ids: N.
        agent: i.
    """
    params = dict(variables["params"])
    norm = params.get("input_norm")

    def rows(matrix: Float[Array, "I O"]) -> tuple[Array, Array]:
        """Rows that all agents have in common, and the agent's own."""
        seen, ids = matrix[:-n_ids], matrix[-n_ids:]
        if norm is None:
            return seen, ids[agent]
        scale, bias = norm["scale"][-n_ids:], norm["bias"][-n_ids:]
        return jnp.concatenate([seen, (scale @ ids)[None], (bias @ ids)[None]]), scale[agent] * ids[agent]

    def folded(matrix: Float[Array, "I O"]) -> Array:
        common, own = rows(matrix)
        return jnp.concatenate([common, own[None]])

    common, own = rows(params[layer]["kernel"])
    kernel = jnp.concatenate([common, jnp.zeros_like(common[:1])])
    left, right = jnp.zeros_like(kernel[:, :1]).at[-1].set(1.0), own[None]
    delta = dict(variables.get("delta", {}))
    given = dict(delta.get(layer, {}))
    if "lefts" in given:
        given["lefts"] = jax.vmap(folded)(given["lefts"])
    if "left" in given:
        left = jnp.concatenate([folded(given["left"]), left], axis=1)
        right = jnp.concatenate([given["right"], right])
    params[layer] = {**params[layer], "kernel": kernel}
    if norm is not None:
        params["input_norm"] = {name: leaf[:-n_ids] for name, leaf in norm.items()}
    return {"params": params, "delta": {**delta, layer: {**given, "left": left, "right": right}}}
