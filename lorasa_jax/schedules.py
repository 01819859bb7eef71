"""Algorithms, as data: schedules of who moves together, in what order, with which clip."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from lorasa_jax.config import PPOConfig
from lorasa_jax.types import Schedule


def mappo(n_agents: int, config: PPOConfig) -> Schedule:
    """Returns MAPPO's schedule: every stage is one epoch, and moves all agents at once.

    Source: Yu et al. 2022.
    """
    everyone = jnp.arange(n_agents)
    return Schedule(
        block=jnp.tile(everyone, (config.epochs, 1)),
        clip_eps=jnp.full(config.epochs, config.clip_eps),
    )


SCHEDULES: dict[str, Callable[[int, PPOConfig], Schedule]] = {"mappo": mappo}
"""Algorithms by name."""
