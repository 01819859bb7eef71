"""A loss and an optimiser of one's own, from the first iteration to a run that goes on from a checkpoint."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import KEY, assert_same, differs, two_phases

from lorasa_jax import fork, make_trainer, run
from lorasa_jax.config import ConfigError
from lorasa_jax.core.losses import policy_loss
from lorasa_jax.core.trees import by_path
from lorasa_jax.learning.system import names_of
from lorasa_jax.running.state import RunState
from lorasa_jax.storage.arrays import write
from lorasa_jax.storage.checkpoints import load, load_team, take_snapshot


def unclipped(log_prob: Any, old_log_prob: Any, advantage: Any, mask: Any, pool: Any, **rest: Any) -> Any:
    """Policy gradient with importance weights."""
    gain = jnp.exp((log_prob - old_log_prob).sum(axis=-1)) * advantage
    return -jnp.sum(jnp.where(mask, gain, 0.0).sum(axis=(0, 1)) / pool), {"gain": gain.mean()}


def nothing(advantage: Any, **rest: Any) -> Any:
    """Has no gradient."""
    return 0.0 * advantage.sum(), {}


def test_the_loss_that_is_handed_in_is_the_one_that_trains() -> None:
    config, env = two_phases().config, two_phases().env

    def after(**parts: Any) -> tuple[Any, Any, Any]:
        trainer = make_trainer(config, env, **parts)
        state = jax.jit(trainer.init)(KEY)
        new, metrics = jax.jit(trainer.step)(state)
        return state.learner, new.learner, metrics

    before, idle, metrics = after(policy_loss=nothing, optimizer=optax.sgd)
    assert_same(idle.actor, before.actor)
    assert any(differs(idle.critic, before.critic))
    assert metrics["policy_loss"] == 0 and metrics["entropy"] > 0, "what a run is watched by is there for every loss"
    _, own, metrics = after(policy_loss=unclipped)
    assert any(differs(own.actor, before.actor))
    assert jnp.isfinite(metrics["gain"])


@pytest.mark.slow
def test_the_librarys_own_loss_handed_in_gives_the_same_program() -> None:
    def program(**parts: Any) -> str:
        trainer = make_trainer(two_phases().config, two_phases().env, **parts)
        return jax.jit(trainer.step).lower(jax.eval_shape(trainer.init, KEY)).as_text()

    assert program(policy_loss=policy_loss) == program() != program(policy_loss=unclipped)


@pytest.mark.slow
def test_a_run_with_parts_of_its_own_goes_on_with_the_same_ones_only(tmp_path: Path) -> None:
    config, env = two_phases().config, two_phases().env
    batch = config.steps_per_iteration
    config = replace(config, total_steps=3 * batch, switch_step=batch, evaluations=1)
    parts: Any = {"policy_loss": unclipped, "optimizer": functools.partial(optax.sgd, momentum=0.9)}
    states: list[RunState] = []

    def keep(report: Any, state: RunState) -> None:
        states.append(state)

    expected = run(config, env, [keep], **parts)
    assert states[0].parts == names_of(parts) == {"policy_loss": "unclipped", "optimizer": "sgd"}
    assert any("trace" in path for path in by_path(states[0].train.learner.actor_opt))
    path = write(tmp_path, take_snapshot(states[1], config))
    start = load(path, config, env, **parts)
    again = run(config, env, start=start, **parts)
    assert_same((again.states.learner, again.final), (expected.states.learner, expected.final))

    def refused(function: Any, **parts: Any) -> str:
        with pytest.raises(ConfigError) as error:
            function(**parts)
        assert "\n" not in str(error.value)
        return str(error.value)

    other = refused(functools.partial(load, path, config, env), **{**parts, "policy_loss": nothing})
    assert f"the run of checkpoint {path} has the policy_loss 'unclipped', not 'nothing'" in other
    assert "has the optimizer 'sgd', not the library's own" in refused(functools.partial(load, path, config, env))
    team = functools.partial(load_team, path, config, env)
    assert "has the optimizer 'sgd', not 'adam'" in refused(team, **{**parts, "optimizer": optax.adam})
    assert "has the optimizer 'sgd', not the library's own" in refused(functools.partial(team, valued=True))
    assert_same(team().params, team(valued=True, **parts).params)
    goes_on = functools.partial(run, config, env, start=start._replace(parts={}))
    assert "has the optimizer the library's own, not 'sgd'" in refused(goes_on, **parts)
    wrong = refused(functools.partial(load, path, config, env), **{**parts, "optimizer": sgd_by_another_state()})
    assert f"is missing from checkpoint {path}" in wrong or f"stands in checkpoint {path}" in wrong


def sgd_by_another_state() -> Any:
    def rule(rate: Any) -> optax.GradientTransformation:
        return optax.adam(rate)

    rule.__qualname__ = "sgd"
    return rule


def test_a_fork_has_the_optimiser_that_is_handed_in() -> None:
    phases = two_phases()
    config, env = phases.config, phases.env
    train = jax.tree.map(lambda leaf: leaf[None], phases.init(KEY))
    origin: Any = RunState("shared", train, None, (None,), (), (), 1, 0.0, 0.0)  # type: ignore[arg-type]
    start = fork([config], env, [(origin, 0)], optimizer=optax.sgd)
    assert start.parts == {"optimizer": "sgd"}
    assert not jax.tree.leaves(start.train.learner.actor_opt)
