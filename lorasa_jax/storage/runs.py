"""Trained teams that play in any loop: loaded in one line from a run, saved, and loaded again."""

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
from lorasa_jax.core.types import PolicyParams, Weights
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
"""Settings in `config.json` that say how a command ran, and not what it computed."""


@dataclass(frozen=True)
class Team:
    """The policies of one trained team.

    Attributes:
        config: of its run, as that of one seed.
        system: of the phase that the run was in.
        params: of the actors: trunks, and what agents own.
        weights: every agent's full weights, made of `params` (see `with_params`), and the statistics of inputs.
        checkpoint: where they were found.
        about: where they come from: command, commit and packages of the run, and what `save` was told besides.
    """

    config: Config
    system: System
    params: PolicyParams
    weights: Weights
    checkpoint: Path
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def env(self) -> Env:
        """The environment it was trained in."""
        return self.system.env

    def __repr__(self) -> str:
        """The run that it comes from, in one line."""
        config = self.config
        return f"Team({config.env} {config.task}, {config.algo}, {config.sharing}, from {self.checkpoint})"

    def with_params(self, params: PolicyParams) -> Team:
        """Returns the same team with other parameters, such as those of `lorasa_jax.adapters.attach`."""
        return replace(self, params=params, weights=self.weights._replace(actors=self.system.weights(params)))

    def initial_carry(self, batch: int = 1) -> Float[Array, "E N H"]:
        """Returns the recurrent states before the first step, all zero; H is 0 without recurrence."""
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
        """Returns what every agent does, and the recurrent states after it. It can be jitted and vmapped.

        Args:
            obs: what every agent sees, as the environment shows it.
            carry: from `initial_carry`, or from the step before.
            avail: the actions that may be taken; None: all.
            key: to draw actions with; None: the most probable ones.
            first: environments whose episode begins here, where the state before counts as zero; None: none.
            role: the role of every agent, where roles change.

        Raises:
            ConfigError: the observations do not have the shape that the team was trained on.
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
        """Returns the low-rank adapters of all owners of a scope, for `lorasa_jax.deltas`, of any network.

        Paths are those of the trunk, `params.shared` without its first axis.

        Raises:
            ConfigError: there are no low-rank adapters of this scope.
        """
        return adapter_files.deltas_of(self.params, self.system, scope)

    def save_adapters(self, directory: Path | str) -> Path:
        """Writes its adapters into a new folder (`lorasa_jax.adapters.save`), and returns the folder."""
        return adapter_files.save(directory, self.params, self.system)

    def save(self, directory: Path | str, about: Mapping[str, Any] | None = None) -> Path:
        """Writes the team into a new folder, and returns the folder. `load_team`, and the commands that play, read it.

        The folder has the form of a run directory, with one checkpoint of what playing takes: the actors' parameters
        and the statistics of inputs. Without critic and optimisers, training cannot go on from it.

        Args:
            directory: the folder; must not exist.
            about: more to keep in `about.json`, as JSON, such as measured results.

        Raises:
            ConfigError: the folder exists, or `about` is no JSON.
            OSError: it cannot be written.
        """
        path = Path(directory)
        require(not path.exists(), f"{path} exists already; name another folder for the team")
        files = {"config.json": self.config.to_dict(), ABOUT: {**self.about, **(about or {})}}
        try:
            texts = {name: json.dumps(content, indent=2) + "\n" for name, content in files.items()}
        except (TypeError, ValueError) as error:
            raise ConfigError(f"about must hold plain numbers, texts, lists and dictionaries: {error}") from None
        phase = ADAPTERS if is_two_phase(self.config, self.env) and self.params.agents else SHARED
        snapshot = checkpoints.take_team(
            int(self.checkpoint.name), self.config, phase, self.params, self.weights.inputs
        )
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
        path: of the run's directory, of which the newest checkpoint is taken, or of one checkpoint.
        row: which of the run's seeds or forks, from 0.
        best: the team that played best in an evaluation of the last phase, instead of the last one.
        env: the environment of a run with `env="own"`.
        actor: the network of a run that was handed one from Python.
        critic: likewise.
        plugins: files or modules to run first, which register what the run uses. Those that only the run's files name
            are never run.

    Raises:
        ConfigError: there is no run or checkpoint, it is damaged, or something that it needs is not given.
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
    require(config.env != "own" or env is not None, f"the run in {directory} has an environment of its own; give env")
    found = [path] if inside else complete(directory / "checkpoints")
    require(bool(found), f"{directory} has no checkpoint yet; one is written after a minute, or at the end")
    try:
        saved = checkpoints.load_team(found[-1], config, env or make_env(config), best=best)
    except ConfigError as error:
        hint = "; if the run was given its network from Python, give it here: load_run(path, actor=...)"
        raise ConfigError(f"{error}{'' if actor or config.actor.module else hint}") from None
    params, weights = (jax.tree.map(lambda leaf: leaf[row], tree) for tree in (saved.params, saved.weights))
    alone = replace(config, seed=config.seed + row, seeds=1)
    return Team(alone, saved.system, params, weights, found[-1], _about(directory))


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
    require(isinstance(known, dict), f"{path} is no valid JSON; it was written whole, so it was changed since")
    return dict(known)


def _about(directory: Path) -> dict[str, Any]:
    """What a saved team says of itself; of a run, what made it."""
    if (directory / ABOUT).is_file():
        return _read(directory / ABOUT)
    known = _read(directory / "versions.json") if (directory / "versions.json").is_file() else {}
    return {name: known[name] for name in ("command", "commit", "packages") if name in known}
