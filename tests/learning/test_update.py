"""An update is plain gradient steps: one optimiser per slot, everyone's data once, in its order in time."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    KEY,
    assert_close,
    assert_same,
    batched,
    coded,
    differs,
    make_diary,
    random_params,
    random_trajectory,
    rates_of,
    row_of,
    small_config,
    with_roles,
)

from lorasa_jax.core.distributions import mask_logits
from lorasa_jax.core.types import Learner, PolicyParams, Schedule, Trajectory
from lorasa_jax.envs.base import Env, EnvSpec
from lorasa_jax.learning import minibatches as batches
from lorasa_jax.learning import update
from lorasa_jax.learning.system import System, init_optimizer, is_two_phase, make_system, trained_stacks
from lorasa_jax.sharing.schemes import SCHEMES, join, split

N = 3


def make_learner(system: System) -> Learner:
    """Far from its start, in units that are not the reward's."""
    critic = random_params(system.critic, 2)
    learner = Learner(
        actor=random_params(system.actor, 1),
        critic=critic,
        actor_opt={},
        critic_opt=system.optimizer.init(critic.shared),
        # Of little weight, so that one update moves them: to mix up old units and new ones shows.
        value_norm=system.value_norm.init()._replace(
            total=jnp.float32(6e-6), total_square=jnp.float32(1.8e-5), weight=jnp.float32(1e-5)
        ),
    )
    return init_optimizer(system, learner)


def two_of_three(key, score) -> Schedule:
    """Agent 1 never moves; neither do all others at once. The actors rest in one pass, the critic in another."""
    return Schedule(
        block=jnp.array([[2], [0], [2]]),
        clip_eps=jnp.array([0.1, 0.3, 0.2]),
        trace=jnp.array([True, True, False]),
        train_actor=jnp.array([[True, True], [False, True], [True, True]]),
        train_critic=jnp.array([[True, True], [True, True], [True, False]]),
    )


def pairs(key, score) -> Schedule:
    """Two agents in a stage, and one of them again in the next."""
    always = jnp.ones((2, 1), bool)
    return Schedule(jnp.array([[2, 0], [1, 2]]), jnp.array([0.1, 0.3]), jnp.ones(2, bool), always, always)


VARIANTS = {
    "everyone at once": {},
    "two of three": {"schedule": two_of_three},
    "in pairs": {"schedule": pairs, "scope": "agent"},
    "a2po by agents": {"algo": "a2po", "loop_order": "agent", "two_stage": True},
    "a2po by epochs": {"algo": "a2po", "loop_order": "epoch", "scope": "team"},
    "sequential": {"algo": "sequential", "loop_order": "epoch"},
}


KEYED = (
    "lorasa by unit_type", "lorasa by unit_type,agent", "seps_lora by unit_type", "lorasa by team,agent@0.3",
    "seps_lora by team,agent@0.3 free",
)  # fmt: skip
DRAWN = "seps_lora by drawn"
FREE = "seps_lora by team,drawn free"
"""Schemes by their levels, with roles that are fixed, or drawn for every sample; free: trunks are trained as well."""


# ---------------------------------------------------------------- where the data goes


def test_a_pass_meets_every_agent_of_every_environment_once(monkeypatch):
    config = small_config(ppo={"minibatches": 4})
    system = make_system(config, make_diary(N))
    t = random_trajectory(system)
    number = jnp.broadcast_to(coded(config.n_envs, N, 1).astype(np.float32), t.log_prob.shape)
    batch = batched(system, t._replace(log_prob=number), t.value)

    def count(system, learner, part, block, *_):
        met = jax.nn.one_hot(part.log_prob[..., 0].astype(int), config.n_envs * N).sum(axis=(0, 1, 2))
        return learner._replace(value_norm=learner.value_norm + met), {}

    monkeypatch.setattr(update, "_update_actor", count)
    monkeypatch.setattr(update, "_update_critic", lambda system, learner, *_: (learner, {}))
    nothing = PolicyParams({}, {})
    learner = Learner(nothing, nothing, {}, {}, jnp.zeros(config.n_envs * N))
    row = jax.tree.map(lambda leaf: leaf[0], system.schedule(KEY, jnp.zeros(N)))
    learner, _ = update.run_stage(system, learner, batch, row, None, rates_of(config), KEY)
    np.testing.assert_array_equal(learner.value_norm, config.rollout_length * config.ppo.epochs)


# ---------------------------------------------------------------- what a step does


