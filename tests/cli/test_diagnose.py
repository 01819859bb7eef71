"""A saved run is diagnosed: numbers, figures, and a table that says the same."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from saving import save_run

from lorasa_jax.analysis import diagnosis
from lorasa_jax.cli import diagnose

OFF = ~np.eye(4, dtype=bool)


def test_a_run_whose_answer_is_known(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Agent i's adapter alone asks for action i, with odds of e^2 : 1 : 1 : 1."""
    diagnose.main([str(saved), "--out", str(tmp_path / "d"), "--episodes", "8", "--seed", "4"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"own_number, seed 4, 8 greedy episodes, from {saved / 'checkpoints' / '10'}"
    found = json.loads((tmp_path / "d" / "diagnosis.json").read_text())
    assert found["config"]["task"] == "own_number" and found["row"] == {"seed": 4}
    assert found["versions"]["command"] and found["agents"][3] == "agent 3"
    distance = (np.exp(2) - 1) / (np.exp(2) + 3)
    for name in ("distance", "distance_with_ids"):
        np.testing.assert_allclose(np.array(found[name])[OFF], distance, atol=1e-5)
        assert not np.diagonal(found[name]).any()
    assert any(line.startswith("  in the same place    0.615") for line in lines)
    np.testing.assert_allclose(np.array(found["swap"]["return"]["mean"]), np.where(OFF, -0.25, 0), atol=1e-6)
    np.testing.assert_allclose(found["swap"]["win_rate"]["high"], np.where(OFF, -1.0, 0))
    assert found["played"]["return"]["mean"] == 1
    assert found["dropped"]["return"]["mean"][-1] == -0.75
    np.testing.assert_allclose(np.diagonal(found["gradient"]), 1)
    team, own = found["noise"]["all agents"], found["noise"]["one agent"]
    assert list(found["noise"]) == ["all agents", "one agent"] and own["variance"] > 2 * team["variance"] > 0
    assert any(line.startswith("  one agent") and "at least" in line for line in lines)
    assert found["layers"]["head"]["rank"] == pytest.approx([1] * 4)
    assert found["left_out"] == []
    assert found["said"] == lines[:-1]
    for name in ("distance", "gradient", "swap", "layers", "sparsity"):
        assert (tmp_path / "d" / f"{name}.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--episodes", "0"), "episodes must be positive, got 0"),
        (("--rollouts", "7"), "rollouts must be 8 or more, as an episode may take 1; got 7"),
        (("--seed", "5"), "the seeds of this run are 3 to 4, got 5"),
        (("--row", "1", "--seed", "3"), "row 1 of this run has seed 4, not 3; name one of the two"),
        (("--row", "2"), "the rows of this run are 0 to 1, got 2"),
        (("--out", __file__), "--out names a folder"),
        (("--draw", "-1"), "draw must be 0 or more, got -1"),
    ],
)
def test_what_cannot_be_diagnosed_is_one_line(
    saved: Path, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], said: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        diagnose.main([str(saved), *argv])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (saved / "diagnosis").exists()


def test_a_diagnosis_that_cannot_be_kept_is_printed(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: Path, text: str, **how: Any) -> int:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(diagnosis, "diagnose", lambda *args, **how: {})
    monkeypatch.setattr(diagnose, "report", lambda *args: ["what was found"])
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(SystemExit) as stop:
        diagnose.main([str(saved), "--out", str(tmp_path)])
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert said.out.endswith("what was found\n")
    assert f"{tmp_path / 'diagnosis.json'}: {os.strerror(errno.EDQUOT)}" in said.err
    assert list(tmp_path.iterdir()) == []


def test_every_checkpoint_and_row_that_is_asked_for_has_a_folder() -> None:
    def folder(path: str, **how: int) -> str:
        return diagnose.folder_of(diagnose.DiagnoseConfig(Path(path), **how), 3)

    assert folder("RUN") == "diagnosis"
    assert folder("RUN", seed=7) == folder("RUN", row=3) == "diagnosis-row3"
    assert folder("RUN/checkpoints/12") == folder("RUN/backbones/12") == "diagnosis-12"
    assert folder("RUN/backbones/12", row=3) == "diagnosis-12-row3"


@pytest.mark.slow
def test_a_run_with_standardised_inputs(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", "--standardise", "True")
    diagnose.main([str(run), "--episodes", "4", "--sampled", "True"])
    assert json.loads((run / "diagnosis" / "diagnosis.json").read_text())["settings"]["sampled"]
