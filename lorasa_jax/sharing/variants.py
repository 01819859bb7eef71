"""What an agent owns on top of its trunk, as pairs of pure functions.

An adapter says how one agent's own parameters start, and how they change the trunk's.
It can be applied in two ways that agree up to rounding:

*merged*: the agent's full weights K + (alpha / r) L R are formed once; good for acting,
where one set of weights serves many steps;

*factored*: x K + (x L) R, whose backward pass never forms the gradient of a frozen K;
good for updates.

Where the owner changes from sample to sample there is a third: the products of all owners are taken, and the one that
counts is kept. Adapters of several levels, of a role and of an agent say, add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from lorasa_jax.core.types import PyTree


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


def _unable(trunk: PyTree, owned: PyTree) -> dict[str, PyTree]:
    raise NotImplementedError("this adapter cannot be chosen sample by sample")


class Adapter(NamedTuple):
    """One kind of agent-specific parameters, for a single agent.

    Attributes:
        init: `init(key, trunk) -> own`, such that the adapted network equals the trunk.
        factored: `factored(trunk, own) -> variables`, the collections that the network is
            applied with: `params`, and `delta` for low-rank corrections.
        merge: `merge(trunk, own) -> params`, the agent's full weights.
        rest: `rest(trunks) -> trunks`, leaves [G, ...]: all that agents share, without what no agent uses any
            more, and with what makes agents' weights from what they own.
        among: `among(trunk, owned) -> variables` from the parameters of all K owners, [K, ...], of
            whom every sample names its own when the network is applied.
    """

    init: Callable[[PRNGKeyArray, PyTree], PyTree]
    factored: Callable[[PyTree, PyTree], dict[str, PyTree]]
    merge: Callable[[PyTree, PyTree], PyTree]
    rest: Callable[[PyTree], PyTree] = lambda trunk: trunk
    among: Callable[[PyTree, PyTree], dict[str, PyTree]] = _unable


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

    and, where r >= min(in, out), so that a product of factors could do no more, a
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

    def pairs(parts: dict[str, Array]) -> dict[str, Array]:
        """The factors of all owners, [K, in, r] and [K, r, out]; of a full-rank correction one is the identity."""
        if "left" in parts:
            return {"lefts": parts["left"], "rights": scale * parts["right"]}
        full = parts["full"]
        if full.ndim == 2:  # of a vector, that no input passes through
            return {"rights": full}
        n_owners, n_in, n_out = full.shape
        identity = jnp.broadcast_to(jnp.eye(min(n_in, n_out)), (n_owners, min(n_in, n_out), min(n_in, n_out)))
        return {"lefts": full, "rights": identity} if n_out < n_in else {"lefts": identity, "rights": full}

    def among(trunk: PyTree, owned: PyTree) -> dict[str, PyTree]:
        return {"params": trunk, "delta": {name: pairs(parts) for name, parts in owned.items()}}

    return Adapter(init=init, factored=factored, merge=merge, among=among)


def added_up(levels: Mapping[str, Adapter]) -> Adapter:
    """Returns adapters whose changes add up; what an agent uses is a dictionary of what it uses at each level.

    Low-rank products lie side by side: L_1 R_1 + L_2 R_2 = [L_1 L_2] [R_1; R_2].
    """

    def factored(trunk: PyTree, own: PyTree) -> dict[str, PyTree]:
        delta: dict[str, PyTree] = {}
        for key, adapter in levels.items():
            variables = adapter.factored(trunk, own[key])
            trunk = variables["params"]
            delta = side_by_side(delta, variables.get("delta", {}))
        return {"params": trunk, "delta": delta}

    def merge(trunk: PyTree, own: PyTree) -> PyTree:
        for key, adapter in levels.items():
            trunk = adapter.merge(trunk, own[key])
        return trunk

    def init(key: PRNGKeyArray, trunk: PyTree) -> PyTree:
        keys = jax.random.split(key, len(levels))
        return {name: adapter.init(k, trunk) for k, (name, adapter) in zip(keys, levels.items(), strict=True)}

    def rest(trunks: PyTree) -> PyTree:
        for adapter in levels.values():
            trunks = adapter.rest(trunks)
        return trunks

    return Adapter(init=init, factored=factored, merge=merge, rest=rest)


def side_by_side(one: dict[str, PyTree], other: dict[str, PyTree]) -> dict[str, PyTree]:
    """Returns the corrections of two levels, layer by layer, as one."""
    both = dict(one)
    for name, parts in other.items():
        known = both.get(name, {})
        both[name] = known | parts
        if "left" in known and "left" in parts:
            both[name] |= {
                "left": jnp.concatenate([known["left"], parts["left"]], axis=1),
                "right": jnp.concatenate([known["right"], parts["right"]], axis=0),
            }
    return both


def multiplied_out(variables: dict[str, PyTree]) -> PyTree:
    """Returns one agent's full weights from its factored form: K + left right for every layer."""
    params = dict(variables["params"])
    for name, parts in variables.get("delta", {}).items():
        params[name] = {**params[name], "kernel": params[name]["kernel"] + parts["left"] @ parts["right"]}
    return params


def generated(size: int, where: Collection[str]) -> Adapter:
    """Returns kernels that a linear hypernetwork corrects for every agent.

    With e_i (z,) what agent i owns, its embedding, and W (z, in, out) the trunk's, both trained, agent i's kernel is

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

    def merge(trunk: PyTree, own: PyTree) -> PyTree:
        def corrected(kernel: Array, generator: Array, **rest: Array) -> dict[str, Array]:
            return {**rest, "kernel": kernel + jnp.tensordot(own["embedding"], generator, axes=1)}

        return {name: corrected(**leaves) if name in where else leaves for name, leaves in trunk.items()}

    def rest(trunk: PyTree) -> PyTree:
        def grown(kernel: Array, **rest: Array) -> dict[str, Array]:
            n_trunks, *shape = kernel.shape
            return {**rest, "kernel": kernel, "generator": jnp.zeros((n_trunks, size, *shape), kernel.dtype)}

        return {name: grown(**leaves) if name in where else leaves for name, leaves in trunk.items()}

    return Adapter(init=init, factored=lambda trunk, own: {"params": merge(trunk, own)}, merge=merge, rest=rest)


def masked(where: Collection[str]) -> Adapter:
    """Returns kernels of which every agent leaves out the entries below thresholds of its own.

    With t_i (in, out) what agent i owns, its kernel is

        K * [|K| > t_i],   t_i = 0

    where backwards the bracket counts as |K| - t_i with |K| held: an entry left out can come back.

    Args:
        where: names of the layers.

    Source: the idea is Kaleidoscope's (Li et al. 2024, arXiv 2410.08540); the straight-through gradient is Bengio et
    al.'s (2013).
    """

    def merge(trunk: PyTree, own: PyTree) -> PyTree:
        def thinned(leaves: dict[str, Array], threshold: Array) -> dict[str, Array]:
            margin = jax.lax.stop_gradient(jnp.abs(leaves["kernel"])) - threshold
            mask = (margin > 0) + (margin - jax.lax.stop_gradient(margin))
            return {**leaves, "kernel": leaves["kernel"] * mask}

        return {**trunk, **{name: thinned(trunk[name], parts["threshold"]) for name, parts in own.items()}}

    return Adapter(
        init=lambda key, trunk: {
            name: {"threshold": jnp.zeros_like(layer["kernel"])} for name, layer in trunk.items() if name in where
        },
        factored=lambda trunk, own: {"params": merge(trunk, own)},
        merge=merge,
    )


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
