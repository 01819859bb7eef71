"""The table of JaxMARL's games in docs/environments.md: python docs/jaxmarl_games.py writes it again."""

from __future__ import annotations

import warnings
from pathlib import Path

DOCUMENT = Path(__file__).with_name("environments.md")
BEGIN, END = "<!-- games: begin -->\n", "<!-- games: end -->\n"
PIPE = "\\|"
HEAD = ("game", "trains", "agents", "numbers that an agent sees", "actions", "steps, at most", "why not")


def row(task: str) -> str:
    """Returns the line of a game: how large it is, or why it is refused."""
    from lorasa_jax.config import ConfigError
    from lorasa_jax.envs.checks import require_fits
    from lorasa_jax.envs.jaxmarl import make_jaxmarl

    try:
        env = make_jaxmarl(task)
        require_fits(env)
    except ConfigError as error:
        return line([f"`{task}`", "no", "", "", "", "", str(error)])
    spec = env.spec
    actions = f"vectors of {spec.n_actions}" if spec.continuous else str(spec.n_actions)
    return line([f"`{task}`", "yes", *map(str, (spec.n_agents, spec.obs_dim, actions, spec.episode_limit)), ""])


def line(cells: list[str]) -> str:
    """Returns a line of a Markdown table."""
    return f"| {' | '.join(cell.replace('|', PIPE) for cell in cells)} |"


def main() -> None:
    from lorasa_jax.envs._jaxmarl import load_jaxmarl

    warnings.simplefilter("ignore")  # those of the games
    before, rest = DOCUMENT.read_text(encoding="utf-8").split(BEGIN)
    rows = [line(list(HEAD)), line(["---"] * len(HEAD)), *map(row, load_jaxmarl().registered_envs)]
    table = "\n".join(rows)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{table}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
