"""Multi-agent MuJoCo: several agents control one robot of MuJoCo, each some of its joints.

Physics, rewards and failures equal those of Gymnasium's version 5 to the bit, and agents are those of MaMuJoCo
(`lorasa_jax.envs.mujoco_robots`). The compiled program calls MuJoCo on the host. The call is a pure function of the
robot's whole state, which is carried as the bits of its float64 numbers. So a run can be resumed to the bit, and robots
stepped together move as each would alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

from lorasa_jax.config import MujocoConfig
from lorasa_jax.core.axes import ENVS, shards
from lorasa_jax.envs.base import Env, EnvState, TimeStep
from lorasa_jax.envs.mabrax_maps import Maps, Skeleton, movers
from lorasa_jax.envs.mujoco_physics import Physics, Record
from lorasa_jax.envs.mujoco_robots import Joint, Robot, robot_of
from lorasa_jax.envs.mujoco_views import agents_of, maps_of, obs_width
from lorasa_jax.envs.robots import make_team
from lorasa_jax.surroundings import cores


class MujocoState(NamedTuple):
    """A robot: the bits of MuJoCo's state, and the steps of the running episode so far."""

    bits: UInt32[Array, " W"]
    steps: Int[Array, ""]


def make_mujoco(task: str, config: MujocoConfig) -> Env:
    """Returns a robot controlled by a team.

    Args:
        task: robot and split, such as `halfcheetah_2x3`: two agents with three joints each.
        config: settings of observations and threads.

    Raises:
        ConfigError: there is no such robot, it cannot be split this way, or its description is not installed.
    """
    name, robot, split = robot_of(task)
    physics = load_physics(task if callable(robot.file) else name)
    skeleton = skeleton_of(physics.model)
    agents = agents_of(name, robot, split, skeleton)
    maps = maps_of(robot, agents, physics.sizes, config)
    spec, show, torque = make_team(task, maps, obs_width(robot, physics.sizes))
    reset_robot, step_robot = on_host(physics, "reset", config.threads), on_host(physics, "step", config.threads)

    def reset(key: PRNGKeyArray) -> tuple[EnvState, TimeStep]:
        """Returns the robot near its rest pose."""
        bits, told, _, _ = reset_robot(start_noise(key, robot, physics))
        steps = jnp.zeros((), jnp.int32)
        return MujocoState(bits, steps), show(told, jnp.zeros(()), jnp.zeros((), bool), steps)

    def step(key: PRNGKeyArray, state: EnvState, action: Float[Array, "N A"]) -> tuple[EnvState, TimeStep]:
        """Returns the robot one control step later."""
        bits, told, reward, failed = step_robot(state.bits, torque(action))
        steps = state.steps + 1
        return MujocoState(bits, steps), show(told, reward, failed, steps)

    def draw(states: EnvState) -> list[Any]:
        """Returns pictures of an episode; the states are stacked along a leading axis."""
        from lorasa_jax.envs.mabrax_drawing import draw_robot  # Pillow is needed here only

        numbers = np.ascontiguousarray(jax.device_get(states.bits)).view(np.float64)
        positions = numbers[:, 1 : 1 + physics.sizes.positions]
        return draw_robot(positions, physics.model, body_movers(physics.model, agents), physics.dt, task)

    return Env(spec, reset, step, draw, fps=20.0)


@cache
def load_physics(name: str) -> Physics:
    """Returns the physics of a robot, by its name, or by its task if the split sets the number of segments."""
    return Physics(robot_of(name)[1])


def start_noise(key: PRNGKeyArray, robot: Robot, physics: Physics) -> Float[Array, " K"]:
    """Returns the noise of a start state: uniform, for some robots with normal noise of velocities."""
    position_key, velocity_key = jax.random.split(key)
    position = jax.random.uniform(position_key, (physics.sizes.positions,), minval=-1.0, maxval=1.0)
    shape = (physics.sizes.velocities,)
    velocity = (
        jax.random.normal(velocity_key, shape)
        if robot.normal
        else jax.random.uniform(velocity_key, shape, minval=-1.0, maxval=1.0)
    )
    return robot.noise * jnp.concatenate([position, velocity])


# The robot's tree of joints


def skeleton_of(model: Any) -> Skeleton:
    """Returns the tree of joints of a MuJoCo model; bodies without joints belong to their parents."""
    moved = [body for body in range(1, model.nbody) if model.body_dofnum[body]]
    link = {0: -1}
    for body in range(1, model.nbody):  # parents precede children
        link[body] = moved.index(body) if body in moved else link[int(model.body_parentid[body])]
    return Skeleton(
        names=tuple(model.body(body).name for body in moved),
        parent=np.array([link[int(model.body_parentid[body])] for body in moved]),
        link=np.array([link[int(body)] for body in model.dof_bodyid]),
        position=np.arange(model.nv),
        motors=np.array(model.jnt_dofadr[model.actuator_trnid[:, 0]]),
    )


