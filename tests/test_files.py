"""Files are whole or absent, and an error names the file and what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lorasa_jax.envs.drawing import save_gif
from lorasa_jax.files import naming, reason, whole


def test_a_file_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with whole(path) as unfinished:
        unfinished.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE])
def test_a_file_that_fails_leaves_what_was_and_is_named(tmp_path: Path, code: int) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(OSError) as caught, whole(path) as unfinished:
        unfinished.write_text("half")
        raise OSError(code, os.strerror(code))  # a full disk names no file
    assert (caught.value.errno, caught.value.filename) == (code, str(path))
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["file"]


def test_any_other_end_of_a_file_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), whole(tmp_path / "file") as unfinished:
        unfinished.write_text("half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    with whole(tmp_path / "folder") as unfinished:
        unfinished.mkdir()
        (unfinished / "a").touch()
    assert os.listdir(tmp_path / "folder") == ["a"]
    with pytest.raises(OSError, match=r"other'$"), whole(tmp_path / "other") as unfinished:
        unfinished.mkdir()
        (unfinished / "missing" / "a").touch()
    assert os.listdir(tmp_path) == ["folder"]


def test_an_error_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"/elsewhere'$"), naming(tmp_path):
        raise OSError(errno.EIO, "no", "/elsewhere")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left", "a/b"), "a/b: No space left; free some space there"),
        (OSError(errno.EDQUOT, "Quota exceeded", "a"), "a: Quota exceeded; free some of your quota there"),
        (OSError(errno.EACCES, "Permission denied", b"a"), "a: Permission denied"),
        (OSError("encoder error -2"), "encoder error -2"),
        (OSError(), "OSError"),
    ],
)
def test_an_error_is_one_line_with_what_to_do(error: OSError, said: str) -> None:
    assert reason(error) == said


def test_a_picture_that_does_not_fit_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's own error has neither a number nor a file."""
    from PIL import Image

    def half(self: Image.Image, path: Path, *args: object, **options: object) -> None:
        path.write_bytes(b"GIF89a")
        raise OSError("encoder error -2 when writing image file")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError) as caught:
        save_gif([Image.new("RGB", (4, 4))], tmp_path / "a.gif")
    assert reason(caught.value) == f"{tmp_path / 'a.gif'}: encoder error -2 when writing image file"
    assert os.listdir(tmp_path) == []
