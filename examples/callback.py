"""Callbacks: a log of your own, and a run that stops when it is good enough.

A callback is a function of (report, state), called after every iteration; returning True stops the run. An object can
have more methods (`lorasa_jax.Callback`). Run it with: python examples/callback.py
"""

from __future__ import annotations

from lorasa_jax import (
    Callback,
    Config,
    CriticConfig,
    NetworkConfig,
    PPOConfig,
    Report,
    RunState,
    early_stopping,
    make_env,
    run,
)

NETWORK = {"hidden": 32, "layers": 1, "layers_after": 0, "recurrent": False}


class Log(Callback):
    """Prints a line per evaluation, and keeps the best return."""

    def __init__(self) -> None:
        self.best = float("-inf")

    def __call__(self, report: Report, state: RunState) -> None:
        """Takes an iteration; most of them have no evaluation."""
        if report.evaluation is None:
            return
        greedy = float(report.evaluation["return"].mean())
        self.best = max(self.best, greedy)
        entropy = float(report.metrics["entropy"].mean())
        print(f"{report.phase:8} {report.env_steps[0]:6,} steps  return {greedy:.2f}  entropy {entropy:.2f}")

    def end(self, state: RunState) -> None:
        """Says how far the run came."""
        print(f"the best return in {state.rows} iterations was {self.best:.2f}")


def main() -> None:
    """Trains until the game is solved, or nothing has got better in ten evaluations of the adapters."""
    config = Config(
        env="toy",
        task="specialisation",
        sharing="lorasa",
        total_steps=61_440,
        switch_step=0,
        n_envs=32,
        rollout_length=16,
        evaluations=60,
        actor=NetworkConfig(**NETWORK),
        critic=CriticConfig(**NETWORK),
        ppo=PPOConfig(lr=1e-3, critic_lr=1e-3, chunk_length=0),
    )
    stop = early_stopping(value=0.99, patience=10, phase="adapters")
    result = run(config, make_env(config), [Log(), stop])
    steps = result.stop_steps[0] if result.stop_steps else config.total_steps
    print(f"stopped at {steps:,} of {config.total_steps:,} steps: return {result.final['greedy']['return'][0]:.2f}")


if __name__ == "__main__":
    main()
