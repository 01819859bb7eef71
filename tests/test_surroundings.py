"""Environment variables and JAX's switches: each one works, or is answered by one line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import jax
import pytest
from helpers import small_config

from lorasa_jax import surroundings
from lorasa_jax.config import ConfigError
from lorasa_jax.envs.toy import make_toy
from lorasa_jax.learning.system import make_system
from lorasa_jax.running.programs import Programs
from lorasa_jax.surroundings import cache_folder, keep_programs, load_jax, require_device, switches

CACHE = "jax_compilation_cache_dir"


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """JAX has not been told where to keep programs."""
    before = jax.config.values[CACHE]
    jax.config.update(CACHE, None)
    yield
    jax.config.update(CACHE, before)


@pytest.mark.parametrize(
    ("given", "home", "expected"),
    [
        (None, "/home/me", "/home/me/.cache/lorasa_jax"),
        ("", "/home/me", "/home/me/.cache/lorasa_jax"),
        ("cache", "/home/me", "/home/me/.cache/lorasa_jax"),
        ("/var/cache", "/home/me", "/var/cache/lorasa_jax"),
        ("/var/cache", None, "/var/cache/lorasa_jax"),
        (None, None, None),
    ],
)
def test_the_cache_is_that_of_the_user(
    monkeypatch: pytest.MonkeyPatch, given: str | None, home: str | None, expected: str | None
) -> None:
    def find_home() -> Path:
        if home is None:
            raise RuntimeError("Could not determine home directory.")
        return Path(home)

    monkeypatch.setattr(Path, "home", find_home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if given is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", given)
    assert cache_folder() == (expected and Path(expected))


def test_programs_are_kept_in_the_cache_or_where_jax_was_told_to(
    no_cache: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_programs()
    assert jax.config.values[CACHE] == str(tmp_path / "lorasa_jax")
    jax.config.update(CACHE, str(tmp_path / "mine"))
    keep_programs()
    assert jax.config.values[CACHE] == str(tmp_path / "mine")


@pytest.mark.parametrize("home", ["/proc/nowhere", None])
def test_nothing_is_kept_where_nothing_can_be_written(
    no_cache: None, home: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surroundings, "cache_folder", lambda: home and Path(home))
    keep_programs()
    assert jax.config.values[CACHE] is None


@pytest.mark.parametrize(
    ("switch", "said"),
    [
        (lambda: jax.enable_x64(True), "JAX_ENABLE_X64=True: arrays have 32 bits"),
        (lambda: jax.numpy_rank_promotion("raise"), "JAX_NUMPY_RANK_PROMOTION=raise"),
        (lambda: jax.numpy_dtype_promotion("strict"), "JAX_NUMPY_DTYPE_PROMOTION=strict"),
        (lambda: jax.transfer_guard("disallow"), "JAX_TRANSFER_GUARD=disallow"),
        (lambda: jax.disable_jit(), "JAX_DISABLE_JIT=True: the programs of a run are compiled"),
    ],
)
def test_a_switch_that_the_library_does_not_work_with_is_named(
    switch: Callable[[], AbstractContextManager], said: str
) -> None:
    env = make_toy("specialisation")
    with switch(), pytest.raises(ConfigError) as error:
        make_system(small_config(), env)
        Programs(1, print)
    assert str(error.value).startswith("lorasa_jax does not work with") and said in str(error.value)
    with switch(), pytest.raises(ConfigError):
        load_jax()


def test_a_value_that_jax_does_not_know_is_said_in_one_line() -> None:
    code = "from lorasa_jax.surroundings import *\ntry: load_jax()\nexcept ConfigError as error: print(error)"
    env = {**os.environ, "JAX_DEFAULT_PRNG_IMPL": "dice"}
    said = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert (
        said == 'jax cannot be loaded: Invalid value "dice" for JAX flag jax_default_prng_impl; unset or correct it\n'
    )


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("no such\ndevice (set JAX_PLATFORMS to guess)")])
def test_a_device_that_is_not_there_is_said_in_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    said = " (no such device)" if str(error) else ""
    with pytest.raises(ConfigError) as found:
        require_device()
    assert str(found.value).startswith(f"jax finds no device to compute on with JAX_PLATFORMS=cuda{said}; unset JAX_")


def test_switches_that_change_what_is_computed_are_known() -> None:
    with jax.threefry_partitionable(False), jax.default_matmul_precision("highest"):
        changed = switches()
    before = switches()
    assert {name for name in before if before[name] != changed[name]} == {
        "jax_threefry_partitionable", "jax_default_matmul_precision",
    }  # fmt: skip
