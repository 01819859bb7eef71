"""What must stand before any test imports jax or the package."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
if "optimization_level" not in (flags := os.environ.get("XLA_FLAGS", "")):
    # Programs of tests run for moments: compiling them quickly saves a third of the tests' time.
    os.environ["XLA_FLAGS"] = f"{flags} --xla_backend_optimization_level=0".strip()

PACKAGE = Path(__file__).parents[1] / "lorasa_jax"
# Settings and specs of environments check, and convert, their fields themselves.
MODULES = {".".join(("lorasa_jax", *path.relative_to(PACKAGE).with_suffix("").parts)) for path in PACKAGE.rglob("*.py")}
MODULES = {name for name in MODULES if not name.startswith("lorasa_jax.cli.")}
MODULES -= {
    "lorasa_jax.config",
    "lorasa_jax.registries",
    "lorasa_jax.sections",
    "lorasa_jax.checks",
    "lorasa_jax.envs.base",
}
# Every other function and dataclass of the package checks its annotations, shapes included, and
# raises where they do not hold. As for a type checker, an int is a good float.
install_import_hook(sorted(MODULES), "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

# The first example of a property compiles, which no deadline allows for.
hypothesis.settings.register_profile("lorasa_jax", deadline=None)
hypothesis.settings.load_profile("lorasa_jax")


def pytest_configure(config: pytest.Config) -> None:
    """Keeps compiled programs in pytest's cache folder, for the next run and for subprocesses."""
    if hasattr(config, "cache"):  # absent under -p no:cacheprovider
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("jax")))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


@pytest.fixture
def registries() -> Iterator[None]:
    """Forgets afterwards what a test has registered."""
    from lorasa_jax import ALGORITHMS, ENVS, SCHEMES, checks, config, registries

    kept = [(table, dict(table)) for table in (SCHEMES, ALGORITHMS, ENVS, config.TASKS)]
    names = {alias: getattr(config, alias) for alias in registries._ALIASES.values()}
    yield
    for table, before in kept:
        table.clear()
        table.update(before)
    vars(config).update(names)
    checks.forget_annotations()
