"""MABrax: several agents control one robot of brax, each some of its joints.

Physics, rewards and failures are brax's, unchanged. `lorasa_jax.envs.mabrax_maps`
defines the joints that each agent moves and observes.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lorasa_jax.config import MabraxConfig
from lorasa_jax.envs._sealed import sealed
from lorasa_jax.envs.base import Env, EnvState, TimeStep
from lorasa_jax.envs.mabrax_maps import ROBOTS, Skeleton, maps_of, movers, robot_name, tells
from lorasa_jax.envs.robots import make_team, still


class MabraxState(NamedTuple):
    """A robot: brax's physics state, and the steps of the running episode so far."""

    physics: Any
    steps: Int[Array, ""]


def make_mabrax(task: str, config: MabraxConfig) -> Env:
    """Returns a robot controlled by a team.

    Args:
        task: robot and split, such as `ant_4x2`: four agents with two joints each.
        config: settings of the physics and of observations.

    Raises:
        ConfigError: there is no such robot, or it cannot be split this way.
    """
    game = load_robot(robot_name(task), config.backend)
    skeleton = skeleton_of(game.sys)
    maps = maps_of(task, skeleton, config)
    width = len(tells(skeleton, ROBOTS[robot_name(task)]))
    spec, show, torque = make_team(task, maps, width)

    def reset(key: PRNGKeyArray) -> tuple[EnvState, TimeStep]:
        """Returns the robot near its rest pose."""
        fresh = game.reset(key)
        # With a weakly typed leaf, a jitted `step` would be compiled twice.
        physics, obs = jax.tree.map(
            lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), (fresh.pipeline_state, fresh.obs)
        )
        steps = jnp.zeros((), jnp.int32)
        return MabraxState(physics, steps), show(obs, jnp.zeros(()), jnp.zeros((), bool), steps)

    def step(key: PRNGKeyArray, state: EnvState, action: Float[Array, "N A"]) -> tuple[EnvState, TimeStep]:
        """Returns the robot one control step later."""
        after = _advance(game, state.physics, torque(action))
        # A diverged simulation is a failure, too, and its values must not reach the learner.
        sound = jnp.isfinite(after.obs).all() & jnp.isfinite(after.reward)
        obs, reward = jnp.where(sound, after.obs, 0.0), jnp.where(sound, after.reward, 0.0)
        steps = state.steps + 1
        return MabraxState(after.pipeline_state, steps), show(obs, reward, (after.done > 0) | ~sound, steps)

    def draw(states: EnvState) -> list[Any]:
        """Returns pictures of an episode; the states are stacked along a leading axis."""
        from lorasa_jax.envs.mabrax_drawing import draw_robot  # Pillow is needed here only

        return draw_robot(
            jax.device_get(states.physics.q), game.sys.mj_model, movers(skeleton, maps), float(game.dt), task
        )

    return Env(spec, reset, step, draw, fps=20.0)


def _advance(game: Any, physics: Any, torque: Float[Array, " J"]) -> Any:
    """Returns brax's state after one step. From the previous state brax reads only the physics."""
    from brax.envs import State

    nothing = jnp.zeros(())
    return game.step(State(physics, None, nothing, nothing), torque)


# brax


def skeleton_of(system: Any) -> Skeleton:
    """Returns the tree of joints of a system of brax."""
    kinds = system.link_types  # per link: f (free), or the number of degrees of freedom
    degrees = [6 if kind == "f" else int(kind) for kind in kinds]
    link = np.repeat(np.arange(len(kinds)), degrees)
    position = [
        int(dof)
        for i, kind in enumerate(kinds)
        for dof in [*np.flatnonzero(link == i), *([np.flatnonzero(link == i)[-1]] if kind == "f" else [])]
    ]
    return Skeleton(
        names=tuple(system.link_names),
        parent=np.asarray(system.link_parents, int),
        link=link,
        position=np.asarray(position, int),
        motors=np.asarray(system.actuator.qd_id, int),
    )


@cache
def load_robot(name: str, backend: str) -> Any:
    """Returns brax's environment of a robot, without automatic resets and step counts."""
    with still(), jax.debug_infs(False):  # unlimited joints have infinite limits
        return _load_brax().get_environment(name, backend=backend)


@cache
def _load_brax() -> ModuleType:
    """Returns the module `brax.envs`; the first call takes seconds."""
    with sealed():
        from brax import envs
    return envs
