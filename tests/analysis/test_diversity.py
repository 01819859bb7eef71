"""Distances between networks and cosines of gradients, against plain loops over agents."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import make_diary, random_like, random_params, random_trajectory, row_of, small_config

from lorasa_jax.analysis.diversity import (
    Noise,
    behavioural_distance,
    comparable,
    cosines,
    gradient_noise,
    gradients,
    mean_over_pairs,
    stream_distances,
    within_and_between,
)
from lorasa_jax.core.losses import normalise_advantages
from lorasa_jax.core.networks import Network
from lorasa_jax.core.types import Learner
from lorasa_jax.learning import update
from lorasa_jax.learning.system import alone, make_system, own_weights

N = 3


@cache
def played(recurrent: bool) -> SimpleNamespace:
    """A team of LoRASA's networks, each alone, and what it met; one compiled program for each way to treat ids."""
    system = make_system(small_config(sharing="lorasa", recurrent=recurrent), make_diary(N), adapting=True)
    team, trajectory = alone(system), random_trajectory(system)
    trajectory = trajectory._replace(first=trajectory.first.at[0].set(True))
    distances = {
        own_ids: jax.jit(lambda actors, own_ids=own_ids: stream_distances(team, actors, trajectory, own_ids))
        for own_ids in ([False, True] if recurrent else [])
    }
    actors = own_weights(system, random_params(system.actor))
    model = Network(team.config.actor, team.env.spec.n_actions, head_gain=1.0, n_ids=N)
    return SimpleNamespace(team=team, trajectory=trajectory, distances=distances, actors=actors, model=model)


@partial(jax.jit, static_argnums=0)
def log_probs(model: Network, network: dict, obs, agent_id, avail, first) -> jax.Array:
    """Of one network that goes through observations [T, E, D] under an id."""
    carry = jnp.zeros((obs.shape[1], model.carry_width))
    _, logits = model.apply({"params": network}, carry, obs, first, jnp.asarray(agent_id))
    return jax.nn.log_softmax(jnp.where(avail, logits, -1e10))


def of_agent(t, k: int) -> tuple:
    return t.avail[:, :, k], t.first


@pytest.mark.parametrize("own_ids", [False, True])
def test_every_network_goes_through_what_each_agent_met(own_ids):
    it = played(recurrent=True)
    found = np.asarray(it.distances[own_ids](it.actors))
    for k in range(N):
        t = it.trajectory
        log_ps = [
            log_probs(it.model, row_of(it.actors.shared, i), t.obs[:, :, k], i if own_ids else k, *of_agent(t, k))
            for i in range(N)
        ]
        ps, alive = [np.exp(np.asarray(log_p, np.float64)) for log_p in log_ps], np.asarray(t.alive[:, :, k])
        for i, j in np.ndindex(N, N):
            expected = (np.abs(ps[i] - ps[j]).sum(axis=-1) / 2)[alive].mean()
            assert found[k, i, j] == pytest.approx(expected, abs=1e-5)
    assert (found[:, ~np.eye(N, dtype=bool)] > 0.01).all()


def test_equal_networks_are_no_distance_apart_but_for_their_ids():
    it = played(recurrent=True)
    equal = jax.tree.map(lambda leaf: jnp.stack([leaf[1]] * N), it.actors)
    assert not np.asarray(it.distances[False](equal)).any()
    with_ids = np.asarray(it.distances[True](equal))
    assert not np.diagonal(with_ids, axis1=1, axis2=2).any()
    assert with_ids[:, 0, 1].min() > 1e-4


