"""Makes a team's policy from one agent's network. Only this module maps over agents.

The critic is also a `Policy`. Its outputs are values, and its agents are those with a value
(a single one for a team critic).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.extend.core
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lorasa_jax import deltas
from lorasa_jax.checks import require
from lorasa_jax.core.networks import Network
from lorasa_jax.core.own_network import OwnNetwork
from lorasa_jax.core.trees import nested
from lorasa_jax.core.types import PolicyParams, PyTree
from lorasa_jax.deltas import Deltas
from lorasa_jax.sharing import variants
from lorasa_jax.sharing.schemes import Level, Sharing, split
from lorasa_jax.sharing.variants import layer_names


class Policy(NamedTuple):
    """A team of networks under a sharing scheme.

    Attributes:
        sharing: the scheme.
        init: `init(key) -> PolicyParams`.
        on_trunks: `on_trunks(key, shared) -> PolicyParams`: fresh adapters on plain trunks.
        init_adapters: `init_adapters(key, params) -> PolicyParams`: the same trunks with newly initialised adapters,
            so every agent's network equals its trunk.
        expand: `expand(params) -> own`: the adapter of every agent at each level, [N, ...].
        merge: `merge(params) -> PolicyParams`: each agent's full weights, for `schemes.independent`; if owners
            change, the unchanged argument.
        acting_params: `acting_params(params) -> PolicyParams` for a policy of the same network under
            `schemes.acting(scheme)`, which acts identically. Only leaves that adapters change have an agent axis.
        initial_carry: `initial_carry(n_envs) -> [E, N, H]` of zeros.
        unroll: `unroll(params, carry [E, N, H], obs [T, E, N, D], first [T, E], block=None, owner=None)
            -> (carries [T, E, N, H] after each step, outputs [T, E, N, O])`. With `block`
            (indices, [M]) the agent axes of inputs and outputs contain only the block. `obs` may be [T, E, 1, D]
            if all agents observe the same; what does not depend on the agent is then computed once.
            `first` may be [T, E, M] if each agent's environments have a different order. `owner` [T, E, N]
            names the owners if they change.
    """

    sharing: Sharing
    init: Callable[[PRNGKeyArray], PolicyParams]
    on_trunks: Callable[[PRNGKeyArray, PyTree], PolicyParams]
    init_adapters: Callable[[PRNGKeyArray, PolicyParams], PolicyParams]
    expand: Callable[[PolicyParams], PyTree]
    merge: Callable[[PolicyParams], PolicyParams]
    acting_params: Callable[[PolicyParams], PolicyParams]
    initial_carry: Callable[[int], Array]
    unroll: Callable[..., tuple[Array, Array]]


def make_policy(
    sharing: Sharing, network: Network | OwnNetwork, obs_dim: int, obs_widths: tuple[int, ...] | None = None
) -> Policy:
    """Returns the policy of a team in which every agent observes `obs_dim` numbers, without its id.

    Args:
        sharing: the scheme.
        network: the network of one agent.
        obs_dim: D.
        obs_widths: the number of real leading columns of each agent; None: all.

    Raises:
        ConfigError: the network would normalise an agent's observation to a constant, or a user's network does not use
            all adapters.
    """
    network = _fitted(network, sharing, obs_dim, min(obs_widths or (obs_dim,)))
    functions = _parameter_functions(sharing, network, obs_dim)
    valid = None if obs_widths is None else jnp.arange(obs_dim) < jnp.array(obs_widths)[:, None]
    team = _Members(sharing)

    def unroll(
        params: PolicyParams,
        carry: Float[Array, "E M H"],
        obs: Float[Array, "T E M D"] | Float[Array, "T E 1 D"],
        first: Bool[Array, "T E"] | Bool[Array, "T E M"],
        block: Int[Array, " M"] | None = None,
        owner: Int[Array, "T E M"] | None = None,
    ) -> tuple[Float[Array, "T E M H"], Float[Array, "T E M O"]]:
        trunks, axis = team.trunks(params.shared, block)
        own, own_axes = team.owned(params, block)
        samples = first.shape[0] * first.shape[1]
        owners = jax.nn.one_hot(owner, sharing.n_choices) if sharing.dynamic_roles else None

        def one_agent(trunk: PyTree, own: PyTree, agent: Array, *inputs: Any) -> tuple[Array, Array]:
            full, corrections = variants.apply(sharing.adapters, trunk, own)
            # In an exported policy, which is not trained, the number of environments is a symbol.
            trained = not sharing.frozen and isinstance(samples, int)
            if trained and variants.is_cheaper_merged(corrections, samples):
                full, corrections = deltas.merge(full, *corrections), ()
            return network.unroll(full, corrections, _choices(sharing, trunk, own), agent, *inputs)

        means = valid if valid is None or block is None else valid[block]
        members = jnp.arange(sharing.n_agents) if block is None else block
        apart = obs.shape[2] == len(members)
        axes = (axis, own_axes, 0, 1, 2 if apart else None, 2 if first.ndim == 3 else None, 0, 2)
        return jax.vmap(one_agent, in_axes=axes, out_axes=2)(
            trunks, own, members, carry, obs if apart else obs[:, :, 0], first, means, owners
        )  # fmt: skip

    policy = Policy(
        sharing=sharing,
        initial_carry=lambda n_envs: jnp.zeros((n_envs, sharing.n_agents, network.carry_width)),
        unroll=unroll,
        **functions,
    )
    if isinstance(network, OwnNetwork):
        _require_all_used(policy, obs_dim, network.name)
    return policy


def _parameter_functions(sharing: Sharing, network: Network | OwnNetwork, obs_dim: int) -> dict[str, Callable]:
    """The functions of a policy that make parameters."""
    team = _Members(sharing)

    def init(key: PRNGKeyArray) -> PolicyParams:
        trunk_key, own_key = jax.random.split(key)
        init_trunk = partial(network.init_params, width=obs_dim)
        return on_trunks(own_key, jax.vmap(init_trunk)(jax.random.split(trunk_key, sharing.n_trunks)))

    def on_trunks(key: PRNGKeyArray, shared: PyTree) -> PolicyParams:
        params = init_adapters(key, PolicyParams(shared, {}))
        return params._replace(shared=jax.vmap(partial(variants.init_shared, sharing.all_adapters))(shared))

    def init_adapters(key: PRNGKeyArray, params: PolicyParams) -> PolicyParams:
        def start(key: PRNGKeyArray, level: Level) -> PyTree:
            # An owner starts on the trunk of its first agent. If owners change, the trunk only gives the shapes.
            trunk_index = [0] * level.n_owners
            if level.owner is not None:
                trunk_index = [sharing.groups[level.owner.index(k)] for k in range(level.n_owners)]
            trunks = jax.tree.map(lambda leaf: leaf[jnp.array(trunk_index)], params.shared)
            return jax.vmap(level.adapter.init)(jax.random.split(key, level.n_owners), trunks)

        stacks = sharing.stacks
        keys = jax.random.split(key, len(stacks)) if len(stacks) > 1 else [key] * len(stacks)
        own = {name: start(k, level) for k, (name, level) in zip(keys, stacks.items(), strict=True)}
        return PolicyParams(params.shared, own)

    def merge(params: PolicyParams) -> PolicyParams:
        if not params.agents or sharing.dynamic_roles:
            return params
        trunks, axis = team.trunks(params.shared, None)
        own, own_axes = team.owned(params, None)
        one_agent = partial(variants.merge, sharing.adapters)
        return PolicyParams(jax.vmap(one_agent, in_axes=(axis, own_axes))(trunks, own), {})

    def acting_params(params: PolicyParams) -> PolicyParams:
        if not params.agents or sharing.dynamic_roles:
            return params
        trunks, axis = team.trunks(params.shared, None)
        own, own_axes = team.owned(params, None)

        def changed(trunk: PyTree, own: PyTree) -> PyTree:
            return nested(variants.split_merged(sharing.adapters, trunk, own)[0])

        def unchanged(trunk: PyTree) -> PyTree:
            first = jax.tree.map(lambda leaf: leaf[0], own)
            return nested(variants.split_merged(sharing.adapters, trunk, first)[1])

        return PolicyParams(
            jax.vmap(unchanged)(params.shared),
            {"agent": jax.vmap(changed, in_axes=(axis, own_axes))(trunks, own)},
        )

    return {
        "init": init,
        "on_trunks": on_trunks,
        "init_adapters": init_adapters,
        "expand": lambda params: team.owned(params, None)[0],
        "merge": merge,
        "acting_params": acting_params,
    }


class _Members(NamedTuple):
    """Selects the parameters that each agent uses."""

    sharing: Sharing

    def rows(self, stack: PyTree, home: tuple[int, ...], block: Array | None) -> PyTree:
        """Each member's row of a stack. Without a copy if agent i has row i."""
        if block is None and home == tuple(range(self.sharing.n_agents)):
            return stack
        members = jnp.array(home) if block is None else jnp.array(home)[block]
        return jax.tree.map(lambda leaf: leaf[members], stack)

    def trunks(self, shared: PyTree, block: Array | None) -> tuple[PyTree, int | None]:
        """The trunk of each agent, with its mapped axis; a single trunk is not copied."""
        if self.sharing.n_trunks == 1:
            return jax.tree.map(lambda leaf: leaf[0], shared), None
        return self.rows(shared, self.sharing.groups, block), 0

    def owned(self, params: PolicyParams, block: Array | None) -> tuple[PyTree, PyTree]:
        """The adapters of each agent, and their mapped axes; for changing owners, the adapters of all owners."""
        own, axes = {}, {}
        for name, level in self.sharing.stacks.items():
            stack = params.agents[name]
            own[name] = stack if level.owner is None else self.rows(stack, level.owner, block)
            axes[name] = None if level.owner is None else 0
        return own, axes


