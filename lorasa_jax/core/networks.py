"""The network of one agent, which maps a sequence to a sequence.

This module has no agent axis and knows nothing of sharing. A network is a stack of dense
layers, a GRU with two stacked kernels, more dense layers and a head. Each dense layer is
followed by its nonlinearity, then LayerNorm. The critic is the same network with one
output. An agent's id is an embedding that is added to the output of the first layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lorasa_jax.config import NetworkConfig
from lorasa_jax.core.axes import merge_axes, split_axes
from lorasa_jax.core.types import PyTree
from lorasa_jax.deltas.algebra import Deltas, beside, merge, split_full

ACTIVATIONS = {"relu": nn.relu, "tanh": nn.tanh}
EPSILON = 1e-5
"""Epsilon of the layer normalisations."""


def orthogonal(gain: float) -> Callable[[PRNGKeyArray, tuple[int, int]], Float[Array, "I O"]]:
    """Returns an initialiser of matrices with orthogonal rows or columns (whichever are fewer) of length `gain`.

    The distribution is uniform over all such matrices. Normal columns are orthogonalised one after another
    (Gram-Schmidt, twice for accuracy). Source: Saxe et al. 2014.
    """

    # A library's QR, mapped over seeds, becomes a batch of LAPACK calls. Several of these at once
    # deadlock if XLA has at most two threads.
    def init(key: PRNGKeyArray, shape: tuple[int, int]) -> Float[Array, "I O"]:
        fewer, more = sorted(shape)

        def next_column(i: Array, q: Array) -> Array:
            before = jnp.where(jnp.arange(fewer) < i, q, 0.0)
            column = q[:, i]
            for _ in range(2):
                column = column - before @ (column @ before)
            return q.at[:, i].set(column / jnp.linalg.norm(column))

        q = gain * jax.lax.fori_loop(0, fewer, next_column, jax.random.normal(key, (more, fewer)))
        return q if shape == (more, fewer) else q.T

    return init


def stacked(init: Callable, parts: int) -> Callable[[PRNGKeyArray, tuple[int, int]], Float[Array, "I O"]]:
    """Returns an initialiser of matrices with `parts` groups of columns, each drawn independently."""

    def init_parts(key: PRNGKeyArray, shape: tuple[int, int]) -> Float[Array, "I O"]:
        n_in, n_out = shape
        return jnp.concatenate([init(k, (n_in, n_out // parts)) for k in jax.random.split(key, parts)], axis=1)

    return init_parts


@jax.custom_vjp
def affine(x: Float[Array, "R I"], kernel: Float[Array, "I O"], bias: Float[Array, " O"]) -> Float[Array, "R O"]:
    """Returns x K + b."""
    return x @ kernel + bias


# This derivative is for weights that agents share. Mapped over agents, it is one product per agent and a small sum.
# Automatic differentiation would sum over agents and rows at once, and XLA would transpose both operands first.


def _affine_backward(kept: tuple[Array, Array], d_y: Float[Array, "R O"]) -> tuple[Array, Array, Array]:
    x, kernel = kept
    return d_y @ kernel.T, x.T @ d_y, jnp.ones(len(d_y), d_y.dtype) @ d_y


affine.defvjp(lambda x, kernel, bias: (affine(x, kernel, bias), (x, kernel)), _affine_backward)


class Linear(nn.Module):
    """The weights of the map x -> x K + b, with an optional low-rank correction; `linear` applies them.

    If the variable collection `delta` holds `left` (in, r) and `right` (r, out) under
    this layer's name, the map is x K + b + (x left) right. Neither the correction nor its
    gradient forms an (in, out) matrix. If it holds `lefts` (K, in, r) and
    `rights` (K, r, out), the layer adds sum_k owner_k (x lefts_k) rights_k, with
    the one-hot rows `owner` (..., K) of the samples.

    Attributes:
        features: width of the output.
        kernel_init: initialiser of K.
    """

    features: int
    kernel_init: Callable

    @nn.compact
    def __call__(self, width: int) -> dict[str, Any]:
        """Returns the weights, including the correction."""
        kernel = self.param("kernel", self.kernel_init, (width, self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return {"kernel": kernel, "bias": bias, **self.variables.get("delta", {})}


def linear(weights: dict[str, Any], x: Float[Array, "R I"], owner: Any) -> Float[Array, "R O"]:
    """Returns y for the weights of a `Linear` layer; `owner`: one-hot rows, or None."""
    y = affine(x, weights["kernel"], weights["bias"])
    if "left" in weights:
        y = y + (x @ weights["left"]) @ weights["right"]
    if "lefts" in weights:
        # Two products for all owners and a mask. A gather would copy an owner's factors to every sample.
        bottleneck = jnp.einsum("ri,kis->rks", x, weights["lefts"]) * owner[..., None]
        y = y + jnp.einsum("rks,kso->ro", bottleneck, weights["rights"])
    return y


class Vector(nn.Module):
    """A vector of parameters that does not depend on an input."""

    features: int
    start: float

    @nn.compact
    def __call__(self, owner: Any) -> Float[Array, "... F"]:
        """Returns the vector. With a `delta`, the owner's `rights` (K, F) are added for every sample."""
        # Named as in `Linear`, so that adapters add to it in the same way.
        vector = self.param("kernel", nn.initializers.constant(self.start), (self.features,))
        delta: Any = self.variables.get("delta", {})
        return vector + owner @ delta["rights"] if "rights" in delta else vector


