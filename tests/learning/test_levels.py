"""Who owns what, at which rate, and beside which trunk: identities between ways to say the same."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    KEY,
    assert_close,
    assert_same,
    batched,
    make_diary,
    random_params,
    random_trajectory,
    rates_of,
    small_config,
    with_roles,
)

from lorasa_jax.config import Config, ConfigError, PPOConfig
from lorasa_jax.core.types import Learner, PolicyParams
from lorasa_jax.learning.minibatches import minibatch
from lorasa_jax.learning.system import System, init_optimizer, is_two_phase, make_system
from lorasa_jax.learning.trainer import attach_adapters, make_trainer
from lorasa_jax.learning.update import _update_actor
from lorasa_jax.sharing.schemes import SCHEMES, make_sharing, under

ENV = make_diary()
# One step of Adam, without a clip that would tie what is trained to what else is trained.
ONE_STEP = {"epochs": 1, "lr": 0.02, "max_grad_norm": float("inf"), "adam_eps": 1e-8}


def make(scheme: str, ppo: dict[str, Any] | None = None, **changes: Any) -> System:
    config = small_config(sharing=scheme, ppo=ONE_STEP | (ppo or {}), **changes)
    return make_system(config, ENV, adapting=is_two_phase(config, ENV))


def updated(system: System, actor: PolicyParams) -> PolicyParams:
    """The actors after one gradient step over noise."""
    t, nothing = random_trajectory(system), PolicyParams({}, {})
    batch, eps = minibatch(batched(system, t, t.value), None), jnp.float32(0.2)
    learner = init_optimizer(system, Learner(actor, nothing, {}, {}, ()))
    rates = rates_of(system.config)
    step = jax.jit(lambda learner: _update_actor(system, learner, batch, None, eps, rates)[0])
    return step(learner).actor


def test_a_team_level_at_full_rank_is_training_the_kernels_of_the_trunk():
    shared, owned = make("ps_id"), make("lorasa", levels=("team:64",))
    trunk = random_params(shared.actor)
    own = jax.jit(owned.actor.init_adapters)(KEY, trunk)
    assert {tuple(parts) for parts in own.agents["team"].values()} == {("full",)}
    after, expected = updated(owned, own), updated(shared, trunk)
    assert_same(after.shared, trunk.shared)
    for layer, parts in after.agents["team"].items():
        change = np.asarray(expected.shared[layer]["kernel"]) - np.asarray(trunk.shared[layer]["kernel"])
        assert np.abs(change).max() > 0.01
        assert_close(parts["full"], change, atol=1e-5)


def test_a_level_takes_its_factor_of_every_step():
    plain, slow = (make("lorasa_joint", levels=("team", level)) for level in ("agent@1", "agent@0.1"))
    before = random_params(plain.actor)
    full, tenth = updated(plain, before), updated(slow, before)
    assert_close((tenth.shared, tenth.agents["team"]), (full.shared, full.agents["team"]), atol=1e-6)

    def step(after: Any) -> Any:
        return jax.tree.map(
            lambda new, old: np.asarray(new) - np.asarray(old), after.agents["agent"], before.agents["agent"]
        )

    assert_close(step(tenth), jax.tree.map(lambda change: 0.1 * change, step(full)), atol=2e-7, rtol=1e-3)


def test_a_trunk_learns_the_same_whoever_owns_what_stands_on_it():
    """Also where agents of several trunks own something together; a large epsilon makes steps as large as gradients."""
    team, agent = (
        make("seps_lora", ppo={"adam_eps": 1.0}, freeze_trunk=False, levels=(scope,)) for scope in ("team", "agent")
    )
    assert team.actor.sharing.shared_across_trunks and not agent.actor.sharing.shared_across_trunks
    trunk = random_params(agent.actor)
    after = [updated(system, jax.jit(system.actor.init_adapters)(KEY, trunk)).shared for system in (team, agent)]
    change = jax.tree.map(lambda new, old: np.abs(new - old).max(), after[1], trunk.shared)
    assert max(jax.tree.leaves(change)) > 1e-3
    assert_close(after[0], after[1], atol=1e-6)


def test_joint_training_is_two_phases_that_switch_at_once_and_freeze_nothing():
    config = small_config(sharing="lorasa_joint", switch_step=0)
    free = replace(config, sharing="lorasa", freeze_trunk=False, switch_step=0)
    joint, first, second = make_trainer(config, ENV), make_trainer(free, ENV), make_trainer(free, ENV, adapting=True)
    start = jax.jit(lambda key: attach_adapters(second, first.init(key)))(KEY)
    own = jax.jit(joint.init)(KEY)
    assert_same(own.learner.actor.shared, start.learner.actor.shared)
    # Both draw R, from keys of their own.
    own = own._replace(learner=own.learner._replace(actor=start.learner.actor))
    for name in ("learner", "rollout", "iteration", "lr", "pace"):
        assert_same(getattr(own, name), getattr(start, name))
    steps = [str(jax.make_jaxpr(trainer.step)(start)) for trainer in (joint, second)]
    assert len({re.sub("0x[0-9a-f]+", "", step) for step in steps}) == 1  # both do the same from there on


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_can_be_taken_from_settings_of_another(scheme):
    """What means nothing there is left out, and what means something is kept."""
    ppo = PPOConfig(trunk_optimizer="restart")
    config = Config(groups=(0, 1, 0), levels=("team:4", "agent:2"), freeze_trunk=False, ppo=ppo)
    found = under(config, scheme)
    make_sharing(ENV.spec, found)
    kept = {"lorasa": ("levels", "freeze_trunk"), "lorasa_joint": ("levels",), "seps": ("groups",)}
    kept["seps_lora"] = ("groups", "levels", "freeze_trunk")
    for name in ("groups", "levels", "freeze_trunk"):
        assert (getattr(found, name) == getattr(config, name)) == (name in kept.get(scheme, ()))
    assert found.ppo.trunk_optimizer == ("restart" if scheme in ("lorasa", "seps_lora") else None)


@pytest.mark.parametrize(
    ("scheme", "changes", "message"),
    [
        ("ps", {"levels": ("team",)}, "levels team have no meaning under sharing ps"),
        ("mtl", {"levels": ("agent:4",)}, "levels agent:4 have no meaning under sharing mtl"),
        ("ps", {"freeze_trunk": True}, "freeze-trunk True has no meaning under sharing ps, without low-rank adapters"),
        (
            "lorasa_joint",
            {"freeze_trunk": True},
            "has no meaning under sharing lorasa_joint, where the trunk is never frozen",
        ),
        ("lorasa", {"ppo": {"trunk_optimizer": "carry"}}, "no trunk goes on beside adapters after a switch"),
        ("ps_restart", {"ppo": {"trunk_optimizer": "restart"}}, "has no meaning under sharing ps_restart"),
        ("lorasa_joint", {"switch_step": 0, "ppo": {"trunk_optimizer": "carry"}}, "no trunk goes on beside adapters"),
    ],
)
def test_what_a_scheme_has_no_use_for_is_refused_in_one_line(scheme, changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        make_sharing(ENV.spec, small_config(sharing=scheme, **changes))
    assert "\n" not in str(error.value)


def test_what_a_scheme_does_anyway_may_be_said():
    for scheme, freeze in (("ps", False), ("lorasa", True), ("lorasa_joint", False)):
        make_sharing(ENV.spec, small_config(sharing=scheme, freeze_trunk=freeze))


def test_levels_stand_from_the_coarsest_scope_to_the_finest():
    env = with_roles(ENV, roles=(0, 1, 1))
    config = small_config(sharing="lorasa", levels=("agent:1", "unit_type", "team:3@0.5"))
    levels = make_sharing(env.spec, config).levels
    assert [(level.scope, level.n_owners, level.owner, level.factor) for level in levels] == [
        ("team", 1, (0, 0, 0), 0.5),
        ("unit_type", 2, (0, 1, 1), 1.0),
        ("agent", 3, (0, 1, 2), 1.0),
    ]
