"""Plugins: what a user's own file registers, on the command line and in what a run leaves."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from lorasa_jax import plugins
from lorasa_jax.cli.evaluate import EvaluateConfig
from lorasa_jax.cli.flags import RunConfig, parse, read_config, read_flags

pytestmark = pytest.mark.usefixtures("registries", "fresh")

MINE = """
from lorasa_jax import register_env, register_scheme
from lorasa_jax.envs.toy import make_toy
from lorasa_jax.sharing.schemes import own_trunks


def separate(n_agents, config):
    return own_trunks(n_agents, agent_id=True)


register_scheme("separate", separate)
register_env("line", lambda config: make_toy("specialisation", config.n_agents), default_task="short")
"""


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plugin has been loaded."""
    monkeypatch.setattr(plugins, "_loaded", {})


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def wrong(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line that refuses a command."""
    with pytest.raises(SystemExit) as stop:
        parse(RunConfig, argv)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_flags_and_help_know_what_a_plugin_registers(
    mine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "invalid choice 'separate'" in wrong(capsys, "--sharing", "separate")
    monkeypatch.chdir(mine.parent)
    config = parse(RunConfig, ["--plugins", "mine.py", "--env", "line", "--sharing", "separate"])
    assert (config.env, config.task, config.sharing, config.plugins) == ("line", "short", "separate", (str(mine),))
    preset = mine.with_name("small.yaml")
    preset.write_text("n_envs: 4\n")
    assert parse(RunConfig, ["--plugins", "mine.py", "--env", "line", "--preset", str(preset)]).n_envs == 4
    preset.write_text("plugins: [mine.py]\n")
    assert "a preset cannot run plugins" in wrong(capsys, "--preset", str(preset))
    with pytest.raises(SystemExit) as stop:
        parse(RunConfig, ["--plugins", "mine.py", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert ",line}" in shown and "separate}" in shown


def test_plugins_may_be_named_one_by_one(mine: Path) -> None:
    other = mine.with_name("other.py")
    other.write_text("")
    config = parse(RunConfig, ["--plugins", str(other), "--env", "line", "--plugins", str(mine)])
    assert (config.env, config.plugins) == ("line", (str(other), str(mine)))


def test_a_plugin_may_be_a_module_of_this_directory(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine.rename(mine.with_name("my_schemes.py"))
    monkeypatch.chdir(mine.parent)
    monkeypatch.setattr(sys, "path", [*sys.path])
    config = parse(RunConfig, ["--sharing", "separate", "--plugins", "my_schemes"])
    assert (config.sharing, config.plugins) == ("separate", ("my_schemes",))


def test_what_a_run_names_is_not_run_unasked_and_may_lie_elsewhere(
    mine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record, known = mine.with_name("config.json"), {"sharing": "separate", "plugins": [str(mine)]}
    record.write_text(json.dumps(known))
    said = wrong(capsys, "--resume", str(mine.parent))
    assert f"{record} names plugins, which are not run without your consent; add --plugins {mine} at the end" in said
    plugins.load_plugins([str(mine)])
    assert read_config(RunConfig, record).sharing == "separate"
    elsewhere = mine.parent / "elsewhere"
    elsewhere.mkdir()
    moved = mine.rename(elsewhere / mine.name)
    monkeypatch.setattr(plugins, "_loaded", {})
    assert "not run without your consent" in wrong(capsys, "--resume", str(mine.parent))
    config = parse(RunConfig, ["--resume", str(mine.parent), "--plugins", str(moved)])
    assert (config.sharing, config.plugins) == ("separate", (str(moved),))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "mine.py: there is no such file"),
        ("x = 1\nthere_is_no_such_name\n", "failed: NameError: name 'there_is_no_such_name' is not defined ("),
        ("def x(:\n", "failed: SyntaxError: "),
        ("import sys; sys.exit(3)\n", "failed: SystemExit: 3"),
        (MINE.replace('"separate"', '"ps"'), "mine.py: sharing 'ps' exists already; choose another name"),
    ],
)
def test_a_plugin_that_is_missing_or_broken_is_one_line(
    mine: Path, capsys: pytest.CaptureFixture[str], text: str | None, says: str
) -> None:
    mine.unlink() if text is None else mine.write_text(text)
    assert says in wrong(capsys, "--plugins", str(mine))


def test_a_module_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    said = wrong(capsys, "--plugins", "no.such.module")
    assert "plugin no.such.module failed: ModuleNotFoundError: No module named 'no'" in said


def test_every_command_takes_plugins(mine: Path) -> None:
    config = read_flags(EvaluateConfig, ["runs/mine", "--plugins", str(mine)])
    assert (str(config.run), list(plugins._loaded)) == ("runs/mine", [str(mine)])
