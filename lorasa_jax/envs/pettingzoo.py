"""Games of PettingZoo's parallel API, which run on the host and are slow.

The state of a game on the host cannot be copied. So the environment's state is the seed of its reset, and all actions
since. A step looks for the live game in this state. If there is none, it resets a game with the seed and replays the
actions. So `reset` and `step` are pure functions of their arguments, if the game is deterministic given its seed and
the actions.

Every step leaves the compiled program and runs Python, game by game. If possible, write games in JAX instead.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lorasa_jax.config import ConfigError, require
from lorasa_jax.envs.base import Env, EnvSpec, EnvState, TimeStep


class HostState(NamedTuple):
    """The data that determines a game on the host.

    Attributes:
        seed: seed of its reset.
        steps: t, the steps so far.
        actions: actions of all steps, [episode_limit, N] or [episode_limit, N, A]; zeros from t on.
    """

    seed: Int[Array, ""]
    steps: Int[Array, ""]
    actions: Array


class _Space(NamedTuple):
    """The actions of one agent: `size` choices, or a vector between two bounds."""

    size: int
    first: int = 0
    low: Any = None
    high: Any = None

    def to_game(self, action: Any) -> Any:
        """Returns an action in the form of the game."""
        if self.low is None:
            return int(action) + self.first
        part = np.clip(action[: self.size], -1.0, 1.0).reshape(self.low.shape)
        return (self.low + (part + 1) / 2 * (self.high - self.low)).astype(self.low.dtype)


def pettingzoo_env(make: Callable[[], Any], n_envs: int, *, episode_limit: int, name: str = "") -> Env:
    """Returns a game of PettingZoo's parallel API as an `Env`, for `lorasa_jax.run(config, env)`.

    Agents may have different observations and actions. An observation may be a dictionary with `observation` and
    `action_mask`. The critic sees all observations. Agents are paid individually.

    Args:
        make: returns a fresh parallel environment, such as `mpe2.simple_spread_v3.parallel_env`.
        n_envs: number of parallel games, as in `Config.n_envs`; with more games, some are replayed at every step.
        episode_limit: maximum number of steps of an episode. Longer games are truncated.
        name: the name in messages; empty: the name of the game.

    Raises:
        ConfigError: its actions or observations are not supported, or the game fails.

    Source: parallel API of PettingZoo (Terry et al. 2021).
    """
    require(episode_limit > 0 and n_envs > 0, "n_envs and episode_limit of pettingzoo_env must be positive")
    host = _Host(make, n_envs, episode_limit, name)
    spec, shapes = host.spec, host.shapes
    action_shape = (episode_limit, spec.n_agents) + ((spec.n_actions,) if spec.continuous else ())
    action_type = jnp.float32 if spec.continuous else jnp.int32

    def call(state: HostState) -> TimeStep:
        shown = jax.pure_callback(host.show, shapes, *state, vmap_method="broadcast_all")
        return TimeStep(**shown)

    def reset(key: PRNGKeyArray) -> tuple[EnvState, TimeStep]:
        """Returns a new game."""
        seed = jax.random.randint(key, (), 0, np.iinfo(np.int32).max, jnp.int32)
        state = HostState(seed, jnp.zeros((), jnp.int32), jnp.zeros(action_shape, action_type))
        return state, call(state)

    def step(
        key: PRNGKeyArray, state: EnvState, action: Int[Array, " N"] | Float[Array, "N A"]
    ) -> tuple[EnvState, TimeStep]:
        """Returns the game one step later."""
        place = jnp.minimum(state.steps, episode_limit - 1)
        actions = state.actions.at[place].set(action.astype(action_type))
        later = HostState(state.seed, state.steps + 1, actions)
        return later, call(later)

    return Env(spec, reset, step)


class _Host:
    """The live games of one environment, by their state; safe for several threads."""

    def __init__(self, make: Callable[[], Any], n_envs: int, episode_limit: int, name: str):
        self._make, self._limit = make, episode_limit
        self._live: OrderedDict[tuple[int, int, bytes], Any] = OrderedDict()
        self._kept, self._free = 2 * n_envs, list[Any]()
        self._lock = threading.Lock()
        game = make()
        self.agents = tuple(game.possible_agents)
        name = name or str(getattr(game, "metadata", {}).get("name", type(game).__name__))
        self._spaces = [_space(name, agent, game.action_space(agent)) for agent in self.agents]
        continuous = {space.low is not None for space in self._spaces}
        require(
            len(continuous) == 1, f"{name}: all agents must have discrete actions, or all must have continuous actions"
        )
        first, _ = game.reset(seed=0)
        self._widths = [_vector(first[agent]).size for agent in self.agents]
        counts = [space.size for space in self._spaces]
        self._owned = np.arange(max(counts)) < np.array(counts)[:, None]
        self.spec = EnvSpec(
            name=name,
            n_agents=len(self.agents),
            obs_dim=max(self._widths),
            state_dim=sum(self._widths),
            n_actions=max(counts),
            episode_limit=episode_limit,
            team_reward=False,
            continuous=continuous.pop(),
            obs_widths=tuple(self._widths) if len(set(self._widths)) > 1 else None,
            winnable=False,
        )
        self._free.append(game)
        shown = self._read(first, {}, frozenset(self.agents), frozenset(), 0)
        self.shapes = {key: jax.ShapeDtypeStruct(array.shape, array.dtype) for key, array in shown.items()}

    def show(self, seed: Any, steps: Any, actions: Any) -> dict[str, np.ndarray]:
        """Returns the time steps of games after their last step, for any number of leading axes."""
        seeds, counts, played = (np.asarray(x) for x in (seed, steps, actions))
        lead = seeds.shape
        games = zip(seeds.reshape(-1), counts.reshape(-1), played.reshape(-1, *played.shape[len(lead) :]), strict=True)
        with self._lock:
            rows = [self._one(int(seed), int(count), actions) for seed, count, actions in games]
        return {key: np.stack([row[key] for row in rows]).reshape((*lead, *rows[0][key].shape)) for key in rows[0]}

    def _one(self, seed: int, steps: int, actions: np.ndarray) -> dict[str, np.ndarray]:
        if steps == 0:
            game = self._free.pop() if self._free else self._make()
            obs, _ = game.reset(seed=seed)
            return self._keep(game, seed, 0, actions, self._read(obs, {}, frozenset(self.agents), frozenset(), 0))
        if steps > self._limit:  # after the end; the result is ignored
            return self._over()
        found = self._live.pop(self._key(seed, steps - 1, actions), None)
        if found is None:
            self._one(seed, 0, actions)
            for t in range(1, steps):
                self._one(seed, t, actions)
            found = self._live.pop(self._key(seed, steps - 1, actions))
        game, before = found
        if before["terminated"] | before["truncated"]:
            return self._keep(game, seed, steps, actions, before)
        orders = {
            agent: space.to_game(action)
            for agent, space, action in zip(self.agents, self._spaces, actions[steps - 1], strict=True)
            if agent in game.agents
        }
        obs, reward, ended, cut, _ = game.step(orders)
        stopped = {agent for agent in ended if ended[agent] or cut[agent]}
        alive = frozenset(game.agents) - stopped
        shown = self._read(obs, reward, alive, frozenset(agent for agent in cut if cut[agent]), steps)
        return self._keep(game, seed, steps, actions, shown)

    def _key(self, seed: int, steps: int, actions: np.ndarray) -> tuple[int, int, bytes]:
        return seed, steps, actions[:steps].tobytes()

    def _keep(self, game: Any, seed: int, steps: int, actions: np.ndarray, shown: dict[str, np.ndarray]) -> Any:
        self._live[self._key(seed, steps, actions)] = game, shown
        while len(self._live) > self._kept:
            _, (oldest, _) = self._live.popitem(last=False)
            self._free.append(oldest)
        return shown

    def _read(
        self, obs: dict[str, Any], reward: dict[str, Any], alive: frozenset[str], cut: frozenset[str], steps: int
    ) -> dict[str, np.ndarray]:
        """A time step of the protocol."""
        spec = self.spec
        rows = np.zeros((spec.n_agents, spec.obs_dim), np.float32)
        avail = self._owned.copy()
        for i, agent in enumerate(self.agents):
            if agent in obs:
                row, mask = _vector(obs[agent]), _mask(obs[agent])
                rows[i, : row.size] = row
                if mask is not None and agent in alive and mask.any():
                    avail[i, : mask.size] &= mask
        over = not alive
        timeout = (over and bool(cut)) or (not over and steps >= self._limit)
        return {
            "obs": rows,
            "state": np.concatenate([row[:width] for row, width in zip(rows, self._widths, strict=True)]),
            "avail": avail,
            "alive": np.array([over or agent in alive for agent in self.agents]),
            "reward": np.array([float(reward.get(agent, 0.0)) for agent in self.agents], np.float32),
            "terminated": np.array(over and not timeout),
            "truncated": np.array(timeout),
            "won": np.array(False),
        }

    def _over(self) -> dict[str, np.ndarray]:
        shown = self._read({}, {}, frozenset(), frozenset(), self._limit)
        return {**shown, "terminated": np.array(False), "truncated": np.array(True)}


def _space(name: str, agent: Any, space: Any) -> _Space:
    if hasattr(space, "n") and np.ndim(space.n) == 0:
        return _Space(int(space.n), int(getattr(space, "start", 0)))
    low, high = getattr(space, "low", None), getattr(space, "high", None)
    if low is None or high is None or not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ConfigError(f"{name}: the action space of {agent}, {space}, is neither discrete nor a bounded box")
    return _Space(int(np.prod(space.shape)), low=np.asarray(low), high=np.asarray(high))


def _vector(obs: Any) -> np.ndarray:
    """An observation of one or several arrays as one vector, without the mask of actions."""
    if isinstance(obs, dict) and "observation" in obs:
        obs = obs["observation"]
    leaves = [np.asarray(leaf, np.float32).reshape(-1) for leaf in jax.tree.leaves(obs)]
    return np.concatenate(leaves)


def _mask(obs: Any) -> np.ndarray | None:
    return np.asarray(obs["action_mask"], bool) if isinstance(obs, dict) and "action_mask" in obs else None
