"""SMAX: StarCraft-like battles against a scripted enemy, from JaxMARL.

The game is JaxMARL's, unchanged. This module converts it to arrays with an agent axis, and
separates termination from truncation.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from lorasa_jax.config import SmaxConfig, nearest, require
from lorasa_jax.envs._jaxmarl import load_smax
from lorasa_jax.envs.base import Env, EnvSpec, EnvState, TimeStep

OWN_MAPS = {
    "1c3s5z": ("csssZZZZZ", "csssZZZZZ"),
    "MMM2_without_medivacs": ("MM" + 7 * "m", "MMM" + 8 * "m"),
}
"""Battles of SMAC that JaxMARL does not have: our units and the enemy's, by the letters of their types."""

RACES = {"protoss": ("zealot", "stalker"), "terran": ("marine", "marauder"), "zerg": ("zergling", "hydralisk")}
"""Types of each race, drawn with equal probability in maps such as `protoss_5_vs_5`. Positions are drawn, too. SMACv2
(Ellis et al. 2023) draws a third type with probability 0.1, which JaxMARL does not have."""
_RACE_MAPS = tuple(f"{race}_{n}_vs_{m}" for race in RACES for n, m in ((5, 5), (10, 10), (10, 11), (20, 20), (20, 23)))
_OF_RACE = re.compile(r"(protoss|terran|zerg)_([1-9]\d?)_vs_([1-9]\d?)")

COLOSSUS: dict[str, Any] = {
    "names": "colossus",
    "shorthands": "c",
    "velocities": 3.15,
    "attacks": 20.0,
    "attack_ranges": 7.0,
    "sight_ranges": 10.0,
    "radiuses": 1.0,
    "health": 350.0,
    "weapon_cooldowns": 1.07,
}
"""A seventh unit type, for maps with a colossus. Its two beams hit one target, not a line of targets. It has no bonus
against light units, and no regenerating shield."""


def scenario_names() -> tuple[str, ...]:
    """Returns the names of all maps: JaxMARL's, those that the user registered with it, and this library's."""
    return *load_smax().smax_env.MAP_NAME_TO_SCENARIO, *OWN_MAPS


def make_smax(task: str, config: SmaxConfig) -> Env:
    """Returns the battles of one map, with our team as the agents.

    Args:
        task: a name from `scenario_names`.
        config: settings of the game.

    Raises:
        ConfigError: there is no such map.
    """
    names = scenario_names()
    require(
        task in names or bool(_OF_RACE.fullmatch(task)),
        f"unknown SMAX map {task!r}{nearest(task, (*names, *_RACE_MAPS))}; maps: {', '.join(names)}, and maps of one "
        "race, such as protoss_5_vs_5, terran_10_vs_11 and zerg_10_vs_10",
    )
    smax = load_smax()
    game = smax.HeuristicEnemySMAX(
        **_battle(task),
        attack_mode=config.attack_mode,
        see_enemy_actions=config.see_enemy_actions,
        walls_cause_death=config.walls_cause_death,
    )
    n_agents, n_units = game.num_allies, game.num_allies + game.num_enemies
    unit_width = 4 + (game.unit_type_bits if game.smacv2_unit_type_generation else 1)  # of `_global_state`
    spec = EnvSpec(
        name=task,
        n_agents=n_agents,
        obs_dim=game.obs_size,
        state_dim=n_units * unit_width if config.normalise_state else game.state_size,
        n_actions=game.num_ally_actions,
        # The game checks its time limit before it counts the step, so episodes have one more step.
        episode_limit=game.max_steps + 1,
        team_reward=True,
        **_roles(game),
    )

    def show(state: EnvState, reward: Float[Array, ""]) -> TimeStep:
        """Returns the time step of a state for our team."""
        avail = game.get_avail_actions(state)
        units = state.state
        ours, theirs = units.unit_alive[:n_agents].any(), units.unit_alive[n_agents:].any()
        over = ~ours | ~theirs
        return TimeStep(
            obs=observe(game, units, team=0),
            state=_global_state(game, units) if config.normalise_state else game.get_world_state(state),
            avail=jnp.stack([avail[agent] for agent in game.agents]).astype(bool),
            alive=units.unit_alive[:n_agents],
            reward=jnp.full(n_agents, reward, jnp.float32),
            terminated=over,
            truncated=units.done & ~over,
            won=ours & ~theirs,
            role=units.unit_types[:n_agents].astype(jnp.int32) if spec.n_roles else (),
        )

    def reset(key: PRNGKeyArray) -> tuple[EnvState, TimeStep]:
        """Returns a new battle."""
        _, state = game.reset(key)
        # With a weakly typed leaf, a jitted `step` would be compiled twice.
        state = jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), state)
        return state, show(state, jnp.zeros(()))

    def step(key: PRNGKeyArray, state: EnvState, action: Int[Array, " N"]) -> tuple[EnvState, TimeStep]:
        """Returns the battle half a second later."""
        # JaxMARL's `step_env` without unused results: the enemy's next observations, and our previous ones.
        key, enemy_key = jax.random.split(key)
        seen = observe(game, state.state, team=1)
        orders, memory = game.get_enemy_actions(enemy_key, state.enemy_policy_state, seen)
        everyones = jnp.concatenate([action, jnp.stack([orders[enemy] for enemy in game.enemy_agents])])
        decoded = game._decode_discrete_actions(everyones)
        _, units, reward, _, _ = game.step_env_no_decode(key, state.state, decoded)
        state = state.replace(state=units, enemy_policy_state=memory)
        # All agents receive the same reward.
        return state, show(state, reward[game.agents[0]])

    def draw(states: EnvState) -> list[Any]:
        """Returns one picture per state of a battle; the states are stacked along a leading axis."""
        from lorasa_jax.envs.smax_drawing import draw_battle  # Pillow is needed here only

        return draw_battle(jax.device_get(states.state), game, task)

    return Env(spec, reset, step, draw)


