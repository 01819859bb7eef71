"""Presets: files of settings, in one folder per family of environments. This module does not import jax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorasa_jax.checks import nearest, require
from lorasa_jax.yaml_reader import read_yaml

PRESETS = Path(__file__).parent
"""The folder of presets."""
DEFAULT_SHARING = "lorasa"
"""The sharing scheme, if neither the user nor a preset names one."""


def read_preset(env: str, path: Path, case: dict[str, str], above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Returns a preset's settings for a case: a task, an algorithm and a sharing scheme.

    A preset contains settings. It may name another preset that it starts from (`base`: a name, or a file relative to
    this one). It may `set` other values in some `cases`, and be valid only for these cases (`only_cases`).

    Args:
        env: the family of environments.
        path: the preset's file.
        case: the task, the algorithm and the sharing scheme; empty: that of the preset.
        above: files of presets that start from this one.
    """
    settings = read_yaml(path) or {}
    require(isinstance(settings, dict), f"{path} must hold settings, one `name: value` a line")
    require(settings.get("env", env) == env, f"{path} is a preset for {settings.get('env')}, but --env is {env}")
    base, cases, only = (settings.pop(name, None) for name in ("base", "cases", "only_cases"))
    sharing = case["sharing"] or settings.get("sharing", "")
    case = {**case, "sharing": sharing}
    if base is not None:
        require(isinstance(base, str), f"{path}: base must name a preset; a file with `grids` is one for sweep.py")
        below, known = find_preset(env, base, path.parent), (*above, path.resolve())
        require(below.resolve() not in known, f"{path} cannot start from itself, by base: {base}")
        settings = merged(read_preset(env, below, case, known), settings)
    case["sharing"] = sharing or settings.get("sharing", DEFAULT_SHARING)
    fitting = [rule["set"] for rule in cases or () if _fits(rule, case, path)]
    described = ", ".join(f"{name} {value}" for name, value in case.items())
    require(bool(fitting) or not only, f"{path} has no case for {described}; choose among its cases, or another preset")
    for changes in fitting:
        settings = merged(settings, changes)
    return settings


def _fits(rule: Any, case: dict[str, str], path: Path) -> bool:
    """Returns whether a rule of a preset applies to this case."""
    require(
        isinstance(rule, dict) and {"set"} <= set(rule) <= {"set", *case} and isinstance(rule["set"], dict),
        f"{path}: each of its cases says for which task, algo or sharing (or lists of them) to `set` what",
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
    """Returns whether a preset is given as a file, not as a name."""
    return preset.endswith((".yaml", ".yml"))


def find_preset(env: str, preset: str, beside: Path = Path()) -> Path:
    """Returns the file of a preset, from its name, or from a path relative to a directory."""
    if is_file_name(preset):
        path = beside / preset
        require(path.is_file(), f"there is no preset file {path}")
        return path
    names = sorted(path.stem for path in (PRESETS / env).glob("*.yaml"))
    owners = sorted(path.parent.name for path in PRESETS.glob(f"*/{preset}.yaml"))
    hint = f" (it is one for {' and '.join(owners)})" if owners else nearest(preset, names)
    require(preset in names, f"there is no preset {preset!r} for {env}{hint}; presets: {', '.join(names)}")
    return PRESETS / env / f"{preset}.yaml"
