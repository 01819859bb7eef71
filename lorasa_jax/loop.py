"""Running a training run: seeds side by side, evaluations, the switch, and reports on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from lorasa_jax.config import Config
from lorasa_jax.envs.base import Env
from lorasa_jax.grouping import with_groups
from lorasa_jax.switching import should_switch
from lorasa_jax.system import is_two_phase
from lorasa_jax.trainer import Trainer, graft, make_trainer
from lorasa_jax.types import Metrics, PyTree, RolloutState, TrainState, Trajectory, Weights

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


@runtime_checkable
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
        compile_seconds: spent tracing and waiting for compilations.
        train_seconds: from the first iteration on, evaluations included, waiting for compilations not.
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


class _Programs:
    """The compiled programs of a run. What is not needed yet is compiled while the run goes on.

    Attributes:
        waited: seconds the run stood still for tracing and compilation.
    """

    def __init__(self, n_seeds: int, listener: Listener):
        self._n_seeds, self._listener = n_seeds, listener
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="compile")
        self._jobs: dict[str, Future] = {}
        self.waited = 0.0

    def submit(self, name: str, function: Callable, *shapes: PyTree, donate: tuple[int, ...] = ()) -> PyTree:
        """Starts compiling a function of one seed for all seeds; returns the shapes of what it gives."""
        began = time.perf_counter()
        traced = jax.jit(over_seeds(function, self._n_seeds), donate_argnums=donate).trace(*shapes)
        self.waited += time.perf_counter() - began
        self._jobs[name] = self._pool.submit(lambda: traced.lower().compile())
        return traced.out_info

    def __getitem__(self, name: str) -> Callable:
        """Returns a compiled program, when it is ready."""
        job = self._jobs[name]
        if not job.done():
            self._listener.status(f"compiling {name}")
            began = time.perf_counter()
            wait([job])
            self.waited += time.perf_counter() - began
        return job.result()

    def close(self) -> None:
        """Gives up what has not begun to compile."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class _Runner:
    """A run in progress: its programs, and the loop over iterations."""

    def __init__(self, config: Config, env: Env, listener: Listener):
        self.config, self.env, self.listener = config, env, listener
        self.two_phase = is_two_phase(config, env)
        self.trainer = make_trainer(config, env)
        self.programs = _Programs(config.seeds, listener)
        self.keys = jnp.stack([jax.random.key(config.seed + k) for k in range(config.seeds)])
        self._compile()

    def _compile(self) -> None:
        first, programs = self.trainer, self.programs
        states = programs.submit("init", first.init, self.keys)
        weights = jax.eval_shape(over_seeds(first.weights, self.config.seeds), states)
        played = (weights, states.learner.critic, states.rollout, states.key, states.iteration)
        rollout, trajectory, _ = programs.submit("collect", first.collect, *played)
        programs.submit("shared weights", first.weights, states)
        if self.config.switch_iteration != 0 or not self.two_phase:
            programs.submit("shared update", self._update(first), states, rollout, trajectory, donate=(0,))
        greedy = jax.ShapeDtypeStruct((self.config.seeds,), bool)
        programs.submit("evaluate", first.evaluate, weights, states.key, states.iteration, greedy)
        if self.two_phase:
            second = make_trainer(self.config, self.env, adapting=True)
            states = programs.submit("graft", lambda state: graft(second, state), states)
            programs.submit("adapters weights", second.weights, states)
            programs.submit("adapters update", self._update(second), states, rollout, trajectory, donate=(0,))

    def _update(self, trainer: Trainer) -> Callable:
        iterations = self.config.iterations

        def update(state: TrainState, rollout: RolloutState, trajectory: Trajectory) -> tuple[TrainState, Metrics]:
            new, metrics = trainer.update(state, rollout, trajectory)
            if self.config.seeds > 1 and self.config.switch_iteration is None:
                # Seeds that switched at different steps: one that has spent its budget waits, unchanged.
                done = state.iteration >= iterations
                new = jax.tree.map(lambda old, new: jnp.where(done, old, new), state, new)
            return new, metrics

        return update

    def evaluate(self, phase: str, states: TrainState, greedy: bool = True) -> dict[str, np.ndarray]:
        """Returns the evaluation of every seed."""
        weights = self.programs[f"{phase} weights"](states)
        return self._evaluate(weights, states, greedy)

    def random_play(self, states: TrainState) -> dict[str, np.ndarray]:
        """Returns the evaluation of random play: with every weight zero all logits are equal, and all means zero."""
        weights = jax.tree.map(jnp.zeros_like, self.programs["shared weights"](states))
        return self._evaluate(weights, states, greedy=False)

    def _evaluate(self, weights: Weights, states: TrainState, greedy: bool) -> dict[str, np.ndarray]:
        flags = jnp.full(self.config.seeds, greedy)
        return _fetch(self.programs["evaluate"](weights, states.key, states.iteration, flags))

    def advance(self, phase: str, states: TrainState, until: int) -> TrainState:
        """Returns the states after iterations of one phase, each of them reported."""
        for later, report in self.iterate(phase, states, until):
            self.listener.report(report)
            states = later
        return states

    def iterate(self, phase: str, states: TrainState, until: int) -> Iterator[tuple[TrainState, Report]]:
        """Runs iterations of one phase until every seed has done `until` in all."""
        config, programs = self.config, self.programs
        before = np.asarray(states.iteration)
        while before.min() < until:
            weights = programs[f"{phase} weights"](states)
            rollout, trajectory, episodes = programs["collect"](
                weights, states.learner.critic, states.rollout, states.key, states.iteration
            )
            states, metrics = programs[f"{phase} update"](states, rollout, trajectory)
            active = before < config.iterations
            after = np.minimum(before + 1, config.iterations)
            due = np.any(active & (after % config.evaluation_interval == 0))
            evaluation = self.evaluate(phase, states) if due else None
            measured = _fetch({**episodes, **metrics})
            report = Report(phase, after * config.steps_per_iteration, active, measured, evaluation)
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
    they go on in one program. Groups that the scheme needs and that are not given are found first, for all seeds.

    Raises:
        ConfigError: the configuration does not fit the environment.
        Diverged: a loss or gradient is no longer finite.
    """
    listener = listener or Silent()
    runner = _Runner(with_groups(config, env, listener.status), env, listener)
    try:
        return _run(runner)
    finally:
        runner.programs.close()


def _run(runner: _Runner) -> Result:
    config, listener, programs = runner.config, runner.listener, runner.programs
    states = runner.programs["init"](runner.keys)
    random_return = runner.random_play(states)["return"]
    began, waited = time.perf_counter(), programs.waited
    switch_steps: list[int | None] = [None] * config.seeds
    trainer, phase, switch = runner.trainer, SHARED, config.switch_iteration
    if not runner.two_phase:
        switch = config.iterations
    elif config.iterations == 1:
        switch = 0  # a single iteration leaves nothing to wait for

    if switch is None:
        states, switch_steps = _train_until_each_switches(runner, states, random_return)
    else:
        states = runner.advance(SHARED, states, switch)
    if runner.two_phase:
        if switch is not None:
            switch_steps = [switch * config.steps_per_iteration] * config.seeds
        trainer, phase = make_trainer(config, runner.env, adapting=True), ADAPTERS
        states = runner.programs["graft"](states)
        states = runner.advance(ADAPTERS, states, config.iterations)

    listener.status("final evaluation")
    # On the same start states, so that the two differ by the choice of actions.
    final = {name: runner.evaluate(phase, states, greedy=name == "greedy") for name in ("greedy", "sampled")}
    train_seconds = time.perf_counter() - began - (programs.waited - waited)
    return Result(trainer, states, switch_steps, random_return, final, programs.waited, train_seconds)


def _train_until_each_switches(
    runner: _Runner, states: TrainState, random_return: np.ndarray
) -> tuple[TrainState, list[int | None]]:
    """Trains the trunks; returns each seed's state where its own curve said to switch, and the steps."""
    config = runner.config
    kept: list[TrainState | None] = [None] * config.seeds
    switch_steps: list[int | None] = [None] * config.seeds
    steps: list[int] = []
    curves: list[list[float]] = [[] for _ in range(config.seeds)]
    # The last iteration is left to the adapters, however short the run.
    for now, report in runner.iterate(SHARED, states, config.iterations - 1):
        waiting = np.array([state is None for state in kept])
        runner.listener.report(report._replace(active=waiting))
        step, evaluation = int(report.env_steps[0]), report.evaluation
        last = step >= (config.iterations - 1) * config.steps_per_iteration
        if evaluation is not None:
            steps.append(step)
            for curve, value in zip(curves, evaluation["return"], strict=True):
                curve.append(float(value))
        for k in np.flatnonzero(waiting).tolist():
            ready = evaluation is not None and should_switch(
                steps, curves[k], float(random_return[k]), config.total_steps
            )
            if ready or last:
                kept[k] = jax.tree.map(lambda leaf, k=k: leaf[k].copy(), now)
                switch_steps[k] = step
        if all(state is not None for state in kept):
            break
    return jax.tree.map(lambda *rows: jnp.stack(rows), *kept), switch_steps
