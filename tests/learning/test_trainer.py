"""Two phases: what the second takes over, what it starts afresh, and what it never touches."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    assert_close,
    assert_same,
    differs,
    every_scheme,
    make_diary,
    random_trajectory,
    small_config,
    two_phases,
    with_roles,
)

from lorasa_jax.config import ConfigError
from lorasa_jax.learning import trainer as trainer_module
from lorasa_jax.learning.system import is_two_phase
from lorasa_jax.learning.trainer import count_params, make_trainer, train

KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def run():
    """Two iterations of the trunk, then adapters are attached, two iterations of the adapters."""
    phases = two_phases()
    states = [phases.init(KEY)]
    for step in (phases.shared, phases.shared, phases.attach_adapters, phases.adapters, phases.adapters):
        states.append(step(states[-1]))
    return states


@pytest.mark.parametrize("adapting", [pytest.param(False, marks=pytest.mark.slow), True])
def test_statistics_of_inputs_grow_with_the_trunk_and_freeze_with_it(adapting):
    config = small_config(sharing="lorasa", standardise=True)
    trainer = make_trainer(config, make_diary(), adapting=adapting)
    before, t = jax.jit(trainer.init)(KEY), random_trajectory(trainer.system)
    measured = trainer.system.inputs.measure(t.obs, t.state, t.alive)
    after, _ = jax.jit(trainer.update)(before, before.rollout, t._replace(inputs=measured))
    expected = before.learner.inputs if adapting else measured
    assert_close(after.learner.inputs, expected, atol=1e-5)
    assert_same(trainer.weights(after).inputs, after.learner.inputs)


def test_grafting_keeps_everything_but_what_agents_own_to_the_bit(run):
    before, after = run[2], run[3]
    assert_same(after.learner.actor.shared, before.learner.actor.shared)
    for name in ("critic", "critic_opt", "value_norm"):
        assert_same(getattr(after.learner, name), getattr(before.learner, name))
    assert_same(after.rollout, before.rollout)
    assert after.iteration == before.iteration == 2
    assert (after.key == before.key).all()
    assert before.learner.actor.agents == {}


def test_the_optimiser_of_adapters_starts_afresh_and_the_trunk_has_none(run):
    assert set(run[2].learner.actor_opt) == {"shared"}
    opt = run[3].learner.actor_opt
    assert set(opt) == {"agent"}
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(opt))


def test_the_first_adapted_policy_plays_as_the_shared_one_did(run):
    phases = two_phases()
    assert_same(phases.second.weights(run[3]), phases.first.weights(run[2]))


def test_the_trunk_never_changes_in_the_second_phase(run):
    for state in run[4:]:
        assert_same(state.learner.actor.shared, run[2].learner.actor.shared)
        assert set(state.learner.actor_opt) == {"agent"}


def test_phases_train_what_they_should_and_the_critic_goes_on(run):
    assert all(differs(run[2].learner.actor.shared, run[1].learner.actor.shared))
    for before, after in ((1, 2), (3, 4), (4, 5)):
        assert all(differs(run[after].learner.critic, run[before].learner.critic))
    own = run[5].learner.actor.agents
    assert all(differs(own, run[4].learner.actor.agents))
    for leaf in jax.tree.leaves(own):
        assert len(np.unique(np.asarray(leaf).reshape(len(leaf), -1), axis=0)) == len(leaf)  # no two agents alike
    steps = run[5].learner.critic_opt[1].count
    ppo = two_phases().config.ppo
    np.testing.assert_array_equal(steps, 4 * ppo.epochs * ppo.minibatches)


@pytest.mark.slow
def test_a_whole_run_is_its_iterations(run):
    phases = two_phases()
    config = replace(phases.config, switch_step=2 * phases.config.steps_per_iteration)
    state, metrics = jax.jit(train(replace(config, total_steps=4 * config.steps_per_iteration), phases.env))(KEY)
    assert_close(state.learner, run[5].learner, atol=1e-4)
    assert state.iteration == 4
    assert {leaf.shape for leaf in metrics.values()} == {(4,)}


def test_every_iteration_has_chance_of_its_own(run):
    phases, state = two_phases(), run[0]
    weights = phases.first.weights(state)
    actions = [
        phases.collect(weights, state.learner.critic, state.rollout, key, jnp.int32(i))[1].action
        for key, i in ((KEY, 0), (KEY, 0), (KEY, 1), (jax.random.key(8), 0))
    ]
    assert [np.array_equal(actions[0], other) for other in actions[1:]] == [True, False, False]


def test_no_key_serves_two_purposes():
    uses = [trainer_module._key(KEY, purpose, jnp.int32(i)) for purpose in range(5) for i in range(3)]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in uses}) == len(uses)


def test_play_learning_and_evaluation_have_chances_of_their_own(monkeypatch):
    def noted(key, purpose, iteration):
        purposes.append(purpose)
        return key

    purposes = []
    monkeypatch.setattr(trainer_module, "_key", noted)
    trainer = make_trainer(two_phases().config, two_phases().env)
    state = jax.eval_shape(trainer.init, KEY)
    purposes.clear()
    jax.eval_shape(trainer.step, state)
    jax.eval_shape(trainer.evaluate, jax.eval_shape(trainer.weights, state), state.key, state.iteration, True)
    assert purposes == [trainer_module._COLLECT, trainer_module._UPDATE, trainer_module._EVALUATE]


def test_a_run_within_one_program_cannot_wait_for_evaluations():
    with pytest.raises(ConfigError, match="give a step"):
        train(replace(two_phases().config, switch_step="auto"), two_phases().env)


@pytest.mark.parametrize("adapting", [False, True])
def test_learning_rates_fall_to_zero_with_the_budget(monkeypatch, run, adapting):
    def nothing_moves(system, learner, trajectory, rates, key):
        return learner, {"critic_lr": rates.critic}

    monkeypatch.setattr(trainer_module, "run_schedule", nothing_moves)
    config, env = two_phases().config, two_phases().env
    ppo = replace(config.ppo, anneal_lr=True, lr=0.5, critic_lr=0.25)
    four = replace(config, ppo=ppo, total_steps=4 * config.steps_per_iteration)
    trainer, state = make_trainer(four, env, adapting=adapting), run[3 if adapting else 0]
    state, nothing = state._replace(lr=jnp.float32(0.5)), random_trajectory(trainer.system)
    said = [trainer.update(state._replace(iteration=jnp.int32(i)), state.rollout, nothing)[1] for i in range(4)]
    np.testing.assert_allclose([metrics["lr"] for metrics in said], [0.5, 0.375, 0.25, 0.125])
    np.testing.assert_allclose([metrics["critic_lr"] for metrics in said], [0.25, 0.1875, 0.125, 0.0625])


def test_the_same_key_gives_the_same_start_and_another_key_another():
    init = two_phases().init
    assert_same(init(KEY).learner, run_of := init(KEY).learner)
    kernels = {name: leaves["kernel"] for name, leaves in run_of.actor.shared.items() if "kernel" in leaves}
    other = init(jax.random.key(8)).learner.actor.shared
    assert all(differs(kernels, {name: other[name]["kernel"] for name in kernels}))


@every_scheme
def test_parameters_are_counted_by_hand(scheme):
    config, env = small_config(sharing=scheme, recurrent=True), make_diary()
    n, hidden, rank = env.spec.n_agents, config.actor.hidden, config.rank

    def network(width, out):
        kernels = [(width, hidden), (hidden, 3 * hidden), (hidden, 3 * hidden), (hidden, hidden), (hidden, out)]
        norms = [width, hidden, hidden, hidden]
        return kernels, sum(i * o + o for i, o in kernels) + 2 * sum(norms)

    kernels, trunk = network(env.spec.obs_dim, env.spec.n_actions)
    trunk += n * hidden if scheme in ("ps_id", "ps_restart", "lorasa", "lorasa_joint") else 0  # embeddings of ids
    own = sum(rank * (i + o) if rank < min(i, o) else i * o for i, o in kernels)
    weights = sum(i * o for i, o in kernels)
    head = kernels[-1][0] * kernels[-1][1] + kernels[-1][1]
    shared, per_agent = {
        "ps": (trunk, 0),
        "ps_id": (trunk, 0),
        "ps_restart": (trunk, 0),
        "nps": (0, trunk),
        "mtl": (trunk - head, head),
        "hyper": (trunk + rank * weights, rank),
        "mask": (trunk, weights),
        "lorasa": (trunk, own),
        "lorasa_joint": (trunk, own),
        "seps": (2 * trunk, 0),
        "seps_lora": (2 * trunk, own),
    }[scheme]
    owners = n if scheme in ("nps", "mtl", "hyper", "mask", "lorasa", "lorasa_joint", "seps_lora") else 0
    critic, alone = network(env.spec.state_dim, 1)[1], n * network(env.spec.obs_dim, env.spec.n_actions)[1]
    assert count_params(make_trainer(config, env, adapting=is_two_phase(config, env))) == {
        "shared": shared,
        "per_agent": per_agent,
        "owners": owners,
        "critic": critic,
        "actors": shared + n * per_agent,
        "total": shared + n * per_agent + critic,
        "nps_actors": alone,
        "nps_total": alone + critic,
    }


def test_the_second_phase_may_learn_at_a_rate_of_its_own(run):
    phases = two_phases()
    ppo = replace(phases.config.ppo, adapter_lr=0.25)
    second = make_trainer(replace(phases.config, ppo=ppo), phases.env, adapting=True)
    assert run[2].lr == run[5].lr == np.float32(phases.config.ppo.lr)
    assert trainer_module.attach_adapters(second, run[2]).lr == 0.25


def test_a_shared_policy_that_restarts_keeps_all_but_its_optimiser(run):
    config = replace(two_phases().config, sharing="ps_restart")
    second = make_trainer(config, two_phases().env, adapting=True)
    after = trainer_module.attach_adapters(second, run[2])
    fresh = second.system.optimizer.init(after.learner.actor.shared)
    assert_same(after.learner.actor, run[2].learner.actor)
    assert_same(after.learner.actor_opt, {"shared": fresh})
    assert_same(after.learner._replace(actor_opt={}), run[2].learner._replace(actor_opt={}))


@pytest.mark.parametrize(("chosen", "goes_on"), [(None, True), ("carry", True), ("restart", False)])
def test_the_optimiser_of_a_trunk_that_is_not_frozen_goes_on_or_restarts(run, chosen, goes_on):
    phases = two_phases()
    config = replace(phases.config, freeze_trunk=False, ppo=replace(phases.config.ppo, trunk_optimizer=chosen))
    second = make_trainer(config, phases.env, adapting=True)
    before, after = run[2].learner, trainer_module.attach_adapters(second, run[2]).learner
    assert set(after.actor_opt) == {"shared", "agent"}
    fresh = second.system.optimizer.init(after.actor.shared)
    assert any(differs(before.actor_opt["shared"], fresh))
    assert_same(after.actor_opt["shared"], before.actor_opt["shared"] if goes_on else fresh)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(after.actor_opt["agent"]))


def test_a_team_level_is_counted_once():
    config = small_config(sharing="lorasa", levels=("team", "agent"))
    sizes = count_params(make_trainer(config, make_diary(), adapting=True))
    alone = count_params(make_trainer(replace(config, levels=("agent",)), make_diary(), adapting=True))
    of_team = sizes["per_agent"] - alone["per_agent"]
    assert of_team == alone["per_agent"]
    assert (sizes["owners"], sizes["actors"]) == (4, alone["actors"] + of_team)


@pytest.mark.parametrize("roles", [{"roles": (0, 1, 1)}, {"n_roles": 2}])
def test_what_a_role_owns_is_counted_once(roles):
    env, sizes = with_roles(make_diary(), **roles), {}
    for key in ("agent", "unit_type", "unit_type agent"):
        config = small_config(sharing="lorasa", levels=(key,))
        sizes[key] = count_params(make_trainer(config, env, adapting=True))
    own = sizes["agent"]["per_agent"]
    assert [(x["owners"], x["per_agent"], x["actors"] - x["shared"]) for x in sizes.values()] == [
        (3, own, 3 * own),
        (2, own, 2 * own),
        (5, 2 * own, 5 * own),
    ]
