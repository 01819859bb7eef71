"""What several test modules build on: small configurations, and parameters and rollouts that need no compiler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from lorasa_jax.config import Config, CriticConfig, NetworkConfig, PPOConfig
from lorasa_jax.core.types import Rates, TrainState, Trajectory
from lorasa_jax.envs.base import Env, EnvSpec, TimeStep
from lorasa_jax.envs.toy import make_toy
from lorasa_jax.learning.minibatches import Batch, make_batch
from lorasa_jax.learning.system import System
from lorasa_jax.learning.trainer import Trainer, attach_adapters, make_trainer
from lorasa_jax.sharing.policy import Policy
from lorasa_jax.sharing.schemes import SCHEMES, is_clustered

KEY = jax.random.key(0)
TRIO = (0, 1, 0)
"""Clusters of a team of three."""

every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


def groups_for(scheme: str, groups: tuple[int, ...] = TRIO) -> tuple[int, ...] | None:
    """The groups that a scheme needs, if it does."""
    return groups if is_clustered(Config(sharing=scheme)) else None


def small_config(
    *,
    recurrent: bool = False,
    actor: Mapping[str, Any] | None = None,
    critic: Mapping[str, Any] | None = None,
    ppo: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Config:
    """A configuration that is quick to compile, for a team of three, with changes to it and to its sections."""
    network = {"hidden": 8, "layers": 1, "layers_after": 1, "recurrent": recurrent}
    whole = {"env": "toy", "sharing": "ps", "n_envs": 4, "rollout_length": 8, "total_steps": 3200, "rank": 2}
    whole |= {"eval_episodes": 16, "groups": groups_for(changes.get("sharing", "ps"))}
    return Config(
        actor=NetworkConfig(**network | dict(actor or {})),
        critic=CriticConfig(**network | dict(critic or {})),
        ppo=PPOConfig(**{"chunk_length": 4, "epochs": 1} | dict(ppo or {})),
        **{**whole, **changes},
    )


@cache
def two_phases() -> SimpleNamespace:
    """The two phases of one seed, compiled: shared by all tests that need a trainer."""
    # Rates high enough that a step shows, and small enough that rounding does not.
    ppo = {"lr": 3e-3, "critic_lr": 3e-3, "minibatches": 2, "epochs": 2}
    config = small_config(sharing="lorasa", switch_step=0, ppo=ppo, eval_episodes=64)
    env = make_toy("probe_death", 3)
    first, second = make_trainer(config, env), make_trainer(config, env, adapting=True)
    collect = jax.jit(first.collect)  # what plays is the same in both phases

    def stepper(trainer: Trainer) -> Callable[[TrainState], TrainState]:
        update = jax.jit(trainer.update)

        def step(state: TrainState) -> TrainState:
            played = trainer.weights(state), state.learner.critic, state.rollout, state.key, state.iteration
            rollout, trajectory, _ = collect(*played)
            return update(state, rollout, trajectory)[0]

        return step

    return SimpleNamespace(
        config=config,
        env=env,
        first=first,
        second=second,
        init=jax.jit(first.init),
        collect=collect,
        shared=stepper(first),
        attach_adapters=jax.jit(partial(attach_adapters, second)),
        adapters=stepper(second),
    )


def random_like(shapes: Any, seed: int = 0, scale: float = 0.5) -> Any:
    """Normal numbers in the place of every leaf."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32), shapes)


def random_params(policy: Policy, seed: int = 0) -> Any:
    """Parameters far from any start: biases, norms and both factors of every adapter differ from 0 and 1."""
    return random_like(jax.eval_shape(policy.init, KEY), seed)


