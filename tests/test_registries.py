"""Schemes, algorithms and environments of one's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers import small_config

import lorasa_jax
from lorasa_jax import (
    Config,
    ConfigError,
    Schedule,
    make_env,
    make_trainer,
    register_algorithm,
    register_env,
    register_scheme,
)
from lorasa_jax.envs.toy import make_toy
from lorasa_jax.learning.update_order import mappo
from lorasa_jax.running.forks import backbone_config
from lorasa_jax.sharing.schemes import Sharing, adapted, own_trunks

pytestmark = pytest.mark.usefixtures("registries")


def separate(n_agents: int, config: Config) -> Sharing:
    return own_trunks(n_agents, agent_id=True)


def line(config: Config) -> Any:
    return make_toy("specialisation", config.n_agents)


def test_what_is_registered_is_chosen_by_its_name() -> None:
    register_scheme("separate", separate)
    register_algorithm("at_once", mappo)
    register_env("line", line, default_task="short")
    settings: Any = {"env": "line", "sharing": "separate", "algo": "at_once", "n_agents": 3}
    config = small_config(**settings)
    assert replace(config, task="").task == "short"
    env = make_env(config)
    trainer = make_trainer(config, env)
    assert trainer.system.actor.sharing == own_trunks(3, agent_id=True)
    start = jax.eval_shape(trainer.init, jax.random.key(0))
    state, _ = jax.eval_shape(trainer.step, start)
    assert jax.tree.structure(state) == jax.tree.structure(start)


def test_an_unknown_name_is_refused_with_the_nearest_registered_one() -> None:
    register_scheme("separate", separate)
    with pytest.raises(
        ConfigError, match=r"sharing must be one of .*separate, got 'seperate' \(did you mean 'separate'"
    ):
        Config(sharing="seperate")


def test_a_scheme_whose_first_phase_is_no_scheme_cannot_be_forked() -> None:
    register_scheme("apart", lambda n, config: adapted(own_trunks(n, agent_id=True), config))
    config = small_config(sharing="apart")
    with pytest.raises(ConfigError, match="no scheme consists of the first phase of sharing apart only"):
        backbone_config(config, make_toy("specialisation"))


def an_algorithm(**changes: Any) -> Any:
    """MAPPO with fields of its schedule changed."""
    return lambda n, ppo, team: lambda key, score: mappo(n, ppo, team)(key, score)._replace(**changes)


def one_argument(n_agents: int) -> Sharing:
    return own_trunks(n_agents)


@pytest.mark.parametrize(
    ("register", "name", "function", "says"),
    [
        (register_scheme, "ps", separate, "sharing 'ps' exists already; choose another name"),
        (register_scheme, "My scheme", separate, "a word of small letters, digits and _, got 'My scheme'"),
        (register_scheme, "mine", one_argument, "sharing 'mine' failed when it was tried: TypeError: one_argument()"),
        (register_scheme, "mine", lambda n, config: None, "for two agents it returned None"),
        (register_scheme, "mine", lambda n, config: own_trunks(3), "for two agents it returned Sharing"),
        (register_scheme, "mine", lambda n, config: Sharing((0, 2), (), False), "must return a Sharing of all agents"),
        (register_algorithm, "mappo", an_algorithm(), "algo 'mappo' exists already"),
        (register_algorithm, "mine", lambda n, ppo, team: lambda key, score: score, "must schedule a Schedule"),
        (register_algorithm, "mine", lambda n, ppo: None, "algo 'mine' failed when it was tried: TypeError"),
        (register_algorithm, "mine", an_algorithm(clip_eps=jnp.ones(2)), r"clip_eps of its Schedule is float32\[2\]"),
        (register_algorithm, "mine", an_algorithm(trace=jnp.ones(1)), r"trace of its Schedule is float32\[1\]"),
        (register_algorithm, "mine", an_algorithm(block=jnp.arange(2)), "does not fit block"),
        (register_env, "own", line, "env 'own' exists already"),
        (register_env, "mine", lambda: None, "env 'mine' failed when it was tried: TypeError"),
        (register_env, "mine", None, "env 'mine' must be a function"),
    ],
)
def test_what_cannot_be_registered_is_said_at_once(register: Any, name: str, function: Any, says: str) -> None:
    known = dict(lorasa_jax.SCHEMES), dict(lorasa_jax.ALGORITHMS), dict(lorasa_jax.ENVS)
    with pytest.raises(ConfigError, match=says) as error:
        register(name, function)
    assert "\n" not in str(error.value)
    assert known == (lorasa_jax.SCHEMES, lorasa_jax.ALGORITHMS, lorasa_jax.ENVS)


def test_a_cell_that_registers_may_run_twice() -> None:
    for _ in range(2):
        register_scheme("mine", separate)
    with pytest.raises(ConfigError, match="already"):
        register_scheme("mine", one_argument)


def test_an_environment_is_held_against_its_spec_when_it_is_made() -> None:
    wrong = make_toy("specialisation")
    register_env("wrong", lambda config: wrong._replace(spec=replace(wrong.spec, obs_dim=99)))
    register_env("nothing", lambda config: None)
    with pytest.raises(ConfigError, match="obs"):
        make_env(Config(env="wrong"))
    with pytest.raises(ConfigError, match="env 'nothing' must make an Env, got a NoneType"):
        make_env(Config(env="nothing"))


def test_the_old_name_of_the_algorithms_still_works() -> None:
    with pytest.warns(DeprecationWarning, match="SCHEDULES is now lorasa_jax.ALGORITHMS"):
        assert lorasa_jax.SCHEDULES is lorasa_jax.ALGORITHMS
    assert isinstance(mappo(2, Config().ppo, True)(jax.random.key(0), jnp.zeros(2)), Schedule)
