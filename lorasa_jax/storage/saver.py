"""When a run writes checkpoints. `storage/checkpoints.py` and `storage/arrays.py` define their content."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from lorasa_jax.config import Config
from lorasa_jax.files import reason
from lorasa_jax.running.callbacks import Callback
from lorasa_jax.running.devices import anywhere, is_leader
from lorasa_jax.running.state import Report, RunState
from lorasa_jax.storage.arrays import clean, complete, write
from lorasa_jax.storage.checkpoints import take_snapshot


class Saver(Callback):
    """The callback that writes checkpoints of a run: at intervals, at the switch, and at the end.

    The state is copied at once. A thread writes the copies one after the other. If a checkpoint cannot be written,
    the error is reported and the run continues. Each process has a saver, and the first process writes.

    Args:
        directory: the directory of the checkpoints.
        config: the settings of the run.
        every: minimum number of seconds between two checkpoints; 0: one after every iteration.
        complain: receives one line if a checkpoint could not be written.

    Attributes:
        lost: the error of the last checkpoint; None: it was written.
    """

    def __init__(self, directory: Path, config: Config, every: float, complain: Callable[[str], None]):
        self.directory, self._config, self._every, self._complain = directory, config, every, complain
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._job: Future[Path] | None = None
        self.lost: OSError | None = None
        self._last, self._phase = time.monotonic(), ""
        if is_leader():
            clean(directory)

    def begin(self, state: RunState) -> None:
        """Records the phase in which the run begins."""
        self._phase = state.phase

    def __call__(self, report: Report, state: RunState) -> None:
        """Writes the state if a checkpoint is due."""
        if self._job is not None and self._job.done():
            self.wait()
        switched, self._phase = self._phase != state.phase, state.phase
        in_time = time.monotonic() - self._last >= self._every
        # Clocks differ between processes, and all processes must take part in copying distributed arrays.
        if anywhere(is_leader() and (switched or in_time)):
            self.take(state)

    def end(self, state: RunState) -> None:
        """Writes the last state."""
        self.take(state)

    def take(self, state: RunState) -> None:
        """Writes this state unless it was written before."""
        self.wait()
        self._last = time.monotonic()
        exists = os.path.exists(self.directory / str(state.rows))
        if anywhere(is_leader() and not exists):
            snapshot = take_snapshot(state, self._config)
            if is_leader():
                self._job = self._pool.submit(write, self.directory, snapshot)

    def wait(self) -> None:
        """Waits until the last checkpoint is on disk or has failed."""
        job, self._job = self._job, None
        if job is None:
            return
        try:
            job.result()
            self.lost = None
        except OSError as error:
            self.lost = error
            newest = self.newest()
            kept = f"the last one is still {newest}" if newest else "there is none yet"
            self._complain(f"a checkpoint could not be written: {reason(error)}; {kept}")

    def newest(self) -> Path | None:
        """Returns the newest complete checkpoint."""
        return max(complete(self.directory), key=lambda path: int(path.name), default=None)

    def close(self) -> None:
        """Waits for the last checkpoint and stops the thread."""
        self.wait()
        self._pool.shutdown()
