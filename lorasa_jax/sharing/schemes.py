"""Sharing schemes as data: the trunk of each agent, what the agent or its role owns, and whether it sees its id."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax

from lorasa_jax.config import Config, ConfigError, require
from lorasa_jax.core.types import PolicyParams, PyTree
from lorasa_jax.envs.base import EnvSpec
from lorasa_jax.levels import DEFAULT, AdapterLevel, Factor
from lorasa_jax.registries import register
from lorasa_jax.sharing import variants
from lorasa_jax.sharing.variants import Adapter, Layers, generated, low_rank, masked, own_layers

C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Level:
    """Parameters that are owned in addition to the trunks, and their owners.

    Attributes:
        scope: the kind of owner: `team`, all agents together; `unit_type`, the agent's role; or `agent`.
        adapter: the parameters of each owner.
        n_owners: K.
        owner: the owner of each agent, 0 <= owner[i] < K; None: it changes, and every time step names it.
        factor: learning rate of the level, relative to the phase; `make_sharing` replaces auto and None by a number.
        paced: this is only the first factor, which then follows play (`lorasa_jax.learning.pacing`).
    """

    scope: str
    adapter: Adapter
    n_owners: int
    owner: tuple[int, ...] | None
    factor: Factor | None = 1.0
    paced: bool = False


@dataclass(frozen=True)
class Sharing:
    """A sharing scheme.

    Attributes:
        groups: the trunk of each agent, 0 <= groups[i] < G. Every trunk serves at least one agent.
        levels: parameters owned in addition, from the coarsest scope to the finest. Their corrections add up.
        agent_id: networks see agents' ids.
        two_phase: phase 1 trains only the trunks, and adapters start at the switch. Without adapters, the switch only
            resets the trunks' optimiser.
        frozen: trunks are not trained together with adapters.
        early: if each agent receives its own reward, or with a switch at step 0, there is a single phase, and adapters
            are trained from the start. `make_sharing` decides, and then sets `two_phase`.
        clustered: `groups` come from the configuration, given or found before training.
        leveled: `levels` come from the configuration, with low-rank adapters.
    """

    groups: tuple[int, ...]
    levels: tuple[Level, ...]
    agent_id: bool
    two_phase: bool = False
    frozen: bool = False
    early: bool = False
    clustered: bool = False
    leveled: bool = False

    @property
    def n_agents(self) -> int:
        """N."""
        return len(self.groups)

    @property
    def n_trunks(self) -> int:
        """G."""
        return max(self.groups) + 1

    @property
    def adapters(self) -> dict[str, Adapter]:
        """The adapters of fixed owners, by scope."""
        return {level.scope: level.adapter for level in self.levels if level.owner is not None}

    @property
    def all_adapters(self) -> dict[str, Adapter]:
        """All adapters by scope, including those of changing owners."""
        return {level.scope: level.adapter for level in self.levels}

    @property
    def n_choices(self) -> int:
        """K, the number of changing owners, of which every sample names one."""
        return next(level.n_owners for level in self.levels if level.owner is None)

    @property
    def dynamic_roles(self) -> bool:
        """Owners differ from sample to sample."""
        return any(level.owner is None for level in self.levels)

    @property
    def paced(self) -> bool:
        """Learning rates of adapters follow play."""
        return any(level.paced for level in self.levels)

    @property
    def shared_across_trunks(self) -> bool:
        """Agents on different trunks may share an owner."""
        return self.n_trunks > 1 and any(level.owner != tuple(range(self.n_agents)) for level in self.levels)

    @property
    def finest(self) -> tuple[tuple[int, ...] | None, int]:
        """The owner of each agent, and the number of owners: at the last level, or trained trunks if they are finer."""
        trunks = (self.groups, self.n_trunks)
        if not self.levels:
            return trunks
        last = self.levels[-1]
        return trunks if not self.frozen and last.n_owners < self.n_trunks else (last.owner, last.n_owners)

    @property
    def stacks(self) -> dict[str, Level]:
        """The levels by scope, which names their stack of slots."""
        return {level.scope: level for level in self.levels}


def one_trunk(n_agents: int, agent_id: bool) -> Sharing:
    """Returns the scheme in which all agents use the same network."""
    return Sharing((0,) * n_agents, (), agent_id)


def own_trunks(n_agents: int, agent_id: bool = False) -> Sharing:
    """Returns the scheme in which every agent has its own network."""
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


def split(params: PolicyParams) -> dict[str, PyTree]:
    """Returns the parameters as stacks with leaves [slots, ...]: `shared`, and one for each level."""
    return {"shared": params.shared, **params.agents}


def join(params: PolicyParams, stacks: dict[str, PyTree]) -> PolicyParams:
    """Returns the parameters with the given stacks replaced."""
    whole = split(params) | stacks
    return PolicyParams(whole.pop("shared"), whole)


def by_agent(n_agents: int, adapter: Adapter) -> Level:
    """Returns the level of parameters that every agent owns alone."""
    return Level("agent", adapter, n_agents, tuple(range(n_agents)))


def adapted(trunks: Sharing, config: Config) -> Sharing:
    """Returns a scheme that trains these trunks, then freezes them and trains the low-rank adapters of `config.levels`.

    `make_sharing` fills in the owners by role.
    """

    def level(of: AdapterLevel) -> Level:
        # Every owner always corrects the log standard deviation of continuous actions.
        adapter = low_rank(of.rank, of.scale, Layers((*of.layers, "log_std")))
        alone = replace(by_agent(trunks.n_agents, adapter), scope=of.scope, factor=of.factor)
        return replace(alone, n_owners=1, owner=(0,) * trunks.n_agents) if of.scope == "team" else alone

    levels = tuple(map(level, config.adapter_levels))
    return replace(trunks, levels=levels, two_phase=True, frozen=True, leveled=True)


def joint(sharing: Sharing) -> Sharing:
    """Returns the scheme with trunks and adapters trained together as soon as agents can learn something of their own.

    If each agent receives its own reward, this is the first step. If all agents receive the same reward, adapters wait
    for the switch.
    """
    return replace(sharing, frozen=False, early=True)


def one_phase(n_agents: int, adapter: Adapter) -> Sharing:
    """Returns one trunk and an adapter per agent, trained together from the start."""
    return replace(one_trunk(n_agents, agent_id=False), levels=(by_agent(n_agents, adapter),))


SCHEMES: dict[str, Callable[[int, Config], Sharing]] = {
    "ps": lambda n, config: one_trunk(n, agent_id=False),
    "ps_id": lambda n, config: one_trunk(n, agent_id=True),
    # The control for adapters: the same trunk is trained further, with a fresh optimiser as adapters have.
    "ps_restart": lambda n, config: replace(one_trunk(n, agent_id=True), two_phase=True),
    "nps": lambda n, config: own_trunks(n),
    "mtl": lambda n, config: one_phase(n, own_layers(("head", "log_std"))),
    "hyper": lambda n, config: one_phase(n, generated(config.rank, Layers(config.adapted_layers))),
    "mask": lambda n, config: one_phase(n, masked(Layers(config.adapted_layers))),
    "lorasa": lambda n, config: adapted(one_trunk(n, agent_id=True), config),  # arXiv 2502.05573
    "lorasa_joint": lambda n, config: joint(adapted(one_trunk(n, agent_id=True), config)),
    "seps": cluster_trunks,
    "seps_lora": lambda n, config: adapted(cluster_trunks(n, config), config),
}
"""Sharing schemes by name: functions of the number of agents and the configuration."""


def register_scheme(name: str, scheme: Callable[[int, Config], Sharing]) -> None:
    """Registers a sharing scheme for `Config(sharing=name)` and `--sharing name`.

    Examples:
        >>> from lorasa_jax import Config, register_scheme
        >>> from lorasa_jax.sharing.schemes import own_trunks
        >>> def separate_with_ids(n_agents, config):
        ...     return own_trunks(n_agents, agent_id=True)
        >>> register_scheme("nps_id", separate_with_ids)
        >>> Config(sharing="nps_id").sharing
        'nps_id'

    Args:
        name: a word that no other scheme uses.
        scheme: a function of the number of agents and the configuration.

    Raises:
        ConfigError: the name is invalid or taken, or the function does not return a `Sharing` of two agents for two.
    """

    def trial() -> None:
        found = scheme(2, Config(groups=(0, 0)))
        fits = isinstance(found, Sharing) and found.n_agents == 2 and set(found.groups) == set(range(found.n_trunks))
        said = " ".join(repr(found).split())[:80]
        require(fits, f"sharing {name!r} must return a Sharing of all agents; for two agents it returned {said}")

    register("sharing", name, scheme, SCHEMES, trial)


def outline(config: Config) -> Sharing:
    """Returns the scheme of a single agent, for what does not depend on the environment."""
    scheme = SCHEMES[config.sharing](1, replace(config, groups=(0,)))
    freeze = config.freeze_trunk
    return replace(scheme, frozen=scheme.frozen if freeze is None else freeze)


def is_clustered(config: Config) -> bool:
    """Returns whether the scheme's trunks follow `config.groups`."""
    return outline(config).clustered


