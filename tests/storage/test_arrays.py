"""A checkpoint is whole or not at all, and one that changed is refused by name."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from checkpoints import keep_run, numbered, refusal
from helpers import assert_same, two_phases

from lorasa_jax.config import ConfigError
from lorasa_jax.core.trees import by_path, nested
from lorasa_jax.running.state import ADAPTERS, SHARED
from lorasa_jax.storage import arrays as storage
from lorasa_jax.storage.arrays import complete, drop_after, read_item, write
from lorasa_jax.storage.checkpoints import load, take_snapshot
from lorasa_jax.storage.saver import Saver


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return keep_run(tmp_path_factory.mktemp("run") / "checkpoints")


@pytest.fixture
def copy(kept: SimpleNamespace, tmp_path: Path) -> Path:
    """The later checkpoint, to be damaged, beside an older one."""
    shutil.copytree(kept.directory, tmp_path / "checkpoints")
    return tmp_path / "checkpoints" / kept.paths[ADAPTERS].name


def test_a_backbone_is_read_without_the_rest(kept: SimpleNamespace, copy: Path) -> None:
    for item in ("adapters", "train"):
        shutil.rmtree(copy / item)
    assert_same(read_item(copy, "shared"), kept.states[ADAPTERS].train.learner.actor.shared)
    with pytest.raises(ConfigError, match="has no item 'trunk'; it has shared, adapters, best, train"):
        read_item(copy, "trunk")


@pytest.mark.parametrize("item", ["shared", "adapters", "train", "meta", "files.json", "_CHECKPOINT_METADATA"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_file_is_named_with_what_else_there_is(copy: Path, item: str, damage: str) -> None:
    files = [copy / item] if (copy / item).is_file() else [path for path in (copy / item).rglob("*") if path.is_file()]
    file = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flip" else content[:-1])
    message = refusal(copy)
    what = "damaged or missing" if item == "files.json" else "missing" if damage == "remove" else "damaged"
    assert f"{file.relative_to(copy)} of checkpoint {copy} is {what}" in message
    older = complete(copy.parent)[0]
    assert message.endswith(f"use the older one: {older}")
    load(older, two_phases().config, two_phases().env)


def test_a_missing_item_and_a_missing_checkpoint_are_named(copy: Path) -> None:
    shutil.rmtree(copy / "train")
    assert "train/" in refusal(copy)
    shutil.rmtree(copy)
    oldest = complete(copy.parent)[0]
    assert refusal(copy) == f"there is no checkpoint {copy}; there are {oldest.name}"
    (oldest / "files.json").unlink()
    assert refusal(oldest).endswith("there is no older one, so start the run again in another directory")


def test_a_change_of_any_leaf_is_noticed(kept: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one that the files do not show, such as another type."""
    path, restore = kept.paths[ADAPTERS], storage._restore
    meta = restore(path, "meta")
    for item, described in meta["leaves"].items():
        good = by_path(restore(path, item))
        for name, array in good.items():
            wrong = array.view(np.uint8) if array.dtype == bool else array.astype(np.complex64)
            for changed in (wrong, array[..., None], np.flip(array) if len(np.unique(array)) > 1 else ~(array > 0)):
                spoilt = nested({**good, name: changed})
                monkeypatch.setattr(storage, "_restore", lambda path, item, described, spoilt=spoilt: spoilt)
                with pytest.raises(
                    ConfigError, match=f"{name} in {item} of checkpoint .* differs from what was written"
                ):
                    storage.read_arrays(path, item, described)
        rest = {name: array for name, array in good.items() if name != next(iter(good))}
        monkeypatch.setattr(storage, "_restore", lambda path, item, described, rest=rest: nested(rest))
        with pytest.raises(ConfigError, match="differs from what was written"):
            storage.read_arrays(path, item, described)


def test_the_last_two_complete_checkpoints_stay(kept: SimpleNamespace, tmp_path: Path) -> None:
    for iteration in (8, 9, 10):
        write(tmp_path, take_snapshot(numbered(kept.states[SHARED], iteration), kept.config))
    assert [path.name for path in complete(tmp_path)] == ["9", "10"]
    assert len(list(tmp_path.iterdir())) == 2
    drop_after(tmp_path / "9")
    assert [path.name for path in complete(tmp_path)] == ["9"]


