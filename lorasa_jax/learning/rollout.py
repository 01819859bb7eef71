"""Plays rollouts for training, and whole episodes for evaluation.

This module has the only reset policy. Environments never reset themselves. Every rollout starts
with a new pool of start states. An environment whose episode ends takes the next state of its
part of the pool. So no step computes an unused reset, and no start state is used in two
rollouts. After its last start state, an environment begins again with the first one, which
happens only if episodes are shorter than 16 steps.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lorasa_jax.core.axes import merge_axes, split_axes, spread
from lorasa_jax.core.losses import masked_mean
from lorasa_jax.core.types import Metrics, PolicyParams, PyTree, RolloutState, Trajectory, Weights
from lorasa_jax.envs.base import Env, TimeStep
from lorasa_jax.envs.checks import FAULTS, find_faults
from lorasa_jax.learning.system import System

STEPS_PER_START = 16
"""Steps of a rollout per start state that is drawn for each environment."""


def initial_state(system: System, key: PRNGKeyArray) -> RolloutState:
    """Returns freshly reset environments."""
    n_envs = system.config.n_envs
    env_state, timestep = jax.vmap(system.env.reset)(jax.random.split(key, n_envs))
    return RolloutState(
        env_state=env_state,
        timestep=timestep,
        first=jnp.ones(n_envs, bool),
        actor_carry=system.actor.initial_carry(n_envs),
        critic_carry=system.critic.initial_carry(n_envs),
        episode_return=jnp.zeros(n_envs),
        episode_length=jnp.zeros(n_envs, int),
    )


def select(mask: Bool[Array, " E"], yes: PyTree, no: PyTree) -> PyTree:
    """Returns `yes` where the mask is true and `no` elsewhere, along the leading axis of every leaf."""
    return jax.tree.map(lambda a, b: jnp.where(mask.reshape(-1, *(1,) * (a.ndim - 1)), a, b), yes, no)


def start_pool(env: Env, key: PRNGKeyArray, n_envs: int, length: int) -> tuple[PyTree, TimeStep]:
    """Returns new start states, [K, E, ...]."""
    keys = jax.random.split(key, (math.ceil(length / STEPS_PER_START), n_envs))
    return jax.vmap(jax.vmap(env.reset))(keys)


def collect(
    system: System, weights: Weights, critic: PolicyParams, start: RolloutState, key: PRNGKeyArray
) -> tuple[RolloutState, Trajectory, Metrics]:
    """Plays one rollout, and computes its values.

    Args:
        system: the parts.
        weights: weights for acting.
        critic: parameters of `system.critic`.
        start: state of the environments before the rollout.
        key: used for start states, actions and environments.

    Returns:
        The state of the environments after the rollout, the trajectory, and statistics of the
        ended episodes: `episodes` (their number), and the means `return`, `win_rate` and
        `length` (0 if no episode ended; `mark_missing` turns them into NaN on the host).
    """
    config, env = system.config, system.env
    n_envs, length, chunk = config.n_envs, config.rollout_length, config.chunk_length
    pool_key, play_key = jax.random.split(key)
    pool = start_pool(env, pool_key, n_envs, length)
    pool_size = jax.tree.leaves(pool)[0].shape[0]
    bootstrap = config.time_limit == "bootstrap"
    everyone = jnp.arange(n_envs)

    def step(carry: tuple, key: PRNGKeyArray) -> tuple[tuple, Any]:
        now, used = carry
        act_key, env_key = jax.random.split(key)
        seen = _standardised(system, weights, now.timestep)
        hidden, params = _decide(system, weights, now.actor_carry, seen, now.first)
        action = system.dist.sample(act_key, params)
        orders = system.dist.to_env(action)
        env_state, timestep = jax.vmap(env.step)(jax.random.split(env_key, n_envs), now.env_state, orders)

        done = timestep.terminated | timestep.truncated
        episode_return = now.episode_return + timestep.reward.mean(axis=-1)
        episode_length = now.episode_length + 1
        begin = jax.tree.map(lambda leaf: leaf[used % pool_size, everyone], pool)
        next_state, next_timestep = select(done, begin, (env_state, timestep))
        later = RolloutState(
            env_state=next_state,
            timestep=next_timestep,
            first=done,
            actor_carry=hidden,
            critic_carry=now.critic_carry,
            episode_return=jnp.where(done, 0.0, episode_return),
            episode_length=jnp.where(done, 0, episode_length),
        )
        record = {
            "obs": seen.obs, "state": seen.state, "avail": seen.avail, "alive": seen.alive, "first": now.first,
            "action": action, "log_prob": system.dist.log_prob(params, action),
            "reward": timestep.reward,
            # A time limit is either a truncation or an ordinary end.
            "terminated": timestep.terminated if bootstrap else done,
            "truncated": timestep.truncated & bootstrap,
        }  # fmt: skip
        if system.acting.sharing.dynamic_roles:
            record["owner"] = seen.role
        ended = {"done": done, "won": timestep.won, "return": episode_return, "length": episode_length}
        # The critic's input to bootstrap truncated steps.
        shown = _standardised(system, weights, timestep)
        final = (system.critic_view(shown.obs, shown.state), shown.alive) if bootstrap else None
        raw = (now.timestep.obs, now.timestep.state, now.timestep.alive) if config.standardise else None
        return (later, used + done), (record, ended, final, raw)

    def play_chunk(carry: tuple, keys: Array) -> tuple[tuple, Any]:
        return_, records = jax.lax.scan(step, carry, keys)
        return return_, (records, carry[0].actor_carry)

    keys = jax.random.split(play_key, (length // chunk, chunk))
    (later, _), (records, actor_carry) = jax.lax.scan(play_chunk, (start, jnp.zeros(n_envs, int)), keys)
    record, ended, final, raw = jax.tree.map(lambda leaf: jax.lax.collapse(leaf, 0, 2), records)

    carries, value, next_value = _values(system, critic, start, later, weights, record, final)
    before = jnp.concatenate([start.critic_carry[None], carries[:-1]])
    trajectory = Trajectory(
        **record,
        value=value,
        next_value=next_value,
        actor_carry=actor_carry,
        critic_carry=before[::chunk],
        inputs=system.inputs.measure(*raw) if raw else (),
    )
    return later._replace(critic_carry=carries[-1]), trajectory, _episode_statistics(ended)


def _standardised(system: System, weights: Weights, seen: TimeStep) -> TimeStep:
    """The time step with standardised inputs of the networks."""
    obs, state = system.inputs.apply(weights.inputs, seen.obs, seen.state)
    return seen._replace(obs=obs, state=state)


def _decide(
    system: System, weights: Weights, hidden: Float[Array, "E N H"], seen: TimeStep, first: Bool[Array, " E"]
) -> tuple[Float[Array, "E N H"], Float[Array, "E N P"]]:
    """The recurrent states after a step, and the parameters of the action distributions."""
    opens = system.actor_first(first, seen.alive)
    owner = seen.role[None] if system.acting.sharing.dynamic_roles else None
    carries, output = system.acting.unroll(weights.actors, hidden, seen.obs[None], opens[None], owner=owner)
    return carries[0], system.dist.mask(output[0], seen.avail)


def _values(
    system: System,
    params: PolicyParams,
    start: RolloutState,
    later: RolloutState,
    weights: Weights,
    record: dict,
    final: Any,
) -> tuple[Array, Array, Array]:
    """The critic's recurrent states [T, E, V, H], its values and the values of the next states [T, E, V]."""
    view, first = (
        system.critic_view(record["obs"], record["state"]),
        system.critic_first(record["first"], record["alive"]),
    )
    carries, value = system.critic.unroll(params, start.critic_carry, view, first)
    if final is not None:
        # One flat batch: each final state is one step after the state before it.
        hidden, view, alive = (merge_axes(leaf) for leaf in (carries, *final))
        first = system.critic_first(jnp.zeros(view.shape[0], bool), alive)
        _, next_value = system.critic.unroll(params, hidden, view[None], first[None])
        return carries, value[..., 0], split_axes(next_value[0], len(value))[..., 0]
    # Without bootstrapping, the next value is that of the next step, or it does not count.
    seen = _standardised(system, weights, later.timestep)
    first = system.critic_first(later.first, seen.alive)
    _, last = system.critic.unroll(params, carries[-1], system.critic_view(seen.obs, seen.state)[None], first[None])
    return carries, value[..., 0], jnp.concatenate([value[1:], last])[..., 0]


