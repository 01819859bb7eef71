"""The folders of the package import one way: each only those above it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lorasa_jax"
ORDER = (
    "checks", "files", "yaml_reader", "presets", "trained", "levels", "sections", "config", "registries", "plugins",
    "surroundings",
    "core.types", "core.trees", "core.axes", "deltas", "envs", "core", "sharing", "learning", "running",
    "storage", "analysis", "adapters", "cli",
)  # fmt: skip
"""From the ground up; a module belongs to the longest name that fits."""


def layer_of(module: str) -> int | None:
    """The place of a module, named without `lorasa_jax.`, in the order; None: it is the package itself."""
    fits = [name for name in ORDER if module == name or module.startswith(name + ".")]
    return ORDER.index(max(fits, key=len)) if fits else None


def imports_of(path: Path) -> set[str]:
    """The modules of the package that a file imports, also within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lorasa_jax"):
            home = node.module.removeprefix("lorasa_jax").removeprefix(".")
            inside = [PACKAGE / home.replace(".", "/") / alias.name for alias in node.names]
            for alias, place in zip(node.names, inside, strict=True):
                is_module = place.with_suffix(".py").exists() or place.is_dir()
                found.add(f"{home}.{alias.name}".removeprefix(".") if is_module else home)
    return found


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_stands_above_it(path):
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    here = layer_of(module)
    assert here is not None, f"{module} is in no layer; add its folder to ORDER"
    for other in imports_of(path):
        there = layer_of(other)
        assert there is not None, f"{module} imports {other or 'the package itself'}, which stands in no layer"
        assert there <= here, f"{module} imports {other}, which stands below it"


def test_no_two_modules_import_each_other():
    graph = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): imports_of(path)
        for path in MODULES
    }
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, f"a circle: {' -> '.join((*above, module))}"
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())
