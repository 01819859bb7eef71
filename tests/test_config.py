"""A configuration is checked when it is made, and says in one line what it expected."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorasa_jax.cli.flags import RunConfig, parse
from lorasa_jax.config import (
    Config,
    ConfigError,
    CriticConfig,
    MabraxConfig,
    NetworkConfig,
    PPOConfig,
    SmaxConfig,
    nearest,
    require,
)
from lorasa_jax.levels import Renamed

BATCH = 32 * 160


def feed_forward(**changes) -> NetworkConfig:
    return NetworkConfig(recurrent=False, **changes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Config(rank=0), "rank must be positive, got 0"),
        (lambda: Config(n_envs=-1), "n-envs must be positive, got -1"),
        (lambda: Config(seed=-1), "seed must be 0 or more, got -1"),
        (lambda: Config(alpha=0.0), "alpha must be positive, got 0.0"),
        (lambda: Config(groups=(0, 2, 2)), "groups must number the clusters 0, 1, ... without a gap"),
        (lambda: Config(groups=(1, 2)), "groups must number the clusters 0, 1, ... without a gap"),
        (lambda: Config(groups=(0, -1)), "groups must number the clusters 0, 1, ... without a gap"),
        (lambda: Config(groups=()), "groups must number the clusters 0, 1, ... without a gap"),
        (lambda: Config(total_steps=100), "total-steps 100 is less than one iteration: 32 environments x 160"),
        (lambda: Config(switch_step=10**9), "switch-step must lie in [0, 998,400), the steps of this run; got 1,0"),
        (lambda: Config(switch_step=-1), "switch-step must lie in [0, "),
        (lambda: Config(ppo=PPOConfig(minibatches=3)), "ppo.minibatches 3 must divide n-envs 32"),
        (lambda: Config(ppo=PPOConfig(chunk_length=7)), "ppo.chunk-length 7 must divide rollout-length 160"),
        (lambda: Config(placement=()), "placement is empty; name some of fc1, fc2, fc3, gru_in, "),
        (
            lambda: Config(placement=("heads",)),
            "placement 'heads' names no layer (did you mean 'head'?); layers: fc1, ",
        ),
        (lambda: Config(actor=feed_forward(), placement=("recurrent",)), "placement 'recurrent' names no layer"),
        (lambda: feed_forward(layers=0, layers_after=0), "a feed-forward network needs at least one layer"),
        (lambda: NetworkConfig(hidden=0), "actor.hidden must be positive, got 0"),
        (lambda: NetworkConfig(layers=-1), "actor.layers must be 0 or more, got -1"),
        (lambda: PPOConfig(gamma=1.1), "ppo.gamma must lie in [0, 1], got 1.1"),
        (lambda: PPOConfig(gae_lambda=-0.1), "ppo.gae-lambda must lie in [0, 1], got -0.1"),
        (lambda: PPOConfig(epochs=0), "ppo.epochs must be positive, got 0"),
        (lambda: PPOConfig(entropy_coef=-1.0), "ppo.entropy-coef must be 0 or more, got -1.0"),
        (lambda: PPOConfig(lr=float("nan")), "ppo.lr must be positive, got nan"),
        (lambda: Config(sharing="lorsa"), "sharing must be one of ps | ps_id | "),
        (
            lambda: Config(time_limit="Bootstrap"),
            "time-limit must be one of bootstrap | terminal, got 'Bootstrap' (did you mean 'bootstrap'?)",
        ),
        (
            lambda: PPOConfig(ratio="per-dim"),
            "ppo.ratio must be one of joint | per_dim, got 'per-dim' (did you mean 'per_dim'?)",
        ),
        (lambda: Config(reset_on_death="False"), "reset-on-death must be True or False, got 'False'"),
        (lambda: Config(reset_on_death=0), "reset-on-death must be True or False, got 0"),
        (lambda: Config(seed="3"), "seed must be a whole number, got '3'"),
        (lambda: Config(seed=True), "seed must be a whole number, got True"),
        (lambda: Config(rank=2.5), "rank must be a whole number, got 2.5"),
        (
            lambda: Config(switch_step="Auto"),
            "switch-step must be a step, a share of the budget below 100% such as 10%, or auto, got 'Auto' (did you ",
        ),
        (lambda: Config(switch_step="100%"), "switch-step must be a step, a share of the budget below 100% such as "),
        (lambda: Config(switch_step="-5%"), "switch-step must be a step, a share of the budget below 100% such as "),
        (lambda: Config(switch_step=True), "switch-step must be a whole number or a word, got True"),
        (lambda: Config(placement="all"), "placement must be a list of entries that are each a word, got 'all'"),
        (lambda: Config(ranks=(1.5,)), "ranks must be a list of entries that are each a whole number or left out"),
        (lambda: PPOConfig(lr=True), "ppo.lr must be a number, got True"),
        (lambda: PPOConfig(lr="3e-4"), "ppo.lr must be a number, got '3e-4'"),
        (lambda: Config(ppo={"lr": 1e-3}), "ppo must be a PPOConfig, got {'lr': 0.001}"),
        (lambda: Config(critic=NetworkConfig()), "critic must be a CriticConfig, got NetworkConfig("),
        (lambda: Config(actor=CriticConfig()), "actor must be a NetworkConfig; "),
        (lambda: SmaxConfig(attack_mode="Random"), "smax.attack-mode must be one of closest | random, got 'Random'"),
        (lambda: MabraxConfig(obsk=-1), "mabrax.obsk must be 0 or more, got -1"),
        (lambda: Config(seed=2**32), "seed must be at most 4,294,967,295, got 4294967296"),
        (lambda: Config(seed=2**32 - 1, seeds=2), "seed must be at most 4,294,967,295, got 4294967295; the last of 2"),
        (lambda: Config(n_envs=10**20), "n-envs must be at most 2,147,483,647 in size"),
        (lambda: Config(ranks=(10**20,)), "ranks must be at most 2,147,483,647 in size"),
        (lambda: Config(n_envs=2**20, rollout_length=10_240), "one iteration can have 2,147,483,647 steps at most"),
        (lambda: Config(total_steps=10**20), "total-steps must be at most 9,007,199,254,740,992 and 2,147,483,647"),
        (lambda: PPOConfig(lr=1e300), "ppo.lr must be a finite number that float32 can hold, got 1e+300"),
        (lambda: PPOConfig(adam_eps=1e-60), "ppo.adam-eps must be a finite number that float32 can hold, got 1e-60"),
        (lambda: PPOConfig(entropy_coef=math.inf), "ppo.entropy-coef must be a finite number that float32 can hold"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(make, message):
    with pytest.raises(ConfigError) as error:
        make()
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_values_that_mean_the_same_are_converted():
    config = Config(
        seed=np.int64(3), total_steps=256_000.0, n_envs=np.int32(16), groups=[0, 1], placement=["head"],
        reset_on_death=np.True_, alpha=4,
        ppo=PPOConfig(lr=np.float32(0.5), chunk_length=jnp.int32(8), huber_delta=math.inf),
    )  # fmt: skip
    kinds = {name: type(getattr(config, name)) for name in ("seed", "total_steps", "n_envs", "reset_on_death", "alpha")}
    assert kinds == {"seed": int, "total_steps": int, "n_envs": int, "reset_on_death": bool, "alpha": float}
    assert (config.groups, config.placement, config.ppo.lr) == ((0, 1), ("head",), 0.5)
    assert json.loads(json.dumps(asdict(config)))["total_steps"] == 256_000
    assert config == replace(config, seed=3, groups=(0, 1))


@pytest.mark.parametrize("seed", [0, 2**31 - 1, 2**31, 2**32 - 1])
def test_every_seed_that_is_taken_has_a_key_of_its_own(seed):
    def bits(seed: int) -> list[int]:
        return jax.random.key_data(jax.random.key(Config(seed=seed).seed)).tolist()

    assert bits(seed) != bits((seed + 1) % 2**32)


def test_tasks_have_defaults():
    tasks = [Config(env=env).task for env in ("smax", "mabrax", "mujoco", "jaxmarl", "particles", "toy")]
    assert tasks == ["2s3z", "ant_4x2", "ant_4x2", "MPE_simple_spread_v3", "spread_10x5", "specialisation"]
    assert Config(env="toy", task="own_number").task == "own_number"


@pytest.mark.parametrize(
    ("step", "iteration"),
    [
        *[(0, 0), (1, 1), (BATCH, 1), (BATCH + 1, 2), (4 * BATCH + 1, 4), ("auto", None)],
        *[("0%", 0), ("20%", 2), ("19.9%", 1), ("40 %", 3), ("99%", 4)],
    ],
)
def test_a_switch_counts_from_the_next_rollout_and_leaves_one_to_the_adapters(step, iteration):
    assert Config(total_steps=5 * BATCH + 7, switch_step=step).switch_iteration == iteration


def test_a_share_of_the_budget_follows_the_budget_and_has_one_form():
    config = Config(total_steps=100_000, switch_step="010.0 %")
    assert config.switch_step == "10%"
    assert config.switch_iteration == Config(total_steps=100_000, switch_step=10_000).switch_iteration
    longer = replace(config, total_steps=1_000_000)
    assert longer.switch_iteration == replace(longer, switch_step=100_000).switch_iteration
    assert Config(switch_step="0%").switch_step == 0
    for share in ("0.00001%", "99.9999999999999%", "5.50%"):  # its own form is one, too
        assert replace(Config(switch_step=share), seed=1).switch_step == share.replace("0%", "%")


@given(iterations=st.integers(1, 200), evaluations=st.integers(1, 30))
def test_evaluations_are_spread_over_the_run_and_no_more_than_asked_for(iterations, evaluations):
    config = Config(total_steps=iterations * BATCH, evaluations=evaluations)
    assert config.iterations == iterations
    done = iterations // config.evaluation_interval
    assert 1 <= done <= evaluations
    assert done >= min(evaluations, iterations) / 2


@pytest.mark.parametrize(
    ("placement", "layers"),
    [
        (("all",), "fc1 fc2 gru_in gru_hidden after1 head"),
        (("early",), "fc1 fc2"),
        (("recurrent",), "gru_in gru_hidden"),
        (("late",), "after1"),
        (("head",), "head"),
        (("head", "fc1"), "fc1 head"),
        (("fc*", "fc2", "gru_in"), "fc1 fc2 gru_in"),
    ],
)
def test_placements_name_layers_from_input_to_output(placement, layers):
    assert Config(actor=NetworkConfig(layers=2), placement=placement).adapted_layers == tuple(layers.split())


def test_a_feed_forward_network_has_no_recurrent_layers():
    assert feed_forward(layers=1, layers_after=2).layer_names == ("fc1", "after1", "after2", "head")


@pytest.mark.parametrize(("alpha", "rank", "scale"), [(None, 8, 1.0), (None, 3, 1.0), (16.0, 8, 2.0), (1.0, 4, 0.25)])
def test_adapters_are_scaled_by_alpha_over_rank(alpha, rank, scale):
    assert Config(alpha=alpha, rank=rank).adapter_levels[0][:3] == ("agent", rank, scale)


def test_chunks_are_steps_without_recurrence_and_the_rollout_with_0():
    assert Config().chunk_length == 10
    assert Config(ppo=PPOConfig(chunk_length=0)).chunk_length == 160
    critic = Config().critic
    assert Config(actor=feed_forward()).chunk_length == 10  # the critic still recurs
    assert critic.recurrent
    alone = Config(actor=feed_forward(), critic=type(critic)(recurrent=False), ppo=PPOConfig(chunk_length=7))
    assert alone.chunk_length == 1


def test_nearest_names_what_was_meant():
    assert nearest("lorasq", ["lorasa", "nps"]) == " (did you mean 'lorasa'?)"
    assert nearest("xyz", ["lorasa", "nps"]) == ""


def test_require_raises_unless():
    require(True, "no")
    with pytest.raises(ConfigError, match=r"^no$"):
        require(False, "no")


def test_configuration_does_not_load_jax():
    code = "import sys, lorasa_jax.config; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_levels_say_who_owns_what_and_leave_the_rest_to_the_settings_of_all():
    config = Config(levels=("agent:4@0.1/head+early", "team"), rank=3, alpha=6.0, actor=NetworkConfig(layers=1))
    everywhere = ("fc1", "gru_in", "gru_hidden", "after1", "head")
    assert config.adapter_levels == (("team", 3, 2.0, None, everywhere), ("agent", 4, 1.5, 0.1, ("fc1", "head")))
    assert Config().adapter_levels == (("agent", 8, 1.0, None, Config().adapted_layers),)


def test_equal_levels_are_written_alike():
    """From the coarsest scope to the finest, also where one word holds several; and they come back from JSON."""
    config = Config(levels=("agent:08@1.0 team:2@1e-1",))
    assert config == Config(levels=["team:2@0.1", "agent:8@1"])
    assert config.levels == ("team:2@0.1", "agent:8@1")
    assert Config(**json.loads(json.dumps({"levels": config.levels}))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": ("agnet:4",)}, r"'agnet:4' begins with no scope \(did you mean 'agent'\?\); a level is SCOPE"),
        ({"levels": ("agent:0",)}, "the rank in 'agent:0' must be a positive whole number, got '0'"),
        ({"levels": ("agent:4:2",)}, "the rank in 'agent:4:2' must be a positive whole number, got '4:2'"),
        ({"levels": ("team@-1",)}, "the learning rate factor in 'team@-1' must be a positive number or auto, got '-1'"),
        ({"levels": ("team@nan",)}, "factor in 'team@nan' must be a positive number"),
        ({"levels": ("agent:2/",)}, "'agent:2/' ends without a layer"),
        ({"levels": ("agent/haed",)}, r"levels agent/haed: 'haed' names no layer \(did you mean 'head'"),
        ({"levels": ("team", "agent:2", "agent")}, r"the scope agent more than once \(agent:2 and agent\)"),
        ({"levels": ()}, "levels must name an owner, one or more of team, unit_type, agent"),
        ({"levels": "agent"}, "levels must be a list"),
        ({"ranks": (2, 4)}, "ranks .* must be a positive number for each of agent, got 2 4"),
        ({"ranks": (0,)}, "ranks .* must be a positive number for each of agent, got 0"),
        ({"ranks": ()}, "ranks .* must be a positive number for each of agent, got none"),
    ],
)
def test_wrong_levels_are_told_in_one_line(changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        Config(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "levels"),
    [
        ({"adapter_key": "agent"}, ("agent",)),
        ({"adapter_key": "unit_type"}, ("unit_type",)),
        ({"adapter_key": "unit_type,agent", "ranks": (2, 4)}, ("unit_type:2", "agent:4")),
        ({"ranks": (3,)}, ("agent:3",)),
        ({"levels": ("unit_type:2",), "adapter_key": "unit_type", "ranks": (2,)}, ("unit_type:2",)),
    ],
)
def test_old_names_of_levels_work_with_a_hint(old, levels):
    with pytest.warns(Renamed, match=f"is an old name .* say levels {' '.join(levels)}$"):
        config = Config(**old)
    assert config == Config(levels=levels)  # nothing is left of the old names, and so no second hint


@pytest.mark.parametrize(
    "words", [("smax", "3s5z"), ("smax", "3s5z", "paper", "a2po"), ("mabrax",), ("toy", "own_number")]
)
def test_a_preset_is_the_same_from_python_and_on_the_command_line(words):
    env, task, preset, algo = (*words, *("", "", "fast", "mappo")[len(words) :])
    flags = ["--env", env, "--preset", preset, "--algo", algo, *(["--task", task] if task else [])]
    asked = parse(RunConfig, [*flags, "--ppo.gamma", "0.5"])
    found = Config.from_preset(env, task, preset, algo, ppo={"gamma": 0.5})
    assert found == Config.from_dict(asked.to_dict(), ignore=set(asked.to_dict()) - set(found.to_dict()))


def test_a_preset_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"there is no preset 'fats' for smax \(did you mean 'fast'\?\)"):
        Config.from_preset("smax", preset="fats")
    with pytest.raises(ConfigError, match="there is no setting 'rnak'"):
        Config.from_preset("smax", rnak=3)
