"""Writes files atomically, and turns errors of the file system into messages."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

REMEDIES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some of your quota there",
    errno.EROFS: "name a place that can be written to",
    errno.EIO: "see that its disk is in order",
}
"""Advice for known errors."""


def reason(error: OSError) -> str:
    """Returns an error as a message: the file, the system's message, and advice if there is any."""
    where = [os.fsdecode(error.filename)] if isinstance(error.filename, str | bytes) else []
    said = error.strerror or str(error) or type(error).__name__
    remedy = [REMEDIES[error.errno]] if error.errno in REMEDIES else []
    return "; ".join([": ".join([*where, said]), *remedy])


@contextmanager
def naming(path: Path, *aliases: Path) -> Iterator[None]:
    """Adds `path` to errors of the block that name no file, or a file at or below an alias.

    Errors of writing to an open file, such as a full disk, name no file.

    Args:
        path: the user's name of the file.
        aliases: other names of it.
    """
    try:
        yield
    except OSError as error:
        found = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
        if found is not None and not any(found.is_relative_to(alias) for alias in aliases):
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a temporary name under which the block writes a file or a folder, which then replaces `path`.

    If the block fails, the temporary file is removed and `path` does not change.

    Raises:
        OSError: the file could not be written; the error names `path`.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with naming(path, unfinished):
            yield unfinished
            unfinished.replace(path)
    finally:
        with suppress(OSError):
            shutil.rmtree(unfinished) if unfinished.is_dir() else unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text atomically in UTF-8, for any locale.

    Raises:
        OSError: the file could not be written; the error names `path`.
    """
    with whole(path) as file:
        file.write_text(text, encoding="utf-8")
