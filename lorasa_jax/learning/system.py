"""Makes the parts of a learning system from a configuration: networks, schemes, optimisers, normalisation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lorasa_jax.config import Config, nearest, require
from lorasa_jax.core import distributions, losses, normalize
from lorasa_jax.core.distributions import Distribution
from lorasa_jax.core.losses import PolicyLoss, require_policy_loss
from lorasa_jax.core.normalize import InputNorm, ValueNorm
from lorasa_jax.core.optim import Optimizer, Rule, clipped_adam, require_rule, slotted
from lorasa_jax.core.own_network import make_network
from lorasa_jax.core.types import Learner, PolicyParams, PyTree
from lorasa_jax.envs.base import Env, EnvSpec
from lorasa_jax.envs.checks import checked
from lorasa_jax.learning.update_order import ALGORITHMS, Scheduler
from lorasa_jax.sharing import schemes
from lorasa_jax.sharing.policy import Policy, make_policy
from lorasa_jax.sharing.schemes import Sharing, critic_sharing, make_sharing, split, trunks_only
from lorasa_jax.sharing.variants import Layers, layer_names
from lorasa_jax.surroundings import require_switches


class Parts(TypedDict, total=False):
    """Functions that replace those of the library; missing ones or None keep the library's.

    Attributes:
        policy_loss: a loss that takes the arguments of `lorasa_jax.core.losses.policy_loss` by name, and returns a
            scalar and a dictionary of scalars to report (`PolicyLoss`).
        optimizer: a function of the learning rate that returns an optax transformation, such as `optax.adamw`
            (`lorasa_jax.core.optim.Rule`). Every trunk, every owner and every critic has its own state. This function
            replaces `ppo.max_grad_norm` and `ppo.adam_eps`; the learning rates still come from the configuration.
    """

    policy_loss: PolicyLoss | None
    optimizer: Rule | None


def names_of(parts: Parts) -> dict[str, str]:
    """Returns the names of the given functions, by part."""
    return {name: _name_of(part) for name, part in parts.items() if part is not None}


def _name_of(part: Any) -> str:
    if isinstance(part, partial):
        return _name_of(part.func)
    return getattr(part, "__qualname__", type(part).__qualname__)


def require_same_parts(then: dict[str, str], parts: Parts, whose: str) -> None:
    """Raises `ConfigError` if a resumed run has functions of other names than before."""
    now = names_of(parts)
    for name in sorted({*then, *now}):
        before, after = (f"{known[name]!r}" if name in known else "the library's own" for known in (then, now))
        require(before == after, f"{whose} has the {name} {before}, not {after}; hand in the same, as {name}=...")


class System(NamedTuple):
    """The parts of a learning system in one phase of training.

    Attributes:
        config: the run's configuration.
        env: the environment.
        actor: the policy that is trained, with adapters in factored form.
        acting: the policy that plays. Each agent has its own weights if agents own adapters. If owners
            change, it has trunks and adapters, with zero adapters in phase 1.
        weights: `weights(params) -> PolicyParams` maps parameters of `actor` to those of `acting`. Both
            phases of a scheme have the same `acting`, so they share the programs that only play.
        critic: the critic; its outputs are values in normalised units.
        critic_view: `critic_view(obs [..., N, D], state [..., S]) -> [..., V, D']`: the critic's input. The axis of
            values has length 1 if all values see the same, the state.
        actor_first: `actor_first(first [...], alive [..., N]) -> [..., N]`: steps at which the actors'
            recurrent states are reset to zero.
        critic_first: the same for the critic, [..., V].
        dist: the distribution of actions.
        value_norm: normalisation of values.
        inputs: normalisation of observations and states.
        policy_loss: the actors' loss.
        optimizer: the optimiser of actors and critic.
        train: fields of the actor's parameters that are trained.
        schedule: `schedule(key, score [N]) -> Schedule`: the agents of each stage of an update.
    """

    config: Config
    env: Env
    actor: Policy
    acting: Policy
    weights: Callable[[PolicyParams], PolicyParams]
    critic: Policy
    critic_view: Callable[[Array, Array], Array]
    actor_first: Callable[[Array, Array], Array]
    critic_first: Callable[[Array, Array], Array]
    dist: Distribution
    value_norm: ValueNorm
    inputs: InputNorm
    policy_loss: PolicyLoss
    optimizer: Optimizer
    train: tuple[str, ...]
    schedule: Scheduler


def is_two_phase(config: Config, env: Env) -> bool:
    """Returns whether the scheme has a first phase that trains only its trunks."""
    return make_sharing(env.spec, config).two_phase


def make_system(
    config: Config,
    env: Env,
    *,
    adapting: bool = False,
    policy_loss: PolicyLoss | None = None,
    optimizer: Rule | None = None,
) -> System:
    """Returns the parts for a configuration.

    Args:
        config: the run's configuration.
        env: its environment.
        adapting: the second phase of a two-phase scheme, which trains the adapters, alone or together with
            the trunks. Otherwise the trunks are trained.
        policy_loss: a user's loss (`Parts`).
        optimizer: a user's optimiser (`Parts`).

    Raises:
        ConfigError: the configuration does not fit the environment, or one of JAX's switches is not supported.
    """
    require_switches()
    spec = env.spec
    if policy_loss is not None:
        require_policy_loss(policy_loss, spec.n_agents)
    if optimizer is not None:
        require_rule(optimizer)
    scope = _critic_scope(config, spec)
    scheme = make_sharing(spec, config)
    sharing: Sharing = trunks_only(scheme) if scheme.two_phase and not adapting else scheme
    dist = distributions.categorical
    if spec.continuous:
        dist = distributions.squashed_normal(per_dim=config.ppo.ratio == "per_dim")

    def actor_first(first: Array, alive: Array) -> Array:
        opens = jnp.broadcast_to(first[..., None], alive.shape)
        return opens | ~alive if config.reset_on_death else opens

    actor, acting = (_actors(chosen, config, spec, dist) for chosen in (sharing, schemes.acting(scheme)))
    if config.actor.module and sharing.levels:
        _require_placement(actor, config)

    def weights(params: PolicyParams) -> PolicyParams:
        if scheme.levels and not params.agents:  # before the switch
            return acting.on_trunks(jax.random.key(0), params.shared)
        return actor.acting_params(params)

    return System(
        config=config,
        env=checked(env),
        actor=actor,
        acting=acting,
        weights=weights,
        **_critic(config, spec, scope),
        actor_first=actor_first,
        critic_first=lambda first, alive: first[..., None] if scope == "team" else actor_first(first, alive),
        dist=dist,
        value_norm=normalize.running() if config.ppo.value_norm else normalize.raw(),
        inputs=normalize.standardised(spec) if config.standardise else normalize.as_they_are(),
        policy_loss=policy_loss or losses.policy_loss,
        optimizer=slotted(optimizer or clipped_adam(config.ppo.max_grad_norm, config.ppo.adam_eps)),
        train=_trained_parts(sharing),
        schedule=ALGORITHMS[config.algo](spec.n_agents, config.ppo, scope == "team"),
    )


def _critic_scope(config: Config, spec: EnvSpec) -> str:
    """The critic's scope: `team`, `agent` (from the global state), or `own` (from the observation)."""
    scope: str = config.critic.scope
    if scope == "auto":
        together = spec.team_reward and config.algo == "mappo" and not config.critic.separate
        scope = "team" if together else "agent"
    require(
        spec.team_reward or scope != "team",
        f"{spec.name} rewards agents individually, but critic.scope team has one value for all; "
        "use critic.scope agent or own",
    )
    return scope


