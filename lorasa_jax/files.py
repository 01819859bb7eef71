"""Files that are written whole or not at all, and what a file system says where it cannot take them."""

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
"""What to do about an error, where that is known."""


def reason(error: OSError) -> str:
    """Returns an error in words: the file, what the system said, and what to do about it where that is known."""
    where = [os.fsdecode(error.filename)] if isinstance(error.filename, str | bytes) else []
    said = error.strerror or str(error) or type(error).__name__
    remedy = [REMEDIES[error.errno]] if error.errno in REMEDIES else []
    return "; ".join([": ".join([*where, said]), *remedy])


@contextmanager
def naming(path: Path, *aliases: Path) -> Iterator[None]:
    """Puts `path` into an error of the block that names no file, or one at or below an alias.

    An error from writing to an open file, such as a full disk's, names none.

    Args:
        path: the name that the user knows.
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
    """Gives a name under which the block writes a file or a folder, which then takes the place of `path`.

    If the block fails, nothing of it stays and what was at `path` is as before.

    Raises:
        OSError: it could not be written; the error names `path`.
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
    """Writes a text, whole or not at all, in UTF-8 whatever the locale.

    Raises:
        OSError: it could not be written; the error names `path`.
    """
    with whole(path) as file:
        file.write_text(text, encoding="utf-8")
