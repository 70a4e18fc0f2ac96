"""Films repaired: decided once, all frames alike, everything else kept, nothing encoded for nothing."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from foveal.images.degradation import Degradation
from foveal.images.resize import imresize
from foveal.runtime.film import film as films
from foveal.runtime.film.encode import Coding
from foveal.runtime.film.film import work_folder
from foveal.runtime.film.restore import COPIED, LOOKED, FilmRestorer, plan_restored, restore_film
from foveal.runtime.film.source import FilmError, frames, header, rgb, spread
from foveal.runtime.repairs import usual
from foveal.runtime.restorer import Restorer

av = pytest.importorskip("av")
OPTIONS = {"engine": "onnxruntime", "threads": 1}


def shoot(path, pictures, *, sound=False, fmt="yuv444p"):
    """A lossless film of pictures, ten a second, with silence if wanted."""
    with av.open(str(path), "w") as made:
        video = made.add_stream("ffv1", rate=10)
        height, width = pictures[0].shape[:2]
        video.width, video.height, video.pix_fmt = width, height, fmt
        video.codec_context.time_base = Fraction(1, 10)
        video.codec_context.colorspace, video.codec_context.color_range = 1, 1
        tone = made.add_stream("aac", rate=8000) if sound else None
        for i, pixels in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24" if pixels.itemsize == 1 else "rgb48le")
            frame = frame.reformat(format=fmt, dst_colorspace=1, dst_color_range=1)
            frame.pts, frame.time_base = i, Fraction(1, 10)
            made.mux(video.encode(frame))
        made.mux(video.encode())
        if tone is not None:
            wave = av.AudioFrame.from_ndarray(np.zeros((1, 3200), np.float32), "fltp", "mono")
            wave.sample_rate, wave.pts = 8000, 0
            made.mux(tone.encode(wave))
            made.mux(tone.encode())
    return path


def shown(path):
    film = header(path)
    return [(shot.pts * film.time_base, rgb(shot, film)) for shot in frames(path)]


def psnr(a, b):
    return 10 * np.log10(255**2 / np.square(a.astype(float) - b).mean())


@pytest.fixture(scope="module")
def photo(pytestconfig):
    folder = pytestconfig.rootpath / "samples" / "original"
    with Image.open(sorted(folder.iterdir())[0]) as opened:
        return np.asarray(opened.convert("RGB"))[200:296, 250:378]


@pytest.fixture
def noisy(photo, tmp_path):
    random = np.random.default_rng(0)
    made = [np.clip(photo + random.normal(0, 20, photo.shape), 0, 255).round().astype(np.uint8) for _ in range(7)]
    return shoot(tmp_path / "noisy.mkv", made, sound=True)


@pytest.mark.dear("seven frames are repaired and encoded")
def test_a_noisy_film_is_repaired_and_all_else_kept(noisy, photo, tmp_path):
    target = tmp_path / "mended.mkv"
    result = restore_film(Restorer(**OPTIONS), noisy, target, coding=Coding("ffv1"))
    assert (result.width, result.height, result.frames, result.kept) == (128, 96, 7, ("audio (aac)",))
    assert "noise of" in result.notes[0]
    assert result.notes[0].endswith("(decided by 5 frames spread over the film)")
    before, after = shown(noisy), shown(target)
    assert [at for at, _ in after] == [at for at, _ in before]
    for (_, damaged), (_, mended) in zip(before, after, strict=True):
        assert psnr(mended, photo) > psnr(damaged, photo) + 3
    old, new = header(noisy), header(target)
    for name in ("primaries", "transfer", "matrix", "full", "rotation", "time_base"):
        assert getattr(new, name) == getattr(old, name), name


@pytest.mark.dear("frames are repaired in three runs")
def test_a_stop_loses_only_the_segment_in_the_making(noisy, tmp_path, monkeypatch):
    monkeypatch.setattr(films, "SEGMENT", 3)
    target, restore = tmp_path / "mended.mkv", Restorer("noise", **OPTIONS)

    def stop(done: int, _: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore_film(restore, noisy, target, progress=stop)
    assert not target.exists()
    assert plan_restored(FilmRestorer(restore, noisy), noisy, target, probed=0).ready == 3
    other = FilmRestorer(Restorer("noise,jpeg", **OPTIONS), noisy)
    assert plan_restored(other, noisy, target, probed=0).ready == 0
    result = restore_film(restore, noisy, target)
    assert (result.frames, result.resumed) == (7, 3)
    assert not work_folder(target).exists()


def test_one_odd_frame_decides_nothing_and_a_sound_film_is_copied(photo, tmp_path):
    small = imresize(photo, 1 / 2)
    source, target = shoot(tmp_path / "a.mkv", [small, small, small // 16, small, small]), tmp_path / "b.mkv"
    restore = Restorer("light", **OPTIONS)
    assert FilmRestorer(restore, source).findings[0].facts["median"] > 0.2
    restore = Restorer(**OPTIONS)
    assert restore.look(small // 16) != ()
    worker = FilmRestorer(restore, source)
    plan = plan_restored(worker, source, target)
    assert (plan.copied, plan.seconds, plan.frames, worker.clean["found"]) == (True, 0.0, 5, [])
    result = restore_film(worker, source, target)
    assert target.read_bytes() == source.read_bytes()
    assert result.notes == ("nothing found to repair (decided by 5 frames spread over the film)", COPIED)
    with pytest.raises(FileExistsError, match=r"b\.mkv: exists already; --overwrite"):
        restore_film(worker, source, target)
    assert not worker.copies(source, tmp_path / "b.mp4", None)
    assert not worker.copies(source, target, Coding("ffv1"))


def test_a_dark_film_is_brightened_alike(photo, tmp_path):
    dark = [(imresize(photo, 1 / 2).astype(float) ** 2.2 / 255**1.2 * light).round() for light in (0.13, 0.15, 0.17)]
    source = shoot(tmp_path / "a.mkv", [(257 * one).astype(np.uint16) for one in dark], fmt="yuv444p10le")
    worker = FilmRestorer(Restorer(**OPTIONS), source)
    alone = [Restorer("light", **OPTIONS).look(pixels)[-1].facts for _, pixels in shown(source)]
    assert [found.repair for found in worker.findings] == ["light"]
    for name in ("median", "gamma"):
        assert worker.findings[0].facts[name] == pytest.approx(np.median([one[name] for one in alone]), abs=2e-4)
    frame = shown(source)[0][1]
    made = worker(frame)
    assert (made.dtype, made.shape) == (np.uint16, frame.shape)
    assert made.mean() > 2 * frame.mean()
    assert np.array_equal(made, worker(frame))


def test_rain_is_only_removed_when_asked_for(photo, tmp_path):
    source = shoot(tmp_path / "a.mkv", [imresize(photo, 1 / 2)])
    assert FilmRestorer(Restorer(**OPTIONS), source).findings == ()
    worker = FilmRestorer(Restorer("rain", **OPTIONS), source)
    assert worker.says == "rain and snow removed (decided by its only frame)"


def test_frames_are_spread_over_the_film(tmp_path):
    pictures = [np.full((16, 16, 3), 8 * i, np.uint8) for i in range(25)]
    source = shoot(tmp_path / "a.mkv", pictures)
    film = header(source)
    assert [round(shot.pts * film.time_base * 10) for shot in spread(source, film, LOOKED)] == [2, 7, 12, 17, 22]
    short = shoot(tmp_path / "b.mkv", pictures[:2])
    assert len(spread(short, header(short), LOOKED)) == 2


def test_what_is_usual_is_that_of_the_middle():
    noises = [Degradation(noise=n, colour=n / 2) for n in (9, 0, 30, 8, 7)]
    assert usual(noises) == Degradation(noise=8, colour=4)
    jpegs = [Degradation(0.8, seen="pixels"), Degradation(), Degradation(0.5, 3, 1, "pixels", (1, 2))]
    assert usual(jpegs) == Degradation(0.5, 0, 0, "pixels", (1, 2))
    assert usual(noises[2:3]) == noises[2]
    assert usual(noises[1:3]) == noises[1]


def test_a_film_without_frames_is_named(tmp_path):
    path = tmp_path / "empty.mkv"
    with av.open(str(path), "w") as made:
        video = made.add_stream("ffv1", rate=10)
        video.width, video.height, video.pix_fmt = 16, 16, "yuv420p"
        made.start_encoding()
    with pytest.raises(FilmError, match=r"empty\.mkv: it (has no frames|has no moving pictures|is no film)"):
        restore_film(Restorer(**OPTIONS), path, tmp_path / "b.mkv")
    for more in ({"infrared": "b.png"}, {"exposures": ["b.png"]}):
        with pytest.raises(
            FilmError, match=r"empty\.mkv: exposures and an infrared twin go with a picture, and this is"
        ):
            restore_film(Restorer(**OPTIONS, **more), path, tmp_path / "b.mkv")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["empty.mkv"]
