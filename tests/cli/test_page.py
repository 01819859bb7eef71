"""A page about a run or a sweep holds everything that it shows."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lorasa_jax.cli.page import write_page
from lorasa_jax.config import ConfigError

MADE_WITH = {
    "command": ["lorasa", "train", "--out", "a b"],
    "packages": {"jax": "1.0"},
    "python": "3.11",
    "commit": "abc",
}
SUMMARY: dict[str, Any] = {
    "seeds": [3, 4],
    "env_steps": 2048,
    "switch_steps": [1024, 512],
    "eval_episodes": 16,
    "steps_per_second": 1000.4,
    "final": {"greedy": {"return": [1.0, 2.0], "win_rate": [None, None]}},
    "final_ci95": {"greedy": {"return": [1.0, 2.0], "win_rate": None}},
    "params": {"actors": 1234, "nps_actors": 5678},
}


class Seen(HTMLParser):
    """What a reader of a page finds: words, and the sources of pictures."""

    def __init__(self, page: Path):
        super().__init__()
        self.words: list[str] = []
        self.sources: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words += data.split()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    config = {"task": "<map>", "algo": "mappo", "sharing": "lorasa"}
    for name, content in (("config", config), ("versions", MADE_WITH), ("summary", SUMMARY)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "curve.png").write_bytes(b"picture")
    return tmp_path


def test_a_run_has_results_pictures_settings_and_its_command(run: Path) -> None:
    diagnosis = run / "diagnosis"
    diagnosis.mkdir()
    (diagnosis / "diagnosis.json").write_text(json.dumps({"said": ["agents differ", "by 0.3"]}))
    (diagnosis / "swap.png").write_bytes(b"another")
    seen = Seen(write_page(run))
    text = " ".join(seen.words)
    for expected in (
        "<map>, mappo, lorasa",
        "1.500 [1.000, 2.000]",
        "1,024 512",
        "1,234",
        "agents differ by 0.3",
        "'a b'",
    ):
        assert expected in text
    assert len(seen.sources) == 2
    assert all(re.fullmatch(r"data:image/png;base64,[\w+/=]+", source) for source in seen.sources)


def test_a_run_that_has_not_finished_has_a_page_without_results(run: Path) -> None:
    (run / "summary.json").unlink()
    assert "Results" not in Seen(write_page(run)).words
    (run / "versions.json").unlink()
    with pytest.raises(ConfigError, match="there is no"):
        write_page(run)


def test_a_sweep_has_its_table(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text('job,seed,greedy_return\n"1-ps, id",0,2.5\n')
    (tmp_path / "curves.png").write_bytes(b"picture")
    seen = Seen(write_page(tmp_path))
    assert " ".join(seen.words).endswith("job seed greedy_return 1-ps, id 0 2.5")
    assert len(seen.sources) == 1