def gru_step(
    weights: dict[str, Any], h: Float[Array, "B H"], gates_x: Float[Array, "B G"], opens: Bool[Array, " B"], owner: Any
) -> tuple[Float[Array, "B H"], tuple[Array, ...]]:
    """Returns the next recurrent state of a GRU, and the arrays for its derivative: h, r, z, n, n_h.

    h is zero at the first step of an episode. With the given parts (r_x, z_x, n_x) of W_i x + b_i, and the parts
    (r_h, z_h, n_h) of W_h h + b_h: r = s(r_x + r_h), z = s(z_x + z_h), n = tanh(n_x + r n_h), h' = (1 - z) n + z h
    (Cho et al. 2014, with the reset gate after the product).
    """
    h = jnp.where(opens[:, None], 0.0, h)
    r_x, z_x, n_x = jnp.split(gates_x, 3, axis=-1)
    r_h, z_h, n_h = jnp.split(linear(weights, h, owner), 3, axis=-1)
    r, z = nn.sigmoid(r_x + r_h), nn.sigmoid(z_x + z_h)
    n = jnp.tanh(n_x + r * n_h)
    return (1 - z) * n + z * h, (h, r, z, n, n_h)


@jax.custom_vjp
def gru(
    weights: dict[str, Any],
    h: Float[Array, "B H"],
    gates_x: Float[Array, "L B G"],
    first: Bool[Array, "L B"],
    owner: Float[Array, "L B K"] | None,
) -> Float[Array, "L B H"]:
    """Returns the recurrent states of a GRU after every step.

    Args:
        weights: of the layer applied to h.
        h: the state before the first step.
        gates_x: output of the layer applied to the inputs: r, z and n side by side, G = 3 H.
        first: steps that are the first of an episode.
        owner: one-hot rows, or None.
    """
    return _gru_forward(weights, h, gates_x, first, owner)[0]


# This derivative keeps only the gates and their inputs. Automatic differentiation also keeps parts of every sigmoid,
# and reads them back in pieces that XLA cannot vectorise. The gradient of the weights is one product over all steps
# after the loop, not one per step. So devices that share the environments communicate once, not in every step.


def _gru_forward(weights: dict[str, Any], h: Array, gates_x: Array, first: Array, owner: Any) -> tuple:
    def step(h: Array, inputs: tuple) -> tuple[Array, tuple]:
        h, kept = gru_step(weights, h, *inputs)
        return h, (h, kept)

    carries, kept = jax.lax.scan(step, h, (gates_x, first, owner))[1]
    return carries, (weights, first, owner, kept)


