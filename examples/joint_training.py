"""Trunk and adapters trained together, beside the two phases of LoRASA and beside a shared policy that knows who it is.

Six agents see nothing and must each name a number of their own. Four runs with one budget:

================================  =============================================================
`ps_id`                           one policy for all, which sees a one-hot id
`lorasa`                          the trunk first; then it is frozen, and adapters are trained
`lorasa`, `freeze_trunk=False`    the same, but the trunk goes on learning beside the adapters
`lorasa_joint`                    both from the first step
================================  =============================================================

Run it with

    python examples/joint_training.py

On the command line these are `--sharing lorasa_joint`, and `--sharing lorasa --freeze-trunk False`.
"""

import jax.numpy as jnp

from lorasa_jax import Config, CriticConfig, NetworkConfig, PPOConfig, make_env, run

SCHEMES = {
    "ps_id": {"sharing": "ps_id"},
    "lorasa": {"sharing": "lorasa"},
    "lorasa, free trunk": {"sharing": "lorasa", "freeze_trunk": False},
    "lorasa_joint": {"sharing": "lorasa_joint"},
}
ITERATION = 16 * 16


def make_config(**scheme):
    """Returns the configuration of one run: 40 iterations, of which two-phase schemes give 20 to each phase."""
    small = {"hidden": 16, "layers": 1, "layers_after": 0, "recurrent": False}
    switch = {"switch_step": 20 * ITERATION} if scheme["sharing"] == "lorasa" else {}
    return Config(
        env="toy",
        task="own_number",
        n_agents=6,
        n_envs=16,
        rollout_length=16,
        total_steps=40 * ITERATION,
        evaluations=40,
        rank=2,
        actor=NetworkConfig(**small),
        critic=CriticConfig(**small, scope="agent"),
        ppo=PPOConfig(lr=1e-3, critic_lr=1e-2),
        **scheme,
        **switch,
    )


def main():
    """Trains all four, prints a table, and returns the last greedy return of each."""
    last = {}
    print(f"{'scheme':20} {'mean return':>12} {'at the end':>11} {'trunk moved in the second half':>31}")
    for name, scheme in SCHEMES.items():
        config, trunks, curve = make_config(**scheme), [], []

        def keep(report, state, trunks=trunks, curve=curve):
            trunks.append(jnp.copy(state.train.learner.actor.shared["fc1"]["kernel"]))
            if report.evaluation is not None:
                curve.append(float(report.evaluation["return"][0]))

        result = run(config, make_env(config), [keep])
        moved = float(jnp.abs(trunks[-1] - trunks[len(trunks) // 2]).max())
        last[name] = float(result.final["greedy"]["return"][0])
        print(f"{name:20} {sum(curve) / len(curve):12.2f} {last[name]:11.2f} {moved:31.3f}")
    return last


if __name__ == "__main__":
    main()