def test_agents_are_compared_on_what_their_like_met():
    """Agents 0 and 2 are alike; agent 1 sees another number of columns."""
    streams = np.arange(27.0).reshape(3, 3, 3)
    same = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]], bool)
    found = behavioural_distance(streams, np.array([3, 5, 1]), same)
    assert found[0, 2] == (3 * streams[0, 0, 2] + 1 * streams[2, 0, 2]) / 4
    assert found[1, 1] == streams[1, 1, 1]
    assert np.isnan(found[0, 1]) and np.isnan(found[1, 2])
    assert mean_over_pairs(found) == (found[0, 2] + found[2, 0]) / 2
    everyone = behavioural_distance(streams, np.array([1, 1, 2]), np.ones((3, 3), bool))
    assert everyone[0, 1] == (streams[0, 0, 1] + streams[1, 0, 1] + 2 * streams[2, 0, 1]) / 4
    assert mean_over_pairs(everyone) == pytest.approx((everyone.sum() - np.trace(everyone)) / 6)
    assert np.isnan(mean_over_pairs(np.where(np.eye(3, dtype=bool), 0.0, np.nan)))


def test_what_agents_see_and_do_has_to_be_of_one_shape():
    spec, avail = make_diary(N).spec, jnp.array([[True, True], [True, False], [True, True]])[None, None]
    assert comparable(spec, avail).all()  # actions that are not available now are actions still
    some = comparable(replace(spec, continuous=True), avail)
    np.testing.assert_array_equal(some, [[1, 0, 1], [0, 1, 0], [1, 0, 1]])
    np.testing.assert_array_equal(comparable(replace(spec, obs_widths=(4, 2, 2)), avail)[1], [0, 1, 1])


def test_pairs_of_one_role_and_of_two():
    matrix = np.array([[9.0, 1.0, 4.0], [3.0, 9.0, 6.0], [np.nan, 8.0, 9.0]])
    assert within_and_between(matrix, (0, 0, 1)) == (2.0, 6.0)
    assert np.isnan(within_and_between(matrix, (0, 1, 2))[0])


def test_cosines_are_symmetric_and_one_for_the_same():
    rows = np.array([[3.0, 4.0, 0.0], [4.0, 3.0, 0.0], [0.0, 0.0, -2.0], [0.0, 0.0, 0.0]])
    found = cosines(rows, rows)
    np.testing.assert_allclose(found[:3, :3], [[1, 0.96, 0], [0.96, 1, 0], [0, 0, 1]], atol=1e-12)
    assert np.isnan(found[3]).all()
    assert cosines(rows[:1], -5 * rows[:1])[0, 0] == -1


def test_gradients_are_each_agents_own():
    """Against the gradient of  - mean over alive steps of (A log pi + c entropy), agent by agent."""
    it = played(recurrent=False)
    team, t, networks = it.team, it.trajectory, it.actors.shared

    def taken(log_p: jax.Array, action: jax.Array) -> jax.Array:
        return jnp.take_along_axis(log_p, action[..., None], axis=-1)

    def log_p(network: dict, t, i: int) -> jax.Array:
        return log_probs(it.model, network, t.obs[:, :, i], i, *of_agent(t, i))

    now = [taken(log_p(row_of(networks, i), t, i), t.action[:, :, i]) for i in range(N)]
    t = t._replace(log_prob=jnp.stack(now, axis=2))
    critic = random_like(jax.eval_shape(team.critic.init, jax.random.key(0)))
    learner = Learner(it.actors, critic, {}, {}, team.value_norm.init())
    found = jax.jit(partial(gradients, team))(learner, t)

    @jax.jit
    def expected(network: dict, obs, i, avail, first, action, advantage, alive) -> dict:
        def loss(network: dict) -> jax.Array:
            log_p = log_probs(it.model, network, obs, i, avail, first)
            entropy = -jnp.sum(jnp.exp(log_p) * jnp.where(log_p > -1e9, log_p, 0.0), axis=-1)
            each = advantage * taken(log_p, action)[..., 0] + team.config.ppo.entropy_coef * entropy
            return -jnp.sum(jnp.where(alive, each, 0.0)) / jnp.sum(alive)

        return jax.grad(loss)(network)

    raw = jax.jit(partial(update._advantages, team))(learner, t)
    advantage = normalise_advantages(jnp.broadcast_to(raw, t.alive.shape), t.alive)
    for i in range(N):
        own = (x[:, :, i] for x in (t.action, advantage, t.alive))
        grads = expected(row_of(networks, i), t.obs[:, :, i], i, *of_agent(t, i), *own)
        flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(grads)])
        assert np.abs(flat).max() > 1e-3
        np.testing.assert_allclose(found[i], flat, atol=2e-5)


