"""Unfinished files: named within what disks take, removed by whoever writes the same target next, by nobody else."""

from __future__ import annotations

import os

import pytest
from picture_samples import smooth

from foveal import images
from foveal.images import Picture, Writer, temporary
from foveal.images.temporary import Temporary


@pytest.fixture(autouse=True)
def _look_anew(monkeypatch):
    monkeypatch.setattr(temporary, "_left", {})


def test_what_a_killed_process_left_is_removed(tmp_path):
    left = [tmp_path / f".a.png.{token}.part" for token in ("0123abcd", "deadbeef")]
    others = [tmp_path / name for name in (".b.png.0123abcd.part", ".a.png.part", ".a.png.0123abcX.part", "a.part")]
    for path in left + others:
        path.write_bytes(b"half")
    images.write(tmp_path / "a.png", Picture(smooth(8, 9, 3), False))
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)


def test_what_another_is_still_writing_stays(tmp_path):
    other = Writer(tmp_path / "a.png", 9, 8, 3)
    with other:
        temporary._left.clear()
        images.write(tmp_path / "a.png", Picture(smooth(8, 9, 3), False))
        assert other.temporary.exists()
        other._overwrite = True
        other.rows(smooth(8, 9, 3))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_disk_without_locks_removes_nothing(tmp_path, monkeypatch):
    import fcntl

    def refuse(*_):
        raise OSError(37, "No locks available")

    (tmp_path / ".a.png.0123abcd.part").write_bytes(b"half")
    monkeypatch.setattr(fcntl, "flock", refuse)
    images.write(tmp_path / "a.png", Picture(smooth(8, 9, 3), False))
    assert (tmp_path / ".a.png.0123abcd.part").exists()


@pytest.mark.parametrize("name", ["漢" * 82 + ".png", "a" * 251 + ".png", os.fsdecode(b"\xe9" * 250 + b".png")])
def test_long_names_are_cut_to_bytes(tmp_path, name):
    assert len(os.fsencode(Temporary(tmp_path / name).path.name)) <= 255
    images.write(tmp_path / name, Picture(smooth(8, 9, 3), False))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    def deny(*_):
        raise PermissionError(13, "Permission denied")

    writer = Writer(tmp_path / "a.png", 9, 8, 3)
    monkeypatch.setattr(temporary.os, "open", deny)
    with pytest.raises(
        images.PictureError, match=r"cannot be written \(Permission denied\); check the space and rights"
    ):
        writer.__enter__()
