"""The command line: presets, flags and one-line errors. Imports nothing heavy, so that help is instant."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import re
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import tyro

from lorasa_jax.cli.streams import complain, open_streams
from lorasa_jax.cli.yaml_reader import read_yaml
from lorasa_jax.config import TASKS, Config, ConfigError, changed_settings, nearest, require
from lorasa_jax.files import reason
from lorasa_jax.levels import Renamed
from lorasa_jax.plugins import load_plugins, require_loaded, resolve

PRESETS = Path(__file__).parent / "presets"
CHECKPOINTS = "checkpoints"
"""Where a run directory keeps them."""
BACKBONES = "backbones"
"""Where a job of a sweep keeps the states that others go on from, as checkpoints."""
ROWS = "rows.json"
"""Where a job of a sweep says what its rows are."""
FREE = ("gif", "track", "cache", "save-every", "resume", "total-steps", "shard", "distributed", "plugins")
"""Flags that may differ when a run goes on. Whether its budget may is found out with its checkpoint."""
LONGEST_NAME, LONGEST_PATH = 255, 3800
"""Bytes in the name of a file, and in a path below which there is still room for files (Linux takes 4096)."""
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


@contextmanager
def polite() -> Iterator[None]:
    """Ends the program in one line where a setting or a file cannot work."""
    try:
        yield
    except ConfigError as error:
        fail(error)
    except OSError as error:
        fail(reason(error))
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None


@contextmanager
def optional() -> Iterator[None]:
    """Goes on where the block cannot write its file, and says so: a picture, which a run can do without."""
    try:
        yield
    except OSError as error:
        complain(f"note: not written: {reason(error)}")


def leave(main: Callable[[], None]) -> None:
    """Runs a command, which no output can fail.

    Where it was stopped the process ends at once, and does not wait for what still compiles.
    """
    open_streams()
    try:
        main()
    except SystemExit as stop:
        alone = "jax" not in sys.modules or not sys.modules["jax"].distributed.is_initialized()
        if alone and isinstance(stop.code, int) and stop.code > 128:  # by a signal
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(stop.code)
        raise


def python() -> str:
    """Returns what to call this Python in a command: `python` alone only where that would start this one."""
    ran, called = Path(sys.executable), shutil.which("python")
    with suppress(OSError, ValueError):  # it lies elsewhere, or there is no working directory any more
        inside = ran.relative_to(Path.cwd())
        return str(inside) if len(inside.parts) > 1 else f"./{inside}"
    # A virtual environment's Python is a link to one elsewhere, which without its folder is another.
    same = called is not None and Path(called).parent.resolve() == ran.parent.resolve() and ran.samefile(called)
    return "python" if same else str(ran)


def invocation() -> list[str]:
    """Returns the words that start this command: a script and its Python, or `lorasa` and the command's name."""
    program, _, command = Path(sys.argv[0]).name.partition(" ")
    if program != "lorasa" or not command:
        return [python(), sys.argv[0]]
    called = shutil.which(program)
    ran = Path(sys.argv[0]).with_name(program)
    return [program if called is not None and Path(called) == ran else str(ran), command]


def read_flags(config_type: type[T], argv: Sequence[str], **default: Any) -> T:
    """Returns what flags say; raises `ConfigError` where they cannot be read."""
    said, argv = io.StringIO(), _without_plugins(config_type, argv)
    try:
        with _hints(), redirect_stderr(said):
            return tyro.cli(config_type, args=argv, config=(tyro.conf.FlagConversionOff,), **default)
    except SystemExit as stop:
        if not stop.code:
            raise
    raise ConfigError(_one_line(said.getvalue()))


def _without_plugins(config_type: type, argv: Sequence[str]) -> Sequence[str]:
    """Loads the plugins that are named, and returns the other words, for commands that do not keep their names."""
    if any(field.name == "plugins" for field in dataclasses.fields(config_type)):
        return argv
    words = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    words.add_argument("--plugins", nargs="*", default=[])
    chosen, others = words.parse_known_args(argv)
    load_plugins(chosen.plugins)
    return others


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
    argv = _with_options(argv)
    selectors = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    selectors.add_argument("--env", default=Config.env)
    selectors.add_argument("--preset", default=RunConfig.preset)
    selectors.add_argument("--task", default="")
    selectors.add_argument("--algo", default=Config.algo)
    selectors.add_argument("--resume", type=Path, nargs="?")
    selectors.add_argument("--plugins", nargs="*", default=[])
    chosen, _ = selectors.parse_known_args(argv)
    if chosen.resume is not None:
        return _parse_resumed(config_type, chosen.resume, argv, chosen.plugins)
    load_plugins(chosen.plugins)
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


def read_json(path: Path) -> dict[str, Any]:
    """Returns what one of a run's JSON files holds, by name.

    Raises:
        ConfigError: it is missing or damaged.
    """
    require(path.is_file(), f"there is no {path}; put it back")
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        raise ConfigError(f"{path} is no valid JSON; a run writes it whole, so it was changed since") from None
    require(isinstance(found, dict), f"{path} must hold values by name")
    return dict(found)


def from_settings(config_type: type[C], settings: dict[str, Any], path: Path) -> C:
    """Returns the configuration that settings by name make, as they stand in a `config.json`; no preset is read.

    Raises:
        ConfigError: they name plugins that the command line does not (`require_loaded`).
    """
    require_loaded(settings.get("plugins", ()), path, lambda names: f"add --plugins {' '.join(names)} at the end")
    return read_flags(config_type, [*_flags(config_type, settings, path)])


