"""A run comes back from disk to the bit, and goes on as itself alone."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from checkpoints import keep_run, refusal
from helpers import assert_same, row_of, small_config, two_phases

from lorasa_jax.config import ConfigError
from lorasa_jax.envs.toy import make_toy
from lorasa_jax.running.state import ADAPTERS, SHARED
from lorasa_jax.storage import checkpoints as checkpoint
from lorasa_jax.storage.checkpoints import load, load_team, take_snapshot


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return keep_run(tmp_path_factory.mktemp("run") / "checkpoints")


def bits(tree: Any) -> Any:
    """The tree with its keys as numbers."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if checkpoint._is_key(leaf) else leaf, tree)


@pytest.mark.parametrize("phase", [SHARED, ADAPTERS])
def test_a_run_comes_back_to_the_bit_and_steps_on_alike(kept: SimpleNamespace, phase: str) -> None:
    loaded, state = load(kept.paths[phase], kept.config, kept.env), kept.states[phase]
    assert loaded._replace(train=None, best=None) == state._replace(train=None, best=None)
    assert_same(loaded.best, state.best)
    assert jax.tree.structure(loaded.train) == jax.tree.structure(state.train)
    assert jax.tree.map(jnp.result_type, loaded.train) == jax.tree.map(jnp.result_type, state.train)
    assert_same(bits(loaded.train), bits(state.train))
    step = getattr(two_phases(), phase)
    assert_same(bits(step(row_of(loaded.train, 0))), bits(step(row_of(state.train, 0))))


def test_every_leaf_stands_in_one_item(kept: SimpleNamespace) -> None:
    state = kept.states[ADAPTERS]
    items = take_snapshot(state, kept.config).items
    assert sum(len(arrays) for arrays in items.values()) == len(jax.tree.leaves((state.train, state.best)))
    names = " ".join(items["train"])
    for part in ("critic", "actor_opt", "critic_opt", "value_norm", "rollout", "key", "iteration"):
        assert part in names
    assert "learner/actor/" not in names


def test_a_snapshot_owns_its_memory(kept: SimpleNamespace) -> None:
    snapshot = take_snapshot(kept.states[SHARED], kept.config)
    assert all(array.flags.owndata for arrays in snapshot.items.values() for array in arrays.values())


@pytest.mark.parametrize("phase", [SHARED, ADAPTERS])
def test_a_team_is_read_without_what_only_training_needs(kept: SimpleNamespace, tmp_path: Path, phase: str) -> None:
    path = shutil.copytree(kept.paths[phase], tmp_path / kept.paths[phase].name)
    shutil.rmtree(path / "train")
    team, actor = load_team(path, kept.config, kept.env), kept.states[phase].train.learner.actor
    assert_same(team.params, actor)
    assert_same(row_of(team.weights.actors, 0), team.system.weights(row_of(actor, 0)))
    with pytest.raises(ConfigError, match=r"in checkpoint .* but probe_death needs float32"):
        load_team(path, kept.config, make_toy("probe_death", 4))
    with pytest.raises(ConfigError, match=r"learner/inputs/.* is missing from checkpoint"):
        load_team(path, replace(kept.config, standardise=True), kept.env)


def test_a_team_is_read_with_its_critic_where_asked(kept: SimpleNamespace) -> None:
    team = load_team(kept.paths[ADAPTERS], kept.config, kept.env, valued=True)
    learner = kept.states[ADAPTERS].train.learner
    assert_same((team.params, team.critic, team.value_norm), (learner.actor, learner.critic, learner.value_norm))


@pytest.mark.parametrize("phase", [SHARED, ADAPTERS])
def test_the_best_team_is_read_where_asked(kept: SimpleNamespace, phase: str) -> None:
    team, state = load_team(kept.paths[phase], kept.config, kept.env, best=True), kept.states[phase]
    assert_same(team.params, state.best.actor)
    assert not any(leaf.any() for leaf in jax.tree.leaves(team.params)), "and not the last team"
    judged = load_team(kept.paths[phase], kept.config, kept.env, best=True, valued=True)
    assert_same((judged.params, judged.critic), (state.best.actor, state.train.learner.critic))


def test_agents_that_own_nothing_leave_no_item(kept: SimpleNamespace) -> None:
    assert not (kept.paths[SHARED] / "adapters").exists()


def test_another_game_is_refused_by_the_leaf_that_does_not_fit(kept: SimpleNamespace) -> None:
    message = refusal(kept.paths[ADAPTERS], env=make_toy("probe_death", 4))
    assert "this run needs" in message
    assert "learner/actor" in message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "synchronisation"}, "of another run: task is specialisation there, synchronisation here"),
        ({"ppo": replace(two_phases().config.ppo, lr=1.0)}, "ppo.lr is 0.003 there, 1.0 here"),
        ({"seed": 1}, "seed is 0 there, 1 here"),
        ({"total_steps": 1600}, "total-steps can only grow"),
    ],
)
def test_another_configuration_is_refused_by_its_setting(
    kept: SimpleNamespace, changes: dict[str, Any], said: str
) -> None:
    assert said in refusal(kept.paths[SHARED], replace(kept.config, **changes))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sharing": "ps"}, None),
        ({"sharing": "lorasa", "switch_step": 64}, None),
        ({"sharing": "ps", "ppo": {"anneal_lr": True}}, "anneal-lr"),
        ({"sharing": "lorasa", "switch_step": "auto"}, "switch-step auto"),
        ({"sharing": "lorasa", "switch_step": "10%"}, "switch-step 10%"),
        ({"sharing": "lorasa", "switch_step": 3199}, "fell into the last iteration"),
    ],
)
def test_a_budget_grows_where_nothing_followed_from_it(settings: dict[str, Any], said: str | None) -> None:
    config, env = small_config(**settings), two_phases().env
    then, longer = checkpoint.settings(config), replace(config, total_steps=6400)
    if said is None:
        return checkpoint._require_same_run(Path(), then, longer, env)
    with pytest.raises(ConfigError, match=said):
        checkpoint._require_same_run(Path(), then, longer, env)
