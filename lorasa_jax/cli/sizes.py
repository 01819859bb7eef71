"""Sizes of all sharing schemes, without training: python experiments/sizes.py --env smax --task 3s5z."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from lorasa_jax.cli.command import leave, polite
from lorasa_jax.cli.flags import parse
from lorasa_jax.config import Config, nearest, require
from lorasa_jax.surroundings import prepare

if TYPE_CHECKING:
    from lorasa_jax.envs import Env


@dataclass(frozen=True)
class SizesConfig(Config):
    """Print a table of all sharing schemes: parameters of their actors, and the size of the actors' optimiser state."""

    preset: str = "fast"
    """Base settings: fast, paper or another name for this environment, or a YAML file. Flags override them."""
    match: str | None = None
    """A scheme. Print instead the width at which separate networks (nps) have as many parameters as its actors."""


def as_scheme(config: Config, name: Any) -> Config | None:
    """Returns the configuration under another scheme; None if that needs groups that are not given."""
    from lorasa_jax.sharing.schemes import is_clustered, under

    config = under(config, name)
    return None if is_clustered(config) and config.groups is None else config


def rows(config: Config, env: Env) -> Iterator[list[str]]:
    """Yields the table: its header, and a row per scheme."""
    from lorasa_jax.learning.system import is_two_phase
    from lorasa_jax.learning.trainer import count_params, make_trainer, optimizer_bytes
    from lorasa_jax.sharing.schemes import SCHEMES

    yield ["scheme", "shared", "per agent", "actors", "of nps", "optimiser", "optimiser, phase 2"]
    for name in SCHEMES:
        scheme = as_scheme(config, name)
        if scheme is None:
            yield [name, "needs --groups", *["-"] * 5]
            continue
        first, two_phase = make_trainer(scheme, env), is_two_phase(scheme, env)
        last = make_trainer(scheme, env, adapting=True) if two_phase else first
        sizes = count_params(last)
        numbers = [f"{sizes[part]:,}" for part in ("shared", "per_agent", "actors")]
        kept = [f"{optimizer_bytes(phase):,} B" for phase in ([first, last] if two_phase else [first])]
        yield [name, *numbers, f"{sizes['actors'] / sizes['nps_actors']:.2f}", *kept, *["-"] * (2 - len(kept))]


def nps_width(config: Config, env: Env) -> tuple[int, int, int]:
    """Returns the width at which separate networks are closest in size to a scheme's actors, and both sizes.

    Raises:
        ConfigError: the scheme needs groups that are not given.
    """
    import jax

    from lorasa_jax.learning.system import is_two_phase, make_system
    from lorasa_jax.sharing.schemes import count, under

    def actors(config: Config) -> int:
        system = make_system(config, env, adapting=is_two_phase(config, env))
        return count(jax.eval_shape(system.actor.init, jax.random.key(0)))

    @cache
    def size(hidden: int) -> int:
        return actors(replace(under(config, "nps"), actor=replace(config.actor, hidden=hidden)))

    goal = actors(config)
    low, high = 0, 1
    while size(high) < goal:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) < goal else (low, middle)
    best = min((hidden for hidden in (low, high) if hidden), key=lambda hidden: abs(size(hidden) - goal))
    return best, size(best), goal


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    with polite():
        config = parse(SizesConfig, sys.argv[1:] if argv is None else argv)
        prepare()
        from lorasa_jax.envs import make_env
        from lorasa_jax.sharing.schemes import SCHEMES

        if config.match is None:
            table = list(rows(config, make_env(config)))
            table.insert(1, ["---"] * len(table[0]))
            print("\n".join(f"| {' | '.join(row)} |" for row in table))
            return
        require(config.match in SCHEMES, f"there is no scheme {config.match!r}{nearest(config.match, SCHEMES)}")
        scheme = as_scheme(config, config.match)
        require(scheme is not None, f"{config.match} needs groups; give --groups")
        hidden, size, goal = nps_width(scheme or config, make_env(config))
        print(f"--sharing nps --actor.hidden {hidden}: {size:,} parameters; {config.match}: {goal:,}")


if __name__ == "__main__":
    leave(main)
