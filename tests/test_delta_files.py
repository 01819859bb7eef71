"""Deltas as files: what is written is read back, and what is damaged is refused in one line."""

from __future__ import annotations

import json
import shutil
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lorasa_jax import ConfigError, deltas

KEY = jax.random.key(0)
TREE = {
    "a": {"kernel": jnp.zeros((6, 5)), "bias": jnp.zeros(5)},
    "b": {"kernel": jnp.zeros((4, 2, 3)), "bias": jnp.zeros((2, 3))},
    "c": {"kernel": jnp.zeros((8, 8), jnp.bfloat16)},
}


def filled(tree=TREE, **options):
    spec = deltas.make_spec(tree, "*", **options)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: deltas.init(jax.random.key(0), spec, 3))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    team = filled(rank=2, alpha=3.0, rank_pattern={"b/kernel": 1, "c/*": 9}, alpha_pattern={"b/*": 5.0})
    return deltas.save(tmp_path_factory.mktemp("deltas") / "new" / "team", team), team


@pytest.fixture
def folder(saved, tmp_path):
    """A copy that a test can damage."""
    return shutil.copytree(saved[0], tmp_path / "team")


def test_what_is_saved_is_loaded_with_its_spec(saved):
    path, team = saved
    loaded = deltas.load(path)
    assert loaded.spec == team.spec and loaded.n_owners == 3
    for new, old in zip(jax.tree.leaves(loaded), jax.tree.leaves(team), strict=True):
        assert new.dtype == old.dtype and np.array_equal(new, old)
    merged = deltas.merge(TREE, loaded[1])
    assert np.array_equal(merged["b"]["kernel"], deltas.merge(TREE, team[1])["b"]["kernel"])
    assert [other.name for other in path.parent.iterdir()] == ["team"]


def test_each_owner_has_a_folder_as_peft_writes_it(saved):
    path, team = saved
    assert {entry.name for entry in path.iterdir()} == {"deltas.json", "owner_0", "owner_1", "owner_2"}
    fields = json.loads((path / "owner_1" / "adapter_config.json").read_text())
    assert fields["peft_type"] == "LORA"
    assert (fields["r"], fields["lora_alpha"]) == (2, 3.0)
    assert fields["rank_pattern"] == {"b": 1, "c": 8}
    assert fields["alpha_pattern"] == {"b": 5.0, "c": 8.0}
    assert fields["target_modules"] == ["a", "b", "c"]
    arrays = load_file(path / "owner_1" / "adapter_model.safetensors")
    assert {name.removeprefix("base_model.model."): array.shape for name, array in arrays.items()} == {
        "a/bias": (5,),
        "a.lora_A.weight": (2, 6),
        "a.lora_B.weight": (5, 2),
        "b/bias": (2, 3),
        "b.lora_A.weight": (1, 4),
        "b.lora_B.weight": (6, 1),
        "c.lora_A.weight": (8, 8),
        "c.lora_B.weight": (8, 8),
    }
    own = team[1].arrays["a/kernel"]
    assert np.array_equal(arrays["base_model.model.a.lora_A.weight"], own["left"].T)
    assert np.array_equal(arrays["base_model.model.c.lora_B.weight"], team[1].arrays["c/kernel"]["full"].T)


@pytest.mark.parametrize("shape", [(6, 5), (5, 6), (2, 5, 6), (5, 2, 3)])
@pytest.mark.parametrize("rank", [1, 9])
def test_matrices_of_every_form_come_back_to_the_bit(tmp_path, shape, rank):
    tree = {"params": {"a": {"kernel": jnp.zeros(shape)}, "kernel": jnp.zeros((3, 4))}}
    views = {"params/a/kernel": {(6, 5): "io", (5, 6): "io", (2, 5, 6): "bio", (5, 2, 3): "ioo"}[shape]}
    spec = deltas.make_spec(tree, rank=rank, views=views)
    team = jax.tree.map(lambda leaf: leaf + jnp.arange(leaf.size).reshape(leaf.shape), deltas.init(KEY, spec, 2))
    loaded = deltas.load(deltas.save(tmp_path / "team", team))
    assert loaded.spec == spec
    for path, parts in team.arrays.items():
        for name, leaf in parts.items():
            assert np.array_equal(loaded.arrays[path][name], leaf)


def test_two_parameters_of_one_name_are_refused(tmp_path):
    team = filled({"params": {"a": {"kernel": jnp.zeros((6, 5))}}, "a": {"kernel": jnp.zeros((6, 5))}})
    with pytest.raises(ConfigError, match="two parameters would both be a for PEFT"):
        deltas.save(tmp_path / "team", team)


def test_what_cannot_be_saved_leaves_nothing_behind(saved, tmp_path):
    path, team = saved
    with pytest.raises(ConfigError, match="exists already; name another folder"):
        deltas.save(path, team)
    with pytest.raises(ConfigError, match="give the deltas of all owners"):
        deltas.save(tmp_path / "one", team.select("*kernel")[0])
    broken = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), team)
    with pytest.raises(ConfigError, match="a/bias/full in these deltas holds NaN"):
        deltas.save(tmp_path / "nan", broken)
    half = deltas.Deltas(jax.tree.map(lambda leaf: leaf.astype("float16"), team.arrays), team.spec)
    with pytest.raises(ConfigError, match="is float16, but must be float32"):
        deltas.save(tmp_path / "half", half)
    assert not list(tmp_path.iterdir())


