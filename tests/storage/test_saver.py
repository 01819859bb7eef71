"""When a run is written."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from checkpoints import keep_run, numbered

from lorasa_jax.running.state import ADAPTERS, SHARED, Report
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
    saver, flag = Saver(tmp_path, kept.config, every, pytest.fail), np.array([True])
    report = Report(SHARED, flag.astype(int), flag, {}, None)
    saver.begin(numbered(kept.states[SHARED], 0))
    for iteration, phase in ((1, SHARED), (2, ADAPTERS), (3, ADAPTERS)):
        saver(report, numbered(kept.states[phase], iteration))
    assert taken == ([1, 2, 3] if every == 0 else [2])
    saver.end(numbered(kept.states[ADAPTERS], 4))
    saver.close()
    assert taken[-1] == 4


TENSORSTORE = "RESOURCE_EXHAUSTED: Error opening driver: {} [os_error_code='{}']"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.EMFILE])
@pytest.mark.parametrize("kind", [OSError, ValueError, "look ahead"])
def test_what_the_file_system_says_is_said_and_the_run_goes_on(
    kept: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: Any
) -> None:
    import orbax.checkpoint as ocp

    said: list[str] = []
    saver = Saver(tmp_path, kept.config, 0.0, said.append)

    def take(iteration: int) -> None:
        saver.take(numbered(kept.states[SHARED], iteration))
        saver.wait()

    def fail(*args: Any, **kwargs: Any) -> None:
        text = os.strerror(code)
        raise OSError(code, text) if kind is OSError else ValueError(TENSORSTORE.format(text, code))

    take(1)
    with monkeypatch.context() as patch:
        if kind == "look ahead":
            patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000, total=10**9))
            code = errno.ENOSPC
        else:
            patch.setattr(ocp.Checkpointer, "save", fail)
        take(2)
    (line,) = said
    assert line.startswith(f"a checkpoint could not be written: {tmp_path / '2'}: {os.strerror(code)}; ")
    assert line.endswith(f"the last one is still {tmp_path / '1'}")
    assert saver.lost is not None and saver.lost.errno == code
    take(4)
    saver.close()
    assert len(said) == 1 and saver.lost is None
    assert [path.name for path in tmp_path.iterdir() if path.name not in "14"] == []


def test_what_orbax_makes_of_an_error_is_said_and_the_run_goes_on(
    kept: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import orbax.checkpoint as ocp

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("lost\nits mind")

    said: list[str] = []
    monkeypatch.setattr(ocp.Checkpointer, "save", fail)
    saver = Saver(tmp_path, kept.config, 0.0, said.append)
    saver.take(numbered(kept.states[SHARED], 2))
    saver.close()
    assert said == [f"a checkpoint could not be written: {tmp_path / '2'}: lost its mind; there is none yet"]


def test_a_disk_that_does_not_know_its_size_is_written_to(
    kept: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0, total=0))
    saver = Saver(tmp_path, kept.config, 0.0, pytest.fail)
    saver.take(numbered(kept.states[SHARED], 2))
    saver.close()
    assert saver.newest() == tmp_path / "2"


def test_a_disk_that_cannot_be_read_back_gives_no_checkpoint(
    kept: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its digests would be those of nothing."""

    def fail(path: Path) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    said: list[str] = []
    saver = Saver(tmp_path, kept.config, 0.0, said.append)
    monkeypatch.setattr(Path, "read_bytes", fail)
    saver.take(numbered(kept.states[SHARED], 2))
    saver.close()
    assert saver.newest() is None and len(said) == 1
    assert f"{tmp_path / '2'}: {os.strerror(errno.EIO)}" in said[0]


def test_a_full_disk_is_said_in_one_line(
    kept: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Orbax logs traces of every error besides, which it raises as well."""
    import orbax.checkpoint as ocp
    from absl import logging

    def fail(self: ocp.Checkpointer, path: Path, args: Any) -> None:
        exec(compile("log('Traceback')", ocp.__file__, "exec"), {"log": logging.error})
        logging.error("of another package")
        raise ValueError

    said: list[str] = []
    monkeypatch.setattr(ocp.Checkpointer, "save", fail)
    saver = Saver(tmp_path, kept.config, 0.0, said.append)
    saver.take(numbered(kept.states[SHARED], 2))
    saver.close()
    assert len(said) == 1
    assert [record.getMessage() for record in caplog.records] == ["of another package"]
