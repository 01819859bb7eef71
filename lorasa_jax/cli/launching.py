"""Runs jobs of a sweep in separate processes, on this machine or on a cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorasa_jax.cli.plan import Job
from lorasa_jax.cli.signals import Stop
from lorasa_jax.cli.streams import complain
from lorasa_jax.cli.sweep_plan import SweepConfig, is_done
from lorasa_jax.config import ConfigError, require

YEAR = 365 * 24 * 60
"""Time limit of a local job in minutes, if --cluster gives none."""


def launch(config: SweepConfig, jobs: list[Job], go_on: str) -> list[str]:
    """Runs jobs with submitit, each as soon as its backbone is done; returns the names of failed jobs.

    A signal that stops the sweep also stops local jobs. The sweep waits until they have saved.
    """
    executor, command = _executor(config)
    out, local = config.directory, config.launcher == "local"
    waiting = [job for job in jobs if not is_done(out / job.name)]
    running: dict[str, Any] = {}
    failed: list[str] = []
    stop = Stop("stopping when the jobs have saved" if local else "stopping")
    with stop:
        try:
            while (waiting or running) and not stop.signal:
                for job in list(waiting):
                    if job.origin and job.origin[0] in failed:
                        waiting.remove(job)
                        failed.append(job.name)
                    elif not job.origin or is_done(out / job.origin[0]):
                        waiting.remove(job)
                        with _own_signals():
                            running[job.name] = executor.submit(command(_command(config, job), Path.cwd()))
                        print(f"{job.name}: submitted as {running[job.name].job_id}")
                for name in [name for name, submitted in running.items() if submitted.done()]:
                    errors = running.pop(name).paths.stderr
                    print(f"{name}: {'done' if is_done(out / name) else f'failed; see {errors}'}")
                    if not is_done(out / name):
                        failed.append(name)
                time.sleep(1)
        finally:
            if local:
                _end(running.values())
    if stop.signal:
        left = "were stopped" if local else "go on in the cluster"
        complain(f"stopped; the jobs that ran ({', '.join(running) or 'none'}) {left}; go on with: {go_on}")
        raise SystemExit(128 + stop.signal)
    return failed


def _executor(config: SweepConfig) -> tuple[Any, type]:
    """The submitit executor, and the class of its jobs."""
    try:
        import submitit
    except ModuleNotFoundError:
        raise ConfigError(
            f"--launcher {config.launcher} needs the package submitit: pip install -c constraints.txt -e '.[cluster]'"
        ) from None

    class Command(submitit.helpers.Checkpointable):
        """A command that receives the SIGTERM of its job, saves and ends. On preemption, which is another exception, it
        does the same and is then restarted."""

        def __init__(self, words: list[str], folder: Path):
            self.words, self.folder = words, folder

        def __call__(self) -> None:
            def end(number: int, frame: object) -> None:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                raise SystemExit(128 + signal.SIGTERM)

            signal.signal(signal.SIGTERM, end)
            with subprocess.Popen(self.words, cwd=self.folder) as process:
                try:
                    status = process.wait()
                finally:
                    process.terminate()
            if status:
                raise subprocess.CalledProcessError(status, self.words)

    options = ({"timeout_min": YEAR} if config.launcher == "local" else {}) | _options(config.cluster)
    try:
        executor = submitit.AutoExecutor(folder=config.directory / "logs", cluster=config.launcher)
        executor.update_parameters(**options)
    except (RuntimeError, ValueError, NameError) as error:
        raise ConfigError(f"--launcher {config.launcher}: {' '.join(str(error).split())}") from None
    return executor, Command


@contextmanager
def _own_signals() -> Iterator[None]:
    """Blocks the terminal's signals for processes started in the block. Only the sweep acts on them, so jobs end in
    order."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(running: Collection[Any]) -> None:
    """Stops local jobs and waits until they have ended. Their ids are process ids; they pass SIGTERM on."""
    for submitted in running:
        os.kill(int(submitted.job_id), signal.SIGTERM)
    while not all(submitted.done() for submitted in running):
        time.sleep(0.1)


def _command(config: SweepConfig, job: Job) -> list[str]:
    here = [sys.executable, "-m", "lorasa_jax.cli.sweep", str(config.file), "--out", str(config.directory)]
    same = {"--mix-switches": config.mix_switches, "--save-every": config.save_every, "--cache": config.cache}
    return [*here, "--only", job.name, *(str(word) for pair in same.items() for word in pair)]


def _options(words: Sequence[str]) -> dict[str, Any]:
    """Options for submitit, with numbers converted."""
    options: dict[str, Any] = {}
    for option in words:
        name, equals, value = option.partition("=")
        require(bool(equals), f"--cluster takes options as name=value, got {option!r}")
        options[name] = int(value) if value.isdecimal() else value
    return options
