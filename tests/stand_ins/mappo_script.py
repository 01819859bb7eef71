"""A stand-in for JaxMARL's MAPPO script: an actor with the same interface and parameter tree."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


class Categorical(NamedTuple):
    """What the script takes of `distrax.Categorical`."""

    logits: Any


class ScannedRNN(nn.Module):
    """A GRU over time that starts anew where an episode begins."""

    @nn.compact
    def __call__(self, carry, x):
        def step(cell, carry, inputs):
            embedding, resets = inputs
            return cell(jnp.where(resets[:, None], 0.0, carry), embedding)

        cell = nn.GRUCell(x[0].shape[-1], parent=self, name="GRUCell_1")
        return nn.scan(step, variable_broadcast="params", split_rngs={"params": False})(cell, carry, x)

    @staticmethod
    def initialize_carry(batch_size, hidden_size):
        return jnp.zeros((batch_size, hidden_size))


class ActorRNN(nn.Module):
    """Dense, GRU, Dense, Dense."""

    action_dim: int
    config: dict

    @nn.compact
    def __call__(self, hidden, x):
        obs, dones, avail = x
        y = nn.relu(nn.Dense(self.config["FC_DIM_SIZE"])(obs))
        hidden, y = ScannedRNN()(hidden, (y, dones))
        y = nn.relu(nn.Dense(self.config["GRU_HIDDEN_DIM"])(y))
        y = nn.Dense(self.action_dim, kernel_init=jax.nn.initializers.orthogonal(0.01))(y)
        return hidden, Categorical(y - (1 - avail) * 1e10)
