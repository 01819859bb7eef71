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
# # Quickstart: from a shared policy to one adapter per agent
#
# A team can learn with **one shared policy**, which is cheap but makes all agents act alike, or with **one policy
# per agent**, which is expensive. LoRASA combines both. It trains a shared policy, freezes it, and then
# trains a small low-rank correction of every layer for each agent ([arXiv 2502.05573](https://arxiv.org/abs/2502.05573)).
#
# This notebook starts with a game whose optimum is known and ends with a battle in SMAX, a simplified StarCraft.

# %%
import os
from base64 import b64encode
from dataclasses import replace
from io import BytesIO

import jax
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML

from lorasa_jax import (
    Config,
    CriticConfig,
    NetworkConfig,
    PPOConfig,
    Report,
    RunState,
    count_params,
    make_env,
    record_episode,
    run,
)
from lorasa_jax.envs.toy import ceilings

# Set this to look at everything in a minute or two, with policies that are not trained to the end.
SMALL = bool(os.environ.get("LORASA_NOTEBOOK_SMALL"))

# %% [markdown]
# ## A game that agents cannot win by acting alike
#
# In `specialisation`, two players have the same observation and choose between two actions. Their reward is 1 if the actions differ
# and 0.5 if they are equal. The highest returns are known exactly:

# %%
ceilings("specialisation")

# %% [markdown]
# A configuration is immutable and is checked when it is created. Four of the sharing schemes are `ps` (one policy for all agents),
# `ps_id` (the same, and every agent observes its number), `nps` (one policy per agent) and `lorasa`. With `switch_step=0` the trunk is
# not trained, so only the adapters learn.

# %%
small_network = {"hidden": 32, "layers": 2, "layers_after": 0, "recurrent": False}
game = Config(
    env="toy",
    task="specialisation",
    sharing="ps",
    total_steps=20_480,
    n_envs=64,
    rollout_length=16,
    switch_step=0,
    actor=NetworkConfig(**small_network),
    critic=CriticConfig(**small_network),
    ppo=PPOConfig(lr=3e-3, critic_lr=3e-3, chunk_length=0),
)


class Curve:
    """A callback that remembers every evaluation."""

    def __init__(self) -> None:
        self.reports: list[Report] = []

    def __call__(self, report: Report, state: RunState) -> None:
        """Keeps what was evaluated."""
        if report.evaluation is not None:
            self.reports.append(report)

    def __getitem__(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        steps = [report.env_steps[0] for report in self.reports]
        return np.array(steps), np.array([report.evaluation[name][0] for report in self.reports])


figure, axis = plt.subplots(figsize=(6, 3), constrained_layout=True)
for scheme in ("ps", "lorasa"):
    config, curve = replace(game, sharing=scheme), Curve()
    result = run(config, make_env(config), [curve])
    axis.plot(*curve["return"], label=scheme)
    print(f"{scheme:7} greedy return {result.final['greedy']['return'][0]:.2f}")
axis.axhline(ceilings("specialisation").optimum, color="grey", ls=":", label="optimum")
axis.set(xlabel="environment steps", ylabel="greedy return")
axis.legend()
# %% [markdown]
# ## Parameters of an agent
#
# The trunk is stored once, with a leading axis of length 1. Every adapter leaf has a leading axis of agents. A layer of
# width (in, out) has `left` (in, r) and `right` (r, out), and the agent's kernel is K + left @ right. If a layer is no wider than
# the rank, its correction has full rank.

# %%
actor = jax.tree.map(lambda leaf: leaf[0], result.states).learner.actor  # of the first seed
jax.tree.map(lambda leaf: leaf.shape, {"trunk": actor.shared, "agents": actor.agents})

# %%
count_params(result.trainer)

# %% [markdown]
# ## A battle
#
# Two stalkers and three zealots fight an equal team that a script controls. The policy is recurrent and observes only what its unit
# sees. The critic observes the full state. The trunk freezes automatically when learning slows down (`switch_step="auto"`).
#
# At full size this cell takes a few minutes on two CPU cores.

# %%
battle_network = {"hidden": 64, "layers": 1, "layers_after": 1}
battle = Config(
    env="smax",
    task="2s3z",
    sharing="lorasa",
    total_steps=16_384 if SMALL else 400_000,
    n_envs=64,
    rollout_length=32,
    evaluations=4 if SMALL else 20,
    eval_episodes=32 if SMALL else 128,
    actor=NetworkConfig(**battle_network),
    critic=CriticConfig(**battle_network),
    ppo=PPOConfig(
        lr=2e-3, critic_lr=2e-3, anneal_lr=True, epochs=4, minibatches=2, chunk_length=16, entropy_coef=0.005
    ),
)
env, curve = make_env(battle), Curve()
result = run(battle, env, [curve])
print(f"the trunk froze after {result.switch_steps[0]:,} steps")
print(f"greedy win rate {result.final['greedy']['win_rate'][0]:.0%}")

# %%
figure, axis = plt.subplots(figsize=(6, 3), constrained_layout=True)
axis.plot(*curve["win_rate"])
axis.axvline(result.switch_steps[0], color="tab:orange", ls="--", label="trunk frozen, adapters start")
axis.set(xlabel="environment steps", ylabel="greedy win rate", ylim=(-0.03, 1.03))
axis.legend()
# %% [markdown]
# ## How large are the corrections?
#
# The norm of each agent's correction, relative to the norm of the kernel.

# %%
actor = jax.tree.map(lambda leaf: leaf[0], result.states).learner.actor
layers = list(actor.agents["agent"])


def share(layer: str) -> np.ndarray:
    """The norm of every agent's correction, over that of the trunk's kernel."""
    own, kernel = actor.agents["agent"][layer], actor.shared[layer]["kernel"][0]
    delta = own["full"] if "full" in own else own["left"] @ own["right"]
    return np.linalg.norm(delta, axis=(1, 2)) / np.linalg.norm(kernel)


figure, axis = plt.subplots(figsize=(6, 3), constrained_layout=True)
picture = axis.imshow(np.stack([share(layer) for layer in layers]), cmap="Blues", aspect="auto")
axis.set_yticks(range(len(layers)), layers)
axis.set_xticks(range(env.spec.n_agents), [f"agent {i}" for i in range(env.spec.n_agents)])
figure.colorbar(picture, label="|correction| / |kernel|")
# %% [markdown]
# ## Watch the team play

# %%
first = jax.tree.map(lambda leaf: leaf[0], result.states)
states = record_episode(result.trainer.system, result.trainer.weights(first), jax.random.key(1))
frames = env.draw(states)
film = BytesIO()
frames[0].save(film, "GIF", save_all=True, append_images=frames[1:], duration=120, loop=0)
HTML(f'<img alt="the battle" src="data:image/gif;base64,{b64encode(film.getvalue()).decode()}">')
