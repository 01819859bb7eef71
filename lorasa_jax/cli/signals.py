"""Stops a run on Ctrl-C and on signals of schedulers."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Any, ClassVar

from lorasa_jax.cli.streams import say_now

if TYPE_CHECKING:
    from lorasa_jax.running.state import Report, RunState
    from lorasa_jax.storage.saver import Saver


class Stop:
    """Delays the first stop signal until the command can stop; a second signal acts at once.

    Stop signals are Ctrl-C, SIGTERM, SIGHUP (the terminal was closed), and the signals of batch systems at the end of
    the time limit. A signal within `TWICE` seconds of the first counts as the same one: `timeout` signals a command and
    then its group, and a shell passes on a SIGHUP of the terminal.

    Args:
        text: the message at the first signal.

    Attributes:
        signal: the received signal; 0: none.
    """

    TWICE = 0.5
    DEFAULTS: ClassVar[dict[int, Any]] = {
        signal.SIGINT: signal.default_int_handler,
        **dict.fromkeys((signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2), signal.SIG_DFL),
    }

    def __init__(self, text: str) -> None:
        self.signal, self._text = 0, text
        found = {number: signal.getsignal(number) for number in self.DEFAULTS}
        # Ignored signals, as in a background job of a script, stay ignored. Handlers outside Python stay, too.
        self._found = {number: handler for number, handler in found.items() if handler not in (signal.SIG_IGN, None)}

    def __enter__(self) -> Stop:
        self._set(dict.fromkeys(self._found, self._note))
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Restores the previous handlers."""
        self._set(self._found)

    def _set(self, handlers: dict[int, Any]) -> None:
        for number in self._found:
            signal.signal(number, handlers[number])

    def _note(self, number: int, frame: object) -> None:
        self.signal = number
        self._set(dict.fromkeys(self._found, lambda again, frame: None))
        say_now(f"\n{self._text}; press Ctrl-C again to stop at once")
        time.sleep(self.TWICE)
        self._set(self.DEFAULTS)


STOPPING = "stopping after the current iteration and any pending compilation"


class Interrupt:
    """The callback that ends a run after a signal, with a checkpoint.

    It raises an exception, because the final evaluation of a normal stop would take too long.
    """

    def __init__(self, saver: Saver, stop: Stop):
        self.saver, self.stop = saver, stop

    def begin(self, state: RunState) -> None:
        """Ends the run if a signal was received."""
        from lorasa_jax.running.devices import anywhere

        if anywhere(bool(self.stop.signal)):
            self.saver.take(state)
            raise KeyboardInterrupt

    def __call__(self, report: Report, state: RunState) -> None:
        """Does the same after an iteration."""
        self.begin(state)
