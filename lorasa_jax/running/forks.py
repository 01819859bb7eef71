"""Forks: several second phases from few first phases, in parallel in as few programs as their shapes allow.

A fork starts from a backbone, the state of a first phase at some step, and continues under its
own configuration. Forks use the axis of seeds, so they run like seeds: `fork` returns the
`start` of `lorasa_jax.run`.

Forks may differ in rank and placement and still share a program, if the same layers have full rank.
Each fork then owns adapters of the largest rank on all layers of the group. The columns of L and
the rows of R beyond its own rank start at zero. With L_j = 0 and R_j = 0 both gradients of a
column, x^T (g R_j^T) and (x L_j)^T g, are zero. Adam does not move parameters whose gradients have
always been zero, so these columns stay zero to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from typing import Any, TypeVar, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from lorasa_jax.config import Config, ConfigError, require
from lorasa_jax.core.types import PyTree, TrainState
from lorasa_jax.envs.base import Env
from lorasa_jax.learning.system import Parts, init_optimizer, make_system, names_of
from lorasa_jax.learning.trainer import attach_adapters, make_trainer
from lorasa_jax.levels import AdapterLevel, LevelSettings
from lorasa_jax.running.state import ADAPTERS, Best, RunState
from lorasa_jax.sharing.schemes import SCHEMES, Sharing, make_sharing, trunks_only, under

C = TypeVar("C", bound=Config)
_Leaves = dict[str, Any]


OWN = ("levels", "rank", "alpha", "placement", "switch_step")
"""Settings that may differ between forks that share a program, besides the seed and `ppo.adapter_lr`."""


def backbone_config(config: C, env: Env) -> C:
    """Returns the configuration, for seed 0 alone, of the run whose states a fork continues from.

    It is the configuration of the first phase, with defaults for all settings that concern only the second phase. For
    one-phase schemes it is the configuration of their only phase.
    """
    name: Any = config.sharing
    sharing = make_sharing(env.spec, config)
    if sharing.two_phase:
        name = _first_phase(trunks_only(sharing), config)
    backbone = under(_neutral(config), name)
    if sharing.leveled and not sharing.two_phase:
        at_once = sharing.early and env.spec.team_reward
        shapes = {name: getattr(config, name) for name in OWN if name != "switch_step"}
        return replace(backbone, switch_step=0 if at_once else backbone.switch_step, **shapes)
    if sharing.levels and not sharing.two_phase and _parameters(config, env) != _parameters(backbone, env):
        return replace(backbone, rank=config.rank, placement=config.placement)  # they set the shapes of its parameters
    return backbone


def _first_phase(trunks: Sharing, config: Config) -> str:
    """The name of the one-phase scheme that equals a first phase."""
    for name, scheme in SCHEMES.items():
        with suppress(ConfigError):  # not a scheme that needs groups if there are none
            if scheme(trunks.n_agents, config) == trunks:
                return name
    raise ConfigError(f"no scheme consists of the first phase of sharing {config.sharing} only; register one")


def _parameters(config: Config, env: Env) -> PyTree:
    """The shapes of the actors' parameters."""
    return jax.eval_shape(make_system(config, env).actor.init, jax.random.key(0))


def _neutral(config: C) -> C:
    """The configuration with defaults for settings that may differ between forks that share a program."""
    default = Config()
    changes = {name: getattr(default, name) for name in (*OWN, "seed", "seeds")}
    return replace(config, ppo=replace(config.ppo, adapter_lr=None), **changes)


def share_programs(configs: Sequence[Config], env: Env) -> list[tuple[int, ...]]:
    """Returns the groups of forks that share a program, as indices into `configs`."""
    groups: list[list[int]] = []
    for i in sorted(range(len(configs)), key=lambda i: (configs[i].rank, i)):
        for group in groups:
            if _fit([configs[j] for j in (*group, i)], env):
                group.append(i)
                break
        else:
            groups.append([i])
    return sorted(tuple(sorted(group)) for group in groups)


def common_config(configs: Sequence[C]) -> C:
    """Returns the configuration of the program that several forks share, with one row per fork."""
    first = configs[0]
    switches = {config.switch_step for config in configs}
    levels = (_widest(first, same) for same in zip(*(config.adapter_levels for config in configs), strict=True))
    unscaled = all(level.scale == 1 for config in configs for level in config.adapter_levels)
    # With the same alpha / rank at every level, the fork with the largest alpha has the largest ranks.
    alpha = None if unscaled else max(config.alpha for config in configs if config.alpha)
    return replace(
        first,
        seeds=len(configs),
        levels=first.levels if len({config.levels for config in configs}) == 1 else tuple(levels),
        rank=max(config.rank for config in configs),
        alpha=alpha,
        placement=_in_order(first, [config.adapted_layers for config in configs]),
        switch_step=switches.pop() if len(switches) == 1 else "auto",
        ppo=replace(first.ppo, adapter_lr=None),
    )


