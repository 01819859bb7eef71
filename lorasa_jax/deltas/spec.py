"""Specs: the parameters with a delta, from a parameter tree and patterns on the paths of its leaves."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lorasa_jax.config import ConfigError, require
from lorasa_jax.core.trees import by_path
from lorasa_jax.deltas.views import Shape, check_view, infer_view

Leaf = Array | np.ndarray


@dataclass(frozen=True)
class Target:
    """One parameter with a delta.

    Attributes:
        path: path of the parameter, such as `params/Dense_0/kernel`.
        shape: shape of the parameter.
        dtype: dtype of the parameter and of its delta.
        view: one letter per axis (`lorasa_jax.deltas.views`); empty: the parameter is no matrix.
        rank: r, at least 1.
        alpha: alpha in the scale alpha / r.

    Raises:
        ConfigError: the rank or alpha is not positive, or the view does not fit the shape.
    """

    path: str
    shape: Shape
    dtype: str
    view: str
    rank: int
    alpha: float

    def __post_init__(self) -> None:
        require(self.rank >= 1, f"the rank of {self.path} must be at least 1, got {self.rank}")
        require(0 < self.alpha < math.inf, f"alpha of {self.path} must be positive, got {self.alpha}")
        check_view(self.path, self.shape, self.view)
        is_float = jnp.issubdtype(jnp.dtype(self.dtype), jnp.floating)
        require(is_float, f"{self.path} is {self.dtype}; only floating-point parameters can have a delta")

    def sizes(self, letter: str) -> Shape:
        """Returns the sizes of the axes with this letter."""
        return tuple(size for size, found in zip(self.shape, self.view, strict=False) if found == letter)

    @property
    def n_in(self) -> int:
        """Product of the input axes."""
        return math.prod(self.sizes("i"))

    @property
    def n_out(self) -> int:
        """Product of the output axes."""
        return math.prod(self.sizes("o"))

    @property
    def full(self) -> bool:
        """The delta has full rank, because factors would save nothing, or the parameter is no matrix."""
        return not self.view or self.rank >= min(self.n_in, self.n_out)

    @property
    def scale(self) -> float:
        """alpha / r, and 1 for a full-rank delta."""
        return 1.0 if self.full else self.alpha / self.rank

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shapes of the arrays of one owner's delta: `full`, or `left` and `right`."""
        if self.full:
            return {"full": self.shape}
        batch = self.sizes("b")
        return {"left": (*batch, self.n_in, self.rank), "right": (*batch, self.rank, self.n_out)}

    @property
    def count(self) -> int:
        """Numbers in one owner's delta."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def _order(self) -> list[int]:
        return sorted(range(len(self.view)), key=lambda axis: "bio".index(self.view[axis]))

    def to_matrix(self, leaf: Float[Leaf, "..."]) -> Float[Array, "... I O"]:
        """Returns a parameter as matrices `[*batch, in, out]`."""
        return jnp.transpose(leaf, self._order).reshape(*self.sizes("b"), self.n_in, self.n_out)

    def from_matrix(self, matrix: Float[Leaf, "... I O"]) -> Float[Array, "..."]:
        """Returns matrices `[*batch, in, out]` in the shape of the parameter; the inverse of `to_matrix`."""
        ordered = matrix.reshape([self.shape[axis] for axis in self._order])
        return jnp.transpose(ordered, [self._order.index(axis) for axis in range(len(self.shape))])


@dataclass(frozen=True)
class Spec:
    """All parameters with a delta; `print(spec)` shows a table of them.

    Attributes:
        targets: the parameters in the order of the tree.
    """

    targets: tuple[Target, ...]

    @cached_property
    def by_path(self) -> dict[str, Target]:
        """The targets by their paths."""
        return {target.path: target for target in self.targets}

    @property
    def count(self) -> int:
        """Numbers in the deltas of one owner."""
        return sum(target.count for target in self.targets)

    def __str__(self) -> str:
        """A table: path, view, shape, in x out, rank and count of every delta, and the total."""
        rows = [("path", "view", "shape", "in x out", "rank", "count")]
        for target in self.targets:
            size = f"{target.n_in} x {target.n_out}" if target.view else "-"
            rank = "full" if target.full else str(target.rank)
            rows.append((target.path, target.view or "-", str(list(target.shape)), size, rank, f"{target.count:,}"))
        rows.append(("total per owner", "", "", "", "", f"{self.count:,}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row[:-1], widths)) + f"  {row[-1]:>{widths[-1]}}" for row in rows]
        return "\n".join(lines)


def make_spec(
    tree: Any,
    target: str | Iterable[str] = "*kernel",
    rank: int = 8,
    alpha: float | None = None,
    *,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    exclude: str | Iterable[str] = (),
    views: Mapping[str, str] | None = None,
) -> Spec:
    """Returns a spec of the parameters with a delta.

    Patterns are globs on the path of a leaf, such as `params/Dense_0/kernel`: `*` stands for any characters, `/`
    included, `?` for one, `[abc]` for one of these. A pattern must match the whole path. If several patterns of one
    mapping match, the first counts. The terms are those of PEFT's `LoraConfig`.

    Args:
        tree: the parameters, or their shapes (`jax.eval_shape`); any pytree.
        target: patterns of the parameters with a delta.
        rank: r. A rank of min(in, out) or more gives a full-rank delta. Biases, scales and vectors always have full
            rank.
        alpha: the low-rank product is scaled by alpha / r; None: alpha = r.
        rank_pattern: other ranks, by pattern.
        alpha_pattern: other alphas, by pattern.
        exclude: patterns of parameters without a delta, even if `target` matches.
        views: input (`i`), output (`o`) and batch (`b`) axes by pattern, one letter per axis. Other views are inferred
            by the conventions of Flax (`lorasa_jax.deltas.views`).

    Raises:
        ConfigError: a pattern matches nothing, a rank or alpha is not positive, or a view does not fit or cannot be
            inferred.

    Examples:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from lorasa_jax import deltas
        >>> variables = nn.Dense(16).init(jax.random.key(0), jnp.ones(8))
        >>> print(deltas.make_spec(variables, ["*kernel", "*bias"], rank=2))
        path             view  shape    in x out  rank  count
        params/bias      -     [16]     -         full     16
        params/kernel    io    [8, 16]  8 x 16    2        48
        total per owner                                    64

    Source: LoRA (Hu et al. 2021).
    """
    leaves = by_path(jax.eval_shape(lambda leaves: leaves, tree))
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    chosen = matching("target", target, shapes)
    chosen -= matching("exclude", exclude, chosen)
    require(bool(chosen), "every target is excluded, so nothing would get a delta")
    ranks = _by_pattern("rank_pattern", rank_pattern, chosen)
    alphas = _by_pattern("alpha_pattern", alpha_pattern, chosen)
    given = _by_pattern("views", views, chosen)

    def make_target(path: str) -> Target:
        r = ranks.get(path, rank)
        default_alpha = r if alpha is None else alpha
        view = given[path] if path in given else infer_view(path, shapes)
        return Target(path, shapes[path], str(leaves[path].dtype), view, r, float(alphas.get(path, default_alpha)))

    return Spec(tuple(make_target(path) for path in leaves if path in chosen))


def matching(what: str, patterns: str | Iterable[str], paths: Iterable[str]) -> set[str]:
    """Returns the paths that match a pattern; raises `ConfigError` if a pattern matches no path."""
    known, found = list(paths), set[str]()
    kind = "parameter" if what == "target" else "targeted parameter"
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        hits = {path for path in known if fnmatchcase(path, pattern)}
        require(bool(hits), f"{what} {pattern!r} matches no {kind}; {near(pattern, known)}")
        found |= hits
    return found


def _by_pattern(what: str, patterns: Mapping[str, Any] | None, paths: Iterable[str]) -> dict[str, Any]:
    """The value of the first matching pattern, for each path with one."""
    values: dict[str, Any] = {}
    for pattern, value in (patterns or {}).items():
        values = dict.fromkeys(matching(what, pattern, paths), value) | values
    return values


def near(path: str, paths: Iterable[str]) -> str:
    """Returns the known paths nearest to an unknown one, as the end of a message."""
    known = sorted(paths)
    hits = difflib.get_close_matches(path.replace("*", ""), known, n=3, cutoff=0.0)
    return f"nearest: {', '.join(hits)}" if hits else "the tree has no leaves"


def no_such_path(path: str, paths: Iterable[str]) -> ConfigError:
    """Returns the error for a delta whose parameter is not in the tree."""
    return ConfigError(f"these parameters have no {path}, which has a delta; {near(path, paths)}")
