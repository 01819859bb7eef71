"""Write a saved run's merged policy as a program that needs only jax: python experiments/export.py RUN --out FILE."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from lorasa_jax.cli.command import leave, polite
from lorasa_jax.cli.flags import read_flags
from lorasa_jax.cli.paths import require_place
from lorasa_jax.cli.saved import find_checkpoint, find_row, labels_of, load_run, row_config
from lorasa_jax.config import require
from lorasa_jax.files import whole
from lorasa_jax.trained import find_team

if TYPE_CHECKING:
    from jax.export import Exported

    from lorasa_jax.storage.checkpoints import SavedTeam

PLATFORMS = ("cpu", "cuda")


@dataclass(frozen=True)
class ExportConfig:
    """Export the policy of a saved run as a program, or its adapters as files."""

    run: tyro.conf.Positional[Path]
    """Run directory, one of its checkpoints, RUN/checkpoints/N, or a trained team by its name or folder."""
    out: Path | None = None
    """File for the program of all agents' merged networks (jax.export, for CPU and CUDA)."""
    adapters: Path | None = None
    """Folder for the agents' adapters (safetensors), which lorasa_jax.adapters.load reads."""
    seed: int | None = None
    """One of the run's seeds; by default its first."""
    row: int | None = None
    """In a job of a sweep, the row, counted from 0 in its rows.json."""

    def __post_init__(self) -> None:
        require(bool(self.out or self.adapters), "name a file with --out, a folder with --adapters, or both")
        for flag, path in (("--out", self.out), ("--adapters", self.adapters)):
            require_place(path, flag)
            require(path is None or not path.exists(), f"{path} exists already; name another")


def export_policy(team: SavedTeam, row: int) -> Exported:
    """Returns the greedy policy of one seed with merged networks, for any number B of environments.

        (carry [B, N, H], obs [B, N, D], avail [B, N, A])  ->  (action [B, N], or [B, N, A], params, carry)

    The caller passes zeros for `carry` at the start of an episode, and under `reset_on_death` for dead agents. H is 0
    without recurrence. `avail` marks available actions, or the dimensions of an agent's action. `params` are the
    parameters of the distributions: masked logits [B, N, A], or means and log standard deviations [B, N, 2 A].
    """
    import jax
    import jax.numpy as jnp
    from jax import export

    system = team.system
    require(
        not system.acting.sharing.dynamic_roles, "adapters with changing owners cannot be exported as a merged policy"
    )
    spec, weights = system.env.spec, jax.tree.map(lambda leaf: leaf[row], team.weights)

    def act(carry: jax.Array, obs: jax.Array, avail: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        seen, _ = system.inputs.apply(weights.inputs, obs, jnp.zeros(spec.state_dim))
        opens = jnp.zeros(obs.shape[:1], bool)  # the caller passes zeros instead
        carries, output = system.acting.unroll(weights.actors, carry, seen[None], opens[None])
        params = system.dist.mask(output[0], avail)
        return system.dist.to_env(system.dist.mode(params)), params, carries[0]

    (batch,) = export.symbolic_shape("batch")
    shapes = [(*system.acting.initial_carry(1).shape[1:],), (spec.n_agents, spec.obs_dim)]
    carry, obs = (jax.ShapeDtypeStruct((batch, *shape), "float32") for shape in shapes)
    avail = jax.ShapeDtypeStruct((batch, spec.n_agents, spec.n_actions), "bool")
    return export.export(jax.jit(act), platforms=PLATFORMS)(carry, obs, avail)


def save_adapters(team: SavedTeam, row: int, config: ExportConfig) -> None:
    """Writes the adapters of one row, with its own rank and layers, not those of its program."""
    import jax

    from lorasa_jax import adapters
    from lorasa_jax.learning.system import make_system
    from lorasa_jax.running.forks import own_adapters

    assert config.adapters is not None
    system, params = team.system, jax.tree.map(lambda leaf: leaf[row], team.params)
    if len(labels_of(config.run)[row]) > 1:  # labels beyond the seed: a job of a sweep
        own = row_config(find_checkpoint(config.run)[0], config.run, row)
        params = params._replace(agents=own_adapters(own, system.env, params.agents))
        system = make_system(own, system.env, adapting=True)
    adapters.save(config.adapters, params, system)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    with polite():
        config = read_flags(ExportConfig, sys.argv[1:] if argv is None else argv)
        config = replace(config, run=find_team(config.run))
        team, checkpoint = load_run(config.run)
        row = find_row(config.run, config.seed, config.row)
        if config.adapters is not None:
            save_adapters(team, row, config)
            print(f"the adapters in {checkpoint} are in {config.adapters}")
        if config.out is not None:
            content = export_policy(team, row).serialize()
            config.out.parent.mkdir(parents=True, exist_ok=True)
            with whole(config.out) as file:
                file.write_bytes(content)
            loader = Path(__file__).with_name("play_export.py")
            print(f"the policy in {checkpoint} is in {config.out}; {loader} shows how to load it")


if __name__ == "__main__":
    leave(main)
