"""The site has every document, example and public name, and its links. `mkdocs build --strict` checks the rest."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import lorasa_jax
from lorasa_jax import deltas
from lorasa_jax.cli.flags import FREE

pytest.importorskip("mkdocs", reason="needs the extra `docs`")

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]


@pytest.fixture(scope="module")
def hooks():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs"))
        yield importlib.import_module("hooks")


@pytest.fixture(scope="module")
def site():
    """The configuration of the site and its files, as they are before pages are read."""
    from mkdocs.config import load_config
    from mkdocs.structure.files import get_files

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        config = load_config(str(ROOT / "mkdocs.yml"))
    return config, config.plugins.on_files(get_files(config), config=config)


def leaves(nav):
    """The sources of pages in a navigation."""
    if isinstance(nav, str):
        return [nav]
    return [leaf for entry in (nav.values() if isinstance(nav, dict) else nav) for leaf in leaves(entry)]


def test_every_page_of_the_navigation_exists_and_every_page_is_in_it(site):
    config, files = site
    pages = {name for name in files.src_uris if name.endswith((".md", ".ipynb"))}
    assert len(leaves(config.nav)) == len(set(leaves(config.nav)))
    assert set(leaves(config.nav)) == pages
    assert {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")} <= pages
    assert {f"examples/{path.stem}.md" for path in (ROOT / "examples").glob("*.py")} <= pages
    assert {f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")} <= pages


def test_the_overview_of_results_links_to_every_page_of_an_experiment():
    overview = (ROOT / "docs" / "results.md").read_text()
    pages = [f"results/{path.name}" for path in (ROOT / "docs" / "results").glob("*.md")]
    assert len(pages) > 10
    assert [page for page in pages if f"]({page})" not in overview] == []


def test_programs_in_the_folder_of_documents_are_no_part_of_the_site(site):
    _, files = site
    programs = {file.src_uri: file.inclusion.is_excluded() for file in files if file.src_uri.endswith(".py")}
    assert programs and all(programs.values())


def test_every_public_name_has_an_entry_in_the_reference(site):
    import griffe

    package = griffe.load("lorasa_jax", search_paths=[str(ROOT)])
    shown = set()
    for entry in leaves(site[0].extra["reference"]):
        found = package[entry.removeprefix("lorasa_jax.")]
        members = found.members.values() if found.is_module else ()
        shown |= {each.canonical_path for each in (found, *members) if each is found or each.is_public}
    public = [*lorasa_jax.__all__, *(f"deltas.{name}" for name in deltas.__all__)]
    assert [name for name in public if package[name].canonical_path not in shown] == []
    assert [name for name in public if not package[name].has_docstring] == []


def test_notebooks_may_be_taken_from_a_folder_with_executed_ones(hooks, monkeypatch, tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "mine.ipynb").touch()
    monkeypatch.setenv("LORASA_NOTEBOOKS", str(tmp_path))
    assert [found for found in hooks.outside() if found[1].startswith("notebooks")] == [
        (tmp_path, "notebooks/mine.ipynb")
    ]


@pytest.mark.parametrize(
    ("home", "written", "shown"),
    [
        ("README.md", "[a](docs/train.md#flags)", "[a](train.md#flags)"),
        ("README.md", "![a](docs/figures/b.png)", "![a](figures/b.png)"),
        ("README.md", "[`a/`](examples), [b](notebooks)", "[`a/`](examples/index.md), [b](notebooks/01.ipynb)"),
        ("docs/train.md", "[a](../examples/own_loop.py)", "[a](examples/own_loop.md)"),
        ("docs/train.md", "[a](../README.md), [b](deltas.md)", "[a](README.md), b"),
        ("benchmarks/README.md", "[a](../docs/train.md)", "[a](../train.md)"),
        ("docs/train.md", "[`Env`](../lorasa_jax/envs/base.py)", "[`Env`][lorasa_jax.envs.base]"),
        ("docs/train.md", "[`x.py`](../lorasa_jax/x.py)", "`x.py`"),
        ("docs/train.md", "[a](https://b.org/c.md), [d](#e)", "[a](https://b.org/c.md), [d](#e)"),
        ("docs/train.md", "```python\nx[0](y) \\| z\n```\n`x[0](y)`", "```python\nx[0](y) \\| z\n```\n`x[0](y)`"),
        ("docs/train.md", "| `a\\|b` | c\\|d |", "| `a|b` | c\\|d |"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(hooks, home, written, shown):
    pages = ["README.md", "train.md", "figures/b.png", "benchmarks/README.md"]
    pages += ["examples/index.md", "examples/own_loop.md", "notebooks/01.ipynb"]
    assert hooks.for_site(written, home, [*pages, "lorasa_jax.envs.base"]) == shown


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_what_documents_link_to_is_in_the_repository(hooks, path):
    targets = [match["target"] for match in hooks.PIECE.finditer(path.read_text())]
    files = [re.sub("#.*", "", target) for target in targets if target and "://" not in target]
    assert [name for name in files if not (path.parent / name).exists()] == []


def test_an_example_is_its_docstring_and_its_code(hooks):
    pages = hooks.examples()
    page, source = pages["examples/own_loop.md"], (ROOT / "examples" / "own_loop.py").read_text()
    assert page.startswith("# own_loop.py\n\nDeltas in a training loop")
    (code,) = re.findall(r"```python\n(.*?)\n```", page, re.DOTALL)
    assert source.endswith(f'"""\n\n{code}\n')
    assert "| [own_loop.py](own_loop.md) | Deltas in a training loop" in pages["examples/index.md"]


def test_the_flags_that_stand_beside_those_of_other_libraries_exist():
    written = set(re.findall(r"--([a-z][a-z.-]+)", (ROOT / "docs" / "from_other_libraries.md").read_text()))
    settings = lorasa_jax.Config().to_dict()
    known = {*settings, *(f"{name}.{key}" for name, part in settings.items() if isinstance(part, dict) for key in part)}
    assert len(written) > 25
    assert written - {name.replace("_", "-") for name in known} - {*FREE, "help", "help-all", "preset"} == set()


def test_docstrings_have_their_examples_where_mkdocstrings_reads_them():
    sources = {path: path.read_text() for path in (ROOT / "lorasa_jax").rglob("*.py")}
    assert [path for path, source in sources.items() if re.search("^ *Example:$", source, re.MULTILINE)] == []
    assert any(re.search("^ *Examples:$", source, re.MULTILINE) for source in sources.values())
