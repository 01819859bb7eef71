"""What the documents tell a user to run, runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.slow
def test_the_environment_of_ones_own_is_short_and_learns(capsys):
    (snippet,) = re.findall(r"```python\n(.*?)```", (DOCS / "environments.md").read_text(), re.DOTALL)
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 40
    names: dict = {}
    exec(snippet, names)
    assert capsys.readouterr().out.strip()
    final = names["result"].final["greedy"]
    assert final["return"][0] > names["result"].random_return[0] + 1
