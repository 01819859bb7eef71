"""Adapters per agent on the actor of a JaxMARL script, without changing the script.

Give the path of a MAPPO script with `ActorRNN` and `ScannedRNN`, in a clone of JaxMARL (with what it imports):

    python examples/jaxmarl_script.py JaxMARL/baselines/MAPPO/mappo_rnn_smax.py

The script plays all agents as one batch of actors, agent by agent: [steps, agents x environments, ...]. `log_probs`
splits that axis and gives each agent its own network. Use it where the script calls `actor_network.apply`, and
`per_owner` around its `actor_tx`; let its minibatches shuffle environments instead of actors. Here, the loss is PPO's
on made-up advantages, by which every agent should prefer another action.
"""

import runpy
import sys

import jax
import jax.numpy as jnp
import optax

from lorasa_jax import deltas

N, ENVS, T, OBS, ACTIONS, HIDDEN = 3, 8, 10, 20, 5, 128


def main(path):
    """Trains adapters, prints how probable each agent's own action is before and after, and returns both."""
    script, keys = runpy.run_path(path), jax.random.split(jax.random.key(0), 3)
    actor = script["ActorRNN"](ACTIONS, config={"FC_DIM_SIZE": HIDDEN, "GRU_HIDDEN_DIM": HIDDEN})
    obs = jax.random.normal(keys[0], (T, N * ENVS, OBS))
    x = obs, jnp.zeros((T, N * ENVS), bool), jnp.ones((T, N * ENVS, ACTIONS))
    hidden = script["ScannedRNN"].initialize_carry(N * ENVS, HIDDEN)
    variables = actor.init(keys[1], hidden, x)

    spec = deltas.make_spec(variables, "*kernel", rank=4)  # dense layers and all gates of the GRU
    print(spec, end="\n\n")
    team = deltas.init(keys[2], spec, n=N)

    def by_agent(leaf):  # [steps, actors, ...] to [agents, steps, environments, ...]
        return jnp.moveaxis(leaf.reshape(T, N, ENVS, *leaf.shape[2:]), 1, 0)

    seen, start = jax.tree.map(by_agent, x), hidden.reshape(N, ENVS, HIDDEN)

    @jax.jit
    def log_probs(team):
        """Returns those of all actions, [agents, steps, environments, actions]; the script's parameters are frozen."""

        def one(own, hidden, x):
            return jax.nn.log_softmax(deltas.factored(actor, own, frozen=True)(variables, hidden, x)[1].logits)

        return jax.vmap(one)(team, start, seen)

    before = log_probs(team)
    advantages = jnp.eye(ACTIONS)[:N, None, None] - 1 / ACTIONS  # of every action, for every agent

    def loss(team):
        ratio = jnp.exp(log_probs(team) - before)
        surrogate = jnp.minimum(ratio * advantages, jnp.clip(ratio, 0.8, 1.2) * advantages)
        return -(jnp.exp(before) * surrogate).sum(-1).mean((1, 2)).sum()

    optimizer = deltas.per_owner(optax.chain(optax.clip_by_global_norm(0.5), optax.adam(2e-3)))
    state, update = optimizer.init(team), jax.jit(optimizer.update)
    for _ in range(10):
        updates, state = update(jax.grad(loss)(team), state, team)
        team = optax.apply_updates(team, updates)

    after = log_probs(team)
    full = deltas.merge(variables, team[0])  # plain parameters for the script's own network, to play or to save
    _, policy = actor.apply(full, start[0], jax.tree.map(lambda leaf: leaf[0], seen))
    assert jnp.allclose(jax.nn.log_softmax(policy.logits), after[0], atol=1e-4)
    shared, own = (jnp.exp(p)[jnp.arange(N), ..., jnp.arange(N)].mean((1, 2)) for p in (before, after))
    for agent in range(N):
        print(f"agent {agent}: probability of its action {shared[agent]:.2f} shared, {own[agent]:.2f} with its deltas")
    return shared, own


if __name__ == "__main__":
    main(sys.argv[1])
