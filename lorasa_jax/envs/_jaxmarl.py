"""JaxMARL, imported without its side effects; nothing else in the library imports it."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType
from typing import Any

from lorasa_jax.config import ConfigError
from lorasa_jax.envs._sealed import sealed


@cache
def load_smax() -> ModuleType:
    """Returns the module `jaxmarl.environments.smax`; the first call takes seconds.

    Raises:
        ConfigError: JaxMARL is not installed.
    """
    return _load("jaxmarl.environments.smax", "the SMAX battles need")


@cache
def load_mabrax_maps() -> ModuleType:
    """Returns the module `jaxmarl.environments.mabrax.mappings`; the first call takes seconds.

    Raises:
        ConfigError: JaxMARL is not installed.
    """
    return _load("jaxmarl.environments.mabrax.mappings", "mabrax.maps upstream needs")


@cache
def load_jaxmarl() -> ModuleType:
    """Returns the package `jaxmarl`; the first call takes seconds.

    Raises:
        ConfigError: JaxMARL is not installed.
    """
    return _load("jaxmarl", "these environments need")


def make_game(name: str) -> Any:
    """Returns one of JaxMARL's registered environments.

    Raises:
        ConfigError: it needs a package that is not installed.
    """
    try:
        with sealed():
            return load_jaxmarl().make(name)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{name} cannot be made: {str(error).splitlines()[0]}") from None


def _load(module: str, who: str) -> ModuleType:
    """Returns a module of JaxMARL."""
    try:
        with sealed():
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != "jaxmarl":
            raise
        raise ConfigError(f"{who} the package jaxmarl, which is not installed") from None
