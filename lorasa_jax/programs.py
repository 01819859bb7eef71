"""The programs of a run: mapped over its seeds, and compiled in the background."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache

import jax

from lorasa_jax.devices import Layout
from lorasa_jax.types import PyTree

OPTIONS: dict[str, str | bool] = {
    # Not to hand products and sums to a library which, for sizes like these, takes longer within an update than the
    # compiler's own loops (a third longer, with jax 0.10: benchmarks/update.py --untold).
    "xla_cpu_experimental_ynn_fusion_type": "",
    # How many seconds a device waits for the others before it says so, and before it ends the process. They share cores
    # with other programs, and may be stopped for a while (Ctrl-Z): that is no error.
    "xla_cpu_collective_call_warn_stuck_seconds": "600",
    "xla_cpu_collective_call_terminate_timeout_seconds": "1000000",
}
"""What the compiler is told besides the program, on a CPU."""


@cache
def compiler_options() -> dict[str, str | bool]:
    """Returns those of `OPTIONS` that the compiler knows; a compiler that does not know one needs none."""
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
    """Returns the function mapped over a leading seed axis; a single seed pays nothing for it."""
    if n_seeds > 1:
        return jax.vmap(function)

    def single(*args: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: leaf[None], function(*jax.tree.map(lambda leaf: leaf[0], args)))

    return single


class Programs:
    """The compiled programs of a run. What is not needed yet is compiled while the run goes on.

    Attributes:
        waited: seconds the run stood still for tracing and compilation, those of earlier parts included.
    """

    def __init__(self, n_seeds: int, status: Callable[[str], None], waited: float = 0.0, layout: Layout | None = None):
        self._n_seeds, self._status, self.waited = n_seeds, status, waited
        self._layout = layout or Layout()
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="compile")
        self._jobs: dict[str, Future] = {}

    def submit(self, name: str, function: Callable, *shapes: PyTree) -> PyTree:
        """Starts compiling a function of one seed for all seeds; returns the shapes of what it gives."""
        began = time.perf_counter()
        mapped = over_seeds(function, self._layout.rows_each(self._n_seeds))
        traced = self._layout.trace(mapped, shapes)
        self.waited += time.perf_counter() - began
        self._jobs[name] = self._pool.submit(lambda: traced.lower().compile(compiler_options=compiler_options()))
        return traced.out_info

    def __getitem__(self, name: str) -> Callable:
        """Returns a compiled program, when it is ready."""
        job = self._jobs[name]
        if not job.done():
            self._status(f"compiling {name}")
            began = time.perf_counter()
            wait([job])
            self.waited += time.perf_counter() - began
        return job.result()

    def close(self) -> None:
        """Gives up what has not begun to compile."""
        self._pool.shutdown(wait=False, cancel_futures=True)
