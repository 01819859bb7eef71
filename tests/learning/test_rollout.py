"""What a rollout writes down can be recomputed, episode by episode; nothing leaks from one into the next.

The diary (see `helpers`) numbers its episodes and shows their age, so a trajectory can be taken apart.
"""

from __future__ import annotations

from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    DIARY_LIMIT,
    KEY,
    assert_close,
    assert_same,
    make_diary,
    random_params,
    role_in,
    small_config,
    with_roles,
)

from lorasa_jax.core.distributions import categorical, mask_logits
from lorasa_jax.core.types import Weights
from lorasa_jax.envs.toy import ceilings, make_toy
from lorasa_jax.learning import rollout
from lorasa_jax.learning.rollout import (
    STEPS_PER_START,
    collect,
    evaluate,
    initial_state,
    mark_missing,
    record_episode,
    select,
)
from lorasa_jax.learning.system import make_system

ENVS, LENGTH, CHUNK = 4, 2 * STEPS_PER_START, 8


SETTINGS = {
    "clocked": {"time_limit": "bootstrap", "critic": {"scope": "agent"}},
    "endless": {"time_limit": "terminal", "critic": {"scope": "team"}, "reset_on_death": True},
}
both = pytest.mark.parametrize("name", SETTINGS)


@cache
def play(name: str) -> SimpleNamespace:
    """Two rollouts in a row, by recurrent agents whose adapters are far from their start."""
    size = {"n_envs": ENVS, "rollout_length": LENGTH, "eval_episodes": 256, "ppo": {"chunk_length": CHUNK}}
    config = small_config(sharing="lorasa", recurrent=True, **size, **SETTINGS[name])
    system = make_system(config, make_diary(), adapting=True)
    actor, critic = random_params(system.actor, 1), random_params(system.critic, 2)
    weights, program = Weights(system.weights(actor)), jax.jit(partial(collect, system))
    start = jax.jit(partial(initial_state, system))(KEY)
    middle, one, statistics_one = program(weights, critic, start, jax.random.key(1))
    end, two, statistics_two = program(weights, critic, middle, jax.random.key(2))
    return SimpleNamespace(
        system=system,
        actor=actor,
        critic=critic,
        weights=weights,
        program=program,
        states=(start, middle, end),
        rollouts=(one, two),
        steps=jax.tree.map(lambda *leaves: np.concatenate(leaves), one, two),
        statistics=(statistics_one, statistics_two),
    )


@pytest.fixture
def played() -> SimpleNamespace:
    return play("clocked")


def starts(steps) -> tuple[np.ndarray, np.ndarray]:
    return np.nonzero(steps.first)


def windows(steps, x: np.ndarray) -> np.ndarray:
    """Every episode from its start, as a column: [limit, episodes, ...], with what follows its end to be ignored."""
    time, env = starts(steps)
    padded = np.concatenate([x, np.zeros_like(x[:DIARY_LIMIT])])
    return np.stack([padded[time + age, env] for age in range(DIARY_LIMIT)])


def within(steps) -> np.ndarray:
    """The steps of `windows` that belong to the episode and were played, [limit, episodes]."""
    follows = windows(steps, np.where(steps.first, 2, 1))  # 0 where nothing was played any more
    return np.logical_and.accumulate(np.concatenate([follows[:1] == 2, follows[1:] == 1]))


def log_prob(logits, avail, action) -> np.ndarray:
    return np.asarray(categorical.log_prob(mask_logits(logits, jnp.asarray(avail)), jnp.asarray(action)))


def test_an_episode_opens_after_every_end_and_only_there(played):
    s = played.steps
    np.testing.assert_array_equal(s.first[1:], (s.terminated | s.truncated)[:-1])
    assert s.first[0].all()
    np.testing.assert_array_equal(played.states[2].first, (s.terminated | s.truncated)[-1])
    assert s.terminated.any()
    assert s.truncated.any()
    np.testing.assert_array_equal(s.first, s.state[..., 1] == 0)


def test_agents_and_environments_keep_their_places(played):
    s = played.steps
    np.testing.assert_allclose(s.obs[..., 2], np.broadcast_to(np.arange(3) / 3, s.alive.shape))
    np.testing.assert_array_equal(s.obs[..., :2], np.broadcast_to(s.state[:, :, None], (*s.alive.shape, 2)))
    # The number of an episode changes with the episode, in its own environment.
    changes = s.state[1:, :, 0] != s.state[:-1, :, 0]
    assert not (changes & ~s.first[1:]).any()
    chance = s.obs[~s.first][..., 3]
    assert len(np.unique(chance)) == chance.size  # no two agents, environments or steps share theirs


