"""Environments by name."""

from __future__ import annotations

from collections.abc import Callable

from lorasa_jax.config import Config, require
from lorasa_jax.envs.base import Env, EnvSpec, TimeStep

__all__ = ["ENVS", "Env", "EnvSpec", "TimeStep", "make_env"]


def _smax(config: Config) -> Env:
    from lorasa_jax.envs.smax import make_smax  # loads JaxMARL: seconds, and only when asked for

    require(config.n_agents is None, f"n-agents is fixed by the map in smax; {config.task} says how many play")
    return make_smax(config.task, config.smax)


def _mabrax(config: Config) -> Env:
    from lorasa_jax.envs.mabrax import make_mabrax  # loads brax: seconds, and only when asked for

    require(config.n_agents is None, f"n-agents is fixed by the split in mabrax; {config.task} says how many there are")
    return make_mabrax(config.task, config.mabrax)


def _any_jaxmarl(config: Config) -> Env:
    from lorasa_jax.envs.jaxmarl import make_jaxmarl

    require(config.n_agents is None, f"n-agents is fixed by the game in jaxmarl; {config.task} says how many play")
    return make_jaxmarl(config.task)


def _toy(config: Config) -> Env:
    from lorasa_jax.envs.toy import make_toy

    return make_toy(config.task, config.n_agents, config.time_limit)


ENVS: dict[str, Callable[[Config], Env]] = {"smax": _smax, "mabrax": _mabrax, "jaxmarl": _any_jaxmarl, "toy": _toy}
"""Families of environments by name."""


def make_env(config: Config) -> Env:
    """Returns the environment that the configuration names.

    Raises:
        ConfigError: the task is unknown, or a setting does not fit it.
    """
    require(config.env in ENVS, "an environment of your own is made in Python and given to lorasa_jax.run(config, env)")
    return ENVS[config.env](config)
