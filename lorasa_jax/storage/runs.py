"""Trained teams for any loop: loaded from a finished or stopped run, saved, and loaded again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lorasa_jax.config import Config, ConfigError, require
from lorasa_jax.core.own_network import with_networks
from lorasa_jax.core.types import PolicyParams, PyTree, Weights
from lorasa_jax.deltas import Deltas
from lorasa_jax.envs import make_env
from lorasa_jax.envs.base import Env
from lorasa_jax.files import whole, write_text
from lorasa_jax.learning.system import System, is_two_phase
from lorasa_jax.plugins import load_plugins, require_loaded
from lorasa_jax.running.state import ADAPTERS, SHARED
from lorasa_jax.storage import adapter_files, checkpoints
from lorasa_jax.storage.arrays import complete, write
from lorasa_jax.trained import ABOUT, find_team

COMMAND = ("preset", "out", "gif", "track", "cache", "save_every", "resume", "shard", "distributed", "plugins")
"""Settings in `config.json` that do not affect the results of a run."""


@dataclass(frozen=True)
class Team:
    """The policies of one trained team.

    Attributes:
        config: the settings of its run, for one seed.
        system: the system of the run's phase.
        params: the parameters of the actors: trunks, and agents' own parameters.
        inputs: the statistics that standardise observations.
        checkpoint: the checkpoint that they were read from.
        about: the command, commit and packages of its run, and what `save` was given.
        plugins: names of the files or modules that register parts which the team uses.
        weights: every agent's full weights, computed from `params`, and `inputs`.
    """

    config: Config
    system: System
    params: PolicyParams
    inputs: PyTree
    checkpoint: Path
    about: dict[str, Any] = field(default_factory=dict)
    plugins: tuple[str, ...] = ()
    weights: Weights = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", Weights(self.system.weights(self.params), self.inputs))

    @property
    def env(self) -> Env:
        """The environment in which it was trained."""
        return self.system.env

    def __repr__(self) -> str:
        """Its run, in one line."""
        config = self.config
        return f"Team({config.env} {config.task}, {config.algo}, {config.sharing}, from {self.checkpoint})"

    def with_params(self, params: PolicyParams) -> Team:
        """Returns the same team with other parameters, such as those of `lorasa_jax.adapters.attach`."""
        return replace(self, params=params)

    def initial_carry(self, batch: int = 1) -> Float[Array, "E N H"]:
        """Returns the recurrent states before the first step, which are zero; H is 0 for feed-forward networks."""
        return self.system.acting.initial_carry(batch)

    def act(
        self,
        obs: Float[Array, "E N D"],
        carry: Float[Array, "E N H"],
        *,
        avail: Bool[Array, "E N A"] | None = None,
        key: PRNGKeyArray | None = None,
        first: Bool[Array, " E"] | None = None,
        role: Int[Array, "E N"] | None = None,
    ) -> tuple[Int[Array, "E N"] | Float[Array, "E N A"], Float[Array, "E N H"]]:
        """Returns the actions of all agents, and the next recurrent states. It can be jitted and vmapped.

        Args:
            obs: the observations of the environment.
            carry: the result of `initial_carry` or of the previous step.
            avail: the available actions; None: all.
            key: the key to sample actions; None: take the most probable ones.
            first: environments in which an episode begins, so the carry counts as zero; None: none.
            role: the role of every agent, if roles change.

        Raises:
            ConfigError: the shape of the observations differs from training.
        """
        system, spec = self.system, self.system.env.spec
        expected = (spec.n_agents, spec.obs_dim)
        require(
            obs.ndim == 3 and obs.shape[1:] == expected,
            f"observations must be [environments, {expected[0]} agents, {expected[1]} numbers], got {list(obs.shape)}",
        )
        changing = system.acting.sharing.dynamic_roles
        require(not changing or role is not None, "the roles of these agents change; give role, [environments, agents]")
        begins = jnp.zeros(len(obs), bool) if first is None else first
        opens = jnp.broadcast_to(begins[:, None], obs.shape[:2])
        seen, _ = system.inputs.apply(self.weights.inputs, obs, jnp.zeros((len(obs), spec.state_dim)))
        owner = role[None] if changing and role is not None else None
        carries, output = system.acting.unroll(self.weights.actors, carry, seen[None], opens[None], owner=owner)
        may = jnp.ones((*obs.shape[:2], spec.n_actions), bool) if avail is None else avail
        params = system.dist.mask(output[0], may)
        action = system.dist.mode(params) if key is None else system.dist.sample(key, params)
        return system.dist.to_env(action), carries[0]

    def deltas(self, scope: str = "agent") -> Deltas:
        """Returns the low-rank adapters of all owners of a scope, for `lorasa_jax.deltas`. Any network works.

        The paths are those of the trunk, `params.shared` without its first axis.

        Raises:
            ConfigError: there are no low-rank adapters of this scope.
        """
        return adapter_files.deltas_of(self.params, self.system, scope)

    def save_adapters(self, directory: Path | str) -> Path:
        """Writes the adapters into a new folder (`lorasa_jax.adapters.save`), and returns the folder."""
        return adapter_files.save(directory, self.params, self.system)

    def save(self, directory: Path | str, about: Mapping[str, Any] | None = None) -> Path:
        """Writes the team into a new folder, and returns the folder. `load_team` and the commands that play read it.

        The folder is a run directory with one small checkpoint: the actors' parameters and the input statistics.
        Training cannot resume from it, because it has no critic and no optimisers.

        Args:
            directory: the folder; must not exist.
            about: more entries of `about.json`, such as measured results.

        Raises:
            ConfigError: the folder exists, or `about` cannot be written as JSON.
            OSError: it cannot be written.
        """
        path = Path(directory)
        require(not path.exists(), f"{path} exists already; name another folder for the team")
        named = {"plugins": list(self.plugins)} if self.plugins else {}
        files = {"config.json": self.config.to_dict() | named, ABOUT: {**self.about, **(about or {})}}
        try:
            texts = {name: json.dumps(content, indent=2) + "\n" for name, content in files.items()}
        except (TypeError, ValueError) as error:
            raise ConfigError(f"about must hold plain numbers, texts, lists and dictionaries: {error}") from None
        phase = ADAPTERS if is_two_phase(self.config, self.env) and self.params.agents else SHARED
        snapshot = checkpoints.take_team(int(self.checkpoint.name), self.config, phase, self.params, self.inputs)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as folder:
            folder.mkdir()
            write(folder / "checkpoints", snapshot)
            for name, text in texts.items():
                write_text(folder / name, text)
        return path


def load_run(
    path: Path | str,
    *,
    row: int = 0,
    best: bool = False,
    env: Env | None = None,
    actor: Any = None,
    critic: Any = None,
    plugins: Sequence[str] = (),
) -> Team:
    """Returns the team of a run.

    Args:
        path: the run's directory, for its newest checkpoint, or one checkpoint.
        row: the seed or fork of the run, counted from 0.
        best: the team with the best evaluation of the last phase, instead of the last team.
        env: the environment of a run with `env="own"`.
        actor: the actor's network, if the run got it from Python.
        critic: the critic's network, if the run got it from Python.
        plugins: files or modules to run first, which register parts that the run uses. Plugins that only the run's
            files name are never run.

    Raises:
        ConfigError: there is no run or checkpoint, it is damaged, or a needed argument is missing.
    """
    load_plugins(plugins)
    path = Path(path)
    inside = path.resolve().parent.name == "checkpoints"
    directory = path.resolve().parents[1] if inside else path
    settings = directory / "config.json"
    require(settings.is_file(), f"there is no run in {directory}: it has no config.json")
    known = _read(settings)
    named = known.get("plugins", ())
    require(
        isinstance(named, list | tuple) and all(isinstance(plugin, str) for plugin in named),
        f"plugins in {settings} must be a list of names",
    )
    require_loaded(named, settings, "give plugins={}".format)
    config = with_networks(Config.from_dict(known, ignore=COMMAND), actor, critic)
    require(0 <= row < config.seeds, f"the rows of this run are 0 to {config.seeds - 1}, got {row}")
    require(config.env != "own" or env is not None, f"the run in {directory} has its own environment; pass env")
    found = [path] if inside else complete(directory / "checkpoints")
    require(bool(found), f"{directory} has no checkpoint yet; one is written after a minute, or at the end")
    try:
        saved = checkpoints.load_team(found[-1], config, env or make_env(config), best=best)
    except ConfigError as error:
        hint = "; if the run got its network from Python, pass it here: load_run(path, actor=...)"
        raise ConfigError(f"{error}{'' if actor or config.actor.module else hint}") from None
    params, inputs = (jax.tree.map(lambda leaf: leaf[row], tree) for tree in (saved.params, saved.inputs))
    alone = replace(config, seed=config.seed + row, seeds=1)
    names = dict.fromkeys(Path(plugin).name for plugin in (*named, *plugins))
    return Team(alone, saved.system, params, inputs, found[-1], _about(directory), tuple(names))


def load_team(team: Path | str, **given: Any) -> Team:
    """Returns a team that comes with the library, or one that `Team.save` wrote.

    Args:
        team: the name of a team of the library, or a folder.
        given: `env`, `actor`, `critic` and `plugins`, as for `load_run`, if the team needs them.

    Raises:
        ConfigError: there is no such team, it is damaged, or something that it needs is not given.
    """
    return load_run(find_team(team), **given)


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text())
    except (ValueError, RecursionError):
        known = None
    require(isinstance(known, dict), f"{path} is not valid JSON; it was changed after it was written")
    return dict(known)


def _about(directory: Path) -> dict[str, Any]:
    """The origin of a saved team, or of a run."""
    if (directory / ABOUT).is_file():
        return _read(directory / ABOUT)
    known = _read(directory / "versions.json") if (directory / "versions.json").is_file() else {}
    return {name: known[name] for name in ("command", "commit", "packages") if name in known}
