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
# The result of a LoRASA run is one number, the return. It does not say *how* the agents came to differ, whether they had to, or how much
# of their adapters they need. `diagnose` answers these questions for a trained team. For a saved run, `experiments/diagnose.py RUN` does the same.
# This notebook diagnoses a team whose optimum is known, and explains each figure. It needs a minute on a CPU.

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
# In `two_kinds` each agent shows a symbol and should show symbol 1 next. The next symbol of agents 0 and 2 is their action. The next
# symbol of agents 1 and 3 is the opposite. Their observations do not tell them which kind they are. The trunk is not trained
# (`switch_step=0`) and observes no ids, so all differences between agents come from the adapters.

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
# ## Which agents act alike?
#
# Every network is evaluated on everything that each agent observed, and its action distributions are compared with those of the other
# networks. A distance of 0 means equal in every situation, 1 means never the same action. The mean over pairs is System Neural Diversity. Blocks
# along the black lines mean that agents of one kind have learnt the same, although training does not use the kinds.

# %%
display(draw_distance(found))
within, between = within_and_between(found.distance, found.roles)
print(f"all pairs {mean_over_pairs(found.distance):.2f}, within a kind {within:.2f}, between kinds {between:.2f}")

# %% [markdown]
# If agents observe their ids, there is a second matrix, in which every network keeps its own id. Ids can distinguish agents without any adapter.
# The difference between the two matrices is the effect of the ids.
#
# ## Do the differences matter?
#
# Agents can act differently without need. In row i, agent i plays with the weights of another agent, with the same start
# states and the same random numbers. A number is faint if the 95 % interval of the change contains zero. If a hundred pairs were truly equal, about
# five numbers would still not be faint. Here the wrong kind costs a quarter of the return, the share of one agent, and the right kind costs nothing.

# %%
display(draw_swap(found))

# %% [markdown]
# ## Do gradients agree?
#
# The figure shows the cosine between the gradients of two agents for the same weights. A negative cosine means that they change a shared policy in
# opposite directions, a conflict that adapters resolve. This question needs a team that still has something to learn, so this figure shows the team after four updates.
# Agents of one kind already agree, and agents of two kinds do not.

# %%
early = jax.tree.map(lambda leaf: leaf[0], states[3].train).learner
at_first = diagnose(result.trainer.system, early, jax.random.key(1), episodes=1)
display(draw_gradient(at_first))

# %% [markdown]
# The number in brackets is the reference: the cosine of an agent's own gradients on two halves of the episodes. It is close to 1 if the gradient is
# more than noise. If it is far from 1, the matrix shows noise, which is common for a team that has learnt its task:

# %%
print("of the trained team:", found.gradient_again.round(2))

# %% [markdown]
# How noisy is a gradient? A shared policy follows the mean over the samples of all agents. An adapter follows the mean over its own agent's samples, so with N agents
# its gradient can be N times noisier. The relevant quantity is the ratio of noise and gradient: after how many steps are they equally large? In the mean of all agents,
# the two kinds mostly cancel, so this takes longest. Within a kind agents agree. A single agent has to find the same as its kind with half the samples.

# %%
for whose, part in at_first.noise.items():
    times, steps = part.variance / at_first.noise["all agents"].variance, part.scale * config.steps_per_iteration
    print(f"{whose:14} {times:.1f} times the noise of all agents', as large as the signal after {steps:,.0f} steps")

# %% [markdown]
# ## How large are the corrections?
#
# The left figure shows the Frobenius norm of each layer's correction, scale L R, relative to that of the trunk's kernel. The right figure shows its effective rank, which
# is at most the rank, 4 (a layer no wider than this has a full correction). The head has a large value because the trunk's head was never trained and is almost zero.

# %%
display(draw_layers(found))

# %% [markdown]
# ## Are they sparse?
#
# The left figure shows the sizes of the entries, for corrections and trunks, per layer. The lower the curves of the corrections, the smaller the corrections.
# But many small entries can have a large sum. So the other two figures drop the smallest entries, up to 100 %, which leaves the trunk alone. If a line stays flat and falls
# at the very end, few entries are needed. Here, one in twenty is enough.

# %%
display(draw_sparsity(found))

# %% [markdown]
# `found.left_out` lists the questions that do not apply. For example, schemes without adapters have no corrections, and a team with one network has nothing to swap.
#
# From the command line, with all numbers in `diagnosis.json`: `python experiments/diagnose.py runs/smax-2s3z-mappo-lorasa-seed0`.

# %%
found.left_out
