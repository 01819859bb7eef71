"""Sections of a configuration: networks, the update, and families of environments."""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from lorasa_jax.checks import conform, require, require_in_range, require_positive


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of one agent's network (or of the critic's)."""

    hidden: int = 64
    """Width of every hidden layer and of the recurrent state."""
    layers: int = 3
    """Dense layers before the recurrent layer."""
    layers_after: int = 1
    """Dense layers between the recurrent layer and the head."""
    recurrent: bool = True
    """Use a GRU between the two groups of dense layers; otherwise the network is feed-forward."""
    activation: Literal["relu", "tanh"] = "relu"
    """Nonlinearity of the dense layers."""
    layer_norm: bool = True
    """Normalise after every dense layer and after the GRU."""
    input_norm: bool = True
    """Normalise the input vector."""
    gain: float = math.sqrt(2)
    """Orthogonal gain of the dense layers before the GRU."""
    gru_init: Literal["stacked", "gates"] = "stacked"
    """Orthogonal initialisation of each stacked GRU matrix as a whole, or per gate (entries 1.7 times as large)."""
    gain_after: float = math.sqrt(2)
    """Orthogonal gain of the dense layers after the GRU."""
    module: str = ""
    """A network of your own: package.module:factory, or a registered name. `factory(n_in, n_out, config)` returns a
    Flax module. Then only the setting recurrent matters here, and those that the factory reads. Empty: the built-in
    network."""

    prefix: ClassVar[str] = "actor."

    def __post_init__(self) -> None:
        conform(self, self.prefix)
        require_positive(self, self.prefix, "hidden")
        for name in ("layers", "layers_after"):
            value = getattr(self, name)
            require(value >= 0, f"{self.prefix}{name.replace('_', '-')} must be 0 or more, got {value}")
        require_in_range(self, self.prefix)
        require(
            self.recurrent or self.layers + self.layers_after > 0, "a feed-forward network needs at least one layer"
        )

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the layers that can have an adapter, from input to output."""
        return (
            *(f"fc{i + 1}" for i in range(self.layers)),
            *(("gru_in", "gru_hidden") if self.recurrent else ()),
            *(f"after{i + 1}" for i in range(self.layers_after)),
            "head",
        )


@dataclass(frozen=True)
class CriticConfig(NetworkConfig):
    """Shape of the critic's network, and scope of its values."""

    scope: Literal["auto", "team", "agent", "own"] = "auto"
    """`team`: one value per environment from the global state. `agent`: one per agent, from the global state and the
    agent's id. `own`: one per agent from its own observation (IPPO). `auto`: team if all agents are updated at once
    and receive the same reward, otherwise agent."""
    separate: bool = False
    """A critic network per agent, instead of one for all; not with scope team."""

    prefix: ClassVar[str] = "critic."

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not (self.separate and self.scope == "team"),
            "critic.separate gives every agent a critic, but critic.scope team has one value for all; use agent or own",
        )


@dataclass(frozen=True)
class PPOConfig:
    """The update."""

    epochs: int = 5
    """Passes over each rollout."""
    minibatches: int = 1
    """Minibatches (updates) per pass; each environment of an agent is in one of them."""
    chunk_length: int = 10
    """Steps of truncated backpropagation through time; 0: the whole rollout."""
    lr: float = 5e-4
    """Learning rate of the actors."""
    critic_lr: float = 5e-4
    """Learning rate of the critic."""
    adapter_lr: float | None = None
    """Learning rate of the actors from the switch on, in two-phase schemes; by default lr."""
    trunk_optimizer: Literal["carry", "restart"] | None = None
    """Adam's moments of a trunk that is not frozen at the switch. carry (default): keep them. restart: reset them to
    zero, as for adapters."""
    anneal_lr: bool = False
    """Anneal both learning rates linearly to zero over the environment steps of the run."""
    adam_eps: float = 1e-5
    """Epsilon of Adam."""
    max_grad_norm: float = 10.0
    """Maximum gradient norm of each trunk, of each owner's adapters, and of the critic."""
    clip_eps: float = 0.2
    """Clip of the probability ratio."""
    ratio: Literal["joint", "per_dim"] = "joint"
    """Continuous actions: one probability ratio for the whole action, or one per dimension."""
    value_clip: float = 0.2
    """Clip of the change in value, in normalised units."""
    huber_delta: float = 10.0
    """Error at which the value loss changes from quadratic to linear; inf: squared error."""
    value_coef: float = 1.0
    """Weight of the value loss."""
    entropy_coef: float = 0.01
    """Weight of the entropy bonus."""
    gamma: float = 0.99
    """Discount."""
    gae_lambda: float = 0.95
    """Decay of the advantage trace."""
    loop_order: Literal["agent", "epoch"] = "epoch"
    """For algorithms that update agents one by one. `agent`: each agent makes all its epochs, then the next agent.
    `epoch`: each agent makes one epoch, in a new order in every round."""
    two_stage: bool = False
    """For algorithms that update agents one by one: a critic-only pass before each pass of actor and critic."""
    advantage_norm: Literal["rollout", "minibatch"] = "rollout"
    """Normalise advantages once over the rollout, or in every minibatch."""
    mask_dead: bool = True
    """Leave actions of dead agents out of the policy loss, entropy and advantage statistics."""
    value_norm: bool = True
    """Normalise values by the running mean and standard deviation of the returns."""

    def __post_init__(self) -> None:
        conform(self, "ppo.")
        require_positive(
            self, "ppo.", "epochs", "minibatches", "lr", "critic_lr", "adam_eps", "max_grad_norm",
            "clip_eps", "value_clip", "huber_delta",
        )  # fmt: skip
        rate = self.adapter_lr
        require(rate is None or rate > 0, f"ppo.adapter-lr must be positive, got {rate}")
        for name in ("gamma", "gae_lambda"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"ppo.{name.replace('_', '-')} must lie in [0, 1], got {value}")
        for name in ("chunk_length", "entropy_coef", "value_coef"):
            value = getattr(self, name)
            require(value >= 0, f"ppo.{name.replace('_', '-')} must be 0 or more, got {value}")
        # An infinite bound means no bound.
        require_in_range(self, "ppo.", ("max_grad_norm", "clip_eps", "value_clip", "huber_delta"))