def _widest(config: Config, levels: Sequence[AdapterLevel]) -> str:
    """The level that contains the levels of several forks."""
    layers = _in_order(config, [level.layers for level in levels])
    return str(LevelSettings(levels[0].scope, max(level.rank for level in levels), levels[0].factor, layers))


def _in_order(config: Config, placements: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """All named layers, from input to output."""
    layers = {layer for placement in placements for layer in placement}
    return tuple(sorted(layers) if config.actor.module else filter(layers.__contains__, config.actor.layer_names))


def _fit(configs: Sequence[Config], env: Env) -> bool:
    """Returns whether forks can be rows of one program."""
    alike = {
        (_neutral(config), tuple((level.scope, level.scale, level.factor) for level in config.adapter_levels))
        for config in configs
    }
    if len(alike) > 1:
        return False
    common = common_config(configs)
    if not make_sharing(
        env.spec, common
    ).two_phase:  # under lorasa_joint with switch-step auto, adapters may start at 0
        return False
    whole = _leaves(_owned(common, env))
    return all(_is_masked(_leaves(_owned(replace(config, seed=0), env)), whole) for config in configs)


def _is_masked(own: _Leaves, whole: _Leaves) -> bool:
    """Returns whether `own` is `whole` without some ranks. Full-rank corrections cannot be left out."""
    return own.keys() <= whole.keys() and all("full" not in name for name in whole.keys() - own.keys())


@cache
def _owned(config: Config, env: Env) -> PyTree:
    """The shapes of the adapters."""
    actor = make_system(config, env, adapting=True).actor
    return jax.eval_shape(actor.init, jax.random.key(0)).agents


def _leaves(tree: PyTree) -> _Leaves:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def fork(
    configs: Sequence[Config], env: Env, origins: Sequence[tuple[RunState, int]], **parts: Unpack[Parts]
) -> RunState:
    """Returns the first state of the second phase of several forks, one per row.

    It is the `start` of `lorasa_jax.run` under `common_config(configs)`.

    Args:
        configs: the configuration of each fork. They may differ in `rank` and `placement`, also of levels, in `alpha`
            (with the same alpha / rank), `ppo.adapter_lr`, `seed` and `switch_step`. They must share a program
            (`share_programs`).
        env: their environment.
        origins: the origin of each fork: a run in its first phase, and a row of it.
        parts: `policy_loss` and `optimizer` of the forks (`lorasa_jax.learning.system.Parts`), the same as for `run`.
            The backbones may have others. An optimiser must not change parameters with zero gradients.

    Raises:
        ConfigError: the forks do not share a program, or an origin is not in its first phase.
    """
    common = common_config(configs)
    require(_fit(configs, env), "these forks do not fit into one program; share_programs(configs, env) says which do")
    require(
        all(run.phase != ADAPTERS for run, _ in origins),
        "a fork must start from a state of a first phase, not of a second one",
    )
    rows = [
        jax.jit(partial(_graft_into, common, config, env, parts))(jax.tree.map(lambda leaf, k=k: leaf[k], run.train))
        for config, (run, k) in zip(configs, origins, strict=True)
    ]
    train = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    steps = np.asarray(train.iteration, np.int64) * common.steps_per_iteration
    known = tuple(run.random_return[k] for run, k in origins if run.random_return)
    return RunState(
        phase=ADAPTERS,
        train=train,
        best=Best.none(train),
        switch_steps=tuple(steps.tolist()),
        curve=(),
        random_return=known if len(known) == len(rows) else (),
        evaluation_interval=common.evaluation_interval,
        compile_seconds=0.0,
        train_seconds=0.0,
        inherited=int(np.asarray(train.iteration).sum()),
        parts=names_of(parts),
    )


def _graft_into(common: Config, config: Config, env: Env, parts: Parts, state: TrainState) -> TrainState:
    """The first state of a fork's second phase, with adapters of its program's rank."""
    state = attach_adapters(make_trainer(config, env, adapting=True, **parts), state)
    actor, own = state.learner.actor, _leaves(state.learner.actor.agents)

    def widen(path: tuple, shape: Any) -> jax.Array:
        leaf = own.get(jax.tree_util.keystr(path))
        if leaf is None:
            return jnp.zeros(shape.shape, shape.dtype)
        return jnp.pad(leaf, [(0, wide - narrow) for wide, narrow in zip(shape.shape, leaf.shape, strict=True)])

    agents = jax.tree_util.tree_map_with_path(widen, _owned(common, env))
    learner = state.learner._replace(actor=actor._replace(agents=agents))
    return state._replace(learner=init_optimizer(make_system(common, env, adapting=True, **parts), learner))


def own_adapters(config: Config, env: Env, agents: PyTree) -> PyTree:
    """Returns a fork's adapters at its own rank and on its own layers.

    Args:
        config: configuration of the fork.
        env: its environment.
        agents: the fork's row of `train.learner.actor.agents` in the shared program.
    """
    wide = _leaves(agents)
    return jax.tree_util.tree_map_with_path(
        lambda path, shape: wide[jax.tree_util.keystr(path)][tuple(map(slice, shape.shape))], _owned(config, env)
    )
