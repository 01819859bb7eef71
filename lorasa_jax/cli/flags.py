"""The command line: presets, flags and one-line errors. Imports nothing heavy, so that help is instant."""

from __future__ import annotations

import argparse
import dataclasses
import io
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

from lorasa_jax.cli.command import polite
from lorasa_jax.cli.paths import ROWS, read_json, run_of
from lorasa_jax.cli.short_help import as_type, showing
from lorasa_jax.cli.streams import complain
from lorasa_jax.config import TASKS, Config, ConfigError, changed_settings, nearest, require
from lorasa_jax.levels import Renamed
from lorasa_jax.plugins import load_plugins, require_loaded, resolve
from lorasa_jax.presets import PRESETS, find_preset, read_preset

FREE = ("gif", "track", "cache", "save-every", "resume", "total-steps", "shard", "distributed", "plugins")
"""Flags that may differ when a run goes on. Whether its budget may is found out with its checkpoint."""
_HINTED: set[str] = set()
"""What has been said of old names."""
C = TypeVar("C", bound=Config)
T = TypeVar("T")


@dataclass(frozen=True)
class RunConfig(Config):
    """Train a team: a shared policy first, then a low-rank adapter for every agent (LoRASA)."""

    preset: str = "fast"
    """Settings to start from: fast, paper or another name for this environment, or a YAML file. Flags override it."""
    out: Path | None = None
    """Run directory, which must not exist yet; not given: runs/ENV-TASK-ALGO-SHARING-seedN."""
    gif: bool = True
    """Draw an episode of the final policy, where the environment can be drawn."""
    track: Literal["none", "tensorboard", "wandb"] = "none"
    """Send metrics to a tracker as well."""
    cache: bool = True
    """Keep compiled programs in the user's cache directory, so that the next run starts at once."""
    save_every: float = 60.0
    """Seconds between two checkpoints, at least; 0: one after every iteration."""
    resume: Path | None = None
    """Go on with the run in this directory (or from a checkpoint, DIR/checkpoints/N). Settings are its own."""

    shard: Literal["auto", "rows", "envs", "off"] = "auto"
    """What several devices, or the cores of a processor, share: rows: the seeds; envs: the environments of every seed;
    off: nothing, one device is used; auto: rows or envs, whichever keeps more of them busy."""
    distributed: bool = False
    """This is one of several processes, which their launcher introduces to each other (docs/scaling.md)."""
    plugins: tuple[str, ...] = ()
    """Python files or modules that register schemes, algorithms and environments of your own; with --help, their names
    are shown too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "plugins", tuple(map(resolve, self.plugins)))
        require(self.save_every >= 0, f"save-every must be 0 or more, got {self.save_every}")

    @property
    def directory(self) -> Path:
        """The run directory."""
        if self.resume is not None:
            return run_of(self.resume)
        return self.out or Path("runs") / f"{self.env}-{self.task}-{self.algo}-{self.sharing}-seed{self.seed}"


def parse(config_type: type[C], argv: Sequence[str]) -> C:
    """Returns the configuration that a command line asks for; exits with one line where it cannot be.

    The preset's settings become the defaults, in the help text too.
    """
    with polite():
        config = _parse(config_type, argv)
    for section in ("actor", "critic"):
        module = getattr(getattr(config, section, None), "module", "")
        if module and (flags := _built_in_flags(section, argv)):
            complain(f"note: {', '.join(flags)}: the network {module} ignores this, unless its factory reads it")
    return config


def _built_in_flags(section: str, argv: Sequence[str]) -> list[str]:
    """The flags on a command line that are settings of the built-in network."""
    words = [word.partition("=")[0].replace("_", "-") for word in argv if word.startswith(f"--{section}.")]
    always = {f"--{section}.{name}" for name in ("module", "recurrent", "scope", "separate")}
    return [word for word in dict.fromkeys(words) if word not in always]


def read_flags(config_type: type[T], argv: Sequence[str], **default: Any) -> T:
    """Returns what flags say; raises `ConfigError` where they cannot be read."""
    said, argv = io.StringIO(), _without_plugins(config_type, argv)
    in_full = "--help-all" in argv
    argv = ["--help" if word == "--help-all" else word for word in argv]
    asked = issubclass(config_type, RunConfig) and not {"-h", "--help"}.isdisjoint(argv)
    if asked:
        config_type = showing(config_type, in_full)
        default = {name: as_type(config_type, value) for name, value in default.items()}
    try:
        with _hints(), redirect_stderr(said):
            return tyro.cli(config_type, args=argv, config=(tyro.conf.FlagConversionOff,), **default)
    except SystemExit as stop:
        if not stop.code:
            if asked and not in_full:
                print("These are the flags that matter first; --help-all shows all of them.")
            raise
    raise ConfigError(_one_line(said.getvalue()))


def _without_plugins(config_type: type, argv: Sequence[str]) -> Sequence[str]:
    """Loads the plugins that are named, and returns the other words, for commands that do not keep their names."""
    if any(field.name == "plugins" for field in dataclasses.fields(config_type)):
        return argv
    plugins, others = _split_plugins(argv)
    load_plugins(plugins)
    return others


def _split_plugins(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The plugins that are named, wherever and however often, and the other words."""
    words = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    words.add_argument("--plugins", nargs="*", action="extend", default=[])
    chosen, others = words.parse_known_args(argv)
    return chosen.plugins, others


