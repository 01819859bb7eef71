"""Converts a trained team into plain networks, or into a team of another size or rank.

`lorasa_jax.adapters` exports these functions. They only take adapters of individual agents: adapters of
roles, or of several levels, are an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from lorasa_jax import deltas
from lorasa_jax.config import require
from lorasa_jax.core.own_network import OwnNetwork, make_network
from lorasa_jax.core.trees import by_path, nested
from lorasa_jax.core.types import PolicyParams, PyTree
from lorasa_jax.deltas import Spec
from lorasa_jax.learning.system import System, own_weights
from lorasa_jax.sharing import variants
from lorasa_jax.storage.adapter_files import deltas_of, require_shapes, shapes_of

_SAME = 1e-3
"""Tolerance for rounding errors, relative to the largest weight of a leaf."""

# As plain networks


def merge(params: PolicyParams, system: System) -> list[PyTree]:
    """Returns the full weights of every agent, as plain trees of flax parameters of the same network.

    Args:
        params: the parameters of one seed.
        system: the system of their phase.

    Raises:
        ConfigError: owners change during an episode, so agents have no weights of their own.
    """
    require(
        not system.actor.sharing.dynamic_roles, "adapters whose owners change cannot be merged into agents' networks"
    )
    full = own_weights(system, params).shared
    return [jax.tree.map(lambda leaf, i=i: leaf[i], full) for i in range(system.actor.sharing.n_agents)]


def unmerge(networks: Sequence[PyTree], own: PyTree, system: System) -> PolicyParams:
    """Returns the trunks and adapters of merged networks: the inverse of `merge`, up to rounding.

    Args:
        networks: one network per agent.
        own: the adapters in them.
        system: the system of their phase.

    Raises:
        ConfigError: networks of one trunk differ in more than these adapters.
    """
    sharing = system.actor.sharing
    _require_own(own, system)
    require(len(networks) == sharing.n_agents, f"there must be {sharing.n_agents} networks, got {len(networks)}")
    # With a trunk of zeros, the merged weights are what the adapter adds.
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
            require(not far, f"{name}: these networks do not consist of one trunk and these adapters")
    return PolicyParams(jax.tree.map(lambda *leaves: jnp.stack(leaves), *first), own)


def _require_own(own: PyTree, system: System) -> None:
    """Raises `ConfigError` unless agents own all parameters, as low-rank adapters or as layers."""
    names = {path.rpartition("/")[2] for path in by_path(own)}
    require(
        own.keys() <= {"agent"} and (names <= {"left", "right", "full"} or names <= {"kernel", "bias"}),
        "this works for low-rank adapters or layers that each agent has for itself alone, not for sharing "
        f"{system.config.sharing} with levels {' '.join(system.config.levels)}",
    )


# A team of another size, or of another rank


def resize(
    params: PolicyParams, before: System, after: System, sources: Sequence[int | str], key: PRNGKeyArray | None = None
) -> PolicyParams:
    """Returns the policies of a new team whose agents start from agents of another team.

    The new team may have another size, and its adapters another rank or alpha (`lorasa_jax.deltas.resize`). If the
    trunk has parameters for each id, they come from the same sources; a fresh agent gets the average. A copy of
    agent i computes the same as agent i, or nearly the same if the rank is smaller.

    Args:
        params: the parameters of one seed of the old team.
        before: the system of the old team, in the phase of the parameters.
        after: the system of the new team, in the same phase.
        sources: for each new agent, the number of an old agent to copy, or `average`: the mean of all
            old agents' corrections (its best approximation of the new rank), or `fresh`.
        key: needed for fresh agents, and if the rank grows.

    Raises:
        ConfigError: the teams differ in more than size, rank and alpha, or the sources do not fit.
    """
    _require_own(params.agents, before)
    axes = _axes_of_ids(before, after)
    _check_sources(before, after, sources, key)
    _require_numbers_kept(before, axes, sources)
    n_old = before.env.spec.n_agents

    def from_sources(leaf: Any, average: Any, axis: int = 0) -> Any:
        rows = [average if isinstance(source, str) else jnp.take(leaf, source, axis) for source in sources]
        return jnp.stack(rows, axis)

    def of_leaf(name: str, leaf: Any) -> Any:
        if name not in axes:
            return leaf
        axis = axes[name]
        kept, ids = jnp.split(leaf, [leaf.shape[axis] - n_old], axis)
        return jnp.concatenate([kept, from_sources(ids, ids.mean(axis), axis)], axis)

    parts: dict[str, Any] = {"shared": params.shared, "agents": {}}
    if params.agents:
        parts["agents"] = {"agent": jax.tree.map(from_sources, *_with_average(params, before, after, key))}
    moved = nested({name: of_leaf(name, leaf) for name, leaf in by_path(parts).items()})
    resized = PolicyParams(moved["shared"], moved.get("agents", {}))
    require_shapes(f"{after.env.spec.name} needs a team of another kind", resized, shapes_of(after))
    if "fresh" in sources:
        is_fresh = np.array([source == "fresh" for source in sources])
        started = jax.jit(lambda key: after.actor.init(key).agents)(key)
        agents = jax.tree.map(lambda leaf, new: leaf.at[is_fresh].set(new[is_fresh]), resized.agents, started)
        resized = resized._replace(agents=agents)
    return resized


def _with_average(
    params: PolicyParams, before: System, after: System, key: PRNGKeyArray | None
) -> tuple[PyTree, PyTree]:
    """The agents' own parameters, [N, ...], and their average; low-rank adapters with the rank of the new team."""
    own = params.agents["agent"]
    if any(path.endswith("/kernel") for path in by_path(own)):
        return own, jax.tree.map(lambda leaf: leaf.mean(axis=0), own)
    team = deltas_of(params, before)
    wanted = jax.eval_shape(lambda: deltas_of(after.actor.init(jax.random.key(0)), after)).spec.by_path
    both = (target for target in team.spec.targets if target.path in wanted)
    spec = Spec(tuple(replace(target, rank=(to := wanted[target.path]).rank, alpha=to.alpha) for target in both))
    nothing = {target.path: jnp.zeros(target.shape, target.dtype) for target in team.spec.targets}
    changes = {path: leaf.mean(axis=0) for path, leaf in deltas.merge_all(nothing, team)[0].items()}
    average = deltas.difference(nothing, changes, spec)
    resized = deltas.resize(team.only(spec.by_path), spec, key)
    return variants.by_layer(resized.arrays), variants.by_layer(average.arrays)


