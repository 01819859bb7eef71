"""A context without side effects, for packages that print during their import."""

from __future__ import annotations

import importlib
import io
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

STREAMS = ("stdout", "stderr", "__stdout__", "__stderr__")


@contextmanager
def sealed() -> Iterator[None]:
    """Hides output and warnings of the block, and restores streams and filters.

    JaxMARL prints during its import. With brax installed, it also resets `sys.stdout` and
    `sys.stderr` to the interpreter's streams, which silences notebooks and captured output.
    brax prints which optional packages are missing.
    """
    # absl's log handler stores the stderr of its first import, which must not be the sink below.
    with suppress(ImportError):
        importlib.import_module("absl.logging")
    streams = {name: getattr(sys, name) for name in STREAMS}
    draws = random.getstate()  # imported packages draw random numbers
    sink = io.StringIO()
    try:
        for name in STREAMS:
            setattr(sys, name, sink)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, stream in streams.items():
            setattr(sys, name, stream)
        random.setstate(draws)
