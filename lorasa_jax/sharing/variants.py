"""What agents own on top of a trunk, as pairs of pure functions over parameter trees of any depth.

An adapter says how one owner's own parameters start, and how they change the trunk's. A layer is known by the path of
its kernel, such as `fc1` or `attention/query`. What has no kernel, such as an embedding or a normalisation, stays
shared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from lorasa_jax import deltas
from lorasa_jax.core.trees import by_path, nested
from lorasa_jax.core.types import PyTree
from lorasa_jax.deltas import Deltas, Spec


class Layers:
    """The layers whose names fit one of some patterns: `name in layers`."""

    def __init__(self, patterns: tuple[str, ...]):
        self.patterns = patterns

    def __contains__(self, name: object) -> bool:
        return bool(name) and any(fnmatchcase(str(name), pattern) for pattern in self.patterns)

    def __iter__(self) -> Iterator[str]:
        return iter(self.patterns)

    def __len__(self) -> int:
        return len(self.patterns)


class Adapter(NamedTuple):
    """One kind of owned parameters, for a single owner and a single trunk.

    Attributes:
        init: `init(key, trunk) -> own`, such that the adapted network equals the trunk.
        apply: `apply(trunk, own) -> (params, corrections)`: the owner's parameters, and low-rank deltas that are still
            to be added to them, by `deltas.merge` or within the layers.
        init_shared: `init_shared(trunk) -> trunk`: all that owners share, without what no owner uses any more, and
            with what makes owners' weights from what they own.
    """

    init: Callable[[PRNGKeyArray, PyTree], PyTree]
    apply: Callable[[PyTree, PyTree], tuple[PyTree, tuple[Deltas, ...]]]
    init_shared: Callable[[PyTree], PyTree] = lambda trunk: trunk

    def merge(self, trunk: PyTree, own: PyTree) -> PyTree:
        """Returns the owner's full parameters."""
        params, corrections = self.apply(trunk, own)
        return deltas.merge(params, *corrections)


def layer_names(tree: PyTree) -> list[str]:
    """Returns the paths of the layers that have a kernel."""
    return [path.rpartition("/")[0] for path in by_path(tree) if path.split("/")[-1] == "kernel"]


def low_rank(rank: int, scale: float, where: Collection[str]) -> Adapter:
    """Returns low-rank adapters, the deltas of `lorasa_jax.deltas`, on the kernels of the named layers.

    With K (in, out) the trunk's kernel, owner i's is

        K + scale L_i R_i,   L_i (in, r) = 0,   R_i (r, out) ~ U(-1/sqrt(r), 1/sqrt(r))

    and K + D_i with D_i = 0 where r >= min(in, out), and for a vector. Biases, normalisations and embeddings stay the
    trunk's. An owner has `left` and `right`, or `full`, by layer.

    Args:
        rank: r, at least 1.
        scale: alpha / r.
        where: names of the layers; a layer left out is the trunk's own.

    Source: LoRA (Hu et al. 2021), mirrored, with the factor on the input side starting at
    zero; LoRASA (arXiv 2502.05573).
    """

    def spec_of(trunk: PyTree) -> Spec:
        paths = [f"{name}/kernel" for name in layer_names(trunk) if name in where]
        return deltas.make_spec(trunk, paths, rank, scale * rank) if paths else Spec(())

    def init(key: PRNGKeyArray, trunk: PyTree) -> PyTree:
        fresh = deltas.init(key, spec_of(trunk), 1)
        return nested({_layer(path): jax.tree.map(lambda leaf: leaf[0], own) for path, own in fresh.arrays.items()})

    def apply(trunk: PyTree, own: PyTree) -> tuple[PyTree, tuple[Deltas, ...]]:
        spec = spec_of(trunk)
        arrays = {target.path: _branch(own, _layer(target.path)) for target in spec.targets}
        return trunk, (Deltas(arrays, spec),)

    return Adapter(init=init, apply=apply)


def _layer(path: str) -> str:
    return path.rpartition("/")[0]


def _branch(tree: PyTree, path: str) -> PyTree:
    for name in path.split("/"):
        tree = tree[name]
    return tree


def _kernels(trunk: PyTree, where: Collection[str]) -> dict[str, Array]:
    """The kernels of the named layers, by the path of the layer."""
    leaves = by_path(trunk)
    return {name: leaves[f"{name}/kernel"] for name in layer_names(trunk) if name in where}


def _with(trunk: PyTree, leaves: dict[str, Array]) -> PyTree:
    """The trunk with leaves, by path, in the place of its own or added to them."""
    return nested(by_path(trunk) | leaves)


def generated(size: int, where: Collection[str]) -> Adapter:
    """Returns kernels that a linear hypernetwork corrects for every owner.

    With e_i (z,) what owner i has, its embedding, and W (z, in, out) the trunk's, both trained, its kernel is

        K + sum_z e_i[z] W[z],   W = 0,   e_i ~ U(-1/sqrt(z), 1/sqrt(z))

    At the start only K and W have a gradient.

    Args:
        size: z.
        where: names of the layers.

    Source: the idea is HyperMARL's (Tessera et al. 2025, arXiv 2412.04233), where all weights are generated.
    """

    def init(key: PRNGKeyArray, trunk: PyTree) -> PyTree:
        bound = 1 / math.sqrt(size)
        return {"embedding": jax.random.uniform(key, (size,), minval=-bound, maxval=bound)}

    def apply(trunk: PyTree, own: PyTree) -> tuple[PyTree, tuple[Deltas, ...]]:
        leaves = by_path(trunk)
        params = {path: leaf for path, leaf in leaves.items() if path.split("/")[-1] != "generator"}
        for name, kernel in _kernels(trunk, where).items():
            params[f"{name}/kernel"] = kernel + jnp.tensordot(own["embedding"], leaves[f"{name}/generator"], axes=1)
        return nested(params), ()

    def init_shared(trunk: PyTree) -> PyTree:
        kernels = _kernels(trunk, where).items()
        return _with(trunk, {f"{name}/generator": jnp.zeros((size, *k.shape), k.dtype) for name, k in kernels})

    return Adapter(init=init, apply=apply, init_shared=init_shared)


