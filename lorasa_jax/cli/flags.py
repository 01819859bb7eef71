"""The command line: presets, flags and one-line errors. Its imports are light, so help is instant."""

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
"""Flags that may change when a run is resumed. The checkpoint decides whether the budget may change."""
_HINTED: set[str] = set()
"""Hints about old names that were printed."""
C = TypeVar("C", bound=Config)
T = TypeVar("T")


@dataclass(frozen=True)
class RunConfig(Config):
    """Train a team: a shared policy first, then a low-rank adapter for every agent (LoRASA)."""

    preset: str = "fast"
    """Base settings: fast, paper or another name for this environment, or a YAML file. Flags override them."""
    out: Path | None = None
    """Run directory, which must not exist; by default runs/ENV-TASK-ALGO-SHARING-seedN."""
    gif: bool = True
    """Draw an episode of the final policy, if the environment can be drawn."""
    track: Literal["none", "tensorboard", "wandb"] = "none"
    """Also send metrics to a tracker."""
    cache: bool = True
    """Cache compiled programs in the user's cache directory, so the next run starts faster."""
    save_every: float = 60.0
    """Minimum number of seconds between two checkpoints; 0: a checkpoint after every iteration."""
    resume: Path | None = None
    """Resume the run in this directory (or from a checkpoint, DIR/checkpoints/N), with the run's settings."""

    shard: Literal["auto", "rows", "envs", "off"] = "auto"
    """The axis to spread over devices, or over the cores of a processor. rows: seeds; envs: the environments of every
    seed; off: none, with one device; auto: rows or envs, whichever keeps more devices busy."""
    distributed: bool = False
    """This process is one of several, which find each other through their launcher (docs/scaling.md)."""
    plugins: tuple[str, ...] = ()
    """Python files or modules that register your own schemes, algorithms and environments. --help then shows their
    names, too."""

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
    """Returns the configuration of a command line; exits with one line if it is invalid.

    The preset's settings become the defaults, also in the help text.
    """
    with polite():
        config = _parse(config_type, argv)
    for section in ("actor", "critic"):
        module = getattr(getattr(config, section, None), "module", "")
        if module and (flags := _built_in_flags(section, argv)):
            complain(f"note: {', '.join(flags)}: the network {module} ignores this, unless its factory reads it")
    return config


def _built_in_flags(section: str, argv: Sequence[str]) -> list[str]:
    """The flags of a command line that are settings of the built-in network."""
    words = [word.partition("=")[0].replace("_", "-") for word in argv if word.startswith(f"--{section}.")]
    always = {f"--{section}.{name}" for name in ("module", "recurrent", "scope", "separate")}
    return [word for word in dict.fromkeys(words) if word not in always]


def read_flags(config_type: type[T], argv: Sequence[str], **default: Any) -> T:
    """Returns the values of flags; raises `ConfigError` if they are invalid."""
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
    """Loads the named plugins and returns the other words, for commands that do not record plugins."""
    if any(field.name == "plugins" for field in dataclasses.fields(config_type)):
        return argv
    plugins, others = _split_plugins(argv)
    load_plugins(plugins)
    return others


