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
    differs,
    every_scheme,
    make_diary,
    random_params,
    random_trajectory,
    row_of,
    small_config,
)

from lorasa_jax import update
from lorasa_jax.distributions import mask_logits
from lorasa_jax.system import System, init_optimizer, make_system
from lorasa_jax.types import Learner, PolicyParams, Schedule, Trajectory

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


def each_alone(n: int) -> Schedule:
    """One agent per stage, not all of them, and not in their order."""
    return Schedule(block=jnp.array([[n - 1], [0]]), clip_eps=jnp.array([0.1, 0.3]))


# ---------------------------------------------------------------- where the data goes


def batched(system: System, t: Trajectory, advantage: jax.Array) -> update.Batch:
    return jax.jit(partial(update._batch, system))(t, advantage, t.value)


def coded(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape)


@pytest.mark.parametrize(("length", "n_envs", "chunk", "minibatches"), [(6, 4, 3, 2), (6, 4, 1, 4), (4, 3, 4, 1)])
def test_minibatches_part_each_agents_environments_and_never_time(length, n_envs, chunk, minibatches):
    system = make_system(
        small_config(
            recurrent=True,
            n_envs=n_envs,
            rollout_length=length,
            ppo={"chunk_length": chunk, "minibatches": minibatches},
        ),
        make_diary(N),
    )
    t = random_trajectory(system)
    x = coded(length, n_envs, N)
    batch = batched(system, t._replace(action=jnp.asarray(x)), t.value)
    dealt = update._deal(KEY, n_envs, minibatches, N) if minibatches > 1 else [None]
    met = []
    for envs in dealt:
        actions = np.asarray(update._minibatch(batch, envs).action)
        assert actions.shape == (chunk, length // chunk * n_envs // minibatches, N)
        for m in range(N):
            columns = actions[:, :, m].T  # each a stretch of one agent's time in one environment
            starts, e, agents = np.unravel_index(columns[:, 0], x.shape)
            assert set(agents) == {m}
            # Of any `minibatches` neighbours one, with all its chunks.
            assert sorted(e // minibatches) == sorted([*range(n_envs // minibatches)] * (length // chunk))
            met += [(m, *pair) for pair in zip(starts, e, strict=True)]
            for column, start, env in zip(columns, starts, e, strict=True):
                np.testing.assert_array_equal(column, x[start : start + chunk, env, m])
    assert sorted(met) == [(m, s, e) for m in range(N) for s in range(0, length, chunk) for e in range(n_envs)]


def test_every_agents_environments_are_dealt_anew_and_evenly():
    deals = np.asarray(jax.vmap(lambda key: update._deal(key, 4, 2, N))(jax.random.split(KEY, 2000)))
    in_first = (deals[:, 0, :, :, None] == np.arange(4)).any(axis=1)  # [deal, agent, environment]
    np.testing.assert_allclose(in_first.mean(axis=0), 0.5, atol=0.05)
    flat = in_first[..., [0, 2]].reshape(2000, -1)  # one environment of each pair; the other is in the other minibatch
    np.testing.assert_allclose(np.corrcoef(flat.T), np.eye(2 * N), atol=0.1)


@pytest.mark.parametrize(("scope", "reset_on_death"), [("team", False), ("agent", True)])
def test_every_chunk_meets_the_carries_it_began_in(scope, reset_on_death):
    ppo = {"minibatches": 2, "chunk_length": 4}
    config = small_config(recurrent=True, ppo=ppo, critic={"scope": scope}, reset_on_death=reset_on_death)
    system = make_system(config, make_diary(N))
    t = random_trajectory(system)
    by_chunk = coded(2, config.n_envs).astype(np.float32)
    by_step = np.repeat(by_chunk, 4, axis=0)
    t = t._replace(
        obs=jnp.broadcast_to(by_step[..., None, None], t.obs.shape),
        state=jnp.broadcast_to(by_step[..., None], t.state.shape),
        actor_carry=jnp.broadcast_to(by_chunk[..., None, None], t.actor_carry.shape),
        critic_carry=jnp.broadcast_to(by_chunk[..., None, None], t.critic_carry.shape),
        first=jnp.asarray(by_step % 3 == 0),
    )
    batch = batched(system, t, t.value)
    batch = update._minibatch(batch, update._deal(KEY, config.n_envs, 2, N)[1])
    for first, inputs in ((batch.actor_first, batch.obs), (batch.critic_first, batch.view)):
        opens = inputs[..., 0] % 3 == 0
        np.testing.assert_array_equal(first, opens | ~batch.mask if reset_on_death else opens)
    for inputs, carry in ((batch.obs, batch.actor_carry), (batch.view, batch.critic_carry)):
        np.testing.assert_array_equal(inputs[..., 0], np.broadcast_to(carry[None, ..., 0], inputs.shape[:-1]))


def test_a_pass_meets_every_agent_of_every_environment_once(monkeypatch):
    config = small_config(ppo={"minibatches": 4})
    system = make_system(config, make_diary(N))
    t = random_trajectory(system)
    number = jnp.broadcast_to(coded(config.n_envs, N).astype(np.float32), t.log_prob.shape)
    batch = batched(system, t._replace(log_prob=number), t.value)

    def count(system, learner, part, row, lr_scale):
        met = jax.nn.one_hot(part.log_prob.astype(int), config.n_envs * N).sum(axis=(0, 1, 2))
        return learner._replace(value_norm=learner.value_norm + met), {}

    monkeypatch.setattr(update, "run_minibatch", count)
    nothing = PolicyParams({}, {})
    learner = Learner(nothing, nothing, {}, {}, jnp.zeros(config.n_envs * N))
    row = jax.tree.map(lambda leaf: leaf[0], system.schedule)
    learner, _ = update.run_stage(system, learner, batch, row, jnp.ones(()), KEY)
    np.testing.assert_array_equal(learner.value_norm, config.rollout_length)


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
    """The update of a feed-forward system in plain words: slot by slot, on the whole rollout at once."""

    def __init__(self, system: System, t: Trajectory):
        ppo = system.config.ppo
        self.system, self.t, self.part = system, t, system.train[0]  # "shared" or "agents"
        self.slot_of = np.array(system.actor.sharing.groups) if self.part == "shared" else np.arange(N)

        def policy(trained, actor, advantage, weight, clip_eps):
            params = actor._replace(**{self.part: trained})
            _, logits = system.actor.unroll(params, t.actor_carry[0], t.obs, t.first)
            log_p = jax.nn.log_softmax(mask_logits(logits, t.avail))
            log_prob = jnp.take_along_axis(log_p, t.action[..., None], -1)[..., 0]
            entropy = -jnp.where(t.avail, jnp.exp(log_p) * log_p, 0.0).sum(-1)
            ratio = jnp.exp(log_prob - t.log_prob)
            surrogate = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip_eps, 1 + clip_eps) * advantage)
            return -jnp.sum(weight * (surrogate + ppo.entropy_coef * entropy))

        def value(shared, target):
            view = system.critic_view(t.obs, t.state)
            _, new = system.critic.unroll(PolicyParams(shared, {}), t.critic_carry[0], view, t.first)
            new = new[..., 0]
            held = jnp.clip(new, t.value - ppo.value_clip, t.value + ppo.value_clip)
            return ppo.value_coef * 0.5 * jnp.maximum((new - target) ** 2, (held - target) ** 2).mean()

        self.policy_gradient, self.value_gradient = jax.jit(jax.grad(policy)), jax.jit(jax.grad(value))

    def advantages(self, norm):
        """Normalised advantages, the critic's targets, and the units these are in."""
        t, ppo = jax.tree.map(np.asarray, self.t), self.system.config.ppo
        mean, deviation = moments(*norm)
        value, next_value = t.value * deviation + mean, t.next_value * deviation + mean
        reward = t.reward[..., : value.shape[-1]]
        advantage, later = np.zeros_like(value), 0.0
        for s in reversed(range(len(reward))):
            goes_on, counts = (~(t.terminated | t.truncated)[s])[:, None], (~t.terminated[s])[:, None]
            delta = reward[s] + ppo.gamma * counts * next_value[s] - value[s]
            advantage[s] = later = delta + ppo.gamma * ppo.gae_lambda * goes_on * later
        returns, beta = advantage + value, 0.99999
        batch = returns.mean(), (returns**2).mean(), 1.0
        norm = type(norm)(*(beta * old + (1 - beta) * new for old, new in zip(norm, batch, strict=True)))
        mean, deviation = moments(*norm)
        advantage = np.broadcast_to(advantage, t.alive.shape)
        advantage = (advantage - advantage[t.alive].mean()) / advantage[t.alive].std()
        return advantage, (returns - mean) / deviation, norm

    def update(self, learner: Learner, schedule: Schedule) -> Learner:
        learner, ppo, part, slot_of = jax.tree.map(np.asarray, learner), self.system.config.ppo, self.part, self.slot_of
        advantage, target, norm = self.advantages(learner.value_norm)
        actors = [Adam(ppo.lr, ppo.adam_eps, ppo.max_grad_norm) for _ in range(slot_of.max() + 1)]
        critics = Adam(ppo.critic_lr, ppo.adam_eps, ppo.max_grad_norm)
        actor, critic, alive = learner.actor, learner.critic, np.asarray(self.t.alive)
        for block, clip_eps in zip(np.asarray(schedule.block), schedule.clip_eps, strict=True):
            before = actor
            for slot in sorted(set(slot_of[block])):
                mine = alive & np.isin(np.arange(N), [i for i in block if slot_of[i] == slot])
                grads = self.policy_gradient(getattr(before, part), before, advantage, mine / mine.sum(), clip_eps)
                new = actors[slot].step(row_of(getattr(actor, part), slot), row_of(jax.device_get(grads), slot))
                actor = actor._replace(**{part: with_row(getattr(actor, part), slot, new)})
            critic = critic._replace(shared=critics.step(critic.shared, self.value_gradient(critic.shared, target)))
        return learner._replace(actor=actor, critic=critic, value_norm=norm)


