"""Figures of a diagnosis with matplotlib. This module does not show or write them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lorasa_jax.analysis.corrections import QUANTILES
from lorasa_jax.analysis.diagnosis import DROPPED, Change, Diagnosis
from lorasa_jax.analysis.diversity import mean_over_pairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#1f5fa8", "#c2410c", "#3f7d3a", "#7c4d9f", "#b08a1e", "#5f6b76")
DELTA, KERNEL = COLOURS[1], "#9aa5b1"
WRITTEN_UP_TO = 12
"""Maximum number of agents for which matrices show numbers."""


def pictures(found: Diagnosis) -> dict[str, Figure]:
    """Returns all figures with data, by name."""
    drawn = {}
    if found.distance is not None:
        drawn["distance"] = draw_distance(found)
        drawn["gradient"] = draw_gradient(found)
    if found.swap is not None:
        drawn["swap"] = draw_swap(found)
    if found.layers is not None:
        drawn["layers"] = draw_layers(found)
        drawn["sparsity"] = draw_sparsity(found)
    return drawn


def _axes(width: float, height: float, columns: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure  # not by pyplot, which would keep every figure

    figure = Figure(figsize=(width * columns, height), constrained_layout=True)
    return figure, list(np.atleast_1d(figure.subplots(1, columns)))


def _order(found: Diagnosis) -> np.ndarray:
    """The agents sorted by role."""
    return np.argsort(found.roles or (0,) * len(found.agents), kind="stable")


def _matrix(axis: Axes, found: Diagnosis, values: np.ndarray, *, quiet: np.ndarray | None = None, **image: Any) -> None:
    """One matrix of agents as a heat map. Lines separate roles, and `quiet` entries are faint."""
    order = _order(found)
    shown = values[np.ix_(order, order)]
    drawn = axis.imshow(shown, **image)
    names = [found.agents[i] for i in order]
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    if found.roles is not None:
        sorted_roles = np.array(found.roles)[order]
        for edge in np.flatnonzero(np.diff(sorted_roles)) + 0.5:
            axis.axhline(edge, color="black", lw=1)
            axis.axvline(edge, color="black", lw=1)
    if len(names) <= WRITTEN_UP_TO:
        small = np.zeros_like(shown, bool) if quiet is None else quiet[np.ix_(order, order)]
        for (i, j), value in np.ndenumerate(shown):
            if np.isfinite(value):
                red, green, blue, _ = drawn.cmap(drawn.norm(value))
                dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
                text = axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=6.5)
                text.set(color="white" if dark else "black", alpha=0.45 if small[i, j] else 1.0)
    axis.figure.colorbar(drawn, ax=axis, shrink=0.8)


def draw_distance(found: Diagnosis) -> Figure:
    """Returns the figure of distances between agents: by weights alone and, in schemes with ids, by weights and ids."""
    assert found.distance is not None
    both = {"networks in the same place": found.distance}
    if found.distance_with_ids is not None:
        both["networks with their own ids"] = found.distance_with_ids
    figure, axes = _axes(4.6, 4.2, len(both))
    for axis, (title, matrix) in zip(axes, both.items(), strict=True):
        top = 1.0 if found.measure == "total variation" else max(float(np.nanmax(matrix)), 1e-6)
        _matrix(axis, found, matrix, cmap="viridis", vmin=0, vmax=top)
        axis.set_title(f"{title}\nmean over pairs {mean_over_pairs(matrix):.3f}", fontsize=9)
    figure.suptitle(f"Behavioural distance ({found.measure})", fontsize=11)
    return figure


def draw_gradient(found: Diagnosis) -> Figure:
    """Returns the figure of cosines between agents' policy gradients, with each agent's cosine on two halves."""
    assert found.gradient is not None
    assert found.gradient_again is not None
    figure, (axis,) = _axes(5.4, 4.4, 1)
    again = [f"{name} ({cosine:.2f})" for name, cosine in zip(found.agents, found.gradient_again, strict=True)]
    _matrix(axis, found._replace(agents=again), found.gradient, cmap="RdBu", vmin=-1, vmax=1)
    axis.set_title("Cosine of policy gradients\nin brackets: an agent's on two halves of the play", fontsize=9)
    return figure


def draw_swap(found: Diagnosis) -> Figure:
    """Returns the figure of changes of return and win rate if one agent plays with another's weights."""
    assert found.swap is not None
    figure, axes = _axes(4.6, 4.4, len(found.swap))
    for axis, (name, change) in zip(axes, found.swap.items(), strict=True):
        most = max(float(np.nanmax(np.abs(change.mean))), 1e-6)
        unsure = (change.low <= 0) & (change.high >= 0)
        _matrix(axis, found, change.mean, quiet=unsure, cmap="RdBu", vmin=-most, vmax=most)
        axis.set(ylabel="this agent plays", xlabel="with the weights of")
        axis.set_title(f"change of {name.replace('_', ' ')}", fontsize=9)
    figure.suptitle("Swapped adapters (faint: the 95 % interval holds 0)", fontsize=11)
    return figure


