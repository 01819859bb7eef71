"""Deltas as arrays: their initialisation, and their application to a parameter tree."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from lorasa_jax.config import require
from lorasa_jax.core.trees import by_path, path_name
from lorasa_jax.deltas.spec import Leaf, Spec, Target, matching, no_such_path


@partial(jax.tree_util.register_dataclass, data_fields=["arrays"], meta_fields=["spec"])
@dataclass(frozen=True, eq=False)
class Deltas:
    """The deltas of all owners, with leaves [N, ...], or of one owner, without that axis.

    A pytree: `jax.vmap` over it gives each owner's deltas, `jax.grad` with respect to it gives their gradients, and
    optax updates it. `deltas[i]` is owner i's.

    Attributes:
        arrays: by the path of the parameter, `left` `[*batch, in, r]` and `right` `[*batch, r, out]`, or `full` in the
            shape of the parameter.
        spec: their spec; static under `jax.jit`.
    """

    arrays: Any
    spec: Spec

    def __repr__(self) -> str:
        """What they are of, in one line."""
        shapes = {path: {name: jnp.shape(leaf) for name, leaf in parts.items()} for path, parts in self.arrays.items()}
        return f"Deltas({shapes})"

    @property
    def n_owners(self) -> int:
        """N; raises `ConfigError` if the arrays have no owner axis."""
        return require_shapes(self, owners=True)

    def __getitem__(self, owner: int | Int[Array, ""]) -> Deltas:
        n = self.n_owners
        if isinstance(owner, int) and not -n <= owner < n:  # jax would clip the index
            raise IndexError(f"there is no owner {owner}; these are the deltas of {n}")
        return jax.tree.map(lambda leaf: leaf[owner], self)

    def select(self, patterns: str | Iterable[str]) -> Deltas:
        """Returns the deltas of the parameters that match a pattern.

        Raises:
            ConfigError: a pattern matches no parameter.
        """
        return self.only(matching("select", patterns, self.spec.by_path))

    def only(self, paths: Iterable[str]) -> Deltas:
        """Returns the deltas of these parameters; the result may be empty."""
        kept = set(paths)
        spec = Spec(tuple(target for target in self.spec.targets if target.path in kept))
        return Deltas({target.path: self.arrays[target.path] for target in spec.targets}, spec)

    def under(self, name: str) -> Deltas:
        """Returns the same deltas for a tree that contains the present tree as a branch of this name."""
        targets = tuple(replace(target, path=f"{name}/{target.path}") for target in self.spec.targets)
        return Deltas({f"{name}/{path}": arrays for path, arrays in self.arrays.items()}, Spec(targets))


def init(key: PRNGKeyArray, spec: Spec, n: int) -> Deltas:
    """Returns fresh deltas for n owners, leaves [N, ...]. They do not change the parameters.

    For a kernel K (in, out), owner i's kernel is

        K + (alpha / r) L_i R_i,   L_i (in, r) = 0,   R_i (r, out) ~ U(-1/sqrt(r), 1/sqrt(r))

    For r >= min(in, out), and for parameters that are no matrices, it is K + D_i with D_i = 0. At the start only L (or
    D) has a nonzero gradient.

    Raises:
        ConfigError: n is below 1.

    Source: LoRA (Hu et al. 2021), but with the zero factor on the input side; LoRASA (arXiv 2502.05573).
    """
    require(n >= 1, f"the number of owners must be at least 1, got {n}")

    def init_target(key: PRNGKeyArray, target: Target) -> dict[str, Array]:
        arrays = {name: jnp.zeros(shape, target.dtype) for name, shape in target.shapes.items()}
        if not target.full:
            bound = 1 / math.sqrt(target.rank)
            arrays["right"] = jax.random.uniform(key, target.shapes["right"], target.dtype, -bound, bound)
        return arrays

    def init_owner(key: PRNGKeyArray) -> dict[str, dict[str, Array]]:
        keys = jax.random.split(key, len(spec.targets))
        return {target.path: init_target(k, target) for k, target in zip(keys, spec.targets, strict=True)}

    return Deltas(jax.vmap(init_owner)(jax.random.split(key, n)), spec)


def merge(tree: Any, *own: Deltas, frozen: bool = False) -> Any:
    """Returns the full parameters of one owner: K + (alpha / r) L R for every target, other parameters unchanged.

    Args:
        tree: the parameters that the spec was made from; any pytree.
        own: deltas of one owner, such as `deltas[0]`. Map this function over owners, or use `merge_all`. Several deltas
            add up, for example those of a role and of an agent.
        frozen: stop gradients into `tree`.

    Raises:
        ConfigError: the deltas do not fit the tree.

    Examples:
        With `flax.nnx`, the tree is the state of a model as a dictionary:

        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from lorasa_jax import deltas
        >>> graphdef, state = nnx.split(nnx.Linear(8, 16, rngs=nnx.Rngs(0)))
        >>> tree = nnx.to_pure_dict(state)
        >>> team = deltas.init(jax.random.key(0), deltas.make_spec(tree, rank=2), n=3)
        >>> nnx.replace_by_pure_dict(state, deltas.merge(tree, team[0]))
        >>> nnx.merge(graphdef, state)(jnp.ones(8)).shape
        (16,)
    """
    tree = jax.lax.stop_gradient(tree) if frozen else tree
    for deltas in own:
        require_fit(tree, deltas)
        tree = _map_targets(tree, deltas, _add)
    return tree


def merge_all(tree: Any, deltas: Deltas, *, frozen: bool = False) -> tuple[Any, Any]:
    """Returns the full parameters of all owners, and the axes to map them over.

    Only parameters with a delta get an owner axis, [N, ...]; the others are not copied.

    Args:
        tree: the parameters that the spec was made from.
        deltas: deltas of all owners, leaves [N, ...].
        frozen: stop gradients into `tree`.

    Returns:
        The tree, and a tree of the same structure with 0 for leaves with an owner axis and None for others.

    Raises:
        ConfigError: the deltas do not fit the tree.

    Examples:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from lorasa_jax import deltas
        >>> layer, x = nn.Dense(16), jnp.ones((3, 8))  # an input for each of three owners
        >>> variables = layer.init(jax.random.key(0), x[0])
        >>> team = deltas.init(jax.random.key(1), deltas.make_spec(variables, rank=2), n=3)
        >>> full, axes = deltas.merge_all(variables, team)
        >>> axes
        {'params': {'bias': None, 'kernel': 0}}
        >>> jax.vmap(layer.apply, in_axes=(axes, 0))(full, x).shape
        (3, 16)
    """
    require_fit(tree, deltas, owners=True)

    def add_all(leaf: Leaf, target: Target, arrays: dict[str, Leaf]) -> Array:
        return jax.vmap(lambda own: _add(leaf, target, own))(arrays)

    tree = jax.lax.stop_gradient(tree) if frozen else tree
    axes = jax.tree_util.tree_map_with_path(lambda path, _: 0 if path_name(path) in deltas.arrays else None, tree)
    return _map_targets(tree, deltas, add_all), axes


def beside(products: Iterable[Deltas]) -> dict[str, tuple[Array, Array]]:
    """Returns by path the factors of a sum of low-rank deltas, [in, r] and [r, out], with all ranks concatenated.

        sum_l (alpha_l / r_l) L_l R_l = left right,   left = [L_1 L_2 ...],   right = [s_1 R_1; s_2 R_2; ...]

    with s_l = alpha_l / r_l.
    """
    factors: dict[str, tuple[Array, Array]] = {}
    for deltas in products:
        for path, target in deltas.spec.by_path.items():
            left = jnp.asarray(deltas.arrays[path]["left"])
            right = target.scale * jnp.asarray(deltas.arrays[path]["right"])
            if path in factors:
                before_left, before_right = factors[path]
                left = jnp.concatenate([before_left, left], axis=-1)
                right = jnp.concatenate([before_right, right], axis=-2)
            factors[path] = left, right
    return factors


def split_full(own: Sequence[Deltas]) -> tuple[list[Deltas], list[Deltas]]:
    """Returns the full-rank deltas and the low-rank ones."""
    full = [{path for path, target in deltas.spec.by_path.items() if target.full} for deltas in own]
    pairs = list(zip(own, full, strict=True))
    return (
        [deltas.only(paths) for deltas, paths in pairs],
        [deltas.only(deltas.spec.by_path.keys() - paths) for deltas, paths in pairs],
    )


def difference(tree_a: Any, tree_b: Any, spec: Spec) -> Deltas:
    """Returns the deltas of one owner from one tree to another: merged into `tree_a` they give `tree_b`.

    For full-rank deltas this is exact up to rounding. A low-rank delta is the nearest matrix of its rank, by a
    truncated singular value decomposition (Eckart & Young 1936). Each factor gets the square roots of the singular
    values.

    Raises:
        ConfigError: a tree does not fit the spec.
    """
    require_targets(tree_a, spec)
    require_targets(tree_b, spec)
    a, b = by_path(tree_a), by_path(tree_b)

    changes = {target: jnp.asarray(b[target.path]) - a[target.path] for target in spec.targets}
    return Deltas({target.path: _nearest(target, change) for target, change in changes.items()}, spec)


def resize(deltas: Deltas, spec: Spec, key: PRNGKeyArray | None = None) -> Deltas:
    """Returns the deltas of all owners with the ranks and alphas of another spec of the same parameters.

    With a larger rank they change the parameters as before: L gets columns of zeros, and R fresh rows, with which they
    can learn. With a smaller one they are the nearest deltas of that rank, as in `difference`.

    Args:
        deltas: of all owners, leaves [N, ...].
        spec: the other ranks and alphas.
        key: draws the fresh rows of R; needed where a rank grows.

    Raises:
        ConfigError: the specs are not of the same parameters, or the key is missing.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from lorasa_jax import deltas
        >>> tree = {"kernel": jnp.zeros((8, 16))}
        >>> team = deltas.init(jax.random.key(0), deltas.make_spec(tree, rank=2), n=3)
        >>> larger = deltas.resize(team, deltas.make_spec(tree, rank=4), jax.random.key(1))
        >>> larger.arrays["kernel"]["left"].shape
        (3, 8, 4)
    """
    n, before = deltas.n_owners, deltas.spec.by_path
    same = {path: (t.shape, t.view) for path, t in before.items()} == {t.path: (t.shape, t.view) for t in spec.targets}
    require(same, "these deltas and the spec are not of the same parameters")
    grows = any(not target.full and target.rank > before[target.path].rank for target in spec.targets)
    require(key is not None or not grows, "a rank grows, so a key is needed: it draws the new rows of R")
    fresh = init(key, spec, n).arrays if key is not None else {}

    def of_target(target: Target) -> dict[str, Array]:
        old, arrays = before[target.path], jax.tree.map(jnp.asarray, deltas.arrays[target.path])
        if old.full or target.full or target.rank < old.rank:
            return jax.vmap(lambda own: _nearest(target, _change(old, own)))(arrays)
        left, right = arrays["left"], old.scale / target.scale * arrays["right"]
        if target.rank > old.rank:
            left = jnp.pad(left, [(0, 0)] * (left.ndim - 1) + [(0, target.rank - old.rank)])
            right = jnp.concatenate([right, fresh[target.path]["right"][..., old.rank :, :]], axis=-2)
        return {"left": left, "right": right}

    return Deltas({target.path: of_target(target) for target in spec.targets}, spec)


def _nearest(target: Target, change: Array) -> dict[str, Array]:
    """The delta of one owner that changes a parameter by this, or as nearly as its rank allows."""
    if target.full:
        return {"full": change}
    matrix = target.to_matrix(change).astype(jnp.promote_types(target.dtype, jnp.float32))  # which LAPACK knows
    u, s, v = jnp.linalg.svd(matrix, full_matrices=False)
    root, r = jnp.sqrt(s[..., : target.rank]), target.rank
    factors = {"left": u[..., :r] * root[..., None, :], "right": root[..., None] * v[..., :r, :] / target.scale}
    return {name: factor.astype(target.dtype) for name, factor in factors.items()}


def _change(target: Target, arrays: Mapping[str, Leaf]) -> Array:
    """What one owner's delta adds to a parameter."""
    full = arrays["full"] if target.full else target.from_matrix(target.scale * arrays["left"] @ arrays["right"])
    return jnp.asarray(full)


