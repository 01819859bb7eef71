"""LoRASA in JAX: one shared policy, and a small low-rank adapter for every agent.

The import of the package loads nothing heavy. Each public name is imported when it is first used.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorasa_jax import deltas as deltas
    from lorasa_jax.config import Config as Config
    from lorasa_jax.config import ConfigError as ConfigError
    from lorasa_jax.config import CriticConfig as CriticConfig
    from lorasa_jax.config import JaxmarlConfig as JaxmarlConfig
    from lorasa_jax.config import MabraxConfig as MabraxConfig
    from lorasa_jax.config import MujocoConfig as MujocoConfig
    from lorasa_jax.config import NetworkConfig as NetworkConfig
    from lorasa_jax.config import PPOConfig as PPOConfig
    from lorasa_jax.config import SmaxConfig as SmaxConfig
    from lorasa_jax.core.own_network import register_network as register_network
    from lorasa_jax.core.own_network import with_networks as with_networks
    from lorasa_jax.core.types import PolicyParams as PolicyParams
    from lorasa_jax.core.types import Schedule as Schedule
    from lorasa_jax.core.types import TrainState as TrainState
    from lorasa_jax.core.types import Trajectory as Trajectory
    from lorasa_jax.envs import ENVS as ENVS
    from lorasa_jax.envs import Env as Env
    from lorasa_jax.envs import EnvSpec as EnvSpec
    from lorasa_jax.envs import TimeStep as TimeStep
    from lorasa_jax.envs import make_env as make_env
    from lorasa_jax.envs import register_env as register_env
    from lorasa_jax.learning.clustering import find_groups as find_groups
    from lorasa_jax.learning.clustering import with_groups as with_groups
    from lorasa_jax.learning.rollout import record_episode as record_episode
    from lorasa_jax.learning.trainer import Trainer as Trainer
    from lorasa_jax.learning.trainer import attach_adapters as attach_adapters
    from lorasa_jax.learning.trainer import count_params as count_params
    from lorasa_jax.learning.trainer import make_trainer as make_trainer
    from lorasa_jax.learning.trainer import train as train
    from lorasa_jax.learning.update_order import ALGORITHMS as ALGORITHMS
    from lorasa_jax.learning.update_order import register_algorithm as register_algorithm
    from lorasa_jax.running.callbacks import Callback as Callback
    from lorasa_jax.running.callbacks import early_stopping as early_stopping
    from lorasa_jax.running.forks import common_config as common_config
    from lorasa_jax.running.forks import fork as fork
    from lorasa_jax.running.forks import share_programs as share_programs
    from lorasa_jax.running.loop import run as run
    from lorasa_jax.running.state import Report as Report
    from lorasa_jax.running.state import Result as Result
    from lorasa_jax.running.state import RunState as RunState
    from lorasa_jax.sharing.policy import Policy as Policy
    from lorasa_jax.sharing.policy import make_policy as make_policy
    from lorasa_jax.sharing.schemes import SCHEMES as SCHEMES
    from lorasa_jax.sharing.schemes import Sharing as Sharing
    from lorasa_jax.sharing.schemes import register_scheme as register_scheme
    from lorasa_jax.sharing.variants import Adapter as Adapter
    from lorasa_jax.sharing.variants import low_rank as low_rank
    from lorasa_jax.storage.runs import Team as Team
    from lorasa_jax.storage.runs import load_run as load_run
    from lorasa_jax.storage.runs import load_team as load_team

_HOMES = {
    "sharing.variants": ("Adapter", "low_rank"),
    "config": (
        "Config",
        "ConfigError",
        "CriticConfig",
        "JaxmarlConfig",
        "MabraxConfig",
        "MujocoConfig",
        "NetworkConfig",
        "PPOConfig",
        "SmaxConfig",
    ),
    "core.own_network": ("register_network", "with_networks"),
    "envs": ("ENVS", "Env", "EnvSpec", "TimeStep", "make_env", "register_env"),
    "running.forks": ("common_config", "fork", "share_programs"),
    "learning.clustering": ("find_groups", "with_groups"),
    "running.callbacks": ("Callback", "early_stopping"),
    "running.loop": ("run",),
    "running.state": ("Report", "Result", "RunState"),
    "sharing.policy": ("Policy", "make_policy"),
    "learning.rollout": ("record_episode",),
    "learning.update_order": ("ALGORITHMS", "register_algorithm"),
    "sharing.schemes": ("SCHEMES", "Sharing", "register_scheme"),
    "learning.trainer": ("Trainer", "attach_adapters", "count_params", "make_trainer", "train"),
    "core.types": ("PolicyParams", "Schedule", "TrainState", "Trajectory"),
    "storage.runs": ("Team", "load_run", "load_team"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

_MODULES = ("deltas",)

_RENAMED = {"SCHEDULES": "ALGORITHMS", "graft": "attach_adapters"}
"""Old names, which work for one more release."""

__all__ = sorted((*_HOME, *_MODULES))


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("lorasa-jax")
    if name in _MODULES:
        return importlib.import_module(f"lorasa_jax.{name}")
    if name in _RENAMED:
        warnings.warn(f"lorasa_jax.{name} is now lorasa_jax.{_RENAMED[name]}", DeprecationWarning, stacklevel=2)
        name = _RENAMED[name]
    if name not in _HOME:
        raise AttributeError(f"module 'lorasa_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lorasa_jax.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
