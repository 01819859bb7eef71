"""Whatever stdout and stderr are, a command goes on."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lorasa_jax.cli import streams

ROOT = Path(__file__).parents[2]
SCRIPTS = [path for folder in ("experiments", "research") for path in (ROOT / folder).glob("*.py")]
COMMANDS = sorted(path for path in SCRIPTS if "__main__" in path.read_text())
TALKS = """
from lorasa_jax.cli.streams import open_streams
open_streams()
import contextlib, os, sys
with open(sys.argv[1], "w") as file:
    for _ in range(10_000):
        print("█ \\udcff")
        print("█ \\udcff", file=sys.stderr)
    for number in (1, 2):
        with contextlib.suppress(OSError):
            os.write(number, b"as libraries do")
    file.write("done")
"""


@pytest.mark.parametrize(
    "how",
    [
        "{} | head -n 1", "{} 2>&1 | head -n 1", "{} >&-", "{} 2>&-", "{} <&- >&- 2>&-", "{} > /dev/full 2>&1",
        "{} > /dev/null 2< /dev/null", "export PYTHONIOENCODING=latin-1; {} > /dev/null",
    ],
)  # fmt: skip
def test_a_program_goes_on_and_its_files_hold_nothing_else(tmp_path: Path, how: str) -> None:
    """The numbers of closed streams are not given to files."""
    (tmp_path / "talk.py").write_text(TALKS)
    out = tmp_path / "out"
    command = f"{{ '{sys.executable}' talk.py '{out}'; echo $? > status; }}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(["sh", "-c", how.format(command)], cwd=tmp_path, env=environment, capture_output=True)
    assert ((tmp_path / "status").read_text(), out.read_text()) == ("0\n", "done")


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_no_command_fails_because_of_what_it_prints(path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, str(path), "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_pipe_that_takes_nothing_now_gets_all_of_it_later() -> None:
    """A pipe that another program has set not to block."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    found: list[bytes] = []

    def read() -> None:
        with os.fdopen(reading, "rb") as file:
            found.append(file.read())

    reader = threading.Timer(0.2, read)
    reader.start()
    with io.BufferedWriter(streams._Lossy(writing, "w")) as stream:
        stream.write(b"x" * 10**6)
    reader.join()
    assert found == [b"x" * 10**6]


@pytest.mark.parametrize(
    ("is_terminal", "term", "expected"),
    [(True, "xterm", True), (True, "dumb", False), (True, None, False), (False, "xterm", False)],
)
def test_a_line_is_drawn_anew_only_where_that_is_possible(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool, term: str | None, expected: bool
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: is_terminal)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("TERM", raising=False)
    if term is not None:
        monkeypatch.setenv("TERM", term)
    assert streams.can_redraw(stream) is expected


def test_a_signal_handler_may_speak_where_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(number: int, data: bytes) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(os, "write", broken)
    streams.say_now("stopping")
