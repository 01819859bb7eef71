"""Algorithms, as data."""

from __future__ import annotations

import numpy as np
import pytest

from lorasa_jax.config import PPOConfig
from lorasa_jax.schedules import SCHEDULES


@pytest.mark.parametrize("n_agents", [1, 3])
@pytest.mark.parametrize("algo", SCHEDULES)
def test_every_stage_moves_distinct_agents_that_exist(algo, n_agents):
    schedule = SCHEDULES[algo](n_agents, PPOConfig())
    for block in np.asarray(schedule.block):
        assert len(set(block.tolist())) == len(block)
        assert set(block.tolist()) <= set(range(n_agents))
    assert schedule.clip_eps.shape == schedule.block.shape[:1]
    assert (np.asarray(schedule.clip_eps) > 0).all()


def test_mappo_moves_everyone_in_every_epoch_with_one_clip():
    schedule = SCHEDULES["mappo"](3, PPOConfig(epochs=4, clip_eps=0.1))
    np.testing.assert_array_equal(schedule.block, [[0, 1, 2]] * 4)
    np.testing.assert_allclose(schedule.clip_eps, [0.1] * 4)
