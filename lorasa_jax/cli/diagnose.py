"""Diagnose the adapters of a saved run: python experiments/diagnose.py RUN."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from lorasa_jax.cli.command import leave, optional, polite
from lorasa_jax.cli.flags import read_flags
from lorasa_jax.cli.paths import locate, read_json, require_place, run_of
from lorasa_jax.cli.saved import find_row, labels_of, load_run, measures, words
from lorasa_jax.cli.streams import can_redraw
from lorasa_jax.config import require
from lorasa_jax.files import whole

if TYPE_CHECKING:
    from lorasa_jax.analysis.diagnosis import Diagnosis


SAID_IN = "diagnosis.json"
"""The file with numbers of a diagnosis, and the printed lines."""
ROUNDING = 1e-6
"""Changes up to this size may be rounding errors."""
SECONDS_BETWEEN = 15.0
"""Seconds between two lines of progress without a terminal."""


@dataclass(frozen=True)
class DiagnoseConfig:
    """Diagnose the adapters of a saved run: distances between agents' behaviour, changes if agents swap adapters or
    small entries are dropped, sizes of corrections, and agreement and noise of gradients."""

    run: tyro.conf.Positional[Path]
    """Run directory, or one of its checkpoints, RUN/checkpoints/N; for a sweep's job also JOB/backbones/N."""
    out: Path | None = None
    """Folder for numbers and figures; existing ones are replaced. By default RUN/diagnosis, with the numbers of the
    checkpoint and the row, if these are given."""
    episodes: int = 128
    """Episodes of each evaluation, with the same start states in all. Every pair of agents has an evaluation."""
    rollouts: int | None = None
    """Rollouts, of the run's size, for gradients. By default the larger of 32 and four times the rollouts of the
    longest episode."""
    sampled: bool = False
    """Sample actions in evaluations, as in training, instead of taking the most probable ones."""
    draw: int = 0
    """Number of the draw of start states and random numbers; another number plays other episodes."""
    seed: int | None = None
    """One of the run's seeds; by default its first."""
    row: int | None = None
    """In a job of a sweep, the row, counted from 0 in its rows.json."""

    def __post_init__(self) -> None:
        require_place(self.out)
        require(self.episodes > 0, f"episodes must be positive, got {self.episodes}")
        require(self.draw >= 0, f"draw must be 0 or more, got {self.draw}")


class Progress:
    """Shows progress on a temporary line of stderr; without a terminal, on occasional lines."""

    def __init__(self) -> None:
        self._began = self._said = time.monotonic()

    def show(self, text: str) -> None:
        """Shows a text; an empty text clears the line."""
        now = time.monotonic()
        if can_redraw(sys.stderr):
            print(f"\r\033[K{f'{now - self._began:4.0f} s  {text}' * bool(text)}", end="", file=sys.stderr, flush=True)
        elif text and now - self._said > SECONDS_BETWEEN:
            print(f"{now - self._began:4.0f} s  {text}", file=sys.stderr, flush=True)
            self._said = now


def as_dict(record: Any) -> Any:
    """Converts a record and nested records to dictionaries."""
    if isinstance(record, tuple) and hasattr(record, "_asdict"):
        record = record._asdict()
    return {name: as_dict(part) for name, part in record.items()} if isinstance(record, dict) else record


