"""The command line, as a user meets it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from lorasa_jax.cli import command, diagnose, evaluate, export, paths, sizes, sweep
from lorasa_jax.cli import flags as cli
from lorasa_jax.cli import train as run
from lorasa_jax.cli.command import leave, python
from lorasa_jax.cli.flags import RunConfig, parse, read_config
from lorasa_jax.cli.run_dir import RunDir
from lorasa_jax.config import ConfigError
from lorasa_jax.presets import PRESETS

RUN = Path(__file__).parents[2] / "experiments" / "run.py"
PRESET_NAMES = sorted((path.parent.name, path.stem) for path in PRESETS.glob("*/*.yaml"))


def wrong(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What a command line that cannot work says."""
    with pytest.raises(SystemExit) as stop:
        parse(RunConfig, argv)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


@pytest.mark.parametrize(("env", "preset"), PRESET_NAMES)
def test_every_preset_is_a_valid_configuration(env: str, preset: str) -> None:
    config = parse(RunConfig, ["--env", env, "--preset", preset])
    assert (config.env, config.preset) == (env, preset)


@pytest.mark.parametrize(("env", "preset"), PRESET_NAMES)
@pytest.mark.parametrize(
    "argv", [[], ["--ppo.huber-delta", "inf", "--placement", "head", "gru_in", "--alpha", "0.1", "--out", "a b/c"]]
)
def test_a_configuration_comes_back_from_the_file_that_a_run_writes(
    tmp_path: Path, env: str, preset: str, argv: list[str]
) -> None:
    if not parse(RunConfig, ["--env", env, "--preset", preset]).actor.recurrent:
        argv = [word for word in argv if word != "gru_in"]
    config = parse(RunConfig, ["--env", env, "--preset", preset, *argv])
    with closing(RunDir(tmp_path, replace(config, resume=tmp_path))) as run_dir:
        run_dir.begin()
    assert read_config(RunConfig, tmp_path / "config.json") == config
    assert parse(RunConfig, ["--resume", str(tmp_path)]) == replace(config, resume=tmp_path)


def test_levels_come_back_from_the_file_that_a_run_writes(tmp_path: Path) -> None:
    config = parse(RunConfig, ["--levels", "team:8", "agent:4@0.1/head+early", "--freeze-trunk", "False"])
    assert config.levels == ("team:8", "agent:4@0.1/head+early")
    with closing(RunDir(tmp_path, config)) as run_dir:
        run_dir.begin()
    assert read_config(RunConfig, tmp_path / "config.json") == config


@pytest.mark.parametrize("place", ["flags", "preset", "config.json"])
def test_old_names_of_levels_are_taken_with_one_line(
    place: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_HINTED", set())
    path, old = tmp_path / "old.yaml", {"adapter_key": "unit_type,agent", "ranks": [4, 8]}
    path.write_text(yaml.safe_dump(old))
    if place == "config.json":
        config = cli.from_settings(RunConfig, old, path)
    else:
        flags = ["--adapter-key", "unit_type,agent", "--ranks", "4", "8"]
        config = parse(RunConfig, flags if place == "flags" else ["--preset", str(path)])
    assert config.levels == ("unit_type:4", "agent:8")
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "adapter-key unit_type,agent is an old name" in said and said.endswith("say levels unit_type:4 agent:8\n")


def test_an_old_name_of_levels_replaces_those_of_a_preset() -> None:
    assert parse(RunConfig, ["--adapter-key", "agent"]).levels == ("agent",)


def test_settings_that_a_network_of_ones_own_ignores_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    parse(RunConfig, ["--env", "toy", "--actor.hidden", "8", "--critic.scope", "agent"])
    assert capsys.readouterr().err == ""
    own = ["--actor.module", "mine:make", "--actor.recurrent", "False", "--actor.layer_norm=False"]
    parse(RunConfig, ["--env", "toy", *own, "--actor.hidden", "8", "--critic.hidden", "8"])
    said = "note: --actor.layer-norm, --actor.hidden: the network mine:make ignores this, unless its factory reads it\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--env smax --task 3s5z", (200_000, 10, 0.95)),
        ("--env smax --task 3s5z_vs_3s6z", (4_000_000, 10, 0.90)),
        ("--env smax --task 3s5z_vs_3s6z --algo a2po", (2_000_000, 10, 0.90)),
        ("--env smax", ("auto", 10, 0.95)),
        ("--env mabrax", (4_000_000, 25, 0.93)),
        ("--env mabrax --task halfcheetah_2x3 --algo a2po", (3_000_000, 16, 0.93)),
        ("--env mabrax --task humanoid_9|8", (1_000_000, 25, 0.90)),
    ],
)
def test_a_preset_knows_tasks_and_algorithms_apart(words: str, expected: tuple) -> None:
    config = parse(RunConfig, [*words.split(), "--preset", "paper"])
    assert (config.switch_step, config.n_envs, config.ppo.gae_lambda) == expected