ODD_NAMES = [
    "[2026] lora",
    "a*b?",
    "back\\slash",
    "{a,b}",
    "gs:",
    "~",
    "-lead",
    "100%20#",
    "two\nlines",
    "日本",
    "\udcff",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_directory_of_any_name_holds_checkpoints_that_can_be_read(tmp_path: Path, name: str) -> None:
    items = {"shared": {"fc1/kernel": np.arange(6.0).reshape(2, 3)}, "train": {"none": np.zeros((0, 2))}}
    path = write(tmp_path / name, storage.Snapshot(3, items, {}))
    assert path.parent == tmp_path / name
    assert_same(read_item(path, "shared"), nested(items["shared"]))
    assert_same(read_item(path, "train"), nested(items["train"]))
    assert [found.name for found in path.parent.iterdir()] == ["3"]


def test_a_checkpoint_that_cannot_be_read_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import orbax.checkpoint as ocp

    snapshot = storage.Snapshot(3, {"shared": {"fc1/kernel": np.arange(6.0)}}, {})
    write(tmp_path, snapshot._replace(rows=2))
    save = ocp.Checkpointer.save

    def lose(self: Any, path: Path, args: Any) -> None:
        save(self, path, args=args)
        shutil.rmtree(path / "shared" / "d")

    monkeypatch.setattr(ocp.Checkpointer, "save", lose)
    with pytest.raises(OSError, match=r"shared of checkpoint .*3\.unfinished cannot be read \(.*\): .*3'$"):
        write(tmp_path, snapshot)
    assert [path.name for path in tmp_path.iterdir()] == ["2"]


def test_what_was_not_finished_is_no_checkpoint_and_goes(kept: SimpleNamespace, copy: Path) -> None:
    shutil.copytree(copy, copy.with_name("90.unfinished"))
    (copy.with_name("91.unfinished.orbax-checkpoint-tmp") / "train").mkdir(parents=True)
    copy.with_name("8.removed").mkdir()
    assert complete(copy.parent)[-1] == copy
    saver = Saver(copy.parent, kept.config, 1e9, pytest.fail)
    assert {path.name for path in copy.parent.iterdir()} == {path.name for path in kept.directory.iterdir()}
    saver.close()


def test_what_others_put_beside_checkpoints_stays(kept: SimpleNamespace, copy: Path) -> None:
    copy.with_name("mine-5").mkdir()
    copy.with_name(".DS_Store").touch()
    Saver(copy.parent, kept.config, 1e9, pytest.fail).close()
    assert copy.with_name("mine-5").is_dir() and copy.with_name(".DS_Store").is_file()


# From anybody: every digest right, and yet


def forge(path: Path) -> None:
    """Makes the list of files true again."""
    list_files(path, storage._digests(path))


def list_files(path: Path, files: Any) -> None:
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    listed = json.dumps({"sha256": digest, "files": files})
    (path / "files.json").write_text(listed)


@pytest.mark.parametrize("name", ["shared/../../../run/metrics.jsonl", "/etc/passwd", "..", "shared/a\0b"])
def test_a_list_that_leads_out_of_the_checkpoint_is_refused(copy: Path, name: str) -> None:
    list_files(copy, {**storage._digests(copy), name: "0" * 64})
    assert refusal(copy) == f"{name!r} in checkpoint {copy} points outside it, so the checkpoint is rejected"


def test_a_link_that_leads_out_of_the_checkpoint_is_refused(copy: Path) -> None:
    (copy / "shared" / "more").symlink_to("/etc")
    forge(copy)
    assert "'shared/more' in checkpoint" in refusal(copy)


@pytest.mark.parametrize("files", [[], "x", {"meta/x": 3}, {"meta/" + "x" * 5000: "0"}])
def test_a_list_of_anything_else_is_refused(copy: Path, files: Any) -> None:
    list_files(copy, files)
    refusal(copy)


def change_meta(path: Path, place: tuple[str, ...], value: Any) -> None:
    """Writes another value into `meta`."""
    (file,) = [file for file in (path / "meta").iterdir() if file.read_bytes().startswith(b"{")]
    meta = json.loads(file.read_text())
    branch = meta
    for name in place[:-1]:
        branch = branch[name]
    branch[place[-1]] = value
    file.write_text(json.dumps(meta))
    forge(path)


KERNEL = ("leaves", "shared", "fc1/kernel")


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("format",), 99, "has format 99"),
        *(
            (place, value, "meta of checkpoint")
            for place, value in [
                (("leaves",), []), (("leaves", "evil"), {}), (("leaves", "shared"), []), (KERNEL, {}),
                ((*KERNEL, "shape"), [-1]), ((*KERNEL, "shape"), [2**31]), ((*KERNEL, "shape"), "1"),
                ((*KERNEL, "dtype"), "object"), ((*KERNEL, "dtype"), []), (("run",), {}), (("config",), 3),
                (("config", "total_steps"), None),
                (("run", "phase"), "evil"), (("run", "phase"), []), (("run", "evil"), 1), (("run", "curve"), [[1]]),
                (("run", "curve"), [3]), (("run", "curve"), [[1, [0.5], None]]), (("run", "random_return"), None),
                (("run", "evaluation_interval"), 0),
                (("run", "switch_steps"), ["x"]), (("run", "train_seconds"), "x"),
            ]
        ),
        ((*KERNEL, "shape"), [2**30, 2**30], "but this run needs float32[1, 1, "),
        ((*KERNEL, "dtype"), "float64", "but this run needs float32[1, 1, "),
        ((*KERNEL, "sha256"), 3, "fc1/kernel in shared of checkpoint"),
    ],
)  # fmt: skip
def test_a_description_that_lies_is_refused(copy: Path, place: tuple[str, ...], value: Any, said: str) -> None:
    change_meta(copy, place, value)
    assert said in refusal(copy)


def test_no_room_is_made_for_arrays_of_other_shapes(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import orbax.checkpoint as ocp

    change_meta(copy, (*KERNEL, "shape"), [2**30, 2])
    with pytest.raises(ConfigError, match="which is too many"):
        read_item(copy, "shared")
    change_meta(copy, (*KERNEL, "shape"), [2**20, 2])
    read = ocp.Checkpointer.restore

    def only_meta(self: Any, path: Any, args: Any) -> Any:
        assert set(args.keys()) == {"meta"}
        return read(self, path, args=args)

    monkeypatch.setattr(ocp.Checkpointer, "restore", only_meta)
    with pytest.raises(ConfigError, match=r"fc1/kernel in shared of checkpoint .* differs from what was written"):
        read_item(copy, "shared")


class Trap:
    """A pickle that leaves a trace where it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("item", ["meta", "shared", "files.json"])
def test_what_is_no_checkpoint_is_refused_and_never_run(copy: Path, tmp_path: Path, item: str) -> None:
    home = copy / item
    files = [home] if home.is_file() else [path for path in home.rglob("*") if path.is_file()]
    for content in (pickle.dumps(Trap(tmp_path / "trap")), b"[" * 100_000, b"\xff"):
        for file in files:
            if file.name != "commit_success.txt":
                file.write_bytes(content)
        if item != "files.json":
            forge(copy)
        refusal(copy)
    assert not (tmp_path / "trap").exists()