class Adam:
    """Adam behind a clip of the global norm, in NumPy."""

    def __init__(self, lr: float, eps: float, max_norm: float):
        self.lr, self.eps, self.max_norm = lr, eps, max_norm
        self.count, self.first, self.second = 0, 0.0, 0.0

    def step(self, params, grads):
        leaves, structure = jax.tree.flatten(params)
        flat = np.concatenate([np.ravel(g) for g in jax.tree.leaves(grads)]).astype(np.float64)
        flat *= min(1.0, self.max_norm / np.linalg.norm(flat))
        self.count += 1
        self.first = 0.9 * self.first + 0.1 * flat
        self.second = 0.999 * self.second + 0.001 * flat**2
        debiased = self.first / (1 - 0.9**self.count), self.second / (1 - 0.999**self.count)
        change = self.lr * debiased[0] / (np.sqrt(debiased[1]) + self.eps)
        parts = np.split(change, np.cumsum([leaf.size for leaf in leaves])[:-1])
        return jax.tree.unflatten(structure, [x - d.reshape(x.shape) for x, d in zip(leaves, parts, strict=True)])


def with_row(tree, k: int, row):
    return jax.tree.map(lambda leaf, new: np.concatenate([leaf[:k], new[None], leaf[k + 1 :]]), tree, row)


def moments(total, square, weight):
    return total / weight, np.sqrt(square / weight - (total / weight) ** 2)


class Plain:
    """The update of a feed-forward system in plain words: stage by stage and slot by slot, on the whole rollout."""

    def __init__(self, system: System, t: Trajectory):
        ppo = system.config.ppo
        self.system, self.t = system, t
        # The slot of every sample in each stack that is trained.
        slots = {name: t.owner if level.owner is None else level.owner
                 for name, level in system.actor.sharing.stacks.items()}  # fmt: skip
        slots["shared"] = system.actor.sharing.groups
        trained = trained_stacks(system, random_params(system.actor))
        self.slot_of = {name: np.broadcast_to(slots[name], t.alive.shape) for name in trained}
        self.stacks = split

        def log_probs(actor):
            owner = t.owner if system.actor.sharing.dynamic_roles else None
            _, logits = system.actor.unroll(actor, t.actor_carry[0], t.obs, t.first, owner=owner)
            log_p = jax.nn.log_softmax(mask_logits(logits, t.avail))
            return log_p, jnp.take_along_axis(log_p, t.action[..., None], -1)

        def policy(actor, advantage, weight, clip_eps, factor):
            log_p, log_prob = log_probs(actor)
            entropy = -jnp.where(t.avail, jnp.exp(log_p) * log_p, 0.0).sum(-1)
            ratio = jnp.exp(log_prob - t.log_prob)[..., 0] * factor
            surrogate = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip_eps, 1 + clip_eps) * advantage)
            return -jnp.sum(weight * (surrogate + ppo.entropy_coef * entropy))

        def value(shared, target, weight):
            view = system.critic_view(t.obs, t.state)
            _, new = system.critic.unroll(PolicyParams(shared, {}), t.critic_carry[0], view, t.first)
            new = new[..., 0]
            held = jnp.clip(new, t.value - ppo.value_clip, t.value + ppo.value_clip)
            return ppo.value_coef * 0.5 * jnp.sum(weight * jnp.maximum((new - target) ** 2, (held - target) ** 2))

        self.policy_gradient, self.value_gradient = jax.jit(jax.grad(policy)), jax.jit(jax.grad(value))
        self.log_prob = jax.jit(lambda actor: log_probs(actor)[1])

    def advantages(self, norm, rho):
        """A_t as the sum over all that follows, each step of it weighted by all factors on the way; and the values."""
        t, ppo = jax.tree.map(np.asarray, self.t), self.system.config.ppo
        mean, deviation = moments(*norm)
        value, next_value = t.value * deviation + mean, t.next_value * deviation + mean
        reward = t.reward[..., : value.shape[-1]]
        delta = reward + ppo.gamma * ~t.terminated[..., None] * next_value - value
        goes_on = ~(t.terminated | t.truncated)
        advantage = np.zeros_like(value)
        for first in range(len(reward)):
            weight = np.ones(goes_on.shape[1])
            for s in range(first, len(reward)):
                advantage[first] += weight[:, None] * delta[s]
                if s + 1 < len(reward):
                    weight = weight * ppo.gamma * ppo.gae_lambda * goes_on[s] * np.minimum(1.0, rho[s + 1])
        return advantage, value

    def update(self, learner: Learner, schedule: Schedule) -> Learner:
        learner, ppo = jax.tree.map(np.asarray, learner), self.system.config.ppo
        t, alive = self.t, np.asarray(self.t.alive)
        nobody = np.ones(alive.shape[:2])
        norm = learner.value_norm
        advantage, value = self.advantages(norm, nobody)
        returns, beta = advantage + value, 0.99999
        batch = returns.mean(), (returns**2).mean(), 1.0
        new_norm = type(norm)(*(beta * old + (1 - beta) * new for old, new in zip(norm, batch, strict=True)))
        mean, deviation = moments(*new_norm)
        factor_of = {name: level.factor for name, level in self.system.actor.sharing.stacks.items()}
        actors = {
            (part, slot): Adam(factor_of.get(part, 1.0) * ppo.lr, ppo.adam_eps, ppo.max_grad_norm)
            for part, slot_of in self.slot_of.items()
            for slot in np.unique(slot_of)
        }
        critics = Adam(ppo.critic_lr, ppo.adam_eps, ppo.max_grad_norm)
        actor, critic, moved = learner.actor, learner.critic, set()
        for s, block in enumerate(np.asarray(schedule.block).tolist()):
            before = sorted(moved - set(block)) if len(block) < N else []
            change = (np.asarray(self.log_prob(actor)) - np.asarray(t.log_prob))[..., 0]
            rho = np.exp(np.where(alive[..., before], change[..., before], 0.0).sum(-1))
            eps = float(schedule.clip_eps[s])
            factor = np.clip(rho, 1 - eps / 2, 1 + eps / 2)[..., None]
            raw, value = self.advantages(norm, rho if schedule.trace[s] else nobody)
            advantage, mine = np.broadcast_to(raw, alive.shape), alive & np.isin(np.arange(N), block)
            advantage = (advantage - advantage[mine].mean()) / advantage[mine].std()
            target = (raw + value - mean) / deviation
            valued = np.ones(target.shape) * (target.shape[-1] == 1 or np.isin(np.arange(N), block))
            valued /= valued.sum()
            for acting, criticised in zip(schedule.train_actor[s], schedule.train_critic[s], strict=True):
                now = actor
                for part, slot_of in self.slot_of.items() if acting else []:
                    for slot in np.unique(slot_of[..., block]):
                        samples = mine & (slot_of == slot)
                        grads = self.policy_gradient(now, advantage, samples / samples.sum(), eps, factor)
                        grads = row_of(jax.device_get(self.stacks(grads)[part]), slot)
                        old = self.stacks(actor)[part]
                        new = with_row(old, slot, actors[part, slot].step(row_of(old, slot), grads))
                        actor = join(actor, {part: new})
                if criticised:
                    gradient = self.value_gradient(critic.shared, target, valued)
                    critic = critic._replace(shared=critics.step(critic.shared, gradient))
            for slot_of in self.slot_of.values():
                moved |= {i for i in range(N) if np.isin(slot_of[..., i], slot_of[..., block]).any()}
        return learner._replace(actor=actor, critic=critic, value_norm=new_norm)


