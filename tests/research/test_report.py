"""Records hold what runs left, and documents what records give."""

from __future__ import annotations

import errno
import json
import os
import runpy
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lorasa_jax.analysis import statistics as stats
from lorasa_jax.cli.flags import RunConfig, parse
from lorasa_jax.cli.run_dir import RunDir, write_json
from lorasa_jax.config import ConfigError
from lorasa_jax.envs import make_env

from research import figures, records, report, tables
from research.runs import MEASURES, Experiment, by, overview, read_experiments, table_of

ROOT = Path(__file__).parents[2]
SMALL = [
    "--env", "toy", "--task", "own_number", "--n-agents", "4", "--n-envs", "8", "--rollout-length", "8",
    "--total-steps", "256", "--evaluations", "4", "--actor.hidden", "16", "--critic.hidden", "16",
]  # fmt: skip
SEEDS = (3, 4, 5)
CURVES = {"1-ps_id": [0.25, 0.5, 0.5, 0.75], "2-lorasa": [1.0, 1.0], "3-ps_restart": [0.5, 0.75], "4-nps": [0.25] * 4}
DOCUMENTS = {"README.md": "seeds four", "docs/results/four.md": "all four", "docs/reproduce.md": "cost"}
FINAL = {"1-ps_id": 0.75, "2-lorasa": 1.0, "3-ps_restart": 0.8, "4-nps": 1.0}


def a_row(job: str, label: dict[str, Any], step: int, value: float) -> dict[str, Any]:
    return {**label, "env_steps": step, "eval_return": value, "eval_win_rate": value / 2, "phase": ""}


