"""Environments by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps

from lorasa_jax.config import TASKS, Config, require
from lorasa_jax.envs.base import Env, EnvSpec, TimeStep
from lorasa_jax.envs.checks import require_fits
from lorasa_jax.registries import register

__all__ = ["ENVS", "Env", "EnvSpec", "TimeStep", "make_env", "register_env"]


def _smax(config: Config) -> Env:
    from lorasa_jax.envs.smax import make_smax  # loads JaxMARL: seconds, and only when asked for

    require(config.n_agents is None, f"n-agents is fixed by the map in smax; {config.task} says how many play")
    return make_smax(config.task, config.smax)


def _mabrax(config: Config) -> Env:
    from lorasa_jax.envs.mabrax import make_mabrax  # loads brax: seconds, and only when asked for

    require(config.n_agents is None, f"n-agents is fixed by the split in mabrax; {config.task} says how many there are")
    return make_mabrax(config.task, config.mabrax)


def _mujoco(config: Config) -> Env:
    from lorasa_jax.envs.mujoco import make_mujoco  # loads MuJoCo, and only when asked for

    require(config.n_agents is None, f"n-agents is fixed by the split in mujoco; {config.task} says how many there are")
    return make_mujoco(config.task, config.mujoco)


def _any_jaxmarl(config: Config) -> Env:
    from lorasa_jax.envs.jaxmarl import make_jaxmarl

    require(config.n_agents is None, "n-agents is an option of the game in jaxmarl, such as --jaxmarl.num-agents 5")
    return make_jaxmarl(config.task, **config.jaxmarl.arguments)


def _particles(config: Config) -> Env:
    from lorasa_jax.envs.particles import make_particles

    require(config.n_agents is None, f"n-agents is fixed by the task in particles; {config.task} says how many play")
    return make_particles(config.task, config.particles)


def _toy(config: Config) -> Env:
    from lorasa_jax.envs.toy import make_toy

    return make_toy(config.task, config.n_agents, config.time_limit)


ENVS: dict[str, Callable[[Config], Env]] = {
    "smax": _smax,
    "mabrax": _mabrax,
    "mujoco": _mujoco,
    "jaxmarl": _any_jaxmarl,
    "particles": _particles,
    "toy": _toy,
}
"""Families of environments by name."""


def make_env(config: Config) -> Env:
    """Returns the environment of the configuration.

    Raises:
        ConfigError: the task is unknown, or a setting does not fit it.
    """
    require(config.env in ENVS, "an environment of your own is made in Python and given to lorasa_jax.run(config, env)")
    return ENVS[config.env](config)


def register_env(name: str, make: Callable[[Config], Env], default_task: str | None = None) -> None:
    """Registers a family of environments for `Config(env=name)` and `--env name`.

    Every environment that it makes is checked against its `EnvSpec`.

    Args:
        name: a word that no other family uses.
        make: a function of the configuration; it may read `config.task`, `n_agents` and `time_limit`.
        default_task: the default task; None: the family's name.

    Raises:
        ConfigError: the name is invalid or taken, or the function does not take a configuration.
    """

    def trial() -> None:
        inspect.signature(make).bind(Config())

    @wraps(make)
    def checked_make(config: Config) -> Env:
        env = make(config)
        require(isinstance(env, Env), f"env {name!r} must make an Env, got a {type(env).__name__}")
        require_fits(env)
        return env

    register("env", name, checked_make if callable(make) else make, ENVS, trial)
    TASKS[name] = default_task or name
