"""Every program of a run can be lowered for a GPU: nothing that only a CPU has is part of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import small_config

from lorasa_jax.config import Config
from lorasa_jax.envs import make_env
from lorasa_jax.running import loop
from lorasa_jax.running.callbacks import Callbacks
from lorasa_jax.running.programs import Programs

PROGRAMS = {
    "init", "collect", "evaluate", "attach adapters",
    *(f"{phase} {what}" for phase in ("shared", "adapters") for what in ("weights", "update", "best")),
}  # fmt: skip


class Lowered(Programs):
    """Lowers programs for CUDA, in the place of compiling them."""

    def submit(self, name: str, function: Callable, *shapes: Any, once: bool = False) -> Any:
        mapped = loop.over_seeds(function, self._layout.rows_each(self._n_seeds))
        traced = self._layout.trace(mapped, shapes)
        self.texts = {**getattr(self, "texts", {}), name: traced.lower(lowering_platforms=("cuda",)).as_text()}
        return traced.out_info


def lower(config: Config, shard: str = "off") -> dict[str, str]:
    """Returns the programs of a run with two phases, lowered for CUDA."""
    loop.Programs, ours = Lowered, loop.Programs
    try:
        runner = loop._Runner(config, make_env(config), Callbacks([]), shard=shard)
        runner.programs._later()
    finally:
        loop.Programs = ours
    assert shard == "off" or runner.layout.by == shard
    return runner.programs.texts


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"env": "particles", "task": "spread_4x2"},
        {"env": "smax", "task": "2s3z", "recurrent": True},
        {"env": "smax", "task": "smacv2_5_units", "levels": ("unit_type", "agent")},
        {"env": "smax", "task": "2s3z", "algo": "a2po", "recurrent": True},
        {"env": "mabrax", "task": "hopper_3x1", "standardise": True},
    ],
    ids=lambda changes: "-".join(str(changes[name]) for name in ("task", "algo") if name in changes),
)
def test_every_program_of_a_run_is_lowered_for_a_gpu(changes):
    assert lower(small_config(**{"sharing": "lorasa", **changes})).keys() == PROGRAMS


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["envs", "rows"])
def test_programs_for_eight_devices_are_lowered_for_a_gpu(shard):
    """In a process that has eight devices."""
    here = Path(__file__).parent
    script = (
        "import test_platforms as t; from helpers import small_config;"
        "config = small_config(sharing='lorasa', env='smax', task='2s3z', recurrent=True, n_envs=16, seeds=8);"
        f"assert t.lower(config, {shard!r}).keys() == t.PROGRAMS"
    )
    paths = os.pathsep.join(map(str, (here, here.parent, here.parents[1])))
    env = {**os.environ, "PYTHONPATH": paths, "JAX_NUM_CPU_DEVICES": "8"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
