"""Forks go on from a backbone as a run of their own would, whatever they share a program with."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    KEY,
    assert_close,
    assert_same,
    differs,
    make_diary,
    random_trajectory,
    row_of,
    small_config,
    two_phases,
    with_roles,
)

from lorasa_jax.config import ConfigError
from lorasa_jax.core.types import TrainState
from lorasa_jax.learning.trainer import attach_adapters, make_trainer
from lorasa_jax.running.forks import backbone_config, common_config, fork, own_adapters, share_programs
from lorasa_jax.running.loop import run
from lorasa_jax.running.state import ADAPTERS, SHARED, Best, RunState

ENV = make_diary()  # 3 actions, 4 + 3 inputs; with 8 hidden units rank 3 is full for the head, 7 for all but that
CONFIG = small_config(sharing="lorasa", rank=1, ppo={"lr": 3e-3})
PLACED = [("all",), ("head",), ("fc*", "after*")]


def make(rank: int = 1, placement: tuple[str, ...] = ("all",), **changes):
    return replace(CONFIG, rank=rank, placement=placement, **changes)


def run_state(train: TrainState, rows: int) -> RunState:
    """Rows of a first phase, with keys of their own."""
    keys = jax.random.split(KEY, rows)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * rows), train._replace(key=KEY))._replace(key=keys)
    best = Best.none(stacked)
    return RunState(SHARED, stacked, best, (None,) * rows, (), tuple(float(k) for k in range(rows)), 1, 0.0, 0.0)


@cache
def backbone() -> RunState:
    return run_state(jax.jit(make_trainer(CONFIG, ENV).init)(KEY), 2)


@pytest.mark.parametrize(
    ("configs", "groups"),
    [
        ([make(1), make(8), make(3), make(2)], [(0, 3), (1,), (2,)]),  # full nowhere, everywhere, for the head
        ([make(2, place) for place in PLACED], [(0, 1, 2)]),
        ([make(3, ("head",)), make(3), make(2, ("head",)), make(1)], [(0, 1), (2, 3)]),
        ([make(8, ("head",)), make(8)], [(0,), (1,)]),  # a full-rank layer cannot be masked
        ([make(2, alpha=2.0), make(1)], [(0, 1)]),  # both at alpha / rank = 1
        ([make(2, alpha=1.0), make(1)], [(0,), (1,)]),
        ([make(seed=1), make(switch_step=0), make(ppo=replace(CONFIG.ppo, adapter_lr=1.0))], [(0, 1, 2)]),
        ([make(), make(sharing="ps_restart"), make(ppo=replace(CONFIG.ppo, gamma=0.5))], [(0,), (1,), (2,)]),
        ([make(sharing="ps_restart", rank=r) for r in (1, 3, 8)], [(0, 1, 2)]),
        ([make(levels=("agent:1",)), make(2), make(2, levels=("agent:2/head",))], [(0, 1, 2)]),
        ([make(levels=("team:1", "agent:2")), make(levels=("team:2/head", "agent")), make()], [(0, 1), (2,)]),
        ([make(levels=("agent@0.5",)), make(), make(freeze_trunk=False)], [(0,), (1,), (2,)]),
    ],
)
def test_forks_share_a_program_where_the_same_layers_are_full(configs, groups):
    assert share_programs(configs, ENV) == groups


@pytest.mark.parametrize(
    "changes",
    [{"levels": ("agent:1",), "alpha": 2.0}, {"levels": ("agent:4@0.5",), "alpha": 4.0}, {"alpha": 4.0}, {}],
)
def test_a_shared_program_scales_as_each_fork_does(changes):
    """Also where `rank`, which means nothing beside ranks of levels, is alpha, or differs."""
    config = make(2, **changes)
    others = [replace(config, seed=3), *([replace(config, rank=3)] if "levels" in changes else [])]
    assert common_config([config, *others]).adapter_levels == config.adapter_levels


def test_a_shared_program_has_the_largest_rank_and_all_layers_of_every_level():
    config = make(levels=("team:1/head", "agent:2@0.5"))
    found = common_config([config, replace(config, levels=("team:3/after1", "agent@0.5"))])
    assert found.levels == ("team:3/after1+head", "agent:2@0.5/fc1+after1+head")
    assert common_config([config, replace(config, seed=1)]).levels == config.levels


def test_levels_with_ranks_of_their_own_keep_their_scales():
    config = make(2, levels=("unit_type:1", "agent:2"), alpha=2.0)
    assert [level.scale for level in common_config([config]).adapter_levels] == [2.0, 1.0]


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [("lorasa", "ps_id"), ("ps_restart", "ps_id"), ("seps_lora", "seps"), ("nps", "nps"), ("mtl", "mtl")],
)
def test_the_backbone_of_a_scheme_is_its_trunks(scheme, expected):
    changes = {"groups": (0, 1, 0)} if scheme == "seps_lora" else {}
    config = make(2, ("head",), sharing=scheme, seed=3, switch_step=0, alpha=5.0, **changes)
    found = backbone_config(config, ENV)
    assert found.sharing == expected
    assert found == backbone_config(make(sharing=scheme, **changes), ENV)


@pytest.mark.parametrize("scheme", ["hyper", "mask"])
def test_the_backbone_of_one_phase_keeps_what_shapes_it(scheme):
    found = backbone_config(make(2, ("head",), sharing=scheme, seed=3, switch_step=0), ENV)
    assert found == backbone_config(make(2, ("head",), sharing=scheme), ENV)
    assert (found.sharing, found.rank, found.placement, found.seed) == (scheme, 2, ("head",), 0)


def test_the_backbone_of_joint_training_is_the_whole_run():
    settings = {"levels": ("team:2", "agent@0.1"), "alpha": 4.0, "switch_step": 0}
    found = backbone_config(make(2, ("head",), sharing="lorasa_joint", seed=3, **settings), ENV)
    assert found == make(2, ("head",), sharing="lorasa_joint", **settings)


def test_the_backbone_of_a_trunk_that_goes_on_does_not_know_it():
    config = make(freeze_trunk=False, ppo=replace(CONFIG.ppo, trunk_optimizer="restart"))
    assert backbone_config(config, ENV) == backbone_config(make(), ENV)


def test_the_backbone_of_roles_knows_none():
    env = with_roles(ENV, roles=(0, 1, 1))
    config = make(levels=("unit_type:1", "agent:2"))
    assert backbone_config(config, env) == backbone_config(make(), env)


@pytest.fixture(scope="module")
def forked():
    """Forks of different ranks, layers, rates and origins in one program, and each by itself."""
    rates = replace(CONFIG.ppo, adapter_lr=1e-2)
    configs = [make(2), make(1, ("head", "fc*")), make(1, ("after*",), ppo=rates)]
    origins = [(backbone(), k % 2) for k in range(len(configs))]
    common = common_config(configs)
    trainer = make_trainer(common, ENV, adapting=True)
    start = fork(configs, ENV, origins)
    return SimpleNamespace(configs=configs, origins=origins, common=common, trainer=trainer, start=start)


def test_a_fork_begins_as_its_backbone_to_the_bit(forked):
    first = make_trainer(CONFIG, ENV)
    for k, (origin, row) in enumerate(forked.origins):
        state, before = row_of(forked.start.train, k), row_of(origin.train, row)
        assert_same(state.learner.actor.shared, before.learner.actor.shared)
        assert_same(state.learner.critic, before.learner.critic)
        assert_same(state.rollout, before.rollout)
        assert (state.key == before.key).all()
        assert_same(forked.trainer.weights(state), first.weights(before))
    assert forked.start.phase == ADAPTERS
    assert forked.start.random_return == (0.0, 1.0, 0.0)
    assert forked.start.train.lr.tolist() == np.float32([3e-3, 3e-3, 1e-2]).tolist()


def test_a_trunk_that_goes_on_takes_its_optimiser_into_the_fork():
    train = backbone().train
    moments = jax.tree.map(lambda leaf: leaf + 1, train.learner.actor_opt)
    origin = backbone()._replace(train=train._replace(learner=train.learner._replace(actor_opt=moments)))
    start = fork([make(2, freeze_trunk=False), make(freeze_trunk=False)], ENV, [(origin, 1), (origin, 0)])
    found = start.train.learner.actor_opt
    assert_same(found["shared"], jax.tree.map(lambda leaf: leaf[::-1], moments["shared"]))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found["agent"]))


def test_forks_of_what_has_not_been_evaluated_yet_measure_random_play_themselves(forked):
    (known, row), unknown = forked.origins[0], backbone()._replace(random_return=())
    assert fork(forked.configs[:2], ENV, [(unknown, row), (known, row)]).random_return == ()


@pytest.mark.slow
def test_a_masked_rank_learns_as_the_true_one(forked):
    """And placements likewise: what a fork lacks stays zero to the bit."""
    together, after = jax.jit(forked.trainer.update), forked.start.train
    after = [row_of(after, k) for k in range(len(forked.configs))]
    t = [random_trajectory(forked.trainer.system, seed) for seed in range(3)]
    for k, config in enumerate(forked.configs):
        trainer = make_trainer(config, ENV, adapting=True)
        alone, state = (
            jax.jit(trainer.update),
            attach_adapters(trainer, row_of(forked.origins[k][0].train, forked.origins[k][1])),
        )
        mine = after[k]
        for i, played in enumerate(t):
            mine, state = together(mine, mine.rollout, played)[0], alone(state, state.rollout, played)[0]
            own = own_adapters(config, ENV, mine.learner.actor.agents)
            assert_close(own, state.learner.actor.agents, atol=1e-6 if i == 0 else 1e-5)
            assert_close(mine.learner.critic, state.learner.critic, atol=1e-5)
        assert all(differs(own, own_adapters(config, ENV, after[k].learner.actor.agents)))
        size = sum(np.count_nonzero(leaf) for leaf in jax.tree.leaves(mine.learner.actor.agents))
        assert size == sum(np.count_nonzero(leaf) for leaf in jax.tree.leaves(own))


@pytest.mark.slow
def test_forks_run_as_each_would_alone():
    """From backbones at different steps, to the same budget."""
    phases, iterations, switches = two_phases(), 4, (1, 2)
    batch = phases.config.steps_per_iteration
    config = replace(phases.config, total_steps=iterations * batch)
    moments = {}

    def keep(report, state):
        moments[int(state.iterations[0])] = state

    trunks = replace(backbone_config(config, phases.env), seed=5, seeds=2)
    run(trunks, phases.env, [keep])
    configs = [replace(config, seed=5 + k, switch_step=s * batch) for k, s in enumerate(switches)]
    common = common_config(configs)
    start = fork(configs, phases.env, [(moments[s], k) for k, s in enumerate(switches)])
    result = run(common, phases.env, start=start)
    assert result.switch_steps == [s * batch for s in switches]
    for k, switch in enumerate(switches):
        state = phases.attach_adapters(row_of(moments[switch].train, k))
        for _ in range(iterations - switch):
            state = phases.adapters(state)
        assert_close(row_of(result.states, k).learner, state.learner, atol=1e-4)


def test_what_cannot_be_forked_is_refused():
    with pytest.raises(ConfigError, match="do not fit into one program"):
        fork([make(1), make(8)], ENV, [(backbone(), 0)] * 2)
    second = fork([make()], ENV, [(backbone(), 0)])
    with pytest.raises(ConfigError, match="must start from a state of a first phase"):
        fork([make()], ENV, [(second, 0)])