def masked(where: Collection[str]) -> Adapter:
    """Returns kernels of which every owner leaves out the entries below thresholds of its own.

    With t_i (in, out) what owner i has, its kernel is

        K * [|K| > t_i],   t_i = 0

    where backwards the bracket counts as |K| - t_i with |K| held: an entry left out can come back.

    Args:
        where: names of the layers.

    Source: the idea is Kaleidoscope's (Li et al. 2024, arXiv 2410.08540); the straight-through gradient is Bengio et
    al.'s (2013).
    """

    def init(key: PRNGKeyArray, trunk: PyTree) -> PyTree:
        return nested({f"{name}/threshold": jnp.zeros_like(kernel) for name, kernel in _kernels(trunk, where).items()})

    def apply(trunk: PyTree, own: PyTree) -> tuple[PyTree, tuple[Deltas, ...]]:
        thresholds = by_path(own)

        def thinned(name: str, kernel: Array) -> Array:
            margin = jax.lax.stop_gradient(jnp.abs(kernel)) - thresholds[f"{name}/threshold"]
            return kernel * ((margin > 0) + (margin - jax.lax.stop_gradient(margin)))

        kernels = _kernels(trunk, where).items()
        return _with(trunk, {f"{name}/kernel": thinned(name, kernel) for name, kernel in kernels}), ()

    return Adapter(init=init, apply=apply)


def own_layers(where: Collection[str]) -> Adapter:
    """Returns whole layers of an owner's own in place of the trunk's.

    They start as the trunk's do, equal for all owners.

    Args:
        where: names of the layers.

    Source: multi-task learning with a head per task (Caruana 1997).
    """

    def of_layers(trunk: PyTree, owned: bool) -> PyTree:
        kept = (_layer(path) in _kernels(trunk, where) for path in by_path(trunk))
        leaves = by_path(trunk).items()
        return nested({path: leaf for (path, leaf), mine in zip(leaves, kept, strict=True) if mine == owned})

    return replaced(lambda trunk: of_layers(trunk, owned=True), lambda trunk: of_layers(trunk, owned=False))


def replaced(own: Callable[[PyTree], PyTree], shared: Callable[[PyTree], PyTree]) -> Adapter:
    """Returns leaves of an owner's own beside those that all share.

    Args:
        own: the leaves of a trunk that each owner has.
        shared: the others.
    """
    return Adapter(
        init=lambda key, trunk: own(trunk),
        apply=lambda trunk, own: (_with(trunk, by_path(own)), ()),
        init_shared=shared,
    )


def acting(adapters: dict[str, Adapter]) -> Adapter:
    """Returns the adapter of agents that act: each has the merged leaves that its adapters change, and no others.

    Args:
        adapters: by level; what an agent has is a dictionary by level.
    """

    def changed(trunk: PyTree) -> tuple[dict[str, Array], dict[str, Array]]:
        own = {name: adapter.init(jax.random.key(0), trunk) for name, adapter in adapters.items()}
        return split_merged(adapters, init_shared(adapters, trunk), own)

    return replaced(lambda trunk: nested(changed(trunk)[0]), lambda trunk: nested(changed(trunk)[1]))


def split_merged(adapters: dict[str, Adapter], trunk: PyTree, own: PyTree) -> tuple[dict[str, Array], dict[str, Array]]:
    """Returns an agent's full parameters by path: those that its adapters change, and those that are the trunk's."""
    before, after = by_path(trunk), by_path(merge(adapters, trunk, own))
    changed = {path: leaf for path, leaf in after.items() if leaf is not before.get(path)}
    return changed, {path: leaf for path, leaf in after.items() if path not in changed}


# Several levels: what an agent uses is a dictionary of what it uses at each, and the changes add up


def apply(adapters: dict[str, Adapter], trunk: PyTree, own: PyTree) -> tuple[PyTree, tuple[Deltas, ...]]:
    """Returns the parameters after the adapters of all levels, and the deltas that are still to be added."""
    corrections: tuple[Deltas, ...] = ()
    for name, adapter in adapters.items():
        trunk, more = adapter.apply(trunk, own[name])
        corrections += more
    return trunk, corrections


def merge(adapters: dict[str, Adapter], trunk: PyTree, own: PyTree) -> PyTree:
    """Returns the full parameters of an agent."""
    params, corrections = apply(adapters, trunk, own)
    return deltas.merge(params, *corrections)


def init_shared(adapters: dict[str, Adapter], trunk: PyTree) -> PyTree:
    """Returns what agents share under the adapters of all levels."""
    for adapter in adapters.values():
        trunk = adapter.init_shared(trunk)
    return trunk
