"""Deltas as files: one PEFT adapter folder per owner.

* `deltas.json`: `format`, `owners`, `about`, and for every target its path, shape, dtype, view, rank and alpha.
* `owner_I/adapter_config.json`: PEFT's `LoraConfig`; this library does not read it.
* `owner_I/adapter_model.safetensors`: with PEFT's names and shapes, `base_model.model.MODULE.lora_A.weight`
  (`[*batch, r, in]`) and `base_model.model.MODULE.lora_B.weight` (`[*batch, out, r]`).

MODULE is the path of the parameter with dots, without the collection `params` and the names `kernel` and `embedding`.
Embeddings have `lora_embedding_A` and `lora_embedding_B`. A full-rank delta of a matrix has r = min(in, out) and one
factor that is the identity. PEFT has no deltas of biases and vectors: they are stored under their own paths, and PEFT
ignores them.

Files may come from anybody. Nothing in them is run, and no array is read before its name, shape and type are known to
be right.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lorasa_jax.config import ConfigError, require
from lorasa_jax.core.trees import not_finite
from lorasa_jax.deltas.algebra import Deltas, require_shapes
from lorasa_jax.deltas.spec import Spec, Target
from lorasa_jax.files import whole

FORMAT = 2
"""Changes where what is written changes."""
SPEC_FILE, CONFIG_FILE, WEIGHTS_FILE = "deltas.json", "adapter_config.json", "adapter_model.safetensors"
_LARGEST_SPEC = 2**24
_DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}
_Arrays = dict[str, np.ndarray]


def save(path: Path | str, deltas: Deltas, about: Mapping[str, Any] | None = None) -> Path:
    """Writes the deltas of all owners, with their spec, into a new folder, and returns its path.

    The folder appears when all of it has been written. PEFT loads `path/owner_0` onto a torch network whose `Linear`
    and `Embedding` modules have the names of the Flax modules.

    Args:
        path: the folder; must not exist.
        deltas: of all owners, leaves [N, ...].
        about: more to keep beside them, as JSON.

    Raises:
        ConfigError: the folder exists, two targets have one name in PEFT, or the deltas hold NaN or lack their owner
            axis.
        OSError: it cannot be written.
    """
    from safetensors.numpy import save as to_bytes

    path, spec = Path(path), deltas.spec
    require(not path.exists(), f"{path} exists already; name another folder for the deltas")
    n = require_shapes(deltas, owners=True)
    name, times = Counter(map(_module, spec.targets)).most_common(1)[0]
    require(times == 1, f"two parameters would both be {name} for PEFT; save them in two folders")
    _require_right(deltas)

    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as folder:
        folder.mkdir()
        known = {"format": FORMAT, "owners": n, "about": dict(about or {}), "targets": list(map(asdict, spec.targets))}
        (folder / SPEC_FILE).write_text(json.dumps(known, indent=2) + "\n")
        for owner in range(n):
            inside = folder / f"owner_{owner}"
            inside.mkdir()
            tensors: _Arrays = {}
            for target in spec.targets:
                tensors |= _pack(target, {k: np.asarray(leaf[owner]) for k, leaf in deltas.arrays[target.path].items()})
            (inside / CONFIG_FILE).write_text(json.dumps(_peft_config(spec), indent=2) + "\n")
            (inside / WEIGHTS_FILE).write_bytes(to_bytes(tensors))
    return path


def load(path: Path | str) -> Deltas:
    """Returns the deltas in a folder that `save` wrote, with their spec.

    Raises:
        ConfigError: they are missing, damaged, hold NaN, or are not what their specification says.
    """
    return load_with_about(path)[0]


def load_with_about(path: Path | str) -> tuple[Deltas, dict[str, Any]]:
    """Returns the deltas in a folder, and what `save` was told about them; raises as `load` does."""
    spec, n, about = _read_spec(Path(path) / SPEC_FILE)
    owners = [_read_owner(Path(path) / f"owner_{owner}" / WEIGHTS_FILE, spec) for owner in range(n)]
    arrays = {
        target.path: {name: jnp.stack([owner[target.path][name] for owner in owners]) for name in target.shapes}
        for target in spec.targets
    }
    return Deltas(arrays, spec), about


# One owner, as PEFT has it


def _module(target: Target) -> str:
    """The name of the torch module that the target belongs to."""
    parts = target.path.removeprefix("params/").split("/")
    return ".".join(parts[:-1] if parts[-1] in ("kernel", "embedding") and parts[1:] else parts)


def _rank(target: Target) -> int:
    """The rank of the factors in the file."""
    return min(target.rank, target.n_in, target.n_out)


def _names(target: Target) -> tuple[str, str]:
    """The names of the factors in the file, [r, in] and [out, r]."""
    kind = "lora_embedding_{}" if target.path.endswith("/embedding") else "lora_{}.weight"
    prefix = f"base_model.model.{_module(target)}."
    return prefix + kind.format("A"), prefix + kind.format("B")


def _shapes(target: Target) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the arrays in the file."""
    if not target.view:
        return {target.path: target.shape}
    (a, b), batch, r = _names(target), target.sizes("b"), _rank(target)
    return {a: (*batch, r, target.n_in), b: (*batch, target.n_out, r)}


