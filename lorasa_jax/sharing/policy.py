"""From one agent's network to a team's policy: the map over agents lives here, and only here.

The critic is a `Policy` too: its outputs are values, and its agents are those for whom a
value is estimated (a single one for a team critic).
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

from lorasa_jax.checks import require
from lorasa_jax.core import ids
from lorasa_jax.core.networks import Network
from lorasa_jax.core.own_network import OwnNetwork
from lorasa_jax.core.types import PolicyParams, PyTree
from lorasa_jax.sharing.any_tree import on_any_tree
from lorasa_jax.sharing.schemes import Level, Sharing, split
from lorasa_jax.sharing.variants import multiplied_out, side_by_side


class Policy(NamedTuple):
    """A team of networks under a sharing scheme.

    Attributes:
        sharing: the scheme.
        init: `init(key) -> PolicyParams`.
        graft: `graft(key, params) -> PolicyParams`: the same trunks with what the agents own
            started afresh, so that every agent's network equals its trunk.
        whole: `whole(params) -> own`: what every agent uses at each level, [N, ...], with a row for every id in the
            first layer of trunks that have them; of corrections that it owns alone those of other ids are zeros.
        merge: `merge(params) -> PolicyParams`: each agent's full weights; where owners change, what it was given.
        to_play: the same for a policy of the same network under `sharing.each_its_own(scheme)`, which plays as this
            one: what depends on an agent's id is put together, so that no agent's weights have a row for every id.
        initial_carry: `initial_carry(n_envs) -> [E, N, H]` of zeros.
        unroll: `unroll(params, carry [E, N, H], obs [T, E, N, D], first [T, E], block=None, owner=None)
            -> (carries [T, E, N, H] after each step, outputs [T, E, N, O])`. With `block`
            (indices, [M]) the agent axes of the inputs and outputs are the block's. `first` may
            be [T, E, M], where every agent's environments are in an order of their own. Where owners
            change, `owner` [T, E, N] names them.
    """

    sharing: Sharing
    init: Callable[[PRNGKeyArray], PolicyParams]
    graft: Callable[[PRNGKeyArray, PolicyParams], PolicyParams]
    whole: Callable[[PolicyParams], PyTree]
    merge: Callable[[PolicyParams], PolicyParams]
    to_play: Callable[[PolicyParams], PolicyParams]
    initial_carry: Callable[[int], Array]
    unroll: Callable[..., tuple[Array, Array]]


def make_policy(
    sharing: Sharing, network: Network | OwnNetwork, obs_dim: int, obs_widths: tuple[int, ...] | None = None
) -> Policy:
    """Returns the policy of a team whose every agent sees `obs_dim` numbers, its id apart.

    Args:
        sharing: the scheme.
        network: of one agent.
        obs_dim: D.
        obs_widths: the leading columns that mean something to each agent; None: all.

    Raises:
        ConfigError: the network would normalise all that an agent sees to a constant, or, where agents own something,
            a network of one's own does not use all of it.
    """
    n_agents = sharing.n_agents
    theirs: OwnNetwork | None = None
    if isinstance(network, OwnNetwork):
        theirs, sharing = _fitted(network, sharing, obs_dim)
    # The built-in network looks ids up; a network of one's own sees them, or is told the agent's index.
    n_ids = n_agents if sharing.agent_id and not theirs else 0
    first_layer = "" if theirs else network.config.layer_names[0]
    alone = {name: n_ids > 0 and level.owner == tuple(range(n_agents)) for name, level in sharing.stacks.items()}
    width = obs_dim + n_ids
    valid = None if obs_widths is None else jnp.arange(obs_dim) < jnp.array(obs_widths)[:, None]
    require(
        theirs is not None or not network.config.input_norm or n_ids > 0 or min(obs_widths or (obs_dim,)) > 1,
        "an input of one number becomes a constant when it is normalised, so the network would see nothing; set "
        "actor.input_norm and critic.input_norm to False, or let agents see more",
    )

    def init_trunk(key: PRNGKeyArray) -> dict:
        if theirs is not None:
            return theirs.init(key)
        carry, x = jnp.zeros((1, network.carry_width)), jnp.zeros((1, 1, width))
        fresh: Any = network.init
        return fresh(key, carry, x, jnp.zeros((1, 1), bool))["params"]

    def init(key: PRNGKeyArray) -> PolicyParams:
        trunk_key, own_key = jax.random.split(key)
        shared = jax.vmap(init_trunk)(jax.random.split(trunk_key, sharing.n_trunks))
        if sharing.id_folded and n_ids:
            shared = jax.vmap(put_together)(shared, jnp.arange(n_agents))
        params = graft(own_key, PolicyParams(shared, {}))
        return params._replace(shared=sharing.adapter.rest(params.shared))

    def graft(key: PRNGKeyArray, params: PolicyParams) -> PolicyParams:
        def start(key: PRNGKeyArray, name: str, level: Level) -> PyTree:
            # An owner starts as its first agent would; where owners change, the trunk gives but the shapes.
            homes = [0] * level.n_owners
            if level.owner is not None:
                homes = [sharing.groups[level.owner.index(k)] for k in range(level.n_owners)]
            trunks = jax.tree.map(lambda leaf: leaf[jnp.array(homes)], params.shared)
            if alone[name]:
                trunks = jax.vmap(partial(ids.narrow, layer=first_layer, n_ids=n_ids))(trunks)
            return jax.vmap(level.adapter.init)(jax.random.split(key, level.n_owners), trunks)

        stacks = sharing.stacks
        keys = jax.random.split(key, len(stacks)) if len(stacks) > 1 else [key] * len(stacks)
        own = {name: start(k, name, level) for k, (name, level) in zip(keys, stacks.items(), strict=True)}
        return PolicyParams(params.shared, own)

    def rows(stack: PyTree, home: tuple[int, ...], block: Array | None) -> PyTree:
        """Each member's row of a stack; nothing is copied where everyone has the row of its own number."""
        if block is None and home == tuple(range(n_agents)):
            return stack
        members = jnp.array(home) if block is None else jnp.array(home)[block]
        return jax.tree.map(lambda leaf: leaf[members], stack)

    def own_of(params: PolicyParams, block: Array | None) -> tuple[PyTree, PyTree]:
        """What each agent owns, alone or with others, and its mapped axes; where owners change, what all own."""
        own, axes = {}, {}
        for name, level in sharing.stacks.items():
            stack = params.agents[name]
            own[name] = stack if level.owner is None else rows(stack, level.owner, block)
            axes[name] = None if level.owner is None else 0
        return own, axes

    def trunks_of(shared: dict, block: Array | None) -> tuple[dict, int | None]:
        """The trunk of each agent, with its mapped axis; a single trunk is not copied."""
        if sharing.n_trunks == 1:
            return jax.tree.map(lambda leaf: leaf[0], shared), None
        return rows(shared, sharing.groups, block), 0

    def by_stack(own: PyTree, function: Callable[[dict], dict]) -> PyTree:
        """What an agent uses, with the function of it at every level; mapped over owners where these change."""
        return {
            name: function(own[name]) if level.owner is not None else jax.vmap(function)(own[name])
            for name, level in sharing.stacks.items()
        }

    def whole(params: PolicyParams) -> PyTree:
        own, _ = own_of(params, None)
        widen = jax.vmap(partial(ids.widen, layer=first_layer, n_ids=n_ids))
        return {name: widen(own[name], agent=jnp.arange(n_agents)) if alone[name] else own[name] for name in own}

    def merge(params: PolicyParams) -> PolicyParams:
        if not params.agents or sharing.changing:
            return params
        trunks, axis = trunks_of(params.shared, None)
        full = jax.vmap(sharing.adapter.merge, in_axes=(axis, 0))(trunks, whole(params))
        return PolicyParams(full, {})

    def put_together(trunk: dict, agent: Array) -> dict:
        trunk, row = ids.looked_up(trunk, first_layer, n_ids, agent)
        kernel = trunk[first_layer]["kernel"].at[-1].set(row)
        return {**trunk, first_layer: {**trunk[first_layer], "kernel": kernel}}

    def factored(trunk: dict, own: PyTree, agent: Array) -> dict[str, Any]:
        """An agent's network, for inputs without its id."""
        if not n_ids or sharing.id_folded:
            return sharing.adapter.factored(trunk, own)
        stacks = by_stack(own, partial(ids.looked_up_own, trunk=trunk, layer=first_layer, n_ids=n_ids, agent=agent))
        trunk, row = ids.looked_up(trunk, first_layer, n_ids, agent)
        variables = sharing.adapter.factored(trunk, stacks)
        own_row = {first_layer: ids.beside(row, len(trunk[first_layer]["kernel"]))}
        return {**variables, "delta": side_by_side(variables.get("delta", {}), own_row)}

    def to_play(params: PolicyParams) -> PolicyParams:
        if sharing.changing:
            return params
        trunks, axis = trunks_of(params.shared, None)
        own, own_axes = own_of(params, None)

        def one_agent(trunk: dict, own: dict, agent: Array) -> dict:
            return multiplied_out(factored(trunk, own, agent))

        return PolicyParams(jax.vmap(one_agent, in_axes=(axis, own_axes, 0))(trunks, own, jnp.arange(n_agents)), {})

    def unroll(
        params: PolicyParams,
        carry: Float[Array, "E M H"],
        obs: Float[Array, "T E M D"],
        first: Bool[Array, "T E"] | Bool[Array, "T E M"],
        block: Int[Array, " M"] | None = None,
        owner: Int[Array, "T E M"] | None = None,
    ) -> tuple[Float[Array, "T E M H"], Float[Array, "T E M O"]]:
        trunks, axis = trunks_of(params.shared, block)
        own, own_axes = own_of(params, block)
        owners = None
        if sharing.changing:
            n_owners = next(level.n_owners for level in sharing.levels if level.owner is None)
            owners = jax.nn.one_hot(owner, n_owners)

        def one_agent(trunk: dict, own: dict, agent: Array, *inputs: Any) -> tuple[Array, Array]:
            variables = factored(trunk, own, agent)
            if theirs is not None:
                carry, obs, first, *_ = inputs
                return theirs.apply(variables["params"], carry, _with_id(theirs, obs, agent), first, agent)
            apply: Any = network.apply
            return apply(variables, *inputs, n_ids=n_ids)

        means = valid if valid is None or block is None else valid[block]
        members = jnp.arange(n_agents) if block is None else block
        axes = (axis, own_axes, 0, 1, 2, 2 if first.ndim == 3 else None, 0, 2)
        return jax.vmap(one_agent, in_axes=axes, out_axes=2)(
            trunks, own, members, carry, obs, first, means, owners
        )  # fmt: skip

    policy = Policy(
        sharing=sharing,
        init=init,
        graft=graft,
        whole=whole,
        merge=merge,
        to_play=to_play,
        initial_carry=lambda n_envs: jnp.zeros((n_envs, n_agents, (theirs or network).carry_width)),
        unroll=unroll,
    )
    if theirs is not None:
        _require_all_used(policy, obs_dim, theirs.name)
    return policy


