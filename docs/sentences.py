"""How long the sentences of the documents are.

`python docs/sentences.py` prints, for every document: sentences, their mean length in words, and the share of those
with more than 35 words; then the longest ones. Code, tables, figures and headings do not count.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

LONG = 35
"""Words of a sentence that should be split."""
ROOT = Path(__file__).parents[1]


def sentences(markdown: str) -> list[str]:
    """Returns the sentences of a document's running text, as plain words."""
    text = re.sub(r"^```.*?^```$|<!--.*?-->|^ *\|.*?$|^#.*?$|^ *!\[.*?$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)  # the words of a link
    text = re.sub(r"`[^`]*`", "code", text)
    blocks = re.split(r"\n\s*\n|^\s*(?:[*-]|\d+\.)\s", text, flags=re.MULTILINE)
    ends = re.compile(r"(?<=[.?!])(?<!e\.g\.)(?<!i\.e\.)(?<!al\.)\s+")
    found = (" ".join(part.split()) for block in blocks for part in ends.split(block))
    return [part for part in found if len(part.split()) > 1]


def report(paths: list[Path]) -> str:
    """Returns a line for each document, and its long sentences."""
    lines = [f"{'sentences':>9} {'mean words':>10} {'over ' + str(LONG):>8}  document"]
    longest = []
    for path in paths:
        lengths = {part: len(part.split()) for part in sentences(path.read_text(encoding="utf-8"))}
        if not lengths:
            continue
        long = {part: n for part, n in lengths.items() if n > LONG}
        mean, share = sum(lengths.values()) / len(lengths), len(long) / len(lengths)
        lines.append(f"{len(lengths):>9} {mean:>10.1f} {share:>8.1%}  {path.relative_to(ROOT)}")
        longest += [f"{path.relative_to(ROOT)} ({n} words): {part}" for part, n in long.items()]
    return "\n".join([*lines, "", *longest])


if __name__ == "__main__":
    everything = [*ROOT.glob("*.md"), *sorted(ROOT.glob("docs/**/*.md"))]
    print(report([Path(name).resolve() for name in sys.argv[1:]] or everything))