def _episode_statistics(ended: dict[str, Array]) -> Metrics:
    def mean(x: Array) -> Array:
        return masked_mean(x.astype(jnp.float32), ended["done"])

    return {
        "episodes": jnp.sum(ended["done"]),
        "return": mean(ended["return"]),
        "win_rate": mean(ended["won"]),
        "length": mean(ended["length"]),
    }


def mark_missing(metrics: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns metrics on the host, with NaN for the means over episodes if no episode has ended.

    Programs return 0 in this case, so under JAX_DEBUG_NANS every NaN is an error.
    """
    none = np.asarray(metrics["episodes"]) == 0
    means = ("return", "win_rate", "length")
    return {name: np.where(none, np.nan, value) if name in means else value for name, value in metrics.items()}


def record_episode(system: System, weights: Weights, key: PRNGKeyArray, greedy: bool = True) -> PyTree:
    """Returns the environment's states of one episode, including start and end, [steps + 1, ...]."""
    env = system.env
    reset_key, play_key = jax.random.split(key)
    draw_key = jax.random.fold_in(key, 2)

    @jax.jit
    def step(t: Array, env_state: PyTree, seen: TimeStep, hidden: Array) -> tuple[PyTree, TimeStep, Array]:
        one = jax.tree.map(lambda leaf: leaf[None], _standardised(system, weights, seen))
        hidden, params = _decide(system, weights, hidden, one, (t == 0)[None])
        action = system.dist.mode(params) if greedy else system.dist.sample(jax.random.fold_in(draw_key, t), params)
        orders = system.dist.to_env(action[0])
        return *env.step(jax.random.fold_in(play_key, t), env_state, orders), hidden

    env_state, seen = jax.jit(env.reset)(reset_key)
    hidden, states = system.acting.initial_carry(1), [env_state]
    while not (seen.terminated | seen.truncated) and len(states) <= env.spec.episode_limit:
        env_state, seen, hidden = step(jnp.asarray(len(states) - 1), env_state, seen, hidden)
        states.append(env_state)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def evaluate(system: System, weights: Weights, key: PRNGKeyArray, greedy: Bool[Array, ""] | bool) -> dict[str, Array]:
    """Returns `return`, `win_rate` and `length`, means over whole episodes from new start states (`play_episodes`).

    `returns` has the return of every episode. `faults` lists violations of the environment's spec
    (`lorasa_jax.envs.checks.find_faults`).
    """
    episodes, faults = _play(system, weights, key, greedy)
    means = {name: values.mean() for name, values in episodes.items()}
    return {**means, "returns": episodes["return"], "faults": faults}


def play_episodes(
    system: System, weights: Weights, key: PRNGKeyArray, greedy: Bool[Array, ""] | bool
) -> dict[str, Float[Array, " E"]]:
    """Returns `return`, `win_rate` (0 or 1) and `length` of whole episodes from new start states.

    Every environment plays exactly one episode, so short episodes do not count more often.

    Args:
        system: the parts; `config.eval_episodes` episodes are played.
        weights: weights for acting.
        key: used for start states, actions and environments.
        greedy: take the most probable action; otherwise sample.
    """
    return _play(system, weights, key, greedy)[0]


def _play(
    system: System, weights: Weights, key: PRNGKeyArray, greedy: Bool[Array, ""] | bool
) -> tuple[dict[str, Float[Array, " E"]], Int[Array, " F"]]:
    env, episodes = system.env, system.config.eval_episodes
    reset_key, play_key = jax.random.split(key)
    env_state, timestep = spread(jax.vmap(env.reset)(jax.random.split(reset_key, episodes)))
    nothing_yet = jnp.zeros(episodes)

    def going_on(carry: tuple) -> Array:
        t, _, _, _, over, *_ = carry
        return ~jnp.all(over) & (t < env.spec.episode_limit)

    def step(carry: tuple) -> tuple:
        t, env_state, seen, hidden, over, tally, faults = carry
        act_key, env_key = jax.random.split(jax.random.fold_in(play_key, t))
        seen = _standardised(system, weights, seen)
        hidden, params = _decide(system, weights, hidden, seen, jnp.full(episodes, t == 0))
        action = jnp.where(greedy, system.dist.mode(params), system.dist.sample(act_key, params))
        orders = system.dist.to_env(action)
        env_state, seen = jax.vmap(env.step)(jax.random.split(env_key, episodes), env_state, orders)
        # All games are stepped until the last one has ended. Values after the end of a game are ignored.
        new = (seen.reward.mean(axis=-1), seen.won, 1.0)
        tally = jax.tree.map(lambda sum_, now: sum_ + jnp.where(over, 0.0, now), tally, new)
        faults = jnp.maximum(faults, find_faults(env.spec, seen, over, t + 1))
        return t + 1, env_state, seen, hidden, over | seen.terminated | seen.truncated, tally, faults

    start = (
        0,
        env_state,
        timestep,
        system.acting.initial_carry(episodes),
        jnp.zeros(episodes, bool),
        (nothing_yet,) * 3,
        jnp.full(len(FAULTS), -1, jnp.int32),
    )
    *_, (total, won, length), faults = jax.lax.while_loop(going_on, step, start)
    return {"return": total, "win_rate": won, "length": length}, faults
