"""Films made larger: what is kept, resumed and refused."""

from __future__ import annotations

import json
import struct
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from foveal.runtime.film import film as films
from foveal.runtime.film.encode import Coding, Packets
from foveal.runtime.film.film import is_film, plan_film, upscale_film, work_folder
from foveal.runtime.film.light import light_of
from foveal.runtime.film.source import FilmError, frames, header, rgb

av = pytest.importorskip("av")
BASE = Fraction(1, 12800)
TIMES = [i * 512 + 7 * (i % 3) for i in range(10)]  # a variable rate


class Doubler:
    """An upscaler that repeats pixels; deterministic and quick."""

    name, scale, threads, notes = "doubler", 2, 1, ()

    def __call__(self, pixels):
        return pixels.repeat(2, 0).repeat(2, 1)

    def plan(self, size):
        width, height = size
        return SimpleNamespace(megapixels=4 * width * height / 1e6, seconds=1.5, start=0.5, notes=())


def picture(i: int, dtype=np.uint8):
    pixels = np.zeros((24, 32, 3), np.float64)
    pixels[:, :, 0] = 0.8
    pixels[4:12, 2 * i : 2 * i + 8] = 1, 0.9, 0.2
    return (pixels * np.iinfo(dtype).max).round().astype(dtype)


def shoot(path, *, codec="libx264", fmt="yuv420p", matrix=1, full=False, rotation=90, sound=True, words=False, n=10):
    with av.open(str(path), "w") as made:
        made.metadata["title"] = "a title"
        video = made.add_stream(codec, rate=25)
        context = video.codec_context
        context.width, context.height, context.pix_fmt, context.time_base = 32, 24, fmt, BASE
        context.color_primaries, context.color_trc, context.colorspace = matrix, matrix, matrix
        context.color_range = 2 if full else 1
        context.thread_count = 1
        context.options = {} if codec == "ffv1" else {"crf": "4", "preset": "veryfast"}
        video.time_base = BASE
        if rotation:
            video.set_display_rotation(rotation)
        tone = made.add_stream("aac", rate=8000) if sound else None
        text = made.add_mux_stream("subrip") if words else None
        dtype = np.uint16 if "10" in fmt else np.uint8
        for i in range(n):
            frame = av.VideoFrame.from_ndarray(picture(i, dtype), "rgb24" if dtype == np.uint8 else "rgb48le")
            frame = frame.reformat(format=fmt, dst_colorspace=matrix, dst_color_range=2 if full else 1)
            frame.pts, frame.time_base = TIMES[i], BASE
            made.mux(video.encode(frame))
        made.mux(video.encode())
        if tone is not None:
            wave = av.AudioFrame.from_ndarray(np.zeros((1, 3200), np.float32), "fltp", "mono")
            wave.sample_rate, wave.pts = 8000, 0
            made.mux(tone.encode(wave))
            made.mux(tone.encode())
        if text is not None:
            packet = av.Packet(b"hello")
            packet.pts, packet.dts, packet.duration, packet.time_base, packet.stream = (
                0,
                0,
                300,
                Fraction(1, 1000),
                text,
            )
            made.mux(packet)
    return path


def shown(path):
    film = header(path)
    return [(shot.pts * film.time_base, rgb(shot, film)) for shot in frames(path)]


def payload(path, kind: str) -> list[bytes]:
    with av.open(str(path)) as opened:
        (stream,) = (s for s in opened.streams if s.type == kind)
        return [bytes(packet) for packet in opened.demux(stream) if packet.size]


def test_pictures_grow_and_all_else_stays(tmp_path):
    source, target = shoot(tmp_path / "clip.mp4"), tmp_path / "big.mp4"
    seen = []
    result = upscale_film(Doubler(), source, target, coding=Coding(crf=4), progress=lambda *at: seen.append(at))
    assert (result.width, result.height, result.frames, result.resumed) == (64, 48, 10, 0)
    assert result.kept == ("audio (aac)",)
    assert result.notes == ()
    assert seen[-1] == (10, 10)
    before, after = shown(source), shown(target)
    assert [at for at, _ in after] == [at for at, _ in before]
    for (_, small), (_, large) in zip(before, after, strict=True):
        assert np.abs(large[::2, ::2].astype(int) - small).mean() < 3
    assert payload(target, "audio") == payload(source, "audio")
    old, new = header(source), header(target)
    for name in ("primaries", "transfer", "matrix", "full", "rotation", "aspect", "time_base"):
        assert getattr(new, name) == getattr(old, name), name
    with av.open(str(target)) as opened:
        assert opened.metadata["title"] == "a title"
        assert opened.streams.video[0].codec_context.name == "h264"
    assert not work_folder(target).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big.mp4", "clip.mp4"]


