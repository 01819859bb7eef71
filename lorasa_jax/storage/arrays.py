"""Checkpoints on disk: named arrays, written atomically; corrupted data is rejected on load.

A checkpoint is a directory of items and two files. An item holds arrays by path. The files are

| file         | content |
|---|---|
| `meta`       | JSON: data of the writer, and the shape, type and SHA-256 of every array |
| `files.json` | SHA-256 of every other file, and of this list itself |

Orbax writes the arrays. It does not notice flipped bits or other types, so this module stores digests. Its errors do
not name a damaged file, so this module checks the files first. It interprets some characters of a path as patterns or
addresses, so this module gives it links with plain names (`_plain`).
A checkpoint gets its final name, a number, after it was written and opened again. Other names are not checkpoints.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lorasa_jax.config import ConfigError, require
from lorasa_jax.core.trees import by_path, nested
from lorasa_jax.files import naming

KEEP = 2
"""Number of complete checkpoints that are kept."""
FORMAT = 7
"""Version of the format. Increase it with every change of what is written."""
_META, _FILES = "meta", "files.json"
_UNFINISHED, _REMOVED = ".unfinished", ".removed"

Arrays = dict[str, np.ndarray]
Described = dict[str, dict[str, Any]]
_TYPES = re.compile("bool|u?int(8|16|32|64)|b?float16|float(32|64)|complex64")
_PLAIN = re.compile(r"[\w/.,=+~ -]*")
"""Paths that orbax does not interpret."""
_MOST = 2**30
"""Maximum number of numbers in one item. A run of a million environments has fewer."""


class Snapshot(NamedTuple):
    """A copy of a run on the host, ready to be written.

    Attributes:
        rows: iterations of all seeds so far; the name of the checkpoint.
        items: the arrays, by item and by path in the item.
        meta: other data, as JSON.
    """

    rows: int
    items: dict[str, Arrays]
    meta: dict[str, Any]


def _describe(array: np.ndarray) -> dict[str, Any]:
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    return {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": digest}


# Writing


def write(directory: Path, snapshot: Snapshot, keep: int | None = KEEP) -> Path:
    """Writes a checkpoint into `directory`, removes all but the last `keep` ones (None: none), and returns its path.

    Raises:
        OSError: it could not be written or opened again, for example because the disk is full. Older checkpoints
            are kept. The error names the checkpoint.
    """
    import orbax.checkpoint as ocp  # slow to import, and many runs do not need it

    path, unfinished = directory / str(snapshot.rows), directory / f"{snapshot.rows}{_UNFINISHED}"
    described = {item: {name: _describe(a) for name, a in arrays.items()} for item, arrays in snapshot.items.items()}
    # Orbax does not write empty arrays; their shape is enough.
    trees = {item: nested({name: a for name, a in arrays.items() if a.size}) for item, arrays in snapshot.items.items()}
    args = {item: ocp.args.StandardSave(tree) for item, tree in trees.items() if tree}
    args[_META] = ocp.args.JsonSave({"format": FORMAT, **snapshot.meta, "leaves": described})
    with naming(path, directory):
        directory.mkdir(parents=True, exist_ok=True)
        _require_space(directory, snapshot)
        try:
            _save(unfinished, ocp.args.Composite(**args))
            files = _digests(unfinished)
            (unfinished / _FILES).write_text(json.dumps({"sha256": _digest_of(files), "files": files}))
            for item, arrays in read_meta(unfinished)["leaves"].items():
                _require_stored(unfinished, item, arrays)
            unfinished.rename(path)
            for older in complete(directory)[:-keep] if keep else ():
                _remove(older)
        except ConfigError as error:  # it cannot be read
            raise OSError(errno.EIO, str(error).removesuffix(elsewhere(unfinished))) from error
        finally:
            clean(directory)
    return path


def _save(path: Path, args: Any) -> None:
    """Writes a checkpoint with orbax, and raises errors of the file system, which orbax only reports as text."""
    try:
        with _orbax() as checkpointer, _plain(path.parent) as named:
            checkpointer.save(named / path.name, args=args)
        for note in path.rglob("commit_success.txt"):
            note.write_text("")  # orbax notes where it wrote: a folder of this machine, and not the last name
    except OSError:
        raise
    except Exception as error:  # its libraries raise various errors
        known = re.search(r"(?:os_error_code='|OS error )(\d+)", str(error))
        if known is None:
            raise OSError(" ".join(str(error).split())[:100]) from error
        raise OSError(int(known[1]), os.strerror(int(known[1]))) from error


@contextmanager
def _plain(directory: Path) -> Iterator[Path]:
    """Gives a directory a name that orbax accepts; it fails with names such as `[2026] lora` or `gs:`."""
    directory = directory.absolute()  # required by orbax
    if _PLAIN.fullmatch(str(directory)):
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="lorasa_jax-") as folder:
        link = Path(folder) / "checkpoint"
        link.symlink_to(directory, target_is_directory=True)
        yield link


def _require_space(directory: Path, snapshot: Snapshot) -> None:
    """Raises `OSError` if the disk is nearly full, so that space is left for the small record of the run."""
    needed = 2 * sum(array.nbytes for arrays in snapshot.items.values() for array in arrays.values()) + 2**20
    disk = shutil.disk_usage(directory)
    if disk.free < needed and disk.total > 0:  # some file systems report no size
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _digests(directory: Path) -> dict[str, str]:
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != _FILES)
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def complete(directory: Path) -> list[Path]:
    """Returns the complete checkpoints below a directory, oldest first."""
    if not directory.is_dir():
        return []
    return sorted((path for path in directory.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))


def clean(directory: Path) -> None:
    """Removes the remains of interrupted writing from a directory, and nothing else."""
    for path in directory.iterdir() if directory.is_dir() else ():
        if path.is_dir() and not {_UNFINISHED, _REMOVED}.isdisjoint(path.suffixes):
            shutil.rmtree(path)


def drop_after(path: Path) -> None:
    """Removes the checkpoints after this one, because the run is resumed from here."""
    for later in complete(path.parent):
        if int(later.name) > int(path.name):
            _remove(later)


def _remove(path: Path) -> None:
    """Removes a checkpoint. It is renamed first, so a partly removed checkpoint is not taken for a complete one."""
    removed = path.with_name(f"{path.name}{_REMOVED}")
    path.rename(removed)
    shutil.rmtree(removed)


# Reading


def read_meta(path: Path) -> dict[str, Any]:
    """Returns the `meta` of a checkpoint, and checks its descriptions of arrays.

    Raises:
        ConfigError: there is no such checkpoint, it is damaged, or has another format.
    """
    if not path.is_dir():
        there = ", ".join(other.name for other in complete(path.parent))
        raise ConfigError(f"there is no checkpoint {path}{f'; there are {there}' if there else elsewhere(path)}")
    inside = complete(path / "checkpoints")
    require(not inside, f"{path} is a run; name one of its checkpoints, such as {inside[-1] if inside else path}")
    meta = _restore(path, _META)
    version = meta.get("format") if isinstance(meta, dict) else None
    require(
        version == FORMAT,
        f"checkpoint {path} has format {str(version)[:20]}, this version of lorasa_jax reads {FORMAT}; "
        "use the version that wrote it",
    )
    leaves = meta.get("leaves")
    require_ours(path, isinstance(leaves, dict) and all(map(_is_described, leaves.values())))
    return meta


def require_ours(path: Path, is_ours: bool) -> None:
    """Raises `ConfigError` unless `meta` has the form that lorasa_jax writes."""
    require(is_ours, f"{_META} of checkpoint {path} was not written by lorasa_jax{elsewhere(path)}")


def _is_described(item: Any) -> bool:
    return isinstance(item, dict) and all(map(_is_description, item.values()))


def _is_description(leaf: Any) -> bool:
    return (
        isinstance(leaf, dict)
        and leaf.keys() == {"shape", "dtype", "sha256"}
        and is_list(leaf["shape"], int)
        and all(0 <= size < 2**31 for size in leaf["shape"])
        and isinstance(leaf["dtype"], str)
        and _TYPES.fullmatch(leaf["dtype"]) is not None
    )


def is_list(value: Any, *types: type) -> bool:
    """Returns whether a value is a list with entries of these types."""
    return isinstance(value, list) and all(isinstance(entry, types) for entry in value)


def read_item(path: Path, item: str) -> dict[str, Any]:
    """Returns the arrays of one item, such as the trunks (`shared`), as nested dictionaries.

    Raises:
        ConfigError: the checkpoint has no such item, or is damaged.
    """
    items = read_meta(path)["leaves"]
    require(item in items, f"checkpoint {path} has no item {item!r}; it has {', '.join(items)}")
    return nested(read_arrays(path, item, items[item]))


def read_arrays(path: Path, item: str, described: Described) -> Arrays:
    """Returns the arrays of an item by path, and checks them against `meta`.

    Raises:
        ConfigError: they are damaged, or differ from what was written.
    """
    size = sum(math.prod(leaf["shape"]) for leaf in described.values())
    require(size <= _MOST, f"{item} of checkpoint {path} says it holds {size:,} numbers, which is too many")
    empty = {name: np.zeros(leaf["shape"], leaf["dtype"]) for name, leaf in described.items() if 0 in leaf["shape"]}
    stored = by_path(_restore(path, item, described)) if len(empty) < len(described) else {}
    arrays = {name: np.asarray(array) for name, array in {**stored, **empty}.items()}
    for name, leaf in described.items():
        same = name in arrays and _describe(arrays[name]) == leaf
        require(same, f"{name} in {item} of checkpoint {path} differs from what was written{elsewhere(path)}")
    return arrays


def _restore(path: Path, item: str, described: Described | None = None) -> Any:
    """Returns what orbax reads, after a check that the files are unchanged."""
    import orbax.checkpoint as ocp

    wrong = next((name for name, digest in _files(path, item).items() if _digest(path / name) != digest), None)
    if wrong is not None:
        what = "is damaged" if os.path.exists(path / wrong) else "is missing"
        raise ConfigError(f"{wrong} of checkpoint {path} {what}{elsewhere(path)}")
    how = ocp.args.JsonRestore() if item == _META else ocp.args.StandardRestore()
    # Orbax allocates an array before it checks that the numbers exist.
    _require_stored(path, item, described or {})
    with _reading(path, item) as named, _orbax() as checkpointer:
        return checkpointer.restore(named, args=ocp.args.Composite(**{item: how}))[item]


def _require_stored(path: Path, item: str, described: Described) -> None:
    """Compares the shapes and types of the stored arrays with their descriptions, without reading the arrays."""
    import orbax.checkpoint as ocp

    expected = {name: (leaf["shape"], leaf["dtype"]) for name, leaf in described.items() if 0 not in leaf["shape"]}
    if not expected:
        return  # empty arrays are not stored
    with _reading(path, item) as named:
        leaves = by_path(ocp.StandardCheckpointHandler().metadata(named / item).tree)
    stored = {name: (list(leaf.shape), str(leaf.dtype)) for name, leaf in leaves.items()}
    for name in stored.keys() | expected.keys():
        same = stored.get(name) == expected.get(name)
        require(same, f"{name} in {item} of checkpoint {path} differs from what was written{elsewhere(path)}")


@contextmanager
def _reading(path: Path, item: str) -> Iterator[Path]:
    """Gives a checkpoint a name for orbax, and turns any error of orbax into a `ConfigError` of one line."""
    try:
        with _plain(path) as named:
            yield named
    except Exception as error:
        said = " ".join(str(error).split())[:100]
        raise ConfigError(f"{item} of checkpoint {path} cannot be read ({said}){elsewhere(path)}") from None


@contextmanager
def _orbax() -> Iterator[Any]:
    """Orbax's checkpointer, without the long log entries that it writes for each error it raises."""

    def is_other(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname

    logger = logging.getLogger("absl")
    logger.addFilter(is_other)
    try:
        with _checkpointer() as checkpointer:
            yield checkpointer
    finally:
        logger.removeFilter(is_other)


def _checkpointer() -> Any:
    """Orbax's checkpointer. With several processes, each one works alone and does not wait for the others."""
    import orbax.checkpoint as ocp

    if jax.process_count() == 1:
        return ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
    )
    handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=alone))
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _files(path: Path, item: str) -> dict[str, str]:
    """The digests of the files that are needed for an item: its own files, and those outside of items."""
    try:
        listed = json.loads((path / _FILES).read_text())
        texts = all(isinstance(digest, str) for digest in listed["files"].values())
        whole = texts and listed["sha256"] == _digest_of(listed["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    require(whole, f"{_FILES} of checkpoint {path} is damaged or missing{elsewhere(path)}")
    home = path.resolve()
    for found in (*listed["files"], *(str(found.relative_to(path)) for found in path.rglob("*"))):
        inside = "\0" not in found and (path / found).resolve().is_relative_to(home)
        require(inside, f"{found!r} in checkpoint {path} points outside it, so the checkpoint is rejected")
    return {name: digest for name, digest in listed["files"].items() if name.startswith(f"{item}/") or "/" not in name}


def _digest_of(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "none"
    except OSError:
        return "none"


def elsewhere(path: Path) -> str:
    """Returns advice for a missing or damaged checkpoint, as the end of a message."""
    older = [other for other in complete(path.parent) if path.name.isdecimal() and int(other.name) < int(path.name)]
    if older:
        return f"; use the older one: {older[-1]}"
    return "; there is no older one, so start the run again in another directory"
