"""What an agent owns on top of its trunk, as pairs of pure functions.

An adapter says how one agent's own parameters start, and how they change the trunk's.
It can be applied in two ways that agree up to rounding:

*merged*: the agent's full weights K + (alpha / r) L R are formed once; good for acting,
where one set of weights serves many steps;

*factored*: x K + (x L) R, whose backward pass never forms the gradient of a frozen K;
good for updates.

What can be done with the adapters of a trained team (`save`, `load`, `attach`, `merge`,
`unmerge`, `resize`) is found here too, and stands in `lorasa_jax.adapter_files`.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from lorasa_jax.types import PyTree

if TYPE_CHECKING:
    from lorasa_jax.adapter_files import TeamAdapters as TeamAdapters
    from lorasa_jax.adapter_files import attach as attach
    from lorasa_jax.adapter_files import load as load
    from lorasa_jax.adapter_files import merge as merge
    from lorasa_jax.adapter_files import resize as resize
    from lorasa_jax.adapter_files import save as save
    from lorasa_jax.adapter_files import unmerge as unmerge


def __getattr__(name: str) -> Any:
    # Trained teams know policies and systems, and those know this module.
    if name not in ("TeamAdapters", "attach", "load", "merge", "resize", "save", "unmerge"):
        raise AttributeError(f"module 'lorasa_jax.adapters' has no attribute {name!r}")
    return getattr(importlib.import_module("lorasa_jax.adapter_files"), name)


class Adapter(NamedTuple):
    """One kind of agent-specific parameters, for a single agent.

    Attributes:
        init: `init(key, trunk) -> own`, such that the adapted network equals the trunk.
        factored: `factored(trunk, own) -> variables`, the collections that the network is
            applied with: `params`, and `delta` for low-rank corrections.
        merge: `merge(trunk, own) -> params`, the agent's full weights.
        rest: `rest(trunk) -> trunk` without what no agent uses any more.
    """

    init: Callable[[PRNGKeyArray, PyTree], PyTree]
    factored: Callable[[PyTree, PyTree], dict[str, PyTree]]
    merge: Callable[[PyTree, PyTree], PyTree]
    rest: Callable[[PyTree], PyTree] = lambda trunk: trunk


NOTHING = Adapter(
    init=lambda key, trunk: {},
    factored=lambda trunk, own: {"params": trunk},
    merge=lambda trunk, own: trunk,
)
"""The adapter of agents that own nothing: the trunk is all there is."""


def low_rank(rank: int, scale: float, where: Collection[str]) -> Adapter:
    """Returns low-rank adapters on the kernels of the named layers.

    With K (in, out) the trunk's kernel, agent i's is

        K + scale L_i R_i,   L_i (in, r) = 0,   R_i (r, out) ~ U(-1/sqrt(r), 1/sqrt(r))

    and, where r >= min(in, out), so that a factored form would not be smaller, a
    full-rank correction K + D_i with D_i (in, out) = 0 and scale 1; so for a vector too. Biases and
    normalisations stay the trunk's. At the start only L (or D) has a gradient.

    Args:
        rank: r, at least 1.
        scale: alpha / r.
        where: names of the layers; a layer left out is the trunk's own.

    Source: LoRA (Hu et al. 2021), mirrored, with the factor on the input side starting at
    zero; LoRASA (arXiv 2502.05573).
    """

    def correction(key: PRNGKeyArray, kernel: Array) -> dict[str, Array]:
        if kernel.ndim == 1 or rank >= min(kernel.shape):
            return {"full": jnp.zeros_like(kernel)}
        n_in, n_out = kernel.shape
        bound = 1 / math.sqrt(rank)
        right = jax.random.uniform(key, (rank, n_out), kernel.dtype, -bound, bound)
        return {"left": jnp.zeros((n_in, rank), kernel.dtype), "right": right}

    def init(key: PRNGKeyArray, trunk: PyTree) -> PyTree:
        names = [name for name in trunk if name in where]
        keys = jax.random.split(key, len(names))
        return {name: correction(k, trunk[name]["kernel"]) for name, k in zip(names, keys, strict=True)}

    def add(trunk: PyTree, deltas: dict[str, Array]) -> PyTree:
        changed = {name: {**trunk[name], "kernel": trunk[name]["kernel"] + delta} for name, delta in deltas.items()}
        return {**trunk, **changed}

    def factored(trunk: PyTree, own: PyTree) -> dict[str, PyTree]:
        full = {name: parts["full"] for name, parts in own.items() if "full" in parts}
        pairs = {
            name: {"left": parts["left"], "right": scale * parts["right"]}
            for name, parts in own.items()
            if "left" in parts
        }
        return {"params": add(trunk, full), "delta": pairs}

    def merge(trunk: PyTree, own: PyTree) -> PyTree:
        return add(
            trunk,
            {
                name: parts["full"] if "full" in parts else scale * parts["left"] @ parts["right"]
                for name, parts in own.items()
            },
        )

    return Adapter(init=init, factored=factored, merge=merge)


def own_layers(where: Collection[str]) -> Adapter:
    """Returns whole layers of an agent's own in place of the trunk's.

    They start as the trunk's do, equal for all agents.

    Args:
        where: names of the layers.

    Source: multi-task learning with a head per task (Caruana 1997).
    """

    def replace(trunk: PyTree, own: PyTree) -> PyTree:
        return {**trunk, **own}

    return Adapter(
        init=lambda key, trunk: {name: layer for name, layer in trunk.items() if name in where},
        factored=lambda trunk, own: {"params": replace(trunk, own)},
        merge=replace,
        rest=lambda trunk: {name: layer for name, layer in trunk.items() if name not in where},
    )
