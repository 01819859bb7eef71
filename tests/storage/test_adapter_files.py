"""Adapters leave a team as files, come back to the bit, and can be moved; whatever does not fit is refused."""

from __future__ import annotations

import errno
import json
import os
import pickle
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, assert_close, assert_same, random_params, row_of, small_config

from lorasa_jax import adapters, deltas
from lorasa_jax.config import ConfigError
from lorasa_jax.core.networks import Network
from lorasa_jax.core.trees import by_path, digest, nested
from lorasa_jax.core.types import PolicyParams
from lorasa_jax.deltas.files import CONFIG_FILE, SPEC_FILE, WEIGHTS_FILE
from lorasa_jax.envs.toy import make_toy
from lorasa_jax.learning.system import System, is_two_phase, make_system
from lorasa_jax.sharing.schemes import count
from lorasa_jax.storage.adapter_files import deltas_of


@cache
def system_of(scheme: str = "lorasa", n_agents: int = 3, task: str = "probe_policy", **changes: Any) -> System:
    groups = {"groups": tuple(i % 2 for i in range(n_agents))} if scheme in ("seps", "seps_lora") else {}
    config = small_config(sharing=scheme, task=task, **groups, **changes)
    env = make_toy(task, n_agents)
    return make_system(config, env, adapting=is_two_phase(config, env))


