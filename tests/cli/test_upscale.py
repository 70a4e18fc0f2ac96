import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.cli import _progress
from foveal.cli._progress import Show, duration
from foveal.cli.main import main
from foveal.runtime import throughput
from foveal.runtime.batch import RECORD
from foveal.runtime.compare import MARK

QUICK = ("-s", "2", "--quality", "fast", "--engine", "onnxruntime", "--threads", "1")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty folder with two pictures, a broken one, and a cache of its own."""
    monkeypatch.setenv("FOVEAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(throughput, "_TRIED", (32,))
    folder = tmp_path / "work"
    (folder / "in" / "deep").mkdir(parents=True)
    monkeypatch.chdir(folder)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (10, 14, 3), np.uint8)).save("in/a.png")
    Image.fromarray(rng.integers(0, 256, (9, 8), np.uint8)).save("in/deep/b.jpg")
    return folder


def run(capsys, *arguments, quick=True):
    with pytest.raises(SystemExit) as end:
        main(["upscale", *arguments, *(QUICK if quick else ())])
    said = capsys.readouterr()
    return end.value.code, said.out, said.err


def size(path):
    with Image.open(path) as image:
        return image.size


def test_one_picture_to_a_file(capsys):
    code, out, err = run(capsys, "in/a.png", "-o", "large.webp")
    assert (code, err) == (0, "")
    assert size("large.webp") == (28, 20)
    # Before the work: engine, threads and seconds; after it a line for the picture.
    first, second = out.splitlines()
    assert "fast_x2, onnxruntime, 1 thread: about" in first
    assert second.startswith("in/a.png → large.webp: 28×20, 0.00 MP in ")


def test_beside_the_source_with_a_suffix(capsys):
    assert run(capsys, "in/a.png")[0] == 0
    assert size("in/a_x2.png") == (28, 20)
    assert run(capsys, "-i", "in/a.png", "--suffix", "-big", "-f", "jpeg")[0] == 0
    assert size("in/a-big.jpg") == (28, 20)
    assert not (Path("in") / RECORD).exists()


def test_tree_of_a_folder(capsys):
    code, out, _ = run(capsys, "in", "-o", "out", "--recursive")
    assert code == 0
    assert size("out/deep/b.jpg") == (16, 18)
    assert "2 pictures, 0.00 MP in" in out.splitlines()[-1]


def test_one_bad_file_does_not_stop_the_rest(capsys):
    Path("in/empty.png").write_bytes(b"")
    Path("in/text.png").write_text("not a picture")
    whole = Path("in/a.png").read_bytes()
    Path("in/cut.png").write_bytes(whole[: len(whole) // 2])
    code, _, err = run(capsys, "in", "gone.png", "-o", "out")
    assert code == 1
    assert size("out/a.png") == (28, 20)
    for name in ("in/empty.png", "in/text.png", "in/cut.png", "gone.png"):
        assert name in err
    assert len(err.splitlines()) == 4
    assert sorted(p.name for p in Path("out").iterdir()) == [RECORD, "a.png"]


def test_existing_files_are_kept_unless_told(capsys):
    Path("large.png").write_bytes(b"precious")
    code, _, err = run(capsys, "in/a.png", "-o", "large.png")
    assert code == 1
    assert "large.png: exists already; --overwrite replaces it" in err
    assert Path("large.png").read_bytes() == b"precious"
    # Nor does --resume replace what foveal did not make.
    assert run(capsys, "in/a.png", "-o", "large.png", "--resume")[0] == 1
    assert run(capsys, "in/a.png", "-o", "large.png", "--overwrite")[0] == 0
    assert size("large.png") == (28, 20)


def statuses(out):
    return {Path(f["source"]).name: f["status"] for f in json.loads(out)["files"]}


def test_resume_skips_what_is_done_and_redoes_what_changed(capsys):
    command = ("in", "-o", "out", "-r", "--resume", "--json", "--quiet")
    assert statuses(run(capsys, *command)[1]) == {"a.png": "done", "b.jpg": "done"}
    assert statuses(run(capsys, *command)[1]) == {"a.png": "skipped", "b.jpg": "skipped"}
    later = Path("in/a.png").stat().st_mtime + 5
    os.utime("in/a.png", (later, later))
    Path("out/deep/b.jpg").unlink()
    assert statuses(run(capsys, *command)[1]) == {"a.png": "done", "b.jpg": "done"}
    other = ("--quality", "balanced", "--engine", "onnxruntime", "--scale", "2")
    assert statuses(run(capsys, *command, *other, quick=False)[1]) == {"a.png": "done", "b.jpg": "done"}
    assert "nothing to do: 2 done already" in run(capsys, "in", "-o", "out", "-r", "--resume", *other, quick=False)[1]


def test_dry_run_tells_and_touches_nothing(capsys):
    code, out, _ = run(capsys, "in", "-o", "out", "-r", "--dry-run")
    assert code == 0
    assert "in/a.png → out/a.png: 14×10 → 28×20, 0.00 MP; fast_x2 with onnxruntime, 1 thread; 1 tile of 14×10" in out
    assert " MB and " in out
    assert not Path("out").exists()


def test_json_is_one_document_and_words_go_elsewhere(capsys):
    code, out, err = run(capsys, "in/a.png", "gone.png", "-o", "out", "--json")
    document = json.loads(out)
    assert code == 1
    assert document["counts"] == {"planned": 0, "done": 1, "skipped": 0, "failed": 1}
    done, failed = sorted(document["files"], key=lambda f: f["status"])
    assert (done["width"], done["height"], done["engine"]) == (28, 20, "onnxruntime")
    assert failed["error"] == "gone.png: no such file"
    assert "in/a.png → out/a.png" in err


def test_quiet_says_nothing(capsys):
    assert run(capsys, "in/a.png", "-o", "out/", "--quiet") == (0, "", "")


def test_compare_writes_a_page_and_spares_what_is_not_ours(capsys):
    code, out, _ = run(capsys, "in", "-r", "-o", "out", "--compare")
    assert code == 0
    assert "before and after: out/compare.html" in out
    page = Path("out/compare.html").read_text()
    assert MARK in page
    assert page.count("<figure") == 2
    assert run(capsys, "in", "-r", "-o", "out", "--compare", "--resume")[0] == 0
    Path("out/compare.html").write_text("mine")
    code, _, err = run(capsys, "in", "-r", "-o", "out", "--compare", "--resume")
    assert code == 1
    assert "compare.html: exists already and is no page of foveal's" in err
    assert run(capsys, "in/a.png", "-o", "one.png", "--compare")[0] == 0
    assert Path("one_compare.html").exists()


def test_limit_is_told_before_the_work(capsys):
    code, _, err = run(capsys, "in/a.png", "-o", "out/", "--limit-megapixels", "0.0001")
    assert code == 1
    assert "--limit-megapixels" in err


def test_transparency_needs_a_format_or_a_background(capsys):
    Image.new("RGBA", (6, 6), (200, 0, 0, 0)).save("clear.png")
    code, _, err = run(capsys, "clear.png", "-o", "clear.jpg")
    assert code == 1
    assert "transparency" in err
    assert run(capsys, "clear.png", "-o", "clear.jpg", "--background", "#0000ff")[0] == 0
    with Image.open("clear.jpg") as image:
        red, _, blue = image.getpixel((5, 5))
    assert (blue > 200, red < 50) == (True, True)


def test_animation_keeps_its_frames_and_times(capsys):
    frames = [Image.new("RGB", (8, 6), (40 * i, 0, 0)) for i in range(1, 4)]
    frames[0].save("move.gif", save_all=True, append_images=frames[1:], duration=[100, 200, 300], loop=0)
    assert run(capsys, "move.gif", "-o", "large.gif")[0] == 0
    with Image.open("large.gif") as image:
        assert (image.size, image.n_frames) == ((16, 12), 3)
        times = []
        for index in range(3):
            image.seek(index)
            times.append(image.info["duration"])
    assert times == [100, 200, 300]


def test_sixteen_bits_stay_sixteen(capsys):
    values = np.linspace(0, 65535, 120).astype(np.uint16).reshape(10, 12)
    Image.fromarray(values).save("deep.png")
    assert run(capsys, "deep.png", "-o", "large.png")[0] == 0
    with Image.open("large.png") as image:
        assert image.mode == "I;16"
        assert len(np.unique(np.asarray(image) % 257)) > 50


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["in/a.png", "-g", "0"], "no engine here computes on a GPU, and -g 0 asks for one"),
        (["in/a.png", "--tile", "big"], "--tile must be auto or a number of pixels, got 'big'"),
        (["in/a.png", "-n", "fast_x4"], "-n fast_x4 makes pictures 4 times larger, and -s 2 asks for another size; le"),
        (["in/a.png", "-o", ""], "-o is empty; name a file or a folder"),
        (["in/a.png", "-o", "x.heic"], "-o x.heic: foveal writes no .heic files"),
        ([""], "an empty name was given as a picture"),
        (["in/a.png", "--background", "blue"], "--background must be white, black or #rrggbb, got 'blue'"),
        (["in/a.png", "-n", "fast_x9"], "no bundle 'fast_x9'"),
        (["in"], "a folder of pictures needs a place for the results: -o FOLDER"),
        ([], "name at least one picture"),
    ],
)
def test_what_cannot_begin_ends_with_2(arguments, text, capsys):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert text in err


def test_the_best_says_what_it_is(capsys):
    code, out, _ = run(capsys, "in/a.png", "-n", "fast_x2", "--quality", "best", "--engine", "onnxruntime", quick=False)
    assert code == 0
    assert "fast_x2 mirrored" in out


SLOW = """
import os, signal, sys, threading
from foveal.runtime import file_work, throughput
throughput._TRIED = (32,)
# What a shell started in the background ignores, its children ignore too.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
counted = file_work.counter
def slow(progress, pixels, **words):
    step = counted(progress, pixels, **words)
    def stop(region):
        step(region)
        if region[1] > 100:
            os.kill(os.getpid(), signal.SIGINT)
    return stop
