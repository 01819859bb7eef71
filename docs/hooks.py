"""MkDocs hooks: the site grows from the files of the repository, without a copy of any text.

Files outside docs/ keep their path (README.md is the home page), and links of the repository become links of the site.
A folder in the navigation stands for its pages. LORASA_NOTEBOOKS may name a folder whose notebooks/ are executed ones.
"""

from __future__ import annotations

import ast
import os
import posixpath
import re
from collections.abc import Iterable, Mapping
from glob import glob
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import lorasa_jax

ROOT = Path(__file__).parents[1]
OUTSIDE = ("*.md", "benchmarks/README.md", "results/**/*.png", "results/**/*.gif")

# A fenced block, a link, or code within a line, whichever begins first.
PIECE = re.compile(
    r"^ *```.*?^ *```|\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?P<target>[^)\s]+)\)|(?P<code>`[^`\n]+`)",
    re.DOTALL | re.MULTILINE,
)


@event_priority(100)  # before mkdocs-jupyter looks for notebooks
def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the files from outside docs/, and fills in the folders of the navigation."""
    for root, name in outside():
        files.append(File(name, str(root), config.site_dir, config.use_directory_urls))
    for name, text in (examples() | reference(config.extra["reference"])).items():
        files.append(File.generated(config, name, content=text))
    for section in config.nav:
        for title, folder in section.items():
            if isinstance(folder, str) and folder.endswith("/"):
                section[title] = pages_in(folder, files.src_uris)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns the links of a document into links of the site."""
    if page.file.abs_src_path is None:  # a page that is written here
        return markdown
    shown = [entry for entries in config.extra["reference"].values() for entry in entries]
    return for_site(markdown, os.path.relpath(page.file.abs_src_path, ROOT), [*files.src_uris, *shown])


def outside() -> list[tuple[Path, str]]:
    """Returns the files that enter as they are: a folder, and the path in it."""
    executed = Path(os.environ.get("LORASA_NOTEBOOKS", ROOT))
    kinds = [*((ROOT, kind) for kind in OUTSIDE), (executed, "notebooks/*.ipynb")]
    return [(root, path) for root, kind in kinds for path in sorted(glob(kind, root_dir=root, recursive=True))]


def examples() -> dict[str, str]:
    """Returns a page for each example, its docstring and then its code, after a table of all."""
    pages, rows = {}, []
    for path in sorted((ROOT / "examples").glob("*.py")):
        module = ast.parse(source := path.read_text(encoding="utf-8"))
        about = ast.get_docstring(module) or ""
        code = "\n".join(source.splitlines()[module.body[0].end_lineno :]).strip()
        pages[f"examples/{path.stem}.md"] = f"# {path.name}\n\n{about}\n\n```python\n{code}\n```\n"
        rows.append((f"[{path.name}]({path.stem}.md)", about))
    return {"examples/index.md": table("Examples", rows), **pages}


def reference(pages: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Returns the pages of the reference, after a table of the names in `lorasa_jax`."""
    package, names = griffe.load("lorasa_jax", search_paths=[str(ROOT)]), lorasa_jax.__all__
    rows = [(f"[`{name}`][{package[name].canonical_path}]", package[name].docstring.value) for name in names]
    written = {"reference/index.md": table("lorasa_jax", rows)}
    for name, shown in pages.items():
        written[f"reference/{name}.md"] = "\n\n".join((f"# {name.capitalize()}", *(f"::: {entry}" for entry in shown)))
    return written


def table(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """Returns a page with a table of names and of the first paragraphs of their docstrings."""
    lines = (" ".join(("|", name, "|", *text.split("\n\n")[0].split(), "|")) for name, text in rows)
    return "\n".join((f"# {title}\n", "| name | content |", "|---|---|", *lines))


def for_site(markdown: str, home: str, names: Iterable[str]) -> str:
    """Returns a document of the repository, at `home`, with the links of the site.

    `names` are the sources of the site's files and the modules of its reference. A link to anything else becomes plain
    text. Within code, Python-Markdown wants `|` without a backslash.
    """

    def piece(match: re.Match[str]) -> str:
        text, target, code = match.groups()
        if code:
            return code.replace("\\|", "|")
        if not target or re.match(r"#|\w+:", target):  # a fenced block, or a link that may stay
            return match[0]
        path, sign, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(home), path))
        if path.endswith(".py") and (module := path[:-3].replace("/", ".")) in names:
            return f"[{text}][{module}]"
        path, start = path.removeprefix("docs/"), posixpath.dirname(home.removeprefix("docs/")) or "."
        for found in (path, f"{path.removesuffix('.py')}.md", *pages_in(f"{path}/", names)):  # of a folder the first
            if found in names:
                return f"[{text}]({posixpath.relpath(found, start)}{sign}{anchor})"
        return text

    return PIECE.sub(piece, markdown)


def pages_in(folder: str, names: Iterable[str]) -> list[str]:
    """Returns the pages in a folder of the site."""
    return [name for name in names if name.startswith(folder) and name.endswith((".md", ".ipynb"))]
