"""Plugins: files and modules of a user's own that register schemes, algorithms and environments."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from traceback import extract_tb
from types import ModuleType

from lorasa_jax.config import ConfigError, require

_loaded: dict[str, ModuleType] = {}


def resolve(plugin: str) -> str:
    """Returns a plugin as it is found from any directory: a file by its whole path, a module by its name."""
    return str(Path(plugin).resolve()) if plugin.endswith(".py") else plugin


def load_plugins(plugins: Iterable[str]) -> None:
    """Runs plugins that have not been run yet.

    Args:
        plugins: paths of .py files, or names of modules, which may also lie in this directory.

    Raises:
        ConfigError: one is missing or fails.
    """
    for plugin in map(resolve, plugins):
        if plugin in _loaded:
            continue
        try:
            _loaded[plugin] = _load(plugin)
        except ConfigError as error:
            raise ConfigError(f"plugin {plugin}: {error}") from error
        except (Exception, SystemExit) as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(f"plugin {plugin} failed: {said}{_where(error)}") from error


def require_loaded(plugins: Iterable[str], path: Path, advice: Callable[[list[str]], str]) -> None:
    """Refuses plugins that only a file names: what is read may come from anybody, and is never run unasked.

    Args:
        plugins: that the file names. One that has moved is known by the name of its file.
        path: the file.
        advice: returns what to do, given the names of those that have not been loaded.

    Raises:
        ConfigError: one of them has not been loaded.
    """
    known = {Path(plugin).name for plugin in _loaded}
    missing = [plugin for plugin in plugins if Path(plugin).name not in known]
    require(
        not missing,
        f"{path} names plugins, and what a file names is not run unasked; {advice(missing)}",
    )


def _load(plugin: str) -> ModuleType:
    if not plugin.endswith(".py"):
        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.append(here)
        return importlib.import_module(plugin)
    path = Path(plugin)
    require(path.is_file(), "there is no such file")
    spec = importlib.util.spec_from_file_location(f"plugin_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # it is a Python file
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _where(error: BaseException) -> str:
    """The last line of a traceback, if it lies outside this file."""
    last = extract_tb(error.__traceback__)[-1]
    own = last.filename == __file__ or last.filename.startswith("<frozen")
    return "" if own else f" ({last.filename}, line {last.lineno})"
