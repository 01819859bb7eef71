"""Checks an environment against its `EnvSpec`: shapes during tracing, values during evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lorasa_jax.checks import ConfigError, require
from lorasa_jax.envs.base import Env, EnvSpec, TimeStep

HINTS = {
    "reward": "one number per agent; pay a team with jnp.full(n_agents, reward)",
    "state": "one vector for the whole team",
    "obs": "one row per agent",
    "avail": "one row per agent: which of its actions it may take, or which dimensions of an action it has",
    "role": "the role of each agent",
}


def checked(env: Env) -> Env:
    """Returns the environment with `reset` and `step` that are checked whenever they are traced.

    Numbers become float32, roles int32, and weak types strong types. `truncated` becomes false if `terminated` is true.
    The checks add nothing to the compiled program.

    Raises:
        ConfigError: (by `reset` and `step`, when they are traced) an array does not have the shape or type of the spec,
            or the state changes its structure from step to step.
    """

    def reset(key: Array) -> tuple[Any, TimeStep]:
        state, timestep = _pair(env.spec, "reset", env.reset(key))
        return jax.tree.map(_strong, state), _conforming(env.spec, "reset", timestep)

    def step(key: Array, state: Any, action: Array) -> tuple[Any, TimeStep]:
        after, timestep = _pair(env.spec, "step", env.step(key, state, action))
        after = jax.tree.map(_strong, after)
        _require_same_state(env.spec, state, after)
        return after, _conforming(env.spec, "step", timestep)

    return env._replace(reset=reset, step=step)


def _strong(leaf: Any) -> Array:
    """An array without a weak type; a weak type would make JAX compile a step again."""
    leaf = jnp.asarray(leaf)
    return jax.lax.convert_element_type(leaf, leaf.dtype)


def _pair(spec: EnvSpec, name: str, found: Any) -> tuple[Any, TimeStep]:
    fits = isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], TimeStep)
    require(fits, f"{spec.name}: {name} must return (state, TimeStep), got {type(found).__name__}")
    return found


def _conforming(spec: EnvSpec, name: str, timestep: TimeStep) -> TimeStep:
    """The time step with the types of the library."""
    n = spec.n_agents
    expected: dict[str, tuple[tuple[int, ...], str, Any]] = {
        "obs": ((n, spec.obs_dim), "[n_agents, obs_dim]", jnp.float32),
        "state": ((spec.state_dim,), "[state_dim]", jnp.float32),
        "avail": ((n, spec.n_actions), "[n_agents, n_actions]", jnp.bool_),
        "alive": ((n,), "[n_agents]", jnp.bool_),
        "reward": ((n,), "[n_agents]", jnp.float32),
        "terminated": ((), "a scalar", jnp.bool_),
        "truncated": ((), "a scalar", jnp.bool_),
        "won": ((), "a scalar", jnp.bool_),
    }
    if spec.n_roles:
        expected["role"] = ((n,), "[n_agents]", jnp.int32)
    said = timestep._asdict()
    fields = {
        field: _field(spec, f"{name} shows {field}", field, said[field], *what) for field, what in expected.items()
    }
    fields["truncated"] = fields["truncated"] & ~fields["terminated"]
    return timestep._replace(**fields)


def _field(spec: EnvSpec, where: str, field: str, value: Any, shape: tuple[int, ...], words: str, dtype: Any) -> Array:
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{spec.name}: {where} as {type(value).__name__}, expected an array, {words}") from None
    hint = f" ({HINTS[field]})" if field in HINTS else ""
    require(
        array.shape == shape,
        f"{spec.name}: {where} of shape {list(array.shape)}, expected {list(shape)}, {words} of its EnvSpec{hint}",
    )
    kinds = {jnp.bool_: "b", jnp.int32: "iu", jnp.float32: "fiub"}[dtype]
    kind = "f" if jnp.issubdtype(array.dtype, jnp.floating) else array.dtype.kind
    require(
        kind in kinds,
        f"{spec.name}: {where} of type {array.dtype}, expected {jnp.dtype(dtype).name}",
    )
    return jax.lax.convert_element_type(array, dtype)


def _require_same_state(spec: EnvSpec, before: Any, after: Any) -> None:
    old, new = (dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (before, after))
    structures: list[Any] = [jax.tree.structure(state) for state in (before, after)]
    require(
        structures[0] == structures[1],
        f"{spec.name}: step returns a state of another structure than reset; keep the same fields",
    )
    for path, leaf in old.items():
        then, now = ((jnp.shape(x), jnp.result_type(x)) for x in (leaf, new[path]))
        where = jax.tree_util.keystr(path) or "itself"
        require(
            then == now,
            f"{spec.name}: the state's {where} is {then[1]}{list(then[0])} after reset and {now[1]}{list(now[0])} "
            "after step; a state must keep its shapes and types",
        )


FAULTS: dict[str, Callable[[EnvSpec, int], str]] = {
    "obs": lambda spec, i: (
        f"entry {i % spec.obs_dim} of agent {i // spec.obs_dim}'s observation is not a finite number"
    ),
    "state": lambda spec, i: f"entry {i} of the state is not a finite number",
    "reward": lambda spec, i: f"the reward of agent {i} is not a finite number",
    "avail": lambda spec, i: (
        f"agent {i} has no action that it may take: avail must be true for at least one, also for the dead"
    ),
    "padding": lambda spec, i: (
        f"entry {i % spec.obs_dim} of agent {i // spec.obs_dim}'s observation lies behind its "
        f"EnvSpec.obs_widths {spec.obs_widths} and is not zero"
    ),
    "team_reward": lambda spec, i: f"agent {i} is paid otherwise than agent 0, and EnvSpec says team_reward=True",
    "role": lambda spec, i: f"the role of agent {i} is not in [0, {spec.n_roles}), as EnvSpec.n_roles says",
    "won": lambda spec, i: "won is true before the end of the episode",
    "limit": lambda spec, i: (
        f"an episode goes on after {spec.episode_limit} steps, the episode_limit of its EnvSpec: "
        "truncated must be true by then"
    ),
}
"""Possible faults of an environment's values. Each function makes the message from the position of the fault."""