@cache
def base(scheme: str) -> SimpleNamespace:
    # Huge norms are clipped, so the clip is part of what is compared.
    ppo = {"lr": 0.02, "critic_lr": 0.01, "max_grad_norm": 0.05, "epochs": 2, "huber_delta": float("inf")}
    system = make_system(small_config(sharing=scheme, ppo=ppo), make_diary(N), adapting=scheme == "lorasa")
    t = random_trajectory(system)
    return SimpleNamespace(system=system, before=make_learner(system), t=t, plain=Plain(system, t))


@cache
def stepped(scheme: str, alone: bool) -> SimpleNamespace:
    """A system, its learner before and after one update, and the update itself."""
    b = base(scheme)
    system = b.system._replace(schedule=each_alone(N)) if alone else b.system
    program = jax.jit(partial(update.run_schedule, system))
    after, _ = program(b.before, b.t, jnp.ones(()), KEY)
    return SimpleNamespace(**{**vars(b), "system": system}, program=program, after=after)


@pytest.mark.parametrize("alone", [False, True], ids=["everyone at once", "one agent per stage"])
@every_scheme
def test_an_update_is_a_plain_gradient_step_of_each_slots_own_mean(scheme, alone):
    """Of all samples on a trunk, for the trunk; of an agent's own samples, for what the agent owns."""
    run = stepped(scheme, alone)
    expected = run.plain.update(run.before, run.system.schedule)
    for name in ("actor", "critic"):
        assert_close(getattr(run.after, name), getattr(expected, name), atol=2e-4)
    assert_close(run.after.value_norm, expected.value_norm, atol=0, rtol=1e-3)