file_work.counter = slow
from foveal.cli.main import main
main(sys.argv[1:])
"""


def test_interruption_leaves_no_half_written_file(place):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 40, 3), np.uint8)).save("in/z.png")
    source = Path(_progress.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", SLOW, "upscale", "in", "-o", "out", "--tile", "32", "--json", *QUICK],
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 130, done.stderr
    assert "interrupted: 1 of 2 done; --resume goes on from there" in done.stderr
    assert sorted(p.name for p in Path("out").iterdir()) == [RECORD, "a.png"]
    document = json.loads(done.stdout)
    assert document["interrupted"] is True
    assert document["counts"]["done"] == 1
    assert signal.SIGINT == 2


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_other_signals_end_as_ctrl_c_does(place, name):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 40, 3), np.uint8)).save("in/z.png")
    done = in_process(SLOW, name, "in", "-o", "out", "--tile", "32")
    assert done.returncode == 128 + getattr(signal, name), done.stderr
    assert "interrupted: 1 of 2 done; --resume goes on from there" in done.stderr
    assert sorted(p.name for p in Path("out").iterdir()) == [RECORD, "a.png"]


def in_process(code, name, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code.replace("os.getpid(), signal.SIGINT", f"os.getpid(), signal.{name}"), "upscale",
         *arguments, *QUICK],
        env={**os.environ, "PYTHONPATH": str(Path(_progress.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )  # fmt: skip


def test_what_a_killed_run_left_is_removed_by_the_next(place, capsys):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 40, 3), np.uint8)).save("z.png")
    done = in_process(SLOW, "SIGKILL", "z.png", "-o", "out/", "--tile", "32")
    assert done.returncode == -signal.SIGKILL
    (left,) = Path("out").iterdir()
    assert left.suffix == ".part"
    assert run(capsys, "z.png", "-o", "out/")[0] == 0
    assert sorted(p.name for p in Path("out").iterdir()) == [RECORD, "z.png"]


def test_signals_are_left_alone_where_they_are_ignored_or_elsewhere():
    import threading

    from foveal.cli._signals import Ended, exit_code, like_ctrl_c

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with like_ctrl_c():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
            thread = threading.Thread(target=like_ctrl_c().__enter__)
            thread.start()
            thread.join()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (exit_code(Ended(15)), exit_code(KeyboardInterrupt())) == (143, 130)


# Nothing is passed over in silence


def test_results_of_earlier_runs_are_no_sources(capsys):
    for _ in range(3):
        names = sorted(str(path) for path in Path("in").glob("*.png"))
        code, out, _ = run(capsys, *names, "--resume")
        assert code == 0
    assert sorted(path.name for path in Path("in").glob("*.png")) == ["a.png", "a_x2.png"]
    assert out == "1 result of an earlier run passed over\nnothing to do: 1 done already\n"
    document = json.loads(run(capsys, *names, "--resume", "--json")[1])
    assert document["passed_over"] == [{"path": "in/a_x2.png", "what": "a result of an earlier run"}]
    # A run of several pictures keeps the record without being told.
    Image.new("RGB", (4, 4)).save("in/c.png")
    assert run(capsys, "in/a.png", "in/c.png", "--suffix", "_big")[0] == 0
    assert run(capsys, *(str(path) for path in Path("in").glob("*.png")), "--suffix", "_big")[0] == 1
    assert len(list(Path("in").glob("*_big_big.png"))) == 0


def test_unknown_files_are_counted(capsys):
    Path("in/IMG_1.PSD").write_bytes(b"8BPS" + bytes(40))
    code, out, _ = run(capsys, "in", "-o", "out")
    assert code == 0
    assert out.splitlines()[0] == "1 file that foveal cannot read passed over (.psd 1)"
    code, _, err = run(capsys, "in/IMG_1.PSD", "-o", "out", "-f", "png")
    assert code == 1
    assert "it is a Photoshop document, which foveal does not read; save it as TIFF or PNG first" in err
    assert run(capsys, "in/IMG_1.PSD", "-o", "out")[2] == err


def test_what_is_only_read_becomes_png_and_says_so(capsys, monkeypatch):
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed (the extra heic)")
    heif.from_bytes("RGB", (6, 6), bytes(108)).save("in/IMG_1.HEIC")
    says = "foveal writes no HEIC, so the result is a PNG; --format chooses another"
    assert says in run(capsys, "in/IMG_1.HEIC", "-o", "out", "--dry-run")[1]
    assert says in run(capsys, "in/IMG_1.HEIC", "-o", "out/")[1]
    with Image.open("out/IMG_1.png") as made:
        assert made.size == (12, 12)
    out = run(capsys, "in/IMG_1.HEIC", "-o", "out/", "-f", "jpeg")[1]
    assert says not in out
    with Image.open("out/IMG_1.jpg") as made:
        assert made.size == (12, 12)
    monkeypatch.setattr("foveal.images.needs.find_spec", lambda _: None)
    code, _, err = run(capsys, "in/IMG_1.HEIC", "-o", "out/", "-f", "webp")
    assert code == 1
    assert (
        "failed: in/IMG_1.HEIC: it is a HEIC picture, and reading it needs pillow_heif, which is not installed; " in err
    )


def test_what_is_not_kept_is_on_the_line_in_json_and_in_the_plan(capsys):
    Image.new("RGB", (6, 6)).save("photo.jpg", xmp=b"<x:xmpmeta/>", dpi=(300, 300))
    text = "; XMP not kept"
    assert text in run(capsys, "photo.jpg", "--clean", "off", "-o", "large.bmp", "--dry-run")[1]
    assert text in run(capsys, "photo.jpg", "--clean", "off", "-o", "large.bmp")[1]
    (file,) = json.loads(run(capsys, "photo.jpg", "--clean", "off", "-o", "large.bmp", "--overwrite", "--json")[1])[
        "files"
    ]
    assert file["notes"] == ["XMP not kept"]


def test_dry_run_promises_only_what_can_be(capsys):
    Image.new("RGBA", (6, 6)).save("clear.png")
    Image.new("RGB", (40000, 2)).save("wide.png")
    frames = [Image.new("RGB", (6, 6), (i, 0, 0)) for i in range(3)]
    frames[0].save("move.gif", save_all=True, append_images=frames[1:], duration=100)
    frames[0].save("pages.tif", save_all=True, append_images=frames[1:])
    command = ("clear.png", "wide.png", "move.gif", "pages.tif", "-f", "jpeg", "-o", "out")
    code, out, told = run(capsys, *command, "--dry-run")
    assert (code, out) == (1, "")
    assert [line.rpartition(": ")[2].partition(";")[0] for line in told.splitlines()] == [
        "JPEG cannot hold transparency",
        "JPEG holds at most 65,500 pixels a side, this picture has 80000 × 4",
        "JPEG cannot hold 3 frames",
        "JPEG cannot hold a document of 3 pages",
    ]
    assert run(capsys, *command)[2] == told
    assert run(capsys, "clear.png", "-o", "a.jpg", "--dry-run", "--background", "#fff")[0] == 0


def test_documents_keep_every_page(capsys):
    pages = [Image.new("RGB", size) for size in ((64, 48), (64, 40), (64, 48))]
    pages[0].save("pages.tif", save_all=True, append_images=pages[1:])
    assert run(capsys, "pages.tif", "-o", "large.tif")[0] == 0
    with Image.open("large.tif") as image:
        assert image.n_frames == 3
        image.seek(1)
        assert image.size == (128, 80)
    (file,) = json.loads(run(capsys, "pages.tif", "-o", "large.tif", "--overwrite", "--json")[1])["files"]
    assert file["megapixels"] == pytest.approx((64 * 48 * 2 + 64 * 40) * 4 / 1e6)


def test_a_file_for_each_page(capsys):
    pages = [Image.new("L", (12, 8), 40), Image.new("RGB", (10, 9), "red"), Image.new("L", (12, 8), 80)]
    pages[0].save("in/doc.tif", save_all=True, append_images=pages[1:])
    document = ("in", "-o", "out", "-f", "png", "--pages", "split")
    planned = run(capsys, *document, "--dry-run")[1]
    assert "in/doc.tif page 2 of 3 → out/doc-002.png: 10×9 → 20×18" in planned
    done = json.loads(run(capsys, *document, "--json")[1])
    assert done["counts"]["done"] == 4
    files = [file for file in done["files"] if file["source"] == "in/doc.tif"]
    assert [(file["page"], file["pages"], file["target"]) for file in files] == [
        (1, 3, "out/doc-001.png"),
        (2, 3, "out/doc-002.png"),
        (3, 3, "out/doc-003.png"),
    ]
    assert [size(f"out/doc-00{n}.png") for n in (1, 2, 3)] == [(24, 16), (20, 18), (24, 16)]
    for number, colour in ((1, 40), (2, (255, 0, 0)), (3, 80)):
        with Image.open(f"out/doc-00{number}.png") as image:
            assert image.getpixel((9, 9)) == colour
    Path("out/doc-002.png").unlink()
    again = json.loads(run(capsys, *document, "--json", "--resume")[1])
    assert (again["counts"]["done"], again["counts"]["skipped"]) == (1, 3)
    assert len(Path("out", RECORD).read_text().splitlines()) == 5
    Path("in/a.tif").write_bytes(b"II*\0broken")
    code, _, err = run(capsys, "in/a.tif", "in/a.png", "-o", "one", "--pages", "split")
    assert (code, size("one/a.png")) == (1, (28, 20))
    assert "failed: in/a.tif: " in err
    assert run(capsys, "in/doc.tif", "-o", "one", "--pages", "each")[::2] == (
        2,
        "foveal upscale: --pages must be keep or split, got 'each'; split writes a file for each page of a TIFF\n",
    )


def test_a_channel_of_no_kind_is_enlarged_on_its_own(capsys):
    """Where the fourth channel is 0 the colours are as if there were none."""
    import tifffile

    from foveal import images

    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 4), np.uint8)
    pixels[5:15, 5:15, 3] = 0
    tifffile.imwrite("nir.tif", pixels, photometric="rgb", extrasamples=[0])
    Image.fromarray(pixels[..., :3]).save("rgb.png")
    assert run(capsys, "nir.tif", "rgb.png", "-o", "out")[0] == 0
    got = images.read("out/nir.tif").frame()
    assert not got.alpha
    np.testing.assert_array_equal(got.pixels[..., :3], images.read("out/rgb.png").frame().pixels)
    assert got.pixels[14:26, 14:26, 3].max() <= 60, "far inside a hole the channel is nearly 0"
    assert got.pixels[..., 3].max() > 200


def test_another_background_is_made_anew(capsys):
    Image.new("RGBA", (6, 6), (0, 0, 0, 0)).save("clear.png")
    command = ("clear.png", "-f", "jpg", "-o", "out/", "--resume", "--background")
    for colour, level in (("white", 255), ("black", 0), ("#F00", 76)):
        assert run(capsys, *command, colour)[0] == 0
        with Image.open("out/clear.jpg") as image:
            assert abs(image.convert("L").getpixel((5, 5)) - level) <= 2
    assert "nothing to do" in run(capsys, *command, "#ff0000")[1]


@pytest.mark.parametrize(("names", "said"), [
    (["in/a.png", "in/z.png"], "interrupted: 1 of 2 done; --resume goes on from there"),
    (["in/z.png"], "interrupted: 0 of 1 done"),
])  # fmt: skip
def test_a_record_is_kept_or_not_promised(place, names, said):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 40, 3), np.uint8)).save("in/z.png")
    done = in_process(SLOW, "SIGINT", *names, "--tile", "32")
    assert done.stderr.splitlines()[-1] == said
    assert (Path("in") / RECORD).exists() == (len(names) > 1)


def test_names_no_encoding_knows(capsys):
    strange = os.fsdecode(b"Z\xfcri.png")
    Path("in", strange).write_bytes(Path("in/a.png").read_bytes())
    code, out, _ = run(capsys, "in", "-o", "out", "--compare")
    assert code == 0
    assert "in/Z?ri.png → out/Z?ri.png" in out
    assert Path("out", strange).exists()
    assert statuses(run(capsys, "in", "-o", "out", "--resume", "--json")[1]) == {"a.png": "skipped", strange: "skipped"}


def test_one_error_of_any_kind_stops_one_picture(capsys, monkeypatch):
    from foveal import images

    foresee = images.foresee

    def fail(source, *arguments, **options):
        if source.name == "b.png":
            raise UnicodeError("something nobody thought of")
        return foresee(source, *arguments, **options)

    Image.new("RGB", (4, 4)).save("in/b.png")
    monkeypatch.setattr(images, "foresee", fail)
    code, _, err = run(capsys, "in", "-o", "out")
    assert (code, err) == (1, "failed: in/b.png: UnicodeError: something nobody thought of\n")
    assert Path("out/a.png").exists()


CODE = "import sys; from foveal.cli.main import main; main(sys.argv[1:])"


def test_letters_that_output_lacks_stop_nothing(place):
    done = subprocess.run(
        [sys.executable, "-c", CODE, "upscale", "in", "-r", "-o", "out", *QUICK],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(_progress.__file__).parents[2])},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"in/a.png -> out/a.png: 28x20" in done.stdout
    assert size("out/deep/b.jpg") == (16, 18)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
@pytest.mark.parametrize(("more", "code", "last"), [
    ((), 0, ""),
    (("--json",), 1, "failed: the JSON document could not be written to standard output\n"),
])  # fmt: skip
def test_a_log_that_is_full_stops_nothing(place, more, code, last):
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", CODE, "upscale", "in", "-r", "-o", "out", *QUICK, *more],
            env={**os.environ, "PYTHONPATH": str(Path(_progress.__file__).parents[2])},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == code, done.stderr
    assert done.stderr.endswith(last)
    assert size("out/deep/b.jpg") == (16, 18)


def test_help_says_what_options_mean_everywhere(capsys):
    _, out, _ = run(capsys, "--help", quick=False)
    assert "-t, --threads N" in out
    assert "  --tile auto|N" in out
    assert "list[str]" not in out
    assert "native, 2 threads: about" in out


# How it speaks


def test_durations_are_said_as_people_do():
    assert [duration(s) for s in (0.04, 9.94, 9.96, 59.4, 200, 7500)] == [
        "0.0 s",
        "9.9 s",
        "10 s",
        "59 s",
        "3 min 20 s",
        "2 h 5 min",
    ]


def test_long_pictures_get_a_line_now_and_then(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now[0])
    show = Show(2, 300.0, 30.0, quiet=False, json=False)
    show.begin("a.png", 200.0, 20.0)
    for second in range(1, 25):
        now[0] = float(second)
        show.step(5.0 * second, 200.0, (0, 0, 1, 1))
    assert capsys.readouterr().out.splitlines() == [
        "a.png: 50.0 of 200.0 MP, 5.0 MP/s, 30 s left, 50 s for all",
        "a.png: 100.0 of 200.0 MP, 5.0 MP/s, 20 s left, 40 s for all",
    ]


def test_terminal_gets_bars(monkeypatch, capsys):
    class Terminal:
        def isatty(self):
            return True

        def __getattr__(self, name):
            return getattr(sys.__stderr__, name)

    monkeypatch.setattr(sys, "stderr", Terminal())
    show = Show(2, 3.0, 30.0, quiet=False, json=False)
    show.begin("a[b].png", 2.0, 20.0)
    total, one = show._bars.tasks
    speed = show._bars.columns[-1]
    assert speed.render(one).plain == "0.00/2.0 MP  about 20 s"
    show._bars.start_task(one.id)
    one.start_time = one.get_time() - 2.0
    show.step(1.0, 2.0, (0, 0, 1, 1))
    assert one.completed == total.completed == 1.0
    assert speed.render(one).plain.startswith("1.0/2.0 MP  0.50 MP/s  2.0 s left")
    show.end(2.0)
    assert total.completed == 2.0
    assert [task.description for task in show._bars.tasks] == ["all"]


def test_bars_escape_nothing_and_hide_nothing(capsys):
    show = Show(1, 1.0, 1.0, quiet=False, json=False)
    show.line("[red]a.png[/red]")
    show.problem("bad")
    said = capsys.readouterr()
    assert said.out == "[red]a.png[/red]\n"
    assert said.err == "bad\n"


# Cleaning

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
DAMAGED = ("-s", "4", "--quality", "fast", "--engine", "onnxruntime", "--threads", "1")


def photographs():
    with Image.open(SAMPLES / "dogs.png") as opened:
        picture = opened.convert("RGB").crop((0, 0, 64, 56))
    picture.save("photo.jpg", quality=60)
    picture.save("photo.png")


def test_a_dry_run_says_what_was_found_and_what_will_be_done(capsys):
    photographs()
    code, out, _ = run(capsys, "photo.jpg", "photo.png", "-o", "out", "--dry-run", *DAMAGED, quick=False)
    assert code == 0
    jpeg, png, total = out.splitlines()
    assert "clean_fast_x4 with onnxruntime" in jpeg
    assert jpeg.endswith("; JPEG of quality 60: cleaned at strength 40")
    assert "fast_x4 with onnxruntime" in png
    assert png.endswith("; no compression or noise found: not cleaned")
    assert "clean_fast_x4, onnxruntime and fast_x4, onnxruntime, 1 thread" in total
    assert not Path("out").exists()


def test_json_says_it_too(capsys):
    photographs()
    arguments = ("photo.jpg", "photo.png", "-o", "out", "--json", "--clean", "30", *DAMAGED)
    code, out, _ = run(capsys, *arguments, quick=False)
    assert code == 0
    document = json.loads(out)
    assert (document["clean"], document["cleaner"]) == (30, "clean_fast_x4")
    jpeg, png = document["files"]
    assert (jpeg["clean"]["jpeg_quality"], jpeg["clean"]["strength"], jpeg["bundle"]) == (60, 30, "clean_fast_x4")
    assert (png["clean"]["jpeg_quality"], png["clean"]["cleaned"], png["clean"]["strength"]) == (None, True, 15)


def test_cleaning_can_be_left_out(capsys):
    photographs()
    _, out, _ = run(capsys, "photo.jpg", "-o", "a.png", "--clean", "off", *DAMAGED, quick=False)
    assert "clean" not in out
    _, out, _ = run(capsys, "photo.jpg", "-o", "b.png", *DAMAGED, quick=False)
    assert out.splitlines()[1].endswith("; JPEG of quality 60: cleaned at strength 40")
    assert Path("a.png").read_bytes() != Path("b.png").read_bytes()


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--clean", "some", "clean must be auto, off or a strength from 0 to 100, got 'some'"),
        ("--clean", "101", "clean must be auto, off or a strength from 0 to 100, got 101"),
        ("--content", "text", "content must be one of auto, pixel, got 'text'"),
    ],
)
def test_wrong_wishes_are_refused(option, value, said, capsys):
    code, _, err = run(capsys, "in/a.png", "-o", "out", option, value)
    assert (code, err.strip()) == (2, f"foveal upscale: {said}")


def test_pixel_art_and_textures(capsys):
    Image.fromarray(np.random.default_rng(0).integers(0, 2, (6, 8, 3), np.uint8) * 255).save("sprite.png")
    code, out, _ = run(capsys, "sprite.png", "-o", "large.png", "--content", "pixel", "--wrap")
    assert code == 0
    assert "with pixel art, numpy, 1 thread" in out
    with Image.open("large.png") as made:
        assert set(np.unique(np.asarray(made))) == {0, 255}
    assert run(capsys, "in/a.png", "-o", "tile.png", "--wrap")[0] == 0
    assert size("tile.png") == (28, 20)
