"""Saved runs that nobody had to train."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lorasa_jax.cli.flags import RunConfig, parse
from lorasa_jax.cli.run_dir import RunDir
from lorasa_jax.envs import make_env
from lorasa_jax.learning.trainer import make_trainer
from lorasa_jax.running.state import ADAPTERS, Best, RunState
from lorasa_jax.storage import arrays as storage
from lorasa_jax.storage import checkpoints as checkpoint

N_AGENTS, SEEDS = 4, (3, 4)


def save_run(directory: Path, *argv: str, spoilt: float | None = None) -> Path:
    """A run of `own_number` in its second phase, by the hand of one who knows the answer.

    The trunk is noise, but for a head of zeros; what enters the head is 1, and agent i's adapter of the head
    asks for action i; the best team's asks for the next one, which is wrong. `spoilt` stands in place of one
    number of the trunk.
    """
    sizes = [f"--{net}.{name}={size}" for net in ("actor", "critic") for name, size in (("hidden", 8), ("layers", 1))]
    settings = ["--seed", str(SEEDS[0]), "--seeds", str(len(SEEDS)), "--n-envs", "2", "--switch-step", "0"]
    config = parse(RunConfig, ["--env", "toy", "--task", "own_number", *settings, *sizes, *argv])
    env, rng = make_env(config), np.random.default_rng(0)
    assert env.spec.n_agents == N_AGENTS
    trainer = make_trainer(config, env, adapting=True)
    keys = jnp.stack([jax.random.key(seed) for seed in SEEDS])

    def noise(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if checkpoint._is_key(leaf):
            return keys
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.asarray(rng.normal(scale=0.3, size=leaf.shape), leaf.dtype)
        return jnp.zeros(leaf.shape, leaf.dtype)

    train = jax.tree.map(noise, jax.eval_shape(jax.vmap(trainer.init), keys))
    actor = train.learner.actor
    trunk, own = {**actor.shared}, {**actor.agents["agent"]}
    before_head = next(name for name in ("after1_norm", "fc1_norm") if name in trunk)
    trunk[before_head] = {"scale": 0 * trunk[before_head]["scale"], "bias": jnp.ones((2, 1, 8))}
    trunk["head"] = jax.tree.map(jnp.zeros_like, trunk["head"])
    own["head"] = {"full": jnp.broadcast_to(jnp.eye(4)[None, :, None], (2, 4, 8, 4)) / 4}
    wrong = {**own, "head": {"full": jnp.roll(own["head"]["full"], 1, axis=-1)}}
    if spoilt is not None:
        trunk["fc1"]["bias"] = trunk["fc1"]["bias"].at[1, 0, 2].set(spoilt)
    reward_units = jax.tree.map(jnp.zeros_like, train.learner.value_norm)
    learner = train.learner._replace(actor=actor._replace(shared=trunk, agents={"agent": own}), value_norm=reward_units)
    train = train._replace(learner=learner, iteration=jnp.array([5, 5]))
    state = RunState(
        phase=ADAPTERS,
        train=train,
        best=Best.none(train)._replace(actor=actor._replace(shared=trunk, agents={"agent": wrong})),
        switch_steps=(0, 0),
        curve=(),
        random_return=(0.25, 0.25),
        evaluation_interval=1,
        compile_seconds=1.0,
        train_seconds=1.0,
    )
    with closing(RunDir(directory, config)) as run_dir:
        run_dir.begin()
    storage.write(directory / "checkpoints", checkpoint.take_snapshot(state, config))
    return directory