def fast_and_slow(fast) -> pytest.MarkDecorator:
    cases = [(s, v) for s in (*SCHEMES, *KEYED) for v in VARIANTS]
    cases += [(DRAWN, "everyone at once"), (FREE, "everyone at once")]
    marked = [case if case in fast else pytest.param(*case, marks=pytest.mark.slow) for case in cases]
    return pytest.mark.parametrize(("scheme", "variant"), marked)


def make(scheme: str, algo: str = "mappo", scope: str = "auto", schedule=None, **options) -> System:
    # Huge norms are clipped, so the clip is part of what is compared. A large epsilon keeps Adam smooth near zero.
    ppo = {"lr": 0.02, "critic_lr": 0.01, "max_grad_norm": 0.05, "epochs": 2, "huber_delta": float("inf")}
    ppo = {**ppo, "adam_eps": 1e-3, **options}
    name, *rest = scheme.removesuffix(" free").split(" by ")
    env, keyed = make_diary(N), {"freeze_trunk": False} if scheme.endswith(" free") else {}
    for levels in rest:
        env = with_roles(env, **{"n_roles": 4} if "drawn" in levels else {"roles": (0, 1, 1)})  # across trunks
        keyed["levels"] = tuple(levels.replace("drawn", "unit_type").split(","))
    config = small_config(sharing=name, algo=algo, critic={"scope": scope}, ppo=ppo, **keyed)
    system = make_system(config, env, adapting=is_two_phase(config, env))
    return system._replace(schedule=schedule) if schedule else system


