"""Factored application: adds the products (x L) R inside unchanged Flax layers.

The factors are in `params`, beside the kernels that they correct. So lifted transformations (`nn.scan`, `nn.vmap`,
`nn.remat`, `nn.RNN`) slice and broadcast them like the kernels, and an interceptor of `nn.Dense` and
`nn.DenseGeneral` finds them in its layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from lorasa_jax.config import require
from lorasa_jax.core.trees import by_path
from lorasa_jax.deltas.algebra import Deltas, beside, merge, require_fit, split_full
from lorasa_jax.deltas.spec import Leaf, Spec, Target

_LAYERS = (nn.Dense, nn.DenseGeneral)
_LEFT, _RIGHT = "kernel.left", "kernel.right"


def factored(module: nn.Module, *own: Deltas, frozen: bool = False) -> Callable[..., Any]:
    """Returns `module.apply` with the deltas of one owner: `factored(module, own)(variables, *args, **kwargs)`.

    It equals `module.apply(merge(variables, own), *args, **kwargs)` up to rounding. But `nn.Dense` and
    `nn.DenseGeneral`, also within attention and the cells of GRUs, compute

        x K + (alpha / r) (x L) R + b

    This forms no (in, out) matrix per owner, and no gradient of one. Deltas are merged in all other cases:
    convolutions, embeddings, biases, normalisations, full-rank deltas, subclasses of these layers, views that differ
    from the layer's, layers stacked along another axis than the first, and kernels that other code reads, too, such as
    tied weights and `nn.WeightNorm`.

    It works under `jax.jit`, `jax.grad` and `jax.vmap`, also over owners. The module is traced twice, once to find the
    layers that it calls, so call it under `jax.jit`.

    Kernels changed by `nn.map_variables` before their layer are not detected; merge these yourself.

    Args:
        module: any `flax.linen` module, unchanged.
        own: deltas of one owner. The spec was made from the variables, so paths begin with `params/`. Several deltas
            add up.
        frozen: stop gradients into the variables.

    Raises:
        ConfigError: the deltas do not fit the variables, or the call does not read a parameter with a delta.

    Examples:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from lorasa_jax import deltas
        >>> net, x = nn.Dense(16), jnp.ones((3, 8))  # an input for each of three owners
        >>> variables = net.init(jax.random.key(0), x[0])
        >>> team = deltas.init(jax.random.key(1), deltas.make_spec(variables, rank=2), n=3)
        >>> jax.vmap(lambda own, x: deltas.factored(net, own)(variables, x))(team, x).shape
        (3, 16)
    """

    def apply(variables: Any, *args: Any, **kwargs: Any) -> Any:
        for deltas in own:
            require_fit(variables, deltas)
        places = _factorable([deltas.spec for deltas in own], module, variables, args, kwargs)
        full, low_rank = split_full(own)
        others = [deltas.only(deltas.spec.by_path.keys() - places) for deltas in low_rank]
        merged = merge(variables, *full, *others, frozen=frozen)
        with nn.intercept_methods(_add_product):
            return module.apply(_beside_kernels(merged, [deltas.only(places) for deltas in low_rank]), *args, **kwargs)

    return apply


def _beside_kernels(variables: Any, products: Sequence[Deltas]) -> Any:
    """The variables with the factors of all deltas beside the kernels; scales are in `right`."""
    factors = beside(products)
    if not factors:
        return variables
    params = flatten_dict(variables["params"], keep_empty_nodes=True)
    for path, (left, right) in factors.items():
        layer = tuple(path.split("/")[1:-1])
        params[*layer, _LEFT], params[*layer, _RIGHT] = left, right
    return {**variables, "params": unflatten_dict(params)}


def _axes(layer: nn.Dense | nn.DenseGeneral, x: Leaf) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The batch axes of the input, its contracted axes, and the sizes of the new ones."""

    def as_tuple(value: Any) -> tuple[int, ...]:
        return tuple(value) if isinstance(value, Iterable) else (value,)

    batch, contracted = as_tuple(getattr(layer, "batch_dims", ())), as_tuple(getattr(layer, "axis", -1))
    return batch, tuple(sorted(axis % x.ndim for axis in contracted)), as_tuple(layer.features)


