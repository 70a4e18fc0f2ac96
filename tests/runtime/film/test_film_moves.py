"""The movement of a film's frames, and its rolling shutter undone by it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.runtime.film.encode import Coding
from foveal.runtime.film.moves import FilmMoves
from foveal.runtime.film.restore import FilmRestorer, restore_film
from foveal.runtime.film.source import frames, header, rgb
from foveal.runtime.restorer import Restorer
from foveal.train.restore.bank.shutter import RollingShutter

av = pytest.importorskip("av")


@pytest.fixture(scope="module")
def photo(pytestconfig):
    folder = pytestconfig.rootpath / "samples" / "original"
    with Image.open(folder / "dandelion.png") as opened:
        return np.asarray(opened.convert("RGB"))[100:196, 100:356]


def view(photo, k):
    """Frame k as a shutter that opens everywhere at once would show it: the camera turns to the left."""
    return photo[:, 100 - 5 * k : 228 - 5 * k]


def rolled(photo, k):
    wide = photo[:, 60 - 5 * k : 268 - 5 * k] if 5 * k <= 60 else photo[:, : 268 - 5 * k]
    x = torch.tensor(wide).permute(2, 0, 1)[None].float() / 255
    made = RollingShutter(across=5, down=0, read=0.8)(x, torch.Generator())[0].mul(255).round().byte()
    return made.permute(1, 2, 0).numpy()[:, 40:168]


@pytest.fixture
def clip(photo, tmp_path):
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as made:
        video = made.add_stream("ffv1", rate=10)
        video.width, video.height, video.pix_fmt = 128, 96, "yuv444p"
        video.codec_context.time_base = Fraction(1, 10)
        for k in range(5):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rolled(photo, k)), "rgb24")
            frame = frame.reformat(format="yuv444p")
            frame.pts, frame.time_base = k, Fraction(1, 10)
            made.mux(video.encode(frame))
        made.mux(video.encode())
    return path


def psnr(a, b):
    inside = np.s_[8:-8, 16:-16]
    return 10 * np.log10(255**2 / np.square(a[inside].astype(float) - b[inside]).mean())


@pytest.mark.dear("a film is read three times, repaired and encoded")
def test_a_rolling_shutter_is_undone_frame_by_frame(clip, photo, tmp_path):
    moves = FilmMoves(clip, header(clip))
    assert moves.usual == pytest.approx((0, 5), abs=0.2)
    assert moves.now == (0, 0)
    worker = FilmRestorer(Restorer("rolling-shutter=0.8"), clip)
    assert worker.says.startswith("rolling shutter, 5.0 pixels a frame at most times: rows put back")
    assert worker.engine() == "numpy"
    target = tmp_path / "mended.mkv"
    result = restore_film(worker, clip, target, coding=Coding("ffv1"))
    assert result.frames == 5
    shots = [[rgb(shot, header(path)) for shot in frames(path)] for path in (clip, target)]
    for k, (before, after) in enumerate(zip(*shots, strict=True)):
        assert psnr(after, view(photo, k)) > psnr(before, view(photo, k)) + 3


def test_a_film_at_rest_is_copied(photo, tmp_path):
    path, target = tmp_path / "still.mkv", tmp_path / "mended.mkv"
    with av.open(str(path), "w") as made:
        video = made.add_stream("ffv1", rate=10)
        video.width, video.height, video.pix_fmt = 128, 96, "yuv444p"
        for k in range(2):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(view(photo, 0)), "rgb24").reformat(format="yuv444p")
            frame.pts, frame.time_base = k, Fraction(1, 10)
            made.mux(video.encode(frame))
        made.mux(video.encode())
    restore_film(Restorer("rolling-shutter"), path, target)
    assert target.read_bytes() == path.read_bytes()
