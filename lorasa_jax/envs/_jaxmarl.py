"""Imports JaxMARL without its side effects. No other module of the library imports it."""

from __future__ import annotations

import importlib
import inspect
import sys
from functools import cache
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

from lorasa_jax.config import ConfigError, nearest, require
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


def make_game(name: str, **options: Any) -> Any:
    """Returns one of JaxMARL's registered environments.

    Args:
        name: the registered name.
        options: arguments of its constructor. The layout of `overcooked` may be given by its name.

    Raises:
        ConfigError: the environment needs a package that is not installed, or other arguments.
    """
    given = ", ".join(f"{option}={value!r}" for option, value in options.items())
    if name == "overcooked" and isinstance(options.get("layout"), str):
        options["layout"] = _layout(options["layout"])
    known = _known_options(name) if options else []
    for option in options if known else ():  # some games accept any name, and ignore unknown ones
        require(
            option in known,
            f"{name} has no option {option!r}{nearest(option, known)}; its options: {', '.join(known)}",
        )
    try:
        with sealed():
            return load_jaxmarl().make(name, **options)
    except Exception as error:  # games raise various errors for wrong arguments
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{name} cannot be made{given and ' with ' + given}: {said}") from None


def _layout(name: str) -> Any:
    known = _load("jaxmarl.environments.overcooked.layouts", "the layouts of overcooked need").overcooked_layouts
    require(name in known, f"unknown layout {name!r} of overcooked{nearest(name, known)}; layouts: {', '.join(known)}")
    return known[name]


def _known_options(name: str) -> list[str]:
    """The arguments of a game's constructor and of the constructors that it calls; None: unknown."""
    try:
        with sealed():
            made = load_jaxmarl().make(name)
    except Exception:
        return []
    known: dict[str, None] = {}
    for above in type(made).__mro__[:-1]:
        parameters = inspect.signature(above).parameters.values()
        known |= dict.fromkeys(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return [*known]


def _load(module: str, who: str) -> ModuleType:
    """Returns a module of JaxMARL without running its parent packages, which would import every environment."""
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
    """Puts a package into `sys.modules` that runs only when a missing attribute is read."""
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
