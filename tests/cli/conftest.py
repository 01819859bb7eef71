"""A saved run for all who only read it."""

from __future__ import annotations

from pathlib import Path

import pytest
from saving import save_run


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its directory."""
    return save_run(tmp_path_factory.mktemp("saved") / "run")
