"""The sections of a configuration: networks, the update, and families of environments."""

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
    """Dense layers before the recurrent one."""
    layers_after: int = 1
    """Dense layers between the recurrent one and the head."""
    recurrent: bool = True
    """Keep a GRU between the two; without it the network is feed-forward."""
    activation: Literal["relu", "tanh"] = "relu"
    """Nonlinearity of the dense layers."""
    layer_norm: bool = True
    """Normalise after every dense layer and after the GRU."""
    input_norm: bool = True
    """Normalise the input vector."""
    gain: float = math.sqrt(2)
    """Orthogonal gain of the dense layers before the GRU."""
    gru_init: Literal["stacked", "gates"] = "stacked"
    """Start each of the GRU's stacked matrices orthogonal as a whole, or gate by gate (entries 1.7 times as large)."""
    gain_after: float = math.sqrt(2)
    """Orthogonal gain of the dense layers after the GRU."""
    module: str = ""
    """A network of your own: package.module:factory, or a registered name. `factory(n_in, n_out, config)` returns a
    Flax module. Of the settings here only recurrent matters then, and whatever the factory reads. Empty: the built-in
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
        """Names of the layers that can carry an adapter, from input to output."""
        return (
            *(f"fc{i + 1}" for i in range(self.layers)),
            *(("gru_in", "gru_hidden") if self.recurrent else ()),
            *(f"after{i + 1}" for i in range(self.layers_after)),
            "head",
        )


@dataclass(frozen=True)
class CriticConfig(NetworkConfig):
    """Shape of the critic's network, and whose value it estimates."""

    scope: Literal["auto", "team", "agent", "own"] = "auto"
    """`team`: one value per environment from the global state. `agent`: one per agent, from the global state and the
    agent's id. `own`: one per agent from what it observes itself (IPPO). `auto`: team where all agents move at once
    and are paid the same, else agent."""
    separate: bool = False
    """A critic's network for every agent, instead of one for all; not with scope team."""

    prefix: ClassVar[str] = "critic."

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not (self.separate and self.scope == "team"),
            "critic.separate gives every agent a critic, and critic.scope team has one value for all; use agent or own",
        )


@dataclass(frozen=True)
class PPOConfig:
    """The update."""

    epochs: int = 5
    """Passes over each rollout."""
    minibatches: int = 1
    """Updates per pass; the environments are dealt out among them."""
    chunk_length: int = 10
    """Steps that gradients flow back through time; 0: the whole rollout."""
    lr: float = 5e-4
    """Learning rate of the actors."""
    critic_lr: float = 5e-4
    """Learning rate of the critic."""
    adapter_lr: float | None = None
    """Learning rate of the actors from the switch on, in schemes with two phases; not given: lr."""
    trunk_optimizer: Literal["carry", "restart"] | None = None
    """Adam's moments of a trunk that is not frozen at the switch: carry: they go on; restart: they start from zero, as
    those of adapters do; not given: carry."""
    anneal_lr: bool = False
    """Let both fall linearly to zero over the run, by environment steps."""
    adam_eps: float = 1e-5
    """Epsilon of Adam."""
    max_grad_norm: float = 10.0
    """Gradient norm at which each trunk, each agent's own parameters and the critic are clipped."""
    clip_eps: float = 0.2
    """Clip of the probability ratio."""
    ratio: Literal["joint", "per_dim"] = "joint"
    """Continuous actions: one probability ratio for the whole action, or one for each of its dimensions."""
    value_clip: float = 0.2
    """Clip of the change in value, in the critic's own units."""
    huber_delta: float = 10.0
    """Where the value loss turns from quadratic to linear; inf: squared error."""
    value_coef: float = 1.0
    """Weight of the value loss."""
    entropy_coef: float = 0.01
    """Weight of the entropy bonus."""
    gamma: float = 0.99
    """Discount."""
    gae_lambda: float = 0.95
    """Decay of the advantage trace."""
    loop_order: Literal["agent", "epoch"] = "epoch"
    """Where agents move one by one. `agent`: each does all its epochs, then the next. `epoch`: each does one, in
    an order drawn anew, then the next round."""
    two_stage: bool = False
    """Where agents move one by one: a pass of the critic alone before each pass of actor and critic."""
    advantage_norm: Literal["rollout", "minibatch"] = "rollout"
    """Normalise advantages once over the rollout, or anew in every minibatch."""
    mask_dead: bool = True
    """Leave what dead agents did out of the policy loss, entropy and advantage statistics."""
    value_norm: bool = True
    """Let the critic work in units of the running mean and deviation of the returns."""

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
        # Infinite bounds mean that there is no bound.
        require_in_range(self, "ppo.", ("max_grad_norm", "clip_eps", "value_clip", "huber_delta"))


@dataclass(frozen=True)
class SmaxConfig:
    """Settings of the SMAX battles."""

    attack_mode: Literal["closest", "random"] = "closest"
    """How the scripted enemy picks its target."""
    see_enemy_actions: bool = True
    """Show what visible enemies did last."""
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
    line, --jaxmarl.NAME VALUE says the same."""

    def __post_init__(self) -> None:
        conform(self, "jaxmarl.")
        for option in self.options:
            name, sign, value = option.partition("=")
            good = name.isidentifier() and bool(sign) and bool(value)
            require(good, f"jaxmarl.options must be words NAME=VALUE, such as num_agents=5; got {option!r}")

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments by name; words that read as Python numbers, booleans, None or lists are those."""
        return {name: _value(value) for name, _, value in (option.partition("=") for option in self.options)}


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


@dataclass(frozen=True)
class MabraxConfig:
    """Settings of the robots that several agents move together (multi-agent MuJoCo on brax)."""

    backend: Literal["positional", "generalized", "spring", "mjx"] = "positional"
    """Physics of brax; returns under one do not compare with those under another."""
    obsk: int | None = None
    """How many joints away from its own an agent sees; not given: everything for humanoid, 1 for the others."""
    maps: Literal["kinematic", "upstream"] = "kinematic"
    """Who sees what: kinematic: by the robot's tree of joints; upstream: JaxMARL's tables, for its five tasks."""

    def __post_init__(self) -> None:
        conform(self, "mabrax.")
        require_in_range(self, "mabrax.")
        require(self.obsk is None or self.obsk >= 0, f"mabrax.obsk must be 0 or more, got {self.obsk}")
        require(
            self.obsk is None or self.maps == "kinematic",
            f"mabrax.obsk {self.obsk} has no meaning under mabrax.maps upstream, whose tables are fixed; leave one out",
        )


@dataclass(frozen=True)
class MujocoConfig:
    """Settings of the robots that several agents move together in MuJoCo (multi-agent MuJoCo)."""

    obsk: int | Literal["all"] | None = None
    """How many joints away from its own an agent sees; all: the whole observation; not given: all for humanoid, 1 for
    the others."""
    threads: int | None = None
    """Threads of the physics, of every device; not given: all cores, shared by the devices."""

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
    """Who is paid: agent: each agent by itself; team: all agents the mean of these rewards."""

    def __post_init__(self) -> None:
        conform(self, "particles.")