def find_faults(
    spec: EnvSpec, seen: TimeStep, over: Bool[Array, " E"], steps: Int[Array, ""] | int
) -> Int[Array, " F"]:
    """Returns the position at which a batch of time steps violates the spec, for each of `FAULTS`; -1: no violation.

    Args:
        spec: the environment's spec.
        seen: time steps, [E, ...].
        over: games that were over before this step; they are not checked.
        steps: steps of the running episodes so far.
    """
    inside = jnp.arange(spec.obs_dim) < jnp.array(spec.obs_widths or (spec.obs_dim,) * spec.n_agents)[:, None]
    pay = seen.reward
    apart = jnp.abs(pay - pay[:, :1]) > 1e-4 * (1 + jnp.abs(pay[:, :1]))
    done = seen.terminated | seen.truncated
    nothing = jnp.zeros_like(over)
    wrong = {
        "obs": ~jnp.isfinite(seen.obs),
        "state": ~jnp.isfinite(seen.state),
        "reward": ~jnp.isfinite(pay),
        "avail": ~seen.avail.any(axis=-1),
        "padding": (seen.obs != 0) & ~inside,
        "team_reward": apart if spec.team_reward else nothing,
        "role": (seen.role < 0) | (seen.role >= spec.n_roles) if spec.n_roles else nothing,
        "won": seen.won & ~done,
        "limit": ~done & (steps >= spec.episode_limit),
    }
    return jnp.stack([_first(wrong[name], over) for name in FAULTS])


def _first(wrong: Bool[Array, "E ..."], over: Bool[Array, " E"]) -> Int[Array, ""]:
    """The first faulty position in any running game, without the index of the game."""
    places = (wrong.reshape(len(over), -1) & ~over[:, None]).any(axis=0)
    return jnp.where(places.any(), jnp.argmax(places), -1).astype(jnp.int32)


def describe_faults(spec: EnvSpec, faults: Any) -> str | None:
    """Returns one line with the environment and its fault; None: no fault.

    Args:
        spec: the environment's spec.
        faults: from `find_faults`, with any leading axes.
    """
    for name, place in zip(FAULTS, np.asarray(faults).reshape(-1, len(FAULTS)).max(axis=0), strict=True):
        if place >= 0:
            return f"{spec.name}: {FAULTS[name](spec, int(place))}"
    return None


def first_not_finite(
    spec: EnvSpec,
    obs: Float[np.ndarray, "... N D"],
    state: Float[np.ndarray, "... S"],
    reward: Float[np.ndarray, "... N"],
) -> str | None:
    """Returns one line that names an entry of the environment's values that is not finite; None: all are finite."""
    for name, array, rest in (("obs", obs, 2), ("state", state, 1), ("reward", reward, 1)):
        bad = ~np.isfinite(array).reshape(-1, *array.shape[array.ndim - rest :]).all(axis=0)
        if bad.any():
            return f"{spec.name}: {FAULTS[name](spec, int(np.argmax(bad)))}"
    return None


def require_fits(env: Env) -> None:
    """Traces `reset` and `step` once, without compiling or running anything.

    Raises:
        ConfigError: their results do not fit the environment's spec.
    """
    spec, trial, key = env.spec, checked(env), jax.random.key(0)
    state, _ = jax.eval_shape(trial.reset, key)
    action = ((spec.n_agents, spec.n_actions), jnp.float32) if spec.continuous else ((spec.n_agents,), jnp.int32)
    jax.eval_shape(trial.step, key, state, jax.ShapeDtypeStruct(*action))