def _battle(task: str) -> dict[str, Any]:
    """Returns the units of a map, and tables of unit types if the game's tables lack some of them."""
    smax = load_smax()
    known = {name: p.default for name, p in inspect.signature(smax.SMAX.__init__).parameters.items()}
    of_race = _OF_RACE.fullmatch(task)
    if of_race:
        return _race_battle(of_race[1], int(of_race[2]), int(of_race[3]), known)
    if task not in OWN_MAPS:
        return {"scenario": smax.map_name_to_scenario(task)}
    ours, theirs = OWN_MAPS[task]
    tables = {}
    if COLOSSUS["shorthands"] in ours + theirs:
        for column, value in COLOSSUS.items():
            rows = known[f"unit_type_{column}"]
            tables[f"unit_type_{column}"] = [*rows, value] if isinstance(value, str) else jnp.append(rows, value)
    letters = tables.get("unit_type_shorthands", known["unit_type_shorthands"])
    types = jnp.array([letters.index(letter) for letter in ours + theirs], jnp.uint8)
    return {"scenario": smax.smax_env.Scenario(types, len(ours), len(theirs), False, False), **tables}


def _race_battle(race: str, n_ours: int, n_theirs: int, known: dict[str, Any]) -> dict[str, Any]:
    """Returns a battle of units with types drawn from a race, and tables of only these types."""
    names = known["unit_type_names"]
    rows = np.array([names.index(name) for name in RACES[race]])
    tables = {name: table for name, table in known.items() if name.startswith("unit_type_")}
    tables = {
        name: [table[row] for row in rows] if isinstance(table, list) else table[rows] for name, table in tables.items()
    }
    types = jnp.zeros(n_ours + n_theirs, jnp.uint8)  # only the length matters
    return {"scenario": load_smax().smax_env.Scenario(types, n_ours, n_theirs, True, True), **tables}


def _roles(game: Any) -> dict[str, Any]:
    """Returns the roles of our units: their types in order of appearance, or the number of drawn types."""
    names = game.unit_type_names
    if game.smacv2_unit_type_generation:
        return {"n_roles": game.unit_type_bits, "role_names": tuple(names)}
    types = game.scenario[: game.num_allies].tolist()
    kinds = sorted(set(types), key=types.index)
    return {"roles": tuple(map(kinds.index, types)), "role_names": tuple(names[kind] for kind in kinds)}


