import json
import os
from pathlib import Path

import pytest

from foveal.runtime.batch import RECORD, Job, Record, account, find_jobs, settings_of
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
        "in/note.txt: it is not a picture that foveal reads; give one of PNG, JPEG, WebP, TIFF, AVIF, GIF, BMP, "
        "HEIC, JPEG XL, DNG"
    ]


@pytest.mark.parametrize(
    ("inputs", "out", "options", "text"),
    [
        ([], None, {}, "name at least one picture, folder or glob"),
        (["in/.cache/*.gif"], "out", {}, "no picture in in/.cache/.*; nothing that foveal reads is there .--recursive"),
        (["in/*.txt"], "out", {}, r"no picture in in/\*.txt; 1 file that foveal cannot read passed over \(.txt 1\)"),
        ([""], "out", {}, "an empty name was given as a picture; is a variable of the shell not set"),
        (["e.webp"], "", {}, "-o is empty; name a file or a folder"),
        (["e.webp"], "-", {}, "-o - would write to standard output, which foveal does not; name a file"),
        (["e.webp"], "x.heic", {}, r"-o x.heic: foveal writes no .heic files; end the name in one of .png, .*or in /"),
        (["e.webp"], "x.jxl", {}, "-o x.jxl: foveal writes no .jxl files"),
        (["e.webp"], "x.xyz", {}, "-o x.xyz: foveal writes no .xyz files"),
        (["e.webp", "in/a.png"], "x.heic", {}, "-o x.heic: foveal writes no .heic files"),
        (["e.webp", "in/a.png"], "x.png", {}, "-o x.png names one file, and there may be several pictures; name a fo"),
        (["e.webp"], "in/note.txt", {}, "-o in/note.txt is there and is no folder; name a folder, or one picture"),
        (["e.webp"], "/dev/null", {}, "-o /dev/null is there and is no folder"),
        (["e.webp"], "loop", {}, "-o loop is a link that leads nowhere; name a folder"),
        (["in"], None, {}, "a folder of pictures needs a place for the results: -o FOLDER"),
        (["e.webp"], "out", {"file_format": "xcf"}, "format must be one of png, jpeg, .*, got 'xcf'"),
        (["e.webp"], "o.png", {"file_format": "gif"}, "-o o.png asks for another format than --format gif"),
    ],
)
def test_what_cannot_begin(inputs, out, options, text, album):
    Path("loop").symlink_to("loop")
    with pytest.raises(ValueError, match=text):
        find_jobs(inputs, out, scale=4, **options)


def found(inputs, out, **options):
    """Sources that are done, and what is said of those passed over."""
    passed = []
    jobs = find_jobs(inputs, out, scale=2, pass_over=lambda *one: passed.append(one), **options)
    return [str(job.source) for job in jobs if not job.problem], account(passed)


def made(source, target, folder):
    """Write a result, and the record of it."""
    job = Job(Path(source), Path(target), Path(folder))
    job.target.write_bytes(b"x")
    Record(job.folder, "bundle 1").add(job)


def test_results_are_no_sources(album):
    made("in/a.png", "in/a_x2.png", "in")
    said = ["1 result of an earlier run passed over"]
    assert found(["in/a.png", "in/a_x2.png"], None) == (["in/a.png"], said), "as a shell gives them"
    assert found(["in/*.png"], None) == (["in/a.png"], said)
    sources, words = found(["in"], "in", suffix="_x2")
    assert sources == ["in/a.png", "in/b.JPG"]
    assert words[0] == said[0]
    Path("in/a.png").unlink()
    assert found(["in/*.png"], None) == ([], said), "also when the source has gone"
    made("in/b.JPG", "in/b_x2.JPG", "in")
    assert "2 results of earlier runs passed over" in found(["in"], "in", suffix="_x2")[1]


def test_what_stands_where_a_result_goes_is_no_source(album):
    """Without a record too, as a single picture leaves none."""
    Path("in/a_x2.png").write_bytes(b"x")
    said = ["1 result of an earlier run passed over"]
    assert found(["in/a.png", "in/a_x2.png"], None) == (["in/a.png"], said)
    assert found(["in/a_x2.png", "in/a.png"], "out") == (["in/a_x2.png", "in/a.png"], [])


def test_results_in_trees_are_known_by_the_record_above_them(album):
    made("in/deep/c.tif", "in/deep/c_x2.tif", "in")
    assert found(["in"], "in", suffix="_x2", recursive=True)[0] == ["in/a.png", "in/b.JPG", "in/deep/c.tif"]


def test_a_result_can_be_made_larger_when_it_is_meant(album):
    made("in/a.png", "in/a_x2.png", "in")
    assert found(["in/a_x2.png"], None) == (["in/a_x2.png"], [])
    Path("out").mkdir()
    made("in/a.png", "out/a.png", "out")
    assert found(["out"], "larger") == (["out/a.png"], [])


