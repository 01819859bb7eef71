"""What must stand before any test imports jax or the package."""

import os

import hypothesis
import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

# Every function and dataclass of the package checks its annotations, shapes included, and
# raises where they do not hold. As for a type checker, an int is a good float.
install_import_hook("lorasa_jax", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

# The first example of a property compiles, which no deadline allows for.
hypothesis.settings.register_profile("lorasa_jax", deadline=None)
hypothesis.settings.load_profile("lorasa_jax")


def pytest_configure(config: pytest.Config) -> None:
    """Keeps compiled programs in pytest's cache folder, for the next run and for subprocesses."""
    if hasattr(config, "cache"):  # absent under -p no:cacheprovider
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("jax")))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
