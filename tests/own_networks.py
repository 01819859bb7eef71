"""Networks that the library does not contain: convolution and attention, a GRU as other code bases have it, and nnx."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from lorasa_jax.config import NetworkConfig


class ConvAttention(nn.Module):
    """Reads the observation as a sequence, and is told who it is."""

    n_out: int

    @nn.compact
    def __call__(self, obs: Array, agent: Array) -> Array:
        x = nn.tanh(nn.Conv(4, (2,), name="conv")(obs[..., None]))
        x = x + nn.MultiHeadDotProductAttention(2, name="attention")(x, x)
        x = x.reshape(*obs.shape[:-1], -1)
        who = jnp.broadcast_to(nn.Embed(8, 3, name="who")(agent), (*x.shape[:-1], 3))
        return nn.Dense(self.n_out, name="head")(nn.LayerNorm()(jnp.concatenate([x, who], axis=-1)))


class DenseGRUDense(nn.Module):
    """Dense, GRUCell, Dense: the shape of many recurrent baselines."""

    n_out: int
    hidden: int = 4

    @property
    def carry_width(self) -> int:
        return self.hidden

    @nn.compact
    def __call__(self, carry: Array, obs: Array, first: Array) -> tuple[Array, Array]:
        def step(cell: nn.Module, h: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
            x, opens = inputs
            h, _ = cell(jnp.where(opens[:, None], 0.0, h), x)
            return h, h

        scan: Any = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
        _, carries = scan(nn.GRUCell(self.hidden), carry, (nn.tanh(nn.Dense(self.hidden)(obs)), first))
        return carries, nn.Dense(self.n_out, name="head")(carries)


class Perceptron(nnx.Module):
    """Two layers of nnx."""

    def __init__(self, n_in: int, n_out: int, rngs: nnx.Rngs):
        self.inner = nnx.Linear(n_in, 4, rngs=rngs)
        self.head = nnx.Linear(4, n_out, rngs=rngs)

    def __call__(self, obs: Array) -> Array:
        return self.head(nnx.tanh(self.inner(obs)))


def conv_attention(n_in: int, n_out: int, config: NetworkConfig) -> nn.Module:
    return ConvAttention(n_out)


def dense_gru_dense(n_in: int, n_out: int, config: NetworkConfig) -> nn.Module:
    return DenseGRUDense(n_out, config.hidden)


def perceptron(n_in: int, n_out: int, config: NetworkConfig) -> Any:
    return lambda rngs: Perceptron(n_in, n_out, rngs)


OWN = {"conv": conv_attention, "gru": dense_gru_dense, "nnx": perceptron}