def random_trajectory(system: System, seed: int = 0) -> Trajectory:
    """A rollout no environment played: noise, with deaths, unavailable actions and both kinds of ends."""
    rng, spec, config = np.random.default_rng(seed), system.env.spec, system.config
    length, n_envs, n = config.rollout_length, config.n_envs, spec.n_agents
    n_values, chunks = system.critic.sharing.n_agents, length // config.chunk_length

    def noise(*shape: int) -> Array:
        return jnp.asarray(rng.normal(size=(*shape[:1], n_envs, *shape[1:])), jnp.float32)

    def coin(*shape: int, p: float) -> np.ndarray:
        return rng.random((length, n_envs, *shape)) < p

    ended, by_clock = coin(p=0.3), coin(p=0.5)
    obs, avail = noise(length, n, spec.obs_dim), coin(n, spec.n_actions, p=0.7)
    avail[..., 0] |= ~avail.any(axis=-1)
    action = jnp.asarray(np.argmax(avail * rng.random(avail.shape), axis=-1))
    if spec.continuous:  # agent i lacks the last i dimensions
        avail = np.broadcast_to(np.arange(spec.n_actions) < spec.n_actions - np.arange(n)[:, None], avail.shape)
        action = jnp.where(avail, noise(length, n, spec.n_actions), 0.0)
    if spec.obs_widths:
        obs = jnp.where(jnp.arange(spec.obs_dim) < jnp.array(spec.obs_widths)[:, None], obs, 0.0)
    parts = system.dist.parts(jnp.asarray(avail))
    return Trajectory(
        obs=obs,
        state=noise(length, spec.state_dim),
        avail=jnp.asarray(avail),
        alive=jnp.asarray(coin(n, p=0.7)),
        first=jnp.asarray(coin(p=0.3)),
        action=action,
        log_prob=jnp.where(parts, -jnp.abs(noise(length, n, parts.shape[-1])), 0.0),
        value=noise(length, n_values),
        next_value=noise(length, n_values),
        reward=jnp.repeat(noise(length, 1), n, axis=-1) if spec.team_reward else noise(length, n),
        terminated=jnp.asarray(ended & ~by_clock),
        truncated=jnp.asarray(ended & by_clock),
        actor_carry=noise(chunks, *system.actor.initial_carry(1).shape[1:]),
        critic_carry=noise(chunks, *system.critic.initial_carry(1).shape[1:]),
        # The last of all roles never occurs.
        owner=jnp.asarray(rng.integers(0, spec.n_roles - 1, (length, n_envs, n))) if spec.n_roles else (),
    )


def batched(system: System, t: Trajectory, advantage: Array) -> Batch:
    """The whole rollout as one batch, whose advantages are told."""
    mask = t.alive if system.config.ppo.mask_dead else jnp.ones_like(t.alive)
    ratio = jnp.ones((*t.first.shape, 1))
    return jax.jit(partial(make_batch, system))(t, mask, advantage, t.value, ratio, None)


def coded(*shape: int) -> np.ndarray:
    """An array whose every entry says where it stands."""
    return np.arange(np.prod(shape)).reshape(shape)


def rates_of(config: Config, scale: float = 1.0) -> Rates:
    """The learning rates of an update."""
    return Rates(*(jnp.asarray(scale * rate) for rate in (config.ppo.lr, config.ppo.critic_lr)), pace=jnp.zeros(()))


class DiaryState(NamedTuple):
    """One episode: its number, its length, where it stands, who is alive, and what each agent is told."""

    number: Array
    length: Array
    time: Array
    alive: Array
    told: Array


DIARY_LIMIT = 6


def make_diary(n: int = 3) -> Env:
    """An environment that writes down what happens to it.

    The global state is (number of the episode, share of the time that passed); each agent sees that, its
    place in the team and something random. Every episode has a length drawn from 1 to 6; the longest are
    cut short by the clock. All but agent 0 die at random; only the dead have action 0, only the living action 1,
    and anyone may be told of action 2. Each step pays 1, even after the end; episodes of even length are won.
    """

    def show(state: DiaryState, reward: float) -> TimeStep:
        over = state.time >= state.length
        globally = jnp.stack([state.number, state.time / DIARY_LIMIT])
        private = jnp.stack([jnp.arange(n) / n, state.told], axis=-1)
        avail = jnp.stack([~state.alive, state.alive, state.told > 0], axis=-1)
        return TimeStep(
            obs=jnp.concatenate([jnp.broadcast_to(globally, (n, 2)), private], axis=-1),
            state=globally,
            avail=avail,
            alive=state.alive,
            reward=jnp.full(n, reward),
            terminated=over & (state.length < DIARY_LIMIT),
            truncated=over & (state.length == DIARY_LIMIT),
            won=over & (state.length % 2 == 0),
        )

    def reset(key: Array) -> tuple[DiaryState, TimeStep]:
        number, length, told = jax.random.split(key, 3)
        state = DiaryState(
            number=jax.random.uniform(number, minval=-1.0),
            length=jax.random.randint(length, (), 1, DIARY_LIMIT + 1),
            time=jnp.int32(0),
            alive=jnp.ones(n, bool),
            told=jax.random.normal(told, (n,)),
        )
        return state, show(state, 0.0)

    def step(key: Array, state: DiaryState, action: Array) -> tuple[DiaryState, TimeStep]:
        fate, told = jax.random.split(key)
        survives = (jnp.arange(n) == 0) | jax.random.bernoulli(fate, 0.7, (n,))
        state = state._replace(time=state.time + 1, alive=state.alive & survives, told=jax.random.normal(told, (n,)))
        return state, show(state, 1.0)

    return Env(EnvSpec("diary", n, 4, 2, 3, DIARY_LIMIT, team_reward=True), reset, step)


