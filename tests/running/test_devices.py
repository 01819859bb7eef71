"""Many devices compute what one does: rows and environments spread, and several processes."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, assert_same, small_config
from jax.sharding import NamedSharding, PartitionSpec

from lorasa_jax import surroundings
from lorasa_jax.config import ConfigError, NetworkConfig
from lorasa_jax.core.axes import by_shard, merge_axes, split_axes, spread
from lorasa_jax.core.networks import Network
from lorasa_jax.envs.toy import make_toy
from lorasa_jax.learning.trainer import make_trainer
from lorasa_jax.running import devices
from lorasa_jax.running.devices import ENVS, ROWS, Layout, choose_layout
from lorasa_jax.running.loop import run
from lorasa_jax.running.programs import over_seeds
from lorasa_jax.running.state import Result

TESTS, REPOSITORY = Path(__file__).parent, Path(__file__).parents[2]
RUN = REPOSITORY / "experiments" / "run.py"


# In this process, with a single device


def pretend(monkeypatch: pytest.MonkeyPatch, per_process: int, processes: int = 1) -> None:
    """Lets the layout be chosen on devices that are not there."""
    found = [
        SimpleNamespace(process_index=p, id=p * per_process + d) for p in range(processes) for d in range(per_process)
    ]
    monkeypatch.setattr(devices.jax, "devices", lambda: found)
    monkeypatch.setattr(devices.jax, "device_count", lambda: len(found))
    monkeypatch.setattr(devices.jax, "process_count", lambda: processes)
    monkeypatch.setattr(devices, "_mesh", lambda by, used: SimpleNamespace(axis_names=(by,), used=[d.id for d in used]))


def chosen(shard: str, n_rows: int, n_envs: int = 8) -> tuple[str | None, list[int], list[str]]:
    said: list[str] = []
    layout = choose_layout(shard, n_rows, small_config(n_envs=n_envs, ppo={"minibatches": 2}), said.append)
    return layout.by, layout.mesh.used if layout.mesh else [], said


@pytest.mark.parametrize(
    ("shard", "n_rows", "n_envs", "by", "used"),
    [
        ("auto", 8, 8, ROWS, [0, 1, 2, 3]),
        ("auto", 6, 8, ROWS, [0, 1, 2]),
        ("auto", 7, 8, None, []),  # only one device could do a seventh of it
        ("auto", 7, 128, ENVS, [0, 1, 2, 3]),
        ("auto", 8, 128, ROWS, [0, 1, 2, 3]),
        ("auto", 1, 8, None, []),  # too few environments to be worth it
        ("auto", 1, 128, ENVS, [0, 1, 2, 3]),
        ("auto", 1, 96, ENVS, [0, 1, 2]),  # 32 for each, and 48 blocks of 2
        ("envs", 6, 8, ENVS, [0, 1, 2, 3]),
        ("envs", 1, 12, ENVS, [0, 1, 2]),  # 6 blocks of 2
        ("rows", 1, 128, None, []),
        ("off", 8, 128, None, []),
    ],
)
def test_the_layout_gives_equal_shares_to_as_many_devices_as_can_be(monkeypatch, shard, n_rows, n_envs, by, used):
    pretend(monkeypatch, 4)
    found, devices_used, said = chosen(shard, n_rows, n_envs)
    assert (found, devices_used) == (by, used)
    # What is shared is said, and by how many.
    assert len(said) == (shard != "off")
    for line in said:
        assert (" on 4 devices" if len(used) == 4 else f" on {max(len(used), 1)} of 4 devices") in line
        assert by is None or line.startswith(f"{n_rows} runs" if by == ROWS else f"{n_envs} environments")


def test_processes_get_equal_shares_or_a_clear_line(monkeypatch):
    pretend(monkeypatch, per_process=4, processes=2)
    assert chosen("auto", 6)[1] == [0, 1, 2, 4, 5, 6]  # three of each
    assert chosen("auto", 1)[:2] == (ENVS, [0, 1, 4, 5])
    for shard, n_rows, n_envs, words in [
        ("rows", 3, 8, "3 rows cannot be shared by 2 processes; take a multiple of 2"),
        ("envs", 1, 6, "= 3 environments cannot be shared by 2 processes"),
        ("off", 2, 8, "there are 2 processes; start one"),
    ]:
        with pytest.raises(ConfigError, match=words):
            chosen(shard, n_rows, n_envs)


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, 2), ({"JAX_NUM_CPU_DEVICES": "3"}, 3), ({"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}, 4)],
)
def test_every_core_is_a_device_unless_told_otherwise(given, expected):
    code = """
