"""Views: the input, output and stacking axes of a parameter.

A view is a string with one letter per axis:

* `i`: input, summed over when the layer is applied.
* `o`: output.
* `b`: batch. Every index has low-rank factors of its own, as every layer of a stack made by `flax.linen.scan` or
  `flax.linen.vmap` does.

`io` is a Dense kernel [in, out], `ioo` the query kernel of attention [in, heads, head_dim], `iiio` a convolution
kernel [height, width, in, out], `bio` a stack of Dense kernels [layers, in, out]. The empty view means that a
parameter is no matrix, as a bias.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from lorasa_jax.config import ConfigError, require

Shape = tuple[int, ...]

_VECTORS = ("bias", "scale")
_GATES = {"hr", "hz", "hn", "hi", "hf", "hg", "ho", "ir", "iz", "in", "ii", "if", "ig", "io"}


def check_view(path: str, shape: Shape, view: str) -> None:
    """Raises `ConfigError` for a view that does not fit the shape of its parameter."""
    require(set(view) <= set("bio"), f"view {view!r} of {path} may only have the letters b, i and o")
    require(
        not view or len(view) == len(shape),
        f"view {view!r} of {path} has {len(view)} letters, but its shape {list(shape)} has {len(shape)} axes",
    )
    require(not view or {"i", "o"} <= set(view), f"view {view!r} of {path} needs an input (i) and an output (o) axis")


def infer_view(path: str, shapes: Mapping[str, Shape]) -> str:
    """Returns the view of a parameter by the conventions of Flax.

    Biases, scales and vectors are no matrices. A matrix is `io`. For kernels with more axes, the shape of the layer's
    bias gives the output axes and the stacked ones. Without a bias, the names that Flax gives to convolutions, dense
    layers, gates and attention decide.

    Args:
        path: path of the parameter, such as `params/Dense_0/kernel`.
        shapes: shapes of all parameters, by path.

    Raises:
        ConfigError: the axes are ambiguous; the message explains how to give the view.
    """
    shape = shapes[path]
    layer, _, name = path.rpartition("/")
    if len(shape) < 2 or name in _VECTORS:
        return ""
    if len(shape) == 2:
        return "io"
    if name == "embedding":
        return "b" * (len(shape) - 2) + "io"
    if name == "kernel":
        by_bias = _views_by_bias(shape, shapes.get(f"{layer}/bias".lstrip("/")))
        by_name = _view_by_name(layer, shapes)
        if len(by_bias) == 1:
            return by_bias[0]
        if by_name in by_bias or (by_name and not by_bias):
            return by_name
    raise ConfigError(
        f"cannot tell the input axes of {path} {list(shape)} from the output axes; "
        f"give views={{{path!r}: ...}}, a letter per axis: b batch, i input, o output"
    )


def _views_by_bias(shape: Shape, bias: Shape | None) -> list[str]:
    """The views in which the bias has the stacked axes of the kernel, followed by its output axes."""
    if not bias:
        return []
    views = []
    for n_out in range(1, len(bias) + 1):
        n_batch, n_in = len(bias) - n_out, len(shape) - len(bias)
        if n_in > 0 and bias == shape[:n_batch] + shape[n_batch + n_in :]:
            views.append("b" * n_batch + "i" * n_in + "o" * n_out)
    return views


def _view_by_name(layer: str, shapes: Mapping[str, Shape]) -> str:
    """The view that the name of a layer suggests; empty: none."""
    parent, _, name = layer.rpartition("/")
    n_axes = len(shapes[f"{layer}/kernel".lstrip("/")])
    kind = re.sub(r"_\d+$", "", name).lower()
    if kind.startswith("conv"):
        return "i" * (n_axes - 1) + "o"
    if kind == "dense" or name in _GATES:
        return "b" * (n_axes - 2) + "io"
    query, out = (shapes.get(f"{parent}/{part}/kernel".lstrip("/"), ()) for part in ("query", "out"))
    if len(query) == len(out) == n_axes and query[-2:] == out[-3:-1]:  # [in, heads, head_dim], [heads, head_dim, out]
        attention = {"query": "ioo", "key": "ioo", "value": "ioo", "out": "iio"}
        return "b" * (n_axes - 3) + attention[name] if name in attention else ""
    return ""
