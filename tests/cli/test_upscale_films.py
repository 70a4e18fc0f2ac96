"""`foveal upscale` with films."""

import json
from fractions import Fraction

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from foveal.cli._film_run import films_among, targets
from foveal.cli.upscale import upscale

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
    done = run(str(clip), "--crf", "30", "--json")
    assert done.exit_code == 0, done.output
    (file,) = json.loads(done.stdout)["files"]
    assert (file["status"], file["width"], file["height"], file["frames"]) == ("done", 64, 48, 4)
    with av.open(str(target)) as made:
        assert [(frame.width, frame.height) for frame in made.decode(video=0)] == [(64, 48)] * 4
    again = run(str(clip), "--json", "--resume")
    assert json.loads(again.stdout)["files"][0]["status"] == "skipped"
    refused = run(str(clip))
    assert refused.exit_code == 1
    assert "clip_x2.mp4: exists already; --overwrite replaces it" in refused.stderr


def test_what_is_refused_before_any_work(clip):
    for arguments, says in (
        ((str(clip), "photo.png"), "is a film and 1 other inputs are none; give films alone"),
        ((str(clip), "--codec", "divx"), "codec must be one of h264, hevc, av1, vp9, ffv1, got 'divx'"),
        ((str(clip), "-o", str(clip)), "the result would take the place of its source"),
    ):
        stopped = run(*arguments)
        assert stopped.exit_code == 2
        assert says in stopped.stderr
    broken = clip.with_name("broken.mp4")
    broken.write_bytes(b"no film")
    failed = run(str(broken))
    assert failed.exit_code == 1
    assert "broken.mp4: it is no film that FFmpeg reads" in failed.stderr


def test_where_results_go(tmp_path):
    a, b = tmp_path / "a.mp4", tmp_path / "b.MKV"
    assert films_among([str(a), str(b)]) == [a, b]
    assert films_among(["a.png"]) == []
    assert targets([a], None, None, 3) == [tmp_path / "a_x3.mp4"]
    assert targets([a], str(tmp_path / "big.webm"), None, 2) == [tmp_path / "big.webm"]
    out = tmp_path / "out"
    assert targets([a, b], str(out), None, 2) == [out / "a.mp4", out / "b.MKV"]
    with pytest.raises(ValueError, match=r"another film already becomes .*a\.mp4; give one of them another place"):
        targets([a, tmp_path / "c" / "a.mp4"], str(out), None, 2)
