"""`foveal restore`: pictures and films of one run, what is refused, and what is told."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from raw_files import write_dng
from typer.testing import CliRunner

from foveal import images
from foveal.cli.restore import restore
from foveal.runtime.batch import RECORD


def run(*arguments: str):
    app = typer.Typer()
    app.command()(restore)
    return CliRunner().invoke(app, [*arguments, "--engine", "onnxruntime", "-t", "1"])


@pytest.fixture
def clip(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as made:
        video = made.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 48, 32, "yuv420p"
        video.codec_context.thread_count = 1
        ramp = np.linspace(0, 40, 48, dtype=np.uint8)[None, :, None]
        for i in range(4):
            frame = av.VideoFrame.from_ndarray(np.broadcast_to(ramp + np.uint8(i), (32, 48, 3)).copy(), "rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 10)
            made.mux(video.encode(frame))
        made.mux(video.encode())
    return path


@pytest.mark.dear("an engine is opened and two encoders run")
def test_a_film_is_planned_made_and_skipped(clip):
    planned = run(str(clip), "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert "clip_restored.mp4: 48×32, 4 frames, h264 at rate factor 18, onnxruntime: about" in planned.output
    assert "dark, median" in planned.output
    assert "decided by 4 frames spread over the film" in planned.output
    target = clip.with_name("clip_restored.mp4")
    assert not target.exists()
    done = run(str(clip), "--json", "--resume", "--crf", "30")
    assert done.exit_code == 0, done.output
    (file,) = json.loads(done.stdout)["files"]
    assert (file["status"], file["width"], file["height"], file["frames"]) == ("done", 48, 32, 4)
    assert [one["repair"] for one in file["clean"]["found"]] == ["light"]
    assert target.exists()
    again = run(str(clip), "--json", "--resume", "--crf", "30")
    assert json.loads(again.stdout)["files"][0]["status"] == "skipped"


def test_a_folder_of_pictures_and_films(clip):
    folder, out = clip.parent / "in", clip.parent / "out"
    folder.mkdir()
    clip.rename(folder / "clip.mp4")
    (folder / "broken.mov").write_bytes(b"no film")
    Image.fromarray(np.full((24, 32, 3), 128, np.uint8)).save(folder / "a.png")
    done = run(str(folder), "-o", str(out), "--json", "--fix", "noise")
    assert done.exit_code == 1
    assert "broken.mov: it is no film that FFmpeg reads" in done.stderr
    states = {Path(file["source"]).name: file["status"] for file in json.loads(done.stdout)["files"]}
    assert states == {"a.png": "done", "clip.mp4": "done", "broken.mov": "failed"}
    assert (out / "clip.mp4").read_bytes() == (folder / "clip.mp4").read_bytes()  # nothing was found
    assert len((out / RECORD).read_text().splitlines()) == 2


def test_films_are_neither_merged_nor_fused(tmp_path):
    for arguments, text in (
        (["a.png", "b.mp4", "--merge", "-o", "c.png"], "--merge takes pictures, and b.mp4 is a film; take a frame"),
        (
            ["a.mp4", "--with", "b.png"],
            "--with takes pictures, and a.mp4 is a film; take a frame of it, or leave --with",
        ),
        (["a.png", "--with", "b.mkv"], "--with takes pictures, and b.mkv is a film"),
    ):
        stopped = run(*arguments)
        assert stopped.exit_code == 2
        assert text in stopped.stderr
    stopped = run("a.mp4", "--codec", "divx")
    assert stopped.exit_code == 2
    assert "codec must be one of h264, hevc, av1, vp9, ffv1, got 'divx'" in stopped.stderr


def test_holes_of_a_folder_take_masks_of_the_same_names_and_a_batch_goes_on(tmp_path):
    folder, masks, out = tmp_path / "in", tmp_path / "masks", tmp_path / "out"
    folder.mkdir()
    masks.mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.full((24, 32, 3), 99, np.uint8)).save(folder / f"{name}.png")
    mask = np.zeros((24, 32), np.uint8)
    mask[10:12, 4:30] = 255
    Image.fromarray(mask).save(masks / "a.png")
    arguments = (str(folder), "-o", str(out), "--json", "--fix", "holes", "--mask", str(masks))
    done = run(*arguments)
    assert done.exit_code == 1
    assert "b.png: no mask in" in done.stderr
    states = {Path(file["source"]).name: file["status"] for file in json.loads(done.stdout)["files"]}
    assert states == {"a.png": "done", "b.png": "failed"}
    Image.fromarray(mask).save(masks / "b.png")
    again = run(*arguments, "--resume")
    assert [file["status"] for file in json.loads(again.stdout)["files"]] == ["done", "done"]  # the masks changed
    last = run(*arguments, "--resume")
    assert [file["status"] for file in json.loads(last.stdout)["files"]] == ["skipped", "skipped"]
    planned = run(str(folder / "a.png"), "--fix", "holes", "--mask", str(masks), "--dry-run")
    assert "holes by the mask, 6.8 % of the picture: filled from around them" in planned.output


def test_a_film_without_pictures_is_named(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as made:
        tone = made.add_stream("aac", rate=8000)
        wave = av.AudioFrame.from_ndarray(np.zeros((1, 3200), np.float32), "fltp", "mono")
        wave.sample_rate, wave.pts = 8000, 0
        made.mux(tone.encode(wave))
        made.mux(tone.encode())
    failed = run(str(path))
    assert failed.exit_code == 1
    assert "sound.mp4: it has no moving pictures; name a film" in failed.stderr


def test_raw_files_are_developed_and_a_batch_goes_on(tmp_path):
    pytest.importorskip("rawpy", reason="rawpy is not installed (the extra raw)")
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    linear = np.full((48, 64, 3), 0.3)
    write_dng(folder / "a.dng", linear, orientation=6)
    write_dng(folder / "b.dng", linear, matrix=False)
    done = run(str(folder), "-o", str(out), "--json", "--fix", "noise")
    assert done.exit_code == 1
    assert "b.dng: foveal develops DNG files whose colours are described, got one of Nobody Box 1" in done.stderr
    states = {Path(file["source"]).name: file["status"] for file in json.loads(done.stdout)["files"]}
    assert states == {"a.dng": "done", "b.dng": "failed"}
    made = images.read(out / "a.png").frame(0).pixels
    assert (made.dtype, made.shape) == (np.uint16, (64, 48, 3))
    again = run(str(folder / "a.dng"), "-o", str(tmp_path / "a.tif"), "--fix", "noise")
    assert again.exit_code == 0, again.output
    assert np.array_equal(images.read(tmp_path / "a.tif").frame(0).pixels, made)