def _axes_of_ids(before: System, after: System) -> dict[str, int]:
    """For each leaf with an entry per id at the end of an axis, this axis.

    In a user's network, it is the axis whose sizes in the two teams are the widths of their observations with ids.
    """
    if not before.config.actor.module:
        return {"shared/id/embedding": 1}
    old, new = shapes_of(before), shapes_of(after)
    widths = tuple(system.env.spec.obs_dim + system.env.spec.n_agents for system in (before, after))
    grown = {name: list(zip(old[name], new[name], strict=False)) for name in old.keys() & new.keys()}
    return {name: sizes.index(widths) for name, sizes in grown.items() if widths[0] != widths[1] and widths in sizes}


def _require_numbers_kept(system: System, axes: dict[str, int], sources: Sequence[int | str]) -> None:
    """Raises `ConfigError` if an agent gets another number and only the network knows the meaning of numbers."""
    network, spec = make_network(system.config.actor, system.env.spec.n_actions, head_gain=1.0), system.env.spec
    told = isinstance(network, OwnNetwork) and (
        system.actor.sharing.agent_id or replace(network, width=spec.obs_dim).takes_agent
    )
    kept = bool(axes) or all(source == j for j, source in enumerate(sources) if isinstance(source, int))
    require(
        kept or not told,
        f"the network {system.config.actor.module} tells agents apart by their numbers, so each must keep its own: "
        "give sources 0 1 2 ..., then average or fresh",
    )


def _check_sources(before: System, after: System, sources: Sequence[int | str], key: PRNGKeyArray | None) -> None:
    n_old, n_new = before.env.spec.n_agents, after.env.spec.n_agents
    old, new = before.actor.sharing, after.actor.sharing
    require(len(sources) == n_new, f"sources must name one for each of the {n_new} agents, got {len(sources)}")
    for j, source in enumerate(sources):
        good = 0 <= source < n_old if isinstance(source, int) else source in ("average", "fresh")
        require(good, f"a source must be one of the {n_old} agents, from 0, or average or fresh; got {source!r}")
        require(
            old.n_trunks == new.n_trunks and (not isinstance(source, int) or old.groups[source] == new.groups[j]),
            f"agent {j} has another trunk than its source {source}; only adapters can be copied, trunks cannot",
        )
    require("fresh" not in sources or key is not None, "a fresh agent needs a key")
