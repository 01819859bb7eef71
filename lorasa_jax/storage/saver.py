"""When a run is written to disk; what is written, and how, is in `storage/checkpoints.py` and `storage/arrays.py`."""

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
    """The callback that writes checkpoints of a run: in time, at the switch, and at the end.

    What is due is copied at once and written in a thread,
    one after the other. A checkpoint that cannot be written is reported, and the run goes on.
    Of several processes each has a saver, and the first one writes.

    Args:
        directory: where the checkpoints go.
        config: of the run.
        every: seconds between two checkpoints, at least; 0: one after every iteration.
        complain: takes one line when a checkpoint could not be written.

    Attributes:
        lost: why the last checkpoint that was due is not there; None: it is.
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
        """Takes note of the phase in which the run begins."""
        self._phase = state.phase

    def __call__(self, report: Report, state: RunState) -> None:
        """Writes the state where it is due."""
        if self._job is not None and self._job.done():
            self.wait()
        switched, self._phase = self._phase != state.phase, state.phase
        in_time = time.monotonic() - self._last >= self._every
        # Clocks differ from process to process, and all must take part in copying what is spread over them.
        if anywhere(is_leader() and (switched or in_time)):
            self.take(state)

    def end(self, state: RunState) -> None:
        """Writes the last state."""
        self.take(state)

    def take(self, state: RunState) -> None:
        """Writes this state, unless it has been."""
        self.wait()
        self._last = time.monotonic()
        exists = os.path.exists(self.directory / str(state.rows))
        if anywhere(is_leader() and not exists):
            snapshot = take_snapshot(state, self._config)
            if is_leader():
                self._job = self._pool.submit(write, self.directory, snapshot)

    def wait(self) -> None:
        """Returns when the last checkpoint that was begun is on disk, or has failed."""
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
        """Waits for what is being written."""
        self.wait()
        self._pool.shutdown()
