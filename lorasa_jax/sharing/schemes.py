"""Sharing schemes, as data: which trunk an agent stands on, what it or its role owns, whether it sees its id."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax

from lorasa_jax.config import Config, ConfigError, require
from lorasa_jax.core.types import PolicyParams, PyTree
from lorasa_jax.envs.base import EnvSpec
from lorasa_jax.sharing.variants import NOTHING, Adapter, Layers, added_up, generated, low_rank, masked, own_layers


@dataclass(frozen=True)
class Level:
    """What is owned besides the trunks, and by whom.

    Attributes:
        key: what makes an owner: `agent`, or `unit_type`, the agent's role.
        adapter: what each owner has; where owners change it is applied to those of all owners.
        n_owners: K.
        owner: the owner of each agent, 0 <= owner[i] < K; None: it changes, and every time step says it.
    """

    key: str
    adapter: Adapter
    n_owners: int
    owner: tuple[int, ...] | None


@dataclass(frozen=True)
class Sharing:
    """Who shares which parameters.

    Attributes:
        groups: the trunk of each agent, 0 <= groups[i] < G, every trunk with a tenant.
        levels: what is owned besides; the corrections of several levels add up.
        agent_id: a one-hot agent id is appended to what the agent sees.
        id_folded: every agent has a network to itself, in whose first layer the weights of its id are put together
            (`lorasa_jax.core.ids`).
        two_phase: the trunks are trained alone first; then they freeze, and only what
            the agents own is trained. Where they own nothing, the trunks go on with a fresh optimiser.
        clustered: `groups` are those of the configuration, given or found before training.
    """

    groups: tuple[int, ...]
    levels: tuple[Level, ...]
    agent_id: bool
    id_folded: bool = False
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

    @property
    def adapter(self) -> Adapter:
        """What one agent uses besides its trunk, of all levels together."""
        if len(self.levels) > 1:
            return added_up({level.key: level.adapter for level in self.levels})
        return self.levels[0].adapter if self.levels else NOTHING

    @property
    def changing(self) -> bool:
        """Owners change in the course of play."""
        return any(level.owner is None for level in self.levels)

    @property
    def across(self) -> bool:
        """Agents on different trunks may have something in common."""
        return self.n_trunks > 1 and any(level.owner != tuple(range(self.n_agents)) for level in self.levels)

    @property
    def finest(self) -> tuple[tuple[int, ...] | None, int]:
        """The owner of each agent, and how many owners there are: of the last level, or the trunks without levels."""
        return (self.levels[-1].owner, self.levels[-1].n_owners) if self.levels else (self.groups, self.n_trunks)

    @property
    def stacks(self) -> dict[str, Level]:
        """The levels by the name of their stack of slots: `agents` where there is but one, else their keys."""
        return {level.key if len(self.levels) > 1 else "agents": level for level in self.levels}

    def split(self, params: PolicyParams) -> dict[str, PyTree]:
        """Returns the stacks that parameters consist of, every leaf [slots, ...]: `shared`, and one for each level."""
        own = params.agents if len(self.levels) > 1 else {"agents": params.agents}
        return {"shared": params.shared, **own}

    def join(self, params: PolicyParams, stacks: dict[str, PyTree]) -> PolicyParams:
        """Returns the parameters with the stacks that are given in the place of theirs."""
        whole = {**self.split(params), **stacks}
        shared = whole.pop("shared")
        return PolicyParams(shared, whole if len(self.levels) > 1 else whole["agents"])


def one_trunk(n_agents: int, agent_id: bool) -> Sharing:
    """Returns the scheme in which all agents use the same network."""
    return Sharing((0,) * n_agents, (), agent_id)


def own_trunks(n_agents: int, agent_id: bool = False) -> Sharing:
    """Returns the scheme in which every agent has a network of its own."""
    return Sharing(tuple(range(n_agents)), (), agent_id)


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
    return Sharing(groups, (), agent_id=False, clustered=True)


def by_agent(n_agents: int, adapter: Adapter, key: str = "agent") -> Level:
    """Returns the level of what every agent has for itself."""
    return Level(key, adapter, n_agents, tuple(range(n_agents)))


def adapted(trunks: Sharing, config: Config) -> Sharing:
    """Returns the same trunks, trained first and then frozen, with low-rank adapters at every level.

    Who has which role is said by `make_sharing`.
    """
    # Where there is a deviation of the actions, it is always the owner's own.
    where = Layers((*config.adapted_layers, "log_std"))
    levels = [by_agent(trunks.n_agents, low_rank(r, scale, where), key) for key, r, scale in config.adapter_levels]
    return replace(trunks, levels=tuple(levels), two_phase=True)


def one_phase(n_agents: int, adapter: Adapter) -> Sharing:
    """Returns one trunk, and what every agent owns besides; both are trained from the start."""
    return replace(one_trunk(n_agents, agent_id=False), levels=(by_agent(n_agents, adapter),))


SCHEMES: dict[str, Callable[[int, Config], Sharing]] = {
    "ps": lambda n, config: one_trunk(n, agent_id=False),
    "ps_id": lambda n, config: one_trunk(n, agent_id=True),
    # What adapters have to beat: the same trunk trained on, with the fresh optimiser that adapters have.
    "ps_restart": lambda n, config: replace(one_trunk(n, agent_id=True), two_phase=True),
    "nps": lambda n, config: own_trunks(n),
    "mtl": lambda n, config: one_phase(n, own_layers(("head", "log_std"))),
    "hyper": lambda n, config: one_phase(n, generated(config.rank, Layers(config.adapted_layers))),
    "mask": lambda n, config: one_phase(n, masked(Layers(config.adapted_layers))),
    "lorasa": lambda n, config: adapted(one_trunk(n, agent_id=True), config),  # arXiv 2502.05573
    "seps": cluster_trunks,
    "seps_lora": lambda n, config: adapted(cluster_trunks(n, config), config),
}
"""Sharing schemes by name: functions of the number of agents and the configuration."""


def is_clustered(config: Config) -> bool:
    """Says whether the scheme's trunks follow `config.groups`."""
    return SCHEMES[config.sharing](1, replace(config, groups=(0,))).clustered