OWN_NETWORKS: dict[str, dict[str, Any]] = {
    "gru": {"recurrent": True, "actor": (("module", "own_networks:dense_gru_dense"),)},
    "nnx": {"actor": (("module", "own_networks:perceptron"),)},
    "conv": {"actor": (("module", "own_networks:conv_attention"),)},
}
SAME = (0, 1, 2)
every_own_network = pytest.mark.parametrize("name", OWN_NETWORKS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A team's adapters on disk."""
    return adapters.save(tmp_path / "team", random_params(system_of().actor), system_of())


def observations(n_envs: int) -> jax.Array:
    """The same for all agents, [T, E, D]."""
    return jnp.asarray(np.random.default_rng(3).normal(size=(2, n_envs, 3)), jnp.float32)


def logits(system: System, params: PolicyParams, n_envs: int = 6) -> np.ndarray:
    """What every agent makes of them, [N, T E, A]."""
    n = system.env.spec.n_agents
    obs = jnp.repeat(observations(n_envs)[:, :, None], n, axis=2)
    _, out = jax.jit(system.actor.unroll)(params, system.actor.initial_carry(n_envs), obs, jnp.zeros((2, n_envs), bool))
    return np.moveaxis(np.asarray(out), 2, 0).reshape(n, 2 * n_envs, -1)


def refusal(function: Callable, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(ConfigError) as error:
        function(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("scheme", ["lorasa", "seps_lora"])
def test_adapters_come_back_to_the_bit_and_fit_their_backbone(tmp_path: Path, scheme: str) -> None:
    system = system_of(scheme)
    params = random_params(system.actor)
    folder = adapters.save(tmp_path / "new" / "team", params, system)
    assert {path.name for path in folder.iterdir()} == {SPEC_FILE, "owner_0", "owner_1", "owner_2"}
    assert {path.name for path in (folder / "owner_2").iterdir()} == {CONFIG_FILE, WEIGHTS_FILE}
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len({path.stat().st_mode for path in files}) == 1, "who may read the one may read the other"
    assert [path.name for path in folder.parent.iterdir()] == ["team"]
    team = adapters.load(folder)
    assert_same(team.own, params.agents)
    assert (team.about.task, team.rank, team.scale) == ("probe_policy", 2, 1.0)
    assert team.about.groups == system.actor.sharing.groups
    assert_same(adapters.attach(PolicyParams(params.shared, {}), team), params)


@every_own_network
def test_adapters_of_any_network_come_back_and_play_as_they_did(tmp_path: Path, name: str) -> None:
    system = system_of(**OWN_NETWORKS[name])
    params, other = (random_params(system.actor, seed) for seed in (0, 1))
    folder = adapters.save(tmp_path / "team", params, system)
    team = adapters.load(folder)
    attached = adapters.attach(PolicyParams(params.shared, {}), team)
    assert_same(attached, params)
    np.testing.assert_array_equal(logits(system, attached), logits(system, params))
    assert "were not trained on this backbone" in refusal(adapters.attach, other, team)
    assert_same(adapters.attach(other, team, any_backbone=True), PolicyParams(other.shared, params.agents))
    stranger = random_params(system_of().actor)
    assert "of probe_policy, do not fit this backbone: " in refusal(adapters.attach, stranger, team, any_backbone=True)
    fields = json.loads((folder / SPEC_FILE).read_text())
    fields["targets"][0]["alpha"] += 1
    (folder / SPEC_FILE).write_text(json.dumps(fields))
    assert "with one rank and one alpha" in refusal(adapters.load, folder)


def test_a_folder_that_says_more_than_is_needed_is_read(folder: Path) -> None:
    """As those did that were written before rank and scale were left to the targets."""
    before = adapters.load(folder)
    rewrite(folder, rank=2, scale=1.0)
    after = adapters.load(folder)
    assert after.about == before.about
    assert_same(after.own, before.own)


def test_a_folder_that_does_not_fit_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    system = system_of()
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"team'$"):
        adapters.save(tmp_path / "team", random_params(system.actor), system)
    assert list(tmp_path.iterdir()) == []


def test_the_files_are_what_others_read(folder: Path) -> None:
    """A header of JSON behind its length, then the numbers; and the words of PEFT."""
    content = (folder / "owner_1" / WEIGHTS_FILE).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    layers = {"fc1", "after1", "head"}
    names = {f"base_model.model.{layer}.lora_{factor}.weight" for layer in layers for factor in "AB"}
    assert header.keys() - {"__metadata__"} == names
    found = header["base_model.model.fc1.lora_A.weight"]
    start, end = found["data_offsets"]
    left = np.frombuffer(content[8 + length :][start:end], "<f4").reshape(found["shape"]).T
    np.testing.assert_array_equal(left, random_params(system_of().actor).agents["agent"]["fc1"]["left"][1])
    config = json.loads((folder / "owner_1" / CONFIG_FILE).read_text())
    assert {"peft_type": "LORA", "r": 2, "lora_alpha": 2.0}.items() <= config.items()
    assert set(config["target_modules"]) == layers


def test_the_scale_is_kept(tmp_path: Path) -> None:
    system = system_of(alpha=0.5)
    adapters.save(tmp_path / "team", random_params(system.actor), system)
    assert adapters.load(tmp_path / "team").scale == 0.25


def test_an_agent_of_the_papers_size_takes_about_forty_kib(tmp_path: Path) -> None:
    network = {"hidden": 64, "layers": 3, "layers_after": 1, "recurrent": True}
    system = system_of(actor=tuple(network.items()), rank=8)
    params = random_params(system.actor)
    adapters.save(tmp_path / "team", params, system)
    size = (tmp_path / "team" / "owner_0" / WEIGHTS_FILE).stat().st_size
    assert size == pytest.approx(4 * count(params.agents) / 3, rel=0.1)
    assert 28 * 1024 < size < 44 * 1024


def test_nothing_else_is_kept_as_adapters(folder: Path) -> None:
    assert "exists already" in refusal(adapters.save, folder, random_params(system_of().actor), system_of())
    for changes, said in (
        ({"scheme": "ps"}, "this team has no low-rank adapters of scope agent"),
        ({"scheme": "mtl"}, "this team has no low-rank adapters of scope agent"),
        ({"scheme": "hyper"}, "this team has no low-rank adapters of scope agent"),
        ({"scheme": "mask"}, "this team has no low-rank adapters of scope agent"),
        ({"levels": ("unit_type",), "task": "two_kinds"}, "this team has no low-rank adapters of scope agent"),
        ({"levels": ("team", "agent")}, "a folder holds adapters of agents only, but levels team agent include others"),
    ):
        system = system_of(**changes)
        assert said in refusal(adapters.save, folder / "x", random_params(system.actor), system)
    seeds = jax.tree.map(lambda leaf: leaf[None], random_params(system_of().actor))
    assert "these are not the parameters of one seed: " in refusal(adapters.save, folder / "x", seeds, system_of())
    spoilt = random_params(system_of().actor)
    own = spoilt.agents["agent"]["fc1"]
    own["left"] = own["left"].at[0, 0, 0].set(jnp.nan)
    assert "fc1/kernel/left in these deltas holds NaN" in refusal(adapters.save, folder / "x", spoilt, system_of())
    assert not (folder / "x").exists()


def test_another_backbone_must_be_asked_for_and_must_fit(folder: Path) -> None:
    team = adapters.load(folder)
    other = random_params(system_of().actor, seed=1)
    assert "were not trained on this backbone; give any_backbone=True" in refusal(adapters.attach, other, team)
    assert_same(adapters.attach(other, team, any_backbone=True), PolicyParams(other.shared, team.own))
    for system, said in (
        (system_of(n_agents=4), "do not fit this backbone: id/embedding is [1, 4, 8], and must be [1, 3, 8]"),
        (system_of("seps_lora"), "is [2, "),
        (system_of(recurrent=True), "gru_hidden/bias is [1, 24], and must be absent"),
    ):
        params = random_params(system.actor)
        assert said in refusal(adapters.attach, params, team, any_backbone=True)
    other.shared["head"]["bias"] = other.shared["head"]["bias"] * jnp.inf
    assert "head/bias in this backbone holds NaN" in refusal(adapters.attach, other, team, any_backbone=True)


def test_a_digest_sees_names_shapes_types_and_bits() -> None:
    tree = {"a": jnp.zeros((2, 3)), "b": {"c": jnp.ones(2)}}
    others = [
        {**tree, "a": jnp.zeros((3, 2))},
        {**tree, "a": jnp.zeros((2, 3), int)},
        {**tree, "a": jnp.zeros((2, 3)).at[1, 2].set(-0.0)},
        {"a": tree["a"], "b": {"d": jnp.ones(2)}},
    ]
    assert len({digest(other) for other in [tree, *others]}) == 5
    assert digest(nested(dict(reversed(by_path(tree).items())))) == digest(tree)


# Plain networks


@pytest.mark.parametrize("scheme", ["ps", "nps", "mtl", "lorasa", "seps_lora"])
def test_every_agent_gets_a_whole_network_and_unmerge_gives_back(scheme: str) -> None:
    system = system_of(scheme, alpha=1.0)
    params, scale = random_params(system.actor), 0.5
    networks = adapters.merge(params, system)
    assert len(networks) == 3
    for i, network in enumerate(networks):
        expected = row_of(params.shared, system.actor.sharing.groups[i])
        for layer, own in row_of(system.actor.expand(params).get("agent", {}), i).items():
            if "kernel" in own:
                expected[layer] = own
            else:
                added = own["full"] if "full" in own else scale * own["left"] @ own["right"]
                expected[layer] = {**expected[layer], "kernel": expected[layer]["kernel"] + added}
        assert_close(network, expected, atol=1e-6)
    assert_close(adapters.unmerge(networks, params.agents, system), params, atol=1e-6)


@every_own_network
def test_any_network_is_merged_and_taken_apart_again(name: str) -> None:
    system = system_of(**OWN_NETWORKS[name])
    params = random_params(system.actor)
    assert_close(adapters.unmerge(adapters.merge(params, system), params.agents, system), params, atol=1e-6)


@pytest.mark.parametrize("changes", [{"scheme": "hyper"}, {"scheme": "mask"}, {"levels": ("unit_type",)}])
def test_what_is_not_an_agents_own_correction_stays_where_it_is(changes: dict[str, str]) -> None:
    system = system_of(task="two_kinds", **changes)
    params = random_params(system.actor)
    networks = adapters.merge(params, system)
    assert len(networks) == 3
    for said in (
        refusal(adapters.unmerge, networks, params.agents, system),
        refusal(adapters.resize, params, system, system, (0, 1, 2)),
    ):
        assert "this works for low-rank adapters or layers that each agent has for itself alone" in said


def test_a_merged_network_is_plain_flax() -> None:
    system = system_of()
    params = random_params(system.actor)
    expected = logits(system, params)
    network = Network(system.config.actor, system.env.spec.n_actions, head_gain=1.0, n_ids=3)
    start, first = jnp.zeros((1, 0)), jnp.zeros((12, 1), bool)
    apply = jax.jit(lambda tree, x, i: network.apply({"params": tree}, start, x, first, i)[1])
    for i, tree in enumerate(adapters.merge(params, system)):
        assert_close(apply(tree, observations(6).reshape(12, 1, 3), i)[:, 0], expected[i], atol=2e-5)


def test_networks_that_do_not_come_of_these_adapters_are_refused() -> None:
    system = system_of()
    networks = adapters.merge(random_params(system.actor), system)
    others = random_params(system.actor, seed=1).agents
    assert "do not consist of one trunk" in refusal(adapters.unmerge, networks, others, system)
    assert "there must be 3 networks, got 2" in refusal(adapters.unmerge, networks[:2], others, system)


# A team of another size


@pytest.mark.parametrize(
    ("scheme", "sources"),
    [("ps_id", (2, 0)), ("lorasa", (0, 1, 2, 1)), pytest.param("lorasa", (1, 1, 0), marks=pytest.mark.slow)],
)
def test_agents_that_stay_play_on_and_copies_play_alike(scheme: str, sources: tuple[int, ...]) -> None:
    before, after = system_of(scheme, 3), system_of(scheme, len(sources))
    params = random_params(before.actor)
    resized = adapters.resize(params, before, after, sources)
    assert_close(logits(after, resized), logits(before, params)[list(sources)], atol=1e-5)


@pytest.mark.parametrize("scheme", ["nps", "mtl"])
def test_what_is_no_adapter_is_resized_where_it_can_be(scheme: str) -> None:
    before, after = system_of(scheme), system_of(scheme, 4)
    params = random_params(before.actor)
    if scheme == "nps":
        assert "trunks cannot" in refusal(adapters.resize, params, before, after, (0, 1, 2, 0))
        return
    resized = adapters.resize(params, before, after, (0, 1, 2, "average"))
    heads = [team.agents["agent"]["head"]["kernel"] for team in (resized, params)]
    assert_close(heads[0][3], heads[1].mean(axis=0))


def test_the_average_is_the_mean_correction_as_near_as_its_rank_allows() -> None:
    before, after = system_of("lorasa", 3), system_of("lorasa", 4)
    params = random_params(before.actor)
    own = adapters.resize(params, before, after, (0, 1, 2, "average")).agents["agent"]["after1"]
    old = {part: np.asarray(leaf) for part, leaf in params.agents["agent"]["after1"].items()}
    mean = np.mean([old["left"][i] @ old["right"][i] for i in range(3)], axis=0)
    found = np.asarray(own["left"][3] @ own["right"][3])
    missed = np.linalg.svd(mean, compute_uv=False)[2:]
    assert np.linalg.norm(found - mean) == pytest.approx(np.linalg.norm(missed), rel=1e-3)
    alike = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), params.agents)
    ids = jnp.ones_like(params.shared["id"]["embedding"])
    same = PolicyParams({**params.shared, "id": {"embedding": ids}}, alike)
    everyone = logits(after, adapters.resize(same, before, after, (0, 1, 2, "average")))
    assert_close(everyone[3], everyone[0], atol=1e-4)


