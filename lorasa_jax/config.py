"""Configuration: frozen records that are checked when they are made.

This module does not import jax, so a command line can show its help at once. Every
error is a `ConfigError` with one line that says what was expected.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, TypeVar

from lorasa_jax import presets
from lorasa_jax.checks import (
    LARGEST_INT,
    conform,
    nearest,
    require,
    require_in_range,
    require_positive,
)
from lorasa_jax.checks import ConfigError as ConfigError
from lorasa_jax.levels import DEFAULT, AdapterLevel, LevelSettings, from_old_names, parse_levels
from lorasa_jax.sections import CriticConfig as CriticConfig
from lorasa_jax.sections import JaxmarlConfig as JaxmarlConfig
from lorasa_jax.sections import MabraxConfig as MabraxConfig
from lorasa_jax.sections import MujocoConfig as MujocoConfig
from lorasa_jax.sections import NetworkConfig as NetworkConfig
from lorasa_jax.sections import ParticlesConfig as ParticlesConfig
from lorasa_jax.sections import PPOConfig as PPOConfig
from lorasa_jax.sections import SmaxConfig as SmaxConfig

T = TypeVar("T")

LARGEST_SEED = 2**32 - 1
"""Keys are made from 32 bits; a larger seed would wrap around."""
LARGEST_BUDGET = 2**53
"""Largest number of steps that JSON represents exactly."""


def changed_settings(
    then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yields the settings that differ between two configurations given as dictionaries: flag, old value, new value."""
    for name in {**then, **now}:
        before, after = then.get(name), now.get(name)
        flag = prefix + name.replace("_", "-")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from changed_settings(before, after, f"{flag}.")
        elif before != after:
            yield flag, before, after


AdapterKey = Literal["agent", "unit_type", "unit_type,agent"]

# Names that can be extended (`register`). A type checker accepts any word; a Config checks it when it is made.
if TYPE_CHECKING:
    EnvName: TypeAlias = str
    AlgorithmName: TypeAlias = str
    SchemeName: TypeAlias = str
else:
    EnvName = Literal["smax", "mabrax", "mujoco", "jaxmarl", "particles", "toy", "own"]
    AlgorithmName = Literal["mappo", "a2po", "sequential"]
    SchemeName = Literal[
        "ps", "ps_id", "ps_restart", "nps", "mtl", "hyper", "mask", "lorasa", "lorasa_joint", "seps", "seps_lora"
    ]


TASKS = {
    "smax": "2s3z",
    "mabrax": "ant_4x2",
    "mujoco": "ant_4x2",
    "jaxmarl": "MPE_simple_spread_v3",
    "particles": "spread_10x5",
    "toy": "specialisation",
    "own": "own",
}
"""The default task of each environment."""

PLACEMENTS = {"all": "*", "early": "fc*", "recurrent": "gru_*", "late": "after*"}
"""Names of groups of layers."""


