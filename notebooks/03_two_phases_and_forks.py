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
# # Two phases and forks: one backbone, many second phases
#
# A two-phase run has three open questions: *when* to freeze the shared policy, *how large* the adapters should be, and
# whether adapters help at all, or only the additional training. To answer them separately, all second phases have to start from
# **the same backbone**. This notebook trains one shared policy and keeps its states at three moments. Many second phases start from
# these states and run in parallel in one program.

# %%
import os
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np

from lorasa_jax import (
    Config,
    CriticConfig,
    NetworkConfig,
    PPOConfig,
    Report,
    RunState,
    common_config,
    fork,
    make_env,
    run,
    share_programs,
)
from lorasa_jax.sharing.schemes import make_sharing

# Set this to look at everything in a minute or two, with policies that are not trained to the end.
SMALL = bool(os.environ.get("LORASA_NOTEBOOK_SMALL"))

# %% [markdown]
# The game: eight agents observe the same noise and their own number. Agent i is rewarded for action i.

# %%
small_network = {"hidden": 32, "layers": 2, "layers_after": 0, "recurrent": False}
config = Config(
    env="toy",
    task="own_number",
    n_agents=8,
    sharing="lorasa",
    seeds=2 if SMALL else 4,
    total_steps=15_360 if SMALL else 61_440,
    n_envs=64,
    rollout_length=16,
    evaluations=15 if SMALL else 30,
    actor=NetworkConfig(**small_network),
    critic=CriticConfig(**small_network, scope="agent"),
    ppo=PPOConfig(lr=1e-3, critic_lr=1e-3, epochs=2, chunk_length=0),
)
env = make_env(config)
batch = config.steps_per_iteration
switches = [batch * i for i in ((2, 4, 8) if SMALL else (5, 15, 30))]

# %% [markdown]
# ## The backbone
#
# `ps_id` is the first phase of `lorasa` alone. `run` passes the state of the run to its callbacks after every iteration. The backbone
# trains to the end of the budget. This is the first control, *the shared policy continued*.


# %%
class Curves:
    """A callback that remembers the greedy return of every row."""

    def __init__(self) -> None:
        self.points: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def __call__(self, report: Report, state: RunState) -> None:
        """Keeps what was evaluated."""
        if report.evaluation is not None:
            self.points.append((report.active, report.env_steps, report.evaluation["return"]))

    def of(self, rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Returns steps and mean return of some rows that stand at the same steps."""
        points = [(steps[rows[0]], returns[rows].mean()) for active, steps, returns in self.points if active[rows[0]]]
        steps, means = zip(*points, strict=True)
        return np.array(steps), np.array(means)


moments: dict[int, RunState] = {}


def keep(report: Report, state: RunState) -> None:
    """Keeps the run at the moments from which it will be continued."""
    step = int(state.iterations[0]) * batch
    if step in switches:
        moments[step] = state


backbone = Curves()
trunks = replace(config, sharing="ps_id")
run(trunks, env, [backbone, keep])
sorted(moments)

# %% [markdown]
# ## Forks
#
# Each fork consists of a configuration and a start: a kept state, and a row (a seed) of it. `share_programs`
# determines which forks can be rows of one program: those with full-rank corrections on the same layers. Here, ranks 1 and 4 are low
# rank on all layers, and rank 32 is full rank on all layers.

# %%
ranks, seeds = (1, 4) if SMALL else (1, 4, 32), range(config.seeds)
points = [(switch, rank, seed) for switch in switches for rank in ranks for seed in seeds]
forks = [
    replace(config, seed=config.seed + seed, seeds=1, switch_step=switch, rank=rank) for switch, rank, seed in points
]
groups = share_programs(forks, env)
print(f"{len(forks)} forks in {len(groups)} programs: {[len(group) for group in groups]} rows")

# %%
curves: dict[tuple[int, str], tuple[np.ndarray, np.ndarray]] = {}
for group in groups:
    members, seen = [points[i] for i in group], Curves()
    start = fork([forks[i] for i in group], env, [(moments[switch], seed) for switch, _, seed in members])
    run(common_config([forks[i] for i in group]), env, [seen], start=start)
    for switch, rank in dict.fromkeys((switch, rank) for switch, rank, _ in members):
        rows = [k for k, member in enumerate(members) if member[:2] == (switch, rank)]
        curves[switch, f"rank {rank}"] = seen.of(rows)

# %% [markdown]
# The second control is the same shared policy with a *new optimiser*, because adapters also have a new one. It is a scheme, `ps_restart`.

# %%
again = [replace(fork_, sharing="ps_restart") for fork_, point in zip(forks, points, strict=True) if point[1] == 1]
origins = [(switch, seed) for switch, rank, seed in points if rank == 1]
seen = Curves()
start = fork(again, env, [(moments[switch], seed) for switch, seed in origins])
run(common_config(again), env, [seen], start=start)
for switch in switches:
    rows = [k for k, origin in enumerate(origins) if origin[0] == switch]
    curves[switch, "shared, fresh Adam"] = seen.of(rows)

# %% [markdown]
# ## Without freezing
#
# `lorasa_joint` trains trunk and adapters together. In this game each agent is paid for itself, so both start at step 0. There is a single phase, and this
# is a run of its own. If all agents received the same reward, adapters would start at the switch.
#
# The step size of Adam does not depend on how noisy a gradient is. If all agents receive the same reward, an agent's gradient contains the noise
# of all agents' actions, and the agent has only 1/N of the samples. So at first its adapter takes steps that are 1/N as large. Then the factor follows play (docs/algorithm.md, section 4). In this game each agent
# is paid for itself, and the factor is 1. The second number is the first factor if the reward were the same for all.

# %%
joint_config = replace(config, sharing="lorasa_joint")
factors = [make_sharing(replace(env.spec, team_reward=same), joint_config).levels[0].factor for same in (False, True)]
print("learning rate of adapters, relative to that of the trunk:", [round(factor, 2) for factor in factors])

joint = Curves()
run(joint_config, env, [joint])

# %% [markdown]
# ## One plot

# %%
figure, axes = plt.subplots(1, len(switches), figsize=(12, 3.4), sharey=True, constrained_layout=True)
for axis, switch in zip(axes, switches, strict=True):
    axis.plot(*backbone.of(list(seeds)), color="black", lw=1, label="shared, continued")
    axis.plot(*joint.of(list(seeds)), color="grey", lw=1, label="joint from step 0")
    for (at, name), (steps, values) in curves.items():
        if at == switch:
            axis.plot(steps, values, marker=".", ms=3, lw=1.2, label=name)
    axis.axvline(switch, color="grey", ls="--", lw=1)
    axis.set(title=f"switch at {switch:,}", xlabel="environment steps", ylim=(0, 1.03))
axes[0].set_ylabel("greedy return, mean of seeds")
axes[-1].legend(fontsize=8)

# %% [markdown]
# A fork starts with exactly the policy of its backbone, because a new adapter is the identity. Gains above the black line are
# due to the second phase. Gains above *shared, fresh Adam* are due to the adapters. In this game the shared
# policy observes its number, so it can do everything that adapters can. The game demonstrates the method; it is no evidence for or against adapters.
#
# The same from the command line, with checkpoints and a table: `python experiments/sweep.py experiments/sweeps/ranks.yaml`.
