"""An id that is looked up is its one-hot vector: the same outputs, the same gradients, of the same parameters."""

from __future__ import annotations

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, assert_close, random_like

from lorasa_jax.config import Config, NetworkConfig
from lorasa_jax.core import ids
from lorasa_jax.core.networks import Network
from lorasa_jax.sharing.policy import make_policy
from lorasa_jax.sharing.schemes import SCHEMES
from lorasa_jax.sharing.variants import side_by_side

LENGTH, BATCH, N, D, OUT, RANK, OWNERS = 3, 5, 4, 3, 2, 2, 2
CASES = {
    "normalised": {"recurrent": False},
    "as it is": {"recurrent": False, "input_norm": False},
    "recurrent from the start": {"layers": 0},
}


def factors(first: str, n_in: int, width: int, *lead: int) -> dict:
    pair = {"left": np.zeros((*lead, n_in, RANK), np.float32), "right": np.zeros((*lead, RANK, width), np.float32)}
    return {first: pair}


@pytest.mark.parametrize(("case", "seen"), [*((case, D) for case in CASES), ("normalised", 2)])
def test_outputs_and_gradients_are_those_of_the_one_hot_vector(case, seen):
    network = Network(NetworkConfig(**{"hidden": 4, "layers": 1, "layers_after": 1, **CASES[case]}), OUT, head_gain=1.0)
    first = network.config.layer_names[0]
    rng = np.random.default_rng(0)
    carry = jnp.asarray(rng.normal(size=(BATCH, network.carry_width)), jnp.float32)
    valid = jnp.arange(D) < seen
    obs = jnp.asarray(rng.normal(size=(LENGTH, BATCH, D)) * valid, jnp.float32)
    opens, owner = jnp.asarray(rng.random((LENGTH, BATCH)) < 0.3), np.eye(OWNERS)[rng.integers(0, OWNERS, (3, BATCH))]
    owner, goal = jnp.asarray(owner, jnp.float32), jnp.asarray(rng.normal(size=(LENGTH, BATCH, OUT)), jnp.float32)

    wide = jnp.zeros((LENGTH, BATCH, D + N))
    params = jax.eval_shape(network.init, KEY, carry, wide, opens)["params"]
    out = params[first]["kernel"].shape[1]
    some, all_rows, one_row = factors(first, D + N, out, OWNERS), factors(first, D + N, out), factors(first, D + 1, out)
    variables = random_like({"params": params, "roles": some, "shared": all_rows, "own": one_row})

    def delta_of(roles, shared, own):
        """Corrections of owners that change, of one owner of several agents, and of the agent alone."""
        given = {"lefts": roles[first]["left"], "rights": roles[first]["right"], **own[first]}
        return side_by_side({first: given}, shared)

    def one_hot(variables, agent):
        seen = jnp.concatenate([obs, jnp.broadcast_to(jax.nn.one_hot(agent, N), (*obs.shape[:-1], N))], axis=-1)
        left = variables["own"][first]["left"]
        rows = jnp.zeros((D + N, RANK)).at[:D].set(left[:D]).at[D + agent].set(left[D])
        own = {first: {**variables["own"][first], "left": rows}}
        given = {"params": variables["params"], "delta": delta_of(variables["roles"], variables["shared"], own)}
        return network.apply(given, carry, seen, opens, jnp.append(valid, jnp.ones(N, bool)), owner)[1]

    def lookup(variables, agent):
        trunk = variables["params"]
        params, row = ids.looked_up(trunk, first, N, agent)
        fold = partial(ids.looked_up_own, trunk=trunk, layer=first, n_ids=N, agent=agent)
        delta = delta_of(jax.vmap(fold)(variables["roles"]), fold(variables["shared"]), fold(variables["own"]))
        delta = side_by_side(delta, {first: ids.beside(row, len(params[first]["kernel"]))})
        return network.apply({"params": params, "delta": delta}, carry, obs, opens, valid, owner, n_ids=N)[1]

    def both(unroll):
        def follow(variables, agent):
            outputs = unroll(variables, agent)
            return jnp.sum(goal * outputs), outputs

        return jax.jit(jax.value_and_grad(follow, has_aux=True))

    agent = jnp.int32(2)
    (_, expected), expected_gradient = both(one_hot)(variables, agent)
    (_, found), gradient = both(lookup)(variables, agent)
    assert_close(found, expected)
    # They reach ten, and normalising three columns enlarges what processors round differently.
    assert_close(gradient, expected_gradient, atol=1e-4, rtol=1e-4)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(expected_gradient))


@pytest.mark.parametrize("input_norm", [True, False])
@pytest.mark.parametrize("scheme", ["ps_id", "lorasa"])
def test_a_sample_costs_the_same_in_a_team_of_any_size(input_norm, scheme):
    """No array of a program has an entry for every two agents: no one-hot ids, no row of an agent's own for each id."""
    config = NetworkConfig(hidden=4, layers=1, layers_after=1, input_norm=input_norm)
    network, n_agents = Network(config, OUT, head_gain=1.0), 300
    policy = make_policy(SCHEMES[scheme](n_agents, Config(rank=1)), network, D)
    carry, obs = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, n_agents, 4), (2, 1, n_agents, D)))

    def loss(params, *inputs):
        return jnp.sum(policy.unroll(params, *inputs)[1])

    params, opens = jax.eval_shape(policy.init, KEY), jax.ShapeDtypeStruct((2, 1), bool)
    learns, plays = jax.make_jaxpr(jax.grad(loss))(params, carry, obs, opens), jax.make_jaxpr(policy.to_play)(params)
    for program in (str(learns), str(plays)):
        shapes = set(re.findall(r"f32\[([\d,]+)\]", program))
        assert f"1,{n_agents + D},4" in shapes  # that of the trunk
        assert max(math.prod(int(n) for n in shape.split(",")) for shape in shapes) < n_agents**2