def _choices(sharing: Sharing, trunk: PyTree, own: PyTree) -> Deltas | None:
    """The deltas of all owners, [K, ...], at the level with changing owners."""
    for name, level in sharing.stacks.items():
        if level.owner is None:
            _, (choices,) = level.adapter.apply(trunk, own[name])
            return choices
    return None


def _fitted(network: Network | OwnNetwork, sharing: Sharing, obs_dim: int, least_width: int) -> Network | OwnNetwork:
    """The network with its input width, and with ids if agents see them."""
    n_ids = sharing.n_agents if sharing.agent_id else 0
    if isinstance(network, Network):
        require(
            not network.config.input_norm or least_width > 1,
            "normalisation turns an input of one number into a constant, so it carries no information; set "
            "actor.input_norm and critic.input_norm to False, or let agents see more",
        )
        return network.clone(n_ids=n_ids)
    network = replace(network, width=obs_dim)
    network = replace(network, n_ids=0 if network.takes_agent else n_ids)
    require(
        network.config.recurrent or not network.carry_width,
        f"the network {network.name} is recurrent (carry_width {network.carry_width}); set "
        f"{network.config.prefix}recurrent to True",
    )
    return network


def _require_all_used(policy: Policy, obs_dim: int, name: str) -> None:
    """Raises `ConfigError` if the outputs of a team do not depend on all parameters that its agents own."""
    params = jax.eval_shape(policy.init, jax.random.key(0))
    stacks, layers = split(params), ", ".join(layer_names(params.shared))
    for level in policy.sharing.stacks:
        empty = not jax.tree.leaves(stacks[level])
        require(
            not empty,
            f"the adapters fit no layer of the network {name}; its layers are {layers}. A placement names layers, or "
            "gives a pattern such as attention/*",
        )
    n, zeros = policy.sharing.n_agents, jnp.zeros
    owner = zeros((1, 1, n), int) if policy.sharing.dynamic_roles else None
    seen = policy.initial_carry(1), zeros((1, 1, n, obs_dim)), zeros((1, 1), bool)
    traced = jax.make_jaxpr(lambda params: policy.unroll(params, *seen, owner=owner)[1])(params).jaxpr
    live = {var for var in traced.outvars if not isinstance(var, jax.extend.core.Literal)}
    for equation in reversed(traced.eqns):
        if not live.isdisjoint(equation.outvars):
            live.update(var for var in equation.invars if not isinstance(var, jax.extend.core.Literal))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, _), var in zip(leaves, traced.invars, strict=True):
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        require(
            getattr(path[0], "name", "") != "agents" or var in live,
            f"the network {name} does not use {where}, which agents own; exclude that layer by placement",
        )
