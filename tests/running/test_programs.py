"""Programs mapped over seeds, and compiled in the background."""

from __future__ import annotations

import threading

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_same

from lorasa_jax.running import programs as module
from lorasa_jax.running.programs import Programs, over_seeds


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
    assert_same(programs["twice"](jnp.ones((2, 3))), {"twice": jnp.full((2, 3), 2.0)})
    assert programs["twice"] is programs["twice"]
    assert said in ([], ["compiling twice"])
    programs.close()


@pytest.mark.parametrize("cores", [1, 2])
def test_what_is_put_off_waits_for_a_second_core_or_until_it_is_asked_for(monkeypatch, cores):
    monkeypatch.setattr(module, "cores", lambda: cores)
    begun = threading.Event()

    def rest():
        begun.set()
        programs.submit("twice", lambda x: 2 * x, jnp.ones((1, 3)))

    programs = Programs(1, lambda text: None)
    programs.later(rest)
    programs.submit("once", lambda x: x + 1, jnp.ones((1, 3)), once=True)
    assert_same(programs["once"](jnp.ones((1, 3))), jnp.full((1, 3), 2.0))
    assert not begun.is_set()
    waited = programs.waited
    programs.idle()
    assert begun.wait(timeout=10 if cores > 1 else 0.2) == (cores > 1)
    assert_same(programs["twice"](jnp.ones((1, 3))), jnp.full((1, 3), 2.0))
    assert begun.is_set() and programs.waited >= waited
    programs.close()


def test_what_goes_wrong_in_what_was_put_off_is_said_by_who_asks():
    programs = Programs(1, lambda text: None)

    def rest():
        raise ValueError("no such thing")

    programs.later(rest)
    with pytest.raises(ValueError, match="no such thing"):
        programs["evaluate"]
    programs.close()