def _add(leaf: Leaf, target: Target, arrays: Mapping[str, Leaf]) -> Array:
    """A parameter with one owner's delta."""
    return (jnp.asarray(leaf) + _change(target, arrays)).astype(leaf.dtype)


def _map_targets(tree: Any, deltas: Deltas, function: Callable[..., Array]) -> Any:
    """The tree with every leaf that has a delta replaced by `function(leaf, target, arrays)`."""
    targets = deltas.spec.by_path

    def change(path: Any, leaf: Any) -> Any:
        name = path_name(path)
        return function(leaf, targets[name], deltas.arrays[name]) if name in targets else leaf

    return jax.tree_util.tree_map_with_path(change, tree)


def require_targets(tree: Any, spec: Spec) -> None:
    """Raises `ConfigError` for a tree without a target, or with a target of another shape."""
    leaves = by_path(tree)
    for target in spec.targets:
        if target.path not in leaves:
            raise no_such_path(target.path, leaves)
        shape = list(jnp.shape(leaves[target.path]))
        require(
            shape == list(target.shape),
            f"{target.path} is {shape} in these parameters, but its delta was made for {list(target.shape)}",
        )


def require_fit(tree: Any, deltas: Deltas, owners: bool = False) -> None:
    """Raises `ConfigError` for deltas that do not fit a tree, or have an unexpected owner axis."""
    require_targets(tree, deltas.spec)
    require_shapes(deltas, owners)


def require_shapes(deltas: Deltas, owners: bool) -> int:
    """Returns the number of owners; refuses arrays with shapes other than those of the spec.

    Raises:
        ConfigError: a shape is wrong, or the numbers of owners differ.
    """
    n = 0
    for target in deltas.spec.targets:
        for name, expected in target.shapes.items():
            shape = tuple(jnp.shape(deltas.arrays[target.path][name]))
            n = n or (shape[0] if owners and shape else 1)
            wanted = (n, *expected) if owners else expected
            advice = "give the deltas of all owners" if owners else "give those of one owner, or map over owners"
            require(
                shape == wanted,
                f"{name} of the delta of {target.path} is {list(shape)}, but must be {list(wanted)}; {advice}",
            )
    return n
