"""Kinds of adapters, as pairs of pure functions over parameter trees of any depth.

An adapter defines the initial parameters of one owner, and how they change the trunk's parameters. A layer is named by
the path of its kernel, such as `fc1` or `attention/query`. Parameters without a kernel, such as embeddings or
normalisations, stay shared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
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
    """The layers whose names match one of several patterns: `name in layers`."""

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
        init: `init(key, trunk) -> own`. With these parameters the adapted network equals the trunk.
        apply: `apply(trunk, own) -> (params, corrections)`: the owner's parameters, and low-rank deltas that
            `deltas.merge` or the layers add to them.
        init_shared: `init_shared(trunk) -> trunk`: the shared parameters. Parameters that no owner uses are removed,
            and parameters that generate owners' weights are added.
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
    """Returns low-rank adapters (`lorasa_jax.deltas`) on the kernels of the named layers.

    With the trunk's kernel K (in, out), owner i's kernel is

        K + scale L_i R_i,   L_i (in, r) = 0,   R_i (r, out) ~ U(-1/sqrt(r), 1/sqrt(r))

    For r >= min(in, out), and for vectors, it is K + D_i with D_i = 0. Biases, normalisations and embeddings belong to
    the trunk. An owner has `left` and `right`, or `full`, for each layer.

    Args:
        rank: r, at least 1.
        scale: alpha / r.
        where: names of the layers; other layers have no adapter.

    Source: LoRA (Hu et al. 2021), but with the zero factor on the input side; LoRASA (arXiv 2502.05573).
    """

    def spec_of(trunk: PyTree) -> Spec:
        paths = [f"{name}/kernel" for name in layer_names(trunk) if name in where]
        return deltas.make_spec(trunk, paths, rank, scale * rank) if paths else Spec(())

    def init(key: PRNGKeyArray, trunk: PyTree) -> PyTree:
        fresh = deltas.init(key, spec_of(trunk), 1)
        return by_layer(jax.tree.map(lambda leaf: leaf[0], fresh.arrays))

    def apply(trunk: PyTree, own: PyTree) -> tuple[PyTree, tuple[Deltas, ...]]:
        spec = spec_of(trunk)
        arrays = {target.path: _branch(own, _layer(target.path)) for target in spec.targets}
        return trunk, (Deltas(arrays, spec),)

    return Adapter(init=init, apply=apply)


def by_layer(arrays: Mapping[str, PyTree]) -> PyTree:
    """Returns the arrays of deltas, by the path of the kernel, as what an owner has: a tree of layers."""
    return nested({_layer(path): parts for path, parts in arrays.items()})


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
    """The trunk with leaves replaced or added, by path."""
    return nested(by_path(trunk) | leaves)


def generated(size: int, where: Collection[str]) -> Adapter:
    """Returns kernels that a linear hypernetwork corrects for every owner.

    Owner i has an embedding e_i (z,), and the trunk has W (z, in, out). Both are trained. The owner's kernel is

        K + sum_z e_i[z] W[z],   W = 0,   e_i ~ U(-1/sqrt(z), 1/sqrt(z))

    At the start only K and W have a nonzero gradient.

    Args:
        size: z.
        where: names of the layers.

    Source: HyperMARL (Tessera et al. 2025, arXiv 2412.04233), which generates all weights.
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
    """Returns kernels in which every owner masks out the entries below its own thresholds.

    Owner i has thresholds t_i (in, out). Its kernel is

        K * [|K| > t_i],   t_i = 0

    In the backward pass the bracket is |K| - t_i with |K| constant, so a masked entry can return.

    Args:
        where: names of the layers.

    Source: Kaleidoscope (Li et al. 2024, arXiv 2410.08540); straight-through gradient: Bengio et al. (2013).
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
    """Returns whole layers per owner that replace the trunk's layers.

    Their initial values are the trunk's, equal for all owners.

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
    """Returns an adapter that splits a trunk into owned and shared leaves.

    Args:
        own: selects the leaves that each owner has.
        shared: selects the other leaves.
    """
    return Adapter(
        init=lambda key, trunk: own(trunk),
        apply=lambda trunk, own: (_with(trunk, by_path(own)), ()),
        init_shared=shared,
    )


def acting(adapters: dict[str, Adapter]) -> Adapter:
    """Returns the adapter for acting: each agent has merged copies of only the leaves that its adapters change.

    Args:
        adapters: by level; an agent's parameters are a dictionary by level.
    """

    def changed(trunk: PyTree) -> tuple[dict[str, Array], dict[str, Array]]:
        own = {name: adapter.init(jax.random.key(0), trunk) for name, adapter in adapters.items()}
        return split_merged(adapters, init_shared(adapters, trunk), own)

    return replaced(lambda trunk: nested(changed(trunk)[0]), lambda trunk: nested(changed(trunk)[1]))


def split_merged(adapters: dict[str, Adapter], trunk: PyTree, own: PyTree) -> tuple[dict[str, Array], dict[str, Array]]:
    """Returns an agent's full parameters by path: those that its adapters change, and the unchanged ones."""
    before, after = by_path(trunk), by_path(merge(adapters, trunk, own))
    changed = {path: leaf for path, leaf in after.items() if leaf is not before.get(path)}
    return changed, {path: leaf for path, leaf in after.items() if path not in changed}


# Several levels: an agent's adapters are a dictionary by level, and their changes add up


def apply(adapters: dict[str, Adapter], trunk: PyTree, own: PyTree) -> tuple[PyTree, tuple[Deltas, ...]]:
    """Returns the parameters after the adapters of all levels, and the deltas still to be added."""
    corrections: tuple[Deltas, ...] = ()
    for name, adapter in adapters.items():
        trunk, more = adapter.apply(trunk, own[name])
        corrections += more
    return trunk, corrections


def merge(adapters: dict[str, Adapter], trunk: PyTree, own: PyTree) -> PyTree:
    """Returns the full parameters of an agent."""
    params, corrections = apply(adapters, trunk, own)
    return deltas.merge(params, *corrections)


def is_cheaper_merged(corrections: tuple[Deltas, ...], samples: int) -> bool:
    """Returns whether K + L R is cheaper than (x L) R beside x K, where K is trained together with L and R.

    For a kernel (n, m), rank r and B samples of an agent, the sum and its derivatives take 6 r n m operations, and the
    products and theirs 6 r B (n + m). All other operations are the same. If K is frozen, its products never need the
    derivative by the sum, which costs more than is saved.

    Args:
        corrections: low-rank deltas of one agent.
        samples: B.
    """
    factors = [parts for own in corrections for parts in own.arrays.values() if "left" in parts]
    merged = sum(parts["left"].size * parts["right"].shape[-1] for parts in factors)
    return merged < samples * sum(parts["left"].size + parts["right"].size for parts in factors)


def init_shared(adapters: dict[str, Adapter], trunk: PyTree) -> PyTree:
    """Returns the shared parameters under the adapters of all levels."""
    for adapter in adapters.values():
        trunk = adapter.init_shared(trunk)
    return trunk
