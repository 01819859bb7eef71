"""Plugins: the user's files and modules that register schemes, algorithms and environments."""

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
    """Returns a name of the plugin for any working directory: the absolute path of a file, the name of a module."""
    return str(Path(plugin).resolve()) if plugin.endswith(".py") else plugin


def load_plugins(plugins: Iterable[str]) -> None:
    """Runs plugins that were not run before.

    Args:
        plugins: paths of .py files, or names of modules, which may be in the working directory.

    Raises:
        ConfigError: a plugin is missing or fails.
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
    """Refuses plugins that a file names and the user did not load: files may come from anybody.

    Args:
        plugins: the plugins that the file names. Only the last part of a path is compared.
        path: the file.
        advice: returns the advice, given the names of plugins that are not loaded.

    Raises:
        ConfigError: a plugin is not loaded.
    """
    known = {Path(plugin).name for plugin in _loaded}
    missing = [plugin for plugin in plugins if Path(plugin).name not in known]
    require(
        not missing,
        f"{path} names plugins, which are not run without your consent; {advice(missing)}",
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
