"""Deltas as files: what is written is read back, and what is damaged is refused in one line."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lorasa_jax import ConfigError, deltas

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


def test_the_folder_has_the_keys_of_peft(saved):
    fields = json.loads((saved[0] / "adapter_config.json").read_text())
    assert fields["peft_type"] == "LORA"
    assert (fields["r"], fields["lora_alpha"]) == (2, 3.0)
    assert fields["rank_pattern"] == {"b/kernel": 1, "c/kernel": 9}
    assert fields["alpha_pattern"] == {"b/bias": 5.0, "b/kernel": 5.0}
    assert fields["target_modules"] == ["a/bias", "a/kernel", "b/bias", "b/kernel", "c/kernel"]
    shapes = {name: array.shape for name, array in load_file(saved[0] / "adapter_model.safetensors").items()}
    assert shapes == {
        "a/bias/full": (3, 5),
        "a/kernel/left": (3, 6, 2),
        "a/kernel/right": (3, 2, 5),
        "b/bias/full": (3, 2, 3),
        "b/kernel/left": (3, 4, 1),
        "b/kernel/right": (3, 1, 6),
        "c/kernel/full": (3, 8, 8),
    }


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
    with pytest.raises(ConfigError, match=r"is F16\[3, 5\], but must be F32\[3, 5\]"):
        deltas.save(tmp_path / "half", half)
    assert not list(tmp_path.iterdir())


DAMAGE = [
    ({"format": 2}, "has format 2, this version of lorasa_jax reads 1"),
    ({"peft_type": "IA3"}, "peft_type in .* is missing or invalid"),
    ({"r": 0}, "r in .* is missing or invalid"),
    ({"r": True}, "r in .* is missing or invalid"),
    ({"r": 10**30}, "r in .* is missing or invalid"),
    ({"r": 3}, r"a/kernel/left in .* is F32\[3, 6, 2\], but must be F32\[3, 6, 3\]"),
    ({"lora_alpha": float("nan")}, "lora_alpha in .* is missing or invalid"),
    ({"owners": 2**24}, "a/bias/full in .* is"),
    ({"owners": "3"}, "owners in .* is missing or invalid"),
    ({"target_modules": []}, "target_modules in .* is missing or invalid"),
    ({"target_modules": ["a/kernel"] * 5}, "target_modules and parameters in .* name different parameters"),
    ({"rank_pattern": {"*": 2}}, "a pattern in .* names a parameter that is no target"),
    ({"rank_pattern": {"a/kernel": -1}}, "rank_pattern in .* is missing or invalid"),
    ({"parameters": {"a/kernel": [6, 5]}}, "parameters in .* is missing or invalid"),
    ({"parameters": None}, "parameters in .* is missing or invalid"),
]


@pytest.mark.parametrize(("change", "message"), DAMAGE)
def test_a_configuration_that_is_none_is_one_line(folder, change, message):
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(ConfigError, match=message) as caught:
        deltas.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [2**31]}, "parameters in .* is missing or invalid"),
        ({"shape": [7, 5]}, r"a/kernel/left in .* is F32\[3, 6, 2\], but must be F32\[3, 7, 2\]"),
        ({"dtype": "object"}, "parameters in .* is missing or invalid"),
        ({"dtype": "int32"}, "parameters in .* is missing or invalid"),
        ({"view": "ioo"}, "view 'ioo' of a/kernel has 3 letters"),
        ({"view": "oo"}, "view 'oo' of a/kernel needs an input"),
        ({"more": 1}, "parameters in .* is missing or invalid"),
    ],
)
def test_a_parameter_that_is_none_is_one_line(folder, change, message):
    config = folder / "adapter_config.json"
    fields = json.loads(config.read_text())
    fields["parameters"]["a/kernel"] |= change
    config.write_text(json.dumps(fields))
    with pytest.raises(ConfigError, match=message):
        deltas.load(folder)


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, "\0", '{"format": 1}'])
def test_a_file_that_is_no_configuration_is_one_line(folder, text):
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"no valid JSON object|is missing or invalid"):
        deltas.load(folder)


def test_weights_that_do_not_fit_are_one_line(folder):
    weights = folder / "adapter_model.safetensors"
    good, arrays = weights.read_bytes(), load_file(weights)

    def refused(message):
        with pytest.raises(ConfigError, match=message) as caught:
            deltas.load(folder)
        assert "\n" not in str(caught.value)

    for damaged in (b"", good[:40], good[:-4], b"\xff" * 8 + good[8:], good + b"0"):
        weights.write_bytes(damaged)
        refused("is no valid safetensors file")
    save_file({**arrays, "x": np.zeros(1)}, weights)
    refused("x has no place in")
    save_file({name: array for name, array in arrays.items() if name != "a/bias/full"}, weights)
    refused("a/bias/full is missing from")
    save_file({**arrays, "a/bias/full": np.full((3, 5), np.inf, "float32")}, weights)
    refused("a/bias/full in .* holds NaN or infinity")
    save_file({**arrays, "a/bias/full": np.zeros((3, 5), "float64")}, weights)
    refused(r"a/bias/full in .* is F64\[3, 5\], but must be F32\[3, 5\]")
    weights.unlink()
    refused("there is no adapter_model.safetensors")
    (folder / "adapter_config.json").unlink()
    refused("there are no deltas in")
