"""Deltas as files, laid out as PEFT's adapters are.

============================  ===============================================================
`adapter_config.json`         PEFT's `peft_type`, `r`, `lora_alpha`, `target_modules`,
                              `rank_pattern` and `alpha_pattern`, with the paths of parameters
                              for names; and `format`, `owners` and, by path, `parameters`:
                              shape, dtype and view
`adapter_model.safetensors`   `PATH/left` [N, *batch, in, r] and `PATH/right`
                              [N, *batch, r, out], or `PATH/full` [N, *shape]
============================  ===============================================================

Files may come from anybody. Nothing in them is run, and no array is read before its name, shape and type are known to
be right.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lorasa_jax.config import ConfigError, require
from lorasa_jax.core.trees import not_finite
from lorasa_jax.deltas.algebra import Deltas, require_shapes
from lorasa_jax.deltas.spec import Spec, Target
from lorasa_jax.files import whole

FORMAT = 1
"""Changes where what is written changes."""
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_LARGEST_CONFIG = 2**24
_DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}


def save(path: Path | str, deltas: Deltas) -> Path:
    """Writes the deltas of all owners, with their spec, into a new folder, and returns its path.

    The folder appears when all of it has been written.

    Args:
        path: the folder; must not exist.
        deltas: of all owners, leaves [N, ...].

    Raises:
        ConfigError: the folder exists, or the deltas hold NaN or lack their owner axis.
        OSError: it cannot be written.
    """
    from safetensors.numpy import save as to_bytes

    path = Path(path)
    require(not path.exists(), f"{path} exists already; name another folder for the deltas")
    n = require_shapes(deltas, owners=True)
    arrays = {
        f"{target}/{name}": np.ascontiguousarray(array)
        for target, parts in deltas.arrays.items()
        for name, array in parts.items()
    }
    _require_right(arrays, deltas.spec, n, "these deltas")

    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as folder:
        folder.mkdir()
        (folder / CONFIG_FILE).write_text(json.dumps(_to_json(deltas.spec, n), indent=2) + "\n")
        (folder / WEIGHTS_FILE).write_bytes(to_bytes(arrays))
    return path


def load(path: Path | str) -> Deltas:
    """Returns the deltas in a folder that `save` wrote, with their spec.

    Raises:
        ConfigError: they are missing, damaged, hold NaN, or are not what their configuration says.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    spec, n = _read_config(path / CONFIG_FILE)
    weights = path / WEIGHTS_FILE
    require(weights.is_file(), f"there is no {WEIGHTS_FILE} in {path}")
    try:
        with safe_open(weights, framework="numpy") as file:
            found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (no dictionary)
            kinds = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in found.items()}
            _require_kinds(kinds, spec, n, str(weights))
            arrays = {name: file.get_tensor(name) for name in found}
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(f"{weights} is no valid safetensors file: {' '.join(str(error).split())[:200]}") from None
    _require_right(arrays, spec, n, str(weights))
    return Deltas(
        {
            target.path: {name: jnp.asarray(arrays[f"{target.path}/{name}"]) for name in target.shapes}
            for target in spec.targets
        },
        spec,
    )


def _require_right(arrays: dict[str, np.ndarray], spec: Spec, n: int, where: str) -> None:
    kinds = {name: (array.shape, _DTYPES.get(str(array.dtype), str(array.dtype))) for name, array in arrays.items()}
    _require_kinds(kinds, spec, n, where)
    wrong = not_finite({name: array.astype("float32") for name, array in arrays.items()})
    require(wrong is None, f"{wrong} in {where} holds NaN or infinity")


def _require_kinds(found: dict[str, tuple[tuple[int, ...], str]], spec: Spec, n: int, where: str) -> None:
    """Refuses arrays whose names, shapes and types are not those of the spec."""
    expected = {
        f"{target.path}/{name}": ((n, *shape), _DTYPES[target.dtype])
        for target in spec.targets
        for name, shape in target.shapes.items()
    }
    for name in sorted(expected.keys() ^ found.keys()):
        raise ConfigError(f"{name} {'is missing from' if name in expected else 'has no place in'} {where}")
    for name, (shape, dtype) in found.items():
        (wanted, of_type) = expected[name]
        require(
            (shape, dtype) == (wanted, of_type),
            f"{name} in {where} is {dtype}{list(shape)}, but must be {of_type}{list(wanted)}",
        )


def _to_json(spec: Spec, n: int) -> dict[str, Any]:
    """The spec in the terms of PEFT: the most common rank and alpha, and the others by path."""
    rank = Counter(target.rank for target in spec.targets).most_common(1)[0][0]
    alpha = Counter(target.alpha for target in spec.targets).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": [target.path for target in spec.targets],
        "rank_pattern": {target.path: target.rank for target in spec.targets if target.rank != rank},
        "alpha_pattern": {target.path: target.alpha for target in spec.targets if target.alpha != alpha},
        "format": FORMAT,
        "owners": n,
        "parameters": {t.path: {"shape": list(t.shape), "dtype": t.dtype, "view": t.view} for t in spec.targets},
    }


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value < 2**31


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 1e9


def _is_mapping_of(is_good: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(is_good, value.values()))


def _is_parameter(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"shape", "dtype", "view"}
        and isinstance(value["shape"], list)
        and len(value["shape"]) < 32
        and all(type(size) is int and 0 <= size < 2**31 for size in value["shape"])
        and isinstance(value["dtype"], str)
        and value["dtype"] in _DTYPES
        and isinstance(value["view"], str)
    )


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, str) for entry in value)


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "peft_type": lambda value: value == "LORA",
    "r": _is_count,
    "lora_alpha": _is_number,
    "target_modules": _is_texts,
    "rank_pattern": _is_mapping_of(_is_count),
    "alpha_pattern": _is_mapping_of(_is_number),
    "owners": _is_count,
    "parameters": _is_mapping_of(_is_parameter),
}
"""What each field of `adapter_config.json` has to be."""


def _read_config(path: Path) -> tuple[Spec, int]:
    require(path.is_file(), f"there are no deltas in {path.parent}: it has no {CONFIG_FILE}")
    require(path.stat().st_size <= _LARGEST_CONFIG, f"{path} is larger than any configuration of deltas")
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        fields = None
    require(isinstance(fields, dict), f"{path} is no valid JSON object")
    version = fields.get("format")
    require(version == FORMAT, f"{path} has format {str(version)[:20]}, this version of lorasa_jax reads {FORMAT}")
    for name, is_good in _FIELDS.items():
        require(name in fields and is_good(fields[name]), f"{name} in {path} is missing or invalid")
    paths, parameters = fields["target_modules"], fields["parameters"]
    require(
        len(set(paths)) == len(paths) and set(paths) == parameters.keys(),
        f"target_modules and parameters in {path} name different parameters",
    )
    ranks, alphas = fields["rank_pattern"], fields["alpha_pattern"]
    require(ranks.keys() | alphas.keys() <= set(paths), f"a pattern in {path} names a parameter that is no target")
    return (
        Spec(
            tuple(
                Target(
                    path=name,
                    shape=tuple(parameters[name]["shape"]),
                    dtype=parameters[name]["dtype"],
                    view=parameters[name]["view"],
                    rank=ranks.get(name, fields["r"]),
                    alpha=float(alphas.get(name, fields["lora_alpha"])),
                )
                for name in paths
            )
        ),
        fields["owners"],
    )
