"""Programs mapped over seeds, and compiled in the background."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from helpers import assert_same

from lorasa_jax.programs import Programs, over_seeds


def test_mapping_over_seeds_adds_an_axis_also_for_one():
    def function(x, y):
        return {"sum": (x + y).sum()}

    for n in (1, 3):
        x = jnp.arange(2.0 * n).reshape(n, 2)
        assert_same(over_seeds(function, n)(x, x), {"sum": 2 * np.asarray(x).sum(axis=1)})


def test_a_program_is_compiled_once_and_says_what_it_gives():
    said = []
    programs = Programs(2, said.append, waited=1.5)
    shapes = programs.submit("twice", lambda x: {"twice": 2 * x}, jnp.ones((2, 3)))
    assert shapes["twice"].shape == (2, 3)
    assert programs.waited > 1.5
    assert_same(programs["twice"](jnp.ones((2, 3))), {"twice": np.full((2, 3), 2.0)})
    assert programs["twice"] is programs["twice"]
    assert said in ([], ["compiling twice"])
    programs.close()
