"""Trees of arrays by the paths of their leaves, which files use as names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lorasa_jax.core.types import PyTree


def path_name(path: Any) -> str:
    """Returns the path of a leaf, as `jax.tree_util` gives it, in the form `fc1/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def by_path(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves of a tree by their paths, such as `fc1/kernel`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {path_name(path): leaf for path, leaf in leaves}


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tree of dictionaries that has these leaves."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = leaf
    return tree


def digest(tree: PyTree) -> str:
    """Returns a SHA-256 of paths, shapes, types and bits of all leaves."""
    sha = hashlib.sha256()
    for name, leaf in sorted(by_path(tree).items()):
        array = np.asarray(leaf)
        sha.update(f"{name} {array.dtype} {list(array.shape)}\n".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def not_finite(leaves: Mapping[str, Any]) -> str | None:
    """Returns the path of the first leaf with NaN or an infinity, or None."""
    return next((name for name, leaf in leaves.items() if not np.isfinite(np.asarray(leaf)).all()), None)
