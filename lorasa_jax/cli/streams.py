"""Output of commands. Errors of output streams never end a command."""

from __future__ import annotations

import io
import os
import select
import sys
from contextlib import suppress
from typing import Any, TextIO

from lorasa_jax.surroundings import can_move_cursor


class _Lossy(io.FileIO):
    """A file whose writes never fail; data that it cannot take is lost."""

    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:  # a non-blocking file: wait until it can take more
                select.select([], [self], [])
        except OSError:
            return len(data)
        return written


def open_streams() -> None:
    """Reopens stdout and stderr so that printing never fails.

    It tolerates a closed pipe, a full disk, a closed stream, and characters that the encoding lacks, which are escaped.
    Output is line-buffered.
    """
    # Otherwise the next files would get the descriptors of closed streams, and output would go there.
    while (unused := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(unused, True)
    for number, name in ((1, "stdout"), (2, "stderr")):
        found = getattr(sys, name)
        file = _Lossy(unused if found is None else number, "w", closefd=False)
        encoding = found.encoding if found else None
        stream = io.TextIOWrapper(io.BufferedWriter(file), encoding, "backslashreplace", line_buffering=True)
        setattr(sys, name, stream)


def can_redraw(stream: TextIO) -> bool:
    """Returns whether a stream is a terminal that can redraw a line."""
    return stream.isatty() and can_move_cursor()


def complain(text: str) -> None:
    """Prints one line to stderr."""
    print(text, file=sys.stderr)


def say_now(text: str) -> None:
    """Writes one line to stderr from within a signal handler, which may have interrupted a print."""
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())