@pytest.mark.parametrize(
    ("fmt", "matrix", "full"), [("yuv420p", 6, False), ("yuv420p", 1, True), ("yuv444p10le", 9, False)]
)
def test_colours_come_back(tmp_path, fmt, matrix, full):
    source = shoot(tmp_path / "clip.mkv", codec="ffv1", fmt=fmt, matrix=matrix, full=full, rotation=0, sound=False)
    film = header(source)
    assert (film.matrix, film.full, film.bits) == (matrix, full, 10 if "10" in fmt else 8)
    target = tmp_path / "big.mkv"
    upscale_film(Doubler(), source, target, coding=Coding("ffv1"))
    (_, small), (_, large) = shown(source)[0], shown(target)[0]
    want = picture(0, small.dtype)
    assert np.abs(small[-6:, -6:].astype(int) - want[-6:, -6:]).max() <= np.iinfo(small.dtype).max * 0.02
    assert np.abs(large[::2, ::2].astype(int) - small)[-6:, -6:].max() <= np.iinfo(small.dtype).max * 0.01


def test_a_stop_loses_only_the_segment_in_the_making(tmp_path, monkeypatch):
    monkeypatch.setattr(films, "SEGMENT", 3)
    source, target, whole = shoot(tmp_path / "clip.mp4"), tmp_path / "big.mp4", tmp_path / "whole.mp4"
    upscale_film(Doubler(), source, whole)

    def stop(done: int, _: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upscale_film(Doubler(), source, target, progress=stop)
    assert not target.exists()
    assert plan_film(Doubler(), source, target).ready == 6
    (work_folder(target) / "00002.part").write_text("half")
    result = upscale_film(Doubler(), source, target)
    assert (result.frames, result.resumed) == (10, 6)
    here, there = shown(target), shown(whole)  # an encoder's bytes may differ between two runs, the pictures hardly
    assert [at for at, _ in here] == [at for at, _ in there]
    assert all(np.abs(a.astype(int) - b).mean() < 1 for (_, a), (_, b) in zip(here, there, strict=True))
    # another quality starts over
    with pytest.raises(KeyboardInterrupt):
        upscale_film(Doubler(), source, tmp_path / "other.mp4", progress=stop)
    assert plan_film(Doubler(), source, tmp_path / "other.mp4", Coding(crf=30)).ready == 0
    assert upscale_film(Doubler(), source, tmp_path / "other.mp4", coding=Coding(crf=30)).resumed == 0


def test_what_a_container_does_not_take_is_told(tmp_path):
    source = shoot(tmp_path / "clip.mkv", words=True)
    assert header(source).others == ("audio (aac)", "subtitle (srt)")
    kept = upscale_film(Doubler(), source, tmp_path / "big.mkv")
    assert kept.kept == ("audio (aac)", "subtitle (srt)")
    assert payload(tmp_path / "big.mkv", "subtitle") == [b"hello"]
    told = upscale_film(Doubler(), source, tmp_path / "big.mp4")
    assert told.kept == ("audio (aac)",)
    assert told.notes == ("subtitle (srt) is not kept: the container does not take it; .mkv takes most",)


def test_decoding_times_never_lie_behind(tmp_path):
    for number, lines in enumerate(
        ([[0, -9, 5, True, 1], [30, 0, 5, False, 1], [10, 1, 5, False, 1]], [[40, 2, 5, True, 1]])
    ):
        (tmp_path / f"{number:05}.json").write_text(json.dumps(lines))
    found = Packets([tmp_path / "00000.json", tmp_path / "00001.json"]).index()
    assert [pts for pts, *_ in found] == [0, 30, 10, 40]
    dts = [at for _, at, *_ in found]
    assert dts == sorted(set(dts))
    assert all(at <= pts for pts, at, *_ in found)


def test_what_is_refused(tmp_path):
    source = shoot(tmp_path / "clip.mp4", sound=False)
    (tmp_path / "there.mp4").write_bytes(b"")
    with pytest.raises(FileExistsError, match=r"there\.mp4: exists already; --overwrite"):
        upscale_film(Doubler(), source, tmp_path / "there.mp4")
    with pytest.raises(FilmError, match=r"big\.png: a film ends in one of \.mp4, "):
        upscale_film(Doubler(), source, tmp_path / "big.png")
    with pytest.raises(FilmError, match="codec must be one of h264, hevc, av1, vp9, ffv1, got 'divx'"):
        Coding("divx")
    with pytest.raises(FilmError, match="crf must be in 0 to 51 for h264, got 60"):
        Coding(crf=60)
    with pytest.raises(FilmError, match=r"none\.mp4: no such file"):
        header(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("no film")
    with pytest.raises(FilmError, match=r"text\.mp4: it is no film that FFmpeg reads"):
        header(tmp_path / "text.mp4")
    with pytest.raises(FilmError, match=r"a \.webm file cannot hold h264; end the name in \.mkv"):
        upscale_film(Doubler(), source, tmp_path / "big.webm", coding=Coding())
    assert not (tmp_path / "big.webm").exists()
    assert not list(tmp_path.glob(".*.part.*"))
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(shoot(tmp_path / "long.mkv", sound=False).read_bytes()[:700])
    with pytest.raises(FilmError, match=r"cut\.mkv: "):
        header(cut)
    assert is_film(tmp_path / "A.MKV")
    assert not is_film(tmp_path / "a.png")


DISPLAY = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"


def hdr(path):
    with av.open(str(path), "w") as made:
        video = made.add_stream("libx264", rate=10)
        context = video.codec_context
        context.width, context.height, context.pix_fmt, context.thread_count = 64, 48, "yuv420p10le", 1
        context.color_primaries, context.color_trc, context.colorspace, context.color_range = 9, 16, 9, 1
        context.options = {
            "preset": "ultrafast",
            "x264-params": f"mastering-display={DISPLAY}:cll=1000,400",
        }
        for i in range(2):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 9000 * i, np.uint16), "rgb48le")
            frame.pts, frame.time_base = i, Fraction(1, 10)
            made.mux(video.encode(frame.reformat(format="yuv420p10le")))
        made.mux(video.encode())
    return path


