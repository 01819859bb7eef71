"""Deltas in a training loop of one's own: one owner per task, on a plain Flax network.

Three tasks ask for different functions of the same input. A shared network is trained on all of them, and can only
learn their mean. Then it is frozen, and every task trains low-rank deltas on it. Run it with

    python examples/own_loop.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from lorasa_jax import deltas

N_TASKS, N_SAMPLES, STEPS = 3, 256, 500


class Net(nn.Module):
    """Any network: it knows nothing of deltas."""

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(32)(x))
        x = nn.tanh(nn.Dense(32)(x))
        return nn.Dense(1)(x)[..., 0]


def make_tasks(key):
    """Returns inputs [tasks, samples, 2] and targets [tasks, samples]."""
    x = jax.random.uniform(key, (N_TASKS, N_SAMPLES, 2), minval=-2, maxval=2)
    phase = jnp.arange(N_TASKS)[:, None]
    return x, jnp.sin(x[..., 0] + phase) * jnp.cos(x[..., 1] - phase)


def train(params, optimizer, loss):
    """Returns the parameters after all steps of a loss that returns one number per owner, or one in all."""

    def step(carry, _):
        params, state = carry
        grads = jax.grad(lambda params: loss(params).sum())(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), length=STEPS)[0][0])
    return run(params)


def main():
    """Trains the shared network, then the deltas, prints both losses of each task, and returns them."""
    net, (x, y) = Net(), make_tasks(jax.random.key(0))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))

    def shared_loss(variables):
        return ((net.apply(variables, x) - y) ** 2).mean(axis=1)  # [tasks]

    variables = net.init(jax.random.key(1), x)
    variables = train(variables, optimizer, shared_loss)

    spec = deltas.make_spec(variables, ["*kernel", "*Dense_2/bias"], rank=4)
    print(spec, end="\n\n")
    team = deltas.init(jax.random.key(2), spec, n=N_TASKS)

    def owner_loss(own, x, y):
        return ((deltas.factored(net, own, frozen=True)(variables, x) - y) ** 2).mean()

    def team_loss(team):
        return jax.vmap(owner_loss)(team, x, y)  # [tasks]

    team = train(team, deltas.per_owner(optimizer), team_loss)

    shared, own = shared_loss(variables), team_loss(team)
    for task in range(N_TASKS):
        print(f"task {task}: loss {shared[task]:.4f} shared, {own[task]:.4f} with its deltas")
    return shared, own


if __name__ == "__main__":
    main()