def test_a_fresh_agent_plays_as_the_trunk_does() -> None:
    before, after = system_of(), system_of(n_agents=4)
    params = random_params(before.actor)
    resized = adapters.resize(params, before, after, (0, 1, 2, "fresh"), KEY)
    assert not np.any(resized.agents["agent"]["fc1"]["left"][3])
    trunk = jax.tree.map(jnp.zeros_like, resized.agents)
    assert_close(logits(after, resized)[3], logits(after, resized._replace(agents=trunk))[3], atol=1e-6)
    assert_close(resized.shared["id"]["embedding"][0, 3], params.shared["id"]["embedding"][0].mean(axis=0))


@pytest.mark.parametrize(
    ("after", "sources", "said"),
    [
        ({"n_agents": 4}, (0, 1, 2), "sources must name one for each of the 4 agents, got 3"),
        ({"n_agents": 2}, (0, 3), "a source must be one of the 3 agents, from 0, or average or fresh; got 3"),
        ({"n_agents": 2}, (0, "avg"), "or average or fresh; got 'avg'"),
        ({"n_agents": 2}, (0, "fresh"), "needs a key"),
        (
            {"n_agents": 2, "task": "probe_memory", "actor": (("hidden", 9),)},
            (0, 1),
            "probe_memory needs a team of another kind: ",
        ),
        (
            {"n_agents": 4, "task": "own_number"},
            (0, 1, 2, 0),
            "agents/agent/fc1/full is absent, and must be [4, 2, 8]",
        ),
    ],
)
def test_teams_that_differ_in_more_are_refused(after: dict[str, Any], sources: tuple, said: str) -> None:
    params = random_params(system_of().actor)
    assert said in refusal(adapters.resize, params, system_of(), system_of(**after), sources)


