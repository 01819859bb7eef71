"""Simulates batches of MuJoCo robots on the host, as functions from arrays to arrays.

The state of a robot consists of MuJoCo's integration state (`SPEC`: time, positions, velocities, and the solver's warm
start) and the distance along the track, all float64. No other data of a simulation reaches the next step. Positions,
velocities, forces and inertias of bodies are read at the same time as in Gymnasium: after `mj_rnePostConstraint` and
after `mj_step`, which leaves them at their values before its last substep.

Axes: B robots, Q positions, F velocities, W numbers of a robot's state, K observed numbers, J motors.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import mujoco
import numpy as np
from jaxtyping import Bool, Float

from lorasa_jax.config import require
from lorasa_jax.envs.mujoco_robots import Robot
from lorasa_jax.envs.mujoco_views import Sizes, told_width
from lorasa_jax.envs.robots import still

QUIET = 1000
"""Initial counts of warnings. MuJoCo prints the first warning of each kind to the terminal and to a file."""
UNSTABLE = [int(getattr(mujoco.mjtWarning, f"mjWARN_BAD{what}")) for what in ("QPOS", "QVEL", "QACC")]
"""Warnings of too large numbers, after which MuJoCo resets the robot to its rest pose."""
SPEC = int(mujoco.mjtState.mjSTATE_FULLPHYSICS) | int(mujoco.mjtState.mjSTATE_WARMSTART)


class Record(NamedTuple):
    """Robots after a reset or a step.

    Attributes:
        state: time, positions, velocities, the solver's warm start, and the distance along the track.
        told: the whole observation, followed by numbers that only agents see.
        pay: the reward, and 1 if the robot has failed.
    """

    state: Float[np.ndarray, "B W"]
    told: Float[np.ndarray, "B K"]
    pay: Float[np.ndarray, "B 2"]


class Physics:
    """A robot of MuJoCo, simulated in batches by several threads.

    Attributes:
        model: its MuJoCo model.
        sizes: numbers of positions, velocities and bodies.
        state_size: W.
        told_size: K.
        dt: seconds of a step.
    """

    def __init__(self, robot: Robot) -> None:
        with still():
            self.model = _load(robot.file)
        self.robot, self.sizes = robot, Sizes(self.model.nq, self.model.nv, self.model.nbody)
        self.state_size = mujoco.mj_stateSize(self.model, SPEC) + 1
        self.told_size = told_width(robot, self.sizes)
        self.dt = float(self.model.opt.timestep) * robot.frame_skip
        where = {"position": (), "body": ("xpos",), "mass": ("xipos",)}[robot.place]
        self._read = (*where, *robot.blocks)
        self._idle: list[Any] = []  # unused simulations

    def reset(self, out: Record, noise: Float[np.ndarray, "B K"], threads: int = 1) -> None:
        """Resets robots to their rest pose plus noise of positions and velocities."""
        self._spread(self._reset, threads, out, noise)

    def step(
        self, out: Record, state: Float[np.ndarray, "B W"], torque: Float[np.ndarray, "B J"], threads: int = 1
    ) -> None:
        """Moves robots one step; torques are in [-1, 1]."""
        self._spread(self._step, threads, out, state, torque)

    def _spread(self, work: Callable, threads: int, out: Record, *inputs: np.ndarray) -> None:
        """Divides the robots among threads; the division does not affect the results."""
        count = len(out.state)
        threads = min(threads, count)
        if threads == 1:
            return work(out, *inputs)
        cuts = [count * k // threads for k in range(threads + 1)]
        jobs = []
        for first, last in pairwise(cuts):
            rows = slice(first, last)
            jobs.append(_pool(threads).submit(work, Record(*(part[rows] for part in out)), *(x[rows] for x in inputs)))
        for job in jobs:
            job.result()

    def _take(self) -> Any:
        """Returns an unused simulation."""
        try:
            return self._idle.pop()
        except IndexError:
            return mujoco.MjData(self.model)

    def _reset(self, out: Record, noise: Float[np.ndarray, "B K"]) -> None:
        data, model, nq = self._take(), self.model, self.sizes.positions
        seen = self._arrays(len(noise))
        views = [(seen[name], getattr(data, name)) for name in self._read]
        for i in range(len(noise)):
            mujoco.mj_resetData(model, data)
            data.warning.number[:] = QUIET
            data.qpos += noise[i, :nq]
            data.qvel += noise[i, nq:]
            mujoco.mj_forward(model, data)
            mujoco.mj_getState(model, data, out.state[i, :-1], SPEC)
            for array, view in views:
                array[i] = view
        self._idle.append(data)
        self._observe(out, seen)
        out.state[:, -1] = self._place(out.state, seen)
        out.pay[:] = 0

    def _step(self, out: Record, state: Float[np.ndarray, "B W"], torque: Float[np.ndarray, "B J"]) -> None:
        data, model, frames = self._take(), self.model, self.robot.frame_skip
        low, high = model.actuator_ctrlrange.T
        ctrl = (low + high) / 2 + (high - low) / 2 * torque
        seen = self._arrays(len(state))
        views = [(seen[name], getattr(data, name)) for name in self._read]
        behind, target, warned, after = bool(self.robot.blocks), data.ctrl, data.warning.number, out.state
        warnings = np.empty((len(state), len(warned)), int)
        starts, ends = state[:, :-1], after[:, :-1]
        for i, (start, push, end) in enumerate(zip(starts, ctrl, ends, strict=True)):
            mujoco.mj_setState(model, data, start, SPEC)
            target[:] = push
            warned.fill(QUIET)
            mujoco.mj_step(model, data, frames)
            if behind:
                mujoco.mj_rnePostConstraint(model, data)
            mujoco.mj_getState(model, data, end, SPEC)
            warnings[i] = warned
            for array, view in views:
                array[i] = view
        self._idle.append(data)
        self._observe(out, seen)
        after[:, -1] = self._place(after, seen)
        self._earn(out, state, ctrl, seen, (warnings[:, UNSTABLE] == QUIET).all(axis=1))

    def _arrays(self, count: int) -> dict[str, np.ndarray]:
        """Returns arrays for the data read from each simulation."""
        nbody = self.sizes.bodies
        shapes = {
            "xpos": (nbody, 3), "xipos": (nbody, 3), "cinert": (nbody, 10), "cvel": (nbody, 6),
            "qfrc_actuator": (self.sizes.velocities,), "cfrc_ext": (nbody, 6),
        }  # fmt: skip
        return {name: np.empty((count, *shapes[name])) for name in self._read}

    def _numbers(self, state: Float[np.ndarray, "B W"]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the positions and velocities of a state; its first number is the time."""
        nq, nv, _ = self.sizes
        return state[:, 1 : 1 + nq], state[:, 1 + nq : 1 + nq + nv]

    def _place(self, state: Float[np.ndarray, "B W"], seen: dict[str, np.ndarray]) -> Float[np.ndarray, " B"]:
        """Returns the distance along the track, as the reward defines it."""
        if self.robot.place == "position":
            return state[:, 1]
        if self.robot.place == "body":
            return seen["xpos"][:, 1, 0]
        mass = self.model.body_mass
        return (seen["xipos"][:, :, 0] * mass).sum(axis=1) / mass.sum()

    def _observe(self, out: Record, seen: dict[str, np.ndarray]) -> None:
        """Fills in the observation; blocks about bodies leave out the world."""
        robot, obs = self.robot, out.told
        nq, nv, _ = self.sizes
        positions, velocities = self._numbers(out.state)
        column = nq - robot.hidden
        obs[:, :column] = positions[:, robot.hidden :]
        obs[:, column : column + nv] = np.clip(velocities, -robot.clip, robot.clip)
        column += nv
        for block in robot.blocks:
            told = seen[block][:, 6:] if block == "qfrc_actuator" else seen[block][:, 1:].reshape(len(obs), -1)
            if block == "cfrc_ext":
                told = np.clip(told, -robot.pay.force, robot.pay.force)
            obs[:, column : column + told.shape[1]] = told
            column += told.shape[1]
        if robot.unclipped:
            obs[:, column:] = velocities

    def _earn(
        self,
        out: Record,
        before: Float[np.ndarray, "B W"],
        ctrl: Float[np.ndarray, "B J"],
        seen: dict[str, np.ndarray],
        stable: Bool[np.ndarray, " B"],
    ) -> None:
        """Fills in rewards and failures. A diverged simulation is a failure with a zero observation."""
        pay, after = self.robot.pay, out.state
        healthy = self._healthy(after)
        reward = pay.speed * (after[:, -1] - before[:, -1]) / self.dt + pay.healthy * healthy
        reward -= pay.control * np.square(ctrl).sum(axis=1)
        if pay.contact:
            forces = np.square(np.clip(seen["cfrc_ext"], -pay.force, pay.force)).sum(axis=(1, 2))
            reward -= np.minimum(pay.contact * forces, pay.most_contact)
        sound = stable & np.isfinite(reward) & np.isfinite(out.told).all(axis=1)
        out.told[~sound] = 0
        out.pay[:, 0] = np.where(sound, reward, 0)
        out.pay[:, 1] = ~(healthy & sound)

    def _healthy(self, state: Float[np.ndarray, "B W"]) -> Bool[np.ndarray, " B"]:
        """Returns which robots have not failed."""
        pay, (positions, velocities) = self.robot.pay, self._numbers(state)
        planar = self.robot.trunk[0] == (1, 2)
        checks: list[tuple[np.ndarray, tuple[float, float]]] = []
        if pay.height != (-np.inf, np.inf):
            checks.append((positions[:, 1 if planar else 2], pay.height))
        if pay.angle != (-np.inf, np.inf):
            checks.append((positions[:, 2], pay.angle))
        healthy = np.ones(len(state), bool)
        for value, (low, high) in checks:
            healthy &= (low < value) & (value < high)
        if pay.bound < np.inf:
            rest = np.concatenate([positions[:, 2:], velocities], axis=1)
            healthy &= (np.abs(rest) < pay.bound).all(axis=1)
        return healthy


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Returns the thread pool that all robots share."""
    return ThreadPoolExecutor(threads, thread_name_prefix="mujoco")


def _load(file: str | Callable[[], str]) -> Any:
    """Returns MuJoCo's model of a robot.

    Raises:
        ConfigError: the package with its description is not installed.
    """
    if callable(file):
        return mujoco.MjModel.from_xml_string(file())
    found = importlib.util.find_spec("gymnasium")  # its import is slow and not needed
    require(
        found is not None and bool(found.submodule_search_locations),
        "MuJoCo's robots need the package gymnasium, which describes them: pip install 'lorasa-jax[mujoco]'",
    )
    assert found is not None and found.submodule_search_locations is not None
    return mujoco.MjModel.from_xml_path(str(Path(found.submodule_search_locations[0], "envs/mujoco/assets", file)))
