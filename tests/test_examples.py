"""Examples run, are short, and do what they say."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_are_short(path):
    assert len(path.read_text().splitlines()) <= 80


def test_deltas_beat_the_shared_network_in_a_loop_of_ones_own(capsys):
    runpy.run_path(str(EXAMPLES / "own_loop.py"), run_name="__main__")
    losses = re.findall(r"task \d: loss (\S+) shared, (\S+) with its deltas", capsys.readouterr().out)
    assert len(losses) == 3
    for shared, own in losses:
        assert float(own) < 0.1 * float(shared)


@pytest.mark.slow
def test_adapters_on_a_network_of_ones_own_reach_the_optimum(capsys):
    assert runpy.run_path(str(EXAMPLES / "own_network.py"))["main"]() == 1.0
    assert "attention/query" in capsys.readouterr().out
