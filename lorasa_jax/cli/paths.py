"""Run directories and checkpoints by the paths that a user types."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from lorasa_jax.config import ConfigError, require

CHECKPOINTS = "checkpoints"
"""Where a run directory keeps them."""


BACKBONES = "backbones"
"""Where a job of a sweep keeps the states that others go on from, as checkpoints."""


ROWS = "rows.json"
"""Where a job of a sweep says what its rows are."""


LONGEST_NAME, LONGEST_PATH = 255, 3800
"""Bytes in the name of a file, and in a path below which there is still room for files (Linux takes 4096)."""


def read_json(path: Path) -> dict[str, Any]:
    """Returns what one of a run's JSON files holds, by name.

    Raises:
        ConfigError: it is missing or damaged.
    """
    require(path.is_file(), f"there is no {path}; put it back")
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        raise ConfigError(f"{path} is no valid JSON; it has changed since it was written, so put it back") from None
    require(isinstance(found, dict), f"{path} must hold values by name")
    return dict(found)


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
