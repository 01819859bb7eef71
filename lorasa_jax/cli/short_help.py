"""The flags of a run that `--help` and `--help-all` show."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any, TypeVar, get_type_hints

import tyro

T = TypeVar("T")

FIRST = (
    "env", "task", "algo", "sharing", "preset", "total_steps", "switch_step", "levels", "rank", "seed", "seeds", "out",
    "resume", "plugins",
)  # fmt: skip
"""Flags that most users need; `--help` shows only these."""
OLD = ("adapter_key", "ranks")
"""Old names of flags, which help never shows."""


def showing(config_type: type[T], all_flags: bool) -> type[T]:
    """Returns a configuration with the same flags, whose help shows only those of `FIRST`, or all except `OLD`."""
    fields: Collection[Any] = dataclasses.fields(config_type)  # type: ignore[arg-type]
    suppress: Any = tyro.conf.Suppress
    hints = get_type_hints(config_type, include_extras=True)
    content: dict[str, Any] = {"__annotations__": {}}
    for field in fields:
        if field.name in OLD if all_flags else field.name not in FIRST:
            content["__annotations__"][field.name] = suppress[hints[field.name]]
            made = field.default_factory
            content[field.name] = dataclasses.field(default_factory=made) if callable(made) else field.default
    about = {"__doc__": config_type.__doc__, "__module__": config_type.__module__}
    shown: type[T] = dataclasses.dataclass(frozen=True)(type(config_type.__name__, (config_type,), content | about))
    return shown


def as_type(config_type: type[T], config: Any) -> T:
    """Converts a configuration to a type that `showing` returned."""
    return config_type(**{field.name: getattr(config, field.name) for field in dataclasses.fields(config)})