def make_bits(change: Callable[[TimeStep], TimeStep] = lambda seen: seen) -> Env:
    """Two agents are shown a bit for three steps, and are paid as a team for the share that names it.

    Args:
        change: what is shown, as it should be, to what is shown in truth.
    """
    spec = EnvSpec("bits", 2, 3, 3, 2, 3, team_reward=True, winnable=False)

    def show(state: dict[str, Array], reward: Array) -> TimeStep:
        view = jnp.stack([state["bit"], 1 - state["bit"], state["time"]]).astype(jnp.float32)
        return change(
            TimeStep(
                obs=jnp.tile(view, (2, 1)),
                state=view,
                avail=jnp.ones((2, 2), bool),
                alive=jnp.ones(2, bool),
                reward=jnp.full(2, reward),
                terminated=jnp.zeros((), bool),
                truncated=state["time"] >= 3,
                won=jnp.zeros((), bool),
            )
        )

    def reset(key: Array) -> tuple[dict[str, Array], TimeStep]:
        state = {"bit": jax.random.bernoulli(key).astype(jnp.int32), "time": jnp.int32(0)}
        return state, show(state, jnp.float32(0))

    def step(key: Array, state: dict[str, Array], action: Array) -> tuple[dict[str, Array], TimeStep]:
        right = jnp.mean((action == state["bit"]).astype(jnp.float32))
        after = {"bit": jax.random.bernoulli(key).astype(jnp.int32), "time": state["time"] + 1}
        return after, show(after, right)

    return Env(spec, reset, step)


def check_shapes(env: Env) -> None:
    """What a reset and a step show is what the spec says, and a state has the same types after both."""
    spec, n = env.spec, env.spec.n_agents
    expected = TimeStep(
        obs=((n, spec.obs_dim), "float32"),
        state=((spec.state_dim,), "float32"),
        avail=((n, spec.n_actions), "bool"),
        alive=((n,), "bool"),
        reward=((n,), "float32"),
        terminated=((), "bool"),
        truncated=((), "bool"),
        won=((), "bool"),
        role=((n,), "int32") if spec.n_roles else (),
    )
    reset = jax.eval_shape(env.reset, KEY)
    action = ((n, spec.n_actions), "float32") if spec.continuous else ((n,), "int32")
    step = jax.eval_shape(env.step, KEY, reset[0], jax.ShapeDtypeStruct(*action))
    for _, shown in (reset, step):
        assert jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), shown) == expected
    # Weak types count: where they differ, a compiled step is compiled again for its own output.
    for before, after in zip(jax.tree.leaves(reset), jax.tree.leaves(step), strict=True):
        assert (before.shape, before.dtype, before.weak_type) == (after.shape, after.dtype, after.weak_type)


def with_roles(env: Env, roles: tuple[int, ...] | None = None, n_roles: int = 0) -> Env:
    """The diary with roles: fixed ones, or `n_roles` of them, which follow from the number of the episode."""

    def show(state: DiaryState, seen: TimeStep) -> tuple[DiaryState, TimeStep]:
        return state, seen._replace(role=role_in(state.number, env.spec.n_agents, n_roles) if n_roles else ())

    return env._replace(
        spec=replace(env.spec, roles=roles, n_roles=n_roles),
        reset=lambda key: show(*env.reset(key)),
        step=lambda key, state, action: show(*env.step(key, state, action)),
    )


def role_in(number: Array, n: int, n_roles: int) -> Array:
    """The roles of an episode with a number in [-1, 1)."""
    return jnp.floor((number[..., None] + 1) * 997 * (1 + jnp.arange(n))).astype(int) % n_roles


def row_of(tree: Any, k: int) -> Any:
    """Slot k of a stacked tree."""
    return jax.tree.map(lambda leaf: leaf[k], tree)


def assert_same(actual: Any, expected: Any) -> None:
    """Two trees are equal, in shapes and types, and to the bit."""

    def same(one: Any, other: Any) -> None:
        one, other = np.asarray(one), np.asarray(other)
        np.testing.assert_array_equal(one, other, strict=True)
        assert one.tobytes() == other.tobytes()  # zeros have signs

    jax.tree.map(same, actual, expected)


def assert_close(actual: Any, expected: Any, atol: float = 1e-5, rtol: float = 1e-5) -> None:
    """Two trees are equal, up to rounding."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=rtol), actual, expected)


def differs(actual: Any, expected: Any) -> list[bool]:
    """For each leaf, whether two trees differ there at all."""
    return jax.tree.leaves(jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), actual, expected))
