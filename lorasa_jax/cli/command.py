"""A command as a process: its exit, and its name on the command line."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from lorasa_jax.cli.streams import complain, open_streams
from lorasa_jax.config import ConfigError
from lorasa_jax.files import reason


@contextmanager
def polite() -> Iterator[None]:
    """Turns errors of settings and files into one line, and ends the program."""
    try:
        yield
    except ConfigError as error:
        fail(error)
    except OSError as error:
        fail(reason(error))
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None


@contextmanager
def optional() -> Iterator[None]:
    """Reports, but tolerates, errors of writing an optional file such as a picture."""
    try:
        yield
    except OSError as error:
        complain(f"note: not written: {reason(error)}")


def leave(main: Callable[[], None]) -> None:
    """Runs a command, with streams whose output never fails.

    If it was stopped, the process ends at once and does not wait for compilations.
    """
    open_streams()
    try:
        main()
    except SystemExit as stop:
        alone = "jax" not in sys.modules or not sys.modules["jax"].distributed.is_initialized()
        if alone and isinstance(stop.code, int) and stop.code > 128:  # by a signal
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(stop.code)
        raise


def python() -> str:
    """Returns a name for this Python in a command: `python` only if that starts this interpreter."""
    ran, called = Path(sys.executable), shutil.which("python")
    with suppress(OSError, ValueError):  # it is elsewhere, or the working directory is gone
        inside = ran.relative_to(Path.cwd())
        return str(inside) if len(inside.parts) > 1 else f"./{inside}"
    # A virtual environment's Python is a link, and its target without the folder is another environment.
    same = called is not None and Path(called).parent.resolve() == ran.parent.resolve() and ran.samefile(called)
    return "python" if same else str(ran)


def invocation() -> list[str]:
    """Returns the words that start this command: a script and its Python, or `lorasa` and the command's name."""
    program, _, command = Path(sys.argv[0]).name.partition(" ")
    if program != "lorasa" or not command:
        return [python(), sys.argv[0]]
    called = shutil.which(program)
    ran = Path(sys.argv[0]).with_name(program)
    return [program if called is not None and Path(called) == ran else str(ran), command]


def fail(error: Exception | str) -> NoReturn:
    """Prints one line to stderr and exits with status 2."""
    print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
    raise SystemExit(2)
