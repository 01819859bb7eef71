"""Code shared by robots that a team controls, for all simulators."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lorasa_jax.envs.base import EnvSpec, TimeStep
from lorasa_jax.envs.mabrax_maps import Maps

EPISODE_STEPS = 1000


class Team(NamedTuple):
    """A robot in the form of the library's environments.

    Attributes:
        spec: the environment's spec.
        show: `show(told, reward, failed, steps) -> TimeStep`, from all observed numbers of the robot.
        torque: `torque(action) -> [J]`: a joint action [N, A] in the order of the robot's motors, clipped to [-1, 1].
    """

    spec: EnvSpec
    show: Callable[[Float[Array, " K"], Float[Array, ""], Bool[Array, ""], Int[Array, ""]], TimeStep]
    torque: Callable[[Float[Array, "N A"]], Float[Array, " J"]]


def make_team(task: str, maps: Maps, width: int) -> Team:
    """Returns the team of a task.

    Args:
        task: robot and split.
        maps: actions and observations of the agents, as columns of the observed numbers.
        width: S, the width of the robot's whole observation, which comes first and is the global state.
    """
    columns, sees = _padded(maps.columns)
    motors, moves = _padded(maps.motors)
    # The index of each motor's torque in the joint action, with all agents concatenated.
    source = np.argsort(np.where(moves, motors, motors.max() + 1).reshape(-1), kind="stable")[: moves.sum()]
    spec = EnvSpec(
        name=task,
        n_agents=len(maps.columns),
        obs_dim=columns.shape[1],
        state_dim=width,
        n_actions=motors.shape[1],
        episode_limit=EPISODE_STEPS,
        team_reward=True,
        continuous=True,
        obs_widths=tuple(map(len, maps.columns)),
        winnable=False,
    )

    def show(
        told: Float[Array, " K"], reward: Float[Array, ""], failed: Bool[Array, ""], steps: Int[Array, ""]
    ) -> TimeStep:
        """Returns the time step of the robot."""
        return TimeStep(
            obs=jnp.where(sees, told[columns], 0.0),
            state=told[:width],
            avail=jnp.asarray(moves),
            alive=jnp.ones(spec.n_agents, bool),
            reward=jnp.full(spec.n_agents, reward, jnp.float32),
            terminated=failed,
            truncated=(steps >= EPISODE_STEPS) & ~failed,
            won=jnp.zeros((), bool),
        )

    def torque(action: Float[Array, "N A"]) -> Float[Array, " J"]:
        return jnp.clip(action.reshape(-1)[source], -1.0, 1.0)

    return Team(spec, show, torque)


def _padded(rows: tuple[tuple[int, ...], ...]) -> tuple[Int[np.ndarray, "N K"], Bool[np.ndarray, "N K"]]:
    """Returns the rows padded with zeros, and a mask of their real entries."""
    owned = np.arange(max(map(len, rows))) < np.array([[len(row)] for row in rows])
    padded = np.zeros(owned.shape, int)
    padded[owned] = np.concatenate(rows)
    return padded, owned


@contextmanager
def still() -> Iterator[None]:
    """Hides messages while a robot is loaded: that brax is only maintained, and that its files have an old format.

    MuJoCo would write the latter to the terminal and to a file in the working directory. It logs to
    the root logger, which would permanently get a handler if it had none.
    """
    import mujoco

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    log = logging.NullHandler()
    logging.root.addHandler(log)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Brax System, piplines and environments", UserWarning)
            yield
    finally:
        logging.root.removeHandler(log)
        mujoco.set_mju_user_warning(before)