DAMAGE = [
    ({"format": 1}, "has format 1, this version of lorasa_jax reads 2"),
    ({"owners": 2**30}, "there is no adapter_model.safetensors in .*owner_3"),
    ({"owners": "3"}, "owners in .* is missing or invalid"),
    ({"owners": True}, "owners in .* is missing or invalid"),
    ({"targets": []}, "targets in .* is missing or invalid"),
    ({"targets": None}, "targets in .* is missing or invalid"),
    ({"about": [1]}, "about in .* is missing or invalid"),
]


@pytest.mark.parametrize(("change", "message"), DAMAGE)
def test_a_specification_that_is_none_is_one_line(folder, change, message):
    file = folder / "deltas.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ConfigError, match=message) as caught:
        deltas.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [2**31]}, "targets in .* is missing or invalid"),
        ({"shape": [7, 5]}, r"a.lora_A.weight in .* is F32\[2, 6\], but must be F32\[2, 7\]"),
        ({"dtype": "object"}, "targets in .* is missing or invalid"),
        ({"dtype": "int32"}, "targets in .* is missing or invalid"),
        ({"view": "ioo"}, "view 'ioo' of a/kernel has 3 letters"),
        ({"view": "oo"}, "view 'oo' of a/kernel needs an input"),
        ({"more": 1}, "targets in .* is missing or invalid"),
        ({"rank": 3}, r"a.lora_A.weight in .* is F32\[2, 6\], but must be F32\[3, 6\]"),
        ({"rank": 0}, "targets in .* is missing or invalid"),
        ({"rank": True}, "targets in .* is missing or invalid"),
        ({"rank": 10**30}, "targets in .* is missing or invalid"),
        ({"alpha": float("nan")}, "targets in .* is missing or invalid"),
        ({"alpha": 10**400}, "targets in .* is missing or invalid"),
        ({"path": "a/bias"}, "targets in .* names a parameter twice"),
        ({"path": "../x"}, "is missing from"),
    ],
)
def test_a_target_that_is_none_is_one_line(folder, change, message):
    file = folder / "deltas.json"
    fields = json.loads(file.read_text())
    next(target for target in fields["targets"] if target["path"] == "a/kernel").update(change)
    file.write_text(json.dumps(fields))
    with pytest.raises(ConfigError, match=message):
        deltas.load(folder)


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, "\0", '{"format": 2}'])
def test_a_file_that_is_no_specification_is_one_line(folder, text):
    (folder / "deltas.json").write_text(text)
    with pytest.raises(ConfigError, match=r"is not a valid JSON object|is missing or invalid"):
        deltas.load(folder)


def test_weights_that_do_not_fit_are_one_line(folder):
    weights = folder / "owner_1" / "adapter_model.safetensors"
    good, arrays = weights.read_bytes(), load_file(weights)

    def refused(message):
        with pytest.raises(ConfigError, match=message) as caught:
            deltas.load(folder)
        assert "\n" not in str(caught.value)

    for damaged in (b"", good[:40], good[:-4], b"\xff" * 8 + good[8:], good + b"0"):
        weights.write_bytes(damaged)
        refused("is not a valid safetensors file")
    save_file({**arrays, "x": np.zeros(1)}, weights)
    refused("x has no place in")
    save_file({name: array for name, array in arrays.items() if name != "a/bias"}, weights)
    refused("a/bias is missing from")
    save_file({**arrays, "a/bias": np.full(5, np.inf, "float32")}, weights)
    refused("a/bias in .* holds NaN or infinity")
    save_file({**arrays, "a/bias": np.zeros(5, "float64")}, weights)
    refused(r"a/bias in .* is F64\[5\], but must be F32\[5\]")
    full = "base_model.model.c.lora_A.weight"
    save_file({**arrays, full: 2 * arrays[full]}, weights)
    refused("the delta of c/kernel in .* has full rank, so one of its factors must be the identity")
    weights.unlink()
    refused("there is no adapter_model.safetensors")
    (folder / "deltas.json").unlink()
    refused("there are no deltas in")


def packed(arrays, changes):
    """A safetensors file by hand, whose header lies about one array."""
    header, data = {}, b""
    for name, array in arrays.items():
        header[name] = {
            "dtype": "BF16" if array.dtype == jnp.bfloat16 else "F32",
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + array.nbytes],
        } | (changes if name == "a/bias" else {})
        data += array.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "I32"}, "a/bias in .* is I32"),
        ({"dtype": "F64"}, "is not a valid safetensors file"),
        ({"dtype": "object"}, "is not a valid safetensors file"),
        ({"dtype": "BF16", "shape": [10]}, "a/bias in .* is BF16"),
        ({"shape": [1, 5]}, r"must be F32\[5\]"),
        ({"shape": [2**40, 2**40]}, "is not a valid safetensors file"),
        ({"data_offsets": [0, 4]}, "is not a valid safetensors file"),
        ({"data_offsets": [0, 2**62]}, "is not a valid safetensors file"),
    ],
)
def test_a_header_that_lies_is_refused_by_name(folder, changes, message):
    weights = folder / "owner_1" / "adapter_model.safetensors"
    arrays = load_file(weights)
    weights.write_bytes(packed(arrays, {}))
    deltas.load(folder)
    weights.write_bytes(packed(arrays, changes))
    with pytest.raises(ConfigError, match=message):
        deltas.load(folder)
