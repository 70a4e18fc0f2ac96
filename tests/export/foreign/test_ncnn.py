"""ncnn's pairs: what is read, rewritten, run and refused."""

import numpy as np
import pytest

from foveal.export.foreign import import_model, imported
from foveal.export.foreign.colours import Colours
from foveal.export.foreign.errors import ForeignModelError
from foveal.export.foreign.ncnn import open_ncnn, read_param, recoloured
from foveal.runtime import engines
from foveal.runtime.bundle import Bundle
from foveal.runtime.upscaler import Upscaler

PARAM = "7767517\n2 2\nInput in 0 1 data\nPixelShuffle up 1 1 data output 0=2\n"


def test_a_param_is_read(tmp_path):
    path = tmp_path / "a.param"
    path.write_text(PARAM)
    first, last = read_param(path)
    assert (first.kind, first.outputs) == ("Input", ("data",))
    assert str(last) == "PixelShuffle up 1 1 data output 0=2"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is no .param of ncnn"),
        (PARAM.replace("7767517", "7767518"), "begins with '7767518' instead of 7767517"),
        (PARAM.replace("2 2", "3 2"), "states 3 2 layers and blobs and holds 2 and 2"),
        (PARAM.replace("1 1 data output", "1 1 date output"), "layer up reads date, which no layer above it makes"),
        (PARAM.replace("1 1 data output 0=2", "1 1 data"), "layer up lacks blobs"),
        (PARAM.replace("data output", "data data"), "blob data is made twice"),
        (PARAM.replace("up 1", "up x"), "invalid literal"),
    ],
)
def test_a_damaged_param_is_refused(text, reason, tmp_path):
    path = tmp_path / "a.param"
    path.write_text(text)
    with pytest.raises(ForeignModelError, match=reason):
        read_param(path)


@pytest.mark.parametrize(("there", "missing"), [("a.param", "a.bin"), ("a.bin", "a.param")])
def test_half_a_pair_is_refused(there, missing, tmp_path):
    (tmp_path / there).write_text(PARAM)
    with pytest.raises(ForeignModelError, match=rf"{there}: a model of ncnn is a pair of files, and {missing} is not"):
        imported(tmp_path / there)


def test_without_ncnn_the_command_that_installs_it_is_told(tmp_path, monkeypatch):
    (tmp_path / "a.param").write_text(PARAM)
    (tmp_path / "a.bin").write_bytes(b"")
    monkeypatch.setattr("foveal.export.foreign.errors.find_spec", lambda _: None)
    with pytest.raises(ForeignModelError, match=r"reading it needs ncnn; pip install '.*\[ncnn\]'"):
        imported(tmp_path / "a.param")


def test_an_imported_pair_makes_the_same_picture(tiny_ncnn, tmp_path):
    path = tiny_ncnn()
    made = import_model(path, tmp_path / "bundle", licence="CC0", data="nothing")
    card = Bundle.load(tmp_path / "bundle").card
    assert (card.scale, card.margin, card.tiling, card.purpose) == (2, 1, "exact", "super-resolution")
    assert (card.licence, card.data, card.parameters) == ("CC0", "nothing", 324)
    assert made.parity == 0
    assert card.imported["file"] == "tiny.param"
    picture = np.random.default_rng(0).integers(0, 256, (25, 37, 3), np.uint8)
    large = Upscaler(model=tmp_path / "bundle", tile=16)(picture)
    around = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="symmetric").transpose(2, 0, 1)[None] / np.float32(255)
    whole = open_ncnn(path).run(around)[0, :, 2:-2, 2:-2].transpose(1, 2, 0)
    assert large.shape == (50, 74, 3)
    assert np.abs(large - np.clip(whole * 255, 0, 255)).max() < 0.51