def report(found: Diagnosis, steps: int) -> Iterator[str]:
    """Yields the lines of a short table of results; `steps` are environment steps per rollout."""
    import numpy as np

    from lorasa_jax.analysis.diagnosis import DROPPED
    from lorasa_jax.analysis.diversity import mean_over_pairs

    if found.distance is not None:
        yield f"distance of agents ({found.measure}; mean over pairs)"
        yield f"  in the same place    {mean_over_pairs(found.distance):.3f}{_by_role(found, found.distance)}"
        if found.distance_with_ids is not None:
            with_ids = found.distance_with_ids
            yield f"  with their own ids   {mean_over_pairs(with_ids):.3f}{_by_role(found, with_ids)}"
    if found.gradient is not None and found.gradient_again is not None:
        pairs = mean_over_pairs(found.gradient)
        known = found.gradient_again[np.isfinite(found.gradient_again)]
        noise = float(known.mean()) if known.size else float("nan")
        line = f"cosine of gradients    {pairs:.2f}{_by_role(found, found.gradient, '.2f')}"
        yield f"{line}; of one agent's own on two halves of the play {noise:.2f}"
    if found.noise is not None:
        yield f"noise of gradients   all agents' = 1   steps until noise = signal (a rollout has {steps:,})"
        for name, part in found.noise.items():
            times = part.variance / (found.noise["all agents"].variance or 1.0)
            known = f"{_about(part.scale * steps)}, " if part.signal > 2 * part.error else ""
            yield f"  {name:19}{times:15.2f}   {known}at least {_about(part.at_least * steps)}"
    for name, form in measures("win_rate" in (found.played or {})):
        if found.played is not None:
            change = found.played[name]
            yield f"{name.replace('_', ' '):9} {change.mean:{form}} [{change.low:{form}}, {change.high:{form}}]"
        if found.swap is not None:
            swap = found.swap[name]
            sure = (swap.high < -ROUNDING) | (swap.low > ROUNDING)
            mean, pairs = mean_over_pairs(swap.mean), np.isfinite(swap.mean).sum() - len(found.agents)
            line = f"  agents swapped       {mean:+{form}} on average{_by_role(found, swap.mean, '+' + form)}"
            yield f"{line}; interval without 0 in {sure.sum()} of {pairs} pairs (by chance {0.05 * pairs:.0f})"
        if found.dropped is not None:
            dropped = found.dropped[name]
            changes = [f"{s:.0%} {c:+{form}}" for s, c in zip(DROPPED, dropped.mean, strict=True) if s > 0]
            yield f"  entries dropped      {'   '.join(changes)}"
    if found.layers is not None:
        yield "correction  |delta|/|K|   effective rank   median |delta|, |K|    delta below 1 %, 10 % of K's RMS"
        for name, layer in found.layers.items():
            medians = [layer.entries[part]["0.5"] for part in ("delta", "kernel")]
            below = [layer.entries["below"][share] for share in ("0.01", "0.1")]
            yield (
                f"  {name:10}{layer.norm.mean():10.3f}{layer.rank.mean():17.2f}"
                f"{medians[0]:14.4f}, {medians[1]:.4f}{below[0]:16.1%}, {below[1]:.1%}"
            )
    yield from (f"left out: {line}" for line in found.left_out)


def _about(number: float) -> str:
    return f"{float(f'{number:.2g}'):,.0f}" if math.isfinite(number) else "unknown"


def _by_role(found: Diagnosis, matrix: Any, form: str = ".3f") -> str:
    from lorasa_jax.analysis.diversity import within_and_between

    if found.roles is None or len(set(found.roles)) == 1:
        return ""
    within, between = within_and_between(matrix, found.roles)
    return f" (one role {within:{form}}, two roles {between:{form}})"


def folder_of(config: DiagnoseConfig, row: int) -> str:
    """Returns the folder name of a diagnosis, with the checkpoint and the row if they are given."""
    checkpoint = locate(config.run)[1]
    number = "" if checkpoint is None else f"-{checkpoint.name}"
    return f"diagnosis{number}" + (f"-row{row}" if (config.seed, config.row) != (None, None) else "")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    with polite():
        config = read_flags(DiagnoseConfig, sys.argv[1:] if argv is None else argv)
        team, checkpoint = load_run(config.run, valued=True)
        row = find_row(config.run, config.seed, config.row)
        out = config.out or run_of(config.run) / folder_of(config, row)
        require(not out.exists() or out.is_dir(), f"--out names a folder, and {out} is a file")
        import jax

        from lorasa_jax.analysis.diagnosis import DROPPED, diagnose
        from lorasa_jax.analysis.plots import pictures
        from lorasa_jax.cli.evaluate import keys
        from lorasa_jax.cli.page import write_page
        from lorasa_jax.cli.run_dir import versions, write_json
        from lorasa_jax.core.types import Learner

        made_with = run_of(config.run) / "versions.json"
        label, progress = labels_of(config.run)[row], Progress()
        known = Learner(team.params, team.critic, {}, {}, team.value_norm, team.inputs)
        learner = jax.tree.map(lambda leaf: leaf[row], known)
        found = diagnose(
            team.system,
            learner,
            keys([label], config.draw)[0],
            episodes=config.episodes,
            rollouts=config.rollouts,
            greedy=not config.sampled,
            status=progress.show,
        )
        progress.show("")
        out.mkdir(parents=True, exist_ok=True)
        about = {
            "run": str(config.run),
            "checkpoint": str(checkpoint),
            "row": label,
            "settings": dataclasses.asdict(config),
            "config": dataclasses.asdict(team.system.config),
            "versions": versions(),
            "trained_with": read_json(made_with) if made_with.exists() else None,
            "dropped_shares": list(DROPPED),
        }
        how = "sampled" if config.sampled else "greedy"
        title = f"{team.system.env.spec.name}, {words(label)}, {config.episodes} {how} episodes, from {checkpoint}"
        said = [title, *report(found, team.system.config.steps_per_iteration)]
        print("\n".join(said))
        write_json(out / SAID_IN, {**about, "said": said, **as_dict(found)})
        for name, figure in pictures(found).items():
            with optional(), whole(out / f"{name}.png") as file:
                figure.savefig(file, format="png", dpi=130)
        print(f"numbers and figures are in {out}")
        home = run_of(config.run)
        if out.parent == home and made_with.exists():
            with optional():
                print(f"all of the run on one page: {write_page(home)}")


if __name__ == "__main__":
    leave(main)