def a_job(directory: Path, job: str, point: dict[str, Any], in_sweep: bool = True) -> None:
    """A finished program of three seeds, as commands leave it; seed k ends k tenths below the first."""
    sharing = job.split("-")[1]
    forked = sharing in ("lorasa", "ps_restart")
    # A fork may stand in a program of a higher rank than its own.
    flags = ["--sharing", sharing, "--seed", "3", "--seeds", "3", *(["--rank", "4"] if sharing == "lorasa" else [])]
    config = replace(parse(RunConfig, [*SMALL, *flags]), switch_step=128 if forked else "auto", out=directory / job)
    with closing(RunDir(directory / job, config)) as run_dir:
        run_dir.begin()
    labels = [{"seed": seed, **(point if in_sweep else {})} for seed in SEEDS]
    if in_sweep:
        write_json(directory / job / "rows.json", {"rows": labels})
    steps = range(192 if forked else 64, 257, 64)
    rows = [a_row(job, label, step, value) for step, value in zip(steps, CURVES[job], strict=True) for label in labels]
    (directory / job / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = [FINAL[job] - 0.1 * k for k in range(3)]
    play = {"return": values, "win_rate": [value / 2 for value in values], "length": [1.0] * 3}
    summary = {
        "env_steps": 256, "switch_steps": [128 if forked else None] * 3, "wall_seconds": 9.0, "compile_seconds": 1.0,
        "train_seconds": 2.0, "eval_episodes": 16, "random_return": [0.25] * 3,
        "final": {"greedy": play, "sampled": play, "best": {**play, "return": [value + 0.01 for value in values]}},
    }  # fmt: skip
    write_json(directory / job / "summary.json", summary)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished sweep."""
    directory = tmp_path_factory.mktemp("runs") / "four"
    for job in FINAL:
        sharing = job.split("-")[1]
        point: dict[str, Any] = {"sharing": sharing}
        if sharing in ("lorasa", "ps_restart"):
            point["switch_step"] = 128
        a_job(directory, job, point | ({"rank": 2} if sharing == "lorasa" else {}))
    return directory


@pytest.mark.parametrize(
    ("scheme", "freeze_trunk", "says"),
    [("lorasa", None, "trunks frozen"), ("lorasa", False, "second phase"), ("ps_restart", None, "second phase")],
)
def test_trunks_are_called_frozen_only_where_they_are(
    kept: Path, scheme: str, freeze_trunk: bool | None, says: str
) -> None:
    (e,) = read_experiments(kept / "results").values()
    record = {**e.record, "config": {**e.record["config"], "freeze_trunk": freeze_trunk}}
    told = "".join(tables.seeds(e._replace(record=record, runs=e.runs[e.runs["sharing"] == scheme])))
    assert f"({says} by each seed's own curve: 3 at 128)" in told


@pytest.fixture(scope="module")
def kept(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that holds its record, and documents that show it."""
    root = tmp_path_factory.mktemp("repository")
    (root / "docs/results").mkdir(parents=True)
    notes = {"tuned_on": "seed 99", "targets": [a_target(minus="ps_restart", at_least=0.2), a_target(at_least=0.95)]}
    (root / "results" / "four").mkdir(parents=True)
    (root / "results" / "four" / "notes.yaml").write_text(json.dumps(notes))
    for name, asked in DOCUMENTS.items():
        (root / name).write_text(f"By hand.\n{report.BEGIN}{asked} -->\n{report.END}\nMore.\n")
    report.main(["--add", str(sweep), "--root", str(root)])
    return root


def a_target(**what: Any) -> dict[str, Any]:
    return {"task": "own_number", "scheme": "lorasa, switch_step 128, rank 2", **what} | (
        {"minus": f"{what['minus']}, switch_step 128"} if "minus" in what else {}
    )


ADAPTERS, CONTROL = "lorasa, switch_step 128, rank 2", "ps_restart, switch_step 128"


def read(root: Path) -> Experiment:
    return read_experiments(root / "results")["four"]


def unknown(e: Experiment) -> Experiment:
    """As if nobody knew what the game pays at most."""
    return e._replace(runs=e.runs.assign(ceiling_greedy=np.nan, ceiling_sampled=np.nan))


def schemes_of(e: Experiment) -> dict[str, pd.DataFrame]:
    return by("scheme", e.runs)


def again(runs: pd.DataFrame, scheme: str, **changes: Any) -> pd.DataFrame:
    """The same runs as those of another scheme."""
    return runs.assign(scheme=scheme, **changes)


def with_runs(e: Experiment, *runs: pd.DataFrame) -> Experiment:
    return e._replace(runs=pd.concat(runs, ignore_index=True))


def cells(block: str) -> list[list[str]]:
    """The cells of a table, without its heads."""
    return [line.strip("| ").split(" | ") for line in block.splitlines()[2:]]


def test_the_committed_documents_are_what_the_records_give() -> None:
    report.main(["--check", "True", "--root", str(ROOT)])


def test_a_document_that_cannot_be_written_is_as_before(kept: Path, tmp_path: Path, monkeypatch: Any) -> None:
    shutil.copytree(kept, tmp_path / "root")
    (tmp_path / "root" / "README.md").write_text(f"{report.BEGIN}all four -->\n{report.END}\n")
    before = {path: path.read_bytes() for path in (tmp_path / "root").rglob("*") if path.is_file()}
    write_text = Path.write_text

    def half(self: Path, text: str, **how: Any) -> None:
        write_text(self, text[:9])
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(SystemExit) as stop:
        report.main(["--root", str(tmp_path / "root")])
    assert stop.value.code == 2
    assert {path: path.read_bytes() for path in (tmp_path / "root").rglob("*") if path.is_file()} == before


def test_committed_files_are_small() -> None:
    kept = {
        path
        for folder in ("docs/figures", "docs/gallery", "results")
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
    }
    assert all(path.stat().st_size < 300_000 for path in kept)
    drawn = {ROOT / report.FIGURES_IN / f"{name}.png" for name in report.Reporter(ROOT).figures}
    by_benchmarks = {ROOT / "docs/figures/resources.png"}
    assert set((ROOT / "docs/figures").iterdir()) == drawn | by_benchmarks


def test_a_record_holds_what_a_sweep_left(kept: Path) -> None:
    points = schemes_of(read(kept))
    assert list(points) == ["ps_id", ADAPTERS, CONTROL, "nps"]
    assert [point["adapts"].all() for point in points.values()] == [False, True, False, False]
    assert [point["separate"].all() for point in points.values()] == [False, False, False, True]
    run = points[ADAPTERS].iloc[1]
    assert (run["seed"], run["origin"], run["switch_step"]) == (4, "0/1-ps_id/4", 128)
    assert (run["env_steps"], run["episodes"], run["point"]["rank"]) == (256, 16, 2)
    assert [run[f"greedy_{name}"] for name in MEASURES] == [0.45, 0.9, 1]
    assert run["best_return"] == 0.91 and run["score"] == 0.9
    # What the shared policy did before the switch, and not what it did after.
    assert run["curve"] == [[64, 0.25], [128, 0.5], [192, 1.0], [256, 1.0]]
    assert (run["steps"], run["train_seconds"]) == (2 * 3 * 64, 2)  # without the steps of the shared policy
    assert points["ps_id"].iloc[0]["steps"] == 4 * 3 * 64
    assert set(read(kept).runs["ceiling_greedy"].dropna()) == {1.0}


def test_a_record_says_every_command_and_commit_that_its_jobs_come_from(sweep: Path, tmp_path: Path) -> None:
    directory = tmp_path / "four"
    shutil.copytree(sweep, directory)
    known = json.loads((directory / "1-ps_id" / "versions.json").read_text())
    command = ["python", "experiments/sweep.py", "four.yaml"]
    for job, commit in (("1-ps_id", "a" * 40), ("2-lorasa", "b" * 40), ("3-ps_restart", "b" * 40), ("4-nps", "a" * 40)):
        words = ["/elsewhere/python", *command[1:], "--out", "elsewhere", "--only", job]
        said = {**known, "commit": commit, "command": words}
        write_json(directory / job / "versions.json", said)
    record = records.make_record([directory])
    assert [(source["command"], source["commit"][0]) for source in record["sources"]] == [
        (command, "a"),
        (command, "b"),
    ]
    assert {job["source"] for job in record["jobs"]} == {0}


def test_commands_and_commits_are_said_once(kept: Path) -> None:
    e = read(kept)
    source = e.record["sources"][0]
    sources = [{**source, "commit": letter * 40} for letter in "aba"] + [{**source, "commit": "c" * 40, "python": "9"}]
    repeated = e._replace(record={**e.record, "sources": sources})
    (text,) = tables.setting(repeated)
    lines = [line for line in text.splitlines() if line.startswith(("* `python", "* commit"))]
    assert len(lines) == 3
    assert lines[1].startswith("* commits `aaaaaaaaaa`, `bbbbbbbbbb`; jax ")
    assert lines[2].startswith("* commit `cccccccccc`; jax ") and "Python 9;" in lines[2]
    (table,) = tables.cost([repeated])
    ((_, commands, commits, *_),) = cells(table)
    assert [f"* {commands}"] == lines[:1]
    assert commits == "`aaaaaaaaaa`<br>`bbbbbbbbbb`<br>`cccccccccc`"


def test_runs_that_come_later_stand_beside_the_others_and_are_paired_with_none_of_them(
    sweep: Path, kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root, later = tmp_path / "repository", tmp_path / "four"
    shutil.copytree(kept, root)
    for job in ("1-ps_id", "3-ps_restart"):
        shutil.copytree(sweep / job, later / job)
    with pytest.raises(SystemExit):
        report.main(["--add", str(later), "--more", "True", "--root", str(root)])
    assert "holds two runs of ps_id in own_number with seed 3" in capsys.readouterr().err
    before = read(root)
    shutil.rmtree(later)
    a_job(later, "2-lorasa", {"sharing": "lorasa", "switch_step": 128, "rank": 4})
    report.main(["--add", str(later), "--more", "True", "--root", str(root)])
    assert "beside what was there" in capsys.readouterr().out
    points = schemes_of(read(root))
    assert list(points) == [*schemes_of(before), "lorasa, switch_step 128, rank 4"]
    assert read(root).record["jobs"][:-1] == before.record["jobs"]
    assert points["lorasa, switch_step 128, rank 4"]["origin"].iloc[0] == "1/2-lorasa/3"


def test_runs_of_one_name_that_were_set_otherwise_are_refused(kept: Path) -> None:
    record = read(kept).record
    later = json.loads(json.dumps(record["jobs"][3]).replace('"seed": ', '"seed": 10'))
    found = by("scheme", table_of("four", {**record, "jobs": [*record["jobs"], later]}))["nps"]
    assert list(found["seed"]) == [3, 4, 5, 103, 104, 105]
    with pytest.raises(ConfigError, match=r"holds runs of nps in own_number with ppo\.lr None, and others with 0\.1"):
        table_of("four", {**record, "jobs": [*record["jobs"], {**later, "changes": {"ppo.lr": 0.1}}]})


def test_a_forks_size_is_that_of_its_own_rank(kept: Path) -> None:
    sizes = {scheme: runs["per_agent"].iloc[0] for scheme, runs in schemes_of(read(kept)).items()}
    layers = [(2, 16), (16, 16), (16, 4)]  # the first sees a symbol
    assert sizes["lorasa, switch_step 128, rank 2"] == sum(min(2 * (i + o), i * o) for i, o in layers)


def test_differences_are_those_of_pairs_with_one_origin(kept: Path) -> None:
    assert not list(tables.comparisons(read(kept)))  # where the best is known, that says it all
    title, table = tables.comparisons(unknown(read(kept)))
    assert "Differences** in return" in title
    found = {other: row for _, _, other, *row in cells(table)}
    assert found["`ps_id`"][:3] == ["3 pairs", "+0.250 [+0.250, +0.250]", "0.25"]  # 2 of 2^3 flips
    assert found[f"`{CONTROL}`"][:3] == ["3 pairs", "+0.200 [+0.200, +0.200]", "0.25"]
    same = np.array([[1.0], [0.9], [0.8]])
    low, high = stats.interval(lambda x, y: stats.mean(x) - stats.mean(y), same, same)
    assert found["`nps`"][:3] == ["3 and 3", f"+0.000 [{low:+.3f}, {high:+.3f}]", ""]


def test_a_control_that_switched_elsewhere_is_no_pair(kept: Path) -> None:
    points = schemes_of(read(kept))
    assert len(list(tables.compare(points[ADAPTERS], points[CONTROL]))) == 1
    assert not list(tables.compare(points[ADAPTERS], points[CONTROL].assign(switch_step=192)))


def test_a_level_that_was_not_reached_counts_as_late(kept: Path) -> None:
    rows = {row["scheme"]: row for row in tables.scheme_rows(read(kept).runs)}
    assert rows[f"`{ADAPTERS}`"]["steps to 0.9"] == "192 (3 of 3)"
    assert rows["`nps`"]["steps to 0.9"] == "not reached (0 of 3)"
    never, first, second = [[64, 0.5]], [[64, 0.95]], [[64, 0.5], [128, 0.95]]
    assert tables.steps_to(pd.DataFrame({"curve": [first, never, never]})) == "not reached (1 of 3)"
    assert tables.steps_to(pd.DataFrame({"curve": [first, second, never]})) == "128 (2 of 3)"


def test_a_fall_is_what_came_after_the_switch(kept: Path) -> None:
    runs = pd.DataFrame({"curve": [[[64, 0.1], [128, 0.3], [192, 0.6], [256, 0.5]]], "metric": "return"})
    fall = {since: tables.lowest(runs.assign(since=since)) for since in (64, 128, 256, np.nan)}
    assert list(fall.values()) == ["0.300", "0.500", "", ""]

    runs = unknown(read(kept)).runs
    found = [row["lowest after the switch, mean"] for row in tables.scheme_rows(runs)]
    # Of the shared policy from where the others go on from it; separate ones have nothing to do with that.
    assert found == ["0.500", "1.000", "0.500", ""]
    record = read(kept).record
    jobs = [job for job in record["jobs"] if job["name"] in ("1-ps_id", "4-nps")]
    without_forks = read(kept)._replace(runs=table_of("four", {**record, "jobs": jobs}))
    alone = tables.scheme_rows(unknown(without_forks).runs)
    assert "lowest after the switch, mean" not in alone[0]


def test_adapters_are_compared_with_the_first_ones_from_the_same_states(kept: Path) -> None:
    whole = unknown(read(kept))
    worse = again(schemes_of(whole)[ADAPTERS], "lorasa, rank 1", score=0.5)
    elsewhere = again(worse, "x", switch_step=64)
    _, table = tables.comparisons(with_runs(whole, whole.runs, worse, again(worse, "lorasa, rank 3"), elsewhere))
    found = [row[1:5] for row in cells(table) if "lorasa" in row[2]]
    assert found == [
        [f"`lorasa, rank {rank}`", f"`{ADAPTERS}`", "3 pairs", "-0.400 [-0.500, -0.300]"] for rank in (1, 3)
    ]


def test_a_single_run_has_no_interval(kept: Path) -> None:
    whole = unknown(read(kept))
    points, one = schemes_of(whole), whole._replace(runs=whole.runs[whole.runs["seed"] == 3])
    assert not any("[" in cell for row in tables.scheme_rows(one.runs) for cell in row.values())
    assert not list(tables.comparisons(one))
    (row,) = tables.compare(points[ADAPTERS], points["nps"])
    assert row["runs"] == "3 and 3"
    assert "[" in row["difference"] and "[" in row["P(above)"]


def test_adapters_stand_beside_shared_and_separate_policies(kept: Path) -> None:
    whole = read(kept)
    assert not list(tables.beside(whole.runs))  # a game whose best result is known says nothing of which is better
    runs = unknown(whole).runs
    later = again(runs[runs["sharing"] == "lorasa"], "lorasa, rank 1", score=0.0)
    (table,) = tables.beside(pd.concat([runs, later]))
    ((task, steps, switch, seeds, ps_id, ps_restart, nps, lorasa, joint, size),) = cells(table)
    assert (task, steps, switch, seeds, joint) == ("own_number, return", "256", "128", "3", "")
    means = [cell.split(" [")[0] for cell in (ps_id, ps_restart, nps, lorasa)]
    assert means == ["0.650", "0.700", "0.900", "0.900"]
    sizes = runs.groupby("sharing")["actors"].first()
    assert size == f"{sizes['lorasa'] / sizes['nps']:.2f}"
    drawn = {name: data for name, _, data in figures.figures_of(runs)}
    assert list(drawn["beside"]["own_number"]) == ["ps_id", "ps_restart", "nps", "lorasa"]
    assert not list(tables.beside(runs[runs["sharing"] != "nps"]))
    loose = [{**p, "freeze_trunk": False} if "rank" in p else p for p in runs["point"]]
    assert "lorasa" in overview(runs)["own_number"] and not overview(runs.assign(point=loose))
    freed = runs[runs["sharing"] != "nps"].replace({"sharing": {"lorasa": "lorasa_joint"}})
    (table,) = tables.beside(freed)  # adapters beside a free trunk need no separate policies
    (row,) = cells(table)
    assert [cell.split(" [")[0] for cell in row[2:9]] == ["128", "3", "0.650", "0.700", "", "", "0.900"]
    assert not list(tables.plan(freed))
    twice = pd.concat([freed, freed.assign(experiment="other")], ignore_index=True)
    assert [row[0] for row in cells(next(tables.beside(twice)))] == [
        f"own_number ({name}), return" for name in (runs["experiment"].iloc[0], "other")
    ]


def test_others_numbers_stand_beside_plain_schemes_and_the_first_adapters(kept: Path) -> None:
    """Only in the environment and task they are of; who measured them how is said once."""
    runs = read(kept).runs
    entry = {
        "source": "Them", "env": "toy", "quantity": "return", "setting": "Long.", "caveat": "Otherwise.",
        "values": {"own_number": {"MAPPO": 0.5, "best": "0.9 soon"}, "specialisation": {"MAPPO": 0.1}},
    }  # fmt: skip
    known = {
        "sources": {"Them": "A paper."},
        "anchors": [entry, {**entry, "env": "smax"}, {**entry, "values": {"probe_value": {"MAPPO": 1.0}}}],
    }
    shared = runs[runs["scheme"] == "ps_id"]
    a2po = shared.assign(experiment="a2po", algo="a2po", title="own_number, a2po")
    table, cited = tables.anchors(pd.concat([runs, shared.assign(experiment="again"), a2po]), known)
    first, second = table.splitlines()[2:]
    assert first == (
        "| own_number | Them | return | MAPPO 0.500; best 0.9 soon | `ps_id` 0.650; "
        "`lorasa, switch_step 128, rank 2` 0.900; `nps` 0.900, greedy, at 256 steps |"
    )
    assert second.startswith("| own_number, a2po | Them |") and "| `ps_id` 0.650, greedy, at 256 steps |" in second
    assert cited == "* Them, return in `toy`: A paper. Long. Otherwise."


def test_a_plan_follows_from_spread_and_speed(kept: Path) -> None:
    points = schemes_of(unknown(read(kept)))
    points[ADAPTERS] = points[ADAPTERS].assign(score=[1.0, 0.7, 0.8])
    points[CONTROL] = points[CONTROL].iloc[[2, 0, 1]]
    (table,) = tables.plan(pd.concat(points.values()))
    ((task, difference, pairs, runs, hours, in_all),) = cells(table)
    assert (task, difference) == ("own_number", "0.090")  # a tenth of what separate policies earn
    # Above the restarted optimiser by .2, 0, .2: a variance of 4/300. Unpaired, 7/300 and 1/100.
    assert int(pairs) == stats.runs_needed(4 / 300, 0.09)
    assert int(runs) == stats.runs_needed(7 / 300 + 1 / 100, 0.09)
    # Two whole runs, and two halves that go on from one of them, at the median speed.
    speed = (4 * 3 * 64 / 2 + 2 * 3 * 64 / 2) / 2
    seconds = tables.DECISIVE_STEPS * (2 + 2 * 0.5) / speed
    assert hours == f"{seconds / 3600:.1f}"
    assert in_all == f"{int(runs) * seconds / 3600:,.0f}"
    points[CONTROL] = points[CONTROL].iloc[:1]
    assert not list(tables.plan(pd.concat(points.values())))  # a single pair has no spread


def test_a_diagnosis_is_shown_as_it_was_said(kept: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(kept, root)
    folder = root / "results/four/diagnosis"
    folder.mkdir()
    said_by = {"command": ["python", "experiments/diagnose.py", "runs/a run"], "commit": "0123456789abcdef"}
    versions = {**read(kept).record["sources"][0], **said_by}
    trained = {**versions, "command": ["python", "experiments/run.py", "--env", "toy"]}
    said = ["own_number, seed 3", "  distance  0.5"]
    write_json(folder / "diagnosis.json", {"versions": versions, "trained_with": trained, "said": said})
    (folder / "swap.png").touch()
    folder.with_name("diagnosis-4").mkdir()
    another = {"versions": versions, "trained_with": None, "said": ["own_number, seed 4"]}
    write_json(folder.with_name("diagnosis-4") / "diagnosis.json", another)
    report.main(["--root", str(root)])
    text = (root / "docs/results/four.md").read_text()
    assert "* `python experiments/run.py --env toy`, commit `0123456789`" in text
    assert "* `python experiments/diagnose.py 'runs/a run'`, commit `0123456789`" in text
    assert "```\nown_number, seed 3\n  distance  0.5\n```" in text
    assert "![swap](../../results/four/diagnosis/swap.png)" in text
    assert "```\nown_number, seed 4\n```" in text
    report.main(["--check", "True", "--root", str(root)])


def test_controls_are_those_of_the_same_learning_rate(kept: Path) -> None:
    whole = unknown(read(kept))
    slow = [{**point, "ppo.adapter_lr": 1e-3} for point in whole.runs["point"]]
    lowered = whole.runs.assign(point=slow, scheme=whole.runs["scheme"] + ", lower")[whole.runs["switches"]]
    _, table = tables.comparisons(with_runs(whole, whole.runs, lowered))
    compared = {(scheme.strip("`"), other.strip("`")) for _, scheme, other, *_ in cells(table)}
    others = {(name, other) for name in (ADAPTERS, f"{ADAPTERS}, lower") for other in ("ps_id", "nps")}
    same = {(ADAPTERS, CONTROL), (f"{ADAPTERS}, lower", f"{CONTROL}, lower"), (f"{ADAPTERS}, lower", ADAPTERS)}
    assert compared == others | same


def test_targets_are_shown_met_or_missed(kept: Path) -> None:
    _, table = tables.targets(read(kept))
    assert [row[1:] for row in cells(table)] == [["+0.200", "+0.200", "met"], ["0.950", "0.900", "**missed**"]]
    wrong = read(kept)._replace(notes={"targets": [a_target(scheme="lorasa", at_least=1)]})
    with pytest.raises(ConfigError, match="a target of four names 'lorasa' in 'own_number', which its record does not"):
        list(tables.targets(wrong))


def test_a_document_keeps_its_prose_and_is_current_once_written(kept: Path) -> None:
    for name in DOCUMENTS:
        text = (kept / name).read_text()
        assert text.startswith("By hand.\n") and text.endswith("\nMore.\n")
        assert len(text) > 300
    assert "seed 99" in (kept / "docs/results/four.md").read_text()
    before = {path: path.read_bytes() for path in kept.rglob("*.md")}
    assert not list(report.Reporter(kept).outdated())
    report.main(["--check", "True", "--root", str(kept)])
    assert before == {path: path.read_bytes() for path in kept.rglob("*.md")}


@pytest.mark.parametrize("what", ["a number", "a record", "a figure"])
def test_what_differs_from_the_records_is_one_line(
    what: str, kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    shutil.copytree(kept, root)
    results, record = root / "docs/results/four.md", root / "results/four/record.json"
    if what == "a number":
        results.write_text(results.read_text().replace("0.650", "0.651"))
    elif what == "a record":
        record.write_text(record.read_text().replace('"return": 0.65', '"return": 0.66'))
    else:
        shutil.copy(ROOT / "docs/figures/toy-curves.png", root / "docs/figures/four-curves.png")
    with pytest.raises(SystemExit) as stop:
        report.main(["--check", "True", "--root", str(root)])
    assert stop.value.code == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "run python research/report.py" in said
    assert ("four-curves.png" if what == "a figure" else ".md is not what the records give in") in said
    report.main(["--root", str(root)])
    report.main(["--check", "True", "--root", str(root)])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{report.BEGIN}all fuor -->\n{report.END}\n", "no block 'all fuor' (did you mean 'all four'"),
        (f"{report.BEGIN}al four -->\n{report.END}\n", "no block 'al four' (did you mean 'all four'"),
        (
            f"{report.BEGIN}seeds -->\n{report.END}\n",
            "they give beside, anchors, plan, cost, teams, all four, seeds four",
        ),
        (f"{report.BEGIN}all four -->\n", "needs an `<!-- results: end -->` of its own"),
        (f"{report.END}\n{report.BEGIN}all four -->\n", "needs an `<!-- results: end -->` of its own"),
        ("nothing\n", "no page shows the experiment four; write "),
    ],
)
def test_a_block_that_cannot_be_filled_is_one_line(
    text: str, said: str, kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(kept, tmp_path / "root")
    (tmp_path / "root/docs/results/four.md").write_text(text)
    with pytest.raises(SystemExit) as stop:
        report.main(["--check", "True", "--root", str(tmp_path / "root")])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1


def test_what_has_not_finished_is_not_kept(sweep: Path, tmp_path: Path) -> None:
    shutil.copytree(sweep, tmp_path / "four")
    (tmp_path / "four/3-ps_restart/summary.json").unlink()
    with pytest.raises(ConfigError, match="3-ps_restart has not finished; resume it"):
        records.make_record([tmp_path / "four"])
    with pytest.raises(ConfigError, match="neither a run nor a sweep"):
        records.make_record([tmp_path])


def test_single_runs_together_are_one_experiment(tmp_path: Path) -> None:
    for job in ("1-ps_id", "4-nps"):
        a_job(tmp_path, job, {}, in_sweep=False)
    path = tmp_path / "results/both/record.json"
    record = records.make_record([tmp_path / "1-ps_id", tmp_path / "4-nps"])
    records.write_record(record, path)
    found = read_experiments(tmp_path / "results")["both"]
    assert [(scheme, len(runs)) for scheme, runs in schemes_of(found).items()] == [("ps_id", 3), ("nps", 3)]
    records.write_record({**record, "jobs": record["jobs"] + record["jobs"][1:]}, path)
    with pytest.raises(ConfigError, match="holds two runs of nps in own_number"):
        read_experiments(tmp_path / "results")


def test_a_preset_that_is_gone_is_replaced_by_the_default_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a_job(tmp_path, "4-nps", {}, in_sweep=False)
    path = tmp_path / "4-nps" / "config.json"
    before = records.make_record([path.parent])
    assert before["preset"]["name"] == "fast" and before["preset"]["changes"]["total-steps"] == 256
    assert not capsys.readouterr().err
    write_json(path, json.loads(path.read_text()) | {"preset": "gone.yaml"})
    assert records.make_record([path.parent])["preset"] == before["preset"]
    assert capsys.readouterr().err == (
        f"note: {path}: there is no preset file gone.yaml; the record compares the settings with preset fast instead\n"
    )


def test_a_repository_without_records_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        report.main(["--root", str(tmp_path)])
    said = capsys.readouterr().err
    assert "there is no record.json in any folder of" in said and said.count("\n") == 1


def test_a_damaged_record_is_one_line(kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(kept, tmp_path / "root")
    (tmp_path / "root/results/four/record.json").write_text("{")
    with pytest.raises(SystemExit):
        report.main(["--check", "True", "--root", str(tmp_path / "root")])
    said = capsys.readouterr().err
    assert "four/record.json is not valid JSON" in said and said.count("\n") == 1


def test_the_command_is_found_where_it_was() -> None:
    door = Path(__file__).parents[2] / "experiments" / "report.py"
    assert runpy.run_path(str(door))["main"] is report.main


def test_clusters_earn_what_their_number_allows() -> None:
    expected = {(0, 0, 0, 0): 0.25, (0, 0, 1, 1): 0.5, (0, 1, 2, 3): 1.0}
    for groups, reached in expected.items():
        words = ["--sharing", "seps", "--groups", *map(str, groups)]
        config = parse(RunConfig, [*SMALL, *words])
        assert records.ceiling(config, make_env(config).spec) == {"greedy": reached, "sampled": reached}


def test_where_kinds_are_drawn_only_adapters_of_kinds_earn_everything() -> None:
    best, half = ({"greedy": value, "sampled": value} for value in (1.0, 0.5))
    for words, expected in {
        "--sharing ps_id": half, "--sharing nps": half, "--sharing lorasa": half, "--sharing hyper": half,
        "--levels unit_type": best, "--levels team unit_type agent": best,
    }.items():  # fmt: skip
        config = parse(RunConfig, ["--env", "toy", "--task", "drawn_kinds", *words.split()])
        assert records.ceiling(config, make_env(config).spec) == expected


def test_figures_are_known_by_their_data(kept: Path) -> None:
    _, _, data = next(figures.figures_of(read(kept).runs))
    path = kept / "docs/figures/four-curves.png"
    assert path.read_bytes().startswith(b"\x89PNG") and len(path.read_bytes()) < 300_000
    assert figures.is_current(path, data)
    data["own_number"]["nps"]["seeds"][0][0][1] += 0.001
    assert not figures.is_current(path, data)


def test_a_scheme_has_one_colour_in_all_panels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.pyplot as plt

    kept: list[Any] = []
    monkeypatch.setattr(plt, "close", kept.append)
    found = {"metric": "return", "switches": [], "seeds": [[[1, 0.5], [2, 0.6]]]}
    data = {"one": {"a": found, "c": found}, "two": {"a": found, "b": found, "c": found}}
    figures.draw("curves", data, tmp_path / "x.png")
    monkeypatch.undo()
    lines = [{line.get_label(): line.get_color() for line in axis.lines} for axis in kept[0].axes]
    assert lines[0] == {name: lines[1][name] for name in "ac"} and len(set(lines[1].values())) == 3
    assert {text.get_text() for text in kept[0].legends[0].texts} == set("abc")
    plt.close(kept[0])


def test_numbers_are_printed_the_same_everywhere() -> None:
    assert tables.number(0.1 + 0.2, "win_rate") == "30.0 %"
    assert tables.number(-1e-12) == "0.000"
    assert (tables.number(-0.5, sign="+"), tables.number(0.0, sign="+")) == ("-0.500", "+0.000")
    assert (tables.number(12.34), tables.number(1234.5)) == ("12.3", "1,234")
    (table,) = tables.markdown([{"task": "humanoid_9|8", "n": "+1"}])
    assert table.splitlines() == ["| task | n |", "|---|---:|", "| humanoid_9\\|8 | +1 |"]
    assert tables.ranges([4, 0, 1, 2, 7]) == "0-2, 4, 7"


def test_tasks_that_differ_in_a_number_have_a_table_and_a_figure_over_it_and_no_place_among_all_tasks(kept):
    e = read(kept)
    notes = {**e.notes, "dial": {"name": "roles", "tasks": {"own_number": 4}}}
    open_game = e.runs.assign(ceiling_greedy=float("nan"))
    e = e._replace(notes=notes, runs=open_game.assign(dial=4.0, dial_title="all"))
    title, table, _, soon = tables.dial(e)
    # The shared policies end at 0.65 in the mean: at the evaluation of 0.75, which they have last.
    assert "| 4 | 256 (3 of 3) |" in soon
    assert title == "Greedy return at the end"
    head, _, row, sizes = table.splitlines()
    assert head.split(" | ")[:2] == ["| roles", "`ps_id`"] and row.startswith("| 4 | 0.650 [0.550, 0.750] |")
    assert sizes.startswith("| parameters beside `nps`, at 4 |")
    found = {name: (kind, data) for name, kind, data in figures.figures_of(e.runs)}
    kind, panels = found["four-dial"]
    # From random play, 0.25, to the mean of the best scheme, 0.9.
    assert kind == "dial" and panels[""]["ps_id"]["4"] == pytest.approx([0.5 / 0.65, 0.4 / 0.65, 0.3 / 0.65])
    kind, panels = found["dials"]  # with the first point of every scheme
    assert kind == "dial" and panels["all"]["lorasa"]["4"] == found["four-dial"][1][""][ADAPTERS]["4"]
    assert "beside" not in found and "beside" in {name for name, *_ in figures.figures_of(open_game)}


def test_joint_training_is_compared_with_every_scheme_as_independent_runs(kept: Path) -> None:
    whole = unknown(read(kept))
    shared = schemes_of(whole)["ps_id"]
    joint = again(shared, "lorasa_joint", joint=True, origin="x", score=0.25)
    _, table = tables.comparisons(with_runs(whole, whole.runs, joint))
    found = {row[2].strip("`"): row[3] for row in cells(table) if row[1] == "`lorasa_joint`"}
    assert found == dict.fromkeys(("ps_id", ADAPTERS, CONTROL, "nps"), "3 and 3")
    assert not whole.runs["joint"].any()
    job = json.loads(json.dumps(whole.record["jobs"][0]).replace('"ps_id"', '"lorasa_joint"'))
    assert table_of("four", {**whole.record, "jobs": [job]})["joint"].all()


def test_an_experiment_with_a_baseline_stands_alone(kept: Path, tmp_path: Path) -> None:
    notes = shutil.copytree(kept / "results", tmp_path / "results") / "four" / "notes.yaml"
    notes.write_text(f"baseline: {{scheme: '{ADAPTERS}', rank: 8}}\n")
    found = read(tmp_path)
    with pytest.raises(ConfigError, match="must say the baseline's switch_step"):
        list(figures.figures_of(again(found.runs, ADAPTERS, point=[{"switch_step": 8}] * len(found.runs))))
    assert found.runs["baseline"].sum() == len(schemes_of(found)[ADAPTERS])
    assert not overview(unknown(found).runs)
    notes.write_text("baseline: {scheme: other}\n")
    with pytest.raises(ConfigError, match="no run of four has the scheme other"):
        read(tmp_path)


def test_an_ablation_shows_every_value_of_a_setting_beside_the_baseline_and_other_schemes(kept: Path) -> None:
    whole = unknown(read(kept))
    shared, adapters = (schemes_of(whole)[name] for name in ("ps_id", ADAPTERS))
    adapters = again(adapters, "lorasa, rank 2", baseline=True, unchanged=[{"rank": 2, "switch_step": 64}] * 3)

    def changed(value: float, **point: Any) -> pd.DataFrame:
        return again(adapters, str(point), score=value, baseline=False, point=[point] * 3)

    runs = [changed(0.5, rank=1), changed(0.25, switch_step="auto"), changed(0.0, rank=1, switch_step=0)]
    e = with_runs(whole, adapters.assign(point=[{"rank": 2}] * 3), *runs, shared)
    panels = {name: (kind, data) for name, kind, data in figures.figures_of(e.runs)}["four-ablations"][1]
    best, others = adapters["score"].tolist(), {"ps_id": shared["score"].tolist()}
    assert panels == {
        "rank": {"values": {"2": best, "1": [0.5] * 3}, "baseline": "2", "others": others, "metric": "return"},
        "switch_step": {
            "values": {"64": best, "auto": [0.25] * 3}, "baseline": "64", "others": others, "metric": "return"
        },
    }  # fmt: skip
    figures.draw("ablations", panels, kept / "x.png")
    assert figures.is_current(kept / "x.png", panels)
    _, table = tables.comparisons(e)
    against = {row[2] for row in cells(table) if "rank" in row[1] or "switch" in row[1]}
    assert against == {"`ps_id`", "`lorasa, rank 2`"}
