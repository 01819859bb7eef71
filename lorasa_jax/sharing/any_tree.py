"""Adapters on the parameters of any network: nested modules, and kernels with more than two axes.

The functions of `lorasa_jax.sharing.variants` know each layer by one name, and kernels as matrices. Here a tree is
shown to them in that form. The name of a layer is its path, such as `attention/query`. Its kernel is the matrix that
`lorasa_jax.deltas` sees in it. What has no kernel, such as an embedding or a normalisation, stays shared.
"""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array, PRNGKeyArray

from lorasa_jax.core.trees import by_path, nested
from lorasa_jax.core.types import PyTree
from lorasa_jax.deltas.spec import Target
from lorasa_jax.deltas.views import infer_view
from lorasa_jax.sharing.variants import Adapter


def on_any_tree(adapter: Adapter, shapes: PyTree) -> Adapter:
    """Returns the adapter for trees of any depth; the network is applied with merged weights.

    Args:
        adapter: for a dictionary of layers, each a dictionary with a matrix `kernel`.
        shapes: of the whole tree of one network.
    """

    def init(key: PRNGKeyArray, trunk: PyTree) -> PyTree:
        return adapter.init(key, as_layers(trunk, shapes))

    def merge(trunk: PyTree, own: PyTree) -> PyTree:
        return _as_tree(adapter.merge(as_layers(trunk, shapes), own), shapes)

    def rest(trunks: PyTree) -> PyTree:
        kept = adapter.rest(jax.vmap(lambda trunk: as_layers(trunk, shapes))(trunks))
        return jax.vmap(lambda layers: _as_tree(layers, shapes))(kept)

    return Adapter(init=init, factored=lambda trunk, own: {"params": merge(trunk, own)}, merge=merge, rest=rest)


def _targets(shapes: PyTree) -> dict[str, Target]:
    """Each kernel of a tree as a matrix, by its path; vectors, which are no matrices, are left out."""
    leaves = by_path(shapes)
    sizes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    views = {path: infer_view(path, sizes) for path in leaves if path.split("/")[-1] == "kernel"}
    return {
        path: Target(path, sizes[path], str(leaves[path].dtype), view, rank=1, alpha=1.0)
        for path, view in views.items()
        if view
    }


def layer_names(tree: PyTree) -> list[str]:
    """Returns the paths of the layers that have a kernel."""
    return [path.rpartition("/")[0] for path in by_path(tree) if path.split("/")[-1] == "kernel"]


def as_layers(trunk: PyTree, shapes: PyTree) -> dict[str, dict[str, Array]]:
    """Returns the layers by their paths, kernels as matrices; what else there is stands under the empty name."""
    targets, known = _targets(shapes), by_path(shapes)
    layers: dict[str, dict[str, Array]] = {}
    for path, leaf in by_path(trunk).items():
        layer, _, name = path.rpartition("/")
        home, name = (layer, name) if f"{layer}/kernel" in known else ("", path)
        layers.setdefault(home, {})[name] = targets[path].to_matrix(leaf) if path in targets else leaf
    return layers


def _as_tree(layers: dict[str, dict[str, Any]], shapes: PyTree) -> PyTree:
    """The inverse of `as_layers`; what an adapter has added to a layer stays beside its kernel."""
    targets, leaves = _targets(shapes), {}
    for layer, parts in layers.items():
        for name, leaf in parts.items():
            path = f"{layer}/{name}" if layer else name
            leaves[path] = targets[path].from_matrix(leaf) if path in targets else leaf
    return nested(leaves)