import os
os.sched_getaffinity = lambda pid: {0, 1}  # two cores, wherever this runs
import jax
from lorasa_jax.surroundings import use_cores
use_cores()
print(jax.device_count(), os.environ["XLA_FLAGS"].count("collective_call"))
use_cores()  # changes nothing any more
print(jax.device_count())
"""
    env = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    said = subprocess.run(
        [sys.executable, "-c", code], env={**env, **given}, capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == [str(expected), "2", str(expected)]


def test_nothing_is_spread_over_one_device():
    """The same arrays, and plain reshapes."""
    layout, x = choose_layout("auto", 4, small_config()), jnp.arange(24.0).reshape(2, 4, 3)
    assert layout == Layout()
    assert layout.place(x) is x
    assert spread(x) is x
    assert_same(merge_axes(x), x.reshape(8, 3))
    assert_same(split_axes(merge_axes(x), 2), x)


def test_several_processes_must_be_introduced(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"did not find each other .*set JAX_COORDINATOR_ADDRESS"):
        surroundings.join_processes()
    monkeypatch.setenv("JAX_PROCESS_ID", "first")
    with pytest.raises(ConfigError, match="must be whole numbers"):
        surroundings.join_processes()


@pytest.mark.parametrize(
    ("phase", "changes"),
    [
        ("adapters", {"sharing": "lorasa", "recurrent": True, "critic": {"scope": "agent", "recurrent": True}}),
        ("shared", {"sharing": "nps", "critic": {"scope": "agent", "separate": True}}),
        ("shared", {"sharing": "mtl"}),
    ],
)
def test_memory_follows_the_formula(phase, changes):
    spec = importlib.util.spec_from_file_location("memory", REPOSITORY / "benchmarks" / "memory.py")
    memory = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(memory)
    env = make_toy("probe_death", 3)
    trainer, arrays, _ = memory.measure(small_config(**changes), env, phase)
    held_by_env = memory.nbytes(jax.eval_shape(env.reset, jax.random.key(0))[0])
    assert memory.formula(trainer, held_by_env) == arrays


# In a process of its own, with several devices


def on_devices(n: int, function: Callable[[], None]) -> None:
    """Calls a function of this module in a process with n devices."""
    flags = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={n}",
        "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]),
    }
    code = f"import test_devices; test_devices.{function.__name__}()"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **flags}, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr


def envs_of(n: int) -> Layout:
    return Layout(devices._mesh(ENVS, jax.devices()[:n]))


def _merging_keeps_environments_where_they_are() -> None:
    layout, x = envs_of(4), jnp.arange(2 * 8 * 3.0).reshape(1, 2, 8, 3)
    index = jnp.array([[1], [0], [2], [3], [5], [4], [7], [6]])  # within the parts of the devices, in pairs

    def program(x: jax.Array) -> dict[str, jax.Array]:
        joined = merge_axes(x)
        own = by_shard(lambda x, envs: x[:, envs[:, 0]].swapaxes(0, 1), x, index, 1)
        return {"joined": joined, "back": split_axes(joined, 2), "dealt": own, "odd": merge_axes(x[:, :3])}

    compiled = layout.trace(lambda x: jax.vmap(program)(x), (x,)).lower().compile()
    got, x = jax.tree.map(lambda leaf: np.asarray(leaf[0]), compiled(x)), np.asarray(x[0])
    assert_same(got["back"], x)
    assert_same(got["joined"], x.reshape(2, 4, 2, 3).swapaxes(0, 1).reshape(16, 3))
    assert_same(got["odd"], x[:, :3].reshape(6, 3))
    assert_same(got["dealt"], x[:, index[:, 0]].swapaxes(0, 1))


def _rows_are_worked_on_apart() -> None:
    """Each device loops as long as its own rows need, and asks no other."""
    layout = choose_layout(ROWS, 6, small_config())
    assert layout.by == ROWS
    assert layout.mesh.size == 3

    def double_until(limit: jax.Array) -> dict[str, jax.Array]:
        return {"found": jax.lax.while_loop(lambda x: x < limit, lambda x: 2 * x, jnp.ones(()))}

    limits = jnp.array([1.0, 2.0, 100.0, 3.0, 9.0, 1000.0])
    program = layout.trace(over_seeds(double_until, layout.rows_each(6)), (limits,)).lower().compile()
    found = program(layout.place(limits))["found"]
    assert_same(found, jnp.array([1.0, 2.0, 128.0, 4.0, 16.0, 1024.0]))
    assert len(found.sharding.device_set) == 3
    assert not COLLECTIVES & words(program)


COLLECTIVES = {"all-reduce", "all-gather", "all-to-all", "collective-permute"}


def words(program: Any) -> set[str]:
    return set(re.findall(r" ([a-z-]+?)(?:-start)?\(", program.as_text()))


def _spread_environments_change_nothing_and_share_only_sums() -> None:
    config = small_config(sharing="ps", ppo={"lr": 3e-3, "critic_lr": 3e-3, "minibatches": 2})
    trainer = make_trainer(config, make_toy("probe_death", 3))
    one, many = Layout(), choose_layout(ENVS, 1, config)
    step, start = over_seeds(trainer.step, 1), jax.jit(over_seeds(trainer.init, 1))(jnp.stack([jax.random.key(0)]))
    programs = [layout.trace(step, (jax.eval_shape(lambda x: x, start),)).lower().compile() for layout in (one, many)]
    (expected, before), (state, after) = programs[0](start), programs[1](many.place(start))
    assert COLLECTIVES & words(programs[1]) == {"all-reduce"}
    assert state.rollout.first.sharding.spec == PartitionSpec(None, ENVS)
    assert_close(state.learner, expected.learner)
    assert_close(state.rollout.timestep, expected.rollout.timestep)
    assert_close(after, before, atol=1e-4)


def _devices_meet_once_for_the_weights_of_a_recurrence() -> None:
    network, length, n_envs = Network(NetworkConfig(hidden=4), 2, head_gain=0.01), 5, 8
    layout = choose_layout(ENVS, 1, small_config(n_envs=n_envs, ppo={"minibatches": 2}))
    inputs = jnp.zeros((n_envs, 4)), jnp.ones((length, n_envs, 3)), jnp.zeros((length, n_envs), bool)
    variables = network.init(jax.random.key(0), *inputs)
    gradient = jax.grad(lambda variables, *inputs: jnp.sum(network.apply(variables, *inputs)[1] ** 2))
    assert layout.mesh is not None
    everywhere, envs, steps = (NamedSharding(layout.mesh, PartitionSpec(*axes)) for axes in ((), (ENVS,), (None, ENVS)))
    with jax.set_mesh(layout.mesh):
        mapped = jax.jit(gradient, in_shardings=(everywhere, envs, steps, steps), out_shardings=everywhere)
        program = mapped.lower(variables, *inputs).compile().as_text()
    computations = {text.split(" ", 1)[0]: text for text in re.split(r"\n(?=%)", program)}
    bodies = [computations[name] for name in re.findall(r"body=(%[\w.-]+)", program)]
    assert len(bodies) >= 2  # there and back
    assert " all-reduce(" in program
    assert not any(" all-reduce(" in body for body in bodies)


def small_run(shard: str, seeds: int, **changes: Any) -> tuple[Result, list[Any]]:
    ppo = {"lr": 3e-3, "critic_lr": 3e-3, "minibatches": 2, "epochs": 2}
    whole = {"sharing": "lorasa", "n_envs": 8, "switch_step": 128, "total_steps": 256, "evaluations": 2, **changes}
    config = small_config(seeds=seeds, ppo=ppo, **whole)
    reports: list[Any] = []
    callbacks = [lambda report, state: reports.append(report.metrics)]
    return run(config, make_toy("probe_death", 3), callbacks, shard=shard), reports


def check_run(shard: str, seeds: int, **changes: Any) -> None:
    (one, before), (many, after) = (small_run(name, seeds, **changes) for name in ("off", shard))
    assert len(one.states.iteration.sharding.device_set) == 1
    assert len(many.states.iteration.sharding.device_set) == 2
    assert_close(many.states.learner, one.states.learner, atol=1e-4)
    assert_close(after, before, atol=1e-3)
    assert_close(many.final, one.final, atol=1e-5)
    assert (devices.row(many.states, seeds - 1).key == one.states.key[seeds - 1]).all()


def _a_run_of_rows_does_not_depend_on_the_devices() -> None:
    check_run(ROWS, 2)


def _a_run_of_environments_does_not_depend_on_the_devices() -> None:
    check_run(ENVS, 1, algo="a2po", recurrent=True)


def test_merging_keeps_environments_where_they_are():
    on_devices(4, _merging_keeps_environments_where_they_are)


def test_rows_are_worked_on_apart():
    on_devices(4, _rows_are_worked_on_apart)


def test_devices_meet_once_for_the_weights_of_a_recurrence():
    on_devices(2, _devices_meet_once_for_the_weights_of_a_recurrence)


@pytest.mark.slow
def test_spread_environments_change_nothing_and_share_only_sums():
    on_devices(2, _spread_environments_change_nothing_and_share_only_sums)


@pytest.mark.slow
def test_a_run_of_rows_does_not_depend_on_the_devices():
    """Both phases."""
    on_devices(2, _a_run_of_rows_does_not_depend_on_the_devices)


@pytest.mark.slow
def test_a_run_of_environments_does_not_depend_on_the_devices():
    """Both phases, agents one by one, recurrent."""
    on_devices(2, _a_run_of_environments_does_not_depend_on_the_devices)


# Several processes

TINY = [
    "--env", "toy", "--cache", "False", "--n-envs", "8", "--rollout-length", "8", "--evaluations", "2",
    "--eval-episodes", "16", "--switch-step", "128", "--seed", "3", "--ppo.minibatches", "2", "--gif", "False",
]  # fmt: skip


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def launch(n: int, *flags: str) -> list[str]:
    """Starts n processes of a run that know of each other; returns what each printed, when all have ended well."""
    address = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": str(n)}
    command = [sys.executable, str(RUN), *TINY, *flags, "--distributed", str(n > 1)]
    processes = [
        subprocess.Popen(
            command, env={**os.environ, **address, "JAX_PROCESS_ID": str(i)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for i in range(n)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * n, said
    return [out for out, _ in said]


def measured(directory: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    clocks = ("steps_per_second", "wall_seconds")
    return [{k: v for k, v in row.items() if k not in clocks and isinstance(v, int | float)} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("spread", [["--seeds", "2"], ["--shard", "envs"]])
def test_two_processes_are_one_run(tmp_path, spread):
    """They stop halfway, and go on from the checkpoint that the first one wrote."""
    one, two = tmp_path / "one", tmp_path / "two"
    launch(1, *spread, "--total-steps", "256", "--out", str(one))
    first, second = launch(2, *spread, "--total-steps", "192", "--out", str(two))
    assert str(two) in first
    assert "steps" not in second  # the first one speaks for both
    before = measured(two)
    launch(2, "--resume", str(two), "--total-steps", "256")
    assert measured(two)[: len(before)] == before
    assert_close(measured(two), measured(one), atol=1e-3)
    final = [json.loads((directory / "summary.json").read_text())["final"] for directory in (one, two)]
    assert_close(*final)
    assert sorted(path.name for path in (two / "checkpoints").iterdir())
