"""What each scheme takes, by the number of agents, as tables and a figure: python benchmarks/resources.py.

Parameters, the optimiser's bytes and the operations of an update are counted in the program, for every scheme; nothing
is run for them. Peak memory and time are what `benchmarks/agents.py --keep` left in results/agents.json, of the teams
that it ran. What is counted is kept in results/resources.json; docs/resources.md, its figure and the line in README.md
are written from the two, with `--counted` without counting again.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from agents import AGENTS, SCHEMES, fits, flags, measured_in, setting, shapes_of, size_of
from crowd import make_crowd
from update import live, operations

from lorasa_jax.learning.system import is_two_phase
from lorasa_jax.learning.trainer import count_params, make_trainer, optimizer_bytes

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "results" / "resources.json"
FIGURE = Path("docs/figures/resources.png")
BLOCK = re.compile(r"(<!-- resources: begin (\w+) -->\n).*?(<!-- resources: end -->)", re.DOTALL)
SHOWN = ("ps_id", "nps", "mask", "seps_lora", "lorasa")
"""Schemes in the figure."""
FLOAT = 4


def count(sharing: str, n_agents: int, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields a row for each phase of a scheme."""
    config, env = setting(sharing, n_agents, options), make_crowd(n_agents)
    two_phase = is_two_phase(config, env)
    for adapting in (False, True) if two_phase else (False,):
        trainer = make_trainer(config, env, adapting=adapting)
        shapes = shapes_of(trainer)[1]
        params = count_params(trainer)["actors"]
        yield {
            "scheme": sharing,
            "agents": n_agents,
            "phase": ("adapters" if adapting else "shared") if two_phase else "",
            "parameters": params,
            "optimiser": optimizer_bytes(trainer),
            "bytes": FLOAT * params + optimizer_bytes(trainer),
            "operations": operations(live(jax.jit(trainer.update).trace(*shapes).jaxpr.jaxpr)),
        }


def make_record(options: argparse.Namespace) -> dict[str, Any]:
    """Counts everything."""
    sys.path.insert(0, str(ROOT / "experiments"))
    from lorasa_jax.cli.run_dir import versions

    rows = []
    for n in options.agents:
        for scheme in (scheme for scheme in SCHEMES if fits(scheme, n)):
            rows += count(scheme, n, options)
            print(rows[-1], flush=True)
    return {"source": versions(), "size": size_of(options), "rows": rows}


def in_full(row: dict[str, Any]) -> str:
    return (
        f"{row['scheme']}, {'phase 2' if row['phase'] == 'adapters' else 'phase 1'}" if row["phase"] else row["scheme"]
    )


def of(record: dict[str, Any], scheme: str, n: int) -> dict[str, Any]:
    """The row of a scheme's last phase."""
    return [row for row in record["rows"] if (row["scheme"], row["agents"]) == (scheme, n)][-1]


def with_times(record: dict[str, Any]) -> dict[str, Any]:
    """The record, its rows with the peak of memory and the seconds that were measured at the same sizes."""
    measured = measured_in(record["size"])
    rows = []
    for row in record["rows"]:
        last = row["phase"] != "shared"
        rows.append({**row, **(measured.get((row["scheme"], row["agents"]), {}) if last else {})})
    return {**record, "rows": rows}


def table(record: dict[str, Any]) -> Iterator[str]:
    """Yields a table for each number of agents."""
    head = ["scheme", "parameters", "optimiser, MB", "both, MB", "of nps", "GFLOP", "of ps_id", "peak, MB", "steps/s"]
    steps = record["size"]["n_envs"] * record["size"]["rollout_length"]
    for n in dict.fromkeys(row["agents"] for row in record["rows"]):
        yield from (f"### {n:,} agents", "", f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}")
        for row in (row for row in record["rows"] if row["agents"] == n):
            against = of(record, "nps", n)["bytes"], of(record, "ps_id", n)["operations"]
            cells = [
                in_full(row),
                f"{row['parameters']:,}",
                f"{row['optimiser'] / 1e6:,.2f}",
                f"{row['bytes'] / 1e6:,.2f}",
                f"{row['bytes'] / against[0]:.2f}",
                f"{row['operations'] / 1e9:.2f}",
                f"{row['operations'] / against[1]:.2f}",
                f"{row['peak'] / 1e6:,.0f}" if "peak" in row else "-",
                f"{steps / row['seconds']:,.0f}" if "seconds" in row else "-",
            ]
            yield f"| {' | '.join(cells)} |"
        yield ""


