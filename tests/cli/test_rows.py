"""The rows of a run that goes on are those before its checkpoint, however the file came here."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lorasa_jax.cli.run_dir import RunDir
from lorasa_jax.cli.saved import read_rows
from lorasa_jax.config import Config, ConfigError

ROWS = [{"seed": seed, "iteration": i, "env_steps": 64 * i} for i in (1, 2, 3) for seed in (0, 1)]
"""Three iterations of two seeds."""


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def written(tmp_path: Path, content: bytes) -> Path:
    (tmp_path / "versions.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_bytes(content)
    return tmp_path


def go_on(directory: Path, iteration: int) -> None:
    """Goes on behind an iteration of both seeds."""
    with closing(RunDir(directory, Config(seeds=2))) as run_dir:
        run_dir.go_on(*run_dir.require_rows(2 * iteration, [iteration] * 2))
        assert run_dir.rows == ROWS[: 2 * iteration]
        run_dir._metrics.write(json.dumps(ROWS[2 * iteration]) + "\n")


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content,
        lambda content: content.replace(b"\n", b"\r\n"),
        lambda content: b"\xef\xbb\xbf" + content,
        lambda content: b"\n" + content.replace(b"\n", b"\n \n"),
        lambda content: content + b'{"seed": 0, "iter',
        lambda content: content + b"nothing\n",
        lambda content: lines(ROWS[:4])[:-1],
    ],
)
def test_rows_before_the_checkpoint_stay_and_others_go(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    directory = written(tmp_path, change(lines(ROWS)))
    go_on(directory, 2)
    assert read_rows(directory / "metrics.jsonl") == ROWS[:5]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lines(ROWS[:3]), "has only 3 of the 4 rows before the checkpoint"),
        (lines(ROWS[:4])[:-3], "has only 3 of the 4 rows before the checkpoint"),
        (lines(ROWS[::2] + ROWS[1::2]), "are not those before the checkpoint, in order"),
        (lines(ROWS[::-1]), "are not those before the checkpoint, in order"),
        (lines(ROWS[:2] + ROWS[4:]), "are not those before the checkpoint, in order"),
        (lines(ROWS[:2] + ROWS[:2]), "are not those before the checkpoint, in order"),
        (lines(ROWS[:2])[:-1] + lines(ROWS[2:]), "line 2 of"),
        (lines(ROWS).decode().encode("utf-16"), "line 1 of"),
        (lines(ROWS[:2]) + b"\xff\n" + lines(ROWS[2:]), "line 3 of"),
        (lines(ROWS[:2]) + b"[1]\n" + lines(ROWS[2:]), "is not a row of measurements"),
    ],
)
def test_rows_that_are_not_those_before_the_checkpoint_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    directory = written(tmp_path, content)
    with pytest.raises(ConfigError) as error:
        go_on(directory, 2)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert (directory / "metrics.jsonl").read_bytes() == content
