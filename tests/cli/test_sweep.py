"""A sweep runs every point once, each from the backbone that it shares, and goes on where it stopped."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from lorasa_jax import adapters
from lorasa_jax.cli import command, evaluate, export, launching, plan, saved, signals, sweep, sweep_plan, sweep_tables
from lorasa_jax.cli import flags as cli
from lorasa_jax.cli import train as run
from lorasa_jax.cli.flags import RunConfig, parse, read_flags
from lorasa_jax.cli.run_dir import RunDir
from lorasa_jax.config import ConfigError
from lorasa_jax.envs import make_env
from lorasa_jax.learning.system import is_two_phase
from lorasa_jax.storage import arrays as storage

BASE = {
    "env": "toy", "task": "own_number", "n_agents": 4, "total_steps": 512,
    "n_envs": 8, "rollout_length": 8, "evaluations": 4, "eval_episodes": 16,
    "seed": 3, "seeds": 2, "actor": {"hidden": 16}, "ppo": {"lr": 0.01},
    "placement": ["fc[23]", "head"],  # layers on which ranks 1 and 2 are both low
}  # fmt: skip
SWEEPS = Path(sweep.__file__).parent / "sweeps"
FORKS = {"sharing": "lorasa", "switch_step": [128, "auto"], "rank": [1, 2]}


def write(path: Path, base: Any = None, grids: Any = None) -> Path:
    path.write_text(yaml.safe_dump({"base": base or BASE, "grids": grids or [FORKS]}, sort_keys=False))
    return path


def jobs_of(path: Path, mix_switches: bool = False) -> list[plan.Job]:
    return sweep_plan.make_plan(sweep_plan.SweepConfig(file=path, mix_switches=mix_switches))


def test_points_are_the_products_and_each_counts_once(tmp_path: Path) -> None:
    grids = [{"sharing": "lorasa", "rank": [1, 2]}, {"sharing": ["lorasa", "ps"], "rank": 2}]
    path = write(tmp_path / "a.yaml", grids=grids)
    expected = [{"sharing": s, "rank": r} for s, r in (("lorasa", 1), ("lorasa", 2), ("lorasa", 2), ("ps", 2))]
    assert plan.read(path)[1] == expected
    rows = [row.point for job in jobs_of(path) for row in job.rows if job.origin]
    assert rows == [expected[0]] * 2 + [expected[1]] * 2  # two seeds of each


def test_a_point_counts_once_however_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    base = json.dumps(BASE)
    path.write_text(f"base: {base}\ngrids:\n- {{ppo.gamma: [5e-1, 0.5, '.5']}}\n- ppo: {{gamma: [0.5, 0.25]}}\n")
    points = [row.point for job in jobs_of(path) for row in job.rows if job.origin]
    assert [point["ppo.gamma"] for point in points] == [0.5, 0.5, 0.25, 0.25]  # two seeds of each


def test_the_file_of_a_preset_is_sought_beside_that_of_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    for name, rank in (("a", 2), ("b", 3)):
        (tmp_path / "mine" / f"{name}.yaml").write_text(f"base: fast\nrank: {rank}\n")
    base = {name: value for name, value in BASE.items() if name != "rank"}
    write(tmp_path / "mine" / "sweep.yaml", {**base, "sharing": "hyper"}, [{"preset": ["a.yaml", "b.yaml", "fast"]}])
    monkeypatch.chdir(tmp_path)
    jobs = jobs_of(Path("mine/sweep.yaml"))
    ranks = {job.rows[0].point["preset"]: job.config.rank for job in jobs}
    assert ranks == {"mine/a.yaml": 2, "mine/b.yaml": 3, "fast": 8}


def test_a_plan_trains_every_trunk_once(tmp_path: Path) -> None:
    grids = [FORKS, {"sharing": "lorasa", "switch_step": 128, "rank": 16}, {"sharing": "ps_restart", "switch_step": 64}]
    grids += [{"sharing": ["nps", "ps"], "rank": [1, 2]}, {"sharing": "lorasa", "ppo.gamma": 0.5, "switch_step": 0}]
    jobs = jobs_of(write(tmp_path / "a.yaml", grids=grids))
    assert [(job.name, job.origin and job.origin[0], len(job.rows)) for job in jobs] == [
        ("1-ps_id", None, 2),
        ("2-lorasa", "1-ps_id", 4),  # after 128 steps
        ("3-lorasa", "1-ps_id", 4),  # auto
        ("4-lorasa", "1-ps_id", 2),  # full rank on every layer
        ("5-ps_restart", "1-ps_id", 2),
        ("6-nps", None, 2),
        ("7-ps", None, 2),
        ("8-ps_id", None, 2),
        ("9-lorasa", "8-ps_id", 2),
    ]
    # 1: after 64 steps; 2: after 128; and every evaluation from a tenth of the budget to 60 %.
    assert jobs[0].keep == (1, 2, 4, 6)
    assert jobs[8].keep == () and jobs[7].keep == (0,)
    assert [(row.label["seed"], row.label["rank"]) for row in jobs[1].rows] == [(3, 1), (4, 1), (3, 2), (4, 2)]
    assert jobs[1].origin == ("1-ps_id", (0, 1) * 2)
    assert [row.point for row in jobs[0].rows] == [{"sharing": "ps_id"}] * 2


@pytest.mark.parametrize(("mix", "steps"), [(False, [[128], ["auto"]]), (True, [[128, "auto"]])])
def test_forks_share_a_program_if_they_switch_at_the_same_step_or_are_mixed(
    tmp_path: Path, mix: bool, steps: list[list[int | str]]
) -> None:
    forks = [job for job in jobs_of(write(tmp_path / "a.yaml"), mix) if job.origin]
    assert [list(dict.fromkeys(row.config.switch_step for row in job.rows)) for job in forks] == steps
    assert [job.config.switch_step for job in forks] == ([128, "auto"] if not mix else ["auto"])
    assert all(
        [row.config.rank for row in job.rows] == [1, 1, 2, 2] * len(step)
        for job, step in zip(forks, steps, strict=True)
    )


def test_what_concerns_only_adapters_sets_no_other_scheme_apart(tmp_path: Path) -> None:
    grids = [{"sharing": ["ps_id", "lorasa"], "rank": [1, 2], "switch_step": 64}, {"sharing": "hyper", "rank": [1, 2]}]
    jobs = jobs_of(write(tmp_path / "a.yaml", grids=grids))
    points = {job.name: [row.point for row in job.rows[::2]] for job in jobs}
    assert points == {
        "1-ps_id": [{"sharing": "ps_id"}],
        "2-lorasa": [{"sharing": "lorasa", "rank": rank, "switch_step": 64} for rank in (1, 2)],
        "3-hyper": [{"sharing": "hyper", "rank": 1}],
        "4-hyper": [{"sharing": "hyper", "rank": 2}],
    }


def test_a_row_knows_its_own_settings_where_its_label_leaves_them_out(tmp_path: Path) -> None:
    grids = [{"sharing": "lorasa", "switch_step": 64}, {"sharing": "lorasa", "switch_step": 64, "rank": 2}]
    grids += [{"sharing": "lorasa", "switch_step": 64, "ppo.adapter_lr": 0.5, "alpha": 1.0, "placement": ["head"]}]
    (job,) = (job for job in jobs_of(write(tmp_path / "a.yaml", {**BASE, "rank": 1}, grids)) if job.origin)
    assert len(job.rows) == 6 and job.config.rank == 2
    rows = {"rows": [row.label for row in job.rows], "own": [row.own for row in job.rows]}
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    for k, row in enumerate(job.rows):
        found = saved.row_config(job.config, tmp_path, k)
        assert (found.rank, found.alpha, found.placement, found.ppo, found.seed) == (
            row.config.rank, row.config.alpha, row.config.placement, row.config.ppo, row.config.seed
        )  # fmt: skip


def test_an_environment_is_that_of_its_time_limit() -> None:
    config = cli.parse(cli.RunConfig, ["--env", "toy", "--task", "probe_clock", "--time-limit", "terminal"])
    assert sweep_plan.env_of(config) is not sweep_plan.env_of(replace(config, time_limit="bootstrap"))
    assert sweep_plan.env_of(config) is sweep_plan.env_of(replace(config, rank=2))


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_of_the_repository_can_be_planned(path: Path) -> None:
    base, points = plan.read(path)
    for point in points:
        plan.configure(path, base, point)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("grids: [", "is not valid YAML"),
        (
            "grids: [{rank: 1}]\nbase: {env: toy}\ngrids: [{rank: 2}]",
            "line 3: the key 'grids' stands in line 1 already",
        ),
        ("base: {env: toy, ppo: {lr: 1}, ppo.lr: 2}\ngrids: [{rank: 1}]", "ppo.lr is set twice"),
        ("grid: [{rank: 1}]", "must hold `base`, the settings of all points, and `grids`"),
        ("grids: {rank: 1}", "grids must be a list of products"),
        ("base: 3\ngrids: [{rank: 1}]", "base must hold settings"),
        ("grids: [{seed: [1, 2]}]", "seed cannot vary in a grid"),
        ("base: {env: toy}\ngrids: [{rnak: 1}]", "there is no setting 'rnak' (did you mean 'rank'"),
        ("base: {env: toy}\ngrids: [{ppo.lrr: 1}]", "there is no setting 'ppo.lrr'"),
        ("base: {env: toy}\ngrids: [{rank: 0}]", "rank must be positive, got 0"),
        ("base: {env: toy}\ngrids: [{rank: four}]", "a.yaml: Error parsing --rank: expected a whole number"),
        ("base: {env: toy, ppo.lrr: 1}\ngrids: [{rank: 1}]", "there is no setting 'ppo.lrr'"),
        ("base: {env: toy}\ngrids: [{task: nothing}]", "no toy game 'nothing'"),
        ("base: {env: toy, ppo: }\ngrids: [{ppo.lr: 1}]", "ppo is a section, with settings of its own"),
        ("base: {env: toy}\ngrids: [{shard: [rows, envs]}]", "shard cannot vary in a grid"),
        ("!!python/object/apply:os.system ['false']", "is not valid YAML"),
    ],
)
def test_a_file_that_cannot_be_run_is_one_line(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as error:
        jobs_of(path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("shard", "many"), [("auto", True), ("off", False)])
def test_cores_are_put_to_work_before_anything_is_computed(
    shard: str, many: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the plan has computed something it is too late."""
    called: list[Any] = []
    monkeypatch.setattr(sweep, "prepare", lambda **how: called.append(how))
    monkeypatch.setattr(sweep, "make_plan", lambda config: called.append("plan") or [])
    sweep.main([str(write(tmp_path / "a.yaml", {**BASE, "shard": shard})), "--plan", "True"])
    assert called == [{"many": many, "keep": False}, "plan"]