def _gru_backward(residuals: tuple, d_carries: Float[Array, "L B H"]) -> tuple:
    weights, first, owner, kept = residuals

    def step(d_next: Array, inputs: tuple) -> tuple[Array, tuple[Array, ...]]:
        d_carry, opens, owner, (h, r, z, n, n_h) = inputs
        d_next = d_next + d_carry
        d_n = d_next * (1 - z) * (1 - n**2)
        d_z = d_next * (h - n) * z * (1 - z)
        d_r = d_n * n_h * r * (1 - r)
        d_gates_h = jnp.concatenate([d_r, d_z, d_n * r], axis=-1)
        (through,) = jax.vjp(lambda h: linear(weights, h, owner), h)[1](d_gates_h)
        return jnp.where(opens[:, None], 0.0, d_next * z + through), (d_gates_h, d_n)

    backwards = d_carries, first, owner, kept
    d_start, (d_gates_h, d_n) = jax.lax.scan(step, jnp.zeros_like(d_carries[0]), backwards, reverse=True)
    d_gates_x = jnp.concatenate([d_gates_h[..., : -d_n.shape[-1]], d_n], axis=-1)
    h, owner, d_gates_h = jax.tree.map(merge_axes, (kept[0], owner, d_gates_h))
    (d_weights,) = jax.vjp(lambda weights: linear(weights, h, owner), weights)[1](d_gates_h)
    return d_weights, d_start, d_gates_x, None, None


gru.defvjp(_gru_forward, _gru_backward)


def adapted(params: PyTree, own: Sequence[Deltas], choices: Deltas | None = None) -> dict[str, PyTree]:
    """Returns the variables of a `Network` whose layers add the products of low-rank deltas.

    Several deltas are concatenated: `L_1 R_1 + L_2 R_2 = [L_1 L_2] [R_1; R_2]`. Full-rank deltas are merged.

    Args:
        params: of the network.
        own: deltas that add up.
        choices: the deltas of K owners, [K, ...]; every sample selects its owner when the network is applied.
    """
    full, low_rank = split_full(own)
    products: dict[str, dict[str, Array]] = {
        path.removesuffix("/kernel"): {"left": left, "right": right} for path, (left, right) in beside(low_rank).items()
    }
    if choices is not None:
        for path, target in choices.spec.by_path.items():
            layer = products.setdefault(path.removesuffix("/kernel"), {})
            layer |= _choices(target.scale, **choices.arrays[path])
    return {"params": merge(params, *full), "delta": products}


def _choices(scale: float, left: Any = None, right: Any = None, full: Any = None) -> dict[str, Array]:
    """The factors of all owners, [K, in, r] and [K, r, out]; for a full-rank delta one factor is the identity."""
    if full is None:
        return {"lefts": left, "rights": scale * right}
    if full.ndim == 2:  # of a `Vector`
        return {"rights": full}
    n_owners, n_in, n_out = full.shape
    identity = jnp.broadcast_to(jnp.eye(min(n_in, n_out)), (n_owners, min(n_in, n_out), min(n_in, n_out)))
    return {"lefts": full, "rights": identity} if n_out < n_in else {"lefts": identity, "rights": full}