def test_a_case_of_a_preset_must_say_what_it_sets(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("cases:\n- {map: 3m, set: {rank: 2}}\n")
    assert "each of its cases says for which task, algo or sharing" in wrong(capsys, "--preset", str(path))
    path.write_text("cases:\n- {task: 3m, set: }\n")
    assert "each of its cases says for which task, algo or sharing" in wrong(capsys, "--preset", str(path))


def test_a_preset_starts_from_another_and_may_be_for_its_cases_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: fast\nppo: {gamma: 0.25}\nonly_cases: true\ncases:\n- {task: 3m, set: {rank: 2}}\n")
    fast, mine = (parse(RunConfig, ["--task", "3m", "--preset", name]) for name in ("fast", str(path)))
    assert mine == replace(fast, preset=str(path), rank=2, ppo=replace(fast.ppo, gamma=0.25))
    assert "has no case for task 2s3z, algo mappo, sharing lorasa" in wrong(capsys, "--preset", str(path))
    path.write_text("base: fast\nsharing: nps\ncases:\n- {sharing: nps, set: {rank: 3}}\n")
    own, given = (parse(RunConfig, ["--preset", str(path), *words]) for words in ([], ["--sharing", "lorasa"]))
    assert (own.rank, own.levels) == (3, ("agent",))  # the preset's scheme decides, unless another one is given
    assert (given.rank, given.levels) == (8, ("team", "agent@auto"))
    path.write_text(f"base: {path}\n")
    assert "cannot start from itself" in wrong(capsys, "--preset", str(path))


@pytest.mark.parametrize(
    "words",
    [
        "--env smax --task 3s5z",
        *(
            pytest.param(f"--env {path.parent.name} --task {task}", marks=pytest.mark.slow)
            for path in PRESETS.glob("*/small_nps.yaml")
            for rule in yaml.safe_load(path.read_text())["cases"]
            for task in (rule["task"] if isinstance(rule["task"], list) else [rule["task"]])
        ),
    ],
)
def test_small_separate_networks_are_as_large_as_adapters(words: str) -> None:
    from lorasa_jax.envs import make_env

    small, fast = (parse(sizes.SizesConfig, [*words.split(), "--preset", name]) for name in ("small_nps", "fast"))
    assert (small.sharing, fast.sharing) == ("nps", "lorasa")
    assert sizes.nps_width(fast, make_env(fast))[0] == small.actor.hidden


def test_flags_override_the_preset_which_overrides_the_defaults(tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("rank: 3\nppo: {lr: 0.5, gamma: 0.25}\nplacement: [head, gru_in]\n")
    config = parse(RunConfig, ["--preset", str(preset), "--ppo.lr", "0.125"])
    assert (config.rank, config.ppo.lr, config.ppo.gamma, config.ppo.clip_eps) == (3, 0.125, 0.25, 0.2)
    assert config.adapted_layers == ("gru_in", "head")


def test_flags_of_a_jaxmarl_game_are_arguments_of_its_constructor() -> None:
    words = ["--env", "jaxmarl", "--jaxmarl.layout", "coord_ring", "--seeds", "2", "--jaxmarl.max-steps=9"]
    config = parse(RunConfig, words)
    assert (config.seeds, config.jaxmarl.arguments) == (2, {"layout": "coord_ring", "max_steps": 9})


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--rank", "0"], ["rank must be positive, got 0"]),
        (["--rank", "-2"], ["rank must be positive, got -2"]),
        (["--total-steps", "0"], ["total-steps must be positive, got 0"]),
        (["--total-steps", "-5"], ["total-steps must be positive"]),
        (["--total-steps", "10"], ["less than one iteration", "raise it"]),
        (["--switch-step", "99999999"], ["switch-step must lie in [0,", "99,999,999"]),
        (["--placement", "heat"], ["placement 'heat' names no layer", "'head'", "gru_hidden"]),
        (["--preset", "fats"], ["no preset 'fats' for smax", "'fast'", "jaxmarl"]),
        (["--env", "toy", "--preset", "jaxmarl"], ["no preset 'jaxmarl' for toy", "one for smax"]),
        (["--env", "toi"], ["'toi'", "smax", "toy"]),
        (["--totl-steps", "10"], ["--totl-steps", "--total-steps"]),
        (["--ppo.lr", "fast"], ["--ppo.lr", "'fast'"]),
        (["--sharing", "lora"], ["'lora'", "lorasa"]),
        (["--preset", "nowhere.yaml"], ["no preset file nowhere.yaml"]),
        (["--save-every", "-1"], ["save-every must be 0 or more, got -1"]),
        (["--env", "jaxmarl", "--jaxmarl.layout", "--seeds", "2"], ["--jaxmarl.layout needs a value"]),
    ],
)
def test_a_wrong_flag_is_named_with_what_was_expected(
    capsys: pytest.CaptureFixture[str], argv: list[str], said: list[str]
) -> None:
    message = wrong(capsys, *argv)
    for words in said:
        assert words in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("env: toy\n", "a preset for toy, but --env is smax"),
        ("ppo: {learning_rate: 1}\n", "no setting 'ppo.learning_rate'"),
        ("rnak: 1\n", "no setting 'rnak' (did you mean 'rank'"),
        ("ppo: 3\n", "ppo is a section"),
        ("- rank\n", "must hold settings"),
        ("rank: [\n", "not valid YAML"),
        ("ppo: {lr: 1}\nrank: 2\nppo: {gamma: 0.5}\n", "line 3: the key 'ppo' stands in line 1 already"),
    ],
)
def test_a_wrong_preset_is_named_with_its_fault(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, said: str
) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text(text)
    assert said in wrong(capsys, "--preset", str(preset))


