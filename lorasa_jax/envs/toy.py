"""Toy games whose answers are known exactly: for tests, first steps and notebooks.

Three matrix games ask whether agents can act differently, or alike, and two more hide that they are of two
kinds, always the same or drawn anew; each probe isolates one part of a learner. All chance is dealt at the reset,
so the rest of an episode can be enumerated. Agents see symbols, as one-hot vectors, and the global state is what all of
them see: both have unequal entries, for layer normalisation turns a constant vector into
zeros. An episode is won when no episode of the game could have paid more.

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
    """What play earns, exactly: the expected return of an episode, averaged over agents.

    Attributes:
        shared_sampled: the supremum for agents that sample from one policy, without their ids.
        shared_greedy: the most for agents that take the likeliest action of such a policy.
        optimum: the most for agents with policies of their own; where roles are drawn, for policies of the roles.
        chance: what actions drawn evenly from the available ones earn.
    """

    shared_sampled: float
    shared_greedy: float
    optimum: float
    chance: float


class Rules(NamedTuple):
    """One game, for a given number of agents.

    `time` counts the steps played, `hand` is what chance dealt at the reset; a value that
    is the same for all agents may stand alone.

    Attributes:
        ceilings: what play can earn.
        pay: `pay(time, hand, action)`: what the joint action earns.
        n_actions: number of actions of each agent.
        n_symbols: width of an observation.
        see: `see(time, hand)`: the symbol each agent sees; left out, the time.
        deal: `deal(key)`: the hand.
        turn: `turn(time, hand, action)`: the hand after a step.
        avail: `avail(time, hand)`: the actions each agent may take.
        alive: `alive(time)`: the agents that can still act.
        steps: length of every episode.
        best: the highest return an episode can have.
        team_reward: every agent is paid the same.
        pay_at_end: what the team earns is paid out in one sum, with the last step.
        clocked: a clock ends the episode, not the game.
        roles: the role of each agent.
        role: `role(hand)`: the role of each agent, where chance deals it.
        n_roles: how many roles chance deals.
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
    """Where an episode stands: steps played, what chance dealt, what the team has earned so far (agents' mean)."""

    time: Time
    hand: Hand
    score: Float[Array, ""]


def own_number(n: int) -> Rules:
    """Agent i is paid 1 for action i and nothing otherwise; all see the same.

    Each agent's pay is its own. A shared policy earns p_i for agent i, hence 1/n on
    average whatever it is, sampled or greedy; the optimum is 1.
    """
    known = Ceilings(1 / n, 1 / n, optimum=1.0, chance=1 / n)
    return Rules(known, pay=lambda time, hand, action: action == jnp.arange(n), n_actions=n, team_reward=False)


def specialisation(n: int) -> Rules:
    """The team is paid the number of distinct actions over n; all see the same.

    Two agents earn 1 when they differ and 0.5 when they do not. A shared policy earns
    sum_a (1 - (1 - p_a)^n) / n, concave and so largest where p is uniform: sampled,
    1 - (1 - 1/n)^n (0.75 for two agents). Greedy, it earns 1/n. The optimum is 1.
    """
    uniform = 1 - (1 - 1 / n) ** n
    known = Ceilings(uniform, 1 / n, optimum=1.0, chance=uniform)
    return Rules(known, pay=lambda time, hand, action: jax.nn.one_hot(action, n).max(axis=0).mean(), n_actions=n)


def synchronisation(n: int) -> Rules:
    """The team is paid 1 when all choose the same of two actions, and nothing otherwise.

    A shared policy reaches the optimum, 1, greedy or sampled; chance earns 2^(1 - n).
    """
    known = Ceilings(1.0, 1.0, optimum=1.0, chance=2.0 ** (1 - n))
    return Rules(known, pay=lambda time, hand, action: (action == action[0]).all())


