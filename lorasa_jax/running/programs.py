"""The programs of a run, mapped over its seeds and compiled in the background."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from typing import Any

import jax

from lorasa_jax.core.types import PyTree
from lorasa_jax.running.devices import Layout
from lorasa_jax.surroundings import COMPILED, cores, require_switches

OPTIONS: dict[str, str | bool] = {
    # Do not pass products and sums to a library. For these sizes, updates take a third longer with it than with the
    # compiler's own loops (jax 0.10: benchmarks/update.py --untold).
    "xla_cpu_experimental_ynn_fusion_type": "",
    # Optimise less. This saves up to two fifths of the compilation time and costs no speed (docs/performance.md).
    "xla_backend_optimization_level": "1",
}
"""Compiler options on a CPU."""

ONCE: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
"""Compiler options of a program that runs once."""


@cache
def compiler_options(once: bool = False) -> dict[str, str | bool]:
    """Returns the entries of `OPTIONS` that the compiler knows.

    Args:
        once: the program runs once, so it is compiled quickly, without optimisation.
    """
    if once:
        return {name: ONCE.get(name, value) for name, value in compiler_options().items()}
    if jax.default_backend() != "cpu":
        return {}
    lowered = jax.jit(lambda x: x).lower(0.0)

    def is_known(option: tuple[str, str | bool]) -> bool:
        try:
            lowered.compile(compiler_options=dict([option]))
        except jax.errors.JaxRuntimeError:
            return False
        return True

    return dict(filter(is_known, OPTIONS.items()))


def over_seeds(function: Callable, n_seeds: int) -> Callable:
    """Returns the function mapped over a leading seed axis; without overhead for a single seed."""
    if n_seeds > 1:
        return jax.vmap(function)

    def single(*args: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: leaf[None], function(*jax.tree.map(lambda leaf: leaf[0], args)))

    return single


class Programs:
    """The compiled programs of a run. Programs that are not needed yet are compiled during the run.

    Attributes:
        waited: seconds that the run waited for tracing and compilation, including earlier parts of the run.

    Raises:
        ConfigError: jit is disabled.
    """

    def __init__(self, n_seeds: int, status: Callable[[str], None], waited: float = 0.0, layout: Layout | None = None):
        require_switches(COMPILED)
        self._n_seeds, self._status, self.waited = n_seeds, status, waited
        self._layout = layout or Layout()
        self._workers = min(cores(), 2)
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="compile")
        self._jobs: dict[str, Future] = {}
        self._later: Callable[[], None] | None = None
        self._submitting: Future | None = None
        self._named = ""  # the program in the last status

    def submit(self, name: str, function: Callable, *shapes: PyTree, once: bool = False) -> PyTree:
        """Starts compiling a function of one seed for all seeds; returns the shapes of its results.

        Args:
            name: name of the program.
            function: a function of one seed.
            shapes: its arguments for all seeds, or their shapes.
            once: the program runs once, so it need not be fast.
        """
        mapped = over_seeds(function, self._layout.rows_each(self._n_seeds))
        mapped.__name__ = name.replace(" ", "_")  # its name in profiles and dumps
        began = time.perf_counter()
        traced = self._layout.trace(mapped, shapes)
        if self._submitting is None:  # otherwise a worker traces
            self.waited += time.perf_counter() - began
        options = compiler_options(once)
        self._jobs[name] = self._pool.submit(lambda: traced.lower().compile(compiler_options=options))
        return traced.out_info

    def later(self, rest: Callable[[], None]) -> None:
        """Stores a function that submits the programs that are not needed at first."""
        self._later = rest

    def idle(self) -> None:
        """Starts the deferred compilations, unless there is only one core. Call it when no program is awaited."""
        if self._workers > 1:
            self._begin_rest()

    def _begin_rest(self) -> None:
        if self._later is not None:
            self._submitting, self._later = self._pool.submit(self._later), None

    def __getitem__(self, name: str) -> Callable:
        """Waits for a compiled program and returns it."""
        if name not in self._jobs:
            self._begin_rest()
            if self._submitting is not None:
                self._wait_for(name, self._submitting)
        return self._wait_for(name, self._jobs[name])

    def _wait_for(self, name: str, job: Future) -> Any:
        if not job.done():
            if name != self._named:
                self._status(f"compiling {name}")
            self._named = name
            began = time.perf_counter()
            wait([job])
            self.waited += time.perf_counter() - began
        return job.result()

    def close(self) -> None:
        """Cancels compilations that have not started."""
        self._pool.shutdown(wait=False, cancel_futures=True)
