"""JaxMARL, imported without its side effects; nothing else in the library imports it."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

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


def _load(module: str, who: str) -> ModuleType:
    """Returns a module of JaxMARL."""
    try:
        with sealed():
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != "jaxmarl":
            raise
        raise ConfigError(f"{who} the package jaxmarl, which is not installed") from None
