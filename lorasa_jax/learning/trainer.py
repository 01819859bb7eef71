"""One training iteration, and the switch from the first phase to the second, as pure functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray

from lorasa_jax.config import Config, ConfigError
from lorasa_jax.core.types import Learner, Metrics, PolicyParams, Rates, RolloutState, TrainState, Trajectory, Weights
from lorasa_jax.envs.base import Env
from lorasa_jax.learning.pacing import first_pace, paced_factor
from lorasa_jax.learning.rollout import collect, evaluate, initial_state
from lorasa_jax.learning.system import Parts, System, init_optimizer, is_two_phase, make_system, trained_stacks
from lorasa_jax.learning.update import run_schedule
from lorasa_jax.sharing.schemes import count, under

# Purposes of a run's key; most of them occur once per iteration.
_INIT, _COLLECT, _UPDATE, _ATTACH, _EVALUATE, EPISODE, GROUPING, REPLAY = range(8)


class Trainer(NamedTuple):
    """The functions of one phase of training. All are pure, and may be jitted and vmapped over seeds.

    Attributes:
        system: the parts.
        init: `init(key) -> TrainState`.
        weights: `weights(state) -> Weights` for acting.
        collect: `collect(weights, critic, rollout, key, iteration) -> (rollout, trajectory, metrics)`.
        update: `update(state, rollout, trajectory) -> (state, metrics)`.
        step: `step(state) -> (state, metrics)`, one iteration: the three functions above in sequence.
        evaluate: `evaluate(weights, key, iteration, greedy) -> metrics` over whole episodes,
            with keys that training never uses.
    """

    system: System
    init: Callable[[PRNGKeyArray], TrainState]
    weights: Callable[[TrainState], Weights]
    collect: Callable[..., tuple[RolloutState, Trajectory, Metrics]]
    update: Callable[[TrainState, RolloutState, Trajectory], tuple[TrainState, Metrics]]
    step: Callable[[TrainState], tuple[TrainState, Metrics]]
    evaluate: Callable[..., Metrics]


def make_trainer(config: Config, env: Env, *, adapting: bool = False, **parts: Unpack[Parts]) -> Trainer:
    """Returns the trainer of a phase, which trains the trunks, or with `adapting` the adapters (and unfrozen trunks).

    `collect` and `evaluate` are the same in both phases of a scheme. `parts` are a user's `policy_loss` and
    `optimizer` (`lorasa_jax.learning.system.Parts`).
    """
    system = make_system(config, env, adapting=adapting, **parts)

    def init(key: PRNGKeyArray) -> TrainState:
        actor_key, critic_key, env_key = jax.random.split(jax.random.fold_in(key, _INIT), 3)
        critic = system.critic.init(critic_key)
        learner = Learner(
            actor=system.actor.init(actor_key),
            critic=critic,
            actor_opt={},
            critic_opt=system.optimizer.init(critic.shared),
            value_norm=system.value_norm.init(),
            inputs=system.inputs.init(),
        )
        return TrainState(
            learner=init_optimizer(system, learner),
            rollout=initial_state(system, env_key),
            key=key,
            iteration=jnp.zeros((), int),
            lr=jnp.asarray(config.ppo.lr, float),
            pace=first_pace(system.actor.sharing),
        )

    def weights(state: TrainState) -> Weights:
        return Weights(system.weights(state.learner.actor), state.learner.inputs)

    def collect_(
        weights: Weights, critic: PolicyParams, rollout: RolloutState, key: PRNGKeyArray, iteration: Array
    ) -> tuple[RolloutState, Trajectory, Metrics]:
        return collect(system, weights, critic, rollout, _key(key, _COLLECT, iteration))

    def update(state: TrainState, rollout: RolloutState, trajectory: Trajectory) -> tuple[TrainState, Metrics]:
        scale = 1.0 - state.iteration / config.iterations if config.ppo.anneal_lr else jnp.ones(())
        rates = Rates(state.lr * scale, config.ppo.critic_lr * scale, state.pace)
        key = _key(state.key, _UPDATE, state.iteration)
        learner, metrics = run_schedule(system, state.learner, trajectory, rates, key)
        if "shared" in system.train:  # a frozen trunk keeps its input statistics
            learner = learner._replace(inputs=system.inputs.update(learner.inputs, trajectory.inputs))
        state = state._replace(learner=learner, rollout=rollout, iteration=state.iteration + 1)
        return state, {**metrics, "lr": rates.actor, **_factors(system, rates)}

    def step(state: TrainState) -> tuple[TrainState, Metrics]:
        rollout, trajectory, episodes = collect_(
            weights(state), state.learner.critic, state.rollout, state.key, state.iteration
        )
        state, metrics = update(state, rollout, trajectory)
        return state, {**episodes, **metrics}

    def evaluate_(weights: Weights, key: PRNGKeyArray, iteration: Array, greedy: Bool[Array, ""] | bool) -> Metrics:
        return evaluate(system, weights, _key(key, _EVALUATE, iteration), greedy)

    return Trainer(system, init, weights, collect_, update, step, evaluate_)


def _factors(system: System, rates: Rates) -> Metrics:
    """The learning rates of paced levels, relative to the phase."""
    levels = system.actor.sharing.stacks
    return {f"factor_{name}": paced_factor(level, rates.pace) for name, level in levels.items() if level.paced}


def _key(key: PRNGKeyArray, purpose: int, iteration: Array) -> PRNGKeyArray:
    return jax.random.fold_in(jax.random.fold_in(key, purpose), iteration)


def attach_adapters(trainer: Trainer, state: TrainState) -> TrainState:
    """Returns the first state of the second phase.

    The trunks, the critic with its optimiser, the value statistics, the environments and the
    recurrent states do not change. The adapters and the actors' optimiser are initialised.
    Every agent's network still equals its trunk. Unfrozen trunks keep their optimiser state,
    unless `ppo.trunk_optimizer` is restart.

    Args:
        trainer: the trainer of the second phase.
        state: the last state of the first phase.
    """
    actor = trainer.system.actor.init_adapters(jax.random.fold_in(state.key, _ATTACH), state.learner.actor)
    ppo = trainer.system.config.ppo
    lr = jnp.asarray(ppo.lr if ppo.adapter_lr is None else ppo.adapter_lr, float)
    learner = init_optimizer(trainer.system, state.learner._replace(actor=actor))
    return state._replace(learner=learner, lr=lr, pace=first_pace(trainer.system.actor.sharing))


def train(config: Config, env: Env, **parts: Unpack[Parts]) -> Callable[[PRNGKeyArray], tuple[TrainState, Metrics]]:
    """Returns a whole run as one pure function of a key: `key -> (state, metrics [iterations])`.

    It serves sweeps inside one program, and has no evaluations. So the factor `auto` of a level keeps its first value,
    and is no metric.
    `lorasa_jax.running.loop.run` is the same run with evaluations, reports and an automatic switch. If no episode ended
    in an iteration (`episodes` is 0), the metrics `return`, `win_rate` and `length` are 0; `rollout.mark_missing` turns
    them into NaN.
    `parts` are a user's `policy_loss` and `optimizer` (`lorasa_jax.learning.system.Parts`).

    Raises:
        ConfigError: `switch_step` is `auto`, which needs evaluations.
    """
    first = make_trainer(config, env, **parts)
    if not is_two_phase(config, env):
        return lambda key: _iterate(first, first.init(key), config.iterations)
    switch = config.switch_iteration
    if switch is None:
        raise ConfigError("switch-step auto needs evaluations, and a jitted run has none; give a step")
    second = make_trainer(config, env, adapting=True, **parts)

    def both(key: PRNGKeyArray) -> tuple[TrainState, Metrics]:
        state, before = _iterate(first, first.init(key), switch)
        state, after = _iterate(second, attach_adapters(second, state), config.iterations - switch)
        return state, {name: jnp.concatenate([before[name], after[name]]) for name in before}

    return both


def _iterate(trainer: Trainer, state: TrainState, iterations: int) -> tuple[TrainState, Metrics]:
    return jax.lax.scan(lambda state, _: trainer.step(state), state, None, iterations)


def count_params(trainer: Trainer) -> dict[str, int]:
    """Returns the numbers of parameters of the scheme, and of separate policies.

    Returns:
        `shared`: of the trunks, unless every agent has its own. `per_agent`: of the adapters (or the network) that
        each agent uses in addition. `owners`: the number of owners of all scopes together. `critic`: of the critic.
        `actors` = shared plus the parameters of all owners (N per_agent if the owners are the agents).
        `total` = actors + critic. `nps_actors` and `nps_total`: the same with one plain network per agent.
    """
    system, key = trainer.system, jax.random.key(0)
    sharing = system.actor.sharing
    actor, critic = jax.eval_shape(system.actor.init, key), jax.eval_shape(system.critic.init, key)
    per_trunk = count(actor.shared) // sharing.n_trunks
    apart = sharing.n_trunks == sharing.n_agents
    shared = 0 if apart else count(actor.shared)
    per_agent = sum(count(actor.agents[name]) // level.n_owners for name, level in sharing.stacks.items())
    owners = sum(level.n_owners for level in sharing.levels) or (sharing.n_agents if apart else 0)
    alone = count(jax.eval_shape(make_system(under(system.config, "nps"), system.env).actor.init, key))
    actors = count(actor)
    return {
        "shared": shared,
        "per_agent": per_agent + (per_trunk if apart else 0),
        "owners": owners,
        "critic": count(critic),
        "actors": actors,
        "total": actors + count(critic),
        "nps_actors": alone,
        "nps_total": alone + count(critic),
    }


def optimizer_bytes(trainer: Trainer) -> int:
    """Returns the bytes of the actors' optimiser state in this phase; frozen parameters have none."""
    system = trainer.system
    actor = jax.eval_shape(system.actor.init, jax.random.key(0))
    state = [jax.eval_shape(system.optimizer.init, stack) for stack in trained_stacks(system, actor).values()]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
