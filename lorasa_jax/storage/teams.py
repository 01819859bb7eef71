"""A trained team as plain networks, and in another size.

These functions are found in `lorasa_jax.adapters`. They are for what each agent has for itself: adapters of
roles, and of several levels, are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from lorasa_jax.config import require
from lorasa_jax.core.trees import by_path, nested
from lorasa_jax.core.types import PolicyParams, PyTree
from lorasa_jax.learning.system import System, own_weights
from lorasa_jax.sharing import variants
from lorasa_jax.storage.adapter_files import require_shapes, shapes_of

_SAME = 1e-3
"""How far, against the largest weight of a leaf, two ways to compute it may lie apart by rounding."""

# As plain networks


def merge(params: PolicyParams, system: System) -> list[PyTree]:
    """Returns every agent's full weights, each a plain tree of flax parameters of the same network.

    Args:
        params: of one seed.
        system: of the phase they belong to.

    Raises:
        ConfigError: owners change in the course of play, so that no agent has weights of its own.
    """
    require(
        not system.actor.sharing.dynamic_roles, "adapters whose owners change cannot be merged into agents' networks"
    )
    full = own_weights(system, params).shared
    return [jax.tree.map(lambda leaf, i=i: leaf[i], full) for i in range(system.actor.sharing.n_agents)]


def unmerge(networks: Sequence[PyTree], own: PyTree, system: System) -> PolicyParams:
    """Returns trunks and adapters, which `merge` made these networks of; the trunks up to rounding.

    Args:
        networks: one for each agent.
        own: the adapters in them.
        system: of the phase they belong to.

    Raises:
        ConfigError: networks of one trunk differ in more than these adapters.
    """
    sharing = system.actor.sharing
    _require_own(own, system)
    require(len(networks) == sharing.n_agents, f"there must be {sharing.n_agents} networks, got {len(networks)}")
    # What an adapter makes of a trunk of zeros is what it adds.
    nothing = jax.tree.map(jnp.zeros_like, networks[0])
    trunks = []
    for i, network in enumerate(networks):
        added = variants.merge(sharing.adapters, nothing, jax.tree.map(lambda leaf, i=i: leaf[i], own))
        trunks.append(variants.init_shared(sharing.adapters, jax.tree.map(jnp.subtract, network, added)))
    first = [trunks[sharing.groups.index(group)] for group in range(sharing.n_trunks)]
    for trunk, group in zip(trunks, sharing.groups, strict=True):
        expected = by_path(first[group])
        for name, leaf in by_path(trunk).items():
            far = jnp.abs(leaf - expected[name]).max() > _SAME * jnp.maximum(1.0, jnp.abs(expected[name]).max())
            require(not far, f"{name}: these networks do not come of one trunk and these adapters")
    return PolicyParams(jax.tree.map(lambda *leaves: jnp.stack(leaves), *first), own)


def _require_own(own: PyTree, system: System) -> None:
    """Refuses what agents share with others, and what is neither a correction nor a layer."""
    names = {path.rpartition("/")[2] for path in by_path(own)}
    require(
        own.keys() <= {"agent"} and (names <= {"left", "right", "full"} or names <= {"kernel", "bias"}),
        "only low-rank adapters, or layers, of each agent's own can be moved; those of sharing "
        f"{system.config.sharing} with levels {' '.join(system.config.levels)} are of another kind",
    )


# A team of another size


def resize(
    params: PolicyParams, before: System, after: System, sources: Sequence[int | str], key: PRNGKeyArray | None = None
) -> PolicyParams:
    """Returns the policies of a team in which every agent goes on from agents of another one.

    Where the trunk tells agents apart by their ids, the embeddings of the new team come from the same sources
    (that of a fresh agent is the average). A copy of agent i then computes what agent i does.

    Args:
        params: of one seed, of the team as it was.
        before: its system, in the phase the parameters belong to.
        after: the system of the new team, in the same phase.
        sources: for each agent of the new team the number of an old one, which is copied; or `average`:
            the mean of all old agents' corrections (its best approximation of rank r); or `fresh`.
        key: needed where an agent starts afresh.

    Raises:
        ConfigError: the teams differ in more than their size, or the sources do not fit.
    """
    _require_own(params.agents, before)
    _check_sources(before, after, sources, key)
    n_old, everyone = before.env.spec.n_agents, range(before.env.spec.n_agents)
    members = [[source] if isinstance(source, int) else list(everyone) for source in sources]
    weight = np.stack([np.eye(n_old, dtype=np.float32)[of].mean(axis=0) for of in members])
    require(not before.config.actor.module, "only teams of the built-in network can change their size")

    def of_trunk(name: str, leaf: Any) -> Any:
        return jnp.einsum("mn,gnh->gmh", weight, leaf) if name == "id/embedding" else leaf

    shared = nested({name: of_trunk(name, leaf) for name, leaf in by_path(params.shared).items()})
    fresh = jax.jit(lambda key: after.actor.init(key).agents)(key) if "fresh" in sources else {}
    agents = {}
    for layer, parts in params.agents.get("agent", {}).items():
        parts = {part: np.asarray(leaf) for part, leaf in parts.items()}
        rows = [
            jax.tree.map(lambda leaf, j=j: leaf[j], fresh["agent"][layer])
            if source == "fresh"
            else _mean([{part: leaf[i] for part, leaf in parts.items()} for i in members[j]])
            for j, source in enumerate(sources)
        ]
        agents[layer] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    resized = PolicyParams(shared, {"agent": agents} if agents else {})
    require_shapes(f"{after.env.spec.name} needs a team that differs in more than its size", resized, shapes_of(after))
    return resized


def _mean(owned: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What agents own in one layer, averaged: products of factors as a whole, then of rank r again (Eckart, Young)."""
    if len(owned) == 1:
        return owned[0]
    if "left" not in owned[0]:
        return {part: np.mean([own[part] for own in owned], axis=0) for part in owned[0]}
    rank = owned[0]["left"].shape[1]
    u, size, v = np.linalg.svd(np.mean([own["left"] @ own["right"] for own in owned], axis=0), full_matrices=False)
    root = np.sqrt(size[:rank])
    return {"left": u[:, :rank] * root, "right": root[:, None] * v[:rank]}


def _check_sources(before: System, after: System, sources: Sequence[int | str], key: PRNGKeyArray | None) -> None:
    n_old, n_new = before.env.spec.n_agents, after.env.spec.n_agents
    scales = [tuple(level.scale for level in system.config.adapter_levels) for system in (before, after)]
    require(scales[0] == scales[1], f"the teams scale their adapters (alpha / rank) by {scales[0]} and {scales[1]}")
    old, new = before.actor.sharing, after.actor.sharing
    require(len(sources) == n_new, f"sources must name one for each of the {n_new} agents, got {len(sources)}")
    for j, source in enumerate(sources):
        good = 0 <= source < n_old if isinstance(source, int) else source in ("average", "fresh")
        require(good, f"a source must be one of the {n_old} agents, from 0, or average or fresh; got {source!r}")
        require(
            old.n_trunks == new.n_trunks and (not isinstance(source, int) or old.groups[source] == new.groups[j]),
            f"agent {j} stands on another trunk than its source {source}; only adapters change hands, trunks do not",
        )
    require("fresh" not in sources or key is not None, "an agent that starts afresh needs a key")