def locate(path: Path) -> tuple[Path, Path | None]:
    """Returns the run directory of what a path names, and the checkpoint if it names one; as it was typed if possible.

    Links to a checkpoint are followed, and so is its number alone, typed in the folder of checkpoints.
    """
    real = Path(os.path.realpath(path))
    if _is_checkpoint(path):
        return path.parent.parent, path
    if not _is_checkpoint(real):
        return path, None
    home = str(real.parent.parent)
    run = Path(min(home, os.path.relpath(home), key=len))
    is_link = path.name != real.name or os.path.realpath(path.parent) != str(real.parent)
    return run, run / real.parent.name / real.name if is_link else path


def _is_checkpoint(path: Path) -> bool:
    return path.parent.name in (CHECKPOINTS, BACKBONES) and path.name.isdecimal()


def run_of(path: Path) -> Path:
    """Returns the run directory of what a path names: itself, or that of a checkpoint."""
    return locate(path)[0]


def require_place(path: Path | None, flag: str = "--out") -> None:
    """Refuses a place for files that lies elsewhere than its name says, or cannot be named at all."""
    if path is None:
        return
    shown = ascii(str(path))
    is_address = re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path))
    require(not is_address, f"{flag} {shown} is an address, and files are written to directories of this machine only")
    require(path.parts[:1] != ("~",), f"{flag} {shown} would be a directory named ~; write $HOME, or the whole path")
    too_long = any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts)
    too_long |= len(os.fsencode(path.absolute())) > LONGEST_PATH
    require(not too_long, f"{flag} {shown[:60]}... is too long a name; choose a shorter one")
    try:
        str(path).encode()
    except UnicodeError:
        raise ConfigError(f"{flag} {shown} is not valid UTF-8; choose another name") from None


def fail(error: Exception | str) -> NoReturn:
    """Prints one line to stderr and exits with status 2."""
    print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
    raise SystemExit(2)


def preset_flags(config_type: type[Config], env: str, preset: str, case: dict[str, str]) -> Iterator[str]:
    """Yields a preset's settings for a task and an algorithm as command-line words."""
    path = find_preset(env, preset)
    settings = {**read_preset(env, path, case), "env": env}
    require("plugins" not in settings, f"{path} names plugins, and a preset runs nothing; name them with --plugins")
    yield from _flags(config_type, settings, path)


def read_preset(env: str, path: Path, case: dict[str, str], above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Returns a preset's settings for a task and an algorithm.

    A preset holds settings, and may say from which other one it starts (`base`: a name, or a file, which is sought
    beside this one), what to `set` in some `cases`, and whether it is for these alone (`only_cases`).

    Args:
        env: the family of environments.
        path: its file.
        case: the task and the algorithm.
        above: files of presets that start from it.
    """
    settings = read_yaml(path) or {}
    require(isinstance(settings, dict), f"{path} must hold settings, one `name: value` a line")
    require(settings.get("env", env) == env, f"{path} is a preset for {settings.get('env')}, but --env is {env}")
    base, cases, only = (settings.pop(name, None) for name in ("base", "cases", "only_cases"))
    if base is not None:
        require(isinstance(base, str), f"{path}: base must name a preset; a file with `grids` is one for sweep.py")
        below, known = find_preset(env, base, path.parent), (*above, path.resolve())
        require(below.resolve() not in known, f"{path} cannot start from itself, by base: {base}")
        settings = _merged(read_preset(env, below, case, known), settings)
    fitting = [rule["set"] for rule in cases or () if _fits(rule, case, path)]
    described = " and ".join(f"{name} {value}" for name, value in case.items())
    require(bool(fitting) or not only, f"{path} has no case for {described}; choose among its cases, or another preset")
    for changes in fitting:
        settings = _merged(settings, changes)
    return settings


def _fits(rule: Any, case: dict[str, str], path: Path) -> bool:
    """Says whether what one of a preset's cases sets is for this task and algorithm."""
    require(
        isinstance(rule, dict) and {"set"} <= set(rule) <= {"set", *case} and isinstance(rule["set"], dict),
        f"{path}: each of its cases says for which task or algo (or lists of them) to `set` what",
    )
    return all(
        case[name] in (rule[name] if isinstance(rule[name], list) else [rule[name]])
        for name in case.keys() & rule.keys()
    )


def _merged(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The settings with changes, section by section."""
    both = {
        name: _merged(settings.get(name, {}), value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    return {**settings, **both}


def is_file_name(preset: str) -> bool:
    """Says whether a preset is meant by its file, and not by its name."""
    return preset.endswith((".yaml", ".yml"))


def find_preset(env: str, preset: str, beside: Path = Path()) -> Path:
    """Returns the file of a preset, by its name, or by a path that begins in some directory."""
    if is_file_name(preset):
        path = beside / preset
        require(path.is_file(), f"there is no preset file {path}")
        return path
    names = sorted(path.stem for path in (PRESETS / env).glob("*.yaml"))
    owners = sorted(path.parent.name for path in PRESETS.glob(f"*/{preset}.yaml"))
    hint = f" (it is one for {' and '.join(owners)})" if owners else nearest(preset, names)
    require(preset in names, f"there is no preset {preset!r} for {env}{hint}; presets: {', '.join(names)}")
    return PRESETS / env / f"{preset}.yaml"


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
