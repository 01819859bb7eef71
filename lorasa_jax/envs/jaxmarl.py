"""Environments of JaxMARL with discrete actions, or vectors in a box: particle worlds and others.

Properties that JaxMARL does not define get safe values: agents are paid individually,
there are no wins, and the global state is the concatenation of all observations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lorasa_jax.config import nearest, require
from lorasa_jax.envs._jaxmarl import load_jaxmarl, make_game
from lorasa_jax.envs.base import Env, EnvSpec, EnvState, TimeStep
from lorasa_jax.envs.mabrax_maps import ROBOTS

Orders = Callable[[Array], list[Array]]

LONGEST = 1000
"""Steps after which an episode is truncated if the game has no time limit."""


class JaxmarlState(NamedTuple):
    """A game's own state, and the steps of the running episode so far."""

    game: Any
    steps: Int[Array, ""]


def make_jaxmarl(task: str, **options: Any) -> Env:
    """Returns an environment of JaxMARL by its name.

    Args:
        task: a name registered with JaxMARL, such as `MPE_simple_spread_v3`.
        options: arguments of the game's constructor, such as `num_agents=5`.

    Raises:
        ConfigError: there is no such environment, it does not take the options, or its actions or observations are not
            supported.
    """
    names = load_jaxmarl().registered_envs
    require(
        task in names,
        f"unknown JaxMARL environment {task!r}{nearest(task, names)}; environments: {', '.join(names)}",
    )
    require(task.split("_")[0] not in ROBOTS, f"{task} is a robot; use --env mabrax --task {task}")
    return jaxmarl_env(make_game(task, **options), task)


def jaxmarl_env(game: Any, name: str = "") -> Env:
    """Returns an instance of a JaxMARL environment as an `Env`, for `lorasa_jax.run(config, env)`.

    An episode that ends after the game's `max_steps` counts as truncated.

    Args:
        game: an instance of `jaxmarl.environments.MultiAgentEnv`, with any arguments.
        name: the name in messages; empty: its class.

    Raises:
        ConfigError: its actions or observations are not supported.
    """
    agents, name = tuple(game.agents), name or type(game).__name__
    spec, owned, orders_of = _spec(game, agents, name)
    clock, available = _clock(game), _available(game, agents, owned, spec)

    def show(state: JaxmarlState, obs: Any, reward: Float[Array, " N"], done: Bool[Array, " N"], over: Any) -> TimeStep:
        """Returns the time step of a state of the game."""
        rows = _vectors(obs, agents)
        cut = state.steps >= spec.episode_limit
        timeout = cut | (over & (state.steps >= (LONGEST if clock is None else clock)))
        alive = ~done | over  # agents that are done before the others are out of the game
        return TimeStep(
            obs=jnp.stack([jnp.pad(row, (0, spec.obs_dim - row.size)) for row in rows]),
            state=jnp.concatenate(rows),
            avail=available(state.game, alive),
            alive=alive,
            reward=reward,
            terminated=over & ~timeout,
            truncated=timeout,
            won=jnp.zeros((), bool),
        )

    def reset(key: PRNGKeyArray) -> tuple[EnvState, TimeStep]:
        """Returns a new game."""
        obs, fresh = game.reset(key)
        state = JaxmarlState(_firm(fresh), jnp.zeros((), jnp.int32))
        n = spec.n_agents
        return state, show(state, obs, jnp.zeros(n), jnp.zeros(n, bool), jnp.zeros((), bool))

    def step(
        key: PRNGKeyArray, state: EnvState, action: Int[Array, " N"] | Float[Array, "N A"]
    ) -> tuple[EnvState, TimeStep]:
        """Returns the game one step later."""
        orders = dict(zip(agents, orders_of(action), strict=True))
        obs, after, reward, done, _ = game.step_env(key, state.game, orders)
        paid = jnp.stack([jnp.asarray(each, jnp.float32).reshape(()) for each in _by_agent(reward, agents)])
        over = jnp.asarray(done["__all__"], bool)
        out = jnp.stack([jnp.asarray(done.get(agent, over), bool).reshape(()) for agent in agents])
        later = JaxmarlState(_firm(after), state.steps + 1)
        return later, show(later, obs, paid, out, over)

    return Env(spec, reset, step, _drawer(game, name))


def _drawer(game: Any, name: str) -> Callable[[EnvState], list[Any]] | None:
    """The function that draws an episode, for particle worlds; None for other games."""
    if not {"rad", "colour", "num_landmarks"} <= vars(game).keys():
        return None

    def draw(states: EnvState) -> list[Any]:
        from lorasa_jax.envs.particles_drawing import draw_mpe  # Pillow is needed here only

        return draw_mpe(jax.device_get(states.game.p_pos), game, name)

    return draw