@cache
def plain(scheme: str, scope: str) -> Plain:
    system = make(scheme, scope=scope)
    return Plain(system, random_trajectory(system))


@cache
def stepped(scheme: str, variant: str) -> SimpleNamespace:
    """A system, its learner before and after one update, the update itself, and the schedule it followed."""
    system = make(scheme, **VARIANTS[variant])
    before, t, seen = make_learner(system), random_trajectory(system), []

    def watched(key, score):
        chosen = system.schedule(key, score)
        jax.debug.callback(lambda score, *leaves: seen.append((score, Schedule(*leaves))), score, *chosen)
        return chosen

    program = jax.jit(partial(update.run_schedule, system._replace(schedule=watched)))
    after, _ = jax.block_until_ready(program(before, t, rates_of(system.config), KEY))
    jax.effects_barrier()
    score, schedule = seen[0]
    told = {"score": score, "schedule": schedule}
    return SimpleNamespace(system=system, before=before, t=t, program=program, after=after, **told)


every_variant = pytest.mark.parametrize("variant", VARIANTS)


@fast_and_slow(
    [
        ("lorasa", "everyone at once"),
        ("lorasa", "a2po by epochs"),
        ("lorasa", "two of three"),
        (DRAWN, "everyone at once"),
        (FREE, "everyone at once"),
        ("seps_lora by team,agent@0.3 free", "everyone at once"),
        ("lorasa_joint", "two of three"),
        ("mtl", "in pairs"),
        ("ps", "a2po by epochs"),
        ("nps", "two of three"),
    ]
)
def test_an_update_is_a_plain_gradient_step_of_each_slots_own_mean(scheme, variant):
    """Of all samples on a trunk, for the trunk; of an agent's own samples, for what the agent owns."""
    run = stepped(scheme, variant)
    scope = "team" if run.system.critic.sharing.n_agents == 1 else "agent"
    expected = plain(scheme, scope).update(run.before, run.schedule)
    for name in ("actor", "critic"):
        assert_close(getattr(run.after, name), getattr(expected, name), atol=2e-5)
    assert_close(run.after.value_norm, expected.value_norm, atol=0, rtol=1e-3)


def test_agents_are_ordered_by_the_size_of_their_own_advantages():
    """Where they live: the mean of |A| over the rollout."""
    run = stepped("lorasa", "a2po by epochs")
    alive = np.asarray(run.t.alive)
    advantage, _ = plain("lorasa", "team").advantages(run.before.value_norm, np.ones(alive.shape[:2]))
    size = np.abs(np.broadcast_to(advantage, alive.shape))
    assert_close(run.score, [size[..., i][alive[..., i]].mean() for i in range(N)], rtol=1e-4)


@pytest.mark.parametrize("scheme", ["nps", "lorasa", "lorasa_joint"])
def test_agents_outside_the_block_are_untouched_to_the_bit_moments_included(scheme):
    run = stepped(scheme, "two of three")
    part = "agent" if "agent" in run.before.actor_opt else "shared"

    def slots(learner, i):
        return row_of(jax.device_get((split(learner.actor)[part], learner.actor_opt[part])), i)

    assert_same(slots(run.after, 1), slots(run.before, 1))
    for moved in (0, 2):
        assert all(differs(slots(run.after, moved), slots(run.before, moved)))


def test_an_owner_without_samples_keeps_what_it_has_to_the_bit_moments_included():
    run = stepped(DRAWN, "everyone at once")

    def slots(learner, k):
        return row_of(jax.device_get((learner.actor.agents["unit_type"], learner.actor_opt["unit_type"])), k)

    for k in range(3):
        assert any(differs(slots(run.after, k), slots(run.before, k)))
    assert_same(slots(run.after, 3), slots(run.before, 3))


def test_a_gradients_norm_is_the_mean_over_those_who_moved():
    norms, moved = jnp.array([3.0, 0.0, 1.0]), jnp.array([True, False, True])
    assert update._mean_norm(norms, None) == pytest.approx(4 / 3)
    assert update._mean_norm(norms, moved) == 2.0
    assert update._mean_norm(norms, ~moved & moved) == 0.0


