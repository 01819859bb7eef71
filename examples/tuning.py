"""Learning rate and rank tuned by Optuna, which stops poor runs early.

A callback reports every evaluation to the trial and stops the run when Optuna prunes it.
Run it with the extra `tune`: python examples/tuning.py
"""

import sys

import optuna

from lorasa_jax import Callback, Config, CriticConfig, NetworkConfig, PPOConfig, make_env, run

STEPS = 16 * 16 * 24


class Prune(Callback):
    """Reports the mean return so far, higher the sooner a run learns, and stops the run that Optuna gives up."""

    def __init__(self, trial):
        self.trial, self.returns, self.score, self.pruned = trial, [], 0.0, False

    def __call__(self, report, state):
        """Returns True to stop."""
        if report.evaluation is not None:
            self.returns.append(float(report.evaluation["return"].mean()))
            self.score = sum(self.returns) / len(self.returns)
            self.trial.report(self.score, step=int(report.env_steps[0]))
            self.pruned = self.trial.should_prune()
        return self.pruned


def make_config(lr, adapter_lr, rank):
    """Returns the configuration of one trial."""
    small = {"hidden": 16, "layers": 1, "layers_after": 0, "recurrent": False}
    return Config(
        env="toy",
        task="own_number",
        n_agents=4,
        sharing="lorasa",
        n_envs=16,
        rollout_length=16,
        total_steps=STEPS,
        switch_step=0,
        evaluations=24,
        rank=rank,
        actor=NetworkConfig(**small),
        critic=CriticConfig(**small, scope="agent"),
        ppo=PPOConfig(lr=lr, adapter_lr=adapter_lr, critic_lr=1e-2),
    )


def objective(trial):
    """Returns the score of a run."""
    config = make_config(
        lr=trial.suggest_float("lr", 1e-4, 1e-2, log=True),
        adapter_lr=trial.suggest_float("adapter_lr", 1e-4, 1e-2, log=True),
        rank=trial.suggest_int("rank", 1, 4),
    )
    prune = Prune(trial)
    run(config, make_env(config), [prune])
    if prune.pruned:
        raise optuna.TrialPruned
    return prune.score


def main(trials=20):
    """Runs the study, prints every trial, and returns it."""
    pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=STEPS // 4)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0), pruner=pruner)
    study.optimize(objective, n_trials=trials)
    for trial in study.trials:
        print(f"{trial.state.name:8} score {trial.value:5.2f} at step {trial.last_step:5}  {trial.params}")
    print(f"best: {study.best_value:.2f} with {study.best_params}")
    return study


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