def line(record: dict[str, Any]) -> Iterator[str]:
    """Yields what the README says."""
    ratios = {n: of(record, "lorasa", n)["bytes"] / of(record, "nps", n)["bytes"] for n in AGENTS}
    work = {n: of(record, "lorasa", n)["operations"] / of(record, "ps_id", n)["operations"] for n in (8, AGENTS[-1])}
    yield (
        "LoRASA's actors and their optimiser in phase 2, relative to one network per agent: "
        + ", ".join(f"{ratio:.2f}" for ratio in ratios.values())
        + " of the bytes with "
        + ", ".join(f"{n:,}" for n in ratios)
        + " agents. One update takes "
        + " and ".join(f"{ratio:.2f} (N = {n:,})" for n, ratio in work.items())
        + " of the operations of an update of the shared policy: [docs/resources.md](docs/resources.md)."
    )


def source(record: dict[str, Any]) -> Iterator[str]:
    """Yields where the numbers come from."""
    size, made = record["size"], record["source"]
    yield (
        f"Networks of width {size['hidden']}, recurrent, rank 8; {size['n_envs']} environments of "
        f"{size['rollout_length']} steps, {size['epochs']} epochs with 2 minibatches. Commit {made['commit']}, "
        f"jax {made['packages']['jax']}, Python {made['python']}, {made['platform'].split('-')[0]}, "
        f"{made['cpus']} CPUs."
    )


def draw(record: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), constrained_layout=True)
    for scheme in SHOWN:
        rows = [of(record, scheme, n) for n in AGENTS if fits(scheme, n)]
        agents = [row["agents"] for row in rows]
        axes[0].plot(agents, [row["bytes"] / 1e6 for row in rows], marker=".", label=scheme)
        axes[1].plot(agents, [row["bytes"] / of(record, "nps", row["agents"])["bytes"] for row in rows], marker=".")
        work = [row["operations"] / of(record, "ps_id", row["agents"])["operations"] for row in rows]
        axes[2].plot(agents, work, marker=".")
    axes[0].set(title="actors and optimiser, MB", yscale="log")
    axes[1].set(title="the same, of nps", ylim=(0, 1.05))
    axes[2].set(title="operations of an update, of ps_id", ylim=(0, None))
    for axis in axes:
        axis.set(xscale="log", xlabel="agents", xticks=AGENTS, xticklabels=AGENTS)
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.legend(frameon=False, loc="outside right center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


PARTS = {"table": table, "line": line, "source": source}


def rendered(text: str, record: dict[str, Any]) -> str:
    """A document with its blocks as the record gives them."""

    def fill(match: re.Match[str]) -> str:
        return f"{match[1]}\n" + "\n".join(PARTS[match[2]](record)).rstrip() + f"\n\n{match[3]}"

    return BLOCK.sub(fill, text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, parents=[flags()]
    )
    parser.add_argument("--agents", type=int, nargs="+", default=AGENTS)
    parser.add_argument("--counted", action="store_true", help="count nothing; write documents from the record")
    options = parser.parse_args()
    if not options.counted:
        RECORD.write_text(json.dumps(make_record(options), indent=1) + "\n")
    record = with_times(json.loads(RECORD.read_text()))
    for path in (ROOT / "README.md", ROOT / "docs" / "resources.md"):
        path.write_text(rendered(path.read_text(), record))
    draw(record, ROOT / FIGURE)
    print("\n".join(line(record)))


if __name__ == "__main__":
    main()
