"""Levels: the owners of low-rank corrections, as one word per level.

A level is written `SCOPE[:RANK][@FACTOR][/LAYERS]`, such as `agent:4@0.1/head+early`. The factor may be `auto`. Layers
are joined by `+`, which needs no quotes in a shell or in a YAML list. This module does not import jax.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from lorasa_jax.checks import LARGEST_FLOAT, LARGEST_INT, SMALLEST_FLOAT, nearest, require

SCOPES = ("team", "unit_type", "agent")
"""Kinds of owners from the coarsest scope to the finest: all agents together, a role, an agent."""
_WORD = re.compile(r"([^:@/]*)(?::([^@/]*))?(?:@([^/]*))?(?:/(.*))?", re.DOTALL)
_FORM = "a level is SCOPE[:RANK][@FACTOR][/LAYERS], such as agent:4@0.1/head+early"
Factor: TypeAlias = float | Literal["auto"]


class Renamed(FutureWarning):
    """A setting has a new name; the old name works for one more release."""


class LevelSettings(NamedTuple):
    """One level as it is written; `str` is the inverse.

    Attributes:
        scope: one of `SCOPES`.
        rank: rank of the corrections; None: the default rank.
        factor: learning rate of this level relative to the phase; auto: follows the environment and play; None: 1
            beside a frozen trunk, otherwise auto.
        layers: names, patterns or groups of layers; empty: the default layers.
    """

    scope: str
    rank: int | None = None
    factor: Factor | None = None
    layers: tuple[str, ...] = ()

    def __str__(self) -> str:
        rank = "" if self.rank is None else f":{self.rank}"
        factor = "" if self.factor is None else f"@{self.factor}".removesuffix(".0")
        return f"{self.scope}{rank}{factor}" + ("/" + "+".join(self.layers) if self.layers else "")


class AdapterLevel(NamedTuple):
    """One level with all values that its corrections need.

    Attributes:
        scope: one of `SCOPES`.
        rank: r.
        scale: alpha / r, the factor of its products.
        factor: its learning rate relative to the phase, as in `LevelSettings`.
        layers: the corrected layers, from input to output.
    """

    scope: str
    rank: int
    scale: float
    factor: Factor | None
    layers: tuple[str, ...]


def parse_level(word: str) -> LevelSettings:
    """Returns the level that a word describes; raises `ConfigError` if the word is invalid."""
    found = _WORD.fullmatch(word)
    scope, rank, factor, layers = found.groups() if found else ("", None, None, None)
    require(
        scope in SCOPES,
        f"levels: {word!r} begins with no scope{nearest(scope, SCOPES)}; {_FORM}; scopes: {', '.join(SCOPES)}",
    )
    good = rank is None or (rank.isdecimal() and 0 < int(rank) <= LARGEST_INT)
    require(good, f"levels: the rank in {word!r} must be a positive whole number, got {rank!r}; {_FORM}")
    rate = None if factor is None else _factor(factor)
    require(
        rate is None or rate == "auto" or SMALLEST_FLOAT <= rate <= LARGEST_FLOAT,
        f"levels: the learning rate factor in {word!r} must be a positive number or auto, got {factor!r}; {_FORM}",
    )
    names = () if layers is None else tuple(layers.split("+"))
    require(all(names) and (layers is None or bool(names)), f"levels: {word!r} ends without a layer; {_FORM}")
    return LevelSettings(scope, None if rank is None else int(rank), rate, names)


def _factor(text: str) -> Factor:
    if text == "auto":
        return "auto"
    try:
        return float(text)
    except ValueError:
        return math.nan


def parse_levels(words: Sequence[str]) -> tuple[LevelSettings, ...]:
    """Returns the levels that words describe, from the coarsest scope to the finest.

    A word may hold several levels, separated by spaces, so that a sweep can list them.

    Raises:
        ConfigError: a word is invalid, a scope occurs twice, or there is no level.
    """
    found = [parse_level(word) for entry in words for word in entry.split()]
    require(bool(found), f"levels must name an owner, one or more of {', '.join(SCOPES)}")
    for scope in SCOPES:
        same = [str(level) for level in found if level.scope == scope]
        require(
            len(same) <= 1, f"levels name the scope {scope} more than once ({' and '.join(same)}); give it one level"
        )
    return tuple(sorted(found, key=lambda level: SCOPES.index(level.scope)))


DEFAULT = ("agent",)
"""Every agent owns corrections, with the default rank and layers."""


def from_old_names(
    levels: tuple[LevelSettings, ...], adapter_key: str | None, ranks: tuple[int, ...] | None
) -> tuple[LevelSettings, ...]:
    """Returns the levels that the old settings `adapter_key` and `ranks` describe. An old setting replaces levels.

    Warns:
        Renamed: an old setting is given.

    Raises:
        ConfigError: ranks do not fit the levels.
    """
    if adapter_key is None and ranks is None:
        return levels
    told = f"adapter-key {adapter_key}" if adapter_key else f"ranks {_words(ranks)}"
    if adapter_key is not None:
        old = parse_levels(adapter_key.split(","))
        if [level.scope for level in levels] != [level.scope for level in old]:
            levels = old
    if ranks is not None:
        require(
            len(ranks) == len(levels) and min(ranks) > 0,
            f"ranks (old; now in levels) must be a positive number for each of {' '.join(map(str, levels))}, "
            f"got {_words(ranks)}",
        )
        levels = tuple(level._replace(rank=rank) for level, rank in zip(levels, ranks, strict=True))
    message = f"{told} is an old name and goes with the next release; say levels {' '.join(map(str, levels))}"
    warnings.warn(message, Renamed, stacklevel=5)
    return levels


def _words(ranks: tuple[int, ...] | None) -> str:
    return " ".join(map(str, ranks or ())) or "none"
