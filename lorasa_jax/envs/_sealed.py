"""A block out of which nothing comes, for packages that print while they are imported."""

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
    """Lets nothing out of the block: no output, no warning, no change to streams or filters.

    JaxMARL prints while it is imported and, where brax is installed, ends with `sys.stdout` and
    `sys.stderr` set to the interpreter's own streams: notebooks and captured output go silent.
    brax prints which optional packages it misses.
    """
    # absl's log handler keeps the stderr it finds when it is first imported: not the sink below.
    with suppress(ImportError):
        importlib.import_module("absl.logging")
    streams = {name: getattr(sys, name) for name in STREAMS}
    draws = random.getstate()  # packages on the way draw from it
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
