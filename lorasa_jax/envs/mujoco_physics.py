"""Robots in MuJoCo on the host: many at a time, as functions from arrays to arrays.

A robot is what MuJoCo integrates (`SPEC`: time, positions, velocities, and where its solver starts from) and how far it
has come along the track, all float64. Nothing else of a simulation reaches the next step. Places, velocities, forces
and inertias of bodies are read when Gymnasium reads them: after `mj_step`, which leaves them as they were before the
last of its steps, and `mj_rnePostConstraint`.

Axes: B robots, Q positions, F velocities, W numbers of a robot's state, K of what is told of it, J motors.
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
"""Warnings that a simulation has given before a step. The first of a kind would go to the terminal and to a file."""
UNSTABLE = [int(getattr(mujoco.mjtWarning, f"mjWARN_BAD{what}")) for what in ("QPOS", "QVEL", "QACC")]
"""Warnings of numbers that have become too large; MuJoCo then puts the robot back to its rest pose."""
SPEC = int(mujoco.mjtState.mjSTATE_FULLPHYSICS) | int(mujoco.mjtState.mjSTATE_WARMSTART)


class Record(NamedTuple):
    """Robots after a reset or a step.

    Attributes:
        state: time, positions, velocities, the solver's start, and the place along the track.
        told: the whole observation, and behind it what agents alone see.
        pay: the reward, and 1 where the robot has failed.
    """

    state: Float[np.ndarray, "B W"]
    told: Float[np.ndarray, "B K"]
    pay: Float[np.ndarray, "B 2"]


class Physics:
    """A robot of MuJoCo, stepped many at a time by several threads.

    Attributes:
        model: MuJoCo's description of it.
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
        self._idle: list[Any] = []  # simulations that no thread uses

    def reset(self, out: Record, noise: Float[np.ndarray, "B K"], threads: int = 1) -> None:
        """Puts robots near their rest pose, each position and velocity as far from it as its noise says."""
        self._spread(self._reset, threads, out, noise)

    def step(
        self, out: Record, state: Float[np.ndarray, "B W"], torque: Float[np.ndarray, "B J"], threads: int = 1
    ) -> None:
        """Puts robots where they are a step later; torques are in [-1, 1]."""
        self._spread(self._step, threads, out, state, torque)

    def _spread(self, work: Callable, threads: int, out: Record, *inputs: np.ndarray) -> None:
        """Shares the robots among threads; which of them steps which robot changes nothing."""
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
        """Returns a simulation that this thread may use."""
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
        """Returns room for what is read of each simulation."""
        nbody = self.sizes.bodies
        shapes = {
            "xpos": (nbody, 3), "xipos": (nbody, 3), "cinert": (nbody, 10), "cvel": (nbody, 6),
            "qfrc_actuator": (self.sizes.velocities,), "cfrc_ext": (nbody, 6),
        }  # fmt: skip
        return {name: np.empty((count, *shapes[name])) for name in self._read}

    def _numbers(self, state: Float[np.ndarray, "B W"]) -> tuple[np.ndarray, np.ndarray]:
        """Returns positions and velocities of a state, whose first number is the time."""
        nq, nv, _ = self.sizes
        return state[:, 1 : 1 + nq], state[:, 1 + nq : 1 + nq + nv]

    def _place(self, state: Float[np.ndarray, "B W"], seen: dict[str, np.ndarray]) -> Float[np.ndarray, " B"]:
        """Returns how far robots have come, as their pay reckons it."""
        if self.robot.place == "position":
            return state[:, 1]
        if self.robot.place == "body":
            return seen["xpos"][:, 1, 0]
        mass = self.model.body_mass
        return (seen["xipos"][:, :, 0] * mass).sum(axis=1) / mass.sum()

    def _observe(self, out: Record, seen: dict[str, np.ndarray]) -> None:
        """Fills in the observation; what is told of bodies leaves out the world."""
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
        """Fills in the reward and the failure; a simulation that has blown up is one, and shows nothing."""
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
        """Returns which robots stand."""
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
    """Returns the threads that all robots share."""
    return ThreadPoolExecutor(threads, thread_name_prefix="mujoco")


def _load(file: str | Callable[[], str]) -> Any:
    """Returns MuJoCo's model of a robot.

    Raises:
        ConfigError: the package that describes it is not installed.
    """
    if callable(file):
        return mujoco.MjModel.from_xml_string(file())
    found = importlib.util.find_spec("gymnasium")  # whose import takes long, and is not needed
    require(
        found is not None and bool(found.submodule_search_locations),
        "MuJoCo's robots need the package gymnasium, which describes them: pip install 'lorasa-jax[mujoco]'",
    )
    assert found is not None and found.submodule_search_locations is not None
    return mujoco.MjModel.from_xml_path(str(Path(found.submodule_search_locations[0], "envs/mujoco/assets", file)))
