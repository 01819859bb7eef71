"""Trained teams that come with the library, one folder each. This module does not import jax."""

from __future__ import annotations

from pathlib import Path

from lorasa_jax.checks import nearest, require

TRAINED = Path(__file__).parent
"""The folder of the teams."""
ABOUT = "about.json"
"""The file beside a saved team that says where it comes from."""


def find_team(team: Path | str) -> Path:
    """Returns the folder of a team.

    Args:
        team: the name of a team that comes with the library, or a folder. A folder goes before a name.

    Raises:
        ConfigError: it is neither.
    """
    path = Path(team)
    if path.exists() or len(path.parts) != 1:
        return path
    names = sorted(settings.parent.name for settings in TRAINED.glob("*/config.json"))
    require(
        path.name in names,
        f"there is no folder and no trained team {path.name!r}{nearest(path.name, names)}; teams: {', '.join(names)}",
    )
    return TRAINED / path.name
