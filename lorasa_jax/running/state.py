"""Records of a run: its state between two iterations, its reports, and its result."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lorasa_jax.config import Config
from lorasa_jax.core.types import Learner, PolicyParams, PyTree, TrainState
from lorasa_jax.learning.switching import Evaluation
from lorasa_jax.learning.trainer import Trainer
from lorasa_jax.running.devices import fetch

SHARED, ADAPTERS = "shared", "adapters"
"""Names of the phases."""


class Best(NamedTuple):
    """The best team of every row in this phase, by the return of its greedy evaluations; every leaf is [K, ...].

    Attributes:
        actor: its parameters.
        inputs: the statistics that standardise its inputs.
        returns: mean return of its evaluation; the smallest float32 before any evaluation.
        iteration: iteration of this evaluation.
    """

    actor: PolicyParams
    inputs: PyTree
    returns: Float[Array, " K"]
    iteration: Int[Array, " K"]

    @classmethod
    def none(cls, train: TrainState) -> Best:
        """Returns the initial record: the current team, without an evaluation."""
        iteration = train.iteration
        returns = jnp.full(iteration.shape, jnp.finfo(jnp.float32).min)  # not -inf, because of JAX_DEBUG_INFS
        return cls(train.learner.actor, train.learner.inputs, returns, iteration)


def keep_best(best: Best, learner: Learner, iteration: Int[Array, ""], returns: Float[Array, ""]) -> Best:
    """Returns the better team of one row: the best so far, or the one that was just evaluated."""
    now = Best(learner.actor, learner.inputs, returns, iteration)
    return jax.tree.map(lambda new, old: jnp.where(returns > best.returns, new, old), now, best)


class RunState(NamedTuple):
    """The complete state of a run between two iterations. Its rows are seeds, or forks.

    Attributes:
        phase: phase of the next iteration, `shared` or `adapters`.
        train: the states of all seeds, [K, ...]. If each seed finds its own switch, seeds may be at different
            iterations. A seed that has switched waits, unchanged, for the others.
        best: the best teams so far in this phase.
        switch_steps: environment step at which each seed began its second phase; None: not yet, or never.
        curve: evaluations of the first phase.
        random_return: return of random play of each seed; empty before the first evaluation.
        evaluation_interval: iterations between two evaluations. It follows from the initial budget,
            and stays the same if the budget is increased.
        compile_seconds: seconds of tracing and waiting for compilation so far.
        train_seconds: seconds of iterations so far, without waiting for compilation.
        inherited: iterations of all rows together that the forks' backbones did, not this run.
        parts: names of the user's functions that replace the library's, by part.
    """

    phase: str
    train: TrainState
    best: Best
    switch_steps: tuple[int | None, ...]
    curve: tuple[Evaluation, ...]
    random_return: tuple[float, ...]
    evaluation_interval: int
    compile_seconds: float
    train_seconds: float
    inherited: int = 0
    parts: dict[str, str] = {}  # noqa: RUF012  (nobody writes to it)

    @property
    def iterations(self) -> np.ndarray:
        """Iterations that each seed has done, [K]."""
        return fetch(self.train.iteration).astype(np.int64)  # the product with steps may exceed 32 bits

    @property
    def rows(self) -> int:
        """Iterations of all seeds together. Each is one row in the record of the run."""
        return int(self.iterations.sum()) - self.inherited


def is_finished(state: RunState, config: Config) -> bool:
    """Returns whether every seed has spent its budget."""
    return bool(state.iterations.min() >= config.iterations)


class Report(NamedTuple):
    """Report of one iteration of all rows (seeds, or forks). Every array is [K].

    Attributes:
        phase: `shared` or `adapters`.
        env_steps: environment steps of each row so far.
        active: rows for which this iteration counts; the other rows wait.
        metrics: metrics of the iteration.
        evaluation: greedy `return`, `win_rate` and `length` of all rows, if an evaluation was due: when the first
            active row has done a multiple of the interval.
    """

    phase: str
    env_steps: np.ndarray
    active: np.ndarray
    metrics: dict[str, np.ndarray]
    evaluation: dict[str, np.ndarray] | None


class Diverged(RuntimeError):
    """A quantity is no longer finite. The message names the quantity, the iteration and the row.

    If the environment returned a value that is not finite, the message names that value instead.

    Attributes:
        quantity: name of the metric.
        value: its value.
        row: the first row (seed, or fork) with this value.
        iteration: iteration of that row, counted from 1.
        phase: `shared` or `adapters`.
        before: the state before that iteration.
        culprit: the value of the environment that is not finite; None: all are finite.
    """

    def __init__(
        self,
        quantity: str,
        value: float,
        row: int,
        name: str,
        env_steps: int,
        iteration: int,
        before: RunState,
        culprit: str | None = None,
    ):
        where = f"in iteration {iteration} ({env_steps:,} steps, phase {before.phase})"
        what = culprit or f"{quantity} became {value}"
        super().__init__(f"{what} for {name}, {where}")
        self.culprit = culprit
        self.quantity, self.value, self.row, self.iteration = quantity, value, row, iteration
        self.phase, self.before = before.phase, before


class Result(NamedTuple):
    """The result of a run.

    Attributes:
        trainer: trainer of the last phase.
        states: states of all seeds at the end, [K, ...].
        switch_steps: environment step at which each seed began its second phase; None for
            schemes with one phase.
        random_return: return of random play of each seed, [K].
        final: evaluations at the end. `greedy` and `sampled` evaluate the last team on the same start states. `best` is
            greedy play of the best team of the last phase on other start states (the absolute metric of Colas et al.,
            2018).
        compile_seconds: seconds of tracing and waiting for compilation.
        train_seconds: seconds since the first iteration, with evaluations, without waiting for compilation.
        stop_steps: environment step at which a callback stopped each seed; None: the budget was spent.
    """

    trainer: Trainer
    states: TrainState
    switch_steps: list[int | None]
    random_return: np.ndarray
    final: dict[str, dict[str, np.ndarray]]
    compile_seconds: float
    train_seconds: float
    stop_steps: list[int] | None = None
