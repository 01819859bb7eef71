"""An exported policy plays without this library, and as the policy it was made of."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_like
from saving import save_run

from lorasa_jax import adapters
from lorasa_jax.cli import export
from lorasa_jax.cli.saved import load_run
from lorasa_jax.config import Config, ConfigError, NetworkConfig
from lorasa_jax.core.trees import by_path, nested
from lorasa_jax.core.types import PolicyParams, PyTree
from lorasa_jax.envs.base import Env, EnvSpec
from lorasa_jax.learning.system import make_system
from lorasa_jax.storage.checkpoints import SavedTeam

LOADER = Path(export.__file__).with_name("play_export.py")


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as stop:
        export.main(argv)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.fixture(scope="module")
def artifact(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "new" / "policy.bin"
    export.main([str(saved), "--out", str(path), "--seed", "4"])
    return path


def test_a_policy_that_does_not_fit_is_one_line_and_no_file(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = Path.write_bytes

    def half(self: Path, data: bytes) -> int:
        write(self, data[:1])
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(export, "export_policy", lambda team, row: SimpleNamespace(serialize=lambda: b"policy"))
    monkeypatch.setattr(Path, "write_bytes", half)
    said = refusal(capsys, str(saved), "--out", str(tmp_path / "policy.bin"))
    assert f"{tmp_path / 'policy.bin'}: {os.strerror(errno.EDQUOT)}; free some of your quota there" in said
    assert list(tmp_path.iterdir()) == []


def test_a_process_with_only_jax_and_numpy_plays_the_game(artifact: Path) -> None:
    assert len([line for line in LOADER.read_text().splitlines() if line.strip()]) <= 15
    foreign = ("lorasa_jax", "flax", "optax", "orbax", "jaxmarl", "brax", "chex", "cli", "saved")
    code = f"import runpy, sys\nfor name in {foreign}: sys.modules[name] = None\n"
    code += f"sys.argv = ['play', {str(artifact)!r}]\nrunpy.run_path({str(LOADER)!r})\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=artifact.parent)
    assert (done.stdout, done.stderr) == ("return 1.000\n", "")


def test_it_serves_any_number_of_environments_on_cpu_and_cuda(artifact: Path) -> None:
    policy = jax.export.deserialize(bytearray(artifact.read_bytes()))
    assert policy.platforms == ("cpu", "cuda")
    for n_envs in (1, 5):
        carry, obs, avail = np.zeros((n_envs, 4, 0)), np.ones((n_envs, 4, 2)), np.ones((n_envs, 4, 4), bool)
        avail[:, 2, 2] = False
        action, logits, _ = policy.call(carry.astype("float32"), obs.astype("float32"), avail)
        assert (action.shape, logits.shape) == ((n_envs, 4), (n_envs, 4, 4))
        assert np.asarray(action)[:, [0, 1, 3]].tolist() == [[0, 1, 3]] * n_envs
        assert np.all(np.asarray(action)[:, 2] != 2)
        assert np.all(np.asarray(logits)[:, 2, 2] < -1e9)


def like_a_start(shapes: PyTree) -> PyTree:
    """Kernels and norms of the size they start with, without compiling how they do."""
    leaves = by_path(random_like(shapes, scale=1.0))
    sizes = {
        "kernel": lambda leaf: leaf * np.sqrt(2 / leaf.shape[-2]),
        "scale": jnp.ones_like,
        "bias": jnp.zeros_like,
        "embedding": jnp.asarray,
    }
    return nested({name: sizes[name.rpartition("/")[2]](leaf) for name, leaf in leaves.items()})


def test_merged_and_factored_logits_agree_over_ten_thousand_observations() -> None:
    """With the network of the paper, but for two of its layers, and adapters that change it well."""
    n, width, n_envs = 4, 30, 2500
    spec = EnvSpec("made-up", n, width, 5, 6, episode_limit=3, team_reward=True)
    env = Env(spec, reset=lambda key: None, step=lambda key, state, action: None)
    config = Config(env="own", sharing="lorasa", standardise=True, actor=NetworkConfig(layers=1))
    system = make_system(config, env, adapting=True)
    shapes = jax.eval_shape(system.actor.init, jax.random.key(0))
    params = PolicyParams(like_a_start(shapes.shared), random_like(shapes.agents, scale=0.1))
    inputs = jax.tree.map(lambda leaf: 100 + jnp.arange(leaf.size).reshape(leaf.shape) * 1.0, system.inputs.init())
    team = SavedTeam(system, *jax.tree.map(lambda leaf: leaf[None], (params, inputs)))
    rng = np.random.default_rng(0)
    carry, obs = (jnp.asarray(rng.normal(size=(n_envs, n, d)), jnp.float32) for d in (64, width))
    policy = jax.export.deserialize(export.export_policy(team, 0).serialize())
    action, logits, after = policy.call(carry, obs, jnp.ones((n_envs, n, 6), bool))
    seen, _ = system.inputs.apply(inputs, obs, jnp.zeros(5))
    carries, expected = jax.jit(system.actor.unroll)(params, carry, seen[None], jnp.zeros((1, n_envs), bool))
    assert float(jnp.abs(logits - expected[0]).max()) < 1e-5
    assert float(jnp.abs(after - carries[0]).max()) < 1e-5
    assert float(jnp.abs(logits).max()) > 1.0
    np.testing.assert_array_equal(action, jnp.argmax(logits, axis=-1))


def test_adapters_leave_a_run_as_files_and_find_its_backbone(saved: Path, tmp_path: Path) -> None:
    export.main([str(saved), "--adapters", str(tmp_path / "team"), "--seed", "4"])
    team = adapters.load(tmp_path / "team")
    found, checkpoint = load_run(saved)
    expected = jax.tree.map(lambda leaf: leaf[1], found.params)
    attached = adapters.attach(checkpoint, team, seed=1)
    jax.tree.map(np.testing.assert_array_equal, attached, expected)
    assert team.about.task == "own_number"
    with pytest.raises(ConfigError, match=r"were not trained on the backbone in .*checkpoints/10"):
        adapters.attach(checkpoint, team)
    with pytest.raises(ConfigError, match="must count one of the 2 seeds"):
        adapters.attach(checkpoint, team, seed=2)


def test_what_cannot_be_exported_is_one_line(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "name a file with --out" in refusal(capsys, str(saved))
    assert "exists already" in refusal(capsys, str(saved), "--out", str(tmp_path))
    assert "are 3 to 4, got 5" in refusal(capsys, str(saved), "--out", str(tmp_path / "x"), "--seed", "5")
    phase = save_run(tmp_path / "run", spoilt=np.nan)
    assert "holds NaN" in refusal(capsys, str(phase), "--out", str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()