@pytest.mark.parametrize("codec", ["h264", "hevc", "av1"])
@pytest.mark.dear("an encoder of HDR")
def test_the_metadata_of_hdr10_is_written_again(tmp_path, codec):
    source, target = hdr(tmp_path / "a.mp4"), tmp_path / "b.mp4"
    light = header(source).light
    assert light.level == (1000, 400)
    assert light.display == pytest.approx((0.68, 0.32, 0.265, 0.69, 0.15, 0.06, 0.3127, 0.329, 0.005, 1000))
    result = upscale_film(Doubler(), source, target, coding=Coding(codec))
    assert result.notes == ()
    made = header(target).light
    assert made.level == light.level
    assert made.display == pytest.approx(light.display, abs=2e-4)


def test_where_the_metadata_of_hdr10_is_lost_it_is_told(tmp_path):
    source, says = hdr(tmp_path / "a.mp4"), "HDR10 metadata is not kept in ffv1; h264, hevc and av1 hold it"
    assert plan_film(Doubler(), source, tmp_path / "b.mkv", Coding("ffv1")).notes == (says,)
    assert upscale_film(Doubler(), source, tmp_path / "b.mkv", coding=Coding("ffv1")).notes == (says,)
    assert not header(tmp_path / "b.mkv").light


def test_metadata_that_cannot_be_read_is_none():
    def shown(**sides):
        return light_of(
            SimpleNamespace(side_data=[Side(SimpleNamespace(name=name), data) for name, data in sides.items()])
        )

    class Side:
        def __init__(self, kind, data):
            self.type, self.data = kind, data

        def __bytes__(self):
            return self.data

    assert not shown(MASTERING_DISPLAY_METADATA=bytes(88), CONTENT_LIGHT_LEVEL=b"short")
    only = shown(CONTENT_LIGHT_LEVEL=struct.pack("=2I", 600, 80))
    assert only.options("hevc") == {"x265-params": "max-cll=600,80"}
    assert only.options("vp9") == {}