def test_noise_is_told_from_the_gradient_itself():
    """Draws with a known mean and a known variance of every entry; many small sets, for what is without bias."""
    rng = np.random.default_rng(0)
    mean, deviation = np.array([0.3, -0.1, 0.0, 0.2]), np.array([1.0, 0.5, 2.0, 0.1])
    draws = mean + deviation * rng.standard_normal((4000, 6, 4))
    found = [gradient_noise(some) for some in draws]
    signal, noise = mean @ mean, deviation @ deviation
    assert np.mean([x.signal for x in found]) == pytest.approx(signal, abs=0.05)
    assert np.mean([x.variance for x in found]) == pytest.approx(noise, rel=0.02)
    assert min(x.signal for x in found) < 0
    one = gradient_noise(draws[0])
    gram = draws[0] @ draws[0].T
    assert one.signal == pytest.approx((gram.sum() - np.trace(gram)) / 30)
    assert one.variance == pytest.approx(np.trace(gram) / 6 - one.signal)
    assert abs(gradient_noise(draws.reshape(-1, 4)[:2000]).scale / (noise / signal) - 1) < 0.3
    assert Noise(-1.0, 0.1, 5.0).scale == Noise(-1.0, 0.1, 5.0).at_least == float("inf")
    assert Noise(-1.0, 2.0, 6.0).at_least == 2.0
    # Of several agents: means over them.
    both, alone_ = gradient_noise(draws[:2].transpose(1, 0, 2)), found[:2]
    assert both.signal == pytest.approx(np.mean([x.signal for x in alone_]))
    assert both.variance == pytest.approx(np.mean([x.variance for x in alone_]))


@pytest.mark.parametrize(("size", "most"), [(0.0, 2.1), (0.3, 1.4), (3.0, 1.1)])
def test_the_error_of_a_signal_is_its_spread_from_set_to_set(size, most):
    """At no signal at all a jackknife is careful: its variance is twice the true one."""
    draws = size + np.random.default_rng(1).standard_normal((2000, 16, 8))
    found = [gradient_noise(some) for some in draws]
    spread = np.std([x.signal for x in found])
    assert 0.95 < np.sqrt(np.mean([x.error**2 for x in found])) / spread < most


def test_the_error_is_a_jackknife_over_rollouts():
    rng = np.random.default_rng(2)
    draws, span = 0.5 + rng.standard_normal((6, 3, 4)), 1

    def signal(kept: list[int]) -> float:
        pairs = [draws[a, i] @ draws[b, i] for a in kept for b in kept if abs(a - b) > span for i in range(3)]
        return float(np.mean(pairs))

    without = [signal([b for b in range(6) if b != a]) for a in range(6)]
    found = gradient_noise(draws, span)
    assert found.signal == pytest.approx(signal(list(range(6))))
    assert found.error == pytest.approx(np.sqrt(5 / 6 * np.sum((np.array(without) - np.mean(without)) ** 2)))


def test_what_goes_on_in_the_next_rollout_is_no_signal():
    """Half of the variance is shared by neighbours, and none by others."""
    rng = np.random.default_rng(3)
    parts = rng.standard_normal((1000, 21, 8))
    draws = 0.2 + (parts[:, 1:] + parts[:, :-1]) / np.sqrt(2)
    with_neighbours, apart = (np.mean([gradient_noise(some, span).signal for some in draws]) for span in (0, 1))
    assert apart == pytest.approx(8 * 0.04, abs=0.03)
    assert with_neighbours > apart + 0.2


def test_gradients_without_chance_have_no_noise():
    found = gradient_noise(np.tile(np.array([3.0, 4.0]), (5, 1)))
    assert found == Noise(25.0, 0.0, 0.0) and found.scale == 0
