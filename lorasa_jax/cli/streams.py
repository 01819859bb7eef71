"""What commands tell their user. No stream can fail a command: a run is worth more than its output."""

from __future__ import annotations

import io
import os
import select
import sys
from contextlib import suppress
from typing import Any, TextIO

from lorasa_jax.surroundings import can_move_cursor


class _Lossy(io.FileIO):
    """A file to which writing always works: what it cannot take is lost."""

    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:  # it does not wait until it can take more
                select.select([], [self], [])
        except OSError:
            return len(data)
        return written


def open_streams() -> None:
    """Opens stdout and stderr anew, so that printing never fails.

    The reader of a pipe may end, a disk may be full, a stream may have been closed, and an encoding may lack a
    character, which is escaped. Every line is written when it ends.
    """
    # The numbers of closed streams would be given to the next files, and what is printed would go there.
    while (unused := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(unused, True)
    for number, name in ((1, "stdout"), (2, "stderr")):
        found = getattr(sys, name)
        file = _Lossy(unused if found is None else number, "w", closefd=False)
        encoding = found.encoding if found else None
        stream = io.TextIOWrapper(io.BufferedWriter(file), encoding, "backslashreplace", line_buffering=True)
        setattr(sys, name, stream)


def can_redraw(stream: TextIO) -> bool:
    """Says whether a stream is a terminal on which a line can be drawn anew."""
    return stream.isatty() and can_move_cursor()


def complain(text: str) -> None:
    """Prints one line to stderr."""
    print(text, file=sys.stderr)


def say_now(text: str) -> None:
    """Writes one line to stderr from within a signal handler, which may have interrupted a print."""
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())