def test_a_plan_is_printed_and_nothing_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [str(write(tmp_path / "a.yaml")), "--plan", "True", "--out", str(tmp_path / "out")]
    sweep.main(argv)
    said = capsys.readouterr().out
    assert "2-lorasa: 4 rows to 512 steps, from 1-ps_id" in said
    assert "sharing=lorasa  switch_step=auto  rank=2  (2 seeds)" in said
    assert "switch at different steps\n10 rows in 3 programs\n" in said
    sweep.main([*argv, "--mix-switches", "True"])
    assert capsys.readouterr().out.endswith("10 rows in 2 programs\n")
    assert not (tmp_path / "out").exists()


def test_points_of_one_program_that_name_different_settings_are_told_apart(tmp_path: Path) -> None:
    config = parse(RunConfig, ["--env", "toy", "--total-steps", "8192"])
    points: list[plan.Point] = [{"sharing": "lorasa", **more} for more in ({"rank": 1}, {"placement": "head"}, {})]
    job = plan.Job("2-lorasa", config, tuple(plan.Row(point, config) for point in points))
    labels = [row.label for row in job.rows]
    with closing(RunDir(tmp_path / job.name, config, labels)) as run_dir:
        run_dir.begin()
        for step in (1024, 2048):
            run_dir.rows += [
                {
                    **label, "env_steps": step, "phase": "adapters", "return": 0.5, "win_rate": 0.0,
                    "eval_return": k + step / 4096, "eval_win_rate": 0.0,
                }
                for k, label in enumerate(labels)
            ]  # fmt: skip
        assert [[row["eval_return"] for row in run_dir.rows_of(label)] for label in labels] == [
            [k + 0.25, k + 0.5] for k in range(3)
        ]
        run_dir.draw_curve()
    (tmp_path / job.name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in run_dir.rows))
    assert (tmp_path / job.name / "curve.png").exists()
    assert sweep_tables.curves([job], tmp_path, "return") == {
        name: ([1024, 2048], [k + 0.25, k + 0.5])
        for k, name in enumerate(("lorasa, rank 1", "lorasa, placement head", "lorasa"))
    }


