"""Callbacks observe a run, may keep its states, and may stop it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lorasa_jax.config import ConfigError, require
from lorasa_jax.running.devices import fetch
from lorasa_jax.running.state import ADAPTERS, SHARED, Report, RunState


class Callback:
    """The protocol of callbacks: `callback(report, state) -> stop?`, called after every iteration.

    A plain function is a callback. An object may have the other methods, too. It need not be a subclass; a subclass
    inherits empty methods.

    Returning True stops the run before its next iteration. All other callbacks are still called. A stopped run is
    evaluated and returns its `Result` as at its end. An exception ends the run at once.
    """

    def begin(self, state: RunState) -> bool | None:
        """Receives the first state of a new or resumed run; returning True stops the run there."""

    def __call__(self, report: Report, state: RunState) -> bool | None:
        """Receives the report of an iteration, and the state after it; returning True stops the run."""

    def status(self, text: str) -> None:
        """Receives a short progress message."""

    def end(self, state: RunState) -> None:
        """Receives the last state before the final evaluation: the budget is spent, or a callback stopped the run."""


AnyCallback = Callback | Callable[[Report, RunState], bool | None]
"""A function, or an object with the methods of `Callback`."""


class Callbacks(Callback):
    """Several callbacks as one, called in order.

    Raises:
        ConfigError: the argument is not a sequence of callables, or one of them does not take (report, state).
    """

    def __init__(self, callbacks: Any):
        several = isinstance(callbacks, Sequence) and not isinstance(callbacks, str)
        require(
            several and all(map(callable, callbacks)),
            f"callbacks must be a list of functions of (report, state), got {' '.join(repr(callbacks).split())[:80]}",
        )
        for callback in callbacks:
            _require_two_arguments(callback)
        self._callbacks = tuple(callbacks)

    def _tell(self, method: str, *args: object) -> list[bool]:
        methods = [getattr(callback, method, None) for callback in self._callbacks]
        return [_is_true(method(*args)) for method in methods if method is not None]

    def begin(self, state: RunState) -> bool:
        """Passes the state on; returns whether a callback stops the run."""
        return any(self._tell("begin", state))

    def __call__(self, report: Report, state: RunState) -> bool:
        """Passes report and state on; returns whether a callback stops the run."""
        return any([_is_true(callback(report, state)) for callback in self._callbacks])

    def status(self, text: str) -> None:
        """Passes the text on."""
        self._tell("status", text)

    def end(self, state: RunState) -> None:
        """Passes the state on."""
        self._tell("end", state)


def _require_two_arguments(callback: Callable) -> None:
    """Raises `ConfigError` if Python knows that a callback cannot be called with a report and a state."""
    try:
        signature = inspect.signature(callback, follow_wrapped=False)
    except ValueError:
        return
    try:
        signature.bind(None, None)
    except TypeError:
        name = getattr(callback, "__name__", type(callback).__name__)
        raise ConfigError(f"a callback is called with (report, state), but {name} takes {signature}") from None


def _is_true(answer: object) -> bool:
    """Only True stops a run. Other return values have no effect."""
    return isinstance(answer, bool | np.bool_) and bool(answer)


def early_stopping(
    value: float | None = None,
    patience: int | None = None,
    *,
    measure: str = "return",
    phase: str | None = None,
) -> Callable[[Report, RunState], bool]:
    """Returns a callback that stops a run once it is good enough, or no longer improves.

    It uses the greedy evaluations of the active rows, and stops when each of them meets a condition. It has no state of
    its own, so a resumed run stops at the same step.

    Args:
        value: stops when `measure` reaches this value.
        patience: stops when the greedy return has not improved for this number of evaluations of the phase.
        measure: the measure compared with `value`, `return` or `win_rate`.
        phase: applies to this phase only, `shared` or `adapters`; None: to both. The return of a two-phase scheme may
            pause before its switch, so `patience` is usually for `adapters`.

    Raises:
        ConfigError: neither value nor patience is given, or an argument is invalid.
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
        if patience is not None and report.phase == state.phase:  # not at the switch, where a new phase begins
            since = state.iterations - fetch(state.best.iteration)
            done |= since >= patience * state.evaluation_interval
        return bool(done[report.active].all())

    return stop
