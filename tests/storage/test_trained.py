"""Teams that are saved to play, and those that come with the library."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from checkpoints import keep_run, refusal
from helpers import KEY, assert_same

from lorasa_jax.config import ConfigError
from lorasa_jax.learning.rollout import play_episodes, record_episode
from lorasa_jax.storage import checkpoints
from lorasa_jax.storage.runs import Team, load_run, load_team
from lorasa_jax.trained import TRAINED

EPISODES = {"2s3z": 16, "halfcheetah_2x3": 2, "spread_30x5": 64}
"""The teams of the library, and how many episodes a test plays."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run's directory, with a checkpoint of each phase."""
    directory = tmp_path_factory.mktemp("run")
    kept = keep_run(directory / "checkpoints")
    (directory / "config.json").write_text(json.dumps(kept.config.to_dict()))
    versions = {"command": ["python", "run.py"], "commit": "0ffa", "packages": {"jax": "1"}, "cpus": 2}
    (directory / "versions.json").write_text(json.dumps(versions))
    kept.directory = directory
    return kept


@pytest.fixture
def saved(run: SimpleNamespace, tmp_path: Path) -> Path:
    """The run's team, in a folder of its own."""
    return load_run(run.directory, env=run.env).save(tmp_path / "saved", {"greedy": {"return": 1.5}})


def refused(*args: object, **given: object) -> str:
    """The one line that refuses a team."""
    with pytest.raises(ConfigError) as error:
        load_team(*args, **given)
    assert "\n" not in str(error.value)
    return str(error.value)


def checkpoint_in(folder: Path) -> Path:
    """The only checkpoint of a saved team."""
    (found,) = (folder / "checkpoints").iterdir()
    return found


@pytest.mark.parametrize("phase", ["shared", "adapters"])
def test_a_saved_team_is_loaded_to_the_bit(run: SimpleNamespace, tmp_path: Path, phase: str) -> None:
    team = load_run(run.paths[phase], env=run.env)
    again = load_team(team.save(tmp_path / "new" / "team"), env=run.env)
    assert again.config == team.config
    assert_same((again.params, again.weights), (team.params, team.weights))
    episodes = [record_episode(each.system, each.weights, KEY) for each in (team, again)]
    assert_same(*episodes)


def test_a_saved_team_has_what_playing_takes_and_says_where_it_comes_from(run: SimpleNamespace, saved: Path) -> None:
    team = load_team(saved, env=run.env)
    meta = checkpoints.read_run(team.checkpoint)
    assert meta["leaves"].keys() == {"shared", "adapters"}
    origin = {"command": ["python", "run.py"], "commit": "0ffa", "packages": {"jax": "1"}}
    assert team.about == origin | {"greedy": {"return": 1.5}}
    assert load_team(team.save(saved.parent / "again"), env=run.env).about == team.about
    assert {path.name for path in saved.iterdir()} == {"config.json", "about.json", "checkpoints"}
    files = [path for path in saved.rglob("*") if path.is_file()]
    assert not [path for path in files if str(saved.parent).encode() in path.read_bytes()]


def test_training_does_not_go_on_from_a_saved_team(run: SimpleNamespace, saved: Path) -> None:
    checkpoint = checkpoint_in(saved)
    message = f"checkpoint {checkpoint} has only what one team needs to play"
    assert refusal(checkpoint).startswith(message)
    assert refused(saved, env=run.env, best=True).startswith(message)
    with pytest.raises(ConfigError, match="has only what one team needs to play"):
        checkpoints.load_team(checkpoint, run.config, run.env, valued=True)


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_file_is_named(run: SimpleNamespace, saved: Path, damage: str) -> None:
    files = [path for path in (saved / "checkpoints").rglob("*") if path.is_file() and "adapters" in path.parts]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content) if damage == "changed" else largest.unlink()
    checkpoint = checkpoint_in(saved)
    assert refused(saved, env=run.env).startswith(f"{largest.relative_to(checkpoint)} of checkpoint {checkpoint} is ")


@pytest.mark.parametrize("name", ["config.json", "about.json"])
def test_settings_that_are_no_json_are_named(run: SimpleNamespace, saved: Path, name: str) -> None:
    (saved / name).write_text("{")
    assert refused(saved, env=run.env).startswith(f"{saved / name} is not valid JSON")


def test_what_is_no_json_is_refused_before_anything_is_written(run: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"about must hold plain numbers, .*: Object of type ArrayImpl is not JSON"):
        load_run(run.directory, env=run.env).save(tmp_path / "team", {"return": jax.numpy.zeros(3)})
    assert not any(tmp_path.iterdir())


def test_a_folder_that_exists_is_left_alone(run: SimpleNamespace, saved: Path) -> None:
    team: Team = load_team(saved, env=run.env)
    with pytest.raises(ConfigError, match=f"{saved} exists already"):
        team.save(saved)
    assert_same(jax.tree.leaves(load_team(saved, env=run.env).params), jax.tree.leaves(team.params))


def test_a_name_that_no_team_has_is_answered_with_all_names() -> None:
    assert refused("spred_30x5") == (
        "there is no folder and no trained team 'spred_30x5' (did you mean 'spread_30x5'?); "
        f"teams: {', '.join(sorted(EPISODES))}"
    )


@pytest.mark.parametrize("name", EPISODES)
def test_a_team_of_the_library_plays_as_it_was_measured(name: str) -> None:
    team, episodes = load_team(name), EPISODES[name]
    system = team.system._replace(config=replace(team.config, eval_episodes=episodes))
    played = jax.jit(lambda weights: play_episodes(system, weights, KEY, True))(team.weights)
    measured = dict(team.about["greedy"])
    n = measured.pop("episodes")
    for measure, found in measured.items():
        error = found["deviation"] * (1 / episodes + 1 / n) ** 0.5
        assert played[measure].mean() == pytest.approx(found["mean"], abs=5 * error + 0.01)


def test_teams_of_the_library_are_small_and_name_their_commit() -> None:
    for name in EPISODES:
        files = [path for path in (TRAINED / name).rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) < 500_000
        about = load_team(name).about
        assert about["commit"].isalnum() and about["command"][:2] == ["python", "experiments/run.py"]