@contextmanager
def _hints() -> Iterator[None]:
    """Prints what is said of old names as one line each, once in a command."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Renamed)
        yield
    for hint in dict.fromkeys(str(warning.message) for warning in caught):
        if hint not in _HINTED:
            _HINTED.add(hint)
            print(f"{Path(sys.argv[0]).name}: {hint}", file=sys.stderr)


def _one_line(box: str) -> str:
    """What tyro says in a box, drawn or not: its first part, and the first flag that it takes for the one meant."""
    parts: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip("│╭╮╰╯ ")
        if text.endswith(("───", "---")):
            parts.append([])
        elif text:
            parts[-1].append(text)
    found = [" ".join(part) for part in parts if part]
    if "│" not in box:
        found = found[1:]  # the title stands above a line, not in it
    flags = [word for part in found[1:] for word in part.split() if word.startswith("--")]
    unknown = found[0].startswith("Unrecognized") and flags
    return found[0] + (f" (did you mean {flags[0]}?)" if unknown and flags[0] != "--help" else "")


def parse_settings(config_type: type[C], settings: dict[str, Any], path: Path) -> C:
    """Returns the configuration that a file asks for, its preset included; raises `ConfigError` where it cannot be."""
    flags = [*_flags(config_type, settings, path)]
    try:
        return _parse(config_type, flags)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


_OPTION = re.compile(r"--jaxmarl\.(?!options\b)([A-Za-z_][\w-]*)(?:=(.*))?", re.DOTALL)
"""A flag for an argument of a game's own, which `jaxmarl.options` holds."""


def _with_options(argv: Sequence[str]) -> list[str]:
    """The words with every `--jaxmarl.NAME VALUE` as one of `--jaxmarl.options NAME=VALUE`."""
    words, options, rest = [], list[str](), iter(argv)
    for word in rest:
        found = _OPTION.fullmatch(word)
        if not found:
            words.append(word)
            continue
        value = found[2] if found[2] is not None else next(rest, "")
        require(bool(value) and not value.startswith("--"), f"{word} needs a value, which the game is given")
        options.append(f"{found[1].replace('-', '_')}={value}")
    return [*words, "--jaxmarl.options", *options] if options else words


