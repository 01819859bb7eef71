"""Registries of schemes, algorithms and environments, which users can extend."""

from __future__ import annotations

import re
from collections.abc import Callable, MutableMapping
from typing import Any, Literal, get_args

from lorasa_jax import config
from lorasa_jax.checks import ConfigError, forget_annotations, require

_ALIASES = {"env": "EnvName", "algo": "AlgorithmName", "sharing": "SchemeName"}


def register(
    setting: str, name: str, function: Callable, registry: MutableMapping[str, Any], trial: Callable[[], None]
) -> None:
    """Adds a function to a registry, and its name to the values of a setting: in checks, messages and help.

    The same function of the same module may be registered again, for example by running a notebook cell twice.

    Args:
        setting: the field of `Config`.
        name: a word in lower case.
        function: the function to register.
        registry: the registry.
        trial: raises `ConfigError` if the function is invalid.

    Raises:
        ConfigError: the name is invalid or taken, or the function cannot be called or fails its trial.
    """
    fits = isinstance(name, str) and re.fullmatch("[a-z][a-z0-9_]*", name) is not None
    require(fits, f"a name of {setting} is a word of small letters, digits and _, got {name!r}")
    require(callable(function), f"{setting} {name!r} must be a function, got a {type(function).__name__}")
    alias = _ALIASES[setting]
    known = get_args(getattr(config, alias))
    before = registry.get(name)
    again = before is not None and _origin(before) == _origin(function)
    require(name not in known or again, f"{setting} {name!r} exists already; choose another name")
    try:
        trial()
    except ConfigError:
        raise
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{setting} {name!r} failed when it was tried: {line}") from error
    registry[name] = function
    setattr(config, alias, Literal[tuple(dict.fromkeys((*known, name)))])
    forget_annotations()


def _origin(function: Any) -> tuple[str, str]:
    return getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
