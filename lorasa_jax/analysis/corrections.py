"""Corrections that adapters add to their trunks, as plain matrices: size, rank and sparsity."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lorasa_jax.config import require
from lorasa_jax.core.trees import by_path, nested
from lorasa_jax.core.types import PolicyParams
from lorasa_jax.deltas.spec import Target
from lorasa_jax.deltas.views import infer_view
from lorasa_jax.learning.system import System
from lorasa_jax.sharing import variants

QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
SMALL = (1e-3, 1e-2, 1e-1)
"""Thresholds for entries of corrections, relative to the root mean square of the trunk's entries."""


class Correction(NamedTuple):
    """The correction of one layer, for K owners.

    Attributes:
        kernel: the trunk's kernel, [K, in, out], a vector, [K, n], or another shape that `target` views as matrices.
        delta: the correction, of the same shape.
        target: the view of a kernel with more than two axes as matrices; None: the kernel is a matrix or vector.
    """

    kernel: np.ndarray
    delta: np.ndarray
    target: Target | None = None

    @property
    def matrices(self) -> np.ndarray:
        """The correction as matrices [K, ..., in, out]; a vector is not changed."""
        return self.delta if self.target is None else np.asarray(jax.vmap(self.target.to_matrix)(self.delta))


def corrections(system: System, params: PolicyParams) -> dict[str, Correction]:
    """Returns the correction of every agent by layer: scale L R, or the full-rank D, summed over levels.

    If owners change, the corrections are per owner. The result is empty without low-rank adapters.

    Raises:
        ConfigError: owners change, and there are several levels or several trunks.
    """
    sharing = system.actor.sharing
    if not sharing.leveled:
        return {}
    # Applied to a trunk of zeros, an adapter gives its correction.
    nothing = jax.tree.map(jnp.zeros_like, params.shared)
    if sharing.dynamic_roles:
        require(
            len(sharing.levels) == 1 and sharing.n_trunks == 1,
            "if owners change, corrections can only be computed for one level and one trunk",
        )
        level = sharing.levels[0]
        trunk_index = (0,) * level.n_owners
        trunk = jax.tree.map(lambda leaf: leaf[0], nothing)
        added = jax.vmap(lambda own: level.adapter.merge(trunk, own))(params.agents[level.scope])
    else:
        trunk_index = sharing.groups
        trunks = jax.tree.map(lambda leaf: leaf[jnp.array(trunk_index)], nothing)
        added = jax.vmap(partial(variants.merge, sharing.adapters))(trunks, system.actor.expand(params))
    kernels, changes = by_path(params.shared), by_path(added)
    shapes = {path: tuple(leaf.shape[1:]) for path, leaf in kernels.items()}
    found = {}
    for name in _adapted_layers(system, params):
        path = f"{name}/kernel"
        kernel = np.asarray(kernels[path])[list(trunk_index)]
        target = Target(path, shapes[path], str(kernel.dtype), infer_view(path, shapes), rank=1, alpha=1.0)
        found[name] = Correction(kernel, np.asarray(changes[path]), target if kernel.ndim > 3 else None)
    return found


def _adapted_layers(system: System, params: PolicyParams) -> list[str]:
    """The layers with a correction; for the built-in network from input to output."""
    adapted = {path.rpartition("/")[0] for own in params.agents.values() for path in by_path(own)}
    ordered = variants.layer_names(params.shared)
    if not system.config.actor.module:
        ordered = [*system.config.actor.layer_names, "log_std"]
    return [name for name in ordered if name in adapted]


def relative_norm(layer: Correction) -> np.ndarray:
    """Returns |delta|_F / |K|_F of every owner, [K]; NaN if the trunk is zero."""
    delta, kernel = (np.linalg.norm(x.reshape(len(x), -1), axis=1) for x in (layer.delta, layer.kernel))
    return np.where(kernel > 0, delta / np.where(kernel > 0, kernel, 1.0), np.nan)


def effective_rank(delta: np.ndarray) -> np.ndarray:
    """Returns the effective rank of every owner's correction, [K]; 0 for a zero correction.

        exp(-sum_i p_i log p_i),   p_i = s_i / sum_j s_j

    with the singular values s. It is r if r of them are equal and the others 0.

    Source: Roy & Vetterli 2007, "The effective rank: a measure of effective dimensionality".
    """
    matrices = delta.astype(float) if delta.ndim > 2 else delta.astype(float)[:, None]
    sizes = np.linalg.svd(matrices, compute_uv=False).reshape(len(delta), -1)
    total = sizes.sum(axis=1, keepdims=True)
    p = sizes / np.where(total > 0, total, 1.0)
    entropy = -np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=1)
    return np.where(total[:, 0] > 0, np.exp(entropy), 0.0)


def entry_sizes(layer: Correction) -> dict[str, dict[str, float]]:
    """Returns the distribution of the absolute entries of a layer, over all owners.

    Returns:
        Quantiles of |delta|, of |K|, and of |delta| / |K| entry by entry, by their probability. `below` has the shares
        of entries of delta that are smaller than 1e-3, 1e-2 and 1e-1 times the root mean square of the owner's K.
    """
    delta, kernel = np.abs(layer.delta), np.abs(layer.kernel)
    ratio = delta / np.maximum(kernel, np.finfo(np.float32).tiny)
    columns = {"delta": delta, "kernel": kernel, "ratio": ratio}
    found = {
        name: dict(zip(map(str, QUANTILES), np.quantile(x, QUANTILES), strict=True)) for name, x in columns.items()
    }
    inner = tuple(range(1, kernel.ndim))
    unit = np.sqrt(np.mean(kernel.astype(float) ** 2, axis=inner, keepdims=True))
    found["below"] = {str(share): float(np.mean(delta < share * unit)) for share in SMALL}
    return found


def drop_smallest(delta: np.ndarray, share: float) -> np.ndarray:
    """Returns every owner's correction [K, ...] with the given share of its smallest entries set to zero."""
    flat = delta.reshape(len(delta), -1)
    place = np.argsort(np.argsort(np.abs(flat), axis=1, kind="stable"), axis=1)
    dropped = np.round(share * flat.shape[1])
    return np.where(place >= dropped, flat, 0).reshape(delta.shape)


def thinned(actors: PolicyParams, layers: dict[str, Correction], share: float) -> PolicyParams:
    """Returns every agent's full weights [N, ...] with the smallest entries of its corrections dropped, layer by layer.

    A share of 0 keeps all entries, a share of 1 only the trunk.
    """
    changed = {
        f"{name}/kernel": jnp.asarray(layer.kernel + drop_smallest(layer.delta, share))
        for name, layer in layers.items()
    }
    return actors._replace(shared=nested(by_path(actors.shared) | changed))