def test_the_norm_that_an_update_tells_is_that_of_its_block():
    def one_alone(key, score) -> Schedule:
        always = jnp.ones((1, 1), bool)
        return Schedule(jnp.array([[1]]), jnp.array([0.1]), jnp.zeros(1, bool), always, always)

    system, norms = make("nps", schedule=one_alone, epochs=1, minibatches=1), []

    def watched(*args):
        params, state, norm = system.optimizer.apply(*args)
        jax.debug.callback(lambda norm: norms.append(np.array(norm)), norm)
        return params, state, norm

    spied = system._replace(optimizer=system.optimizer._replace(apply=watched))
    before, t = make_learner(system), random_trajectory(system)
    _, metrics = jax.jit(partial(update.run_schedule, spied))(before, t, rates_of(system.config), KEY)
    jax.effects_barrier()
    (of_actors,) = (norm for norm in norms if norm.shape == (N,))
    assert of_actors[1] > 0 and not of_actors[[0, 2]].any()
    assert metrics["actor_grad_norm"] == pytest.approx(of_actors[1])


def test_a_trunk_moves_with_any_of_its_tenants():
    run = stepped("ps", "two of three")
    assert all(differs(run.after.actor.shared, run.before.actor.shared))


@every_variant
def test_a_frozen_trunk_has_no_optimiser_state_and_never_moves(variant):
    run = stepped("lorasa", variant)
    assert set(run.after.actor_opt) == {"agent"}
    assert_same(run.after.actor.shared, run.before.actor.shared)
    assert set(run.after.actor.agents["agent"]) == set(run.system.config.adapted_layers)


