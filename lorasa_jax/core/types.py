"""Records of arrays, and the names of their axes.

Axes have the same names and the same order in all modules:

| axis | meaning |
|---|---|
| T    | time steps of one rollout (L: of one chunk of it, C: the chunks) |
| E    | environments stepped in parallel |
| N    | agents (V: values per environment, 1 for a team critic and N otherwise) |
| G    | trunks: networks that one or more agents share |
| K    | owners of adapters on a trunk: agents, or their roles |
| M    | agents that one stage updates together (a block) |
| S    | stages of one update (P: passes over the rollout in each) |

Masks are booleans, true for entries that count: `alive`, `avail`, `first`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

PyTree = Any
Metrics = dict[str, Array]


class PolicyParams(NamedTuple):
    """Parameters of a team's policies.

    Attributes:
        shared: one tree per trunk, stacked: every leaf is [G, ...].
        agents: what the owners add to the trunks: a dictionary by scope of stacked trees. Every leaf is [K, ...]
            for the K owners of the scope. Empty if nothing is owned.
    """

    shared: PyTree
    agents: PyTree


class Trajectory(NamedTuple):
    """Data of one rollout. Every leaf is [T, E, ...], except the carries and `inputs`.

    Attributes:
        obs: the observation of each agent before its action.
        state: the global state at the same time, shared by the team.
        avail: the available actions of each agent, or the dimensions of its action.
        alive: agents that were alive *before* they acted.
        first: the step is the first of an episode; recurrent states are zero before it.
        action: the action, before any squashing.
        log_prob: its log-probability under the acting policy, in R parts: one, or one per dimension.
        value: the critic's output, in normalised units.
        next_value: the critic's output for the next state, before any reset, in normalised units.
        reward: [T, E, N].
        terminated: the episode ended by itself (or, under `time_limit` terminal, in any way). The value after it is 0.
        truncated: the time limit ended the episode. The value of the next state counts.
        actor_carry: the actors' recurrent states at the start of each chunk, [C, E, N, H].
        critic_carry: the critic's, [C, E, V, H].
        inputs: statistics of observations and states before standardisation.
        owner: the role of each agent, [T, E, N], if owners change with roles.
    """

    obs: Float[Array, "T E N D"]
    state: Float[Array, "T E S"]
    avail: Bool[Array, "T E N A"]
    alive: Bool[Array, "T E N"]
    first: Bool[Array, "T E"]
    action: Int[Array, "T E N"] | Float[Array, "T E N A"]
    log_prob: Float[Array, "T E N R"]
    value: Float[Array, "T E V"]
    next_value: Float[Array, "T E V"]
    reward: Float[Array, "T E N"]
    terminated: Bool[Array, "T E"]
    truncated: Bool[Array, "T E"]
    actor_carry: Float[Array, "C E N H"]
    critic_carry: Float[Array, "C E V H"]
    inputs: PyTree = ()
    owner: PyTree = ()


class Schedule(NamedTuple):
    """An algorithm as data: which agents are updated together, in what order, with which clip.

    Each row is one stage, in which a block of agents makes P passes over the rollout.

    Attributes:
        block: the agents that each stage updates together, [S, M].
        clip_eps: the clip of the surrogate in each stage, [S].
        trace: advantages are corrected for the agents that were updated before, [S].
        train_actor: the pass trains the block's actors, [S, P].
        train_critic: the pass trains the critic, [S, P].
    """

    block: Int[Array, "S M"]
    clip_eps: Float[Array, " S"]
    trace: Bool[Array, " S"]
    train_actor: Bool[Array, "S P"]
    train_critic: Bool[Array, "S P"]


class RolloutState(NamedTuple):
    """State of the environments between two rollouts. Every leaf is [E, ...].

    Attributes:
        env_state: states of the environments.
        timestep: the current observations.
        first: the next step is the first of an episode.
        actor_carry: the actors' recurrent states, [E, N, H].
        critic_carry: the critic's, [E, V, H].
        episode_return: reward of the running episode so far, averaged over agents.
        episode_length: steps of the running episode so far.
    """

    env_state: PyTree
    timestep: Any
    first: Bool[Array, " E"]
    actor_carry: Float[Array, "E N H"]
    critic_carry: Float[Array, "E V H"]
    episode_return: Float[Array, " E"]
    episode_length: Int[Array, " E"]


class Learner(NamedTuple):
    """Everything that an update changes: parameters, optimiser states, statistics of values and of inputs."""

    actor: PolicyParams
    critic: PolicyParams
    actor_opt: PyTree
    critic_opt: PyTree
    value_norm: PyTree
    inputs: PyTree = ()


class Weights(NamedTuple):
    """Weights for acting: every agent's full weights, and the statistics that standardise inputs."""

    actors: PolicyParams
    inputs: PyTree = ()


class Rates(NamedTuple):
    """Learning rates of one update, and the pace of adapters (`lorasa_jax.learning.pacing`)."""

    actor: Float[Array, ""]
    critic: Float[Array, ""]
    pace: Float[Array, ""] | tuple[()]


class TrainState(NamedTuple):
    """The state of a training run between two iterations.

    Attributes:
        learner: parameters, optimiser states and value statistics.
        rollout: state of the environments.
        key: the run's key; the random numbers of iteration i depend only on the key and on i.
        iteration: number of completed iterations.
        lr: learning rate of the actors in this phase, before any annealing.
        pace: pace of adapters (`lorasa_jax.learning.pacing`); empty if their learning rates are fixed.
    """

    learner: Learner
    rollout: RolloutState
    key: PRNGKeyArray
    iteration: Int[Array, ""]
    lr: Float[Array, ""]
    pace: Float[Array, ""] | tuple[()] = ()
