import json

import numpy as np
import pytest
import torch
from asked import llava_folder
from documents import ROOT
from PIL import Image

from foveal.errors import FovealError
from foveal.vlm import Asker, VlmError, ask
from foveal.vlm.answer import Answer, read_film, read_picture, read_pictures
from foveal.vlm.fastv import FastV
from foveal.vlm.route import Route

DOGS, CLOCK = (ROOT / "samples" / f"{name}.png" for name in ("dogs", "clock"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return llava_folder(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def asker(folder):
    return Asker(folder)


def test_the_untouched_model_answers_as_transformers_does(asker):
    answer = asker([DOGS], "what is this?", "full", words=3)
    inputs = asker.inputs([DOGS], "what is this?")
    with torch.no_grad():
        plain = asker.model.generate(**inputs, max_new_tokens=3, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert answer.text == asker.processor.decode(plain, skip_special_tokens=True)
    assert (answer.method, answer.keep, answer.words) == ("full", 1.0, len(plain))
    assert answer.route == Route((20,) * 3, ((16,),) * 3, (20,) * 3)
    assert answer.read == 20
    assert answer.cache == 3 * 2 * (20 + 2) * 2 * 8 * 4  # layers, keys and values, tokens, heads, channels, bytes


def test_fewer_tokens_are_read(asker, folder):
    answer = asker([DOGS, str(CLOCK)], "what is this?", "fastv", 0.25, words=3)
    assert answer.route.tokens == (36, 36, 12)
    assert answer.keep == 0.25
    assert answer.cache < asker([DOGS, CLOCK], "what is this?", "full", words=3).cache
    assert answer.prefill > 0
    assert answer.decode > 0
    assert ask([DOGS, CLOCK], "what is this?", folder, "fastv", 0.25, words=3).text == answer.text
    one = asker([DOGS], "what?", FastV(0.5, layer=1), words=1)
    assert one.method == "FastV(keep=0.5, layer=1, rotary=True)"
    assert one.route.tokens[1] < one.route.tokens[0]
    assert not asker.model.model._forward_pre_hooks  # it is restored


def test_an_answer_is_json():
    answer = Answer("a", "fastv", 0.5, Route((4, 2), ((2,), (1,)), (4, 2)), 0.5, 0.25, 3, 99)
    told = json.loads(json.dumps(answer.to_dict()))
    assert told["read"] == 3
    assert told["route"]["tokens"] == [4, 2]


def test_a_chat_template_is_used_where_there_is_one(asker, monkeypatch):
    template = "{% for m in messages %}what{% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}"
    template += "{{ c.text }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} is{% endif %}"
    monkeypatch.setattr(asker.processor, "chat_template", template)
    ids = asker.inputs([DOGS], "this")["input_ids"][0].tolist()
    assert [ids[0], ids[1:17], ids[17:]] == [8, [5] * 16, [10, 9]]


def test_pictures_are_upright_and_in_colour(tmp_path):
    turned = Image.new("RGB", (6, 4))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as opened:
        assert read_picture(opened).size == (4, 6)
    assert read_picture(tmp_path / "a.jpg").size == (4, 6)
    for pixels in (np.zeros((4, 6), np.uint8), np.zeros((4, 6, 2), np.uint8), np.zeros((4, 6, 4), np.uint16)):
        found = read_picture(pixels)
        assert (found.size, found.mode) == ((6, 4), "RGB")


def test_nothing_is_fetched(folder, monkeypatch):
    import socket

    def refuse(*_, **__):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert ask([DOGS], "what?", folder, "random", 0.5, words=1).words == 1
    import os

    assert "HF_HUB_OFFLINE" not in os.environ


def test_wrong_questions_raise(asker):
    with pytest.raises(VlmError, match="no picture; name at least one before the question"):
        asker([], "what?")
    with pytest.raises(VlmError, match="the question is empty; ask something"):
        asker([DOGS], " ")


def test_folders_that_hold_no_such_model_raise(tmp_path, folder):
    with pytest.raises(VlmError, match=r"nowhere is no folder; models are read from local folders only"):
        Asker("nowhere")
    with pytest.raises(VlmError, match=r"holds no model of transformers, whose config\.json names a model_type"):
        Asker(tmp_path)
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "llama"}')
    with pytest.raises(
        VlmError, match="holds a model of type 'llama', which reads text only; known are fuyu, idefics3"
    ):
        Asker(tmp_path)
    config.write_text('{"model_type": "zebra", "vision_config": {}}')
    with pytest.raises(VlmError, match="holds a model of type 'zebra', which is not among those known"):
        Asker(tmp_path)
    config.write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(VlmError, match=r"cannot be loaded \(.*\); it must hold config\.json, weights as \.safetensors"):
        Asker(tmp_path)


def film(path, *, rotation=0):
    """Ten grey frames, each 20 levels lighter than the one before."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as made:
        video = made.add_stream("libx264" if rotation else "ffv1", rate=25)
        video.codec_context.width, video.codec_context.height, video.codec_context.pix_fmt = 32, 16, "yuv444p"
        if rotation:
            video.set_display_rotation(rotation)
        for level in range(0, 200, 20):
            picture = np.full((16, 32, 3), level, np.uint8)
            made.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        made.mux(video.encode())
    return path


def test_a_film_is_read_by_frames(tmp_path, asker):
    path = film(tmp_path / "a.mkv")
    levels = [int(np.asarray(frame)[8, 16, 0]) for frame in read_film(path, 5)]
    assert np.allclose(levels, [20, 60, 100, 140, 180], atol=2)
    assert len(read_film(path, 99)) == 10
    mixed = read_pictures([path, DOGS], 2)
    assert [picture.size for picture in mixed] == [(32, 16), (32, 16), read_picture(DOGS).size]
    answer = asker([path], "what is this?", "fastv", 0.25, words=2, frames=3)
    assert answer.route.tokens == (3 * 16 + 4, 3 * 16 + 4, 3 * 4 + 4)


def test_a_film_is_turned_as_players_turn_it(tmp_path):
    (frame,) = read_film(film(tmp_path / "a.mov", rotation=90), 1)
    assert frame.size == (16, 32)


def test_films_that_cannot_be_read(tmp_path):
    with pytest.raises(VlmError, match="frames must be at least 1, got 0; 8 are usual"):
        read_film(tmp_path / "a.mkv", 0)
    (tmp_path / "a.mkv").write_bytes(b"none")
    with pytest.raises(FovealError, match="it is no film that FFmpeg reads"):
        read_pictures([tmp_path / "a.mkv"])
