import json
import os
from pathlib import Path

import pytest

from foveal.runtime.batch import RECORD, Record, find_jobs, settings_of
from foveal.runtime.upscaler import Upscaler


@pytest.fixture
def album(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("in/a.png", "in/b.JPG", "in/note.txt", "in/.hidden.png", "in/deep/c.tif", "in/.cache/d.png", "e.webp"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"x")
    return tmp_path


def pairs(*args, **options):
    return [(str(j.source), str(j.target)) for j in find_jobs(*args, **{"scale": 4, **options}) if not j.problem]


def test_folders_are_flat_or_whole_trees(album):
    assert pairs(["in"], "out") == [("in/a.png", "out/a.png"), ("in/b.JPG", "out/b.JPG")]
    tree = pairs(["in"], "out", recursive=True)
    assert tree == [("in/a.png", "out/a.png"), ("in/b.JPG", "out/b.JPG"), ("in/deep/c.tif", "out/deep/c.tif")]


def test_results_inside_the_source_folder_are_no_sources(album):
    Path("in/out").mkdir()
    Path("in/out/a.png").write_bytes(b"x")
    assert ("in/out/a.png", "in/out/out/a.png") not in pairs(["in"], "in/out", recursive=True)
    assert len(pairs(["in"], "in/out", recursive=True)) == 3


def test_one_picture_to_a_file_a_folder_or_beside(album):
    assert pairs(["e.webp"], "new.png") == [("e.webp", "new.png")]
    assert pairs(["e.webp"], "new") == [("e.webp", "new/e.webp")]
    assert pairs(["e.webp"], "new.png/") == [("e.webp", "new.png/e.webp")]
    assert pairs(["e.webp"], "in") == [("e.webp", "in/e.webp")]
    assert pairs(["e.webp"], None) == [("e.webp", "e_x4.webp")]
    assert pairs(["e.webp"], None, suffix="-big", file_format="tiff") == [("e.webp", "e-big.tif")]
    assert pairs(["e.webp", "in/a.png"], "new", file_format="jpeg") == [
        ("e.webp", "new/e.jpg"),
        ("in/a.png", "new/a.jpg"),
    ]


def test_globs_that_the_shell_left(album):
    assert pairs(["in/*.png"], None) == [("in/a.png", "in/a_x4.png")]
    assert pairs(["in/**/*.tif"], "out") == [("in/deep/c.tif", "out/c.tif")]


def test_the_same_picture_named_twice_is_one_job(album):
    assert len(pairs(["e.webp", "e.webp"], "out")) == 1


def problems(*args, **options):
    return [j.problem for j in find_jobs(*args, **{"scale": 4, **options}) if j.problem]


def test_problems_of_one_picture_do_not_stop_the_others(album):
    assert problems(["e.webp", "gone.png"], "out") == ["gone.png: no such file"]
    assert problems(["in/a.png"], "in") == [
        "in/a.png: the result would take the place of its source; give another -o or a --suffix"
    ]
    Path("in/e.webp").write_bytes(b"x")
    assert problems(["e.webp", "in/e.webp"], "out") == [
        "in/e.webp: e.webp already becomes out/e.webp; give one of them another place"
    ]
    assert problems(["in/note.txt"], "out") == [
        "in/note.txt: no format is known for a result named note.txt; say --format png"
    ]


@pytest.mark.parametrize(
    ("inputs", "out", "options", "text"),
    [
        ([], None, {}, "name at least one picture, folder or glob"),
        (["in/.cache/*.gif"], "out", {}, "no picture in in/.cache/"),
        (["in"], None, {}, "a folder of pictures needs a place for the results: -o FOLDER"),
        (["e.webp"], "out", {"file_format": "xcf"}, "format must be one of png, jpeg, .*, got 'xcf'"),
        (["e.webp"], "o.png", {"file_format": "gif"}, "-o o.png asks for another format than --format gif"),
    ],
)
def test_what_cannot_begin(inputs, out, options, text, album):
    with pytest.raises(ValueError, match=text):
        find_jobs(inputs, out, scale=4, **options)


def test_record_knows_done_stale_and_unknown(album):
    job = find_jobs(["in"], "out", scale=4)[0]
    job.folder.mkdir()
    record = Record(job.folder, "bundle 1")
    assert record.state(job) == "missing"
    job.target.write_bytes(b"somebody else's")
    assert record.state(job) == "unknown"
    record.add(job)
    assert record.state(job) == Record(job.folder, "bundle 1").state(job) == "done"
    assert Record(job.folder, "bundle 2").state(job) == "stale"
    job.target.unlink()
    assert record.state(job) == "missing"
    job.target.write_bytes(b"x")
    later = job.source.stat().st_mtime_ns + 1
    os.utime(job.source, ns=(later, later))
    assert record.state(job) == "stale"


def test_record_bears_cut_off_lines_and_takes_the_last(album):
    job = find_jobs(["in"], "out", scale=4)[0]
    job.folder.mkdir()
    job.target.write_bytes(b"x")
    Record(job.folder, "old").add(job)
    Record(job.folder, "new").add(job)
    path = job.folder / RECORD
    path.write_text(path.read_text() + '[1]\n{"target": "a.p')
    assert Record(job.folder, "new").state(job) == "done"
    assert json.loads(path.read_text().splitlines()[0])["settings"] == "old"


def test_settings_follow_the_weights(bundles):
    one, other, best = (
        Upscaler(model=bundles[kind], quality=quality)
        for kind, quality in (("trims", "fast"), ("same", "fast"), ("trims", "best"))
    )
    assert settings_of(one) == settings_of(Upscaler(model=bundles["trims"]))
    assert len({settings_of(one), settings_of(other), settings_of(best)}) == 3
