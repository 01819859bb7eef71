"""What stops a run from outside: Ctrl-C and the signals of schedulers."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Any, ClassVar

from lorasa_jax.cli.streams import say_now

if TYPE_CHECKING:
    from lorasa_jax.running.state import Report, RunState
    from lorasa_jax.storage.saver import Saver


class Stop:
    """Holds the first signal that ends a command back until it can stop; the next one acts at once.

    Such are Ctrl-C, SIGTERM, SIGHUP (the terminal is gone), and those by which batch systems say that time is up.
    What comes within `TWICE` seconds of the first is the same one: `timeout` signals a command and then its group,
    and a shell hands on a SIGHUP that the terminal has sent.

    Args:
        text: what is said when one comes.

    Attributes:
        signal: the one that came.
    """

    TWICE = 0.5
    DEFAULTS: ClassVar[dict[int, Any]] = {
        signal.SIGINT: signal.default_int_handler,
        **dict.fromkeys((signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2), signal.SIG_DFL),
    }

    def __init__(self, text: str) -> None:
        self.signal, self._text = 0, text
        found = {number: signal.getsignal(number) for number in self.DEFAULTS}
        # What is ignored, as in a job in the background of a script, stays so, and what is not Python's own.
        self._found = {number: handler for number, handler in found.items() if handler not in (signal.SIG_IGN, None)}

    def __enter__(self) -> Stop:
        self._set(dict.fromkeys(self._found, self._note))
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Lets signals act as before."""
        self._set(self._found)

    def _set(self, handlers: dict[int, Any]) -> None:
        for number in self._found:
            signal.signal(number, handlers[number])

    def _note(self, number: int, frame: object) -> None:
        self.signal = number
        self._set(dict.fromkeys(self._found, lambda again, frame: None))
        say_now(f"\n{self._text}; once more: at once")
        time.sleep(self.TWICE)
        self._set(self.DEFAULTS)


STOPPING = "stopping after this iteration and what is being compiled for it"


class Interrupt:
    """The callback that ends a run where a signal came, with a checkpoint.

    It raises: the last evaluation of a run that is stopped in the usual way would take its time.
    """

    def __init__(self, saver: Saver, stop: Stop):
        self.saver, self.stop = saver, stop

    def begin(self, state: RunState) -> None:
        """Ends the run where a signal came."""
        from lorasa_jax.running.devices import anywhere

        if anywhere(bool(self.stop.signal)):
            self.saver.take(state)
            raise KeyboardInterrupt

    def __call__(self, report: Report, state: RunState) -> None:
        """Does the same after an iteration."""
        self.begin(state)
