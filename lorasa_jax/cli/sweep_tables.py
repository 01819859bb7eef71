"""Results of a sweep: a table, a summary and a figure of all its jobs."""

from __future__ import annotations

import csv
from dataclasses import replace
from functools import cache
from pathlib import Path

from lorasa_jax.analysis.line_labels import MOST, name_lines
from lorasa_jax.cli.flags import RunConfig
from lorasa_jax.cli.paths import read_json
from lorasa_jax.cli.plan import Job
from lorasa_jax.cli.saved import measures, read_rows, rows_of, word
from lorasa_jax.cli.sweep_plan import counted, env_of, is_done, words_of
from lorasa_jax.files import whole


def write_table(jobs: list[Job], out: Path) -> Path:
    """Writes one row per finished point and seed; returns the path of the table."""
    from lorasa_jax.learning.system import is_two_phase
    from lorasa_jax.learning.trainer import count_params, make_trainer

    @cache
    def sizes(config: RunConfig) -> dict[str, int]:
        env = env_of(config)
        return count_params(make_trainer(config, env, adapting=is_two_phase(config, env)))

    rows = []
    for job in jobs:
        if not is_done(out / job.name):
            continue
        summary = read_json(out / job.name / "summary.json")
        for k, row in enumerate(job.rows):
            params = sizes(replace(row.config, seed=0))
            rows.append(
                {
                    "job": job.name,
                    **{name: word(value) for name, value in row.point.items()},
                    "seed": row.config.seed,
                    "switched_at": summary["switch_steps"][k],
                    "env_steps": summary["env_steps"],
                    **{
                        f"{play}_{name}": values[k]
                        for play, final in summary["final"].items()
                        for name, values in final.items()
                    },
                    "eval_episodes": summary["eval_episodes"],
                    **{f"params_{name}": params[name] for name in ("shared", "per_agent", "actors")},
                }
            )
    names = list(dict.fromkeys(name for row in rows for name in row))
    out.mkdir(parents=True, exist_ok=True)
    path = out / "table.csv"
    with whole(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def print_results(jobs: list[Job], out: Path) -> None:
    """Prints the final evaluations of every finished point: means over its seeds."""
    for job in (job for job in jobs if is_done(out / job.name)):
        final = read_json(out / job.name / "summary.json")["final"]
        points: dict[str, list[int]] = {}
        for k, row in enumerate(job.rows):
            points.setdefault(words_of(row.point), []).append(k)
        for words, rows in points.items():
            means = [
                f"{play} {name.replace('_', ' ')} {sum(final[play][name][k] for k in rows) / len(rows):{form}}"
                for play in ("greedy", "sampled")
                for name, form in measures(env_of(job.config).spec.winnable)
            ]
            print(f"{words}: {'  '.join(means)}  ({counted(len(rows), 'seed')})")


def curves(jobs: list[Job], out: Path, name: str) -> dict[str, tuple[list[int], list[float]]]:
    """Returns the greedy evaluations of every point: steps, and means over its seeds."""
    found: dict[str, dict[int, list[float]]] = {}
    for job in jobs:
        rows = read_rows(out / job.name / "metrics.jsonl")
        labels = [row.label for row in job.rows]
        for label in labels:
            point = {key: word(value) for key, value in label.items() if key != "seed"}
            words = ", ".join(value if key == "sharing" else f"{key} {value}" for key, value in point.items())
            for row in rows_of(rows, label, labels):
                if row.get(f"eval_{name}") is not None:
                    found.setdefault(words, {}).setdefault(row["env_steps"], []).append(row[f"eval_{name}"])
    return {
        point: (sorted(values), [sum(values[step]) / len(values[step]) for step in sorted(values)])
        for point, values in found.items()
    }


def draw(jobs: list[Job], path: Path) -> None:
    """Draws the greedy return, and win rate if games can be won, of every point over environment steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter

    shown = measures(any(env_of(job.config).spec.winnable for job in jobs))
    drawn = {name: curves(jobs, path.parent, name) for name, _ in shown}
    names = list(drawn["return"])
    colours = plt.get_cmap("tab10" if len(names) <= MOST else "tab20").colors  # type: ignore[attr-defined]
    size = (6 * len(drawn) + 0.09 * max(map(len, names), default=0), 4)
    figure, axes = plt.subplots(1, len(drawn), figsize=size, layout="constrained", squeeze=False)
    for axis, (name, points) in zip(axes[0], drawn.items(), strict=True):
        axis.set_prop_cycle(color=colours)
        for point, (steps, values) in points.items():
            axis.plot(steps, values, lw=1.3, marker=".", label=point)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.set(xlabel="environment steps", ylabel=f"greedy {name.replace('_', ' ')}")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    if names and not all([name_lines(axis) for axis in axes[0]]):
        axes[0][-1].legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    with whole(path) as file:
        figure.savefig(file, format="png", dpi=120)
    plt.close(figure)