@dataclass(frozen=True)
class SmaxConfig:
    """Settings of the SMAX battles."""

    attack_mode: Literal["closest", "random"] = "closest"
    """How the scripted enemy chooses its target."""
    see_enemy_actions: bool = True
    """Show the last actions of visible enemies."""
    walls_cause_death: bool = True
    """Units that touch the border die."""
    normalise_state: bool = True
    """Scale the critic's global state to [0, 1]; false: positions and cooldowns in raw units."""

    def __post_init__(self) -> None:
        conform(self, "smax.")


@dataclass(frozen=True)
class JaxmarlConfig:
    """Settings of other environments of JaxMARL."""

    options: tuple[str, ...] = ()
    """Arguments of the game's constructor, as NAME=VALUE, such as layout=cramped_room or num_agents=5. On the command
    line, write --jaxmarl.NAME VALUE."""

    def __post_init__(self) -> None:
        conform(self, "jaxmarl.")
        for option in self.options:
            name, sign, value = option.partition("=")
            good = name.isidentifier() and bool(sign) and bool(value)
            require(good, f"jaxmarl.options must be words NAME=VALUE, such as num_agents=5; got {option!r}")

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments by name; Python literals such as numbers, booleans, None and lists are converted."""
        return {name: _value(value) for name, _, value in (option.partition("=") for option in self.options)}


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


@dataclass(frozen=True)
class MabraxConfig:
    """Settings of robots controlled by several agents (multi-agent MuJoCo on brax)."""

    backend: Literal["positional", "generalized", "spring", "mjx"] = "positional"
    """Physics backend of brax; returns of different backends cannot be compared."""
    obsk: int | None = None
    """Distance, in joints, up to which an agent sees; by default everything for humanoid, 1 for the others."""
    maps: Literal["kinematic", "upstream"] = "kinematic"
    """Observations. kinematic: from the robot's tree of joints; upstream: JaxMARL's tables, for its five tasks."""

    def __post_init__(self) -> None:
        conform(self, "mabrax.")
        require_in_range(self, "mabrax.")
        require(self.obsk is None or self.obsk >= 0, f"mabrax.obsk must be 0 or more, got {self.obsk}")
        require(
            self.obsk is None or self.maps == "kinematic",
            f"mabrax.obsk {self.obsk} has no effect with mabrax.maps upstream, whose tables are fixed; leave one out",
        )


@dataclass(frozen=True)
class MujocoConfig:
    """Settings of MuJoCo robots controlled by several agents (multi-agent MuJoCo)."""

    obsk: int | Literal["all"] | None = None
    """Distance, in joints, up to which an agent sees; all: the whole observation. By default all for humanoid, 1 for
    the others."""
    threads: int | None = None
    """Threads of the simulation on every device; by default all cores, shared by the devices."""

    def __post_init__(self) -> None:
        conform(self, "mujoco.")
        require_in_range(self, "mujoco.")
        require(
            self.obsk is None or self.obsk == "all" or self.obsk >= 0,
            f"mujoco.obsk must be 0 or more, or all, got {self.obsk}",
        )
        require(self.threads is None or self.threads > 0, f"mujoco.threads must be 1 or more, got {self.threads}")


@dataclass(frozen=True)
class ParticlesConfig:
    """Settings of the particle games."""

    reward: Literal["agent", "team"] = "agent"
    """agent: each agent receives its own reward; team: all agents receive the mean of these rewards."""

    def __post_init__(self) -> None:
        conform(self, "particles.")
