"""Checks of user input: the error class, and checks of values against the annotations of a dataclass.

This module does not import jax.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import operator
import os
import types
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

LARGEST_INT = 2**31 - 1
"""Counts have 32 bits on the device."""
LARGEST_FLOAT, SMALLEST_FLOAT = 3.4028234e38, 1.1754944e-38
"""The largest and the smallest positive normal number of float32."""


class ConfigError(Exception):
    """An invalid setting; the message is one line for the user."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns `` (did you mean 'x'?)`` for the closest known words, or nothing."""
    hits = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    if not hits:  # compare without capitals, too
        hits = [name for name in known if name.lower() == word.lower()]
    return f" (did you mean {' or '.join(repr(hit) for hit in hits)}?)" if hits else ""


def require(condition: bool, message: str) -> None:
    """Raises `ConfigError` with `message` unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def conform(record: Any, prefix: str = "", *, as_flags: bool = True) -> None:
    """Checks every field of a dataclass against its annotation.

    Values of equivalent types are converted in place: a NumPy integer to `int`, a whole `float` to `int`,
    a list to a tuple, a string to a `Path`.

    Args:
        record: an instance; it may be frozen.
        prefix: prefix of the fields' names in messages.
        as_flags: write the names as on the command line, with dashes.

    Raises:
        ConfigError: a value does not fit; the message names the field, what was expected, and the nearest choice.
    """
    kind: Any = type(record)
    for name, hint in _hints(kind).items():
        value = getattr(record, name)
        try:
            fitting = _fit(value, hint)
        except (TypeError, ValueError):
            choices = [choice for choice in _choices(hint) if isinstance(choice, str)]
            hint_at = nearest(value, choices) if isinstance(value, str) else ""
            shown = " ".join(repr(value).split())[:80]
            flag = prefix + (name.replace("_", "-") if as_flags else name)
            raise ConfigError(f"{flag} must be {_describe(hint)}, got {shown}{hint_at}") from None
        if fitting is not value:
            object.__setattr__(record, name, fitting)


def forget_annotations() -> None:
    """Makes `conform` read annotations again after one of them has changed."""
    _hints.cache_clear()


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _fit(value: Any, hint: Any) -> Any:
    """The value converted to the annotation; raises `TypeError` or `ValueError` if it does not fit."""
    if hint is Any:
        return value
    if get_origin(hint) is Literal:
        return _one_of(value, get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return _first_fit(value, get_args(hint))
    if get_origin(hint) is tuple:
        if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
            raise TypeError
        entries = tuple(_fit(entry, get_args(hint)[0]) for entry in value)
        return value if isinstance(value, tuple) and all(map(operator.is_, entries, value)) else entries
    return _PLAIN.get(hint, _instance_of(hint))(value)


def _one_of(value: Any, choices: tuple) -> Any:
    for choice in choices:
        if isinstance(value, type(choice)) and not isinstance(value, bool) and value == choice:
            return choice
    raise ValueError


def _first_fit(value: Any, hints: tuple) -> Any:
    for hint in hints:
        try:
            return _fit(value, hint)
        except (TypeError, ValueError):
            continue
    raise ValueError


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if _is_numpy_bool(value):
        return bool(value)
    raise TypeError


def _is_numpy_bool(value: Any) -> bool:
    return str(getattr(value, "dtype", "")) == "bool"


def _int(value: Any) -> int:
    if type(value) is int:
        return value
    if isinstance(value, bool | str | bytes) or _is_numpy_bool(value):
        raise TypeError
    if isinstance(value, numbers.Real) and float(value).is_integer():
        return int(float(value)) if not isinstance(value, numbers.Integral) else int(value)
    return operator.index(value)


def _float(value: Any) -> float:
    if type(value) is float:
        return value
    if isinstance(value, bool | str | bytes) or _is_numpy_bool(value):
        raise TypeError
    return float(value)


def _none(value: Any) -> None:
    if value is not None:
        raise TypeError


def _path(value: Any) -> Path:
    return value if isinstance(value, Path) else Path(os.fspath(value))


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value if type(value) is str else str(value)


_PLAIN: dict[Any, Callable[[Any], Any]] = {
    bool: _bool, int: _int, float: _float, str: _str, Path: _path, type(None): _none, None: _none,
}  # fmt: skip


def _instance_of(kind: Any) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError
        return value

    return check


_WORDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a word", Path: "a path"}


def _describe(hint: Any) -> str:
    """An annotation in words."""
    if get_origin(hint) is Literal:
        words = [str(choice) for choice in get_args(hint)]
        return words[0] if len(words) == 1 else f"one of {' | '.join(words)}"
    if get_origin(hint) in (Union, types.UnionType):
        parts = ["left out" if part is type(None) else _describe(part) for part in get_args(hint)]
        return " or ".join(parts)
    if get_origin(hint) is tuple:
        return f"a list of entries that are each {_describe(get_args(hint)[0])}"
    return _WORDS.get(hint, f"a {getattr(hint, '__name__', hint)}")


def _choices(hint: Any) -> tuple:
    """The words that an annotation allows, including those in a union or a tuple."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(choice for part in get_args(hint) for choice in _choices(part))


def require_positive(section: object, prefix: str, *names: str) -> None:
    """Raises `ConfigError` unless the named fields are positive."""
    for name in names:
        value = getattr(section, name)
        require(value > 0, f"{prefix}{name.replace('_', '-')} must be positive, got {value}")


def require_in_range(section: object, prefix: str, unbounded: tuple[str, ...] = ()) -> None:
    """Raises `ConfigError` if a number does not fit into 32 bits on the device.

    Args:
        section: a dataclass. Its integers must fit int32, its floats must be normal numbers of float32.
        prefix: prefix of the fields' names on the command line.
        unbounded: fields that are checked elsewhere, and floats that may be infinite.
    """
    for field in dataclasses.fields(section):  # type: ignore[arg-type]
        value, flag = getattr(section, field.name), prefix + field.name.replace("_", "-")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not (field.name in unbounded and number == math.inf):
                size = abs(number)
                fits = size == 0 or SMALLEST_FLOAT <= size <= LARGEST_FLOAT
                require(fits, f"{flag} must be a finite number that float32 can hold, got {number}")
            elif isinstance(number, int) and field.name not in unbounded:
                require(abs(number) <= LARGEST_INT, f"{flag} must be at most {LARGEST_INT:,} in size, got {number}")