def test_points_may_differ_in_levels_and_say_them_in_one_word() -> None:
    grid = {"sharing": "lorasa", "levels": ["agent:1", "team:2 agent:1@0.5"], "switch_step": 0}
    base = {"env": "toy", "task": "own_number", "total_steps": 8192}
    points = list(plan._points(Path("a.yaml"), grid))
    found = [plan.configure(Path("a.yaml"), base, point).levels for point in points]
    assert found == [("agent:1",), ("team:2", "agent:1@0.5")]
    jobs = plan.make_jobs(make_env, [(point, plan.configure(Path("a.yaml"), base, point)) for point in points])
    assert [(job.config.sharing, job.config.levels) for job in jobs] == [
        ("ps_id", ("agent",)), ("lorasa", found[0]), ("lorasa", found[1])
    ]  # fmt: skip
    assert jobs[2].rows[0].label == {"seed": 0, **points[1]}


def test_joint_training_is_a_job_by_itself_for_all_its_levels() -> None:
    base = {"env": "toy", "task": "own_number", "total_steps": 8192}
    points = list(plan._points(Path("a.yaml"), {"sharing": "lorasa_joint", "levels": ["agent:1", "agent:1@0.5"]}))
    jobs = plan.make_jobs(make_env, [(point, plan.configure(Path("a.yaml"), base, point)) for point in points])
    assert [(job.origin, job.config.levels) for job in jobs] == [(None, ("agent:1",)), (None, ("agent:1@0.5",))]
    assert [job.rows[0].point for job in jobs] == points


