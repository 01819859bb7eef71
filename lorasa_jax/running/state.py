"""A run between two iterations, what it tells on its way, and what it leaves."""

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
        inputs: the statistics by which what it sees is standardised.
        returns: what its evaluation returned; the least number: there was none.
        iteration: when that was.
    """

    actor: PolicyParams
    inputs: PyTree
    returns: Float[Array, " K"]
    iteration: Int[Array, " K"]

    @classmethod
    def none(cls, train: TrainState) -> Best:
        """Returns the beginning: the team of now, before any evaluation."""
        iteration = train.iteration
        returns = jnp.full(iteration.shape, jnp.finfo(jnp.float32).min)  # and no infinity, for JAX_DEBUG_INFS
        return cls(train.learner.actor, train.learner.inputs, returns, iteration)


def keep_best(best: Best, learner: Learner, iteration: Int[Array, ""], returns: Float[Array, ""]) -> Best:
    """Returns the better team of one row: the best so far, or the one that was just evaluated."""
    now = Best(learner.actor, learner.inputs, returns, iteration)
    return jax.tree.map(lambda new, old: jnp.where(returns > best.returns, new, old), now, best)


class RunState(NamedTuple):
    """A whole run between two iterations: all that going on with it takes. Its rows are seeds, or forks.

    Attributes:
        phase: of the next iteration, `shared` or `adapters`.
        train: the states of all seeds, [K, ...]. Seeds stand at iterations of their own where
            each finds its own switch: one that has switched waits, unchanged, for the others.
        best: the best teams so far in this phase.
        switch_steps: environment step at which each seed froze its trunk; None: not yet, or never.
        curve: evaluations of the first phase.
        random_return: return of random play of each seed; empty before the first evaluation.
        evaluation_interval: iterations between two evaluations. It follows from the budget a run
            began with; one that is given more goes on in the same intervals.
        compile_seconds: spent tracing and waiting for compilations so far.
        train_seconds: spent on iterations so far, waiting for compilations not.
        inherited: iterations of all rows together that a fork's backbones did, and not this run.
        parts: names of the functions that were handed in instead of the library's own, by what they stand for.
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
        return fetch(self.train.iteration).astype(np.int64)  # times steps, they leave 32 bits behind

    @property
    def rows(self) -> int:
        """Iterations of all seeds together: one row each in a record of the run."""
        return int(self.iterations.sum()) - self.inherited


def is_finished(state: RunState, config: Config) -> bool:
    """Says whether every seed has spent its budget."""
    return bool(state.iterations.min() >= config.iterations)


class Report(NamedTuple):
    """One iteration of all rows: seeds, or forks; every array is [K].

    Attributes:
        phase: `shared` or `adapters`.
        env_steps: environment steps each row has done.
        active: rows for which this iteration counts; the others wait for the rest.
        metrics: what the iteration measured.
        evaluation: greedy `return`, `win_rate` and `length`, where one was due: of all rows, when the first one
            that goes on has done a multiple of the interval.
    """

    phase: str
    env_steps: np.ndarray
    active: np.ndarray
    metrics: dict[str, np.ndarray]
    evaluation: dict[str, np.ndarray] | None


class Diverged(RuntimeError):
    """A quantity is no longer finite; the message says which, where it began, and in which row.

    Where the environment showed what is not finite, the message names that instead.

    Attributes:
        quantity: its name among the metrics.
        value: what it became.
        row: the first row (seed, or fork) in which it did.
        iteration: of that row, counted from 1.
        phase: `shared` or `adapters`.
        before: the run before that iteration.
        culprit: which entry of what the environment showed is not finite; None: all are.
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
    """What a run leaves.

    Attributes:
        trainer: of the last phase.
        states: of all seeds at the end, [K, ...].
        switch_steps: environment step at which each seed froze its trunk; None for
            schemes with one phase.
        random_return: return of random play of each seed, [K].
        final: evaluations at the end: `greedy` and `sampled`, of the last team on the same start states, and `best`,
            greedy play of the best team of the last phase on others (the absolute metric of Colas et al., 2018).
        compile_seconds: spent tracing and waiting for compilations.
        train_seconds: from the first iteration on, evaluations included, waiting for compilations not.
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