def under(config: C, name: Any) -> C:
    """Returns the configuration under another scheme, without settings that do not apply to it."""
    config = replace(config, sharing=name)
    scheme = outline(config)
    changes: dict[str, Any] = {} if scheme.clustered else {"groups": None}
    if not scheme.leveled:
        changes["levels"] = DEFAULT
    freezable = scheme.leveled and scheme.two_phase and not scheme.early
    if not freezable:
        changes["freeze_trunk"] = None
    free = freezable and config.freeze_trunk is False
    return replace(config, ppo=config.ppo if free else replace(config.ppo, trunk_optimizer=None), **changes)


def make_sharing(spec: EnvSpec, config: Config) -> Sharing:
    """Returns the configured scheme for the agents of an environment.

    Raises:
        ConfigError: the scheme needs groups and there are none, or they do not fit. Groups or another setting do not
            apply to the scheme. The scheme needs roles and there are none, or roles change and agents are updated one
            by one.
    """
    require(
        config.groups is None or is_clustered(config),
        f"groups have no meaning under sharing {config.sharing}; leave them out, or choose seps or seps_lora",
    )
    sharing = _with_start(SCHEMES[config.sharing](spec.n_agents, config), config, spec)
    sharing = _with_freezing(sharing, config)
    levels = (_with_factor(_with_owners(level, spec), spec, sharing.frozen) for level in sharing.levels)
    sharing = _with_pace(replace(sharing, levels=tuple(levels)))
    require(
        config.algo == "mappo" or not sharing.dynamic_roles,
        f"in {spec.name} roles change, and with them who shares an adapter, so agents cannot move one by one; "
        "use algo mappo, or levels of scopes team and agent",
    )
    return sharing