def steps_of(opt_state) -> np.ndarray:
    """How often each slot of an optimiser has stepped."""
    (count,) = {tuple(np.asarray(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(opt_state)
                if "count" in jax.tree_util.keystr(path)}  # fmt: skip
    return np.array(count)


@pytest.mark.parametrize(
    ("scheme", "variant"),
    [
        *(("lorasa", v) for v in ("everyone at once", "a2po by agents", "a2po by epochs", "sequential")),
        *(("ps", v) for v in ("everyone at once", "a2po by epochs")),
        pytest.param("nps", "a2po by epochs", marks=pytest.mark.slow),
    ],
)
def test_every_slot_moves_the_stated_number_of_times(scheme, variant):
    run = stepped(scheme, variant)
    sharing, epochs, alone = run.system.actor.sharing, run.system.config.ppo.epochs, variant != "everyone at once"
    tenants = np.bincount(sharing.groups) if run.system.train == ("shared",) else np.ones(N)
    (part,) = run.after.actor_opt
    np.testing.assert_array_equal(steps_of(run.after.actor_opt[part]), epochs * (tenants if alone else 1))
    # The team's value sees the rollout as often as under MAPPO; a value per agent, once in every stage and pass.
    values = 1 if run.system.critic.sharing.n_agents == 1 else N
    passes = 2 if run.system.config.ppo.two_stage else 1
    np.testing.assert_array_equal(steps_of(run.after.critic_opt), epochs * (values * passes if alone else 1))


@pytest.mark.parametrize("scheme", ["nps", "lorasa"])
def test_looking_again_at_the_block_alone_is_exact_where_no_one_else_uses_what_it_trained(scheme):
    run = stepped(scheme, "two of three")
    block = jnp.array([2])
    actor = run.before.actor._replace(
        **{
            run.system.train[0]: jax.tree.map(
                lambda x: x.at[2].add(0.1), getattr(run.before.actor, run.system.train[0])
            )
        }
    )
    everyone = jax.jit(lambda actor: update._log_prob_now(run.system, actor, run.t, None))
    before = update.Progress(run.before, everyone(run.before.actor), jnp.zeros(N, bool))
    changed = before._replace(learner=run.before._replace(actor=actor))
    after = jax.jit(partial(update._recompute_log_probs, run.system))(changed, run.t, block)
    assert_close(after.log_prob, everyone(actor), atol=1e-6)
    assert_same(after.log_prob[:, :, :2], before.log_prob[:, :, :2])
    assert bool(jnp.any(after.log_prob[:, :, 2] != before.log_prob[:, :, 2]))
    np.testing.assert_array_equal(after.moved, [False, False, True])


def test_all_agents_of_a_trunk_have_moved_when_one_of_them_has():
    run = stepped("ps", "two of three")
    progress = update.Progress(run.before, jnp.zeros_like(run.t.log_prob), jnp.zeros(N, bool))
    after = jax.jit(partial(update._recompute_log_probs, run.system))(progress, run.t, jnp.array([2]))
    np.testing.assert_array_equal(after.moved, [True] * N)
    assert bool(jnp.all(jnp.any(after.log_prob != 0, axis=(0, 1))))


@pytest.mark.parametrize("scheme", ["ps", "nps", "lorasa"])
def test_without_a_learning_rate_nothing_moves(scheme):
    run = stepped(scheme, "everyone at once")
    after, _ = run.program(run.before, run.t, rates_of(run.system.config, 0.0), KEY)
    assert_same((after.actor, after.critic), (run.before.actor, run.before.critic))


# ---------------------------------------------------------------- recurrent systems


@pytest.fixture(scope="module")
def replayed():
    """A recurrent system, and a rollout whose log-probabilities, values and carries are its own."""
    config = small_config(recurrent=True, ppo={"chunk_length": 2})
    system = make_system(config, make_diary(N))
    learner, t = make_learner(system), random_trajectory(system)

    def replay(policy, params, inputs, start):
        carries, out = jax.jit(policy.unroll)(params, start, inputs, t.first)
        return jnp.concatenate([start[None], carries[:-1]])[::2], out

    actor_carry, logits = replay(system.actor, learner.actor, t.obs, t.actor_carry[0])
    critic_carry, value = replay(system.critic, learner.critic, system.critic_view(t.obs, t.state), t.critic_carry[0])
    log_prob = system.dist.log_prob(mask_logits(logits, t.avail), t.action)
    t = t._replace(actor_carry=actor_carry, critic_carry=critic_carry, log_prob=log_prob, value=value[..., 0])
    return system, learner, t


@pytest.mark.parametrize("block", [None, [2, 0]])
def test_the_probabilities_of_now_are_those_of_then_before_anything_moves(replayed, block):
    """Chunk by chunk from the carries that were stored: what corrects those who move later under A2PO."""
    system, learner, t = replayed
    now = update._log_prob_now(system, learner.actor, t, None if block is None else jnp.array(block))
    assert_close(now, t.log_prob if block is None else t.log_prob[:, :, jnp.array(block)])
    forgotten = update._log_prob_now(system, learner.actor, t._replace(actor_carry=0 * t.actor_carry), None)
    assert any(differs(forgotten, t.log_prob))


def losses(system, learner, t):
    """What an update measures when nothing moves."""
    unmoved, info = jax.jit(partial(update.run_schedule, system))(learner, t, rates_of(system.config, 0.0), KEY)
    assert_same(unmoved.actor, learner.actor)
    return info


def test_chunks_with_stored_carries_measure_what_the_whole_rollout_does(replayed):
    system, learner, t = replayed
    in_chunks = losses(system, learner, t)
    whole = system._replace(config=replace(system.config, ppo=replace(system.config.ppo, chunk_length=0)))
    at_once = losses(whole, learner, t._replace(actor_carry=t.actor_carry[:1], critic_carry=t.critic_carry[:1]))
    assert in_chunks.keys() == at_once.keys()
    for name in ("policy_loss", "value_loss", "entropy", "kl", "clip_fraction", "explained_variance"):
        np.testing.assert_allclose(in_chunks[name], at_once[name], rtol=1e-4, atol=1e-6, err_msg=name)
    # Before it has moved, the policy is the one that played, in either layout.
    assert in_chunks["kl"] == pytest.approx(0, abs=1e-6)
    assert in_chunks["clip_fraction"] == 0
    assert in_chunks["entropy"] > 0.1
    # Shorter memory of gradients is not the same gradient.
    assert in_chunks["actor_grad_norm"] != pytest.approx(at_once["actor_grad_norm"].item(), rel=1e-4)


def change_of(system: System, learner: Learner, t: Trajectory, steps: np.ndarray) -> np.ndarray:
    """The mean divergence of each agent over some steps, of a policy without memory."""
    _, logits = system.actor.unroll(learner.actor, t.actor_carry[0], t.obs, t.first, None)
    log_ratio = np.asarray(system.dist.log_prob(system.dist.mask(logits, t.avail), t.action) - t.log_prob)[..., 0]
    kl, mask = (np.exp(log_ratio) - 1 - log_ratio)[steps], np.asarray(t.alive)[steps]
    return np.where(mask, kl, 0).sum((0, 1)), mask.sum((0, 1))


@pytest.mark.parametrize(
    ("algo", "sharing", "steps"),
    [
        ("mappo", "lorasa", np.arange(0, 16, 4)),  # without memory a chunk is one step
        ("mappo", "ps", np.arange(0, 16, 4)),
        ("a2po", "nps", np.arange(16)),
    ],
)
def test_the_divergence_that_is_told_is_that_at_the_end_of_the_update(algo, sharing, steps):
    config = small_config(algo=algo, sharing=sharing, rollout_length=16, ppo={"epochs": 3, "lr": 0.02})
    system = make_system(config, make_diary(), adapting=sharing == "lorasa")
    learner, t = make_learner(system), random_trajectory(system)
    replay = t._replace(log_prob=update._log_prob_now(system, learner.actor, t, None))
    after, info = jax.jit(partial(update.run_schedule, system))(learner, replay, rates_of(config), KEY)
    sums, counts = change_of(system, after, replay, steps)
    assert info["kl"] == pytest.approx(sums.sum() / counts.sum(), rel=1e-3)
    owners = sums / counts if sharing != "ps" else sums.sum() / counts.sum()  # agents, or the one trunk
    assert info["kl_max"] == pytest.approx(np.max(owners), rel=1e-3)
    assert info["kl"] > 1e-4


def test_where_chunks_are_few_the_divergence_is_that_of_the_first_quarter_of_each():
    system = make_system(small_config(rollout_length=16, ppo={"chunk_length": 0}, recurrent=True), make_diary())
    t = random_trajectory(system)
    part = update._a_quarter(system, t)
    assert_same((part.obs, part.actor_carry), (t.obs[:4], t.actor_carry))


# ---------------------------------------------------------------- continuous actions, unequal agents

WIDTHS, ACTIONS = (5, 3), (3, 2)
BODY = EnvSpec("body", 2, 5, 4, 3, 10, team_reward=True, continuous=True, obs_widths=WIDTHS)


def nowhere(spec: EnvSpec) -> Env:
    """What is needed to make a system; nobody plays."""
    return Env(spec, reset=lambda key: None, step=lambda key, state, action: None)


@cache
def padded(ratio: str, algo: str) -> SimpleNamespace:
    """A team of two unequal agents with a network each, one update of it, and what it was made from."""
    ppo = {"ratio": ratio, "lr": 0.02, "epochs": 2, "entropy_coef": 0.1, "max_grad_norm": 0.05, "adam_eps": 1e-3}
    config = small_config(sharing="nps", algo=algo, critic={"scope": "team"}, recurrent=True, ppo=ppo)
    system = make_system(config, nowhere(BODY))
    t = random_trajectory(system)
    t = t._replace(alive=jnp.ones_like(t.alive))
    before = make_learner(system)
    after, info = jax.jit(partial(update.run_schedule, system))(before, t, rates_of(system.config), KEY)
    return SimpleNamespace(config=config, system=system, t=t, before=before, after=after, info=info)


def alone(params, i: int):
    """Agent i's network without the rows and columns that only fill up."""
    own = row_of(params.shared, i)
    cut = {
        "input_norm": lambda leaf: leaf[: WIDTHS[i]],
        "fc1": lambda leaf: leaf[: WIDTHS[i]] if leaf.ndim == 2 else leaf,
        "head": lambda leaf: leaf[..., : ACTIONS[i]],
        "log_std": lambda leaf: leaf[: ACTIONS[i]],
    }
    own = {name: jax.tree.map(cut.get(name, lambda leaf: leaf), layer) for name, layer in own.items()}
    return PolicyParams(jax.tree.map(lambda leaf: leaf[None], own), {})


@pytest.mark.slow
@pytest.mark.parametrize("ratio", ["joint", "per_dim"])
def test_a_padded_team_moves_as_its_members_would_without_padding(ratio):
    run = padded(ratio, "mappo")
    for i in range(2):
        spec = replace(BODY, n_agents=1, obs_dim=WIDTHS[i], n_actions=ACTIONS[i], obs_widths=None)
        system = make_system(run.config, nowhere(spec))

        def mine(x, i=i):
            return x[:, :, i : i + 1]

        t = run.t._replace(
            obs=mine(run.t.obs)[..., : WIDTHS[i]],
            avail=mine(run.t.avail)[..., : ACTIONS[i]],
            alive=mine(run.t.alive),
            action=mine(run.t.action)[..., : ACTIONS[i]],
            log_prob=mine(run.t.log_prob)[..., : ACTIONS[i] if ratio == "per_dim" else 1],
            reward=mine(run.t.reward),
            actor_carry=mine(run.t.actor_carry),
        )
        before = init_optimizer(system, run.before._replace(actor=alone(run.before.actor, i)))
        after, _ = jax.jit(partial(update.run_schedule, system))(before, t, rates_of(system.config), KEY)
        assert_close(alone(run.after.actor, i), after.actor, atol=1e-5)
        assert all(differs(after.actor, before.actor))


@pytest.mark.parametrize("algo", ["mappo", pytest.param("a2po", marks=pytest.mark.slow)])
def test_what_only_fills_up_never_moves(algo):
    run = padded("per_dim", algo)
    old, new = (row_of(learner.actor.shared, 1) for learner in (run.before, run.after))
    assert_same(new["fc1"]["kernel"][WIDTHS[1] :], old["fc1"]["kernel"][WIDTHS[1] :])
    assert_same(new["head"]["kernel"][:, ACTIONS[1] :], old["head"]["kernel"][:, ACTIONS[1] :])
    assert_same(new["log_std"]["kernel"][ACTIONS[1] :], old["log_std"]["kernel"][ACTIONS[1] :])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((run.after, run.info)))


@pytest.mark.parametrize("ratio", [pytest.param("joint", marks=pytest.mark.slow), "per_dim"])
def test_the_preceding_ratio_is_that_of_the_action_or_the_mean_over_its_dimensions(ratio):
    run = padded(ratio, "mappo")
    now = np.asarray(random_trajectory(run.system, 1).log_prob)
    progress = update.Progress(run.before, jnp.asarray(now), jnp.array([True, True]))
    mask = jnp.asarray(random_trajectory(run.system, 1).alive)
    for block, other in ((0, 1), (1, 0)):
        measured = update._preceding_ratio(run.system, progress, run.t, mask, jnp.array([block]))
        ratios = np.exp(now - np.asarray(run.t.log_prob))[:, :, other]
        parts = ACTIONS[other] if ratio == "per_dim" else 1
        expected = np.where(np.asarray(mask)[..., other], ratios[..., :parts].mean(-1), 1.0)
        np.testing.assert_allclose(measured[..., 0], expected, rtol=1e-5)


@pytest.mark.parametrize("algo", ["mappo", "a2po"])
def test_separate_critics_each_learn_their_own_agents_values(algo):
    config = small_config(algo=algo, critic={"scope": "agent", "separate": True}, ppo={"epochs": 2, "adam_eps": 1e-3})
    system = make_system(config, make_diary(N))
    if algo == "a2po":
        system = system._replace(schedule=two_of_three)
    before, t = make_learner(system), random_trajectory(system)
    program = jax.jit(partial(update.run_schedule, system))
    after, _ = program(before, t, rates_of(system.config), KEY)
    untouched = [] if algo == "mappo" else [1]
    for i in range(N):
        pair = [row_of((x.critic.shared, x.critic_opt), i) for x in (after, before)]
        if i in untouched:
            assert_same(*pair)
        else:
            assert all(differs(*pair))
    # What agent 2 was paid concerns its own critic alone (and, by their common units, the scale of all).
    other, _ = program(before, t._replace(value=t.value.at[..., 2].add(0.1)), rates_of(system.config), KEY)
    assert any(differs(row_of(other.critic.shared, 2), row_of(after.critic.shared, 2)))


# ---------------------------------------------------------------- options


@pytest.mark.parametrize("mask_dead", [True, False])
@pytest.mark.parametrize("advantage_norm", ["rollout", "minibatch"])
def test_only_samples_that_count_are_normalised_to_mean_0_and_deviation_1(mask_dead, advantage_norm):
    config = small_config(ppo={"mask_dead": mask_dead, "advantage_norm": advantage_norm, "minibatches": 2})
    system = make_system(config, make_diary(N))
    learner, t = make_learner(system), random_trajectory(system)
    batch = batched(system, t, 7.0 + 3.0 * t.value)

    def show(log_prob, advantage, mask, **others):
        return jnp.sum(log_prob), {"advantage": advantage, "mask": mask}

    system = system._replace(policy_loss=show)
    program = jax.jit(partial(update._update_actor, system, block=None))
    counted = []
    for envs in batches.minibatch_indices(KEY, config.n_envs, 2, N):
        _, info = program(learner, batches.minibatch(batch, envs), clip_eps=jnp.float32(0.2), rates=rates_of(config))
        assert info["mask"].all() != mask_dead
        counted.append(np.asarray(info["advantage"])[np.asarray(info["mask"])])
    for group in [np.concatenate(counted)] if advantage_norm == "rollout" else counted:
        assert (group.mean(), group.std()) == pytest.approx((0, 1), abs=1e-4)
