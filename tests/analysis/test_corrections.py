"""What adapters add, as matrices with known norms, ranks and entries."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, assert_same, make_diary, random_params, row_of, small_config, with_roles
from own_networks import OWN

from lorasa_jax.analysis.corrections import (
    Correction,
    corrections,
    drop_smallest,
    effective_rank,
    entry_sizes,
    relative_norm,
    thinned,
)
from lorasa_jax.config import ConfigError
from lorasa_jax.core.own_network import with_networks
from lorasa_jax.core.trees import by_path
from lorasa_jax.learning.system import make_system, own_weights

RNG = np.random.default_rng(0)
LAYERS = ("fc1", "gru_in", "gru_hidden", "after1", "head")


def lorasa(env=None, **changes):
    config = small_config(sharing="lorasa", recurrent=True, alpha=3.0, **changes)
    return make_system(config, env or make_diary(), adapting=True)


def orthogonal(rank: int) -> np.ndarray:
    q, _ = np.linalg.qr(RNG.normal(size=(6, 6)))
    return q[:, :rank] @ q[:rank]


def test_the_effective_rank_counts_equal_singular_values():
    outer = RNG.normal(size=(6, 1)) @ RNG.normal(size=(1, 6))
    deltas = np.stack([outer, 1e-4 * outer, orthogonal(3), 5 * orthogonal(6), np.zeros((6, 6))])
    np.testing.assert_allclose(effective_rank(deltas), [1, 1, 3, 6, 0], atol=1e-6)
    # Singular values 3 and 1: the entropy of (3/4, 1/4).
    unequal = np.diag([3.0, 1.0])[None]
    assert effective_rank(unequal)[0] == pytest.approx(4 / 3**0.75)
    np.testing.assert_allclose(effective_rank(np.array([[1.0, 2.0], [0.0, 0.0]])), [1, 0])  # of vectors


def test_norms_are_of_each_owner_against_its_trunk():
    kernel, delta = np.full((2, 3, 4), 2.0), np.stack([np.full((3, 4), 0.5), np.zeros((3, 4))])
    np.testing.assert_allclose(relative_norm(Correction(kernel, delta)), [0.25, 0.0])


def test_entries_are_counted_against_the_trunks_root_mean_square():
    kernel = np.array([[[3.0, -4.0, 0.0, 5.0, 5.0, 5.0, 0.0, 0.0]]])  # root mean square sqrt(100 / 8)
    delta = np.array([[[0.003, -0.004, 0.03, 0.1, 0.2, 0.3, 0.4, -5.0]]])
    sizes = entry_sizes(Correction(kernel, delta))
    assert sizes["below"] == {"0.001": 1 / 8, "0.01": 3 / 8, "0.1": 6 / 8}
    assert sizes["delta"]["1.0"] == 5 and sizes["kernel"]["0.5"] == 3.5
    assert sizes["delta"]["0.5"] == pytest.approx(0.15)


@pytest.mark.parametrize("shape", [(2, 5, 8), (2, 40)])
def test_the_smallest_entries_of_every_owner_are_dropped(shape):
    delta = RNG.normal(size=shape) * np.array([1.0, 100.0]).reshape(2, *(1,) * (len(shape) - 1))
    assert_same(drop_smallest(delta, 0.0), delta)
    assert_same(drop_smallest(delta, 1.0), np.zeros(shape))
    thin = drop_smallest(delta, 0.8)
    for before, after in zip(delta, thin, strict=True):
        assert np.count_nonzero(after) == 8
        assert_same(after[after != 0], before[after != 0])
        assert np.abs(before[after == 0]).max() < np.abs(after[after != 0]).min()
    assert np.count_nonzero(drop_smallest(np.ones(shape), 0.5)) == 40  # where all are equal, half of them still


@pytest.mark.parametrize("levels", [("agent",), ("team", "unit_type", "agent")])
def test_corrections_are_what_merging_adds(levels):
    env = with_roles(make_diary(), roles=(0, 1, 0))
    system = lorasa(env, levels=levels)
    params = random_params(system.actor)
    found, full = corrections(system, params), own_weights(system, params)
    assert tuple(found) == LAYERS
    for name, layer in found.items():
        assert_same(layer.kernel, np.stack([params.shared[name]["kernel"][0]] * 3))
        assert_close(layer.kernel + layer.delta, full.shared[name]["kernel"])
        assert np.abs(layer.delta).max() > 0.1
    left, right = row_of(params.agents["agent"], 2)["gru_in"].values() if levels == ("agent",) else (None, None)
    if left is not None:
        assert_close(found["gru_in"].delta[2], 1.5 * left @ right)  # alpha / rank


def test_corrections_of_a_network_of_ones_own_are_what_merging_adds():
    config = with_networks(small_config(sharing="lorasa", rank=1), OWN["conv"])
    system = make_system(config, make_diary(), adapting=True)
    params = random_params(system.actor)
    found, full = corrections(system, params), by_path(own_weights(system, params).shared)
    assert {"conv", "attention/query", "attention/out", "head"} <= set(found)
    for name, layer in found.items():
        assert_close(layer.kernel + layer.delta, full[f"{name}/kernel"])
        assert_close(effective_rank(layer.matrices), [1] * 3)
    assert_same(by_path(thinned(own_weights(system, params), found, 0.0).shared), full)


def test_without_small_entries_a_team_stands_between_itself_and_its_trunks():
    config = small_config(sharing="seps_lora")
    system = make_system(config, make_diary(), adapting=True)
    params = random_params(system.actor)
    full, layers = own_weights(system, params), corrections(system, params)
    assert_close(thinned(full, layers, 0.0), full)
    trunks = jax.tree.map(lambda leaf: leaf[jnp.array(config.groups)], params.shared)
    assert_same(thinned(full, layers, 1.0).shared, trunks)
    assert np.any(np.asarray(thinned(full, layers, 0.5).shared["fc1"]["kernel"]) != full.shared["fc1"]["kernel"])


def test_who_has_nothing_on_a_frozen_trunk_has_no_corrections():
    env = make_diary()
    for scheme in ("ps", "nps", "mtl", "hyper", "mask"):
        system = make_system(small_config(sharing=scheme), env)
        assert corrections(system, random_params(system.actor)) == {}
    first = make_system(small_config(sharing="lorasa"), env)
    assert corrections(first, random_params(first.actor)) == {}


def test_roles_that_change_have_corrections_of_their_own():
    env = with_roles(make_diary(), n_roles=2)
    system = lorasa(env, levels=("unit_type",))
    params = random_params(system.actor)
    found = corrections(system, params)
    assert found["head"].delta.shape == (2, 8, 3)
    parts = row_of(params.agents["unit_type"], 1)["head"]
    assert_close(found["head"].delta[1], 1.5 * parts["left"] @ parts["right"])
    both = lorasa(env, levels=("unit_type", "agent"))
    with pytest.raises(ConfigError, match="only be computed for one level and one trunk"):
        corrections(both, random_params(both.actor))