def _spec(game: Any, agents: tuple[Any, ...], name: str) -> tuple[EnvSpec, np.ndarray, Orders]:
    """The spec of a game, the actions of each agent [N, A], and the conversion of actions for the game."""
    spaces = [game.action_space(agent) for agent in agents]
    discrete = all(hasattr(space, "n") for space in spaces)
    counts, orders_of = _choices(spaces) if discrete else _boxes(name, spaces)
    shown = jax.eval_shape(game.reset, jax.random.key(0))[0]
    require(_is_by_agent(shown, agents), f"{name} has observations that cannot be assigned to agents")
    widths = [row.size for row in jax.eval_shape(lambda obs: _vectors(obs, agents), shown)]
    clock = _clock(game)
    spec = EnvSpec(
        name=name,
        n_agents=len(agents),
        obs_dim=max(widths),
        state_dim=sum(widths),
        n_actions=max(counts),
        # Some games check their time limit before they count the step.
        episode_limit=LONGEST if clock is None else clock + 1,
        team_reward=False,
        continuous=not discrete,
        obs_widths=tuple(widths) if len(set(widths)) > 1 else None,
        winnable=False,
    )
    return spec, np.arange(max(counts)) < np.array(counts)[:, None], orders_of


def _available(game: Any, agents: tuple[Any, ...], owned: np.ndarray, spec: EnvSpec) -> Callable[..., Any]:
    """A function that returns the available actions of each agent, from the game if it defines them."""
    legal = getattr(game, "get_legal_moves", game.get_avail_actions)  # Hanabi uses another name

    def available(state: Any, alive: Bool[Array, " N"]) -> Bool[Array, "N A"]:
        if spec.continuous:
            return jnp.asarray(owned)
        try:
            rows = legal(state)
        except NotImplementedError:
            return jnp.asarray(owned)
        said = jnp.stack([jnp.pad(rows[agent], (0, spec.n_actions - rows[agent].size)) for agent in agents])
        said = said.astype(bool) & owned
        # Dead agents must choose an action, too.
        return jnp.where((alive & said.any(axis=-1))[:, None], said, owned)

    return available


def _is_by_agent(values: Any, agents: tuple[Any, ...]) -> bool:
    """Returns whether a game has values per agent: in a dictionary, in a sequence, or along the first axis."""
    if isinstance(values, dict):
        return set(agents) <= values.keys()
    return len(values) == len(agents) if isinstance(values, tuple | list) else values.shape[:1] == (len(agents),)


def _by_agent(values: Any, agents: tuple[Any, ...]) -> list[Any]:
    """The values of each agent, in the order of the agents."""
    return [values[agent] if isinstance(values, dict) else values[i] for i, agent in enumerate(agents)]


def _vectors(obs: Any, agents: tuple[Any, ...]) -> list[Float[Array, " D"]]:
    """Each agent's observation, which may consist of several arrays, as one vector."""
    leaves = [jax.tree.leaves(each) for each in _by_agent(obs, agents)]
    return [jnp.concatenate([leaf.reshape(-1).astype(jnp.float32) for leaf in own]) for own in leaves]


def _clock(game: Any) -> int | None:
    """Steps after which a game ends an episode; None: no time limit."""
    if hasattr(game, "num_inner_steps"):  # a match of several rounds
        return int(game.num_inner_steps * game.num_outer_steps)
    steps = getattr(game, "max_steps", None)
    return None if steps is None else int(steps)


def _choices(spaces: list[Any]) -> tuple[list[int], Orders]:
    """The number of each agent's actions, and the conversion of actions [N] for the game."""
    return [int(space.n) for space in spaces], list


def _boxes(task: str, spaces: list[Any]) -> tuple[list[int], Orders]:
    """The dimensions of each agent's action, and the conversion of actions in [-1, 1], [N, A], for the game."""
    sides: list[Any] = [(getattr(space, "low", np.inf), getattr(space, "high", np.inf)) for space in spaces]
    require(
        all(np.isfinite(side).all() for ends in sides for side in ends),
        f"{task} has actions that are neither discrete nor in a bounded box; --env jaxmarl supports only these",
    )
    sizes = [int(np.prod(space.shape)) for space in spaces]

    def orders_of(action: Float[Array, "N A"]) -> list[Array]:
        parts = [row[:size].reshape(space.shape) for row, size, space in zip(action, sizes, spaces, strict=True)]
        return [
            low + (jnp.clip(part, -1.0, 1.0) + 1) / 2 * (high - low)
            for part, (low, high) in zip(parts, sides, strict=True)
        ]

    return sizes, orders_of


def _firm(state: Any) -> Any:
    """Returns the state as arrays without weak types, for which a jitted `step` would be compiled twice."""
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, jnp.asarray(leaf).dtype), state)
