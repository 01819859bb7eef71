"""Adapters on a network of your own: convolution and attention, in a toy game in which every agent has another answer.

The network is an unchanged Flax module. `run` trains one for all agents first, then freezes it, and gives every agent
low-rank adapters on the layers that `placement` names. Run it with

    python examples/own_network.py
"""

import flax.linen as nn
import jax.numpy as jnp

from lorasa_jax import Config, CriticConfig, NetworkConfig, PPOConfig, count_params, make_env, run, with_networks


class ConvAttention(nn.Module):
    """Reads an observation as a sequence; `agent` is the index of the agent whose network it is."""

    n_actions: int

    @nn.compact
    def __call__(self, obs, agent):
        x = nn.relu(nn.Conv(8, (2,), name="conv")(obs[..., None]))
        x = x + nn.MultiHeadDotProductAttention(2, name="attention")(x, x)
        who = nn.Embed(8, 4, name="who")(agent)
        x = x.reshape(*obs.shape[:-1], -1)
        x = jnp.concatenate([x, jnp.broadcast_to(who, (*x.shape[:-1], 4))], axis=-1)
        return nn.Dense(self.n_actions, name="head")(x)


def main():
    """Trains the team, prints how it plays and what its adapters take, and returns the greedy return."""
    small = {"hidden": 16, "layers": 1, "recurrent": False}
    config = Config(
        env="toy",
        task="own_number",
        n_agents=3,
        n_envs=16,
        rollout_length=16,
        total_steps=16 * 16 * 24,
        switch_step=16 * 16 * 12,
        evaluations=4,
        rank=1,
        actor=NetworkConfig(recurrent=False),
        critic=CriticConfig(**small),
        ppo=PPOConfig(lr=1e-2),
    )
    env = make_env(config)
    config = with_networks(config, ConvAttention(env.spec.n_actions), placement=("attention/*", "head"))
    result = run(config, env)
    size, greedy = count_params(result.trainer), float(result.final["greedy"]["return"][0])
    print(f"greedy return {greedy:.2f} (random play {result.random_return[0]:.2f})")
    print(f"{size['shared']} shared parameters, {size['per_agent']} in the adapters of each agent:")
    for layer, parts in result.states.learner.actor.agents["agent"].items():
        print(f"  {layer:16}", {name: leaf.shape[2:] for name, leaf in parts.items()})
    return greedy


if __name__ == "__main__":
    main()
