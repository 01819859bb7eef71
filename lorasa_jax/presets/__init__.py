"""Presets: files of settings, one folder for each family of environments. Nothing here imports jax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorasa_jax.checks import nearest, require
from lorasa_jax.yaml_reader import read_yaml

PRESETS = Path(__file__).parent
"""Where they are."""


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
        settings = merged(read_preset(env, below, case, known), settings)
    fitting = [rule["set"] for rule in cases or () if _fits(rule, case, path)]
    described = " and ".join(f"{name} {value}" for name, value in case.items())
    require(bool(fitting) or not only, f"{path} has no case for {described}; choose among its cases, or another preset")
    for changes in fitting:
        settings = merged(settings, changes)
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


def merged(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings with changes, section by section."""
    both = {
        name: merged(settings.get(name, {}), value) if isinstance(value, dict) else value
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