def test_a_pair_runs_directly_and_is_imported_once(tiny_ncnn, monkeypatch):
    path = tiny_ncnn()
    first = Bundle.load(path)
    monkeypatch.setattr("foveal.export.foreign.import_model", None)
    assert Bundle.load(path.with_suffix(".bin")) == first
    assert Upscaler(model=str(path)).scale == 2


def test_other_weights_are_another_import(tiny_ncnn, monkeypatch):
    path = tiny_ncnn()
    monkeypatch.setattr("foveal.export.foreign.import_model", lambda source, folder: None)
    first = imported(path)
    weights = path.with_suffix(".bin")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert imported(path) != first


def test_damaged_weights_are_noticed(tiny_ncnn):
    folder = imported(tiny_ncnn())
    (folder / "model.bin").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"model.bin: sha256 is .*; the file is damaged or was changed"):
        Bundle.load(folder).file("float")
    (folder / "model.bin").unlink()
    with pytest.raises(ValueError, match=r"model.bin: missing; the bundle is incomplete"):
        Bundle.load(folder).file("float")


def test_too_few_weights_are_refused(tiny_ncnn):
    path = tiny_ncnn()
    path.with_suffix(".bin").write_bytes(bytes(40))
    with pytest.raises(
        ForeignModelError, match=r"does not hold the weights that tiny.param wants; the pair is damaged"
    ):
        open_ncnn(path)


def test_layers_of_others_are_refused_by_name(tiny_ncnn):
    path = tiny_ncnn()
    path.write_text(path.read_text().replace("PixelShuffle up", "Secret up"))
    with pytest.raises(ForeignModelError, match=r"layers of type Secret are not ncnn's own"):
        open_ncnn(path)


def test_two_outputs_are_refused(tiny_ncnn):
    path = tiny_ncnn()
    path.write_text(path.read_text().replace("3 3", "4 5") + "Split s 1 2 output a b\n")
    with pytest.raises(ForeignModelError, match=r"takes 1 inputs and gives 2 outputs; only models from one picture"):
        open_ncnn(path)


def test_other_channels_are_refused(tiny_ncnn):
    with pytest.raises(ForeignModelError, match=r"took no picture|gives 1 channels"):
        imported(tiny_ncnn(channels=1))


def test_another_scale_than_asked_for_is_refused(tiny_ncnn, tmp_path):
    with pytest.raises(
        ForeignModelError, match=r"tiny.param: enlarges by 2, and --scale asks for 4; leave --scale out"
    ):
        import_model(tiny_ncnn(), tmp_path / "bundle", scale=4)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("colours", [Colours("0-255", "-1-1", "bgr", "rgb"), Colours("-1-1", "0-255", "rgb", "bgr")])
def test_colours_are_corrected_by_layers(colours, tiny_ncnn):
    path = tiny_ncnn()
    layers = read_param(path)
    opened = open_ncnn(path)
    path.write_text(
        "7767517\n{} {}\n{}\n".format(
            len(made := recoloured(layers, colours, "tiny")),
            sum(len(layer.outputs) for layer in made),
            "\n".join(map(str, made)),
        )
    )
    x = np.random.default_rng(0).random((2, 3, 5, 7), np.float32)
    got = engines.create("ncnn", path, 1, exact=True).run(x)
    np.testing.assert_allclose(got, colours.around(opened.run)(x), atol=1e-4)


def test_colours_given_by_the_user_are_kept(tiny_ncnn, tmp_path):
    made = import_model(tiny_ncnn(), tmp_path / "bundle", colour_range="0-255", order="bgr")
    assert (made.colours.range_in, made.colours.order_out) == ("0-255", "bgr")
    # A linear network without biases gives the same in every range.
    x = np.random.default_rng(0).random((1, 3, 6, 6), np.float32)
    got = engines.create("ncnn", tmp_path / "bundle" / "model.param", 1).run(x)
    theirs = open_ncnn(tmp_path / "tiny.param").run(np.ascontiguousarray(x[:, ::-1]))[:, ::-1]
    np.testing.assert_allclose(got, theirs, atol=1e-4)
