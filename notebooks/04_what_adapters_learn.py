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
# # What adapters learn
#
# A LoRASA run ends with a number: the return. It does not say *how* the agents came to differ, whether they had to, or how much of their adapters
# they need. `diagnose` asks a trained team these questions; on a saved run, `experiments/diagnose.py RUN` does the same.
# This notebook asks them of a team whose right answers are known, and says how to read each figure. It needs a minute on a CPU.

# %%
import os

import jax
from IPython.display import display

from lorasa_jax import Config, CriticConfig, NetworkConfig, PPOConfig, make_env, run
from lorasa_jax.analysis.diagnosis import diagnose
from lorasa_jax.analysis.diversity import mean_over_pairs, within_and_between
from lorasa_jax.analysis.plots import draw_distance, draw_gradient, draw_layers, draw_sparsity, draw_swap
from lorasa_jax.running.state import RunState

# Set this to look at everything quickly, with adapters that are not trained to the end.
SMALL = bool(os.environ.get("LORASA_NOTEBOOK_SMALL"))

# %% [markdown]
# ## A team of two hidden kinds
#
# In `two_kinds` each agent shows a symbol and is asked to show symbol 1 next. For agents 0 and 2 the next symbol is their action, for agents 1 and 3 the
# opposite, and nothing they see tells them. The trunk is frozen untrained (`switch_step=0`) and sees no ids, so whatever the agents
# do differently is the adapters' work.

# %%
network = {"hidden": 32, "layers": 2, "layers_after": 0, "recurrent": False}
config = Config(
    env="toy",
    task="two_kinds",
    sharing="seps_lora",
    groups=(0, 0, 0, 0),
    rank=4,
    total_steps=20_480 if SMALL else 61_440,
    switch_step=0,
    n_envs=64,
    rollout_length=16,
    evaluations=5,
    actor=NetworkConfig(**network),
    critic=CriticConfig(**network),
    ppo=PPOConfig(lr=3e-3, critic_lr=3e-3),
)
states: list[RunState] = []  # after the first update, after the second, and so on
result = run(config, make_env(config), [lambda report, state: states.append(state)])
learner = jax.tree.map(lambda leaf: leaf[0], result.states).learner  # of the first seed
found = diagnose(result.trainer.system, learner, jax.random.key(1), episodes=64)
print(f"return {found.played['return'].mean:.2f}; of a team that acts alike 0.5")

# %% [markdown]
# ## Who acts like whom?
#
# Every network goes through everything that each agent met, and its distributions of actions are compared with those of the others. 0: the same
# in every situation; 1: never the same action. The mean over pairs is System Neural Diversity. Blocks along the black
# lines mean that agents of one kind have learnt the same thing, though nobody told them that there are kinds.

# %%
display(draw_distance(found))
within, between = within_and_between(found.distance, found.roles)
print(f"all pairs {mean_over_pairs(found.distance):.2f}, within a kind {within:.2f}, between kinds {between:.2f}")

# %% [markdown]
# Where agents see their ids there is a second matrix, in which every network keeps its own id: ids can tell agents apart without any adapter, and
# the difference between the two matrices is what they do.
#
# ## Does it matter?
#
# To act differently is not yet to be needed. In row i, agent i plays with the weights of another, all else being equal: the same start
# states, the same chance. Faint numbers are changes whose 95 % interval holds zero; of a hundred pairs that are in truth equal, some five
# would still not be faint. Here the wrong kind costs a quarter of the return, one agent's share, and the right kind nothing.

# %%
display(draw_swap(found))

# %% [markdown]
# ## Do gradients agree?
#
# The cosine between what two agents would change in the same weights. Below zero they pull a shared policy in opposite directions, which is what adapters
# are for. That is a question about a team that still has something to learn, so here it is asked after four updates. Agents of one kind already agree, and those
# of two kinds do not.

# %%
early = jax.tree.map(lambda leaf: leaf[0], states[3].train).learner
at_first = diagnose(result.trainer.system, early, jax.random.key(1), episodes=1)
display(draw_gradient(at_first))

# %% [markdown]
# In brackets stands what to compare with: an agent's own gradient on two halves of the play, close to 1 where there is more to it than chance. Where it is far from
# 1 the matrix shows noise, as it often does for a team that has learnt its task:

# %%
print("of the trained team:", found.gradient_again.round(2))

# %% [markdown]
# How much of a gradient is chance, then? A policy that all share follows the mean over everybody's samples, an adapter the mean over its own agent's, which is up to as many times
# noisier as there are agents. What counts is the noise beside the gradient itself: after how many steps of play is it no larger? In the mean of all, what the two kinds want largely cancels
# out, so that takes longest; a kind agrees with itself; and an agent alone has to find the same as its kind in half the samples.

# %%
for whose, part in at_first.noise.items():
    times, steps = part.variance / at_first.noise["all agents"].variance, part.scale * config.steps_per_iteration
    print(f"{whose:14} {times:.1f} times the noise of all agents', as large as the signal after {steps:,.0f} steps")

# %% [markdown]
# ## How large are the corrections?
#
# The Frobenius norm of each layer's correction, scale L R, against that of the trunk's kernel; and how many directions it effectively uses, at most the
# rank, 4 (a layer no wider than that has a full correction). The head's stands out because the trunk's was never trained and is all but zero.

# %%
display(draw_layers(found))

# %% [markdown]
# ## Are they sparse?
#
# Left, how large the entries are, for corrections and trunks, layer by layer: the further the lower bundle, the smaller the corrections. But small
# entries may add up. So the other two figures drop the smallest ones, up to 100 %, which leaves the trunk alone. A line that stays flat and falls
# at the very end says that few entries do the work. Here one in twenty is enough.

# %%
display(draw_sparsity(found))

# %% [markdown]
# `found.left_out` names what could not be asked: schemes without adapters have no corrections, and a team with one network has nothing to swap.
#
# From the command line, with all numbers in `diagnosis.json`: `python experiments/diagnose.py runs/smax-2s3z-mappo-lorasa-seed0`.

# %%
found.left_out
