# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Adapters as trees: merge, swap and transplant them
#
# After a LoRASA run every agent owns a few small matrices. They form a plain tree of arrays. You can inspect them, exchange them,
# write them to a file, put them on another trunk, or give them to agents that were never trained. This notebook does all of this with a
# team whose optimum is known. It needs a minute on a CPU.

# %%
import tempfile
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from lorasa_jax import Config, ConfigError, CriticConfig, NetworkConfig, PPOConfig, adapters, make_env, run
from lorasa_jax.core.networks import Network
from lorasa_jax.core.types import Weights
from lorasa_jax.learning.rollout import evaluate
from lorasa_jax.learning.system import make_system

# %% [markdown]
# ## A team of two hidden kinds
#
# In `two_kinds` each agent shows a symbol and should show symbol 1 next. The next symbol of agents 0 and 2 is their action. The next
# symbol of agents 1 and 3 is the opposite. Their observations do not tell them which kind they are. With `switch_step=0` the trunk is not
# trained, so only the adapters learn. All agents are in one group of `seps_lora`. So they share one trunk, as in LoRASA, but do
# not observe their numbers. An adapter then has the same meaning for every agent.

# %%
network = {"hidden": 32, "layers": 2, "layers_after": 0, "recurrent": False}
config = Config(
    env="toy",
    task="two_kinds",
    sharing="seps_lora",
    groups=(0, 0, 0, 0),
    rank=4,
    total_steps=40_960,
    switch_step=0,
    n_envs=64,
    rollout_length=16,
    actor=NetworkConfig(**network),
    critic=CriticConfig(**network),
    ppo=PPOConfig(lr=3e-3, critic_lr=3e-3),
)
result = run(config, make_env(config))
system = result.trainer.system
params = jax.tree.map(lambda leaf: leaf[0], result.states).learner.actor  # of the first seed
result.final["greedy"]["return"]

# %% [markdown]
# ## The tree
#
# `shared` holds the trunk, with a leading axis of trunks (one here). `agents` holds the adapters by scope (here `agent`), with a leading
# axis of owners. Every layer has `left` (in, r) and `right` (r, out), or a matrix `full` if the layer is no wider than the rank.

# %%
jax.tree.map(lambda leaf: leaf.shape, params._asdict())

# %% [markdown]
# ## Merge
#
# Agent i's kernel is K + (alpha / r) L_i R_i. `merge` computes it and returns four plain trees of flax parameters, without adapters.

# %%
networks = adapters.merge(params, system)
correction = networks[0]["fc2"]["kernel"] - params.shared["fc2"]["kernel"][0]
print("rank of agent 0's correction of fc2:", np.linalg.matrix_rank(correction, tol=1e-4), "of", min(correction.shape))

plain = Network(config.actor, system.env.spec.n_actions, head_gain=0.01)
seen = jnp.array([[0.0, 1.0]])  # symbol 1; agent 3 shows it by action 0
_, logits = plain.apply({"params": networks[3]}, jnp.zeros((1, 0)), seen[None], jnp.zeros((1, 1), bool))
print("agent 3's logits:", logits[0, 0])

# %% [markdown]
# `unmerge` subtracts the same adapters again. The result is the trunk, up to rounding.

# %%
back = adapters.unmerge(networks, params.agents, system)
max(float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True))

# %% [markdown]
# ## Which agents are similar?
#
# The cosine between the agents' corrections of all layers. Training does not use the kinds.

# %%
trunk = jax.tree.map(lambda leaf: leaf[0], params.shared)
flat = np.stack(
    [
        np.concatenate([np.ravel(a - b) for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(trunk), strict=True)])
        for tree in networks
    ]
)
unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
figure, axis = plt.subplots(figsize=(3.4, 2.8), constrained_layout=True)
picture = axis.imshow(unit @ unit.T, cmap="RdBu", vmin=-1, vmax=1)
axis.set_xticks(range(4), [f"agent {i}" for i in range(4)], rotation=45)
axis.set_yticks(range(4), [f"agent {i}" for i in range(4)])
figure.colorbar(picture, label="cosine")

# %% [markdown]
# ## Swap
#
# Adapters are rows of arrays, so an index exchanges those of two agents. Between agents of one kind, the return stays the same. Between
# kinds, both agents play wrong, and the team earns half.


# %%
def player(system):
    """A function from parameters to the greedy return over 128 episodes."""
    return jax.jit(
        lambda params: evaluate(system, Weights(system.weights(params)), jax.random.key(1), greedy=True)["return"]
    )


def swapped(i, j):
    """The parameters with the adapters of two agents exchanged."""
    order = jnp.arange(4).at[jnp.array([i, j])].set(jnp.array([j, i]))
    return params._replace(agents=jax.tree.map(lambda leaf: leaf[order], params.agents))


play = player(system)
print(f"as trained            {play(params):.2f}")
print(f"agents 0 and 2        {play(swapped(0, 2)):.2f}   (one kind)")
print(f"agents 0 and 1        {play(swapped(0, 1)):.2f}   (two kinds)")
print(f"the trunk by itself   {play(params._replace(agents=jax.tree.map(jnp.zeros_like, params.agents))):.2f}")

# %% [markdown]
# ## Files
#
# The folder has a description, and a PEFT adapter folder per agent with the numbers as safetensors. The description contains a digest of
# the trunk, so adapters cannot be attached to another trunk by mistake.

# %%
folder = adapters.save(Path(tempfile.mkdtemp()) / "team", params, system)
for path in sorted(folder.rglob("*.*")):
    print(f"{path.relative_to(folder)!s:36} {path.stat().st_size:6,} bytes")
team = adapters.load(folder)
print(f"{play(adapters.attach(params, team)):.2f} on its trunk")

stranger = system.actor.init(jax.random.key(5))
try:
    adapters.attach(stranger, team)
except ConfigError as error:
    print(error)
print(
    f"{play(adapters.attach(stranger, team, any_backbone=True)):.2f} on the trunk of a stranger, which means nothing to them"
)

# %% [markdown]
# ## Transplant
#
# A team of six: agents 4 and 5 have never played. Their adapters are copies from agents of their kind, copies from the other kind,
# averages over the old team, or new ones, which do not change the trunk. (With `lorasa` the trunk has an embedding for every agent's id.
# `resize` then adds two of them, from the same sources.)

# %%
six = replace(config, n_agents=6, groups=(0,) * 6)
larger = make_system(six, make_env(six), adapting=True)
play_six = player(larger)
for name, added in {
    "copies of 0 and 1": (0, 1),
    "copies of 1 and 0": (1, 0),
    "averages": ("average", "average"),
    "fresh": ("fresh", "fresh"),
}.items():
    grown = adapters.resize(params, system, larger, (0, 1, 2, 3, *added), jax.random.key(2))
    print(f"{name:18} {play_six(grown):.2f}")

# %% [markdown]
# With copies of the right kind, the team of six plays as well as the four trained agents. For a run directory, `experiments/export.py RUN
# --adapters FOLDER` writes such a folder, and `--out FILE` writes the merged policy as a program that only needs jax.
