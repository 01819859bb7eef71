"""Callbacks: what looks on while a run goes on, keeps what it wants of it, and may stop it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lorasa_jax.config import require
from lorasa_jax.running.devices import fetch
from lorasa_jax.running.state import ADAPTERS, SHARED, Report, RunState


class Callback:
    """The protocol of callbacks: `callback(report, state) -> stop?`, called after every iteration.

    A plain function is one. An object may have the other methods as well; it need not be a subclass, which only
    saves writing those that do nothing.

    Returning True stops the run before its next iteration. All other callbacks are still called. A run that was
    stopped is evaluated and returns its `Result` as at its end; an exception instead ends it at once.
    """

    def begin(self, state: RunState) -> bool | None:
        """Takes the state that the run begins with, or goes on from; returning True stops it there."""

    def __call__(self, report: Report, state: RunState) -> bool | None:
        """Takes what an iteration measured, and the run after it; returning True stops the run."""

    def status(self, text: str) -> None:
        """Takes what happens now, in a few words."""

    def end(self, state: RunState) -> None:
        """Takes the last state, before its evaluation: the budget is spent, or a callback stopped the run."""


AnyCallback = Callback | Callable[[Report, RunState], bool | None]
"""A function, or an object with the methods of `Callback`."""


class Callbacks(Callback):
    """Several callbacks as one, called in their order.

    Raises:
        ConfigError: they are not a sequence of what can be called.
    """

    def __init__(self, callbacks: Any):
        several = isinstance(callbacks, Sequence) and not isinstance(callbacks, str)
        require(
            several and all(map(callable, callbacks)),
            f"callbacks must be a list of functions of (report, state), got {' '.join(repr(callbacks).split())[:80]}",
        )
        self._callbacks = tuple(callbacks)

    def _tell(self, method: str, *args: object) -> list[bool]:
        methods = [getattr(callback, method, None) for callback in self._callbacks]
        return [_is_true(method(*args)) for method in methods if method is not None]

    def begin(self, state: RunState) -> bool:
        """Hands the state on; says whether a callback wants to stop."""
        return any(self._tell("begin", state))

    def __call__(self, report: Report, state: RunState) -> bool:
        """Hands report and state on; says whether a callback wants to stop."""
        return any([_is_true(callback(report, state)) for callback in self._callbacks])

    def status(self, text: str) -> None:
        """Hands the text on."""
        self._tell("status", text)

    def end(self, state: RunState) -> None:
        """Hands the state on."""
        self._tell("end", state)


def _is_true(answer: object) -> bool:
    """Only True stops: a function that happens to return something else was not asked to."""
    return isinstance(answer, bool | np.bool_) and bool(answer)


def early_stopping(
    value: float | None = None,
    patience: int | None = None,
    *,
    measure: str = "return",
    phase: str | None = None,
) -> Callable[[Report, RunState], bool]:
    """Returns a callback that stops a run once it is good enough, or no longer gets better.

    It looks at the greedy evaluations of the rows that still train, and stops when each of them has a reason to. It
    remembers nothing but what is in the state, so a run that goes on from a checkpoint stops at the same step.

    Args:
        value: stops when `measure` has reached it.
        patience: stops when the greedy return has not been better than before for so many evaluations of the phase.
        measure: what `value` is compared with, `return` or `win_rate`.
        phase: looks at this phase alone, `shared` or `adapters`; None: at both. A scheme with two phases may pause
            before its switch, so `patience` is usually meant for `adapters`.

    Raises:
        ConfigError: neither is given, or one of them makes no sense.
    """
    require(value is not None or patience is not None, "early_stopping needs a value, or patience")
    require(patience is None or patience > 0, f"patience must be positive, got {patience}")
    require(measure in ("return", "win_rate"), f"measure must be return or win_rate, got {measure!r}")
    require(phase in (None, SHARED, ADAPTERS), f"phase must be shared, adapters or None, got {phase!r}")

    def stop(report: Report, state: RunState) -> bool:
        if report.evaluation is None or phase not in (None, report.phase):
            return False
        done = np.zeros_like(report.active)
        if value is not None:
            done |= report.evaluation[measure] >= value
        if patience is not None and report.phase == state.phase:  # at the switch a new phase begins
            since = state.iterations - fetch(state.best.iteration)
            done |= since >= patience * state.evaluation_interval
        return bool(done[report.active].all())

    return stop
