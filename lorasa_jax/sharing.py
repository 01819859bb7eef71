"""Sharing schemes, as data: which trunk an agent stands on, what it owns, whether it sees its id."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax

from lorasa_jax.adapters import NOTHING, Adapter, low_rank, own_layers
from lorasa_jax.config import Config, ConfigError, require
from lorasa_jax.types import PyTree


@dataclass(frozen=True)
class Sharing:
    """Who shares which parameters.

    Attributes:
        groups: the trunk of each agent, 0 <= groups[i] < G, every trunk with a tenant.
        adapter: what each agent owns besides.
        agent_id: a one-hot agent id is appended to what the agent sees.
        two_phase: the trunks are trained alone first; then they freeze, and only what
            the agents own is trained. Where they own nothing, the trunks go on with a fresh optimiser.
        clustered: `groups` are those of the configuration, given or found before training.
    """

    groups: tuple[int, ...]
    adapter: Adapter
    agent_id: bool
    two_phase: bool = False
    clustered: bool = False

    @property
    def n_agents(self) -> int:
        """N."""
        return len(self.groups)

    @property
    def n_trunks(self) -> int:
        """G."""
        return max(self.groups) + 1


def one_trunk(n_agents: int, agent_id: bool) -> Sharing:
    """Returns the scheme in which all agents use the same network."""
    return Sharing((0,) * n_agents, NOTHING, agent_id)


def own_trunks(n_agents: int, agent_id: bool = False) -> Sharing:
    """Returns the scheme in which every agent has a network of its own."""
    return Sharing(tuple(range(n_agents)), NOTHING, agent_id)


def cluster_trunks(n_agents: int, config: Config) -> Sharing:
    """Returns a trunk for every cluster of agents (SePS, arXiv 2102.07475); raises `ConfigError` without clusters."""
    groups = config.groups
    if groups is None:
        raise ConfigError(
            f"{config.sharing} needs groups: give --groups, or take lorasa_jax.with_groups(config, env), "
            "which finds them; lorasa_jax.run does so by itself"
        )
    require(
        len(groups) == n_agents,
        f"groups must name a cluster for each of the {n_agents} agents, got {len(groups)}: {groups}",
    )
    return Sharing(groups, NOTHING, agent_id=False, clustered=True)


def adapted(trunks: Sharing, config: Config) -> Sharing:
    """Returns the same trunks, trained first and then frozen, with low-rank adapters for every agent."""
    # Where there is a deviation of the actions, it is always the agent's own.
    adapter = low_rank(config.rank, config.adapter_scale, (*config.adapted_layers, "log_std"))
    return replace(trunks, adapter=adapter, two_phase=True)


def own_heads(n_agents: int) -> Sharing:
    """Returns one trunk, and on it a last layer for every agent; both are trained from the start."""
    return replace(one_trunk(n_agents, agent_id=False), adapter=own_layers(("head", "log_std")))


SCHEMES: dict[str, Callable[[int, Config], Sharing]] = {
    "ps": lambda n, config: one_trunk(n, agent_id=False),
    "ps_id": lambda n, config: one_trunk(n, agent_id=True),
    # What adapters have to beat: the same trunk trained on, with the fresh optimiser that adapters have.
    "ps_restart": lambda n, config: replace(one_trunk(n, agent_id=True), two_phase=True),
    "nps": lambda n, config: own_trunks(n),
    "mtl": lambda n, config: own_heads(n),
    "lorasa": lambda n, config: adapted(one_trunk(n, agent_id=True), config),  # arXiv 2502.05573
    "seps": cluster_trunks,
    "seps_lora": lambda n, config: adapted(cluster_trunks(n, config), config),
}
"""Sharing schemes by name: functions of the number of agents and the configuration."""


def is_clustered(config: Config) -> bool:
    """Says whether the scheme's trunks follow `config.groups`."""
    return SCHEMES[config.sharing](1, replace(config, groups=(0,))).clustered


def make_sharing(n_agents: int, config: Config) -> Sharing:
    """Returns the scheme that the configuration names.

    Raises:
        ConfigError: it needs groups and has none, or they do not fit; or it has no use for them.
    """
    require(
        config.groups is None or is_clustered(config),
        f"groups have no meaning under sharing {config.sharing}; leave them out, or choose seps or seps_lora",
    )
    return SCHEMES[config.sharing](n_agents, config)


def trunks_only(sharing: Sharing) -> Sharing:
    """Returns the scheme of the first phase: the same trunks, nothing on top."""
    return replace(sharing, adapter=NOTHING, two_phase=False)


def merged(sharing: Sharing) -> Sharing:
    """Returns the scheme of the merged weights: a network per agent where agents own something."""
    if sharing.adapter is NOTHING:
        return sharing
    return replace(trunks_only(sharing), groups=tuple(range(sharing.n_agents)))


def count(tree: PyTree) -> int:
    """Returns the number of scalars in a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def critic_sharing(scope: str, n_agents: int, separate: bool = False) -> Sharing:
    """Returns the scheme of the critic: one network, estimating one value or one per agent; or a network per agent."""
    if scope == "team":
        return one_trunk(1, agent_id=False)
    return own_trunks(n_agents) if separate else one_trunk(n_agents, agent_id=True)