def two_kinds(n: int, kinds: Sequence[int] | None = None) -> Rules:
    """The team is paid, in the first of two steps, the share of agents that then show symbol 1.

    Each agent shows a symbol, at first drawn by chance; the next one is the agent's action where it is of kind 0,
    and the opposite where it is of kind 1. Agents see their own symbol, not their kind, which alternates unless
    `kinds` are given. A shared policy that plays 1 with probability p earns p for one kind and 1 - p for the other: at
    most the share of the larger, sampled or greedy. Policies for each kind, which is an agent's role, reach the
    optimum, 1; chance earns 0.5.
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
    """The team is paid the share of agents that name their kind, 0 or 1, drawn anew for each and shown nowhere.

    An agent's kind is its role. A shared policy names half of the kinds rightly on average, and so does an agent's
    own; policies of the kinds reach the optimum, 1. Chance earns 0.5.
    """
    return Rules(
        Ceilings(0.5, 0.5, optimum=1.0, chance=0.5),
        pay=lambda time, hand, action: (action == hand).mean(),
        deal=lambda key: jax.random.randint(key, (n,), 0, 2),
        role=lambda hand: hand,
        n_roles=2,
    )


def probe_value(n: int) -> Rules:
    """The team is paid 1, whatever it does: the value of the only state is 1."""
    return Rules(Ceilings(1.0, 1.0, 1.0, 1.0), pay=lambda time, hand, action: 1.0)


def probe_observation(n: int) -> Rules:
    """The team is paid 1 or -1 as all were shown, whatever it does.

    The value is 1 under symbol 1 and -1 under symbol 0: it must follow the input. Every
    policy earns 0 on average; an episode that paid 1 counts as won.
    """
    known, deal = Ceilings(0.0, 0.0, 0.0, 0.0), lambda key: jax.random.randint(key, (), 0, 2)
    return Rules(known, pay=lambda time, hand, action: 2 * hand - 1, see=lambda time, hand: hand, deal=deal)


def probe_discount(n: int) -> Rules:
    """The team is paid 1 at the second and last step, whatever it does.

    The value of the first state is gamma, that of the second 1.
    """
    return Rules(Ceilings(1.0, 1.0, 1.0, 1.0), pay=lambda time, hand, action: time == 1, steps=2)


def probe_policy(n: int, delay: int = 0) -> Rules:
    """The team is paid the share of agents that name the cue they see, each its own.

    A shared policy reaches the optimum, 1. A policy blind to its input earns 0.5.
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
    """The team is paid, at the third step, the share of agents that name the cue of the first.

    Earlier actions count for nothing. A shared recurrent policy reaches the optimum, 1.
    Without memory every policy earns 0.5: all hands look the same when it counts.
    """
    return probe_policy(n, delay=2)


def probe_mask(n: int) -> Rules:
    """The team is paid agents' mean at each of two steps: 1 for the highest action available, -1 for one that is not.

    Of three actions the first is always available, the others each with probability 1/2, drawn anew for
    every agent and step and shown nowhere but in the mask. A shared policy that ranks the actions reaches
    the optimum, 2, greedy and in the limit sampled; chance earns 7/6, the best policy blind to the mask 1/2.
    """

    def deal(key: PRNGKeyArray) -> Bool[Array, "T N A"]:
        return jax.random.bernoulli(key, 0.5, (2, n, 3)).at[..., 0].set(True)

    def pay(time: Time, hand: Bool[Array, "T N A"], action: Int[Array, " N"]) -> Float[Array, ""]:
        highest = jnp.where(hand[time], jnp.arange(3), 0).max(axis=-1)
        return jnp.where(hand[time, jnp.arange(n), action], action == highest, -1.0).mean()

    known, avail = Ceilings(2.0, 2.0, optimum=2.0, chance=7 / 6), lambda time, hand: hand[time]
    return Rules(known, pay, n_actions=3, deal=deal, avail=avail, steps=2, best=2.0)


def probe_death(n: int) -> Rules:
    """The team is paid, after two steps, the share of agents whose last act in life was action 1, not 2.

    All but agent 0 die after the first step. They see zeros from then on and are left with action 0,
    which the living lack; what they do no longer matters, but what they did is paid only now. A shared
    policy reaches the optimum, 1; chance earns 0.5.
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
    """The team is paid 1 at each step, whatever it does, until the clock stops it after five.

    Where the clock only interrupts (`bootstrap`), nobody sees it and the value is 1 / (1 - gamma); where
    it is an end (`terminal`), all see it and the value is (1 - gamma^k) / (1 - gamma) with k steps to go.
    """
    known = Ceilings(5.0, 5.0, 5.0, 5.0)
    return Rules(known, pay=lambda time, hand, action: 1.0, n_symbols=5, steps=5, best=5.0, clocked=True)


class Game(NamedTuple):
    """How to build a game's rules, for how many agents unless asked, and for how many at least."""

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
    """Returns what play can earn; raises `ConfigError` for an unknown game or too few agents."""
    return _set_up(task, n_agents)[1].ceilings


def make_toy(task: str, n_agents: int | None = None, time_limit: str = "bootstrap") -> Env:
    """Returns a game of `GAMES` as an environment.

    Where a clock ends it, `time_limit` says what it reports: `bootstrap` a truncation, `terminal`
    a termination. Raises `ConfigError` for an unknown game or time limit, or too few agents.
    """
    n, rules = _set_up(task, n_agents)
    require(time_limit in ("bootstrap", "terminal"), f"time-limit must be bootstrap or terminal, got {time_limit!r}")
    interrupts = rules.clocked and time_limit == "bootstrap"

    def show(state: ToyState, reward: Float[Array, " N"]) -> TimeStep:
        over = state.time >= rules.steps
        # The end looks like the step before it. A clock that merely interrupts stays hidden: nobody ever acts
        # in its last state, so a critic that could tell it apart would bootstrap from a value it never learned.
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
