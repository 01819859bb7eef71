"""The world outside: environment variables, and JAX's switches (`JAX_ENABLE_X64` and others).

What the library takes from the surroundings of its process, or changes there, is in this module; nothing else reads
environment variables or JAX's configuration. Importing it loads nothing heavy.
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
"""Switches that must stand at one of some values, and why; the first one is JAX's own."""
COMPILED = {"jax_disable_jit": ((False,), "the programs of a run are compiled ahead of time")}
"""The same, of switches that only whole runs depend on."""
TOLD = {
    "jax_threefry_partitionable": "random numbers",
    "jax_default_prng_impl": "random numbers",
    "jax_random_seed_offset": "random numbers",
    "jax_high_dynamic_range_gumbel": "random numbers",
    "jax_default_matmul_precision": "last bits",
    "jax_disable_most_optimizations": "last bits",
}
"""Switches that change what a run computes, and what of it. A run keeps them in its record."""


def switches() -> dict[str, Any]:
    """Returns the values of `TOLD`, as JSON holds them."""
    import jax

    return {name: _plain(getattr(jax.config, name, None)) for name in TOLD}


def require_switches(needed: dict[str, tuple[tuple[Any, ...], str]] = NEEDED) -> None:
    """Checks that JAX's switches stand so that the library works.

    Raises:
        ConfigError: one does not.
    """
    import jax

    for name, (allowed, why) in needed.items():
        value = _plain(getattr(jax.config, name, allowed[0]))
        require(value in allowed, f"lorasa_jax does not work with {name.upper()}={value}: {why}; unset it")


def _plain(value: Any) -> Any:
    """The value of a switch; newer versions of JAX wrap some in enumerations."""
    return getattr(value, "value", value)


def load_jax() -> None:
    """Loads JAX for a command.

    Raises:
        ConfigError: an environment variable has a value that JAX does not know, or that the library does not work with.
    """
    try:
        import jax  # noqa: F401
    except ValueError as error:
        raise ConfigError(f"jax cannot be loaded: {' '.join(str(error).split())}; unset or correct it") from None
    require_switches(NEEDED | COMPILED)


def require_device() -> None:
    """Checks that there is a device to compute on; loads JAX's backend.

    Raises:
        ConfigError: there is none of the kind that was asked for.
    """
    import jax

    try:
        jax.devices()
    except Exception as error:  # also assertions, from within its plugins
        asked = [name for name in ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES") if name in os.environ]
        where = "".join(f" with {name}={os.environ[name]}" for name in asked)
        said = " ".join(str(error).split()).partition(" (set ")[0]  # its own advice goes on
        remedy = f"unset {' and '.join(asked)}, or " if asked else ""
        raise ConfigError(
            f"jax finds no device to compute on{where}{said and f' ({said})'}; {remedy}install JAX for that device: "
            "pip install -c constraints.txt -e '.[cuda]'"
        ) from None


def prepare(*, many: bool = False, keep: bool = False) -> None:
    """Readies JAX for a command, before anything is computed or written.

    Args:
        many: every core of the processor becomes a device (`use_cores`).
        keep: compiled programs are kept for the next command (`keep_programs`).

    Raises:
        ConfigError: JAX, or the library, cannot work in these surroundings.
    """
    load_jax()
    if many:
        use_cores()
    if keep:
        keep_programs()
    require_device()


# Compiled programs


def keep_programs() -> None:
    """Keeps compiled programs from one command to the next: where JAX was told to, or else in the user's cache.

    Nothing is kept where that cannot be written.
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
    """Returns the library's folder in the user's cache: below XDG_CACHE_HOME, or ~/.cache; None: there is no home."""
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not home.is_absolute():  # to be ignored, as the XDG specification has it; so is an empty one
        try:
            home = Path.home() / ".cache"
        except RuntimeError:
            return None
    return home / "lorasa_jax"


def can_move_cursor() -> bool:
    """Says whether the terminal, by its name in TERM, can draw a line anew; one without a name cannot."""
    return os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


# Cores


def cores() -> int:
    """Returns how many cores of the processor this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


PATIENCE = " ".join(
    f"--xla_cpu_collective_call_{what}_timeout_seconds={seconds}"
    for what, seconds in (("warn_stuck", 600), ("terminate", 1_000_000))
)
"""How long one core may keep the others waiting before XLA says so, and before it ends the process.

Cores have other work too, and a run may be stopped for a while (Ctrl-Z): that is no error.
"""


def use_cores() -> None:
    """Makes a device of every core of the processor, for runs that compute there.

    Left to itself XLA keeps one core busy and the others in part, since a network's products are small. Changes nothing
    where the number of devices is given already (JAX_NUM_CPU_DEVICES, or
    `--xla_force_host_platform_device_count` in XLA_FLAGS), or once jax has begun to compute.
    """
    import jax

    flags = os.environ.get("XLA_FLAGS", "")
    # An XLA that does not know a flag ends the process: only those that are known to know them are told.
    if "collective_call" not in flags and jax.__version_info__ < (0, 11):
        os.environ["XLA_FLAGS"] = f"{flags} {PATIENCE}".strip()
    given = "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in flags
    if cores() > 1 and not given:
        with suppress(RuntimeError):  # too late: there are devices
            jax.config.update("jax_num_cpu_devices", cores())


# Several processes


def join_processes() -> None:
    """Makes this process one of several, as its launcher's environment says.

    SLURM, Open MPI, Kubernetes and others are found by jax. Otherwise JAX_COORDINATOR_ADDRESS
    (host:port of the first process), JAX_NUM_PROCESSES and JAX_PROCESS_ID say it. Must come before any computation.

    Raises:
        ConfigError: nothing says who the others are, or they were not met.
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