@pytest.mark.parametrize(("task", "jobs"), [("own_number", 3), ("specialisation", 2)])
def test_joint_training_with_several_switches_gets_programs_that_have_two_phases(task: str, jobs: int) -> None:
    """Each agent of own_number is paid for itself. There, `auto` in a common program would be a start at step 0."""
    base = {"env": "toy", "task": task, "total_steps": 8192}
    points = list(plan._points(Path("a.yaml"), {"sharing": "lorasa_joint", "switch_step": [1024, 2048]}))
    configured = [(point, plan.configure(Path("a.yaml"), base, point)) for point in points]
    found = plan.make_jobs(make_env, configured, mixed=True)
    assert [job.config.sharing for job in found] == ["ps_id"] + ["lorasa_joint"] * (jobs - 1)
    assert all(is_two_phase(job.config, make_env(job.config)) for job in found[1:])


def test_joint_training_from_step_0_is_one_job_where_it_starts_there_anyway() -> None:
    for task, steps in (("own_number", ["auto"]), ("specialisation", [0, "auto"])):
        base = {"env": "toy", "task": task, "total_steps": 8192}
        points = list(plan._points(Path("a.yaml"), {"sharing": "lorasa_joint", "switch_step": [0, "auto"]}))
        jobs = plan.make_jobs(make_env, [(point, plan.configure(Path("a.yaml"), base, point)) for point in points])
        assert [job.config.switch_step for job in jobs if job.config.sharing == "lorasa_joint"] == steps


