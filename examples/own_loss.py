"""A policy loss and an optimiser of your own: PPO with a penalty in the place of the clip, and AdamW.

A loss takes the arguments of `lorasa_jax.core.losses.policy_loss` by name. An optimiser is a function of the learning
rate that returns an optax transformation. Run it with: python examples/own_loss.py
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax

from lorasa_jax import Config, CriticConfig, NetworkConfig, PPOConfig, make_env, run
from lorasa_jax.core.losses import approximate_kl, masked_mean

NETWORK = {"hidden": 32, "layers": 1, "layers_after": 0, "recurrent": False}
PENALTY = 1.0


def penalised(
    log_prob: Any,  # [L, B, M, R]: of the actions that were taken, in R parts
    old_log_prob: Any,
    parts: Any,  # [L, B, M, R]: those that exist
    entropy: Any,  # [L, B, M]
    advantage: Any,
    mask: Any,  # [L, B, M]: samples that count
    pool: Any,  # [M]: how many samples each member's mean is over
    entropy_coef: float,
    **rest: Any,
) -> tuple[Any, dict[str, Any]]:
    """Returns the surrogate with a penalty on KL(old || new), to be minimised (Schulman et al. 2017, section 4)."""
    ratio = jnp.exp(jnp.sum(jnp.where(parts, log_prob - old_log_prob, 0.0), axis=-1))
    kl = approximate_kl(log_prob, old_log_prob, parts)
    gain = ratio * advantage - PENALTY * kl + entropy_coef * entropy
    per_agent = jnp.sum(jnp.where(mask, gain, 0.0), axis=(0, 1))
    return -jnp.sum(per_agent / pool), {"penalty": masked_mean(kl, mask)}


def optimizer(rate: Any) -> optax.GradientTransformation:
    """Returns AdamW behind a norm clip; every trunk and every agent's adapter gets one of its own."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=1e-4))


def main() -> None:
    """Trains a team with both."""
    config = Config(
        env="toy",
        task="specialisation",
        sharing="lorasa",
        total_steps=20_480,
        switch_step=0,
        n_envs=32,
        rollout_length=16,
        evaluations=4,
        actor=NetworkConfig(**NETWORK),
        critic=CriticConfig(**NETWORK),
        ppo=PPOConfig(lr=3e-3, critic_lr=3e-3, chunk_length=0),
    )
    penalties: list[float] = []
    result = run(
        config,
        make_env(config),
        [lambda report, state: penalties.append(float(report.metrics["penalty"][0]))],
        policy_loss=penalised,
        optimizer=optimizer,
    )
    print(f"KL of the first iteration {penalties[0]:.4f}, of the last {penalties[-1]:.4f}")
    print(f"return {result.final['greedy']['return'][0]:.2f}, of random play {result.random_return[0]:.2f}")


if __name__ == "__main__":
    main()