def test_actions_are_available_and_what_agents_were_is_from_before_they_acted(played):
    s = played.steps
    assert np.take_along_axis(s.avail, s.action[..., None], axis=-1).all()
    np.testing.assert_array_equal(s.alive, ~s.avail[..., 0])
    assert s.alive[s.first].all()
    assert (~s.alive).any()


@pytest.mark.parametrize("rollout", [0, 1])
@both
def test_log_probs_and_values_follow_from_the_carries_that_were_kept(name, rollout):
    """The factored policy that is trained, unrolled over the chunks, repeats the merged one that played."""
    p, t = play(name), play(name).rollouts[rollout]

    def chunks(x):
        return jnp.moveaxis(x.reshape(LENGTH // CHUNK, CHUNK, *x.shape[1:]), 0, 1).reshape(CHUNK, -1, *x.shape[2:])

    def unrolled(policy, params, carry, inputs, first):
        return jax.jit(policy.unroll)(params, jax.lax.collapse(carry, 0, 2), chunks(inputs), chunks(first))[1]

    first = p.system.actor_first(t.first, t.alive)
    logits = unrolled(p.system.actor, p.actor, t.actor_carry, t.obs, first)
    assert_close(log_prob(logits, chunks(t.avail), chunks(t.action)), chunks(t.log_prob))
    view, first = p.system.critic_view(t.obs, t.state), p.system.critic_first(t.first, t.alive)
    assert_close(unrolled(p.system.critic, p.critic, t.critic_carry, view, first)[..., 0], chunks(t.value))
    assert_same(t.actor_carry[0], p.states[rollout].actor_carry)


@both
def test_every_episode_is_played_as_if_it_were_the_only_one(name):
    """From zero: so an end resets, survivors' states do not outlive it, and a death resets only where it should."""
    s, system = play(name).steps, play(name).system
    obs, alive, inside = windows(s, s.obs), windows(s, s.alive), within(s)
    first = ~alive if system.config.reset_on_death else np.zeros_like(alive)
    _, logits = jax.jit(system.acting.unroll)(
        play(name).weights.actors, system.acting.initial_carry(obs.shape[1]), obs, jnp.asarray(first)
    )
    alone = log_prob(logits, windows(s, s.avail), windows(s, s.action))
    assert_close(alone[inside], windows(s, s.log_prob)[inside])
    assert (inside & ~alive.all(axis=-1)).sum() > 10


def test_values_are_those_of_the_episode_and_next_values_those_of_the_state_before_any_reset(played):
    s, system = played.steps, played.system
    inside = within(s)
    # What the critic sees is the episode's number and age: also at the end, which no trajectory shows.
    number = np.broadcast_to(windows(s, s.state)[0, :, 0], (DIARY_LIMIT + 1, inside.shape[1]))
    age = np.broadcast_to(np.arange(DIARY_LIMIT + 1)[:, None] / DIARY_LIMIT, number.shape)
    state = jnp.asarray(np.stack([number, age], axis=-1), jnp.float32)
    view = system.critic_view(jnp.zeros((*number.shape, 3, 4)), state)
    carry, first = system.critic.initial_carry(number.shape[1]), jnp.zeros(number.shape, bool)
    value = np.asarray(jax.jit(system.critic.unroll)(played.critic, carry, view, first)[1])[..., 0]
    assert_close(windows(s, s.value)[inside], value[:-1][inside])
    counts = inside & ~windows(s, s.terminated)
    assert_close(windows(s, s.next_value)[counts], value[1:][counts])
    assert (inside & windows(s, s.truncated)).any()


def test_without_time_limits_the_next_value_is_the_next_step():
    p = play("endless")
    for t, later in zip(p.rollouts, p.states[1:], strict=True):
        assert_close(t.next_value[:-1], t.value[1:])
        view = p.system.critic_view(later.timestep.obs, later.timestep.state)
        _, last = p.system.critic.unroll(p.critic, later.critic_carry, view[None], later.first[None])
        assert_close(t.next_value[-1], last[0, ..., 0])
        assert t.value.shape == (LENGTH, ENVS, 1)
        # Whatever ends an episode is an end: nothing is read across it.
        assert not t.truncated.any()
        assert_same(t.terminated, jnp.concatenate([t.first[1:], later.first[None]]))


def test_carries_go_on_from_one_rollout_to_the_next(played):
    one, two = played.rollouts
    for name in ("actor_carry", "critic_carry"):
        assert_same(getattr(two, name)[0], getattr(played.states[1], name))
        assert np.any(getattr(played.states[1], name))
        assert not np.any(getattr(one, name)[0])
    assert_same(two.obs[0], played.states[1].timestep.obs)


def test_every_rollout_has_start_states_of_its_own(played):
    """An environment goes through its own part of the pool, one state for every 16 steps, and begins again."""
    pool = LENGTH // STEPS_PER_START
    seen = set(np.asarray(played.states[0].timestep.state[:, 0]).tolist())
    for t, later in zip(played.rollouts, played.states[1:], strict=True):
        number, first = (np.concatenate([x, y[None]]) for x, y in (
            (t.state[..., 0], later.timestep.state[:, 0]), (t.first, later.first),
        ))  # fmt: skip
        for env in range(ENVS):
            begun = number[1:, env][first[1:, env]].tolist()  # what was begun within the rollout
            assert len(begun) > pool
            assert begun == [begun[k % pool] for k in range(len(begun))]
            assert len(set(begun)) == pool
            assert not seen & set(begun)
            seen |= set(begun)


def test_chance_is_the_keys_and_nothing_else(played):
    again = played.program(played.weights, played.critic, played.states[0], jax.random.key(1))
    assert_same(again[1], played.rollouts[0])
    other = played.program(played.weights, played.critic, played.states[0], jax.random.key(3))
    assert np.any(other[1].action != played.rollouts[0].action)


def test_statistics_are_means_over_the_episodes_that_ended(played):
    s = played.steps
    over = s.terminated | s.truncated
    time, env = np.nonzero(over)
    # One per step is paid, so the return is the length; it counts from where the episode began, in either rollout.
    length = np.round(s.state[time, env, 1] * DIARY_LIMIT) + 1
    for k, statistics in enumerate(played.statistics):
        here = time // LENGTH == k
        assert statistics["episodes"] == here.sum()
        assert statistics["length"] == pytest.approx(length[here].mean())
        assert statistics["return"] == pytest.approx(length[here].mean())
        assert statistics["win_rate"] == pytest.approx((length[here] % 2 == 0).mean())
    assert (time[length > time + 1]).size == 0


def test_evaluation_plays_every_environment_once(played):
    """Of lengths drawn evenly from 1 to 6, the mean is 3.5 only if short episodes do not count more often."""
    measured = jax.jit(partial(evaluate, played.system))(played.weights, KEY, True)
    assert measured["return"] == measured["length"]  # what is paid after the end does not count
    assert measured["length"] == pytest.approx(3.5, abs=0.25)
    assert measured["win_rate"] == pytest.approx(0.5, abs=0.1)


def test_what_a_game_says_after_its_end_does_not_count():
    system, plain = play("clocked").system, make_diary()

    def step(key, state, action):
        over = state.time >= state.length
        state, shown = plain.step(key, state, action)
        return state, shown._replace(reward=jnp.where(over, jnp.nan, shown.reward), won=shown.won | over)

    spoilt = system._replace(env=plain._replace(step=step))
    weights, key = play("clocked").weights, jax.random.key(8)
    assert_same(*(jax.jit(partial(evaluate, s, greedy=True))(weights, key) for s in (spoilt, system)))


def test_greedy_evaluation_takes_the_likeliest_action_and_sampling_draws():
    env = make_toy("specialisation", 3)
    system = make_system(small_config(eval_episodes=512), env)
    indifferent = Weights(jax.tree.map(jnp.zeros_like, random_params(system.acting)))
    program = jax.jit(partial(evaluate, system))
    known = ceilings("specialisation", 3)
    # Every logit is equal: all take action 0, or any.
    for seed in range(2):
        assert program(indifferent, jax.random.key(seed), True)["return"] == pytest.approx(known.shared_greedy)
    sampled = [program(indifferent, jax.random.key(seed), False)["return"].item() for seed in range(2)]
    assert sampled[0] != sampled[1]
    assert sampled == pytest.approx([known.chance] * 2, abs=0.03)


@pytest.mark.slow
def test_what_is_standardised_is_what_the_networks_see_and_what_is_written_down():
    system = make_system(small_config(standardise=True), make_diary())
    weights, critic = Weights(system.acting.init(KEY), system.inputs.init()), random_params(system.critic, 2)
    program, start = jax.jit(partial(collect, system)), initial_state(system, KEY)
    raw = program(weights, critic, start, KEY)[1]  # without statistics nothing changes
    stats = system.inputs.update(weights.inputs, raw.inputs)
    _, same, _ = program(weights._replace(inputs=system.inputs.update(stats, raw.inputs)), critic, start, KEY)
    _, seen, _ = program(weights._replace(inputs=stats), critic, start, KEY)
    assert_close((seen.obs[0], seen.state[0]), system.inputs.apply(stats, raw.obs[0], raw.state[0]))
    assert_close((same.obs[0], same.state[0]), (seen.obs[0], seen.state[0]), atol=1e-4)
    assert_close((raw.state.mean((0, 1)), raw.obs.mean((0, 1))), (raw.inputs[1].mean, raw.inputs[0].mean))
    # Statistics are of what the environment showed, whatever the networks saw of it.
    assert_close(seen.inputs[1].mean[0], start.timestep.state[:, 0].mean(), atol=2.0)
    _, logits = system.acting.unroll(weights.actors, start.actor_carry, seen.obs[:1], seen.first[:1])
    logits = system.dist.mask(logits, seen.avail[:1])
    assert_close(system.dist.log_prob(logits, seen.action[:1]), seen.log_prob[:1])


@both
def test_a_recorded_episode_has_all_its_states(name):
    p = play(name)
    states = record_episode(p.system, p.weights, KEY)
    np.testing.assert_array_equal(states.time, np.arange(states.length[0] + 1))
    assert len(np.unique(states.number)) == 1


def test_where_no_episode_ended_programs_say_0_and_the_host_says_nan():
    """So that JAX_DEBUG_NANS, here for the second of two seeds, finds no NaN that means nothing."""
    done = jnp.array([[[True, False]], [[False, False]]])
    ended = {"done": done, "won": ~done, "return": jnp.full(done.shape, 3.0), "length": jnp.full(done.shape, 7)}
    with jax.debug_nans(True):
        said = jax.jit(jax.vmap(rollout._episode_statistics))(ended)
    metrics = {name: np.asarray(value) for name, value in said.items()}
    assert {name: value.tolist() for name, value in metrics.items()} == {
        "episodes": [1, 0], "return": [3, 0], "win_rate": [0, 0], "length": [7, 0],
    }  # fmt: skip
    marked = mark_missing({**metrics, "kl": np.zeros(2)})
    expected = {"episodes": [1, 0], "return": [3, np.nan], "win_rate": [0, np.nan], "length": [7, np.nan], "kl": [0, 0]}
    for name, values in expected.items():
        np.testing.assert_array_equal(marked[name], values)
    assert marked["return"].dtype == np.float32


def test_selection_is_by_environment():
    mask = jnp.array([True, False])
    yes, no = {"a": jnp.ones((2, 3)), "b": jnp.ones(2, int)}, {"a": jnp.zeros((2, 3)), "b": jnp.zeros(2, int)}
    assert_same(select(mask, yes, no), {"a": jnp.array([[1.0] * 3, [0.0] * 3]), "b": jnp.array([1, 0])})


def test_roles_that_change_are_written_down_and_played_from_one_episode_to_the_next():
    env, n_roles = with_roles(make_diary(), n_roles=4), 4
    config = small_config(sharing="lorasa", levels=("unit_type",), recurrent=True, ppo={"chunk_length": 8})
    system = make_system(config, env, adapting=True)
    actor, critic = random_params(system.actor, 1), random_params(system.critic, 2)
    start = initial_state(system, KEY)
    _, t, _ = jax.jit(partial(collect, system))(Weights(system.weights(actor)), critic, start, jax.random.key(1))
    number = t.obs[:, :, 0, 0]
    assert t.first[1:].any()
    np.testing.assert_array_equal(t.owner, role_in(number, env.spec.n_agents, n_roles))
    # Who plays is who learns: before any update every ratio is 1.
    _, logits = jax.jit(system.actor.unroll)(actor, t.actor_carry[0], t.obs, t.first, owner=t.owner)
    again = categorical.log_prob(mask_logits(logits, t.avail), t.action)
    assert_close(again, t.log_prob, atol=1e-5)
    # At rest, adapters of all owners change nothing, and both phases play with the same program.
    first = make_system(config, env)
    weights = jax.eval_shape(first.weights, jax.eval_shape(first.actor.init, KEY))
    assert jax.tree.map(jnp.shape, weights) == jax.tree.map(jnp.shape, system.weights(actor))