def body_movers(model: Any, agents: tuple[tuple[Joint, ...], ...]) -> list[int | None]:
    """Returns the agent that moves each body except the world; None: no agent."""
    skeleton = skeleton_of(model)
    by_link = movers(skeleton, Maps(tuple(tuple(joint.motor for joint in own) for own in agents), ()))
    links = {int(body): int(link) for body, link in zip(model.dof_bodyid, skeleton.link, strict=True)}
    return [by_link[links[body]] if body in links else None for body in range(1, model.nbody)]


# From the compiled program to the host


def on_host(physics: Physics, method: str, threads: int | None) -> Callable[..., tuple[Array, Array, Array, Array]]:
    """Returns a method of the physics for one robot in a compiled program.

    Under `vmap` it is called once for all robots, or once per device if environments are spread over devices.

    Args:
        physics: the robot.
        method: `reset`, with the noise [Q + F], or `step`, with the bits [2 W] and torques [J].
        threads: threads of every device; None: all cores, shared by the devices of the traced program.

    Returns:
        A function that returns bits, observed numbers, reward, and whether the robot has failed.
    """
    n_bits, n_told = 2 * physics.state_size, physics.told_size
    width = n_bits + n_told + 2
    width += width % 2  # align every robot to float64

    def run(n_threads: int, out: np.ndarray, *inputs: np.ndarray) -> None:
        """Fills `out`, [..., width]; inputs have the same leading axes."""
        out = out.reshape(-1, width)
        record = Record(
            out.view(np.float64)[:, : physics.state_size],
            out.view(np.float32)[:, n_bits : n_bits + n_told],
            out.view(np.float32)[:, n_bits + n_told : n_bits + n_told + 2],
        )
        flat = [x.reshape(-1, x.shape[-1]) for x in inputs]
        flat = [x.view(np.float64) if x.dtype == np.uint32 else x for x in flat]
        getattr(physics, method)(record, *flat, threads=n_threads)

    def call(*inputs: Array) -> tuple[Array, Array, Array, Array]:
        devices = max(1, jax.sharding.get_abstract_mesh().size)
        packed = _by_device(_callback(run, threads or max(1, cores() // devices), width))(*inputs)
        numbers = jax.lax.bitcast_convert_type(packed[n_bits : n_bits + n_told + 2], jnp.float32)
        return packed[:n_bits], numbers[:n_told], numbers[n_told], numbers[n_told + 1] > 0

    return call


def _callback(run: Callable[..., None], threads: int, width: int) -> Callable[..., Array]:
    """Returns `run` as a function of one robot's arrays, which `vmap` turns into a single call for all robots.

    On a CPU it works on XLA's own buffers without copies. It calls no function of JAX, which could wait for the thread
    that the call occupies.
    """
    shape = jax.ShapeDtypeStruct((width,), jnp.uint32)
    if jax.default_backend() == "cpu":
        from jax.experimental.buffer_callback import buffer_callback

        def in_place(context: Any, out: Any, *inputs: Any) -> None:
            run(threads, np.asarray(out), *map(np.asarray, inputs))

        return buffer_callback(in_place, shape, vmap_method="broadcast_all")

    def copied(*inputs: Any) -> np.ndarray:
        arrays = [np.ascontiguousarray(x) for x in inputs]
        out = np.empty((*arrays[0].shape[:-1], width), np.uint32)
        run(threads, out, *arrays)
        return out

    return lambda *inputs: jax.pure_callback(copied, shape, *inputs, vmap_method="broadcast_all")


def _by_device(call: Callable[..., Array]) -> Callable[..., Array]:
    """Returns a call that, mapped over spread environments, each device makes for its own environments."""
    if shards() == 1:
        return call

    @custom_vmap
    def one(*inputs: Array) -> Array:
        return call(*inputs)

    @one.def_vmap
    def mapped(size: int, batched: Any, *inputs: Array) -> tuple[Array, bool]:
        every = [x if has else jnp.broadcast_to(x, (size, *x.shape)) for x, has in zip(inputs, batched, strict=True)]
        many = jax.vmap(call)
        if size % shards() == 0:
            many = jax.shard_map(many, in_specs=PartitionSpec(ENVS), out_specs=PartitionSpec(ENVS), check_vma=False)
        return many(*every), True

    return one