def _add_product(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Interceptor: y + (x left) right for layers with factors beside their kernel."""
    y, layer = next_fun(*args, **kwargs), context.module
    if not (_is_layer_call(context) and layer.has_variable("params", _LEFT)):
        return y
    factors = (layer.get_variable("params", name) for name in (_LEFT, _RIGHT))
    x, left, right = layer.promote_dtype(_input(args, kwargs), *factors, dtype=layer.dtype)
    batch, contracted, features = _axes(layer, x)
    sizes, n_batch = tuple(x.shape[axis] for axis in batch), len(batch)
    left = left.reshape(*sizes, *(x.shape[axis] for axis in contracted), left.shape[-1])
    right = right.reshape(*sizes, right.shape[-2], *features)
    leading = tuple(range(n_batch))
    inner = tuple(range(n_batch, n_batch + len(contracted)))
    z = jax.lax.dot_general(x, left, ((contracted, inner), (batch, leading)), precision=layer.precision)
    z = jax.lax.dot_general(z, right, (((z.ndim - 1,), (n_batch,)), (leading, leading)), precision=layer.precision)
    return y + z.astype(y.dtype)


def _is_layer_call(context: Any) -> bool:
    return context.method_name == "__call__" and type(context.module) in _LAYERS


def _input(args: Any, kwargs: Any) -> Leaf:
    return args[0] if args else kwargs["inputs"]


def _factorable(specs: Sequence[Spec], module: nn.Module, variables: Any, args: Any, kwargs: Any) -> set[str]:
    """The targets whose products can be added inside a layer; refuses deltas of parameters that are not read."""
    targets: dict[str, list[Target]] = {}
    for spec in specs:
        for path, target in spec.by_path.items():
            targets.setdefault(path, []).append(target)
    calls: dict[str, list[Leaf]] = {}  # the kernels of all calls of layers
    unfit: set[str] = set()

    def look(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        layer = context.module
        path = "/".join(("params", *layer.path, "kernel"))
        if path in targets and _is_layer_call(context):
            kernel: Any = layer.get_variable("params", "kernel")
            calls.setdefault(path, []).append(kernel)
            if not any(_fits(target, layer, kernel, _input(args, kwargs)) for target in targets[path]):
                unfit.add(path)
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(look):
        jaxpr = jax.make_jaxpr(lambda variables: module.apply(variables, *args, **kwargs))(variables)
    counts = _count_reads(jaxpr.jaxpr)
    reads = {path: counts[position] for position, path in enumerate(by_path(variables))}
    unread = next((path for path in targets if not reads[path]), None)
    require(
        unread is None,
        f"this call of {type(module).__name__} reads {unread} nowhere, so its delta would have no effect; "
        "exclude it from the spec, or select the deltas that the call uses (`Deltas.select`)",
    )
    # A loop may trace its body several times, each time with another tracer. Other readers of a kernel, tied weights
    # or its normalisation, would miss a delta that is not merged.
    return {
        path
        for path, kernels in calls.items()
        if path not in unfit and reads[path] <= max(Counter(map(id, kernels)).values())
    }


def _fits(target: Target, layer: nn.Dense | nn.DenseGeneral, kernel: Leaf, x: Leaf) -> bool:
    """Returns whether a delta belongs to this layer's kernel, or to a stack of such kernels along the first axes."""
    batch, contracted, features = _axes(layer, x)
    letters = "b" * len(batch) + "i" * len(contracted) + "o" * len(features)
    stacked = len(target.view) - len(letters)
    return not target.full and target.view == "b" * stacked + letters and target.shape[stacked:] == kernel.shape


def _count_reads(jaxpr: Any) -> Counter[int]:
    """The number of operations that read each input, by its position, including those within calls and loops."""
    reads = Counter(map(id, jaxpr.outvars))
    for equation in jaxpr.eqns:
        bodies = [getattr(value, "jaxpr", value) for value in equation.params.values()]
        bodies = [body for body in bodies if hasattr(body, "eqns")]
        aligned = len(bodies) == 1 and len(bodies[0].invars) == len(equation.invars)
        within = _count_reads(bodies[0]) if aligned else Counter(range(len(equation.invars)))
        for position, variable in enumerate(equation.invars):
            reads[id(variable)] += within[position]
    return Counter({position: reads[id(variable)] for position, variable in enumerate(jaxpr.invars)})