def make_sharing(spec: EnvSpec, config: Config) -> Sharing:
    """Returns the scheme that the configuration names, for the agents of an environment.

    Raises:
        ConfigError: it needs groups and has none, or they do not fit; or it has no use for them. It needs roles
            and there are none, or they change and agents move one by one.
    """
    require(
        config.groups is None or is_clustered(config),
        f"groups have no meaning under sharing {config.sharing}; leave them out, or choose seps or seps_lora",
    )
    sharing = SCHEMES[config.sharing](spec.n_agents, config)
    sharing = replace(sharing, levels=tuple(_with_owners(level, spec) for level in sharing.levels))
    require(
        config.algo == "mappo" or not sharing.changing,
        f"in {spec.name} roles change, and with them who shares an adapter, so agents cannot move one by one; "
        "use algo mappo, or adapter-key agent",
    )
    return sharing


def _with_owners(level: Level, spec: EnvSpec) -> Level:
    if level.key == "agent":
        return level
    if spec.roles is not None:
        require(
            len(spec.roles) == spec.n_agents and set(spec.roles) == set(range(max(spec.roles) + 1)),
            f"EnvSpec.roles must number the roles 0, 1, ... without a gap, one number per agent; got {spec.roles}",
        )
        return replace(level, n_owners=max(spec.roles) + 1, owner=spec.roles)
    require(
        spec.n_roles > 0,
        f"adapter-key {level.key} needs agents with roles, and those of {spec.name} have none; in smax they do, and in "
        "the toy games two_kinds and drawn_kinds; or use adapter-key agent",
    )
    adapter = level.adapter._replace(factored=level.adapter.among)
    return replace(level, adapter=adapter, n_owners=spec.n_roles, owner=None)


def trunks_only(sharing: Sharing) -> Sharing:
    """Returns the scheme of the first phase: the same trunks, nothing on top."""
    return replace(sharing, levels=(), two_phase=False)


def merged(sharing: Sharing) -> Sharing:
    """Returns the scheme of the weights that agents play with: a network per agent where agents own something.

    Where owners change no agent has weights to call its own, and the scheme stays as it is.
    """
    if not sharing.levels or sharing.changing:
        return sharing
    return each_its_own(sharing)


def each_its_own(sharing: Sharing) -> Sharing:
    """Returns the scheme of a network per agent, with the weights of its id put together where it has one."""
    return replace(trunks_only(sharing), groups=tuple(range(sharing.n_agents)), id_folded=sharing.agent_id)


def count(tree: PyTree) -> int:
    """Returns the number of scalars in a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def critic_sharing(scope: str, n_agents: int, separate: bool = False) -> Sharing:
    """Returns the scheme of the critic: one network, estimating one value or one per agent; or a network per agent."""
    if scope == "team":
        return one_trunk(1, agent_id=False)
    return own_trunks(n_agents) if separate else one_trunk(n_agents, agent_id=True)