def _with_start(sharing: Sharing, config: Config, spec: EnvSpec) -> Sharing:
    """The scheme with two phases, or with a single one if its adapters can be trained from the first step."""
    at_once = config.switch_step == 0 or (config.switch_step == "auto" and not spec.team_reward)
    return replace(sharing, two_phase=False) if sharing.early and at_once else sharing


def _with_freezing(sharing: Sharing, config: Config) -> Sharing:
    """The scheme with its trunks frozen or not; refuses settings that do not apply to it."""
    name, freeze = config.sharing, config.freeze_trunk
    choice = "choose lorasa, lorasa_joint or seps_lora"
    require(
        sharing.leveled or config.levels == DEFAULT,
        f"levels {' '.join(config.levels)} have no meaning under sharing {name}, without low-rank adapters; leave them "
        f"out, or {choice}. In Python, give sharing to Config.from_preset, because a preset's levels depend on it",
    )
    if freeze is not None and freeze != sharing.frozen:
        why = "where the trunk is never frozen" if sharing.leveled else "without low-rank adapters"
        require(
            sharing.leveled and sharing.two_phase and not sharing.early,
            f"freeze-trunk {freeze} has no meaning under sharing {name}, {why}; leave it out, or choose lorasa",
        )
        sharing = replace(sharing, frozen=freeze)
    require(
        config.ppo.trunk_optimizer is None or (sharing.leveled and sharing.two_phase and not sharing.frozen),
        f"ppo.trunk-optimizer {config.ppo.trunk_optimizer} has no meaning under sharing {name} here: no trunk goes on "
        "beside adapters after a switch; leave it out, or give freeze-trunk False under lorasa or seps_lora",
    )
    return sharing


