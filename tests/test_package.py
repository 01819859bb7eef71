"""The package as a guest in somebody's process."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import lorasa_jax

QUIET_IMPORT = """
import os, random, sys, warnings

def globals_():
    streams = sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__
    return streams, dict(os.environ), list(warnings.filters), random.getstate()

before = globals_()
import lorasa_jax
assert globals_() == before
assert "jax" not in sys.modules, "importing the package must load nothing heavy"

import chex, flax.linen, jax.numpy, optax, jax  # what these change is theirs
before = globals_()
config = dict(jax.config.values)
from lorasa_jax import make_trainer, run
assert globals_() == before
assert dict(jax.config.values) == config
assert "jaxmarl" not in sys.modules
"""


def test_importing_prints_nothing_and_changes_no_global() -> None:
    done = subprocess.run([sys.executable, "-c", QUIET_IMPORT], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_public_name_is_there_and_nothing_else_is() -> None:
    for name in lorasa_jax.__all__:
        assert getattr(lorasa_jax, name) is not None
    try:
        lorasa_jax.no_such_name  # noqa: B018
    except AttributeError as error:
        assert "no_such_name" in str(error)
    else:
        raise AssertionError("an unknown name must not be found")


def test_the_name_of_a_scheme_is_written_once() -> None:
    """A sharing scheme is data: no module but the registry asks which one it is."""
    home = Path(lorasa_jax.__file__).parent
    # The registry; the flag; its default; the name of the command.
    places = {"sharing/schemes.py", "config.py", "presets/__init__.py", "cli/command.py"}
    for path in home.rglob("*.py"):
        strings = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
        assert strings.count("lorasa") == (path.relative_to(home).as_posix() in places), path


def test_the_world_outside_is_asked_in_one_place() -> None:
    """Environment variables, the home directory, and the switches of JAX."""
    home = Path(lorasa_jax.__file__).parent
    asking = {"os": ("environ", "environb", "getenv", "putenv"), "jax": ("config",), "Path": ("home",)}
    for path in home.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                asks = node.attr in asking.get(node.value.id, ()) or node.attr == "expanduser"
                assert path.name == "surroundings.py" or not asks, path


def test_nothing_that_is_read_can_run() -> None:
    """No pickle under any name, and YAML is read in one place, safely."""
    home = Path(lorasa_jax.__file__).parent
    folders = [home, home.parent / "experiments", home.parent / "research"]
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name.split(".")[0] for alias in node.names} | {getattr(node, "module", "") or ""}
                assert not names & {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}, path
                assert "yaml" not in names or path.name == "yaml_reader.py", path
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                harmless = node.attr == "SafeLoader" or node.attr.endswith(("Error", "Node"))
                assert node.value.id != "yaml" or harmless, path
                assert node.value.id not in ("np", "jnp", "numpy") or node.attr != "load", path