def _split_plugins(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """All named plugins, and the other words."""
    words = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    words.add_argument("--plugins", nargs="*", action="extend", default=[])
    chosen, others = words.parse_known_args(argv)
    return chosen.plugins, others


@contextmanager
def _hints() -> Iterator[None]:
    """Prints hints about old names as one line each, once per command."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Renamed)
        yield
    for hint in dict.fromkeys(str(warning.message) for warning in caught):
        if hint not in _HINTED:
            _HINTED.add(hint)
            print(f"{Path(sys.argv[0]).name}: {hint}", file=sys.stderr)


def _one_line(box: str) -> str:
    """The first part of tyro's boxed message, and its first suggested flag."""
    parts: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip("│╭╮╰╯ ")
        if text.endswith(("───", "---")):
            parts.append([])
        elif text:
            parts[-1].append(text)
    found = [" ".join(part) for part in parts if part]
    if "│" not in box:
        found = found[1:]  # without the title
    flags = [word for part in found[1:] for word in part.split() if word.startswith("--")]
    unknown = found[0].startswith("Unrecognized") and flags
    return _in_words(found[0]) + (f" (did you mean {flags[0]}?)" if unknown and flags[0] != "--help" else "")


def _in_words(message: str) -> str:
    """A message of tyro, with the nearest choice, and without the names of Python's functions."""
    wrong = re.search(r"invalid choice '(.*?)' for argument '.*?'(?=\. Expected one of \((.*)\))", message)
    if wrong:
        return message[: wrong.end()] + nearest(wrong[1], re.findall(r"'(.*?)'", wrong[2])) + message[wrong.end() :]
    union = re.search(r"no type matching (.+?) could be instantiated from \['(.*?)'\]", message)
    if union:  # one of several types, such as {None}|INT|{all}
        plain = {"INT": "a whole number", "FLOAT": "a number", "STR": "a word", "PATH": "a path"}
        kinds = [plain.get(kind, kind.strip("{}")) for kind in union[1].split("|") if kind != "{None}"]
        return f"{message[: union.start()]}expected {' or '.join(kinds)}, got {union[2]!r}"
    message = re.sub(r"invalid literal for int\(\) with base 10: (.*)", r"expected a whole number, got \1", message)
    return re.sub(r"could not convert string to float: (.*)", r"expected a number, got \1", message)


def parse_settings(config_type: type[C], settings: dict[str, Any], path: Path) -> C:
    """Returns the configuration of a file, including its preset; raises `ConfigError` if it is invalid."""
    flags = [*_flags(config_type, settings, path)]
    try:
        return _parse(config_type, flags)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


_OPTION = re.compile(r"--jaxmarl\.(?!options\b)([A-Za-z_][\w-]*)(?:=(.*))?", re.DOTALL)
"""A flag for an argument of a game's constructor, stored in `jaxmarl.options`."""


def _with_options(argv: Sequence[str]) -> list[str]:
    """The words with every `--jaxmarl.NAME VALUE` rewritten as `--jaxmarl.options NAME=VALUE`."""
    words, options, rest = [], list[str](), iter(argv)
    for word in rest:
        found = _OPTION.fullmatch(word)
        if not found:
            words.append(word)
            continue
        value = found[2] if found[2] is not None else next(rest, "")
        require(bool(value) and not value.startswith("--"), f"{word} needs a value for the game")
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
    selectors.add_argument("--sharing", default="")
    selectors.add_argument("--resume", type=Path, nargs="?")
    chosen, _ = selectors.parse_known_args(argv)
    if chosen.resume is not None:
        return _parse_resumed(config_type, chosen.resume, argv, plugins)
    load_plugins(plugins)
    # The full parser reports a wrong --env. A plugin's environment may have no presets.
    unset = chosen.preset == RunConfig.preset and not (PRESETS / chosen.env).is_dir()
    if chosen.env not in TASKS or unset:
        return read_flags(config_type, argv)
    case = {"task": chosen.task or TASKS[chosen.env], "algo": chosen.algo, "sharing": chosen.sharing}
    settings = [*preset_flags(config_type, chosen.env, chosen.preset, case), "--preset", chosen.preset]
    defaults = read_flags(config_type, settings)
    return read_flags(config_type, argv, default=defaults)


def _parse_resumed(config_type: type[C], resume: Path, argv: Sequence[str], plugins: Sequence[str]) -> C:
    """Returns the settings of the run in a directory, with the flags that may change on resume.

    Named plugins replace those of the run, whose files may have moved.
    """
    path = run_of(resume) / "config.json"
    require(path.is_file(), f"there is no run to resume in {path.parent}: it has no config.json")
    require(
        not path.with_name(ROWS).exists(),
        f"{path.parent} is a job of a sweep; resume it with the command of the sweep (`command` in its versions.json)",
    )
    load_plugins(plugins)
    kept = read_config(config_type, path, plugins)
    config = read_flags(config_type, argv, default=kept)
    for name, before, after in changed_settings(dataclasses.asdict(kept), dataclasses.asdict(config)):
        require(name in FREE, f"--{name} cannot change when a run is resumed: it is {before} in {path}, not {after}")
    return config


def read_config(config_type: type[C], path: Path, plugins: Sequence[str] = ()) -> C:
    """Returns the configuration in a run's `config.json`; given plugins replace those of the run."""
    settings = read_json(path)
    if plugins:
        settings["plugins"] = list(plugins)
    return from_settings(config_type, settings, path)


def from_settings(config_type: type[C], settings: dict[str, Any], path: Path) -> C:
    """Returns the configuration from settings by name, as in a `config.json`, without a preset.

    Raises:
        ConfigError: the settings name plugins that the command line does not (`require_loaded`).
    """
    require_loaded(settings.get("plugins", ()), path, lambda names: f"add --plugins {' '.join(names)} at the end")
    return read_flags(config_type, [*_flags(config_type, settings, path)])


def preset_flags(config_type: type[Config], env: str, preset: str, case: dict[str, str]) -> Iterator[str]:
    """Yields a preset's settings for a case, as command-line words."""
    path = find_preset(env, preset)
    settings = {**read_preset(env, path, case), "env": env}
    require("plugins" not in settings, f"{path} names plugins, but a preset cannot run plugins; use --plugins")
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
