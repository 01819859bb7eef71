"""Finds run directories and checkpoints from paths that a user types."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from lorasa_jax.config import ConfigError, require

CHECKPOINTS = "checkpoints"
"""Folder of checkpoints in a run directory."""


BACKBONES = "backbones"
"""Folder of checkpoints in a sweep's job that other jobs continue from."""


ROWS = "rows.json"
"""File that describes the rows of a sweep's job."""


LONGEST_NAME, LONGEST_PATH = 255, 3800
"""Maximum bytes of a file name, and of a directory that leaves room for files below it (Linux allows 4096)."""


def read_json(path: Path) -> dict[str, Any]:
    """Returns the values in a run's JSON file by name.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    require(path.is_file(), f"there is no {path}; restore it")
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        raise ConfigError(f"{path} is not valid JSON; it was changed after it was written, so restore it") from None
    require(isinstance(found, dict), f"{path} must hold values by name")
    return dict(found)


def locate(path: Path) -> tuple[Path, Path | None]:
    """Returns the run directory of a path, and the checkpoint if the path names one, in the typed form if possible.

    Links to checkpoints are followed. A number alone names a checkpoint in the working directory.
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
    """Returns the run directory of a path to a run or a checkpoint."""
    return locate(path)[0]


def require_place(path: Path | None, flag: str = "--out") -> None:
    """Refuses invalid output paths, and paths that do not mean a directory of this machine."""
    if path is None:
        return
    shown = ascii(str(path))
    is_address = re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path))
    require(not is_address, f"{flag} {shown} is an address, but files can only be written to local directories")
    require(path.parts[:1] != ("~",), f"{flag} {shown} would be a directory named ~; write $HOME, or the whole path")
    too_long = any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts)
    too_long |= len(os.fsencode(path.absolute())) > LONGEST_PATH
    require(not too_long, f"{flag} {shown[:60]}... is too long a name; choose a shorter one")
    try:
        str(path).encode()
    except UnicodeError:
        raise ConfigError(f"{flag} {shown} is not valid UTF-8; choose another name") from None
