"""Running a training run: seeds side by side, evaluations, the switch, and reports on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from lorasa_jax.config import Config
from lorasa_jax.envs.base import Env
from lorasa_jax.switching import should_switch
from lorasa_jax.system import is_two_phase
from lorasa_jax.trainer import Trainer, graft, make_trainer
from lorasa_jax.types import PyTree, TrainState

SHARED, ADAPTERS = "shared", "adapters"
"""Names of the phases."""

MUST_BE_FINITE = ("policy_loss", "value_loss", "entropy", "kl", "actor_grad_norm", "critic_grad_norm")


class Diverged(RuntimeError):
    """A quantity is no longer finite; the message says which, where it began, and for which seed."""


class Report(NamedTuple):
    """One iteration of all seeds; every array is [K].

    Attributes:
        phase: `shared` or `adapters`.
        env_steps: environment steps each seed has done.
        active: seeds for which this iteration counts; the others wait for the rest.
        metrics: what the iteration measured.
        evaluation: greedy `return`, `win_rate` and `length`, where one was due.
    """

    phase: str
    env_steps: np.ndarray
    active: np.ndarray
    metrics: dict[str, np.ndarray]
    evaluation: dict[str, np.ndarray] | None


class Listener(Protocol):
    """What a run tells while it goes on."""

    def status(self, text: str) -> None:
        """Takes what happens now, in a few words."""

    def report(self, report: Report) -> None:
        """Takes one iteration."""


class Silent:
    """A listener that does nothing."""

    def status(self, text: str) -> None:
        """Does nothing."""

    def report(self, report: Report) -> None:
        """Does nothing."""


class Result(NamedTuple):
    """What a run leaves.

    Attributes:
        trainer: of the last phase.
        states: of all seeds at the end, [K, ...].
        switch_steps: environment step at which each seed froze its trunk; None for
            schemes with one phase.
        random_return: return of random play of each seed, [K].
        final: `greedy` and `sampled` evaluations at the end.
        compile_seconds: spent compiling.
        train_seconds: spent on everything else, evaluations included.
    """

    trainer: Trainer
    states: TrainState
    switch_steps: list[int | None]
    random_return: np.ndarray
    final: dict[str, dict[str, np.ndarray]]
    compile_seconds: float
    train_seconds: float


def over_seeds(function: Callable, n_seeds: int) -> Callable:
    """Returns the function mapped over a leading seed axis; a single seed pays nothing for it."""
    if n_seeds > 1:
        return jax.vmap(function)

    def single(*args: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: leaf[None], function(*jax.tree.map(lambda leaf: leaf[0], args)))

    return single


class _Phase:
    """The compiled programs of one phase, for all seeds."""

    def __init__(self, trainer: Trainer, states: TrainState, rows_differ: bool, listener: Listener, name: str):
        config = trainer.system.config
        self.trainer, self.name, self.config = trainer, name, config
        n_seeds = states.iteration.shape[0]

        def step(state: TrainState) -> tuple[TrainState, dict]:
            new, metrics = trainer.step(state)
            if rows_differ:
                # A seed that has spent its budget waits for the others, unchanged.
                done = state.iteration >= config.iterations
                new = jax.tree.map(lambda old, new: jnp.where(done, old, new), state, new)
            return new, metrics

        began = time.perf_counter()
        listener.status(f"compiling {name}")
        self.step = jax.jit(over_seeds(step, n_seeds), donate_argnums=0).lower(states).compile()
        greedy = jnp.ones(n_seeds, bool)
        self._evaluate = jax.jit(over_seeds(trainer.evaluate, n_seeds)).lower(states, greedy).compile()
        self.compile_seconds = time.perf_counter() - began

    def evaluate(self, states: TrainState, greedy: bool = True) -> dict[str, np.ndarray]:
        """Returns the evaluation of every seed."""
        return _fetch(self._evaluate(states, jnp.full(states.iteration.shape, greedy)))

    def run(self, states: TrainState, until: int) -> Iterator[tuple[TrainState, Report]]:
        """Steps all seeds until the first has done `until` iterations in all, then while any has budget left."""
        config = self.config
        before = np.asarray(states.iteration)
        while before.min() < until:
            states, metrics = self.step(states)
            active = before < config.iterations
            after = np.minimum(before + 1, config.iterations)
            due = np.any(active & (after % config.evaluation_interval == 0))
            evaluation = self.evaluate(states) if due else None
            report = Report(self.name, after * config.steps_per_iteration, active, _fetch(metrics), evaluation)
            _check_finite(report, config)
            yield states, report
            before = after


def _fetch(tree: PyTree) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in tree.items()}


def _check_finite(report: Report, config: Config) -> None:
    for name in MUST_BE_FINITE:
        bad = report.active & ~np.isfinite(report.metrics[name])
        if bad.any():
            row = int(np.argmax(bad))
            step = int(report.env_steps[row])
            raise Diverged(
                f"{name} became {report.metrics[name][row]} for seed {config.seed + row}, "
                f"in iteration {step // config.steps_per_iteration} ({step:,} steps, phase {report.phase})"
            )


def run(config: Config, env: Env, listener: Listener | None = None) -> Result:
    """Trains all seeds of a configuration and evaluates them.

    A two-phase scheme first trains its trunks. Each seed switches at `switch_step`, or by
    `auto` at a step of its own: its state is kept there, and when all seeds have switched
    they go on in one program.

    Raises:
        ConfigError: the configuration does not fit the environment.
        Diverged: a loss or gradient is no longer finite.
    """
    listener, began = listener or Silent(), time.perf_counter()
    n_seeds = config.seeds
    keys = jnp.stack([jax.random.key(config.seed + k) for k in range(n_seeds)])
    trainer = make_trainer(config, env)
    listener.status("starting")
    states = jax.jit(over_seeds(trainer.init, n_seeds))(keys)
    random_return = np.asarray(jax.jit(over_seeds(trainer.evaluate_random, n_seeds))(keys)["return"])
    compile_seconds = time.perf_counter() - began
    two_phase = is_two_phase(config, env)
    switch_steps: list[int | None] = [None] * n_seeds
    # A single iteration leaves nothing to wait for: it belongs to the adapters.
    switch = 0 if two_phase and config.iterations == 1 else config.switch_iteration if two_phase else config.iterations

    phase = None
    if switch != 0:
        phase = _Phase(trainer, states, False, listener, SHARED)
        compile_seconds += phase.compile_seconds
        if two_phase and switch is None:
            states, switch_steps = _train_until_each_switches(phase, states, random_return, listener)
        else:
            for states, report in phase.run(states, switch):
                listener.report(report)
    if two_phase:
        if switch is not None:
            switch_steps = [switch * config.steps_per_iteration] * n_seeds
        trainer = make_trainer(config, env, adapting=True)
        states = jax.jit(over_seeds(lambda state: graft(trainer, state), n_seeds))(states)
        phase = _Phase(trainer, states, len(set(switch_steps)) > 1, listener, ADAPTERS)
        compile_seconds += phase.compile_seconds
        for states, report in phase.run(states, config.iterations):
            listener.report(report)

    listener.status("final evaluation")
    final = {"greedy": phase.evaluate(states, greedy=True), "sampled": phase.evaluate(states, greedy=False)}
    train_seconds = time.perf_counter() - began - compile_seconds
    return Result(trainer, states, switch_steps, random_return, final, compile_seconds, train_seconds)


def _train_until_each_switches(
    phase: _Phase, states: TrainState, random_return: np.ndarray, listener: Listener
) -> tuple[TrainState, list[int | None]]:
    """Trains the trunks; returns each seed's state where its own curve said to switch, and the steps."""
    config = phase.config
    n_seeds = len(random_return)
    kept: list[TrainState | None] = [None] * n_seeds
    switch_steps: list[int | None] = [None] * n_seeds
    steps: list[int] = []
    curves: list[list[float]] = [[] for _ in range(n_seeds)]
    # The last iteration is left to the adapters, however short the run.
    for states, report in phase.run(states, config.iterations - 1):
        waiting = np.array([state is None for state in kept])
        listener.report(report._replace(active=waiting))
        now = int(report.env_steps[0])
        last_chance = now >= (config.iterations - 1) * config.steps_per_iteration
        if report.evaluation is not None:
            steps.append(now)
        for k in np.flatnonzero(waiting):
            if report.evaluation is not None:
                curves[k].append(float(report.evaluation["return"][k]))
            due = report.evaluation is not None and should_switch(
                steps, curves[k], float(random_return[k]), config.total_steps
            )
            if due or last_chance:
                kept[k] = jax.tree.map(lambda leaf, k=k: leaf[k].copy(), states)
                switch_steps[k] = now
        if all(state is not None for state in kept):
            break
    return jax.tree.map(lambda *rows: jnp.stack(rows), *kept), switch_steps
