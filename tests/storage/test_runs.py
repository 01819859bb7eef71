"""A run that is loaded plays in any loop as it played in its own."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import keep_run
from helpers import KEY, assert_close, assert_same

from lorasa_jax import deltas, plugins
from lorasa_jax.config import Config, ConfigError, CriticConfig, NetworkConfig, PPOConfig
from lorasa_jax.learning.rollout import record_episode
from lorasa_jax.storage import runs
from lorasa_jax.storage.checkpoints import load_team
from lorasa_jax.storage.runs import load_run


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run's directory, with a checkpoint of each phase."""
    directory = tmp_path_factory.mktemp("run")
    run = keep_run(directory / "checkpoints")
    (directory / "config.json").write_text(json.dumps(run.config.to_dict() | {"gif": False, "out": None}))
    run.run = directory
    return run


def loaded(kept, **changes):
    return load_run(kept.run, env=kept.env, **changes)


def test_a_run_is_loaded_by_its_directory_or_by_a_checkpoint(kept):
    team = loaded(kept)
    assert team.config == kept.config
    assert team.checkpoint == kept.paths["adapters"]
    saved = load_team(team.checkpoint, kept.config, kept.env)
    assert_same(team.params, jax.tree.map(lambda leaf: leaf[0], saved.params))
    first = load_run(kept.paths["shared"], env=kept.env)
    assert first.params.agents == {}
    assert first.checkpoint == kept.paths["shared"]


def test_a_team_plays_in_a_loop_of_ones_own_as_in_its_own(kept):
    team, env = loaded(kept), kept.env
    states = record_episode(team.system, team.weights, KEY)
    reset_key, play_key = jax.random.split(KEY)
    state, seen = env.reset(reset_key)
    carry, played = team.initial_carry(1), [state]
    while not (seen.terminated | seen.truncated):
        action, carry = team.act(seen.obs[None], carry, avail=seen.avail[None], first=jnp.array([len(played) == 1]))
        state, seen = env.step(jax.random.fold_in(play_key, len(played) - 1), state, action[0])
        played.append(state)
    assert_close(jax.tree.map(lambda *leaves: jnp.stack(leaves), *played), states)


def test_actions_are_drawn_where_there_is_a_key_and_only_available_ones(kept):
    team, spec = loaded(kept), kept.env.spec
    obs = jax.random.normal(KEY, (64, spec.n_agents, spec.obs_dim))
    one = jnp.broadcast_to(jnp.arange(spec.n_actions) == 1, (64, spec.n_agents, spec.n_actions))
    assert (team.act(obs, team.initial_carry(64), avail=one)[0] == 1).all()
    drawn = [team.act(obs, team.initial_carry(64), key=jax.random.key(k))[0] for k in range(2)]
    assert np.any(drawn[0] != drawn[1])
    greedy = [team.act(obs, team.initial_carry(64))[0] for _ in range(2)]
    assert_same(*greedy)


def test_adapters_are_saved_from_a_loaded_team(kept, tmp_path):
    folder = loaded(kept).save_adapters(tmp_path / "adapters")
    assert (folder / "owner_0" / "adapter_config.json").is_file()


def test_a_team_plays_with_the_parameters_that_it_is_given(kept):
    team = loaded(kept)
    obs = jax.random.normal(KEY, (64, team.env.spec.n_agents, team.env.spec.obs_dim))
    same = team.with_params(team.params)
    assert_close(same.weights.actors, team.weights.actors)
    no_adapters = team.with_params(team.params._replace(agents=jax.tree.map(jnp.zeros_like, team.params.agents)))
    assert (same.act(obs, team.initial_carry(64))[0] == team.act(obs, team.initial_carry(64))[0]).all()
    assert_same(replace(team, params=no_adapters.params).weights, no_adapters.weights)
    assert (no_adapters.act(obs, team.initial_carry(64))[0] != team.act(obs, team.initial_carry(64))[0]).any()


def test_plugins_that_a_run_names_are_run_only_where_asked(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "_loaded", {})
    run, mine = shutil.copytree(kept.run, tmp_path / "run"), tmp_path / "mine.py"
    mine.write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    settings = kept.config.to_dict() | {"plugins": [str(mine)]}
    (run / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError) as error:
        load_run(run, env=kept.env)
    assert str(error.value) == (
        f"{run / 'config.json'} names plugins, which are not run without your consent; give plugins=['{mine}']"
    )
    assert not (tmp_path / "ran").exists()
    team = load_run(run, env=kept.env, plugins=[str(mine)])
    assert team.config == kept.config
    assert (tmp_path / "ran").exists()
    saved = team.save(tmp_path / "saved")
    assert json.loads((saved / "config.json").read_text())["plugins"] == ["mine.py"]
    assert runs.load_team(saved, env=kept.env).plugins == ("mine.py",)  # which is loaded already
    (run / "config.json").write_text(json.dumps(settings | {"plugins": 3}))
    with pytest.raises(ConfigError, match=r"plugins in .* must be a list of names"):
        load_run(run, env=kept.env)


def test_what_cannot_be_loaded_is_answered_in_one_line(kept, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(kept.run / "config.json", empty)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    for make, message in (
        (lambda: load_run(tmp_path / "nowhere"), "there is no run in "),
        (lambda: load_run(empty, env=kept.env), f"{empty} has no checkpoint yet"),
        (lambda: load_run(broken), f"{broken / 'config.json'} is not valid JSON"),
        (lambda: loaded(kept, row=3), "the rows of this run are 0 to 0, got 3"),
        (lambda: loaded(kept).act(jnp.zeros((2, 3, 9)), loaded(kept).initial_carry(2)), "observations must be [envir"),
    ):
        with pytest.raises(ConfigError) as error:
            make()
        assert str(error.value).startswith(message)
        assert "\n" not in str(error.value)


def test_settings_go_to_a_dictionary_and_back():
    config = Config(
        env="toy", sharing="nps", groups=None, placement=("head",), ppo=PPOConfig(huber_delta=float("inf")),
        actor=NetworkConfig(hidden=8), critic=CriticConfig(scope="agent"),
    )  # fmt: skip
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert Config.from_dict({"env": "toy", "ppo": {"lr": 0.01}}).ppo == PPOConfig(lr=0.01)
    for settings, message in (
        ({"sharng": "ps"}, "there is no setting 'sharng' (did you mean 'sharing'?)"),
        ({"ppo": {"rl": 1}}, "there is no setting 'ppo.rl' (did you mean 'lr'"),
        ({"ppo": 3}, "ppo is a section, with settings of its own"),
        ({"seed": "3"}, "seed must be a whole number, got '3'"),
    ):
        with pytest.raises(ConfigError) as error:
            Config.from_dict(settings)
        assert str(error.value).startswith(message)
    assert Config.from_dict({"gif": True, "env": "toy"}, ignore=("gif",)) == Config(env="toy")


def test_paths_may_be_words(kept):
    assert load_run(str(kept.run), env=kept.env).checkpoint == Path(kept.paths["adapters"])


def test_the_adapters_of_a_team_are_deltas_of_its_trunk(kept):
    team = loaded(kept)
    trunk = jax.tree.map(lambda leaf: leaf[0], team.params.shared)
    full = team.system.actor.merge(team.params).shared
    found = team.deltas()
    for i in range(found.n_owners):
        assert_close(deltas.merge(trunk, found[i]), jax.tree.map(lambda leaf, i=i: leaf[i], full))
    with pytest.raises(ConfigError, match="this team has no low-rank adapters of scope team"):
        team.deltas("team")
    assert len(repr(team).splitlines()) == 1