@pytest.mark.parametrize("scheme", ["nps", "lorasa"])
def test_agents_outside_the_block_are_untouched_to_the_bit_moments_included(scheme):
    run = stepped(scheme, True)
    part = run.system.train[0]

    def slots(learner, i):
        return row_of(jax.device_get((getattr(learner.actor, part), learner.actor_opt[part])), i)

    assert_same(slots(run.after, 1), slots(run.before, 1))
    for moved in (0, 2):
        assert all(differs(slots(run.after, moved), slots(run.before, moved)))


@pytest.mark.parametrize("scheme", ["ps", "ps_id"])
def test_a_trunk_moves_with_any_of_its_tenants(scheme):
    run = stepped(scheme, True)
    assert all(differs(run.after.actor.shared, run.before.actor.shared))


@pytest.mark.parametrize("alone", [False, True])
def test_a_frozen_trunk_has_no_optimiser_state_and_never_moves(alone):
    run = stepped("lorasa", alone)
    assert set(run.after.actor_opt) == {"agents"}
    assert_same(run.after.actor.shared, run.before.actor.shared)
    assert set(run.after.actor.agents) == set(run.system.config.adapted_layers)


@every_scheme
def test_without_a_learning_rate_nothing_moves(scheme):
    run = stepped(scheme, False)
    after, _ = run.program(run.before, run.t, jnp.zeros(()), KEY)
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


def losses(system, learner, t):
    """What an update measures when nothing moves."""
    unmoved, info = jax.jit(partial(update.run_schedule, system))(learner, t, jnp.zeros(()), KEY)
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


# ---------------------------------------------------------------- options


@pytest.mark.parametrize("mask_dead", [True, False])
@pytest.mark.parametrize("advantage_norm", ["rollout", "minibatch"])
def test_only_samples_that_count_are_normalised_to_mean_0_and_deviation_1(monkeypatch, mask_dead, advantage_norm):
    config = small_config(ppo={"mask_dead": mask_dead, "advantage_norm": advantage_norm, "minibatches": 2})
    system = make_system(config, make_diary(N))
    learner, t = make_learner(system), random_trajectory(system)
    batch = batched(system, t, 7.0 + 3.0 * t.value)

    def show(log_prob, old_log_prob, entropy, advantage, mask, pool, clip_eps, entropy_coef):
        return jnp.sum(log_prob), {"advantage": advantage, "mask": mask}

    monkeypatch.setattr(update, "policy_loss", show)
    program = jax.jit(partial(update._update_actor, system, block=None))
    counted = []
    for envs in update._deal(KEY, config.n_envs, 2, N):
        _, info = program(learner, update._minibatch(batch, envs), clip_eps=jnp.float32(0.2), lr_scale=jnp.ones(()))
        assert info["mask"].all() != mask_dead
        counted.append(np.asarray(info["advantage"])[np.asarray(info["mask"])])
    for group in [np.concatenate(counted)] if advantage_norm == "rollout" else counted:
        assert (group.mean(), group.std()) == pytest.approx((0, 1), abs=1e-4)