def _pack(target: Target, own: Mapping[str, np.ndarray]) -> _Arrays:
    if not target.view:
        return {target.path: np.ascontiguousarray(own["full"])}
    if target.full:
        matrix = np.asarray(target.to_matrix(own["full"]))
        identity = np.broadcast_to(
            np.eye(_rank(target), dtype=matrix.dtype), (*matrix.shape[:-2], *2 * (_rank(target),))
        )
        left, right = (identity, matrix) if target.n_in <= target.n_out else (matrix, identity)
    else:
        left, right = own["left"], own["right"]
    a, b = (np.ascontiguousarray(np.swapaxes(factor, -1, -2)) for factor in (left, right))
    return dict(zip(_names(target), (a, b), strict=True))


def _unpack(target: Target, tensors: _Arrays, where: str) -> _Arrays:
    if not target.view:
        return {"full": tensors[target.path]}
    left, right = (np.swapaxes(tensors[name], -1, -2) for name in _names(target))
    if not target.full:
        return {"left": left, "right": right}
    identity, matrix = (left, right) if target.n_in <= target.n_out else (right, left)
    require(
        bool((identity == np.eye(_rank(target), dtype=identity.dtype)).all()),
        f"the delta of {target.path} in {where} has full rank, so one of its factors must be the identity",
    )
    return {"full": np.asarray(target.from_matrix(matrix))}


def _peft_config(spec: Spec) -> dict[str, Any]:
    """PEFT's `LoraConfig`: the most common rank and alpha, and the others by module."""
    ranks, alphas = {}, {}
    for target in spec.targets:
        if target.view:
            ranks[_module(target)] = _rank(target)
            alphas[_module(target)] = target.scale * _rank(target)
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] if values else 1 for values in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(ranks),
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }


def _read_owner(path: Path, spec: Spec) -> dict[str, _Arrays]:
    from safetensors import SafetensorError, safe_open

    require(path.is_file(), f"there is no {WEIGHTS_FILE} in {path.parent}")
    expected = {
        name: (shape, _DTYPES[target.dtype]) for target in spec.targets for name, shape in _shapes(target).items()
    }
    try:
        with safe_open(path, framework="numpy") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (no dictionary)
            for name in sorted(expected.keys() ^ parts.keys()):
                raise ConfigError(f"{name} {'is missing from' if name in expected else 'has no place in'} {path}")
            for name, part in sorted(parts.items()):
                (shape, dtype), (wanted, of_type) = (tuple(part.get_shape()), part.get_dtype()), expected[name]
                require(
                    (shape, dtype) == (wanted, of_type),
                    f"{name} in {path} is {dtype}{list(shape)}, but must be {of_type}{list(wanted)}",
                )
            tensors = {name: file.get_tensor(name) for name in parts}
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(f"{path} is not a valid safetensors file: {' '.join(str(error).split())[:200]}") from None
    require_finite(tensors, str(path))
    return {target.path: _unpack(target, tensors, str(path)) for target in spec.targets}


# Checks


def _require_right(deltas: Deltas) -> None:
    """Refuses deltas of another type than their spec says, and those that hold NaN."""
    leaves = {}
    for target in deltas.spec.targets:
        for name, leaf in deltas.arrays[target.path].items():
            leaves[f"{target.path}/{name}"] = leaf
            require(
                str(leaf.dtype) == target.dtype,
                f"{target.path}/{name} in these deltas is {leaf.dtype}, but must be {target.dtype}",
            )
    require_finite(leaves, "these deltas")


def require_finite(leaves: Mapping[str, Any], where: str) -> None:
    """Refuses leaves of which one holds NaN or an infinity; raises `ConfigError`."""
    wrong = not_finite({name: np.asarray(leaf).astype("float64") for name, leaf in leaves.items()})
    require(wrong is None, f"{wrong} in {where} holds NaN or infinity")


def is_count(value: Any, least: int = 1) -> bool:
    """Says whether something read from a file is a whole number that a size may have."""
    return type(value) is int and least <= value < 2**31


def _is_target(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {field.name for field in fields(Target)}
        and all(isinstance(value[name], str) and value[name] for name in ("path", "dtype"))
        and isinstance(value["view"], str)
        and value["dtype"] in _DTYPES
        and isinstance(value["shape"], list)
        and len(value["shape"]) < 32
        and all(is_count(size, least=0) for size in value["shape"])
        and is_count(value["rank"])
        and type(value["alpha"]) in (int, float)
        and 0 < value["alpha"] < 1e9
    )


def _read_spec(path: Path) -> tuple[Spec, int, dict[str, Any]]:
    require(path.is_file(), f"there are no deltas in {path.parent}: it has no {SPEC_FILE}")
    require(path.stat().st_size <= _LARGEST_SPEC, f"{path} is too large for a specification of deltas")
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        found = None
    require(isinstance(found, dict), f"{path} is not a valid JSON object")
    version = found.get("format")
    require(version == FORMAT, f"{path} has format {str(version)[:20]}, this version of lorasa_jax reads {FORMAT}")
    targets, good = found.get("targets"), {"owners": is_count(found.get("owners"))}
    good["targets"] = isinstance(targets, list) and bool(targets) and all(map(_is_target, targets))
    good["about"] = isinstance(found.get("about"), dict)
    for name, is_good in good.items():
        require(is_good, f"{name} in {path} is missing or invalid")
    spec = Spec(tuple(Target(**{**target, "shape": tuple(target["shape"])}) for target in targets))
    require(len(spec.by_path) == len(targets), f"targets in {path} names a parameter twice")
    return spec, found["owners"], found["about"]