@pytest.mark.parametrize("name", ["built-in", *OWN_NETWORKS])
@pytest.mark.parametrize("changes", [{"rank": 2, "alpha": 4.0}, {"rank": 3, "alpha": 1.5}, {"rank": 99}])
def test_a_team_of_a_larger_rank_or_another_alpha_plays_alike(name: str, changes: dict[str, Any]) -> None:
    network = OWN_NETWORKS.get(name, {})
    before, after = system_of(**network), system_of(**network, **changes)
    params = random_params(before.actor)
    resized = adapters.resize(params, before, after, (0, 1, 2), KEY)
    assert_same(resized.shared, params.shared)
    for own, new in zip(adapters.merge(params, before), adapters.merge(resized, after), strict=True):
        assert_close(new, own, atol=1e-6)
    assert_close(logits(after, resized), logits(before, params), atol=1e-5)


def test_what_keeps_its_rank_is_copied_to_the_bit_and_what_grows_needs_a_key() -> None:
    params = random_params(system_of().actor)
    assert_same(adapters.resize(params, system_of(), system_of(), (0, 1, 2)).agents, params.agents)
    larger = system_of(rank=4, actor=(("hidden", 8),))
    assert "a rank grows, so a key is needed" in refusal(adapters.resize, params, system_of(), larger, (0, 1, 2))


