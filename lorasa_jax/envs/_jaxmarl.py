"""JaxMARL, imported without its side effects; nothing else in the library imports it."""

from __future__ import annotations

import importlib
import sys
from functools import cache
from importlib.util import find_spec, module_from_spec
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
        ConfigError: it needs a package that is not installed, or arguments.
    """
    try:
        with sealed():
            return load_jaxmarl().make(name)
    except (ImportError, ValueError, TypeError, NameError) as error:
        raise ConfigError(f"{name} cannot be made: {str(error).splitlines()[0]}") from None


def _load(module: str, who: str) -> ModuleType:
    """Returns a module of JaxMARL; the packages it lies in are not run, which would import every environment."""
    above = module.split(".")[:-1]
    try:
        with sealed():
            for depth in range(len(above)):
                _stand_in(".".join(above[: depth + 1]))
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != "jaxmarl":
            raise
        raise ConfigError(f"{who} the package jaxmarl, which is not installed") from None


def _stand_in(name: str) -> None:
    """Puts a package into `sys.modules` that is run when something is asked of it that it does not have yet."""
    if name in sys.modules:
        return
    spec = find_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(name=name)
    package, loader = module_from_spec(spec), spec.loader

    def run(wanted: str) -> Any:
        vars(package).pop("__getattr__", None)
        with sealed():
            loader.exec_module(package)
        return getattr(package, wanted)

    vars(package)["__getattr__"] = run
    sys.modules[name] = package
    above, _, last = name.rpartition(".")
    if above:
        setattr(sys.modules[above], last, package)