def _parse(config_type: type[C], argv: Sequence[str]) -> C:
    plugins, argv = _split_plugins(_with_options(argv))
    argv = [*argv, "--plugins", *plugins] if plugins else argv
    selectors = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    selectors.add_argument("--env", default=Config.env)
    selectors.add_argument("--preset", default=RunConfig.preset)
    selectors.add_argument("--task", default="")
    selectors.add_argument("--algo", default=Config.algo)
    selectors.add_argument("--resume", type=Path, nargs="?")
    chosen, _ = selectors.parse_known_args(argv)
    if chosen.resume is not None:
        return _parse_resumed(config_type, chosen.resume, argv, plugins)
    load_plugins(plugins)
    # A wrong --env is left to the full parser, which knows the right ones; a plugin's may have no presets.
    unset = chosen.preset == RunConfig.preset and not (PRESETS / chosen.env).is_dir()
    if chosen.env not in TASKS or unset:
        return read_flags(config_type, argv)
    case = {"task": chosen.task or TASKS[chosen.env], "algo": chosen.algo}
    settings = [*preset_flags(config_type, chosen.env, chosen.preset, case), "--preset", chosen.preset]
    defaults = read_flags(config_type, settings)
    return read_flags(config_type, argv, default=defaults)


def _parse_resumed(config_type: type[C], resume: Path, argv: Sequence[str], plugins: Sequence[str]) -> C:
    """Returns the settings of the run in a directory, with those flags that it may go on with.

    Plugins that are named take the place of the run's, which may have moved.
    """
    path = run_of(resume) / "config.json"
    require(path.is_file(), f"there is no run to go on with in {path.parent}: it has no config.json")
    require(
        not path.with_name(ROWS).exists(),
        f"{path.parent} is a job of a sweep; the sweep's own command goes on with it (`command` in its versions.json)",
    )
    load_plugins(plugins)
    kept = read_config(config_type, path, plugins)
    config = read_flags(config_type, argv, default=kept)
    for name, before, after in changed_settings(dataclasses.asdict(kept), dataclasses.asdict(config)):
        require(name in FREE, f"--{name} cannot change when a run goes on: it is {before} in {path}, not {after}")
    return config


def read_config(config_type: type[C], path: Path, plugins: Sequence[str] = ()) -> C:
    """Returns the configuration that a run wrote to its `config.json`; with plugins in the place of its own, if any."""
    settings = read_json(path)
    if plugins:
        settings["plugins"] = list(plugins)
    return from_settings(config_type, settings, path)


def from_settings(config_type: type[C], settings: dict[str, Any], path: Path) -> C:
    """Returns the configuration that settings by name make, as they stand in a `config.json`; no preset is read.

    Raises:
        ConfigError: they name plugins that the command line does not (`require_loaded`).
    """
    require_loaded(settings.get("plugins", ()), path, lambda names: f"add --plugins {' '.join(names)} at the end")
    return read_flags(config_type, [*_flags(config_type, settings, path)])


def preset_flags(config_type: type[Config], env: str, preset: str, case: dict[str, str]) -> Iterator[str]:
    """Yields a preset's settings for a task and an algorithm as command-line words."""
    path = find_preset(env, preset)
    settings = {**read_preset(env, path, case), "env": env}
    require("plugins" not in settings, f"{path} names plugins, and a preset runs nothing; name them with --plugins")
    yield from _flags(config_type, settings, path)


def _flags(section: type, settings: dict[str, Any], path: Path, prefix: str = "") -> Iterator[str]:
    fields = {field.name: field for field in dataclasses.fields(section)}
    for name, value in settings.items():
        require(
            name in fields,
            f"{path}: there is no setting {prefix + str(name)!r}{nearest(str(name), fields)}",
        )
        factory = fields[name].default_factory
        if isinstance(factory, type) and dataclasses.is_dataclass(factory):
            require(isinstance(value, dict), f"{path}: {prefix + name} is a section, with settings of its own")
            yield from _flags(factory, value, path, f"{prefix}{name}.")
        else:
            yield f"--{prefix}{name}".replace("_", "-")
            yield from (map(str, value) if isinstance(value, list) else [str(value)])