def _with_owners(level: Level, spec: EnvSpec) -> Level:
    if level.scope != "unit_type":
        return level
    if spec.roles is not None:
        require(
            len(spec.roles) == spec.n_agents and set(spec.roles) == set(range(max(spec.roles) + 1)),
            f"EnvSpec.roles must number the roles 0, 1, ... without a gap, one number per agent; got {spec.roles}",
        )
        return replace(level, n_owners=max(spec.roles) + 1, owner=spec.roles)
    require(
        spec.n_roles > 0,
        f"levels of scope {level.scope} need agents with roles, and those of {spec.name} have none; in smax they do, "
        "and in the toy games two_kinds and drawn_kinds; or use the scopes team and agent",
    )
    return replace(level, n_owners=spec.n_roles, owner=None)


def _with_factor(level: Level, spec: EnvSpec, frozen: bool) -> Level:
    """The level with a number for its factor.

    `auto` begins at 1 / K for K owners if all agents receive the same reward. An owner has about 1 / K of the samples
    to average the noise in it. Adam's steps do not shrink with noise, so its rate is lowered by sqrt(K) (Malladi et al.
    2022). What agents have in common is learnt by the trunk, so less signal is left: a share of 1 / sqrt(K) is assumed.
    Then the factor follows play (`_with_pace`). If each agent receives its own reward, `auto` is 1.

    Without a factor, the level has 1 beside a frozen trunk, as in the paper, and otherwise `auto`.
    """
    factor = level.factor if level.factor is not None else 1.0 if frozen else "auto"
    if factor != "auto":
        return replace(level, factor=factor)
    if not spec.team_reward:
        return replace(level, factor=1.0)
    return replace(level, factor=1 / level.n_owners, paced=True)


def _with_pace(sharing: Sharing) -> Sharing:
    """The scheme without paced levels where own and pooled weights cannot be told apart.

    That is if owners change, because then no agent has weights of its own, and if all agents of a trunk share an owner.
    """

    def is_told(level: Level) -> bool:
        owners = set(zip(sharing.groups, level.owner or sharing.groups, strict=True))
        return not sharing.dynamic_roles and len(owners) > sharing.n_trunks

    levels = (replace(level, paced=level.paced and is_told(level)) for level in sharing.levels)
    return replace(sharing, levels=tuple(levels))


def trunks_only(sharing: Sharing) -> Sharing:
    """Returns the scheme of the first phase: the same trunks without adapters."""
    return replace(sharing, levels=(), two_phase=False, frozen=False, early=False, leveled=False)


def acting(sharing: Sharing) -> Sharing:
    """Returns the scheme for acting: each agent has merged copies of the weights that adapters change.

    If owners change, no agent has its own weights, and the scheme is returned unchanged.
    """
    if not sharing.levels or sharing.dynamic_roles:
        return sharing
    return replace(trunks_only(sharing), levels=(by_agent(sharing.n_agents, variants.acting(sharing.adapters)),))


def independent(sharing: Sharing) -> Sharing:
    """Returns the scheme with a network per agent; whether agents see their ids does not change."""
    return replace(trunks_only(sharing), groups=tuple(range(sharing.n_agents)), clustered=False)


def count(tree: PyTree) -> int:
    """Returns the number of scalars in a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def critic_sharing(scope: str, n_agents: int, separate: bool = False) -> Sharing:
    """Returns the critic's scheme: a network with one value, one with a value per agent, or a network per agent."""
    if scope == "team":
        return one_trunk(1, agent_id=False)
    return own_trunks(n_agents) if separate else one_trunk(n_agents, agent_id=True)