def table(out: Path) -> list[dict[str, str]]:
    with (out / "table.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that has been run, beside its file."""
    path = tmp_path_factory.mktemp("sweep")
    sweep.main([str(write(path / "a.yaml")), "--out", str(path / "out"), "--cache", "False"])
    return path


@pytest.mark.slow
def test_the_table_has_a_row_per_point_and_seed(done: Path) -> None:
    rows = table(done / "out")
    assert [(row["sharing"], row["seed"], row["switch_step"], row["rank"]) for row in rows] == [
        ("ps_id", "3", "", ""), ("ps_id", "4", "", ""),
        *(("lorasa", seed, step, rank) for step in ("128", "auto") for rank in ("1", "2") for seed in ("3", "4")),
    ]  # fmt: skip
    assert {row["switched_at"] for row in rows[:2]} == {""}
    assert {row["switched_at"] for row in rows[2:6]} == {"128"}
    assert all(int(row["switched_at"]) in (256, 384) for row in rows[6:])
    assert all(0 <= float(row["greedy_return"]) <= 1 and row["env_steps"] == "512" for row in rows)
    per_agent = {row["rank"]: int(row["params_per_agent"]) for row in rows}
    assert per_agent[""] == 0 < per_agent["1"] < per_agent["2"]
    assert (done / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_rows_of_a_fork_are_known_by_their_point(done: Path) -> None:
    directory = done / "out" / "2-lorasa"
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    early = [row for row in rows if (row["seed"], row["rank"], row["switch_step"]) == (4, 2, 128)]
    assert [row["env_steps"] for row in early] == [192, 256, 320, 384, 448, 512]
    assert {row["phase"] for row in rows} == {"adapters"}
    summary = json.loads((directory / "summary.json").read_text())
    assert len(summary["rows"]) == 4
    assert summary["final_ci95"]["greedy"]["return"] is None  # rows of several points have no mean in common
    assert summary["steps_per_second"] == pytest.approx(len(rows) * 64 / summary["train_seconds"])


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_stopped(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(done / "out", out)
    argv = [str(done / "a.yaml"), "--out", str(out), "--cache", "False"]
    whole = table(out)
    shutil.rmtree(out / "2-lorasa")
    fill, seen = run.fill, []

    def stop_early(config: Any, *args: Any, **kwargs: Any) -> Any:
        *args_, also = args

        def stop(report: Any, state: Any) -> None:
            seen.append(state.rows)
            if len(seen) == 2:
                raise KeyboardInterrupt

        return fill(config, *args_, [*also, stop], **kwargs)

    monkeypatch.setattr(run, "fill", stop_early)
    with pytest.raises(SystemExit) as stopped:
        sweep.main([*argv, "--save-every", "0"])
    assert stopped.value.code == 130
    assert f"go on with: {command.python()}" in capsys.readouterr().err
    monkeypatch.setattr(run, "fill", fill)
    sweep.main(argv)
    assert table(out) == whole
    assert "1-ps_id: 2 rows\n" not in capsys.readouterr().out.split("programs\n")[1]


@pytest.mark.slow
def test_a_sweep_that_was_changed_is_not_mixed_with_what_was(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither where jobs are done, whose results would stand for other points, nor where they are not."""
    before = (done / "out" / "table.csv").read_bytes()
    changes: list[tuple[dict[str, Any], str]] = [
        ({"grids": [{**FORKS, "rank": [2, 1]}]}, "2-lorasa was begun with other points"),
        ({"grids": [{"sharing": "ps_id"}]}, "2-lorasa was begun with other points"),
        ({"base": {**BASE, "n_envs": 16}}, "1-ps_id was begun with n-envs 8, and the sweep now says 16"),
        (
            {"base": {**BASE, "total_steps": 1024}},
            "1-ps_id was begun with total-steps 512, and the sweep now says 1024",
        ),
        ({"base": {**BASE, "seeds": 3}}, "1-ps_id was begun with other points"),
    ]
    for change, said in changes:
        with pytest.raises(SystemExit) as stop:
            sweep.main([str(write(tmp_path / "b.yaml", **change)), "--out", str(done / "out"), "--cache", "False"])
        assert stop.value.code == 2
        assert said in capsys.readouterr().err
    assert (done / "out" / "table.csv").read_bytes() == before


@pytest.mark.slow
def test_the_points_of_a_job_are_played_apart(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main([str(done / "out" / "2-lorasa"), "--episodes", "16"])
    said = capsys.readouterr().out
    assert said.count("over the means of 2 seeds") == 2
    assert "sharing lorasa, switch_step 128, rank 2" in said
    for row in ([], ["--row", "4"]):
        with pytest.raises(SystemExit):
            export.main([str(done / "out" / "2-lorasa"), "--adapters", str(tmp_path / "a"), *row])
    said = capsys.readouterr().err
    assert "this run holds several points; name one with --row, 0 to 3" in said
    assert "the rows of this run are 0 to 3, got 4" in said
    for row, rank in ((0, 1), (2, 2)):
        export.main([str(done / "out" / "2-lorasa"), "--adapters", str(tmp_path / str(row)), "--row", str(row)])
        assert adapters.load(tmp_path / str(row)).rank == rank


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("srun") is not None, reason="there is a cluster here")
@pytest.mark.parametrize(("options", "said"), [([], "--launcher slurm: "), (["--cluster", "gpu"], "got 'gpu'")])
def test_a_launcher_that_is_not_there_is_one_line(tmp_path: Path, options: list[str], said: str) -> None:
    argv = [str(write(tmp_path / "a.yaml")), "--launcher", "slurm", *options, "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, str(Path(sweep.__file__)), *argv], capture_output=True, text=True)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_launcher_fills_the_same_folder(done: Path, tmp_path: Path) -> None:
    sweep.main(
        [str(done / "a.yaml"), "--out", str(tmp_path / "out"), "--launcher", "local", "--cluster", "timeout_min=9"]
    )
    assert table(tmp_path / "out") == table(done / "out")


SAVES = """
import pathlib, signal, sys, time
def end(number, frame):
    time.sleep(0.5)
    pathlib.Path("saved").write_text(str(sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, [])))))
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
pathlib.Path("ready").touch()
time.sleep(60)
"""
"""A program that takes its time to end in order, and says which signals do not reach it."""


@pytest.fixture
def heard() -> Iterator[None]:
    """Signals act as in a terminal, also where the tests run in the background of a script."""
    before = {number: signal.signal(number, handler) for number, handler in signals.Stop.DEFAULTS.items()}
    yield
    for number, found in before.items():
        signal.signal(number, found)


def when_ready(folder: Path, number: int) -> None:
    """Sends a signal to this process as soon as the program is there."""

    def send() -> None:
        while not (folder / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()


class Here:
    """A launcher whose jobs are processes that were just started."""

    def submit(self, process: subprocess.Popen) -> SimpleNamespace:
        return SimpleNamespace(job_id=str(process.pid), done=lambda: process.poll() is not None)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_sweep_that_is_stopped_stops_its_jobs_and_waits_until_they_have_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    """What a terminal sends to all its processes reaches the sweep alone."""

    def start(words: list[str], folder: Path) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", SAVES], cwd=tmp_path)

    monkeypatch.setattr(launching, "_executor", lambda config: (Here(), start))
    when_ready(tmp_path, number)
    file = write(tmp_path / "a.yaml", grids=[{"sharing": "ps"}])
    with pytest.raises(SystemExit) as stop:
        sweep.main([str(file), "--launcher", "local", "--out", str(tmp_path / "out")])
    assert stop.value.code == 128 + number
    assert json.loads((tmp_path / "saved").read_text()) == [signal.SIGHUP, signal.SIGINT]
    said = capsys.readouterr().err
    assert f"the jobs that ran (1-ps) were stopped; go on with: {command.python()}" in said


def test_a_sweep_that_fails_leaves_no_job_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[subprocess.Popen] = []

    def start(words: list[str], folder: Path) -> subprocess.Popen:
        if jobs:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        jobs.append(subprocess.Popen([sys.executable, "-c", SAVES], cwd=tmp_path))
        return jobs[0]

    monkeypatch.setattr(launching, "_executor", lambda config: (Here(), start))
    file = write(tmp_path / "a.yaml", grids=[{"sharing": ["ps", "nps"]}])
    with pytest.raises(SystemExit) as stop:
        sweep.main([str(file), "--launcher", "local", "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert jobs[0].poll() is not None


class Taken(Exception):
    """What a launcher raises in a job whose machine is taken."""


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("taken", [False, True])
def test_a_job_hands_on_the_signal_that_ends_it(tmp_path: Path, taken: bool) -> None:
    def take(number: int, frame: object) -> None:
        raise Taken

    signal.signal(signal.SIGHUP, take)
    _, command = launching._executor(sweep_plan.SweepConfig(tmp_path / "a.yaml", out=tmp_path, launcher="local"))
    when_ready(tmp_path, signal.SIGHUP if taken else signal.SIGTERM)
    with pytest.raises(Taken if taken else SystemExit):
        command([sys.executable, "-c", SAVES], tmp_path)()
    assert (tmp_path / "saved").exists()


def test_a_job_that_is_launched_plans_as_the_sweep_does(tmp_path: Path) -> None:
    config = sweep_plan.SweepConfig(
        write(tmp_path / "a.yaml"), out=tmp_path, mix_switches=True, save_every=3.0, cache=False
    )
    job = sweep_plan.make_plan(config)[1]
    command = launching._command(config, job)
    assert read_flags(sweep_plan.SweepConfig, command[3:]) == replace(config, only=job.name)


def test_a_local_job_may_take_its_time(tmp_path: Path) -> None:
    """Where nobody says otherwise; the launcher's own limit is two minutes."""
    for cluster, minutes in (((), launching.YEAR), (("timeout_min=9",), 9)):
        config = sweep_plan.SweepConfig(tmp_path / "a.yaml", out=tmp_path, launcher="local", cluster=cluster)
        executor, _ = launching._executor(config)
        assert executor._executor.parameters["timeout_min"] == minutes


def test_jobs_that_cannot_be_written_fail_in_one_line_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(RunDir, "begin", full)
    jobs = jobs_of(write(tmp_path / "a.yaml", grids=[{"sharing": ["ps", "nps"]}]))
    assert sweep.run_here(jobs, tmp_path / "out", "again") == ["1-ps", "2-nps"]
    said = capsys.readouterr().err
    assert said.count("\n") == said.count(f"{os.strerror(errno.EDQUOT)}; free some of your quota there") == 2


def test_curves_that_cannot_be_written_do_not_fail_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "curves.png")

    monkeypatch.setattr(sweep, "draw", full)
    monkeypatch.setattr(sweep, "run_here", lambda *args: [])
    sweep.main([str(write(tmp_path / "a.yaml")), "--out", str(tmp_path / "out")])
    said = capsys.readouterr()
    assert said.err.startswith("note: not written: curves.png: ") and "drawn" not in said.out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_jobs_of_a_launcher_save_when_their_sweep_is_stopped(tmp_path: Path, number: int) -> None:
    file = write(tmp_path / "a.yaml", base={**BASE, "total_steps": 10_000_000}, grids=[{"sharing": "ps"}])
    job = tmp_path / "out" / "1-ps"
    command = [sys.executable, str(Path(sweep.__file__)), str(file), "--launcher", "local", "--out", str(job.parent)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not (job / "metrics.jsonl").exists() or not (job / "metrics.jsonl").read_text():
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "the jobs that ran (1-ps) were stopped; go on with: " in said
    measured = (job / "metrics.jsonl").read_text().splitlines()
    assert [path.name for path in storage.complete(job / "checkpoints")] == [str(len(measured))]
