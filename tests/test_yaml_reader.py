"""YAML files: words stay words, numbers are numbers, and what is wrong is said in one line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from lorasa_jax.config import ConfigError
from lorasa_jax.yaml_reader import read_yaml


def read(tmp_path: Path, content: str | bytes) -> Any:
    path = tmp_path / "a.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_yaml(path)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("true", True), ("FALSE", False), ("off", "off"), ("no", "no"), ("On", "On"), ("yes", "yes"), ("y", "y"),
        ("1e-3", 1e-3), ("1.0e-3", 1e-3), ("0.001", 1e-3), ("1E+3", 1e3), (".5", 0.5), ("-.inf", -math.inf),
        ("1_000", 1000), ("010", 10), ("-0x1F", -31), ("0o17", 15), ("1:30", "1:30"), ("2026-01-01", "2026-01-01"),
        ("null", None), ("~", None), ("", None), ("'1'", "1"), ("3m", "3m"), ("humanoid_9|8", "humanoid_9|8"),
    ],
)  # fmt: skip
def test_words_are_read_as_they_are_meant(tmp_path: Path, word: str, value: Any) -> None:
    found = read(tmp_path, f"a: {word}\n")["a"]
    assert (type(found), found) == (type(value), value)


def test_line_ends_and_marks_of_other_systems_do_not_matter(tmp_path: Path) -> None:
    assert read(tmp_path, b"\xef\xbb\xbfa: 1\r\nb: [x, \xc3\xbc]\r\n") == {"a": 1, "b": ["x", "\u00fc"]}


def test_a_mapping_may_start_from_another_one(tmp_path: Path) -> None:
    text = "a: &net {hidden: 64, layers: 1}\nb: {<<: *net, hidden: 32}\n"
    assert read(tmp_path, text)["b"] == {"hidden": 32, "layers": 1}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("grids: [1]\nbase:\ngrids: [2]\n", "line 3: the key 'grids' stands in line 1 already"),
        ("ppo:\n  lr: 1\n  'lr': 2\n", "line 3: the key 'lr' stands in line 2 already"),
        ("a: {b: {c: 1, c: 1}}", "line 1: the key 'c' stands in line 1 already"),
        ("a: 1\nb: [\n", "line 3: "),
        ("a: 1\n---\nb: 1\n", "line 2: "),
        ("? [a]\n: 1", "unhashable key"),
        ("a: &x {b: *x}", "Circular reference"),
        ("a: !!bool maybe", "maybe"),
        ("a: !!timestamp 2026-01-01", "date"),
        ("[" * 10_000, "recursion"),
        ("!!python/object/apply:os.getpid []", "could not determine a constructor"),
        ("a: \x00", "special characters are not allowed"),
        ("a: 1\nb: \u00fc".encode("latin-1"), "is not UTF-8 (line 2)"),
        ("a: 1".encode("utf-16"), "is not UTF-8 (line 1)"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, content: str | bytes, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, content)
    message = str(error.value)
    assert said in message and message.startswith(str(tmp_path / "a.yaml")) and "\n" not in message


def test_an_empty_file_holds_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, "# soon\n") is None
    with pytest.raises(ConfigError, match="there is no file"):
        read_yaml(tmp_path / "b.yaml")
