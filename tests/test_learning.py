"""Every scheme lands on its exact ceiling, and every probe of a learner is solved."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, groups_for

from lorasa_jax.cli.flags import RunConfig, parse
from lorasa_jax.config import Config, CriticConfig, NetworkConfig, PPOConfig
from lorasa_jax.core.types import PolicyParams
from lorasa_jax.envs import make_env
from lorasa_jax.envs.toy import ceilings
from lorasa_jax.learning.system import is_two_phase
from lorasa_jax.learning.trainer import make_trainer, train
from lorasa_jax.running.loop import run
from lorasa_jax.sharing.schemes import SCHEMES

GAMMA = 0.9
GAMES = {"own_number": 3, "specialisation": 2, "synchronisation": 2}
NETS = {"feed-forward": False, "recurrent": True}

ALGOS = {
    "mappo": {},
    "a2po by agents": {"algo": "a2po", "ppo": {"loop_order": "agent"}},
    "a2po by epochs": {"algo": "a2po", "ppo": {"loop_order": "epoch"}},
}

# Every pair of choices is met in the slow suite; here each choice is met once. A whole run below has ids and adapters.
FEW = [
    ("lorasa", "a2po by agents", "own_number", "feed-forward"),
    ("lorasa_joint", "mappo", "own_number", "feed-forward"),
]
ALL = [
    case if case in FEW else pytest.param(*case, marks=pytest.mark.slow)
    for case in product(SCHEMES, ALGOS, GAMES, NETS)
]


def make_config(
    task: str, scheme: str = "ps", *, recurrent: bool = False, ppo: Mapping | None = None, **changes
) -> Config:
    network = {"hidden": 16, "layers": 1, "layers_after": 0, "recurrent": recurrent}
    critic = {**network, "scope": "agent" if task == "own_number" else "auto"}
    defaults = {"lr": 0.01, "critic_lr": 0.01, "epochs": 4, "gamma": GAMMA, "chunk_length": 6}
    size = {"n_envs": 32, "rollout_length": 12, "total_steps": 80 * 384, "evaluations": 1, "eval_episodes": 256}
    return Config(
        env="toy",
        task=task,
        sharing=scheme,
        actor=NetworkConfig(**network),
        critic=CriticConfig(**critic),
        ppo=PPOConfig(**defaults | dict(ppo or {})),
        **{**size, **changes},
    )


def trained(config: Config):
    """The trainer and its last state; two-phase schemes give their adapters the whole run."""
    env = make_env(config)
    state, _ = jax.jit(train(config, env))(KEY)
    return make_trainer(config, env, adapting=is_two_phase(config, env)), state


def returns(trainer, state) -> tuple[float, float]:
    """Greedy and sampled."""
    evaluate, weights = jax.jit(trainer.evaluate), trainer.weights(state)
    return tuple(evaluate(weights, state.key, state.iteration, greedy)["return"].item() for greedy in (True, False))


@pytest.mark.parametrize(("scheme", "algo", "task", "network"), ALL)
def test_every_scheme_lands_on_its_ceiling(scheme, algo, task, network):
    n = GAMES[task]
    changes = {"recurrent": NETS[network], "n_agents": n, "groups": groups_for(scheme, tuple(range(n)))}
    config = make_config(task, scheme, switch_step=0, **changes, **ALGOS[algo])
    known = ceilings(task, n)
    reached = (known.optimum,) * 2 if scheme != "ps" else (known.shared_greedy, known.shared_sampled)
    greedy, sampled = returns(*trained(config))
    assert greedy == pytest.approx(reached[0], abs=1e-4)
    assert sampled == pytest.approx(reached[1], abs=0.06)


@pytest.mark.slow
def test_a_whole_run_of_adapters_from_the_start_specialises():
    config = make_config("specialisation", "lorasa", switch_step=0)
    result, known = run(config, make_env(config)), ceilings("specialisation")
    for name, metrics in result.final.items():
        assert metrics["return"] == pytest.approx(known.optimum, abs=1e-4 if name == "greedy" else 0.06)
    assert result.final["greedy"]["win_rate"] == pytest.approx(1.0)
    assert result.switch_steps == [0]
    assert result.random_return == pytest.approx(known.chance, abs=0.1)


@pytest.mark.slow
def test_five_roles_take_longer_with_one_policy_than_with_separate_ones_or_adapters():
    words = "--env particles --task spread_10x5 --total-steps 50000 --evaluations 1 --sharing"
    reached = {}
    for scheme in ("ps_id", "nps", "lorasa_joint"):
        config = parse(RunConfig, [*words.split(), scheme])
        reached[scheme] = float(run(config, make_env(config)).final["greedy"]["return"][0])
    assert reached["ps_id"] > -15  # above every policy that sees no ids
    assert min(reached["nps"], reached["lorasa_joint"]) > reached["ps_id"] + 0.5, reached


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "groups", "task", "reached"),
    [
        ("seps", None, "two_kinds", "optimum"),  # the groups are found
        ("seps", (0, 0, 0, 0), "two_kinds", "shared_greedy"),
        ("seps", (0, 0), "specialisation", "shared_greedy"),
        ("seps_lora", (0, 0), "specialisation", "optimum"),  # adapters set apart whom the trunk does not
    ],
)
def test_clusters_earn_what_their_members_can_together(scheme, groups, task, reached):
    config = make_config(task, scheme, groups=groups, n_agents=4 if task == "two_kinds" else 2, switch_step=0)
    result = run(config, make_env(config))
    if groups is None:
        assert result.trainer.system.config.groups == (0, 1, 0, 1)
    assert result.final["greedy"]["return"] == pytest.approx(getattr(ceilings(task), reached), abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["probe_policy", "probe_mask", "probe_death"])
def test_a_shared_policy_solves_the_probe(task):
    greedy, sampled = returns(*trained(make_config(task)))
    assert (greedy, sampled) == pytest.approx((ceilings(task).optimum,) * 2, abs=0.06)


@pytest.mark.slow
@pytest.mark.parametrize(("recurrent", "reached"), [(True, 1.0), (False, 0.5)])
def test_only_memory_recalls_the_cue(recurrent, reached):
    greedy, _ = returns(*trained(make_config("probe_memory", recurrent=recurrent)))
    assert greedy == pytest.approx(reached, abs=0.08)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "limit", "values"),
    [
        ("probe_value", "bootstrap", [1.0]),
        ("probe_discount", "bootstrap", [GAMMA, 1.0]),
        ("probe_clock", "bootstrap", [1 / (1 - GAMMA)] * 5),
        ("probe_clock", "terminal", [(1 - GAMMA**k) / (1 - GAMMA) for k in (5, 4, 3, 2, 1)]),
    ],
)
@pytest.mark.parametrize("network", NETS)
def test_values_are_those_of_the_states(task, limit, values, network):
    config = make_config(task, recurrent=NETS[network], time_limit=limit, ppo={"critic_lr": 0.005, "lr": 1e-4},
                         total_steps=300 * 384)  # fmt: skip
    trainer, state = trained(config)
    system, env = trainer.system, trainer.system.env
    env_state, seen = env.reset(KEY)
    shown = []
    for _ in values:
        shown.append(system.critic_view(seen.obs, seen.state))
        env_state, seen = env.step(KEY, env_state, jnp.zeros(env.spec.n_agents, int))
    first = jnp.arange(len(values))[:, None] == 0
    critic: PolicyParams = state.learner.critic
    _, value = system.critic.unroll(critic, system.critic.initial_carry(1), jnp.stack(shown)[:, None], first)
    value = system.value_norm.denormalise(state.learner.value_norm, value[:, 0, 0, 0])
    np.testing.assert_allclose(value, values, rtol=0.05)


@pytest.mark.parametrize(
    ("task", "levels", "algo", "reached"),
    [
        pytest.param("drawn_kinds", "unit_type", "mappo", 1.0, marks=pytest.mark.slow),
        pytest.param("drawn_kinds", "team unit_type agent@0.3", "mappo", 1.0, marks=pytest.mark.slow),
        pytest.param("drawn_kinds", "agent", "mappo", 0.5, marks=pytest.mark.slow),
        pytest.param("two_kinds", "unit_type", "mappo", 1.0, marks=pytest.mark.slow),
        pytest.param("two_kinds", "unit_type", "a2po by epochs", 1.0, marks=pytest.mark.slow),
    ],
)
def test_adapters_of_roles_do_what_no_agents_own_can(task, levels, algo, reached):
    config = make_config(task, "lorasa", switch_step=0, levels=(levels,), rank=4, **ALGOS[algo])
    greedy, sampled = returns(*trained(config))
    assert (greedy, sampled) == pytest.approx((reached,) * 2, abs=0.06)
