"""An environment that breaks its spec is told so in one line that names it, before anything is trained on it."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, check_shapes, make_bits, small_config

from lorasa_jax.config import ConfigError
from lorasa_jax.envs.base import EnvSpec, TimeStep
from lorasa_jax.envs.checks import FAULTS, checked, describe_faults, find_faults, first_not_finite, require_fits
from lorasa_jax.learning.trainer import make_trainer
from lorasa_jax.running.loop import run
from lorasa_jax.running.state import Diverged

N = 2
SPEC = make_bits().spec


def said_of(make) -> str:
    with pytest.raises(ConfigError) as error:
        make()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs_dim": 0}, "EnvSpec.obs_dim of bits must be positive, got 0"),
        ({"state_dim": 0}, "EnvSpec.state_dim of bits must be positive, got 0"),
        ({"n_agents": -1}, "EnvSpec.n_agents of bits must be positive, got -1"),
        ({"episode_limit": 0}, "EnvSpec.episode_limit of bits must be positive, got 0"),
        ({"n_actions": 2.5}, "EnvSpec.n_actions must be a whole number, got 2.5"),
        ({"team_reward": "no"}, "EnvSpec.team_reward must be True or False, got 'no'"),
        ({"obs_widths": (3,)}, "EnvSpec.obs_widths of bits must be 2 numbers between 1 and obs_dim 3"),
        ({"obs_widths": (3, 4)}, "EnvSpec.obs_widths of bits must be 2 numbers between 1 and obs_dim 3"),
        ({"roles": (0,)}, "EnvSpec.roles of bits must number the roles 0, 1, ... without a gap"),
        ({"roles": (0, 2)}, "EnvSpec.roles of bits must number the roles 0, 1, ... without a gap"),
        ({"roles": (0, 1), "n_roles": 2}, "EnvSpec.n_roles of bits is for roles that change"),
        ({"roles": (0, 1), "role_names": ("one",)}, "EnvSpec.role_names of bits must be 2 names, or be left out"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(changes, message):
    assert said_of(lambda: replace(SPEC, **changes)).startswith(message)


def test_a_spec_takes_numbers_of_numpy():
    spec = replace(SPEC, n_agents=np.int64(2), obs_widths=[np.int32(3), 2])
    assert (type(spec.n_agents), spec.obs_widths) == (int, (3, 2))


SHAPES = [
    ("reward", lambda x: x.sum(), "shows reward of shape [], expected [2], [n_agents] of its EnvSpec (one number per"),
    ("reward", lambda x: x[:1], "shows reward of shape [1], expected [2]"),
    ("obs", lambda x: x[0], "shows obs of shape [3], expected [2, 3], [n_agents, obs_dim] of its EnvSpec"),
    ("obs", lambda x: x[:, :2], "shows obs of shape [2, 2], expected [2, 3]"),
    ("obs", lambda x: {"a": x}, "shows obs as dict, expected an array"),
    ("obs", lambda x: None, "shows obs as NoneType, expected an array"),
    ("obs", lambda x: x + 1j, "shows obs of type complex64, expected float32"),
    ("state", lambda x: x[:1], "shows state of shape [1], expected [3], [state_dim] of its EnvSpec"),
    ("avail", lambda x: x[:, :1], "shows avail of shape [2, 1], expected [2, 2], [n_agents, n_actions]"),
    ("avail", lambda x: x.astype(jnp.float32), "shows avail of type float32, expected bool"),
    ("alive", lambda x: x.all(), "shows alive of shape [], expected [2]"),
    ("terminated", lambda x: jnp.stack([x, x]), "shows terminated of shape [2], expected [], a scalar"),
    ("truncated", lambda x: x.astype(jnp.int32), "shows truncated of type int32, expected bool"),
    ("won", lambda x: x[None], "shows won of shape [1], expected []"),
]


@pytest.mark.parametrize(("field", "break_", "message"), SHAPES)
def test_shapes_and_types_are_held_against_the_spec(field, break_, message):
    broken = make_bits(lambda seen: seen._replace(**{field: break_(getattr(seen, field))}))
    said = said_of(lambda: require_fits(broken))
    assert said.startswith(f"bits: reset {message}")
    # A run says the same before it has begun.
    assert said_of(lambda: run(small_config(env="own"), broken)) == said


def test_what_step_shows_is_checked_too():
    env = make_bits()
    broken = env._replace(step=lambda key, state, action: (state, env.step(key, state, action)[1]._replace(reward=1.0)))
    assert said_of(lambda: require_fits(broken)).startswith("bits: step shows reward of shape [], expected [2]")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {**state, "time": state["time"].astype(jnp.float32)}, "the state's ['time'] is int32[] after"),
        (lambda state: {**state, "bit": state["bit"][None]}, "the state's ['bit'] is int32[] after reset and int32[1]"),
        (lambda state: {"bit": state["bit"]}, "step returns a state of another structure than reset"),
    ],
)
def test_a_state_keeps_its_structure(change, message):
    env = make_bits()

    def step(key, state, action):
        after, seen = env.step(key, state, action)
        return change(after), seen

    assert said_of(lambda: require_fits(env._replace(step=step))).startswith(f"bits: {message}")


def test_reset_and_step_return_a_state_and_a_time_step():
    env = make_bits()
    broken = env._replace(reset=lambda key: env.reset(key)[1])
    assert said_of(lambda: require_fits(broken)) == "bits: reset must return (state, TimeStep), got TimeStep"


def test_numbers_of_other_types_are_converted():
    def other(seen: TimeStep) -> TimeStep:
        return seen._replace(obs=seen.obs.astype(jnp.int32), state=seen.state.astype(jnp.float16), reward=[0, 1])

    check_shapes(checked(make_bits(other)))


def test_an_episode_that_is_over_by_itself_was_not_cut_short():
    both = make_bits(lambda seen: seen._replace(terminated=jnp.array(True), truncated=jnp.array(True)))
    seen = checked(both).reset(KEY)[1]
    assert (bool(seen.terminated), bool(seen.truncated)) == (True, False)


def shown(**changes) -> TimeStep:
    """Four games that go on, as they should look, with changes."""
    seen = jax.vmap(make_bits().reset)(jax.random.split(KEY, 4))[1]
    return seen._replace(**{name: change(getattr(seen, name)) for name, change in changes.items()})


FAULTY = [
    ("obs", {}, lambda x: x.at[2, 1, 2].set(jnp.nan), "entry 2 of agent 1's observation is not a finite number"),
    ("state", {}, lambda x: x.at[0, 1].set(jnp.inf), "entry 1 of the state is not a finite number"),
    ("reward", {"team_reward": False}, lambda x: x.at[3, 1].set(-jnp.inf), "the reward of agent 1 is not a finite"),
    (
        "reward",
        {},
        lambda x: x.at[3, 1].set(2.0),
        "agent 1 is paid otherwise than agent 0, and EnvSpec says team_reward",
    ),
    ("avail", {}, lambda x: x.at[1, 0].set(False), "agent 0 has no action that it may take"),
    ("obs", {"obs_widths": (3, 2)}, lambda x: x.at[0, 1, 2].set(5.0), "entry 2 of agent 1's observation lies behind"),
    ("won", {}, lambda x: x.at[0].set(True), "won is true before the end of the episode"),
]


@pytest.mark.parametrize(("field", "changes", "break_", "message"), FAULTY)
def test_values_are_held_against_the_spec(field, changes, break_, message):
    spec, going_on = replace(SPEC, **changes), jnp.zeros(4, bool)
    fine = shown(obs=lambda x: x.at[:, 1, 2].set(0.0))
    assert describe_faults(spec, find_faults(spec, fine, going_on, 1)) is None
    broken = fine._replace(**{field: break_(getattr(fine, field))})
    faults = find_faults(spec, broken, going_on, 1)
    assert describe_faults(spec, faults).startswith(f"bits: {message}")
    assert describe_faults(spec, jnp.stack([jnp.full(len(FAULTS), -1), faults])) == describe_faults(spec, faults)
    # Games that were over before are not looked at.
    assert describe_faults(spec, find_faults(spec, broken, jnp.ones(4, bool), 1)) is None


def test_roles_and_limits_are_held_against_the_spec():
    spec = EnvSpec("roles", N, 3, 3, 2, episode_limit=5, team_reward=True, n_roles=2)
    going_on, seen = jnp.zeros(4, bool), shown(role=lambda _: jnp.ones((4, N), int))
    assert describe_faults(spec, find_faults(spec, seen, going_on, 4)) is None
    assert describe_faults(spec, find_faults(spec, seen, going_on, 5)).startswith(
        "roles: an episode goes on after 5 st"
    )
    over = seen._replace(truncated=jnp.ones(4, bool))
    assert describe_faults(spec, find_faults(spec, over, going_on, 5)) is None
    wrong = seen._replace(role=seen.role.at[0, 1].set(2))
    assert describe_faults(spec, find_faults(spec, wrong, going_on, 1)).startswith("roles: the role of agent 1 is not")


def test_the_first_entry_that_is_not_finite_is_named():
    obs, state, reward = np.zeros((5, 4, N, 3)), np.zeros((5, 4, 3)), np.zeros((5, 4, N))
    assert first_not_finite(SPEC, obs, state, reward) is None
    state[3, 1, 2] = np.nan
    assert first_not_finite(SPEC, obs, state, reward) == "bits: entry 2 of the state is not a finite number"


def test_an_environment_that_never_ends_is_told_so_at_the_first_evaluation():
    endless = make_bits(lambda seen: seen._replace(terminated=jnp.array(False), truncated=jnp.array(False)))
    config = small_config(env="own", total_steps=64, evaluations=2)
    assert said_of(lambda: run(config, endless)).startswith("bits: an episode goes on after 3 steps")


def test_an_observation_that_is_not_finite_is_the_environments_fault():
    broken = make_bits(lambda seen: seen._replace(obs=seen.obs.at[1, 0].set(jnp.nan)))
    with pytest.raises(
        Diverged, match="bits: entry 0 of agent 1's observation is not a finite number for seed 0, in it"
    ):
        run(small_config(env="own", total_steps=64), broken)


@pytest.mark.parametrize("part", ["actor", "critic"])
def test_an_input_that_normalisation_would_erase_is_refused(part):
    env = make_bits(lambda seen: seen._replace(obs=seen.obs[:, :1], state=seen.state[:1]))
    spec = replace(SPEC, **({"obs_dim": 1} if part == "actor" else {"state_dim": 1}))
    said = said_of(lambda: make_trainer(small_config(env="own"), env._replace(spec=spec)))
    assert said.startswith("normalisation turns an input of one number into a constant")
    make_trainer(small_config(env="own", **{part: {"input_norm": False}}), env._replace(spec=spec))
