"""The records that flow through the library, and the axes their arrays stand on.

Axis legend, the same everywhere and always in this order:

| axis | meaning |
|---|---|
| T    | time steps of one rollout (L: of one chunk of it, C: the chunks) |
| E    | environments stepped side by side |
| N    | agents (V: values per environment, 1 for a team critic and N otherwise) |
| G    | trunks: shared networks, each the home of one or more agents |
| K    | owners of what stands on a trunk: agents, or their roles |
| M    | agents that move together in one stage (a block) |
| S    | stages of one update (P: passes over the rollout in each) |

Masks are booleans that say yes: `alive`, `avail`, `first`.
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
        agents: what is owned on top of the trunks, stacked: every leaf is [K, ...] for K
            owners, which are the agents or their roles; the empty dict where nothing is. Where
            both own something, a dictionary of two such trees, by their keys.
    """

    shared: PyTree
    agents: PyTree


class Trajectory(NamedTuple):
    """What one rollout collected; every leaf is [T, E, ...] but for the carries and `inputs`.

    Attributes:
        obs: what each agent saw before it acted.
        state: the global state at the same moment, shared by the team.
        avail: the actions each agent could take, or the dimensions of its action.
        alive: agents that were alive *before* they acted.
        first: the step opens an episode, so recurrent states start from zero there.
        action: the action taken, before any squashing.
        log_prob: its log-probability under the policy that took it, in R parts: one, or one per dimension.
        value: the critic's output, in its own (normalised) units.
        next_value: the critic's output for the state that followed, before any reset;
            normalised units as well.
        reward: [T, E, N].
        terminated: the episode ended by itself (or, under `time_limit` terminal, in any way): nothing is to be expected
            after it.
        truncated: the clock interrupted it: the value of what would have followed counts.
        actor_carry: the actors' recurrent states at the start of each chunk, [C, E, N, H].
        critic_carry: the critic's, [C, E, V, H].
        inputs: statistics of what was seen, as it was before it was standardised.
        owner: the role of each agent, [T, E, N], where what is owned changes hands with it.
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
    """Who moves, in what order, with which clip: an algorithm, as data.

    Each row is one stage: a block of agents that passes over the rollout, P times.

    Attributes:
        block: the agents that move together in each stage, [S, M].
        clip_eps: the clip of the surrogate in each stage, [S].
        trace: advantages are corrected for the agents that moved before, [S].
        train_actor: the pass trains the block's actors, [S, P].
        train_critic: the pass trains the critic, [S, P].
    """

    block: Int[Array, "S M"]
    clip_eps: Float[Array, " S"]
    trace: Bool[Array, " S"]
    train_actor: Bool[Array, "S P"]
    train_critic: Bool[Array, "S P"]


class RolloutState(NamedTuple):
    """Where the environments stand between two rollouts; every leaf is [E, ...].

    Attributes:
        env_state: the environments' own states.
        timestep: what the agents see now.
        first: an episode opens here.
        actor_carry: the actors' recurrent states, [E, N, H].
        critic_carry: the critic's, [E, V, H].
        episode_return: reward of the running episode so far, averaged over agents.
        episode_length: its steps so far.
    """

    env_state: PyTree
    timestep: Any
    first: Bool[Array, " E"]
    actor_carry: Float[Array, "E N H"]
    critic_carry: Float[Array, "E V H"]
    episode_return: Float[Array, " E"]
    episode_length: Int[Array, " E"]


class Learner(NamedTuple):
    """All that an update changes: parameters, optimiser states, statistics of values and of inputs."""

    actor: PolicyParams
    critic: PolicyParams
    actor_opt: PyTree
    critic_opt: PyTree
    value_norm: PyTree
    inputs: PyTree = ()


class Weights(NamedTuple):
    """What it takes to play: every agent's full weights, and the statistics by which inputs are standardised."""

    actors: PolicyParams
    inputs: PyTree = ()


class Rates(NamedTuple):
    """Learning rates of one update."""

    actor: Float[Array, ""]
    critic: Float[Array, ""]


class TrainState(NamedTuple):
    """The whole of a training run between two iterations.

    Attributes:
        learner: parameters, optimiser states and value statistics.
        rollout: where the environments stand.
        key: the run's key; what iteration i draws depends on it and on i alone.
        iteration: iterations done so far.
        lr: learning rate of the actors in this phase, before any annealing.
    """

    learner: Learner
    rollout: RolloutState
    key: PRNGKeyArray
    iteration: Int[Array, ""]
    lr: Float[Array, ""]