def _critic(config: Config, spec: EnvSpec, scope: str) -> dict[str, Any]:
    """The critic and its inputs."""

    def critic_view(obs: Array, state: Array) -> Array:
        return obs if scope == "own" else state[..., None, :]

    sharing = critic_sharing(scope, spec.n_agents, config.critic.separate)
    seen = (spec.obs_dim, spec.obs_widths) if scope == "own" else (spec.state_dim, None)
    critic = make_policy(sharing, make_network(config.critic, 1, head_gain=1.0), *seen)
    return {"critic": critic, "critic_view": critic_view}


def _actors(sharing: Sharing, config: Config, spec: EnvSpec, dist: Distribution) -> Policy:
    network = make_network(config.actor, spec.n_actions, head_gain=0.01, log_std=dist.log_std)
    return make_policy(sharing, network, spec.obs_dim, spec.obs_widths)


def _require_placement(actor: Policy, config: Config) -> None:
    """Refuses a placement that matches no layer of a user's network."""
    names = layer_names(jax.eval_shape(actor.init, jax.random.key(0)).shared)
    chosen = (config.adapted_layers, *(level.layers for level in config.adapter_levels))
    for pattern in dict.fromkeys(chain.from_iterable(chosen)):
        require(
            any(name in Layers((pattern,)) for name in names),
            f"placement {pattern!r} names no layer of the network {config.actor.module}{nearest(pattern, names)}; "
            f"layers: {', '.join(names)}",
        )


def alone(system: System) -> System:
    """Returns the system in which every agent has its own plain network.

    Whether agents see their ids does not change.

    Raises:
        ConfigError: owners change from sample to sample, so no agent has its own weights.
    """
    sharing = system.acting.sharing
    require(not sharing.dynamic_roles, "if the owners of adapters change, no agent has its own network")
    policy = _actors(schemes.independent(sharing), system.config, system.env.spec, system.dist)
    return system._replace(actor=policy, acting=policy, weights=lambda params: params, train=("shared",))


def own_weights(system: System, params: PolicyParams) -> PolicyParams:
    """Returns every agent's full weights, [N, ...], for the policy of `alone(system)`."""
    full, sharing = system.actor.merge(params), system.actor.sharing
    if params.agents:  # each agent has its own weights already
        return full
    trunk_index = jnp.array(sharing.groups)
    return PolicyParams(jax.tree.map(lambda leaf: leaf[trunk_index], full.shared), {})


def _trained_parts(sharing: Sharing) -> tuple[str, ...]:
    if not sharing.levels:
        return ("shared",)
    return ("agents",) if sharing.frozen else ("shared", "agents")


def trained_stacks(system: System, params: PolicyParams) -> dict[str, PyTree]:
    """Returns the stacks of slots that are trained, by name: `shared`, and the scopes of adapters."""
    stacks = split(params)
    return {name: stack for name, stack in stacks.items() if (name if name == "shared" else "agents") in system.train}


def init_optimizer(system: System, learner: Learner) -> Learner:
    """Returns the learner with a fresh optimiser for the trained parameters of its actors.

    Trunks that are trained together with adapters keep their optimiser state, unless `ppo.trunk_optimizer` is restart.
    """
    state = {name: system.optimizer.init(stack) for name, stack in trained_stacks(system, learner.actor).items()}
    goes_on = system.actor.sharing.levels and system.config.ppo.trunk_optimizer != "restart"
    if goes_on and "shared" in state and "shared" in learner.actor_opt:
        state["shared"] = learner.actor_opt["shared"]
    return learner._replace(actor_opt=state)
