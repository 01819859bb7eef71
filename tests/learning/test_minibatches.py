"""Batches hold everyone's data once, in its order in time, beside the recurrent states it began in."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, batched, coded, make_diary, random_trajectory, small_config

from lorasa_jax.learning import minibatches as batches
from lorasa_jax.learning.system import make_system

N = 3


@pytest.mark.parametrize(("length", "n_envs", "chunk", "minibatches"), [(6, 4, 3, 2), (6, 4, 1, 4), (4, 3, 4, 1)])
def test_minibatches_part_each_agents_environments_and_never_time(length, n_envs, chunk, minibatches):
    system = make_system(
        small_config(
            recurrent=True,
            n_envs=n_envs,
            rollout_length=length,
            ppo={"chunk_length": chunk, "minibatches": minibatches},
        ),
        make_diary(N),
    )
    t = random_trajectory(system)
    x = coded(length, n_envs, N)
    batch = batched(system, t._replace(action=jnp.asarray(x)), t.value)
    dealt = batches.minibatch_indices(KEY, n_envs, minibatches, N) if minibatches > 1 else [None]
    met = []
    for envs in dealt:
        actions = np.asarray(batches.minibatch(batch, envs).action)
        assert actions.shape == (chunk, length // chunk * n_envs // minibatches, N)
        for m in range(N):
            columns = actions[:, :, m].T  # each a stretch of one agent's time in one environment
            starts, e, agents = np.unravel_index(columns[:, 0], x.shape)
            assert set(agents) == {m}
            # Of any `minibatches` neighbours one, with all its chunks.
            assert sorted(e // minibatches) == sorted([*range(n_envs // minibatches)] * (length // chunk))
            met += [(m, *pair) for pair in zip(starts, e, strict=True)]
            for column, start, env in zip(columns, starts, e, strict=True):
                np.testing.assert_array_equal(column, x[start : start + chunk, env, m])
    assert sorted(met) == [(m, s, e) for m in range(N) for s in range(0, length, chunk) for e in range(n_envs)]


def test_every_agents_environments_are_dealt_anew_and_evenly():
    deals = np.asarray(jax.vmap(lambda key: batches.minibatch_indices(key, 4, 2, N))(jax.random.split(KEY, 2000)))
    in_first = (deals[:, 0, :, :, None] == np.arange(4)).any(axis=1)  # [deal, agent, environment]
    np.testing.assert_allclose(in_first.mean(axis=0), 0.5, atol=0.05)
    flat = in_first[..., [0, 2]].reshape(2000, -1)  # one environment of each pair; the other is in the other minibatch
    np.testing.assert_allclose(np.corrcoef(flat.T), np.eye(2 * N), atol=0.1)


@pytest.mark.parametrize(("scope", "reset_on_death"), [("team", False), ("agent", True)])
def test_every_chunk_meets_the_carries_it_began_in(scope, reset_on_death):
    ppo = {"minibatches": 2, "chunk_length": 4}
    config = small_config(recurrent=True, ppo=ppo, critic={"scope": scope}, reset_on_death=reset_on_death)
    system = make_system(config, make_diary(N))
    t = random_trajectory(system)
    by_chunk = coded(2, config.n_envs).astype(np.float32)
    by_step = np.repeat(by_chunk, 4, axis=0)
    t = t._replace(
        obs=jnp.broadcast_to(by_step[..., None, None], t.obs.shape),
        state=jnp.broadcast_to(by_step[..., None], t.state.shape),
        actor_carry=jnp.broadcast_to(by_chunk[..., None, None], t.actor_carry.shape),
        critic_carry=jnp.broadcast_to(by_chunk[..., None, None], t.critic_carry.shape),
        first=jnp.asarray(by_step % 3 == 0),
    )
    # The critic's fields may come from other environments than the actors', so values say who is alive there.
    t = t._replace(value=jnp.broadcast_to(t.alive if scope == "agent" else 1.0, t.value.shape).astype(float))
    batch = batched(system, t, t.value)
    batch = batches.minibatch(batch, batches.minibatch_indices(KEY, config.n_envs, 2, N)[1])
    views = jnp.broadcast_to(batch.view, (*batch.value.shape, batch.view.shape[-1]))
    fields = (batch.actor_first, batch.obs, batch.mask), (batch.critic_first, views, batch.value > 0)
    for first, inputs, alive in fields:
        opens = inputs[..., 0] % 3 == 0
        np.testing.assert_array_equal(first, opens | ~alive if reset_on_death else opens)
    for inputs, carry in ((batch.obs, batch.actor_carry), (views, batch.critic_carry)):
        np.testing.assert_array_equal(inputs[..., 0], np.broadcast_to(carry[None, ..., 0], inputs.shape[:-1]))


def test_the_critics_minibatch_is_one_of_environments_where_all_values_see_the_state():
    system = make_system(small_config(critic={"scope": "agent"}, ppo={"minibatches": 2}), make_diary(N))
    t = random_trajectory(system)
    envs = batches.minibatch_indices(KEY, system.config.n_envs, 2, N)[0]
    t = t._replace(value=jnp.broadcast_to(jnp.arange(float(system.config.n_envs))[:, None], t.value.shape))
    batch = batches.minibatch(batched(system, t, t.value), envs)
    assert batch.view.shape[2] == 1
    for m in range(N):
        assert set(np.unique(batch.value[..., m])) == set(np.asarray(envs[:, 0]).tolist())
