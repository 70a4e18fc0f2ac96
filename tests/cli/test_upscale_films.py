"""`foveal upscale` with films."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from foveal.cli.upscale import upscale
from foveal.runtime.batch import RECORD, find_jobs

av = pytest.importorskip("av")


def run(*arguments: str):
    app = typer.Typer()
    app.command()(upscale)
    return CliRunner().invoke(app, [*arguments, "--quality", "fast", "-s", "2", "-t", "1"])


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as made:
        video = made.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 32, 24, "yuv420p"
        video.codec_context.thread_count = 1
        for i in range(4):
            frame = av.VideoFrame.from_ndarray(np.full((24, 32, 3), 60 * i, np.uint8), "rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 10)
            made.mux(video.encode(frame))
        made.mux(video.encode())
    return path


@pytest.mark.dear("an engine is opened and two encoders run")
def test_a_film_is_planned_made_skipped_and_refused(clip):
    planned = run(str(clip), "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert "clip_x2.mp4: 64×48, 4 frames, h264 at rate factor 18" in planned.output
    target = clip.with_name("clip_x2.mp4")
    assert not target.exists()
    done = run(str(clip), "--crf", "30", "--json", "--resume")
    assert done.exit_code == 0, done.output
    (file,) = json.loads(done.stdout)["files"]
    assert (file["status"], file["width"], file["height"], file["frames"]) == ("done", 64, 48, 4)
    with av.open(str(target)) as made:
        assert [(frame.width, frame.height) for frame in made.decode(video=0)] == [(64, 48)] * 4
    again = run(str(clip), "--json", "--resume", "--crf", "30")
    assert json.loads(again.stdout)["files"][0]["status"] == "skipped"
    refused = run(str(clip))
    assert refused.exit_code == 1
    assert "clip_x2.mp4: exists already; --overwrite replaces it" in refused.stderr


def test_what_is_refused_before_any_work(clip):
    stopped = run(str(clip), "--codec", "divx")
    assert stopped.exit_code == 2
    assert "codec must be one of h264, hevc, av1, vp9, ffv1, got 'divx'" in stopped.stderr
    stopped = run(str(clip), "-o", str(clip))
    assert stopped.exit_code == 1
    assert "the result would take the place of its source" in stopped.stderr
    broken = clip.with_name("broken.mp4")
    broken.write_bytes(b"no film")
    failed = run(str(broken))
    assert failed.exit_code == 1
    assert "broken.mp4: it is no film that FFmpeg reads" in failed.stderr


@pytest.mark.dear("an engine is opened twice and an encoder runs")
def test_a_folder_of_pictures_and_films(clip, monkeypatch):
    folder, out = clip.parent / "in", clip.parent / "out"
    folder.mkdir()
    clip.rename(folder / "clip.mp4")
    (folder / "broken.MOV").write_bytes(b"no film")
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(folder / "a.png")
    done = run(str(folder), "-o", str(out), "--json", "--crf", "30")
    assert done.exit_code == 1
    assert "failed: " in done.stderr
    assert "broken.MOV: it is no film that FFmpeg reads" in done.stderr
    document = json.loads(done.stdout)
    assert document["counts"] == {"planned": 0, "done": 2, "skipped": 0, "failed": 1}
    states = {Path(file["source"]).name: file["status"] for file in document["files"]}
    assert states == {"a.png": "done", "clip.mp4": "done", "broken.MOV": "failed"}
    assert sorted(path.name for path in out.iterdir()) == [RECORD, "a.png", "clip.mp4"]
    assert len((out / RECORD).read_text().splitlines()) == 2
    again = run(str(folder), "-o", str(out), "--json", "--resume", "--crf", "30")
    assert json.loads(again.stdout)["counts"] == {"planned": 0, "done": 0, "skipped": 2, "failed": 1}
    planned = run(str(folder), "-o", str(out), "--resume", "--crf", "31", "--dry-run")
    assert "clip.mp4: 64×48, 4 frames, h264 at rate factor 31" in planned.output
    refused = run(str(folder), "-o", str(out))
    assert "clip.mp4: exists already; --overwrite replaces it" in refused.stderr
    monkeypatch.setattr("foveal.cli._film_run.find_spec", lambda _: None)
    without = run(str(folder), "-o", str(out), "--overwrite", "--dry-run")
    assert "clip.mp4: reading a film needs av, which is not installed; pip install '" in without.stderr


def test_where_results_go(tmp_path):
    a, b, c = tmp_path / "a.mp4", tmp_path / "b.MKV", tmp_path / "c" / "a.mp4"
    c.parent.mkdir()
    for path in (a, b, c):
        path.write_bytes(b"x")

    def targets(films, out, scale=2):
        return [job.target for job in find_jobs(films, out, scale=scale)]

    assert targets([a], None, 3) == [tmp_path / "a_x3.mp4"]
    assert targets([a], tmp_path / "big.webm") == [tmp_path / "big.webm"]
    out = tmp_path / "out"
    assert targets([a, b], out) == [out / "a.mp4", out / "b.MKV"]
    assert targets([tmp_path], out) == [out / "a.mp4", out / "b.MKV"]
    with pytest.raises(ValueError, match=r"names one file, and there may be several pictures|writes no \.mp4 files"):
        targets([a, b], tmp_path / "big.mp4")
    (problem,) = [job.problem for job in find_jobs([a, c], out, scale=2) if job.problem]
    assert "a.mp4 already becomes " in problem