def draw_layers(found: Diagnosis) -> Figure:
    """Returns the figure of relative norms and effective ranks of every owner's correction, by layer."""
    assert found.layers is not None
    figure, axes = _axes(4.8, 3.6, 2)
    n_owners = len(found.owners)
    # Agents have the colour of their role. If roles change, the owners are roles.
    kinds = found.roles if found.roles is not None and n_owners == len(found.roles) else tuple(range(n_owners))
    names = found.kinds if kinds is found.roles else found.owners
    for axis, part in zip(axes, ("norm", "rank"), strict=True):
        for k in range(n_owners):
            values = [getattr(layer, part)[k] for layer in found.layers.values()]
            spread = (k - (n_owners - 1) / 2) * 0.6 / n_owners
            axis.plot(np.arange(len(values)) + spread, values, "o", ms=4, color=COLOURS[kinds[k] % len(COLOURS)])
        axis.set_xticks(range(len(found.layers)), list(found.layers), rotation=30, fontsize=8)
        axis.set_ylim(bottom=0)
        _plain(axis)
    axes[0].set_title("norm of the correction / norm of the trunk", fontsize=9)
    axes[1].set_title("effective rank of the correction", fontsize=9)
    if len(names) <= len(COLOURS):
        for name, colour in zip(names, COLOURS, strict=False):
            axes[0].plot([], [], "o", ms=4, color=colour, label=name)
        axes[0].legend(frameon=False, fontsize=8)
    return figure


def draw_sparsity(found: Diagnosis) -> Figure:
    """Returns the figure of entry sizes of corrections and trunk, and of changes without small entries."""
    assert found.layers is not None
    figure, axes = _axes(4.6, 3.6, 1 + len(found.dropped or {}))
    for layer in found.layers.values():
        for name, colour in (("kernel", KERNEL), ("delta", DELTA)):
            sizes = [max(layer.entries[name][str(q)], 1e-9) for q in QUANTILES]
            axes[0].plot(QUANTILES, sizes, color=colour, lw=1.2)
    for label, colour in (("of the trunk", KERNEL), ("of the corrections", DELTA)):
        axes[0].plot([], [], color=colour, label=label)
    axes[0].set(yscale="log", xlabel="share of entries below", ylabel="size of an entry")
    axes[0].set_title("a line for each layer", fontsize=9)
    axes[0].legend(frameon=False, fontsize=8)
    _plain(axes[0])
    for axis, (name, change) in zip(axes[1:], (found.dropped or {}).items(), strict=False):
        _draw_dropped(axis, name, change, found)
    return figure


def _draw_dropped(axis: Axes, name: str, change: Change, found: Diagnosis) -> None:
    assert found.played is not None
    level, x = found.played[name].mean, np.arange(len(DROPPED))
    axis.fill_between(x, level + change.low, level + change.high, color=DELTA, alpha=0.2, lw=0)
    axis.plot(x, level + change.mean, ".-", color=DELTA)
    axis.set_xticks(x, [f"{100 * share:g}" for share in DROPPED])
    axis.set(xlabel="% of entries dropped (100: the trunk alone)")
    axis.set_title(f"{name.replace('_', ' ')}; band: 95 % of the change", fontsize=9)
    _plain(axis)


def _plain(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