def test_a_preset_starts_from_a_file_beside_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    mine, base = tmp_path / "mine" / "mine.yaml", tmp_path / "mine" / "base.yaml"
    mine.write_text("base: base.yaml\nrank: 3\nshard: off\n")
    base.write_text("base: small_nps\nrank: 2\nalpha: 7\n")
    monkeypatch.chdir(tmp_path)
    config = parse(RunConfig, ["--preset", "mine/mine.yaml"])
    assert (config.rank, config.alpha, config.sharing, config.shard) == (3, 7, "nps", "off")
    base.write_text("base: ../mine/mine.yaml\n")
    assert "cannot start from itself, by base: ../mine/mine.yaml" in wrong(capsys, "--preset", str(mine))
    base.write_text("base: nowhere.yaml\n")
    assert "there is no preset file mine/nowhere.yaml" in wrong(capsys, "--preset", "mine/mine.yaml")
    mine.write_text("gif: off\n")
    assert "--gif" in wrong(capsys, "--preset", str(mine))


def test_a_preset_is_read_safely(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("rank: !!python/object/apply:os.getpid []\n")
    assert "not valid YAML" in wrong(capsys, "--preset", str(preset))


def test_help_is_instant_and_needs_no_jax() -> None:
    code = f"import runpy, sys; sys.argv = [{str(RUN)!r}, '--help']\n"
    code += f"try: runpy.run_path({str(RUN)!r}, run_name='__main__')\nexcept SystemExit: print('jax' in sys.modules)"
    began = time.perf_counter()
    path = str(RUN.parent)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {path!r})\n{code}"], capture_output=True, text=True
    )
    assert "--switch-step" in done.stdout
    assert done.stdout.strip().endswith("False")
    assert time.perf_counter() - began < 10  # a wide margin: what keeps it short is that jax is not loaded


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["--algo", "mapo"],
            "invalid choice 'mapo' for argument '--algo' (did you mean 'mappo' or 'a2po'?). Expected ",
        ),
        (["--algo", "xyz"], "invalid choice 'xyz' for argument '--algo'. Expected one of ('mappo', "),
        (["--rank", "two"], "Error parsing --rank: expected a whole number, got 'two'"),
        (["--mujoco.obsk", "many"], "Error parsing --mujoco.obsk: expected a whole number or all, got 'many'"),
        (["--ppo.lr", "low"], "Error parsing --ppo.lr: expected a number, got 'low'"),
    ],
)
def test_a_wrong_value_is_answered_with_what_was_expected(
    capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    assert said in wrong(capsys, *argv)


@pytest.mark.parametrize("argv", [["--env", "mujoco"], ["--env", "smax", "--preset", "paper"]])
def test_help_shows_few_flags_and_help_all_shows_all(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    shown = {}
    for word in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as stop:
            parse(RunConfig, [*argv, word])
        assert stop.value.code == 0
        shown[word] = " ".join(capsys.readouterr().out.replace("│", " ").split())
    steps = parse(RunConfig, argv).total_steps  # of the preset
    assert all(f"(default: {steps})" in text for text in shown.values())
    assert "--ppo.lr" not in shown["--help"]
    assert "--ppo.lr" in shown["--help-all"]
    assert "--adapter-key" not in shown["--help-all"]
    assert shown["--help"].rstrip().endswith("--help-all shows all of them.")
    assert parse(RunConfig, [*argv, "--ppo.lr", "0.5"]).ppo.lr == 0.5


def test_help_may_be_cut_short() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run([sys.executable, str(RUN), "--help"], stdout=closed, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_command_that_was_stopped_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one that failed, or has ended, what still runs is waited for, as ever."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(command, "open_streams", lambda: None)
    for code in (130, 2, 0):
        with pytest.raises(SystemExit):
            leave(lambda code=code: sys.exit(code))  # type: ignore[misc]
    leave(lambda: None)
    assert codes == [130]


def test_a_command_names_the_python_that_it_ran_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same file under another folder may be another environment."""
    for folder in ("here/bin", "there/bin"):
        (tmp_path / folder).mkdir(parents=True)
        for name in ("python", "python3"):
            (tmp_path / folder / name).symlink_to(sys.executable)
    ran = tmp_path / "here" / "bin" / "python3"
    monkeypatch.setattr(sys, "executable", str(ran))
    for folder, name in ((".", "here/bin/python3"), ("here/bin", "./python3"), ("there", str(ran))):
        monkeypatch.chdir(tmp_path / folder)
        monkeypatch.setenv("PATH", str(tmp_path / "there" / "bin"))
        assert python() == name
    monkeypatch.setenv("PATH", str(tmp_path / "here" / "bin"))
    assert python() == "python"
    monkeypatch.setenv("PATH", "")
    assert python() == str(ran)


def test_a_folder_that_is_gone_does_not_keep_a_command_from_naming_its_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setenv("PATH", "")
    assert python() == sys.executable


def test_a_checkpoint_is_told_from_a_run_in_a_folder_of_that_name() -> None:
    assert paths.run_of(Path("mine/checkpoints/341")) == Path("mine")
    assert paths.run_of(Path("mine/backbones/341")) == Path("mine")
    assert paths.run_of(Path("checkpoints/mine")) == Path("checkpoints/mine")


def test_a_checkpoint_is_found_from_anywhere_and_through_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "runs" / "mine" / "checkpoints" / "8"
    checkpoint.mkdir(parents=True)
    (tmp_path / "latest").symlink_to(checkpoint)
    (tmp_path / "9").symlink_to(checkpoint)
    (tmp_path / "folder").symlink_to(checkpoint.parent)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.chdir(tmp_path)
    there = (Path("runs/mine"), Path("runs/mine/checkpoints/8"))
    for typed in ("latest", "9", "runs/mine/checkpoints/8", "runs/mine/../mine/checkpoints/8"):
        run, found = paths.locate(Path(typed))
        assert found is not None
        assert (Path(os.path.normpath(run)), Path(os.path.normpath(found))) == there
    assert paths.locate(Path("folder/8")) == (Path("runs/mine"), Path("folder/8"))  # as it was typed
    for typed in ("loop", "nowhere", "runs/mine", "runs/mine/checkpoints"):
        assert paths.locate(Path(typed)) == (Path(typed), None)
    monkeypatch.chdir(checkpoint.parent)
    assert paths.locate(Path("8")) == (Path(".."), Path("8"))
    monkeypatch.chdir(checkpoint)
    assert paths.locate(Path(".")) == (Path("../.."), Path("../../checkpoints/8"))


def test_a_job_of_a_sweep_goes_on_with_its_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By itself it would not know what its rows are."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "rows.json").write_text("{}")
    with pytest.raises(SystemExit):
        cli.parse(cli.RunConfig, ["--resume", str(tmp_path)])
    assert f"{tmp_path} is a job of a sweep; resume it with the command of the sweep" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), command.polite():
        Path("/dev/null/x").mkdir()
    assert capsys.readouterr().err.endswith("error: /dev/null/x: Not a directory\n")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_an_error_that_names_no_file_is_one_line(capsys: pytest.CaptureFixture[str], code: int) -> None:
    with pytest.raises(SystemExit) as stop, command.polite():
        raise OSError(code, os.strerror(code))
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert f"error: {os.strerror(code)}; " in said and said.count("\n") == 1


def test_what_a_run_can_do_without_is_said_where_it_is_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    with command.optional():
        raise OSError(errno.EDQUOT, "Quota exceeded", "curve.png")
    assert capsys.readouterr().err == ("note: not written: curve.png: Quota exceeded; free some of your quota there\n")


def test_a_file_of_a_sweep_is_no_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("base: {env: toy}\ngrids: [{sharing: ps}]\n")
    with pytest.raises(SystemExit):
        parse(RunConfig, ["--env", "toy", "--preset", str(path)])
    assert "base must name a preset; a file with `grids` is one for sweep.py" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("gs://bucket/run", "'gs:/bucket/run' is an address"),
        ("~/runs/x", "'~/runs/x' would be a directory named ~"),
        ("runs/a\udcffb", "'runs/a\\udcffb' is not valid UTF-8"),
        ("runs/" + "x" * 300, "is too long a name"),
        ("x/" * 3000, "is too long a name"),
    ],
)
def test_a_place_that_is_not_what_its_name_says_is_refused(place: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        paths.require_place(Path(place))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("main", [run.main, sweep.main, diagnose.main, evaluate.main, export.main])
def test_every_command_refuses_it_before_it_begins(
    main: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flag = "--gif" if main is evaluate.main else "--out"
    words = ["--env", "toy"] if main is run.main else [str(tmp_path)]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main([*words, flag, "gs://bucket/x"])
    assert f"error: {flag} 'gs:/bucket/x' is an address" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", [None, "runs/[2026] lora", "a:b", "C:x", "runs/http:x", "/a/~", "~x", "日本"])
def test_a_place_may_have_any_other_name(place: str | None) -> None:
    paths.require_place(place and Path(place))