@pytest.mark.parametrize("name", ["built-in", *OWN_NETWORKS])
def test_a_team_of_a_smaller_rank_is_the_nearest(name: str) -> None:
    network = OWN_NETWORKS.get(name, {})
    before, after = system_of(**network), system_of(**network, rank=1)
    params = random_params(before.actor)
    old, new = (deltas_of(*team) for team in ((params, before), (adapters.resize(params, before, after, SAME), after)))
    for target in new.spec.targets:
        nothing = {target.path: jnp.zeros(target.shape)}
        for i in range(3):
            change, near = (
                target.to_matrix(deltas.merge(nothing, team[i].select(target.path))[target.path]) for team in (old, new)
            )
            u, size, v = np.linalg.svd(np.asarray(change), full_matrices=False)
            assert_close(near, change if target.full else size[0] * np.outer(u[:, 0], v[0]), atol=1e-5)
    assert any(not target.full and not old.spec.by_path[target.path].full for target in new.spec.targets)


@pytest.mark.parametrize("sources", [(0, 1, 2, 1), (2, 0), (0, 1, 2, "average")])
def test_ids_that_a_network_of_ones_own_reads_move_with_their_agents(sources: tuple[int | str, ...]) -> None:
    network = OWN_NETWORKS["gru"]
    before, after = system_of(**network), system_of(**network, n_agents=len(sources), rank=3)
    params = random_params(before.actor)
    resized = adapters.resize(params, before, after, sources, KEY)
    stay = [j for j, source in enumerate(sources) if isinstance(source, int)]
    expected = logits(before, params)[[sources[j] for j in stay]]
    assert_close(logits(after, resized)[stay], expected, atol=1e-5)
    assert_same(resized.shared["GRUCell_0"], params.shared["GRUCell_0"])


