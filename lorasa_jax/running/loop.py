"""The loop of a training run: parallel seeds, evaluations, the switch, and reports.

`running/state.py` defines the records that the loop exchanges with its callers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from lorasa_jax.config import Config, ConfigError
from lorasa_jax.core.own_network import with_networks
from lorasa_jax.core.types import Metrics, RolloutState, TrainState, Trajectory, Weights
from lorasa_jax.envs.base import Env
from lorasa_jax.envs.checks import describe_faults, first_not_finite, require_fits
from lorasa_jax.learning.clustering import with_groups
from lorasa_jax.learning.pacing import next_pace, pool
from lorasa_jax.learning.rollout import mark_missing
from lorasa_jax.learning.switching import Evaluation, should_switch
from lorasa_jax.learning.system import Parts, is_two_phase, names_of, require_same_parts
from lorasa_jax.learning.trainer import Trainer, attach_adapters, make_trainer
from lorasa_jax.running.callbacks import AnyCallback, Callback, Callbacks
from lorasa_jax.running.devices import Shard, anywhere, choose_layout, fetch
from lorasa_jax.running.programs import Programs, over_seeds
from lorasa_jax.running.state import (
    ADAPTERS,
    SHARED,
    Best,
    Diverged,
    Report,
    Result,
    RunState,
    is_finished,
    keep_best,
)

MUST_BE_FINITE = ("policy_loss", "value_loss", "entropy", "kl", "actor_grad_norm", "critic_grad_norm")


class _Clock:
    """Seconds of training, including earlier parts of the run, without waiting for compilation."""

    def __init__(self, programs: Programs, earlier: float):
        self._programs, self._earlier = programs, earlier
        self.start()

    def start(self) -> None:
        """Starts counting."""
        self._began, self._waited = time.perf_counter(), self._programs.waited

    def seconds(self) -> float:
        """Returns the seconds so far."""
        return self._earlier + (time.perf_counter() - self._began) - (self._programs.waited - self._waited)


class _Runner:
    """The programs of a run, and its steps from one `RunState` to the next."""

    def __init__(
        self,
        config: Config,
        env: Env,
        callback: Callback,
        start: RunState | None = None,
        names: Sequence[str] | None = None,
        shard: Shard = "auto",
        parts: Parts | None = None,
    ):
        self.config, self.spec, self.callback = config, env.spec, callback
        self.names = names or [f"seed {config.seed + k}" for k in range(config.seeds)]
        self.layout = choose_layout(shard, config.seeds, config, callback.status)
        self.two_phase = is_two_phase(config, env)
        self.parts = parts or Parts()
        self.trainers = {SHARED: make_trainer(config, env, **self.parts)}
        if self.two_phase:
            self.trainers[ADAPTERS] = make_trainer(config, env, adapting=True, **self.parts)
        self.keys = self.layout.place(jnp.stack([jax.random.key(config.seed + k) for k in range(config.seeds)]))
        waited = start.compile_seconds if start else 0.0
        self.programs = Programs(config.seeds, callback.status, waited, self.layout)
        self.clock = _Clock(self.programs, start.train_seconds if start else 0.0)
        self._compile(start)

    def _compile(self, start: RunState | None) -> None:
        """Starts compiling the programs of the next iteration; the others are compiled later."""
        config, programs = self.config, self.programs
        phase = start.phase if start else SHARED
        trainer = self.trainers[phase]
        states = (
            jax.eval_shape(lambda train: train, start.train)
            if start
            else programs.submit("init", trainer.init, self.keys, once=True)
        )
        flags = jax.ShapeDtypeStruct((config.seeds,), bool)
        weights = jax.eval_shape(over_seeds(trainer.weights, config.seeds), states)
        played = (weights, states.learner.critic, states.rollout, states.key, states.iteration)
        rollout, trajectory, _ = programs.submit("collect", trainer.collect, *played)
        shapes = (rollout, trajectory, flags)
        programs.submit(f"{phase} weights", trainer.weights, states)
        if phase == ADAPTERS or not self.two_phase or config.switch_iteration != 0:
            programs.submit(f"{phase} update", self._update(trainer), states, *shapes)

        def rest() -> None:
            self._submit_best(phase, states)
            programs.submit("evaluate", trainer.evaluate, weights, states.key, states.iteration, flags)
            if any(each.system.actor.sharing.paced for each in self.trainers.values()):
                programs.submit("pool", partial(pool, sharing=trainer.system.acting.sharing), weights)
            if self.two_phase and phase == SHARED:
                second = self.trainers[ADAPTERS]
                attached = programs.submit(
                    "attach adapters", lambda state: attach_adapters(second, state), states, once=True
                )
                self._submit_best(ADAPTERS, attached)
                programs.submit("adapters weights", second.weights, attached)
                programs.submit("adapters update", self._update(second), attached, *shapes)

        programs.later(rest)

    def _submit_best(self, phase: str, states: TrainState) -> None:
        best = Best.none(states)
        self.programs.submit(
            f"{phase} best", keep_best, best, states.learner, states.iteration, best.returns, once=True
        )

    def _update(self, trainer: Trainer) -> Callable:
        each_its_own = self.config.seeds > 1 and self.two_phase and self.config.switch_iteration is None

        def update(
            state: TrainState, rollout: RolloutState, trajectory: Trajectory, active: Bool[Array, ""]
        ) -> tuple[TrainState, Metrics]:
            new, metrics = trainer.update(state, rollout, trajectory)
            if each_its_own:
                new = jax.tree.map(lambda old, new: jnp.where(active, new, old), state, new)
            return new, metrics

        return update

    def begin(self) -> RunState:
        """Returns the state before the first iteration."""
        train = self.programs["init"](self.keys)
        self.clock.start()
        state = RunState(
            phase=SHARED,
            train=train,
            best=self._no_best(train),
            switch_steps=(None,) * self.config.seeds,
            curve=(),
            random_return=(),
            evaluation_interval=self.config.evaluation_interval,
            compile_seconds=self.programs.waited,
            train_seconds=0.0,
            parts=names_of(self.parts),
        )
        return self._switch(state)

    def advance(self, state: RunState) -> tuple[RunState, Report]:
        """Returns the state after one more iteration, and its report."""
        config, programs, phase, train = self.config, self.programs, state.phase, state.train
        active = self._active(state)
        after = state.iterations + active
        weights = programs[f"{phase} weights"](train)
        rollout, trajectory, episodes = programs["collect"](
            weights, train.learner.critic, train.rollout, train.key, train.iteration
        )
        flags = self.layout.place(active)
        train, metrics = programs[f"{phase} update"](train, rollout, trajectory, flags)
        measured = mark_missing(fetch({**episodes, **metrics}))
        env_steps = after * config.steps_per_iteration
        self._check_finite(measured, active, env_steps, state, trajectory)
        programs.idle()
        due = after[np.argmax(active)] % state.evaluation_interval == 0
        evaluation = self.evaluate(phase, train) if due else None
        if due:
            state = self._with_chance(state)
        report = Report(phase, env_steps, active, measured, evaluation)
        curve, best = state.curve, state.best
        if evaluation is not None:
            best = self._better(phase, best, train, evaluation)
        if evaluation is not None and phase == SHARED:
            returns, win_rates = (tuple(evaluation[name].tolist()) for name in ("return", "win_rate"))
            curve = (*curve, Evaluation(int(report.env_steps.max()), returns, win_rates))
        tested = active & (after % state.evaluation_interval == 0)  # each row at its own evaluations
        if self.trainers[phase].system.actor.sharing.paced and tested.any():
            train = self._with_pace(phase, train, tested)
        state = self._switch(state._replace(train=train, best=best, curve=curve))
        state = state._replace(compile_seconds=programs.waited, train_seconds=self.clock.seconds())
        return state, report

    def _active(self, state: RunState) -> np.ndarray:
        """Seeds of the next iteration: in phase 1 those that have not switched, in phase 2 those with budget left."""
        if state.phase == SHARED:
            return np.array([step is None for step in state.switch_steps])
        return state.iterations < self.config.iterations

    def _switch(self, state: RunState) -> RunState:
        """Returns the state with the switches that are due; in phase 2 once every seed has switched."""
        if not self.two_phase or state.phase == ADAPTERS:
            return state
        now = int(state.iterations.max())
        step = now * self.config.steps_per_iteration
        switch_steps = tuple(
            step if before is None and self._ready(state, k, now) else before
            for k, before in enumerate(state.switch_steps)
        )
        state = state._replace(switch_steps=switch_steps)
        if None in switch_steps:
            return state
        train = self.programs["attach adapters"](state.train)
        return state._replace(phase=ADAPTERS, train=train, best=self._no_best(train))

    def _ready(self, state: RunState, k: int, now: int) -> bool:
        """Returns whether seed k switches after `now` iterations."""
        config = self.config
        if config.switch_iteration is not None:
            return now >= config.switch_iteration
        if now >= config.iterations - 1:
            return True  # the last iteration always belongs to the adapters
        if not state.curve or state.curve[-1].step != now * config.steps_per_iteration:
            return False  # no new evaluation
        return should_switch(state.curve, k, state.random_return[k], config.total_steps, self.spec.winnable)

    def _check_finite(
        self,
        measured: dict[str, np.ndarray],
        active: np.ndarray,
        env_steps: np.ndarray,
        before: RunState,
        trajectory: Trajectory,
    ) -> None:
        for name in MUST_BE_FINITE:
            bad = active & ~np.isfinite(measured[name])
            if bad.any():
                row = int(np.argmax(bad))
                step, value = int(env_steps[row]), float(measured[name][row])
                iteration = step // self.config.steps_per_iteration
                shown = fetch((trajectory.obs, trajectory.state, trajectory.reward))
                culprit = first_not_finite(self.spec, *(array[row] for array in shown))
                raise Diverged(name, value, row, self.names[row], step, iteration, before, culprit)

    def evaluate(self, phase: str, train: TrainState, greedy: bool = True) -> dict[str, np.ndarray]:
        """Returns the evaluation of every seed."""
        played = self._play(self.programs[f"{phase} weights"](train), train, greedy)
        return {name: played[name] for name in ("return", "win_rate", "length")}

    def _with_pace(self, phase: str, train: TrainState, tested: np.ndarray) -> TrainState:
        """Returns the state with the pace of the tested rows after sampled play with own and with pooled weights."""
        weights = self.programs[f"{phase} weights"](train)
        own, pooled = (self._play(w, train, greedy=False)["returns"] for w in (weights, self.programs["pool"](weights)))
        pace = fetch(train.pace)
        return train._replace(pace=self.layout.place(np.where(tested, next_pace(pace, own, pooled), pace)))

    def _no_best(self, train: TrainState) -> Best:
        return self.layout.place(Best.none(train))

    def _better(self, phase: str, best: Best, train: TrainState, evaluation: dict[str, np.ndarray]) -> Best:
        returns = self.layout.place(evaluation["return"].astype(np.float32))
        return self.programs[f"{phase} best"](best, train.learner, train.iteration, returns)

    def _with_chance(self, state: RunState) -> RunState:
        """Returns the state with the return of random play, which is measured once."""
        if state.random_return:
            return state
        # With every weight zero all logits are equal, and all means zero.
        weights = jax.tree.map(jnp.zeros_like, self.programs[f"{state.phase} weights"](state.train))
        train = state.train._replace(iteration=jnp.zeros_like(state.train.iteration))
        return state._replace(random_return=tuple(self._play(weights, train, greedy=False)["return"].tolist()))

    def _play(self, weights: Weights, train: TrainState, greedy: bool) -> dict[str, np.ndarray]:
        flags = self.layout.place(np.full(self.config.seeds, greedy))
        played = fetch(self.programs["evaluate"](weights, train.key, train.iteration, flags))
        fault = describe_faults(self.spec, played.pop("faults"))
        if fault is not None:
            raise ConfigError(f"{fault}; fix the environment")
        return played

    def finish(self, state: RunState) -> Result:
        """Evaluates a run whose budget is spent, or which was stopped."""
        self.callback.status("final evaluation")
        state = self._with_chance(state)
        # With the same start states, so the two differ only in the choice of actions.
        final = {
            name: self.evaluate(state.phase, state.train, greedy=name == "greedy") for name in ("greedy", "sampled")
        }
        best = self._better(state.phase, state.best, state.train, final["greedy"])
        # Its evaluations selected it, so it plays other episodes, those of an iteration that never comes.
        learner = state.train.learner._replace(actor=best.actor, inputs=best.inputs)
        later = state.train._replace(learner=learner, iteration=state.train.iteration + 1)
        final["best"] = self.evaluate(state.phase, later)
        return Result(
            trainer=self.trainers[state.phase],
            states=state.train,
            switch_steps=list(state.switch_steps),
            random_return=np.array(state.random_return),
            final=final,
            compile_seconds=self.programs.waited,
            train_seconds=self.clock.seconds(),
            stop_steps=None if is_finished(state, self.config) else self._steps(state),
        )

    def _steps(self, state: RunState) -> list[int]:
        return (state.iterations * self.config.steps_per_iteration).tolist()


def run(
    config: Config,
    env: Env,
    callbacks: Sequence[AnyCallback] = (),
    *,
    start: RunState | None = None,
    names: Sequence[str] | None = None,
    shard: Shard = "auto",
    actor: Any = None,
    critic: Any = None,
    **parts: Unpack[Parts],
) -> Result:
    """Trains all seeds of a configuration and evaluates them.

    A two-phase scheme first trains its trunks. Each seed switches at `switch_step`, or with `auto` at its own
    step. It then waits until all seeds have switched, and they continue in one program. If the scheme needs groups
    and they are not given, they are found first, for all seeds.

    Args:
        config: the configuration.
        env: its environment.
        callbacks: functions of (report, state), or objects with more methods (`Callback`). They are called in this
            order after every iteration, and may stop the run.
        start: a state of the same run to continue from, or several forks (`lorasa_jax.fork`).
        names: names of the rows, by default `seed 0`, `seed 1`, and so on.
        shard: the axis to spread over devices, `rows` (seeds) or `envs`; `off`: none; `auto`: the one that keeps more
            devices busy.
        actor: a Flax module for the agents' networks (`lorasa_jax.core.own_network`), or a function
            (n_in, n_out, config) that returns one; None: the network of the configuration.
        critic: the same for the critic.
        parts: a user's `policy_loss` and `optimizer` (`lorasa_jax.learning.system.Parts`).

    Raises:
        ConfigError: the configuration does not fit the environment, or the environment violates its spec. Values are
            checked in evaluations.
        Diverged: a loss or gradient is no longer finite.
    """
    callback = Callbacks(callbacks)
    config = with_networks(config, actor, critic)
    if config.env == "own":
        require_fits(env)
    if start is not None:
        require_same_parts(start.parts, parts, "the run that goes on")
    runner = _Runner(with_groups(config, env, callback.status), env, callback, start, names, shard, parts)
    try:
        return _run(runner, start)
    finally:
        runner.programs.close()


def _run(runner: _Runner, start: RunState | None) -> Result:
    if start is None:
        state = runner.begin()
    else:
        state = start._replace(train=runner.layout.place(start.train), best=runner.layout.place(start.best))
        runner.clock.start()
    stop = runner.callback.begin(state)
    # A callback may depend on its process, for example on its clock, but all processes must stop together.
    while not (is_finished(state, runner.config) or anywhere(bool(stop))):
        state, report = runner.advance(state)
        stop = runner.callback(report, state)
    runner.callback.end(state)
    return runner.finish(state)
