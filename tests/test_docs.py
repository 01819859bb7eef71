"""What the documents tell a user to run, runs."""

from __future__ import annotations

import doctest
import importlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def test_sentences_are_counted_without_code_tables_and_headings(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    prose = "One `a. b` sentence, e.g. this\none. Two [words here](x.md)!"
    text = f"# A heading\n\n{prose}\n\n| a | b |\n\n```\ncode. Code.\n```\n* An item"
    found = importlib.import_module("sentences").sentences(text)
    assert found == ["One code sentence, e.g. this one.", "Two words here!", "An item"]


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("name", ["config", "sharing.schemes"])
def test_examples_in_docstrings_run(name):
    """Those of the deltas run in their own tests."""
    failed, attempted = doctest.testmod(importlib.import_module(f"lorasa_jax.{name}"))
    assert attempted
    assert not failed


def test_no_other_module_has_examples():
    package = DOCS.parent / "lorasa_jax"
    found = {str(path.relative_to(package)) for path in package.rglob("*.py") if ">>> " in path.read_text()}
    assert {name for name in found if not name.startswith("deltas")} == {"config.py", "sharing/schemes.py"}


@pytest.mark.slow
def test_the_environment_of_ones_own_is_short_and_learns(capsys):
    _, section = (DOCS / "environments.md").read_text().split("\n## Environments of your own\n")
    snippet, *_ = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 40
    names: dict = {}
    exec(snippet, names)
    assert capsys.readouterr().out.strip()
    final = names["result"].final["greedy"]
    assert final["return"][0] > names["result"].random_return[0] + 1


@pytest.fixture
def resources(monkeypatch):
    """The command that writes docs/resources.md."""
    monkeypatch.syspath_prepend(str(DOCS.parent / "benchmarks"))
    return importlib.import_module("resources")


def test_what_schemes_take_is_written_as_it_was_counted(resources):
    record = resources.with_times(json.loads(resources.RECORD.read_text()))
    for path in (DOCS.parent / "README.md", DOCS / "resources.md"):
        text = path.read_text()
        assert resources.BLOCK.search(text)
        assert resources.rendered(text, record) == text
        assert resources.rendered(resources.BLOCK.sub(r"\1\3", text), record) == text  # not only since it was so


def test_what_was_counted_is_what_the_program_has(resources):
    record = json.loads(resources.RECORD.read_text())
    options = SimpleNamespace(**record["size"])
    kept = [row for row in record["rows"] if (row["scheme"], row["agents"]) == ("lorasa", 8)]
    for row, now in zip(kept, resources.count("lorasa", 8, options), strict=True):
        assert now == row | {
            "operations": pytest.approx(row["operations"], rel=0.05)
        }  # derivatives may be written anew
