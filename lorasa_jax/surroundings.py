"""Environment variables, and JAX's switches (`JAX_ENABLE_X64` and others).

Only this module reads or changes environment variables, JAX's configuration and other global state outside the
library. Its import loads nothing heavy.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from lorasa_jax.config import ConfigError, require

NEEDED: dict[str, tuple[tuple[Any, ...], str]] = {
    "jax_enable_x64": ((False,), "arrays have 32 bits, as in the simulators"),
    "jax_numpy_rank_promotion": (("allow", "warn"), "arrays of unequal ranks are added, also in the simulators"),
    "jax_numpy_dtype_promotion": (("standard",), "integers and floats are multiplied, also in the simulators"),
    "jax_transfer_guard": ((None, "allow", "log"), "numbers of Python become arrays on the way"),
    "jax_no_tracing": ((False,), "programs are traced"),
    "jax_no_execution": ((False,), "programs are run"),
}
"""Switches that must have one of several values, and the reason. The first value is JAX's default."""
COMPILED = {"jax_disable_jit": ((False,), "the programs of a run are compiled ahead of time")}
"""The same for switches that affect only whole runs."""
TOLD = {
    "jax_threefry_partitionable": "random numbers",
    "jax_default_prng_impl": "random numbers",
    "jax_random_seed_offset": "random numbers",
    "jax_high_dynamic_range_gumbel": "random numbers",
    "jax_default_matmul_precision": "last bits",
    "jax_disable_most_optimizations": "last bits",
}
"""Switches that change the results of a run, and the part that they change. A run records them."""


def switches() -> dict[str, Any]:
    """Returns the values of the switches in `TOLD`, as JSON types."""
    import jax

    return {name: _plain(getattr(jax.config, name, None)) for name in TOLD}


def require_switches(needed: dict[str, tuple[tuple[Any, ...], str]] = NEEDED) -> None:
    """Checks that JAX's switches have values that the library supports.

    Raises:
        ConfigError: a switch has another value.
    """
    import jax

    for name, (allowed, why) in needed.items():
        value = _plain(getattr(jax.config, name, allowed[0]))
        require(value in allowed, f"lorasa_jax does not work with {name.upper()}={value}: {why}; unset it")


def _plain(value: Any) -> Any:
    """The value of a switch. Newer versions of JAX wrap some values in enumerations."""
    return getattr(value, "value", value)


def load_jax() -> None:
    """Loads JAX for a command.

    Raises:
        ConfigError: an environment variable has a value that JAX or the library does not support.
    """
    try:
        import jax  # noqa: F401
    except ValueError as error:
        raise ConfigError(f"jax cannot be loaded: {' '.join(str(error).split())}; unset or correct it") from None
    require_switches(NEEDED | COMPILED)


def require_device() -> None:
    """Checks that JAX has a device; loads JAX's backend.

    Raises:
        ConfigError: there is no device of the requested kind.
    """
    import jax

    try:
        jax.devices()
    except Exception as error:  # its plugins raise assertions, too
        asked = [name for name in ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES") if name in os.environ]
        where = "".join(f" with {name}={os.environ[name]}" for name in asked)
        said = " ".join(str(error).split()).partition(" (set ")[0]  # without JAX's own advice
        remedy = f"unset {' and '.join(asked)}, or " if asked else ""
        raise ConfigError(
            f"jax finds no device to compute on{where}{said and f' ({said})'}; {remedy}install JAX for that device: "
            "pip install -c constraints.txt -e '.[cuda]'"
        ) from None


def prepare(*, many: bool = False, keep: bool = False) -> None:
    """Prepares JAX for a command, before anything is computed or written.

    Args:
        many: make every core of the processor a device (`use_cores`).
        keep: keep compiled programs for later commands (`keep_programs`).

    Raises:
        ConfigError: JAX or the library cannot work in this environment.
    """
    load_jax()
    if many:
        use_cores()
    if keep:
        keep_programs()
    require_device()


# Compiled programs


def keep_programs() -> None:
    """Caches compiled programs across commands, in the folder set for JAX, or otherwise in the user's cache.

    If that folder is not writable, nothing is cached.
    """
    import jax

    folder = cache_folder()
    if getattr(jax.config, "jax_compilation_cache_dir", None) or folder is None:
        return
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))


def cache_folder() -> Path | None:
    """Returns the library's folder in the user's cache: below XDG_CACHE_HOME, or ~/.cache; None: no home directory."""
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not home.is_absolute():  # the XDG specification ignores relative and empty paths
        try:
            home = Path.home() / ".cache"
        except RuntimeError:
            return None
    return home / "lorasa_jax"


def can_move_cursor() -> bool:
    """Returns whether the terminal named by TERM can redraw a line; without a name it cannot."""
    return os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


# Cores


def cores() -> int:
    """Returns the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


PATIENCE = " ".join(
    f"--xla_cpu_collective_call_{what}_timeout_seconds={seconds}"
    for what, seconds in (("warn_stuck", 600), ("terminate", 1_000_000))
)
"""Timeouts after which XLA warns that one core keeps the others waiting, and after which it ends the process.

They are long, because cores have other work, and a run may be paused (Ctrl-Z).
"""


def use_cores() -> None:
    """Makes every core of the processor a device, for runs on the processor.

    By default XLA keeps only one core fully busy, because the matrix products are small. This function has no effect if
    the number of devices is set already (JAX_NUM_CPU_DEVICES, or `--xla_force_host_platform_device_count` in
    XLA_FLAGS), or if JAX has already initialised its devices.
    """
    import jax

    flags = os.environ.get("XLA_FLAGS", "")
    # XLA ends the process at an unknown flag, so only versions that know the flags get them.
    if "collective_call" not in flags and jax.__version_info__ < (0, 11):
        os.environ["XLA_FLAGS"] = f"{flags} {PATIENCE}".strip()
    given = "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in flags
    if cores() > 1 and not given:
        with suppress(RuntimeError):  # too late: devices exist
            jax.config.update("jax_num_cpu_devices", cores())


# Several processes


def join_processes() -> None:
    """Connects this process with the other processes of a run, using the launcher's environment.

    JAX recognises SLURM, Open MPI, Kubernetes and others. Otherwise set JAX_COORDINATOR_ADDRESS
    (host:port of the first process), JAX_NUM_PROCESSES and JAX_PROCESS_ID. Call it before any computation.

    Raises:
        ConfigError: the other processes are not specified, or cannot be reached.
    """
    load_jax()
    import jax

    given: dict[str, str | None] = {
        name: os.environ.get(f"JAX_{name.upper()}") for name in ("num_processes", "process_id")
    }
    try:
        known = {name: int(value) for name, value in given.items() if value is not None}
    except ValueError:
        raise ConfigError("JAX_NUM_PROCESSES and JAX_PROCESS_ID must be whole numbers") from None
    try:
        jax.distributed.initialize(num_processes=known.get("num_processes"), process_id=known.get("process_id"))
    except (ValueError, RuntimeError) as error:
        line = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"the processes of this run did not find each other ({line}); start them with srun or mpirun, or set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID for each"
        ) from None
