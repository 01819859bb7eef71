"""An environment of your own: agents on a line that are paid for meeting, and must do so within 20 steps.

Run it with: python examples/own_environment.py. The command line takes it too:
python experiments/run.py --plugins examples/own_environment.py --env rendezvous --total-steps 51200
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lorasa_jax import Config, CriticConfig, Env, EnvSpec, NetworkConfig, TimeStep, make_env, register_env, run

AGENTS, LIMIT, NEAR = 3, 20, 0.3


def show(state: Any, reward: Any) -> TimeStep:
    """Returns what the agents see of a state, and what they are paid."""
    place, time = state
    met = place.max() - place.min() < NEAR
    own = place[:, None]
    return TimeStep(
        obs=jnp.concatenate([own, place[None] - own], axis=1),
        state=place,
        avail=jnp.ones((AGENTS, 3), bool),
        alive=jnp.ones(AGENTS, bool),
        reward=jnp.full(AGENTS, reward),
        terminated=met,
        truncated=~met & (time >= LIMIT),
        won=met,
    )


def reset(key: Any) -> tuple[Any, TimeStep]:
    """Puts the agents somewhere on the line."""
    state = jax.random.uniform(key, (AGENTS,), minval=-1.0), jnp.int32(0)
    return state, show(state, jnp.float32(0))


def step(key: Any, state: Any, action: Any) -> tuple[Any, TimeStep]:
    """Moves them: 0 left, 1 not at all, 2 right."""
    state = jnp.clip(state[0] + 0.1 * (action - 1), -1, 1), state[1] + 1
    return state, show(state, -(state[0].max() - state[0].min()))


def make(config: Config) -> Env:
    """Returns the environment; a function of the configuration, which may name one of several tasks."""
    spec = EnvSpec(
        name="rendezvous",
        n_agents=AGENTS,
        obs_dim=AGENTS + 1,
        state_dim=AGENTS,
        n_actions=3,
        episode_limit=LIMIT,
        team_reward=True,
    )
    return Env(spec, reset, step)


register_env("rendezvous", make)


def main() -> None:
    """Trains a team, and says how often it meets."""
    small = {"hidden": 32, "layers": 1, "layers_after": 0, "recurrent": False}
    networks = {"actor": NetworkConfig(**small), "critic": CriticConfig(**small)}
    config = Config(env="rendezvous", total_steps=51_200, n_envs=64, rollout_length=40, evaluations=1, **networks)
    result = run(config, make_env(config))
    final = result.final["greedy"]
    print(f"return {final['return'][0]:.2f}, of random play {result.random_return[0]:.2f}")
    print(f"they meet in {final['win_rate'][0]:.0%} of the episodes")


if __name__ == "__main__":
    main()
