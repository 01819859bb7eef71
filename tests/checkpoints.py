"""A run with checkpoints, for the tests of what writes and reads them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, two_phases

from lorasa_jax.config import ConfigError
from lorasa_jax.core.types import TrainState
from lorasa_jax.learning.switching import Evaluation
from lorasa_jax.running.state import ADAPTERS, SHARED, Best, RunState
from lorasa_jax.storage.arrays import write
from lorasa_jax.storage.checkpoints import load, take_snapshot


def run_state(train: TrainState, phase: str) -> RunState:
    """A run of one seed, with numbers that JSON has to carry to the last bit."""
    train = jax.tree.map(lambda leaf: leaf[None], train)
    return RunState(
        phase=phase,
        train=train,
        best=Best.none(jax.tree.map(jnp.zeros_like, train))._replace(returns=jnp.array([2 / 3], jnp.float32)),
        switch_steps=(None,) if phase == SHARED else (64,),
        curve=(Evaluation(32, (0.1 + 0.2,), (0.0,)), Evaluation(64, (float(np.float32(1 / 3)),), (1.0,))),
        random_return=(-1e-300,),
        evaluation_interval=5,
        compile_seconds=1.5,
        train_seconds=2 / 3,
    )


def numbered(state: RunState, iteration: int) -> RunState:
    """The state, as if so many iterations had been done."""
    return state._replace(train=state.train._replace(iteration=jnp.array([iteration])))


def keep_run(directory: Path) -> SimpleNamespace:
    """A run at two of its moments, one in each phase, in memory and on disk."""
    phases = two_phases()
    first = phases.shared(phases.init(KEY))
    second = phases.adapters(phases.adapters(phases.attach_adapters(first)))
    states = {SHARED: run_state(first, SHARED), ADAPTERS: run_state(second, ADAPTERS)}
    paths = {phase: write(directory, take_snapshot(state, phases.config)) for phase, state in states.items()}
    return SimpleNamespace(config=phases.config, env=phases.env, states=states, directory=directory, paths=paths)


def refusal(path: Path, config: Any = None, env: Any = None) -> str:
    """The one line that refuses a checkpoint."""
    with pytest.raises(ConfigError) as error:
        load(path, config or two_phases().config, env or two_phases().env)
    assert "\n" not in str(error.value)
    return str(error.value)