class Network(nn.Module):
    """One agent's network.

    Attributes:
        config: widths, depths, nonlinearity, normalisation.
        n_out: width of the output: logits, or a value.
        head_gain: orthogonal gain of the last layer.
        log_std: if given, the output is followed by the same number of parameters that do not
            depend on the input, with this initial value.
        n_ids: number of agents with ids; 0: the network sees no ids.
    """

    config: NetworkConfig
    n_out: int
    head_gain: float
    log_std: float | None = None
    n_ids: int = 0

    @property
    def carry_width(self) -> int:
        """Width of the recurrent state; 0 without recurrence."""
        return self.config.hidden if self.config.recurrent else 0

    @nn.nowrap
    def init_params(self, key: PRNGKeyArray, width: int) -> PyTree:
        """Returns fresh parameters for observations of this width."""
        inputs = jnp.zeros((1, self.carry_width)), jnp.zeros((1, 1, width)), jnp.zeros((1, 1), bool), jnp.zeros((), int)
        fresh: Any = self.init
        return fresh(key, *inputs)["params"]

    @nn.nowrap
    def unroll(
        self, params: PyTree, own: Sequence[Deltas], choices: Deltas | None, agent: Int[Array, ""], *inputs: Any
    ) -> tuple[Float[Array, "L B H"], Float[Array, "L B O"]]:
        """Returns the recurrent state after every step, and the outputs, of one agent.

        Args:
            params: of the network.
            own: low-rank deltas to add.
            choices: the deltas of all owners, among which every sample selects its owner.
            agent: index of the agent.
            inputs: `carry`, `x`, `first`, `valid` and `owner`, the arguments of `__call__`.
        """
        carry, x, first, valid, owner = inputs
        apply: Any = self.apply
        return apply(adapted(params, own, choices), carry, x, first, agent, valid, owner)

    @nn.compact
    def __call__(
        self,
        carry: Float[Array, "B H"],
        x: Float[Array, "L B D"],
        first: Bool[Array, "L B"],
        agent: Int[Array, ""] | None = None,
        valid: Bool[Array, " D"] | None = None,
        owner: Float[Array, "L B K"] | None = None,
    ) -> tuple[Float[Array, "L B H"], Float[Array, "L B O"]]:
        """Returns the recurrent state after every step, and the outputs.

        Args:
            carry: the recurrent state before the first step.
            x: inputs; L steps of B sequences.
            first: steps that are the first of an episode; the state before them is zero.
            agent: index of the agent, for networks that see ids.
            valid: the real columns of the input; the others are zero, and stay zero.
            owner: the owner of each sample's correction in `delta`, as one-hot rows over K owners.
        """
        length = x.shape[0]
        flat = None if owner is None else merge_axes(owner)
        # All layers except the recurrence see one flat batch: a single large product per layer.
        x = merge_axes(x)
        if self.config.input_norm:
            x = self._norm("input_norm")(x, mask=valid)
            x = x if valid is None else jnp.where(valid, x, 0.0)
        for i in range(self.config.layers):
            x = self._layer(f"fc{i + 1}", self.config.gain, x, flat, agent)
        if self.config.recurrent:
            carries = self._recur(carry, x, first, owner, agent)
            x = merge_axes(carries)
            if self.config.layer_norm:
                x = self._norm("gru_norm")(x)
        else:
            carries = jnp.broadcast_to(carry, (length, *carry.shape))
        for i in range(self.config.layers_after):
            x = self._layer(f"after{i + 1}", self.config.gain_after, x, flat, agent)
        x = linear(Linear(self.n_out, orthogonal(self.head_gain), name="head")(x.shape[-1]), x, flat)
        x = split_axes(x, length)
        if self.log_std is not None:
            log_std = Vector(self.n_out, self.log_std, name="log_std")(owner)
            x = jnp.concatenate([x, jnp.broadcast_to(log_std, x.shape)], axis=-1)
        return carries, x

    def _norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(epsilon=EPSILON, name=name)

    def _add_id(self, name: str, y: Float[Array, "R O"], agent: Int[Array, ""] | None) -> Float[Array, "R O"]:
        """The output of a layer, with the agent's embedding added if it is the first one.

        Embeddings start at zero, so all agents begin with the same policy. An embedding of length H is multiplied by
        sqrt(H), as in Vaswani et al. 2017. With this factor Adam's steps change the output faster.
        """
        if not self.n_ids or name != self.config.layer_names[0]:
            return y
        agents = jnp.reshape(jnp.asarray(agent), (1,))  # a table of one row needs an axis to look up along
        table = nn.Embed(self.n_ids, y.shape[-1], embedding_init=nn.initializers.zeros_init(), name="id")
        return y + math.sqrt(y.shape[-1]) * table(agents)

    def _layer(
        self,
        name: str,
        gain: float,
        x: Float[Array, "R D"],
        owner: Float[Array, "R K"] | None,
        agent: Int[Array, ""] | None,
    ) -> Float[Array, "R H"]:
        x = linear(Linear(self.config.hidden, orthogonal(gain), name=name)(x.shape[-1]), x, owner)
        x = self._add_id(name, x, agent)
        x = ACTIVATIONS[self.config.activation](x)
        return self._norm(f"{name}_norm")(x) if self.config.layer_norm else x

    def _recur(
        self,
        carry: Float[Array, "B H"],
        x: Float[Array, "R D"],
        first: Bool[Array, "L B"],
        owner: Float[Array, "L B K"] | None,
        agent: Int[Array, ""] | None,
    ) -> Float[Array, "L B H"]:
        hidden, length = self.config.hidden, len(first)
        init = orthogonal(1.0) if self.config.gru_init == "stacked" else stacked(orthogonal(1.0), 3)
        inward = Linear(3 * hidden, init, name="gru_in")(x.shape[-1])
        through = Linear(3 * hidden, init, name="gru_hidden")(hidden)
        gates_x = self._add_id("gru_in", linear(inward, x, None if owner is None else merge_axes(owner)), agent)

        inputs = split_axes(gates_x, length), first, owner
        if length == 1:  # acting: a single step needs no loop
            return gru_step(through, carry, *jax.tree.map(lambda leaf: leaf[0], inputs))[0][None]
        return gru(through, carry, *inputs)