@every_own_network
def test_numbers_whose_meaning_only_the_network_knows_are_kept(name: str) -> None:
    system = system_of(**OWN_NETWORKS[name])
    params = random_params(system.actor)
    said = refusal(adapters.resize, params, system, system, (1, 0, 2))
    assert "tells agents apart by their numbers, so each must keep its own" in said
    assert_same(adapters.resize(params, system, system, SAME), params)


# From anybody


def rewrite(folder: Path, **changes: Any) -> None:
    """Changes what is said about the adapters; None removes a field."""
    fields = json.loads((folder / SPEC_FILE).read_text())
    about = fields["about"] | changes
    fields["about"] = {name: value for name, value in about.items() if value is not None}
    (folder / SPEC_FILE).write_text(json.dumps(fields))


TRUNK = {name: list(leaf.shape[1:]) for name, leaf in by_path(random_params(system_of().actor).shared).items()}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        *(
            ({name: value}, f"{name} of about in ")
            for name, value in [
                ("groups", [0, 2]), ("groups", [0.0]), ("groups", [-1, 0]),
                ("groups", []), ("groups", [0, 2**31 - 2]), ("groups", [False]),
                ("trunk", []), ("trunk", {"fc1/kernel": 2}), ("trunk", {"fc1/kernel": [2.0]}),
                ("trunk", {"fc1/kernel": [2, -3]}), ("trunk", {"fc1/kernel": [2**70, 2]}),
                ("trunk", {"fc1/kernel": [1] * 32}), ("backbone", "g" * 64),
                ("backbone", None), ("env", 3), ("task", None),
            ]
        ),
        ({"groups": [0] * 50_000}, "groups in "),
        ({"trunk": {"../../x": [2]}}, "must be kernels of the trunk in about"),
        ({"trunk": {"fc1/kernel": [3, 8]}}, "must be kernels of the trunk in about"),
        ({"trunk": TRUNK | {"fc1/kernel": [2**24 - 1, 8]}}, "must be kernels of the trunk in about"),
    ],
)  # fmt: skip
def test_what_is_said_of_adapters_is_refused_by_its_field_where_it_lies(
    folder: Path, changes: dict[str, Any], said: str
) -> None:
    rewrite(folder, **changes)
    message = refusal(adapters.load, folder)
    assert said in message
    assert str(folder) in message


def test_deltas_of_anything_else_are_no_teams(tmp_path: Path) -> None:
    tree = {"fc1": {"kernel": jnp.zeros((6, 8))}}
    deltas.save(tmp_path / "deltas", deltas.init(KEY, deltas.make_spec(tree), 3))
    assert "env of about in" in refusal(adapters.load, tmp_path / "deltas")


class Trap:
    """A pickle that leaves a trace where it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("file", [SPEC_FILE, f"owner_1/{WEIGHTS_FILE}"])
def test_what_is_no_such_file_is_refused_and_never_run(folder: Path, file: str) -> None:
    contents = {
        "pickle": pickle.dumps(Trap(folder / "trap")),
        "empty": b"",
        "short": (folder / file).read_bytes()[:-2],
        "deep": b"[" * 100_000,
        "no text": b"\xff" * 100,
        "long header": struct.pack("<Q", 2**63) + b"{}",
        "large header": struct.pack("<Q", 99_999_999) + b"{}",
    }
    for content in contents.values():
        (folder / file).write_bytes(content)
        assert "is not a valid" in refusal(adapters.load, folder)
    assert not (folder / "trap").exists()
    (folder / file).unlink()
    os.mkfifo(folder / file)  # a reader would wait for ever
    assert "there " in refusal(adapters.load, folder)


def test_a_folder_without_adapters_is_named(tmp_path: Path, folder: Path) -> None:
    assert f"there are no deltas in {tmp_path}" in refusal(adapters.load, tmp_path)
    (folder / SPEC_FILE).write_text(" " * 2**25)
    assert "is too large for a specification" in refusal(adapters.load, folder)