def observe(game: Any, units: Any, team: int) -> Float[Array, "n D"]:
    """Returns the observations of our units (team 0) or the enemy's (1), equal to JaxMARL's `get_obs`.

    Every unit lists all others, its own team first; the enemy reads the list of units in reverse. Units that are dead
    or out of sight are zeros. All observations of a dead unit are zeros. JaxMARL gathers the others unit by unit, which
    is slow.
    """
    n, n_units = (game.num_allies, game.num_enemies)[team], game.num_allies + game.num_enemies
    ours = np.arange(n_units) < game.num_allies
    attacks = units.prev_attack_actions / np.where(ours, game.num_ally_actions - 1.0, game.num_enemy_actions - 1.0)
    did = jnp.concatenate([units.prev_movement_actions, attacks[:, None]], axis=-1)
    if not game.see_enemy_actions:
        did = jnp.where((ours == (team == 0))[:, None], did, 0.0)
    health, position, cooldown = _fractions(game, units)
    bits = jax.nn.one_hot(units.unit_types, game.unit_type_bits)
    own = jnp.concatenate([health, position, cooldown, bits], axis=-1)

    def listed(rows: Array) -> tuple[Array, Array]:
        """Returns the rows of the observing units, [n, 1, ...], and of the others in their lists, [n, U - 1, ...]."""
        rows = rows[::-1] if team else rows
        before = np.arange(n_units - 1) < np.arange(n)[:, None]
        others = jnp.where(before.reshape(*before.shape, *(1,) * (rows.ndim - 1)), rows[None, :-1], rows[None, 1:])
        return rows[:n, None], others

    here, there = listed(units.unit_positions)
    alive, theirs_alive = listed(units.unit_alive)
    sight, _ = listed(game.unit_type_sight_ranges[units.unit_types])
    _, told = listed(jnp.concatenate([health, did, cooldown, bits], axis=-1))
    away = there - here
    visible = (jnp.linalg.norm(away, axis=-1) < sight) & alive & theirs_alive
    others = jnp.concatenate([told[..., :1], away / sight[..., None], told[..., 1:]], axis=-1)
    others = jnp.where(visible[..., None], others, 0.0).reshape(n, -1)
    mine, _ = listed(jnp.where(units.unit_alive[:, None], own, 0.0))
    obs = jnp.concatenate([others, mine[:, 0]], axis=-1)
    return obs[::-1] if team else obs


def _fractions(game: Any, units: Any) -> tuple[Float[Array, "U 1"], Float[Array, "U 2"], Float[Array, "U 1"]]:
    """Returns health, position and weapon cooldown, as fractions of their maximum."""
    kind = units.unit_types
    health = units.unit_health / game.unit_type_health[kind]
    size = jnp.array([game.map_width, game.map_height], jnp.float32)
    # The cooldown of an idle weapon decreases without bound.
    cooldown = jnp.clip(units.unit_weapon_cooldowns / game.unit_type_weapon_cooldowns[kind], 0.0, 1.0)
    return health[:, None], units.unit_positions / size, cooldown[:, None]


def _type_bits(game: Any, kind: UInt8[Array, " U"]) -> Float[Array, "U K"]:
    """Returns the one-hot type of each unit; if the map fixes the types, a single 1."""
    if game.smacv2_unit_type_generation:
        return jax.nn.one_hot(kind, game.unit_type_bits)
    return jnp.ones((kind.size, 1))


def _global_state(game: Any, units: Any) -> Float[Array, " S"]:
    """Returns all units concatenated, ours first, with every entry in [0, 1].

    Each unit has health, two coordinates and the weapon cooldown, as fractions, then its one-hot
    type. Dead units are zeros. So on maps with fixed types, the single type entry marks living units.
    """
    health, position, cooldown = _fractions(game, units)
    columns = (health, position, cooldown, _type_bits(game, units.unit_types))
    # Other units may push a unit across the border.
    features = jnp.clip(jnp.concatenate(columns, axis=-1), 0.0, 1.0)
    return jnp.where(units.unit_alive[:, None], features, 0.0).reshape(-1)
