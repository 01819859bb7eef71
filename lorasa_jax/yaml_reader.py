"""Reads YAML files: presets, sweeps and notes.

It reads the core schema of YAML 1.2, and merge keys: only `true` and `false` are booleans, `off` and `no` are words,
and `1e-3` is a number. A duplicate key is an error. Errors are one line with their position.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from lorasa_jax.checks import ConfigError, require

_TAG = "tag:yaml.org,2002:"
_WORDS = {
    "bool": ("true|false", "tTfF"),
    "int": ("[-+]?(0x[0-9a-f]+|0o[0-7]+|[0-9][0-9_]*)", "-+0123456789"),
    "float": (r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)(e[-+]?[0-9]+)?|[-+]?\.inf|\.nan", "-+.0123456789"),
    "null": ("~|null|", ["~", "n", "N", ""]),
    "merge": ("<<", "<"),
}
"""Types of words without quotes, and their first characters, in upper or lower case."""


class _Loader(yaml.SafeLoader):
    """Reads plain data, and refuses a mapping with duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Returns the content of a mapping."""
        lines: dict[Hashable, int] = {}
        for word, _ in node.value:
            merges = word.tag == f"{_TAG}merge"
            key = word.value if merges else self.construct_object(word, deep=True)
            if not isinstance(key, Hashable):
                continue  # SafeLoader reports it
            if key in lines:
                what = f"the key {key!r} stands in line {lines[key]} already"
                raise yaml.MarkedYAMLError(problem=what, problem_mark=word.start_mark)
            lines[key] = word.start_mark.line + 1
        return super().construct_mapping(node, deep)


def _int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    bases = {"0x": 16, "0o": 8}  # a leading zero is not octal, unlike in older YAML
    return int(node.value, bases.get(node.value.lstrip("-+")[:2].lower(), 10))


_Loader.yaml_implicit_resolvers = {}
for _name, (_pattern, _first) in _WORDS.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"({_pattern})$", re.IGNORECASE), [*_first])
_Loader.add_constructor(f"{_TAG}int", _int)


def read_yaml(path: Path) -> Any:
    """Returns the content of a YAML file: numbers, words, lists and mappings; None if it is empty.

    Raises:
        ConfigError: there is no such file, it is not UTF-8, or it is not valid YAML.
    """
    require(path.is_file(), f"there is no file {path}")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path} is not UTF-8 (line {line}); save it in that encoding") from None
    try:
        found = _Loader(text).get_single_data()
        json.dumps(found)  # refuses recursive data, and types that no setting has
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {_said(error)}") from None
    return found


def _said(error: Exception) -> str:
    """The error and its position."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())
