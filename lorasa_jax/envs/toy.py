"""Toy games with exactly known returns, for tests, first steps and notebooks.

Three matrix games test whether agents can act differently, or alike. Two more games have two hidden kinds of agents,
fixed or redrawn. Each probe isolates one part of a learner. All random numbers are drawn at the reset, so the rest of
an episode can be enumerated. Agents see symbols as one-hot vectors. The global state is the concatenation of all
observations. Both have unequal entries, because layer normalisation turns a constant vector into zeros. An episode is
won if its return is the highest possible return of the game.

The games of specialisation and synchronisation follow Tessera et al., "HyperMARL" (NeurIPS
2025), the probes Jones, "Debugging RL, Without the Agonizing Pain" (2021).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lorasa_jax.config import nearest, require
from lorasa_jax.envs.base import Env, EnvSpec, TimeStep

Time = Int[Array, ""]
Hand = Any


class Ceilings(NamedTuple):
    """Exact expected returns of an episode, averaged over agents.

    Attributes:
        shared_sampled: the supremum for agents that sample from one shared policy, without ids.
        shared_greedy: the maximum for agents that take the most probable action of such a policy.
        optimum: the maximum for a policy per agent; if roles are drawn, for a policy per role.
        chance: the return of uniformly random available actions.
    """

    shared_sampled: float
    shared_greedy: float
    optimum: float
    chance: float


class Rules(NamedTuple):
    """The rules of a game for a given number of agents.

    `time` counts the steps, and `hand` holds the random numbers of the reset. A value that
    is the same for all agents may be a scalar.

    Attributes:
        ceilings: exact returns.
        pay: `pay(time, hand, action)`: the reward of the joint action.
        n_actions: number of actions of each agent.
        n_symbols: width of an observation.
        see: `see(time, hand)`: the symbol that each agent sees; by default the time.
        deal: `deal(key)`: the hand.
        turn: `turn(time, hand, action)`: the hand after a step.
        avail: `avail(time, hand)`: the available actions of each agent.
        alive: `alive(time)`: the agents that can still act.
        steps: length of every episode.
        best: the highest possible return of an episode.
        team_reward: all agents receive the same reward.
        pay_at_end: the team's total reward is paid at the last step.
        clocked: a time limit ends the episode.
        roles: the role of each agent.
        role: `role(hand)`: the role of each agent, if roles are drawn.
        n_roles: number of drawn roles.
    """

    ceilings: Ceilings
    pay: Callable[[Time, Hand, Int[Array, " N"]], Any]
    n_actions: int = 2
    n_symbols: int = 2
    see: Callable[[Time, Hand], Any] = lambda time, hand: time
    deal: Callable[[PRNGKeyArray], Hand] = lambda key: ()
    turn: Callable[[Time, Hand, Int[Array, " N"]], Hand] = lambda time, hand, action: hand
    avail: Callable[[Time, Hand], Any] = lambda time, hand: True
    alive: Callable[[Time], Any] = lambda time: True
    steps: int = 1
    best: float = 1.0
    team_reward: bool = True
    pay_at_end: bool = False
    clocked: bool = False
    roles: tuple[int, ...] | None = None
    role: Callable[[Hand], Any] = lambda hand: ()
    n_roles: int = 0


class ToyState(NamedTuple):
    """The state of an episode: steps so far, the hand, and the return so far (mean over agents)."""

    time: Time
    hand: Hand
    score: Float[Array, ""]


def own_number(n: int) -> Rules:
    """Agent i receives 1 for action i and 0 otherwise. All agents see the same.

    Rewards are individual. A shared policy earns p_i for agent i, so every shared policy, sampled or
    greedy, earns 1/n on average. The optimum is 1.
    """
    known = Ceilings(1 / n, 1 / n, optimum=1.0, chance=1 / n)
    return Rules(known, pay=lambda time, hand, action: action == jnp.arange(n), n_actions=n, team_reward=False)


def specialisation(n: int) -> Rules:
    """The team receives the number of distinct actions divided by n. All agents see the same.

    Two agents earn 1 if they differ and 0.5 otherwise. A sampled shared policy earns
    sum_a (1 - (1 - p_a)^n) / n. This is concave, so it is largest for uniform p:
    1 - (1 - 1/n)^n (0.75 for two agents). A greedy one earns 1/n. The optimum is 1.
    """
    uniform = 1 - (1 - 1 / n) ** n
    known = Ceilings(uniform, 1 / n, optimum=1.0, chance=uniform)
    return Rules(known, pay=lambda time, hand, action: jax.nn.one_hot(action, n).max(axis=0).mean(), n_actions=n)


def synchronisation(n: int) -> Rules:
    """The team receives 1 if all agents choose the same of two actions, and 0 otherwise.

    A shared policy reaches the optimum, 1, greedy or sampled. Random actions earn 2^(1 - n).
    """
    known = Ceilings(1.0, 1.0, optimum=1.0, chance=2.0 ** (1 - n))
    return Rules(known, pay=lambda time, hand, action: (action == action[0]).all())


def two_kinds(n: int, kinds: Sequence[int] | None = None) -> Rules:
    """The team receives, in the first of two steps, the share of agents that then show symbol 1.

    Each agent shows a symbol, which is random at first. The next symbol is the agent's action for kind 0, and the
    opposite for kind 1. Agents see their own symbol, but not their kind. Kinds alternate unless `kinds` are given. A
    shared policy that plays 1 with probability p earns p for one kind and 1 - p for the other. So it earns at most the
    share of the larger kind, sampled or greedy. The kind is an agent's role. A policy per kind reaches the optimum, 1.
    Random actions earn 0.5.
    """
    roles = tuple(i % 2 for i in range(n)) if kinds is None else tuple(kinds)
    kind, larger = jnp.array(roles), max(roles.count(k) for k in (0, 1)) / n

    def turn(time: Time, hand: Int[Array, " N"], action: Int[Array, " N"]) -> Int[Array, " N"]:
        return jnp.where(kind == 0, action, 1 - action)

    return Rules(
        Ceilings(larger, larger, optimum=1.0, chance=0.5),
        pay=lambda time, hand, action: (time == 0) * turn(time, hand, action).mean(),
        see=lambda time, hand: hand,
        deal=lambda key: jax.random.randint(key, (n,), 0, 2),
        turn=turn,
        steps=2,
        roles=roles,
    )


def drawn_kinds(n: int) -> Rules:
    """The team receives the share of agents that name their kind, 0 or 1, which is redrawn and never observed.

    An agent's kind is its role. A shared policy names half of the kinds correctly on average, and so does a policy per
    agent. A policy per kind reaches the optimum, 1. Random actions earn 0.5.
    """
    return Rules(
        Ceilings(0.5, 0.5, optimum=1.0, chance=0.5),
        pay=lambda time, hand, action: (action == hand).mean(),
        deal=lambda key: jax.random.randint(key, (n,), 0, 2),
        role=lambda hand: hand,
        n_roles=2,
    )


def probe_value(n: int) -> Rules:
    """The team receives 1 for any action. The value of the only state is 1."""
    return Rules(Ceilings(1.0, 1.0, 1.0, 1.0), pay=lambda time, hand, action: 1.0)


def probe_observation(n: int) -> Rules:
    """The team receives 1 or -1, as shown to all agents, for any action.

    The value is 1 for symbol 1 and -1 for symbol 0, so it must depend on the input. Every
    policy earns 0 on average. An episode with return 1 counts as won.
    """
    known, deal = Ceilings(0.0, 0.0, 0.0, 0.0), lambda key: jax.random.randint(key, (), 0, 2)
    return Rules(known, pay=lambda time, hand, action: 2 * hand - 1, see=lambda time, hand: hand, deal=deal)


def probe_discount(n: int) -> Rules:
    """The team receives 1 at the second and last step, for any action.

    The value of the first state is gamma, the value of the second state is 1.
    """
    return Rules(Ceilings(1.0, 1.0, 1.0, 1.0), pay=lambda time, hand, action: time == 1, steps=2)


def probe_policy(n: int, delay: int = 0) -> Rules:
    """The team receives the share of agents that name their own observed cue.

    A shared policy reaches the optimum, 1. A policy that ignores its input earns 0.5.
    """
    blank = 2
    return Rules(
        Ceilings(1.0, 1.0, optimum=1.0, chance=0.5),
        pay=lambda time, hand, action: (time == delay) * (action == hand).mean(),
        n_symbols=3,
        see=lambda time, hand: jnp.where(time == 0, hand, blank),
        deal=lambda key: jax.random.randint(key, (n,), 0, 2),
        steps=delay + 1,
    )


def probe_memory(n: int) -> Rules:
    """The team receives, at the third step, the share of agents that name the cue of the first step.

    Earlier actions do not matter. A shared recurrent policy reaches the optimum, 1. Without memory every
    policy earns 0.5, because at the third step all cues look the same.
    """
    return probe_policy(n, delay=2)


def probe_mask(n: int) -> Rules:
    """The team receives at each of two steps the mean over agents of 1, 0 or -1.

    An agent gets 1 for the highest available action, 0 for another available action, and -1 for an unavailable one.
    The first of three actions is always available. Each other action is available with probability 1/2,
    redrawn for every agent and step, and visible only in the mask. A shared policy that ranks the actions
    reaches the optimum, 2: greedily, and in the limit sampled. Random actions earn 7/6, and the best policy
    that ignores the mask earns 1/2.
    """

    def deal(key: PRNGKeyArray) -> Bool[Array, "T N A"]:
        return jax.random.bernoulli(key, 0.5, (2, n, 3)).at[..., 0].set(True)

    def pay(time: Time, hand: Bool[Array, "T N A"], action: Int[Array, " N"]) -> Float[Array, ""]:
        highest = jnp.where(hand[time], jnp.arange(3), 0).max(axis=-1)
        return jnp.where(hand[time, jnp.arange(n), action], action == highest, -1.0).mean()

    known, avail = Ceilings(2.0, 2.0, optimum=2.0, chance=7 / 6), lambda time, hand: hand[time]
    return Rules(known, pay, n_actions=3, deal=deal, avail=avail, steps=2, best=2.0)


def probe_death(n: int) -> Rules:
    """The team receives, after two steps, the share of agents whose last action alive was 1, not 2.

    All agents except agent 0 die after the first step. Dead agents see zeros and have only action 0,
    which living agents do not have. Their later actions do not matter, but their earlier actions are rewarded
    only at the end. A shared policy reaches the optimum, 1. Random actions earn 0.5.
    """
    survivor = jnp.arange(n) == 0

    def alive(time: Time) -> Bool[Array, " N"]:
        return survivor | (time == 0)

    def avail(time: Time, hand: Hand) -> Bool[Array, "N A"]:
        return alive(time)[:, None] == jnp.array([False, True, True])

    def pay(time: Time, hand: Hand, action: Int[Array, " N"]) -> Float[Array, ""]:
        last_act = survivor == (time == 1)
        return (last_act & (action == 1)).mean()

    known = Ceilings(1.0, 1.0, optimum=1.0, chance=0.5)
    return Rules(known, pay, n_actions=3, avail=avail, alive=alive, steps=2, pay_at_end=True)


def probe_clock(n: int) -> Rules:
    """The team receives 1 at each of five steps, for any action, and is then truncated.

    Under `bootstrap` agents do not observe the time, and the value is 1 / (1 - gamma). Under `terminal` they
    observe it, and the value is (1 - gamma^k) / (1 - gamma) with k steps to go.
    """
    known = Ceilings(5.0, 5.0, 5.0, 5.0)
    return Rules(known, pay=lambda time, hand, action: 1.0, n_symbols=5, steps=5, best=5.0, clocked=True)


class Game(NamedTuple):
    """A game: a function that makes its rules, and the default and minimum number of agents."""

    rules: Callable[[int], Rules]
    n_agents: int = 2
    least: int = 1


GAMES: dict[str, Game] = {
    "own_number": Game(own_number, n_agents=4, least=2),
    "specialisation": Game(specialisation, least=2),
    "synchronisation": Game(synchronisation, least=2),
    "two_kinds": Game(two_kinds, n_agents=4),
    "drawn_kinds": Game(drawn_kinds, n_agents=4),
    "probe_value": Game(probe_value),
    "probe_observation": Game(probe_observation),
    "probe_discount": Game(probe_discount),
    "probe_policy": Game(probe_policy),
    "probe_memory": Game(probe_memory),
    "probe_mask": Game(probe_mask),
    "probe_death": Game(probe_death, least=2),
    "probe_clock": Game(probe_clock),
}


def _set_up(task: str, n_agents: int | None) -> tuple[int, Rules]:
    require(task in GAMES, f"no toy game {task!r}{nearest(task, GAMES)}; games: {', '.join(GAMES)}")
    game = GAMES[task]
    n = game.n_agents if n_agents is None else n_agents
    require(n >= game.least, f"n-agents must be {game.least} or more in {task}, got {n}")
    return n, game.rules(n)


def ceilings(task: str, n_agents: int | None = None) -> Ceilings:
    """Returns the exact returns; raises `ConfigError` for an unknown game or too few agents."""
    return _set_up(task, n_agents)[1].ceilings


def make_toy(task: str, n_agents: int | None = None, time_limit: str = "bootstrap") -> Env:
    """Returns a game of `GAMES` as an environment.

    In a game with a time limit, `time_limit` sets the end: `bootstrap` a truncation, `terminal`
    a termination. Raises `ConfigError` for an unknown game or time limit, or too few agents.
    """
    n, rules = _set_up(task, n_agents)
    require(time_limit in ("bootstrap", "terminal"), f"time-limit must be bootstrap or terminal, got {time_limit!r}")
    interrupts = rules.clocked and time_limit == "bootstrap"

    def show(state: ToyState, reward: Float[Array, " N"]) -> TimeStep:
        over = state.time >= rules.steps
        # The last state looks like the one before it. Under bootstrap the time is hidden: no agent acts in the last
        # state, so a critic that could recognise it would bootstrap from a value that it never learned.
        time = jnp.zeros_like(state.time) if interrupts else jnp.minimum(state.time, rules.steps - 1)
        alive = jnp.broadcast_to(rules.alive(time), (n,))
        seen = jax.nn.one_hot(rules.see(time, state.hand), rules.n_symbols)
        obs = jnp.broadcast_to(seen, (n, rules.n_symbols)) * alive[:, None]
        return TimeStep(
            obs=obs,
            state=obs.reshape(-1),
            avail=jnp.broadcast_to(rules.avail(time, state.hand), (n, rules.n_actions)),
            alive=alive,
            reward=reward,
            terminated=over & (not interrupts),
            truncated=over & interrupts,
            won=over & (state.score > rules.best - 1e-4),
            role=rules.role(state.hand),
        )

    def reset(key: PRNGKeyArray) -> tuple[ToyState, TimeStep]:
        state = ToyState(jnp.int32(0), rules.deal(key), jnp.float32(0))
        return state, show(state, jnp.zeros(n))

    def step(key: PRNGKeyArray, state: ToyState, action: Int[Array, " N"]) -> tuple[ToyState, TimeStep]:
        chex.assert_shape(action, (n,))
        earned = jnp.broadcast_to(rules.pay(state.time, state.hand, action), (n,)).astype(jnp.float32)
        hand = rules.turn(state.time, state.hand, action)
        state = ToyState(state.time + 1, hand, state.score + earned.mean())
        reward = (state.time == rules.steps) * jnp.full(n, state.score) if rules.pay_at_end else earned
        return state, show(state, reward)

    sizes = (n, rules.n_symbols, n * rules.n_symbols, rules.n_actions)
    spec = EnvSpec(task, *sizes, rules.steps, rules.team_reward, roles=rules.roles, n_roles=rules.n_roles)
    return Env(spec, reset, step)