@dataclass(frozen=True)
class Config:
    """One training run."""

    env: EnvName = "smax"
    """Family of environments; own: an environment made in Python and passed to `lorasa_jax.run`."""
    task: str = ""
    """Map, robot and split, or game; empty: 2s3z for smax, ant_4x2 for mabrax and mujoco, MPE_simple_spread_v3 for
    jaxmarl, spread_10x5 for particles (N agents of C colours; also roles_NxC, dynamics_NxC, dispersion_N),
    specialisation for toy."""
    algo: AlgorithmName = "mappo"
    """Algorithm. mappo: all agents are updated at once. a2po: one after another, each corrected for the agents before
    it. sequential: as a2po, without the correction of advantages."""
    sharing: SchemeName = presets.DEFAULT_SHARING
    """Sharing scheme: which agents share which parameters."""
    groups: tuple[int, ...] | None = None
    """The cluster of each agent, numbered from 0 (seps, seps_lora); by default found before training."""
    grouping: Literal["separate", "joint"] = "separate"
    """How clusters are found. separate: one code predicts observations and another one rewards, and agents of a cluster
    agree in both. joint: one code predicts both, as in the SePS paper."""
    seed: int = 0
    """First seed."""
    seeds: int = 1
    """Number of seeds, trained in parallel in one program."""
    total_steps: int = 1_000_000
    """Environment steps of the whole run, both phases together, rounded down to whole iterations."""
    switch_step: int | str = "auto"
    """Environment step at which the second phase begins, or a share of the budget such as 10%: the trunk freezes and
    adapters start (lorasa, seps_lora), adapters start beside the trunk (lorasa_joint), or only the optimiser is reset
    (ps_restart). auto: when learning slows, at the latest after 60 % of the budget; under lorasa_joint 0 if each agent
    receives its own reward."""
    freeze_trunk: bool | None = None
    """Freeze the trunk at the switch. False: from the switch on, trunk and adapters are trained together. The default
    depends on the scheme (lorasa and seps_lora freeze it, lorasa_joint never does)."""
    levels: tuple[str, ...] = DEFAULT
    """Owners of adapters: `SCOPE[:RANK][@FACTOR][/LAYERS]` for each level, such as team:8 agent:4@0.1 or
    agent:4/head+early. Adapters of all levels add up. Scopes: team: one for all agents; unit_type: one for all units of
    a type, also if types are redrawn in every episode (smax); agent: one for every agent. FACTOR multiplies the
    learning rate. auto: 1 if each agent receives its own reward. If all receive the same, it begins at 1 / K for K
    owners, rises up to 1 while agents' own weights play better than their mean, and falls if they play worse. Without
    FACTOR: 1 beside a frozen trunk, otherwise auto."""
    rank: int = 8
    """Rank of the adapters at levels without a rank. Layers no wider than this get a full-rank adapter. Under hyper:
    width of an embedding."""
    adapter_key: AdapterKey | None = None
    """Old name of levels, for one more release."""
    ranks: tuple[int, ...] | None = None
    """Old name of the ranks in levels, for one more release."""
    alpha: float | None = None
    """Adapters are scaled by alpha / rank; by default alpha = rank."""
    placement: tuple[str, ...] = ("all",)
    """Layers with an adapter (under hyper a generator, under mask thresholds), at levels without layers: names,
    patterns, or all, early, recurrent, late, head."""
    n_envs: int = 32
    """Number of environments stepped in parallel."""
    rollout_length: int = 160
    """Steps of each environment between two updates."""
    evaluations: int = 20
    """Maximum number of greedy evaluations during the run, evenly spaced. A learning rate of adapters that follows play
    is tested as often."""
    eval_episodes: int = 128
    """Episodes of each evaluation."""
    time_limit: Literal["bootstrap", "terminal"] = "bootstrap"
    """How time limits are treated. bootstrap: the value of the last state is used; terminal: as an ordinary end."""
    reset_on_death: bool = False
    """Set the recurrent states of dead agents to zero until the next episode."""
    standardise: bool = False
    """Standardise every column of observations and states by its running mean and standard deviation. The statistics do
    not change once the trunk is frozen."""
    n_agents: int | None = None
    """Number of agents, in toy games with a variable number."""
    actor: NetworkConfig = field(default_factory=NetworkConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    smax: SmaxConfig = field(default_factory=SmaxConfig)
    mabrax: MabraxConfig = field(default_factory=MabraxConfig)
    jaxmarl: JaxmarlConfig = field(default_factory=JaxmarlConfig)
    mujoco: MujocoConfig = field(default_factory=MujocoConfig)
    particles: ParticlesConfig = field(default_factory=ParticlesConfig)

    def __post_init__(self) -> None:
        conform(self)
        require(
            not isinstance(self.actor, CriticConfig),
            "actor must be a NetworkConfig; the settings that a CriticConfig has besides are the critic's alone",
        )
        if not self.task:
            object.__setattr__(self, "task", TASKS[self.env])
        require_positive(
            self, "", "seeds", "total_steps", "rank", "n_envs", "rollout_length", "evaluations", "eval_episodes"
        )
        require(self.seed >= 0, f"seed must be 0 or more, got {self.seed}")
        require_in_range(self, "", ("seed", "total_steps", "switch_step"))
        self._check_seeds()
        require(self.alpha is None or self.alpha > 0, f"alpha must be positive, got {self.alpha}")
        require(
            self.groups is None or set(self.groups) == set(range(max(self.groups, default=0) + 1)),
            f"groups must number the clusters 0, 1, ... without a gap, one number per agent; got {self.groups}",
        )
        self._check_budget()
        self._check_minibatches()
        self.adapted_layers  # noqa: B018  (raises where the placement names no layer)
        self._set_levels()

    def _set_levels(self) -> None:
        """Writes the levels in a standard form, so that equal levels compare equal."""
        levels = from_old_names(parse_levels(self.levels), self.adapter_key, self.ranks)
        for name, value in (("levels", tuple(map(str, levels))), ("adapter_key", None), ("ranks", None)):
            object.__setattr__(self, name, value)
        self.adapter_levels  # noqa: B018  (raises where a level names no layer)

    def _check_seeds(self) -> None:
        last = self.seed + self.seeds - 1
        counted = f"; the last of {self.seeds} seeds would be {last}" if self.seeds > 1 else ""
        require(last <= LARGEST_SEED, f"seed must be at most {LARGEST_SEED:,}, got {self.seed}{counted}")

    def _check_budget(self) -> None:
        batch = self.steps_per_iteration
        require(
            batch <= LARGEST_INT,
            f"one iteration can have {LARGEST_INT:,} steps at most: {self.n_envs:,} environments x "
            f"{self.rollout_length:,} steps = {batch:,}; lower n-envs or rollout-length",
        )
        require(
            self.total_steps <= LARGEST_BUDGET and self.iterations <= LARGEST_INT,
            f"total-steps must be at most {LARGEST_BUDGET:,} and {LARGEST_INT:,} iterations, got {self.total_steps:,} "
            f"steps in {self.iterations:,} iterations",
        )
        require(
            self.total_steps >= batch,
            f"total-steps {self.total_steps:,} is less than one iteration: {self.n_envs} environments x "
            f"{self.rollout_length} steps = {batch:,}; raise it, or lower n-envs or rollout-length",
        )
        self._check_switch()

    def _check_switch(self) -> None:
        """Checks the switch, and writes it in a standard form."""
        steps, value = self.iterations * self.steps_per_iteration, self.switch_step
        if isinstance(value, int):
            require(0 <= value < steps, f"switch-step must lie in [0, {steps:,}), the steps of this run; got {value:,}")
        elif value != "auto":
            found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", value)
            require(
                found is not None and float(found[1]) < 100,
                f"switch-step must be a step, a share of the budget below 100% such as 10%, or auto, got {value!r}"
                + nearest(value, ["auto"]),
            )
            whole, _, rest = found[1].partition(".") if found else ("0", "", "")
            whole, rest = whole.lstrip("0") or "0", rest.rstrip("0")
            share = whole + (f".{rest}" if rest else "")
            object.__setattr__(self, "switch_step", f"{share}%" if float(share) else 0)

    def _check_minibatches(self) -> None:
        require(
            self.n_envs % self.ppo.minibatches == 0,
            f"ppo.minibatches {self.ppo.minibatches} must divide n-envs {self.n_envs}",
        )
        recurrent = self.actor.recurrent or self.critic.recurrent
        require(
            not recurrent or self.rollout_length % self.chunk_length == 0,
            f"ppo.chunk-length {self.ppo.chunk_length} must divide rollout-length {self.rollout_length}",
        )

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps between two updates."""
        return self.n_envs * self.rollout_length

    @property
    def iterations(self) -> int:
        """Rollouts and updates that fit into the budget."""
        return self.total_steps // self.steps_per_iteration

    @property
    def switch_iteration(self) -> int | None:
        """The first iteration of phase 2, or None if it is found during the run.

        A step within a rollout takes effect at the next rollout.
        """
        step = self.switch_step
        if step == "auto":
            return None
        if isinstance(step, str):
            step = math.floor(self.total_steps * float(step.rstrip("%")) / 100)
        return min(-(-step // self.steps_per_iteration), self.iterations - 1)

    @property
    def evaluation_interval(self) -> int:
        """Iterations between two evaluations."""
        return -(-self.iterations // self.evaluations)

    @property
    def chunk_length(self) -> int:
        """Number of steps of truncated backpropagation through time.

        Without recurrence every step is its own chunk, so the layers see one flat batch.
        """
        if not (self.actor.recurrent or self.critic.recurrent):
            return 1
        return self.ppo.chunk_length or self.rollout_length

    @property
    def adapter_levels(self) -> tuple[AdapterLevel, ...]:
        """The levels of adapters from the coarsest scope to the finest, with all defaults filled in."""

        def complete(level: LevelSettings) -> AdapterLevel:
            rank = level.rank or self.rank
            scale = 1.0 if self.alpha is None else self.alpha / rank
            layers = self._layers_of(level.layers, f"levels {level}:") if level.layers else self.adapted_layers
            return AdapterLevel(level.scope, rank, scale, level.factor, layers)

        return tuple(map(complete, parse_levels(self.levels)))

    @property
    def adapted_layers(self) -> tuple[str, ...]:
        """The layers of the actor with an adapter, at levels without layers, from input to output."""
        known = "" if self.actor.module else f"some of {', '.join(self.actor.layer_names)}, or "
        require(bool(self.placement), f"placement is empty; name {known}all")
        return self._layers_of(self.placement, "placement")

    def _layers_of(self, words: tuple[str, ...], setting: str) -> tuple[str, ...]:
        if self.actor.module:  # its layers are not known here
            return tuple("*" if word == "all" else word for word in words)
        names = self.actor.layer_names
        chosen: set[str] = set()
        for word in words:
            pattern = PLACEMENTS.get(word, word)
            hits = {name for name in names if fnmatchcase(name, pattern)}
            require(
                bool(hits),
                f"{setting} {word!r} names no layer{nearest(word, {*names, *PLACEMENTS} - {word})}; "
                f"layers: {', '.join(names)}; groups: {', '.join(PLACEMENTS)}",
            )
            chosen |= hits
        return tuple(name for name in names if name in chosen)

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as JSON types; `from_dict` is the inverse."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: plain(entry) for name, entry in value.items()}
            if isinstance(value, tuple):
                return list(map(plain, value))
            return str(value) if isinstance(value, Path) or value == math.inf else value

        whole: dict[str, Any] = plain(asdict(self))
        return whole

    @classmethod
    def from_preset(cls, env: str, task: str = "", preset: str = "fast", algo: str = "mappo", **settings: Any) -> Self:
        """Returns the settings of a preset, as `--env`, `--task`, `--preset` and `--algo` choose them.

        Args:
            env: the family of environments.
            task: the task; empty: the family's default task.
            preset: its name, or the path of a YAML file.
            algo: the algorithm. A preset's cases may depend on it, on the task, and on the setting `sharing`.
            settings: changes to the preset, by name; those of a section as a dictionary, `ppo={"lr": 1e-3}`.

        Raises:
            ConfigError: there is no such preset, or a setting does not fit.

        Examples:
            >>> from lorasa_jax import Config
            >>> config = Config.from_preset("smax", "3s5z", rank=4, ppo={"lr": 1e-3})
            >>> config.task, config.rank, config.ppo.lr, config.ppo.epochs
            ('3s5z', 4, 0.001, 4)
        """
        require(env in TASKS, f"unknown env {env!r}{nearest(env, TASKS)}; families: {', '.join(TASKS)}")
        chosen = {"task": task or TASKS[env], "algo": algo}
        case = {**chosen, "sharing": settings.get("sharing", "")}
        found = presets.read_preset(env, presets.find_preset(env, preset), case)
        return cls.from_dict(presets.merged(found, {**settings, "env": env, **chosen}))

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], ignore: Collection[str] = ()) -> Self:
        """Returns the configuration with these settings, and defaults for the others.

        Args:
            settings: by name, as in a run's `config.json`.
            ignore: names of settings to ignore.

        Raises:
            ConfigError: a name is unknown, or a value does not fit.
        """
        return _from_dict(cls, {name: value for name, value in settings.items() if name not in ignore}, "")


def _from_dict(section: type[T], settings: Mapping[str, Any], prefix: str) -> T:
    known = {each.name: each for each in fields(section)}  # type: ignore[arg-type]
    values = {}
    for name, value in settings.items():
        require(name in known, f"there is no setting {prefix + str(name)!r}{nearest(str(name), known)}")
        inner: Any = known[name].default_factory
        if isinstance(inner, type) and is_dataclass(inner):
            require(isinstance(value, Mapping), f"{prefix}{name} is a section, with settings of its own")
            value = _from_dict(inner, value, f"{prefix}{name}.")
        values[name] = math.inf if value == "inf" else value
    return section(**values)
