"""When a run is written."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from checkpoints import keep_run, numbered

from lorasa_jax.running.state import ADAPTERS, SHARED
from lorasa_jax.storage.saver import Saver


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return keep_run(tmp_path_factory.mktemp("run") / "checkpoints")


@pytest.mark.parametrize("every", [0.0, 1e9])
def test_states_are_taken_in_time_at_the_switch_and_at_the_end(
    kept: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: float
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(Saver, "take", lambda self, state: taken.append(state.rows))
    saver = Saver(tmp_path, kept.config, every, pytest.fail)
    last = kept.config.iterations
    for iteration, phase in ((0, SHARED), (1, SHARED), (2, ADAPTERS), (3, ADAPTERS), (last, ADAPTERS)):
        saver(numbered(kept.states[phase], iteration))
    saver.close()
    assert taken == ([1, 2, 3, last] if every == 0 else [2, last])


def test_a_full_disk_is_said_and_the_run_goes_on(
    kept: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import orbax.checkpoint as ocp

    said: list[str] = []
    saver = Saver(tmp_path, kept.config, 0.0, said.append)

    def take(iteration: int) -> None:
        saver.take(numbered(kept.states[SHARED], iteration))
        saver.wait()

    def full(*args: Any, **kwargs: Any) -> None:
        raise ValueError("RESOURCE_EXHAUSTED: Error writing: [OS error 28: No space left on device]")

    take(1)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        take(2)
    with monkeypatch.context() as patch:
        patch.setattr(ocp.Checkpointer, "save", full)
        take(3)
    assert len(said) == 2
    for line in said:
        assert os.strerror(errno.ENOSPC) in line
        assert line.endswith(f"the last one is still {tmp_path / '1'}; the run goes on")
    take(4)
    saver.close()
    assert len(said) == 2
    assert [path.name for path in tmp_path.iterdir() if path.name not in "14"] == []