def _fitted(network: OwnNetwork, sharing: Sharing, obs_dim: int) -> tuple[OwnNetwork, Sharing]:
    """A network of one's own with the width of what it sees, and the scheme with adapters for its tree."""
    network = replace(network, width=obs_dim)
    require(
        not sharing.changing,
        f"where roles change, adapters of roles need the built-in network, not {network.name}; use other scopes",
    )
    sees_id = sharing.agent_id and not network.takes_agent
    network = replace(network, n_ids=sharing.n_agents if sees_id else 0)
    require(
        network.config.recurrent or not network.carry_width,
        f"the network {network.name} is recurrent (carry_width {network.carry_width}); set "
        f"{network.config.prefix}recurrent to True",
    )
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    levels = (replace(level, adapter=on_any_tree(level.adapter, shapes)) for level in sharing.levels)
    return network, replace(sharing, levels=tuple(levels))


def _with_id(network: OwnNetwork, obs: Float[Array, "T E D"], agent: Array) -> Float[Array, "T E D2"]:
    """What a network of one's own sees: the observation, and behind it the agent's one-hot id where it needs one."""
    if not network.n_ids:
        return obs
    one_hot = jax.nn.one_hot(agent, network.n_ids)
    return jnp.concatenate([obs, jnp.broadcast_to(one_hot, (*obs.shape[:-1], network.n_ids))], axis=-1)


def _require_all_used(policy: Policy, obs_dim: int, name: str) -> None:
    """Raises `ConfigError` where the outputs of a team do not depend on something that its agents own."""
    params = jax.eval_shape(policy.init, jax.random.key(0))
    stacks, layers = split(params), ", ".join(params.shared)
    for level in policy.sharing.stacks:
        empty = not jax.tree.leaves(stacks[level])
        require(not empty, f"the adapters fit no layer of the network {name}; its layers are {layers}")
    n, zeros = policy.sharing.n_agents, jnp.zeros
    owner = zeros((1, 1, n), int) if policy.sharing.changing else None
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