def test_everything_that_is_not_done_is_told(album):
    for name in ("IMG_1.PSD", "IMG_2.psd", "README"):
        Path("in", name).write_bytes(b"x")
    Path("in/elsewhere").symlink_to(album)
    said = ["4 files that foveal cannot read passed over (.psd 2, .txt 1, no suffix 1)", "2 folders passed over"]
    assert found(["in"], "out") == (["in/a.png", "in/b.JPG"], said)
    assert found(["in/*"], "out") == (["in/a.png", "in/b.JPG"], said)
    assert found(["in"], "out", recursive=True)[1] == [said[0], "1 link to a folder passed over"]


def test_a_folder_that_cannot_be_read_is_a_problem(album, monkeypatch):
    scan = os.scandir

    def deny(path):
        if os.fspath(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", deny)
    text = "in/deep: the folder cannot be read (Permission denied)"
    assert problems(["in"], "out", recursive=True) == [text]
    assert pairs(["in"], "out", recursive=True) == [("in/a.png", "out/a.png"), ("in/b.JPG", "out/b.JPG")]
    assert problems(["in/deep"], "out") == [text]
    assert problems(["in/**/*.png"], "out") == [text]


def test_names_that_are_too_long(album):
    long = "a" * 249 + ".png"
    Path("in", long).write_bytes(b"x")
    assert pairs([f"in/{long}"], "out") == [(f"in/{long}", f"out/{long}")]
    (text,) = problems([f"in/{long}", "e.webp"], None)
    assert text.endswith("its result's name would be too long (256 bytes); give -o FOLDER, or a shorter name")
    (text,) = problems(["b" * 300, "e.webp"], "out")
    assert text == f"{'b' * 300}: it cannot be opened (File name too long)"


def test_loops_of_links(album):
    Path("lp.png").symlink_to("lp.png")
    assert problems(["lp.png"], "out") == ["lp.png: it cannot be opened (Too many levels of symbolic links)"]
    assert pairs(["e.webp"], "lp.png") == [("e.webp", "lp.png")]


def test_what_is_no_file(album):
    os.mkfifo("pipe.png")
    assert problems(["pipe.png", "-", "https://example.com/a.png"], "out") == [
        "pipe.png: it is a pipe or a device, not a file; save the picture to a file first",
        "-: foveal does not read from standard input; save the picture to a file first",
        "https://example.com/a.png: foveal reads files, no addresses; download it first",
    ]
    assert problems(["e.webp"], "e.webp/") == ["e.webp: its result cannot be e.webp/e.webp (Not a directory); give "
                                               "another -o"]  # fmt: skip


def test_names_that_lie_about_the_format(album):
    png = b"\x89PNG\r\n\x1a\n" + bytes(40)
    for name in ("wrong.jpg", "right.png", "bare", "odd.xyz"):
        Path(name).write_bytes(png)
    jobs = find_jobs(["wrong.jpg", "right.png", "bare", "odd.xyz"], None, scale=4)
    note = ("it is a PNG, whatever its name says, and stays one",)
    assert [(str(job.target), job.notes) for job in jobs] == [
        ("wrong_x4.png", note),
        ("right_x4.png", ()),
        ("bare_x4.png", ()),
        ("odd_x4.png", note),
    ]
    assert pairs(["wrong.jpg"], "large.jpg") == [("wrong.jpg", "large.jpg")]
    assert pairs(["wrong.jpg"], "out", file_format="webp") == [("wrong.jpg", "out/wrong.webp")]


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


@pytest.mark.parametrize("rest", [b'{"target": "Gr\xc3', b"\xff\xfe", b"[" * 100_000, b"null\n3\n", b"{}\n"])
def test_a_damaged_record_stops_nothing(album, rest):
    job = find_jobs(["in"], "out", scale=4)[0]
    job.folder.mkdir()
    job.target.write_bytes(b"x")
    path = job.folder / RECORD
    path.write_bytes(rest)
    record = Record(job.folder, "new")
    assert record.state(job) == "unknown"
    record.add(job)
    assert path.read_bytes().startswith(rest)
    assert Record(job.folder, "new").state(job) == "done"


@pytest.mark.parametrize("name", ["a\u2028b\x85c.png", "Grün 漢.png", os.fsdecode(b"Z\xfcri.png"), "a\nb.png"])
def test_the_record_takes_every_name(album, name):
    Path("in", name).write_bytes(b"x")
    (job,) = find_jobs([f"in/{name}"], "out", scale=4)
    job.folder.mkdir()
    job.target.write_bytes(b"x")
    Record(job.folder, "new").add(job)
    assert Record(job.folder, "new").state(job) == "done"


def test_settings_follow_the_weights(bundles):
    one, other, best = (
        Upscaler(model=bundles[kind], quality=quality)
        for kind, quality in (("trims", "fast"), ("same", "fast"), ("trims", "best"))
    )
    assert settings_of(one) == settings_of(Upscaler(model=bundles["trims"]))
    on_black = settings_of(one, background=(0, 0, 0))
    on_white = settings_of(one, background=(255, 255, 255))
    assert len({settings_of(one), settings_of(other), settings_of(best), on_black, on_white}) == 5
