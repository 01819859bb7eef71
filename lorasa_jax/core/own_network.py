"""Uses a network of the user instead of the built-in one.

The network is a Flax module, `linen` or `nnx`, and knows nothing of adapters. It has one of two forms:

* Feed-forward: `module(obs [L, B, D]) -> [L, B, O]`; leading axes are batch axes.
* Recurrent: `module(carry [B, H], obs [L, B, D], first [L, B]) -> (carries [L, B, H], outputs [L, B, O])`, for L steps
  of B sequences. `first` marks steps before which the state counts as zero. The module has `carry_width` H.

Either may take a keyword `agent`, the agent's index. Without this keyword, schemes with ids append a one-hot
id of the agent to the observation.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import replace as replaced
from functools import cached_property
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lorasa_jax.config import Config, ConfigError, NetworkConfig, nearest, require
from lorasa_jax.core.networks import Network
from lorasa_jax.core.trees import by_path, nested
from lorasa_jax.core.types import PyTree
from lorasa_jax.deltas.algebra import Deltas, merge, split_full
from lorasa_jax.deltas.layers import factored

C = TypeVar("C", bound=Config)
Make = Callable[[int, int, NetworkConfig], Any]
"""`make(n_in, n_out, config)` returns a linen module or, for nnx, a function of `nnx.Rngs` that returns a module."""

NETWORKS: dict[str, Make] = {}
"""Registered networks by name."""
FROM_PYTHON = "python:"
"""Prefix of the names of networks that were passed as objects."""


def register_network(name: str, make: Make) -> None:
    """Registers a network under a name for `actor.module` and `critic.module`.

    Args:
        name: any word without a colon.
        make: `make(n_in, n_out, config)` returns the module. Its arguments are the widths of input and output, and
            the network's section of the configuration.

    Raises:
        ConfigError: the name has a colon, or `make` cannot be called.
    """
    require(":" not in name and bool(name), f"the name of a network must be a word without a colon, got {name!r}")
    require(callable(make), f"network {name} must be a function of (n_in, n_out, config), got {type(make).__name__}")
    NETWORKS[name] = make


def with_networks(config: C, actor: Any = None, critic: Any = None, **changes: Any) -> C:
    """Returns the configuration of a run with your own networks.

    Args:
        config: of the run.
        actor: a `linen` module, a function of `nnx.Rngs` that returns an `nnx` module, or a function as
            `register_network` takes; None: the network of the configuration.
        critic: the same for the critic, whose output is one value.
        changes: changes of other settings. Give a `placement` that names layers of the network here.

    Raises:
        ConfigError: a network is none of these.
    """
    for part, network in (("actor", actor), ("critic", critic)):
        if network is None:
            continue
        _require_network(network, part)
        name = _name_of(network)
        NETWORKS[name] = _constant(network)
        changes[part] = replaced(changes.get(part, getattr(config, part)), module=name)
    return replaced(config, **changes)


def _require_network(network: Any, part: str) -> None:
    """Raises `ConfigError` for an object that cannot make a network."""
    is_class = isinstance(network, type) and issubclass(network, nn.Module | nnx.Module)
    name = network.__name__ if is_class else type(network).__name__
    forms = "give a linen module, a function of nnx.Rngs, or a function of (n_in, n_out, config)"
    require(not is_class, f"{part}={name} is a class; {forms} that makes one of it")
    require(not isinstance(network, nnx.Module), f"{part}={name}(...) is an nnx module that was made already; {forms}")
    require(callable(network), f"{part} must be a network, got {name}; {forms}")


def _takes_rngs(network: Any) -> bool:
    """Returns whether a function takes only `nnx.Rngs`, and not (n_in, n_out, config)."""
    try:
        inspect.signature(network).bind(1, 1, NetworkConfig())
    except TypeError:
        return True
    except ValueError:  # a function without a signature
        return False
    return False


def _name_of(network: Any) -> str:
    """The name of a passed network: that of its class or function, numbered if another network has the same name."""
    plain = FROM_PYTHON + (getattr(network, "__name__", None) or type(network).__name__)
    names = (f"{plain}{f'-{k}' if k else ''}" for k in itertools.count())
    return next(name for name in names if getattr(NETWORKS.get(name), "network", network) is network)


def _constant(network: Any) -> Make:
    def make(n_in: int, n_out: int, config: NetworkConfig) -> Any:
        made = isinstance(network, nn.Module) or _takes_rngs(network)
        return network if made else network(n_in, n_out, config)

    make.network = network  # type: ignore[attr-defined]
    return make


def find_network(name: str) -> Make:
    """Returns the factory of a network from its name: a registered name, or `package.module:factory`.

    Raises:
        ConfigError: the name is unknown, or its module cannot be imported.
    """
    if name in NETWORKS:
        return NETWORKS[name]
    require(
        not name.startswith(FROM_PYTHON),
        f"the network {name.removeprefix(FROM_PYTHON)} was handed in from Python; hand it in again, as "
        "run(config, env, actor=...), or with lorasa_jax.with_networks",
    )
    home, colon, factory = name.partition(":")
    require(bool(colon), f"unknown network {name!r}{nearest(name, NETWORKS)}; write package.module:factory")
    try:
        made = getattr(importlib.import_module(home), factory)
    except (ImportError, AttributeError, ValueError) as error:
        said = " ".join(str(error).split())
        hint = "; a module of the current folder is found with PYTHONPATH=." if isinstance(error, ImportError) else ""
        raise ConfigError(f"the network {name} cannot be imported: {said}{hint}") from None
    is_class = isinstance(made, type) and issubclass(made, nn.Module | nnx.Module)
    require(
        not is_class, f"the network {name} is a class; name a function of (n_in, n_out, config) that makes one of it"
    )
    try:
        inspect.signature(made).bind(1, 1, NetworkConfig())
    except (TypeError, ValueError):
        raise ConfigError(f"the network {name} must be a function of (n_in, n_out, config)") from None
    return _constant(made)


@dataclass(frozen=True)
class OwnNetwork:
    """A user's module with the interface of the built-in network.

    Attributes:
        make: makes the module.
        config: its section of the configuration.
        n_out: width of the output: logits, or a value.
        log_std: if given, the output is followed by the same number of parameters that do not depend on the input,
            with this initial value.
        width: width of an observation; 0: not known yet.
        n_ids: length of the one-hot id that is appended to observations; 0: no id.
    """

    make: Make
    config: NetworkConfig
    n_out: int
    log_std: float | None = None
    width: int = 0
    n_ids: int = 0

    @cached_property
    def module(self) -> Any:
        """A linen module, or a function of `nnx.Rngs`.

        Raises:
            ConfigError: the module is neither.
        """
        module = self.make(self.width + self.n_ids, self.n_out, self.config)
        require(
            isinstance(module, nn.Module) or (callable(module) and not isinstance(module, nnx.Module)),
            f"the network {self.config.module} must be a flax.linen module or a function of nnx.Rngs, got "
            f"{type(module).__name__}",
        )
        return module

    @property
    def is_linen(self) -> bool:
        """The module is one of `flax.linen`."""
        return isinstance(self.module, nn.Module)

    @cached_property
    def _abstract(self) -> Any:
        return self.module if self.is_linen else nnx.eval_shape(lambda: self.module(nnx.Rngs(0)))

    @property
    def carry_width(self) -> int:
        """Width of the recurrent state; 0 without recurrence."""
        return int(getattr(self._abstract, "carry_width", 0))

    @property
    def takes_agent(self) -> bool:
        """The module takes the agent's index."""
        return "agent" in inspect.signature(type(self._abstract).__call__).parameters

    @property
    def name(self) -> str:
        """The name in messages."""
        return type(self._abstract).__name__

    def init_params(self, key: PRNGKeyArray, width: int) -> PyTree:
        """Returns fresh parameters, for observations of the network's `width`."""
        seen = jnp.zeros((1, 1, self.width + self.n_ids))
        inputs = self._inputs(jnp.zeros((1, self.carry_width)), seen, jnp.zeros((1, 1), bool))
        if self.is_linen:
            found = self.module.init(key, *inputs, **self._told(jnp.zeros((), int)))
            params, others = dict(found.get("params", {})), sorted(set(found) - {"params"})
        else:
            parts: Any = nnx.split(self.module(nnx.Rngs(key)), nnx.Param, nnx.Not(nnx.Param))
            _, state, rest = parts
            params, others = nnx.to_pure_dict(state), sorted(nnx.to_pure_dict(rest))
        require(not others, f"the network {self.name} has variables beside its parameters ({', '.join(others)})")
        params = nested(by_path(params))
        return params if self.log_std is None else {**params, "log_std": {"kernel": jnp.full(self.n_out, self.log_std)}}

    def unroll(
        self, params: PyTree, own: Sequence[Deltas], choices: Deltas | None, agent: Int[Array, ""], *inputs: Any
    ) -> tuple[Float[Array, "L B H"], Float[Array, "L B O"]]:
        """Returns the recurrent state after every step, and the outputs, of one agent.

        Where every sample names its owner, the network is applied with the deltas of each of the K owners, and of the
        results each sample's own is taken; a recurrent one step by step, since a state goes on under the next owner.
        So it computes K times as much. How the user's code reshapes or loops over samples does not matter then.

        Args:
            params: of the network.
            own: low-rank deltas to add.
            choices: deltas of K owners, [K, ...]; each sample names its owner.
            agent: index of the agent.
            inputs: `carry`, `obs`, `first` and, with `choices`, `valid` and `owner`, one-hot rows [L, B, K].

        Raises:
            ConfigError: the module's results have wrong shapes.
        """
        carry, obs, first, *others = inputs
        if choices is None:
            return self._unroll_one(params, own, agent, carry, obs, first)

        def chosen(carry: Array, obs: Array, first: Array, owner: Array) -> tuple[Array, Array]:
            found = jax.vmap(lambda one: self._unroll_one(params, (*own, one), agent, carry, obs, first))(choices)
            carries, outputs = (jnp.einsum("lbk,klbx->lbx", owner, leaf, precision="highest") for leaf in found)
            return carries, outputs

        def step(carry: Array, now: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
            carries, outputs = chosen(carry, *(leaf[None] for leaf in now))
            return carries[0], (carries[0], outputs[0])

        owner = others[1]
        if self.carry_width:
            return jax.lax.scan(step, carry, (obs, first, owner))[1]
        return chosen(carry, obs, first, owner)

    def _unroll_one(
        self, params: PyTree, own: Sequence[Deltas], agent: Int[Array, ""], carry: Array, obs: Array, first: Array
    ) -> tuple[Array, Array]:
        """The states and outputs of one owner.

        The products of low-rank deltas are added within the layers of a linen module, as `deltas.factored` does. Those
        of an nnx module are merged.
        """
        if self.n_ids:
            one_hot = jax.nn.one_hot(agent, self.n_ids)
            obs = jnp.concatenate([obs, jnp.broadcast_to(one_hot, (*obs.shape[:-1], self.n_ids))], axis=-1)
        full, low_rank = split_full(own)
        params = merge(params, *full)
        inner = {name: leaf for name, leaf in params.items() if self.log_std is None or name != "log_std"}
        inputs, told = self._inputs(carry, obs, first), self._told(agent)
        if self.is_linen:
            below = [deltas.under("params") for deltas in low_rank]
            found = factored(self.module, *below)({"params": inner}, *inputs, **told)
        else:
            graph, state = nnx.split(self._abstract)
            nnx.replace_by_pure_dict(state, merge(inner, *low_rank))
            found = nnx.merge(graph, state)(*inputs, **told)
        carries = jnp.broadcast_to(carry, (len(obs), *carry.shape))
        if self.carry_width:
            pair = isinstance(found, tuple) and len(found) == 2
            require(pair, f"the recurrent network {self.name} must return (carries, outputs)")
            carries, outputs = found
        else:
            advice = "; a recurrent module needs an attribute carry_width" if isinstance(found, tuple) else ""
            require(
                hasattr(found, "shape"),
                f"the network {self.name} must return an array, got {type(found).__name__}{advice}",
            )
            outputs = found
        self._require_shapes(carries, outputs, first.shape)
        if self.log_std is not None:
            outputs = jnp.concatenate([outputs, jnp.broadcast_to(params["log_std"]["kernel"], outputs.shape)], axis=-1)
        return carries, outputs

    def _require_shapes(self, carries: Array, outputs: Array, steps: tuple[int, ...]) -> None:
        for what, array, width in (("states", carries, self.carry_width), ("outputs", outputs, self.n_out)):
            found, expected = list(jnp.shape(array)), [*steps, width]
            require(
                found == expected,
                f"the network {self.name} returns {what} {found} for {steps[0]} steps of {steps[1]} sequences, "
                f"expected {expected}",
            )

    def _inputs(self, carry: Array, obs: Array, first: Array) -> tuple[Array, ...]:
        return (carry, obs, first) if self.carry_width else (obs,)

    def _told(self, agent: Array) -> dict[str, Array]:
        return {"agent": agent} if self.takes_agent else {}


def make_network(
    config: NetworkConfig, n_out: int, *, head_gain: float, log_std: float | None = None
) -> Network | OwnNetwork:
    """Returns the network of a section of the configuration: the built-in one, or the named one.

    Args:
        config: the section.
        n_out: width of the output.
        head_gain: orthogonal gain of the built-in network's last layer.
        log_std: initial log standard deviation of continuous actions; None: discrete actions.

    Raises:
        ConfigError: there is no network of this name.
    """
    if config.module:
        return OwnNetwork(find_network(config.module), config, n_out, log_std)
    return Network(config, n_out, head_gain=head_gain, log_std=log_std)
