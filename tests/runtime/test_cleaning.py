import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.images.degradation import Degradation, jpeg_level
from foveal.images.resize import imresize
from foveal.runtime import cleaning
from foveal.runtime.bundle import Bundle, available, choose, cleaner
from foveal.runtime.card import BundleError, Card
from foveal.runtime.cleaning import Look, checked_clean, decide, file_level, stated_level
from foveal.runtime.engines import EngineError, why_not
from foveal.runtime.resume import settings_of
from foveal.runtime.upscaler import Upscaler

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
NAMES = ("bridge", "clock", "dandelion", "dogs")
CLEANERS = [bundle for bundle in available() if bundle.card.levels and bundle.card.scale > 1]


def sample(name, side=96):
    with Image.open(SAMPLES / f"{name}.png") as opened:
        return np.asarray(opened.convert("RGB"))[20 : 20 + side, 30 : 30 + side].copy()


def jpeg(pixels, quality=60):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


def decoded(pixels, quality=60):
    with Image.open(io.BytesIO(jpeg(pixels, quality))) as opened:
        return np.asarray(opened)


def noisy(pixels, sigma=10):
    noise = np.random.default_rng(0).normal(0, sigma, pixels.shape)
    return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)


def upscaler(scale=4, **options):
    return Upscaler(scale, **{"quality": "fast", "engine": "onnxruntime", "threads": 1, **options})


# What is decided


@pytest.mark.parametrize(
    ("given", "used"), [("auto", "auto"), ("off", "off"), (0, "off"), ("0", "off"), (40, 40), ("100", 100)]
)
def test_settings(given, used):
    assert checked_clean(given) == used


@pytest.mark.parametrize("given", ["some", -1, 101, "101", 2.5, True, None])
def test_other_settings_are_refused(given):
    with pytest.raises(ValueError, match="clean must be auto, off or a strength from 0 to 100, got"):
        checked_clean(given)


CLEAN, SLIGHT = Degradation(), Degradation(jpeg_level(95), seen="file")
COMPRESSED, GRAINY = Degradation(0.5, seen="file"), Degradation(0.0, 8.0, 0.0)
BOTH = Degradation(0.5, 6.0, 5.0, "pixels", (3, 5))


@pytest.mark.parametrize(
    ("found", "clean", "level"),
    [
        (CLEAN, "auto", None),
        (SLIGHT, "auto", None),
        (COMPRESSED, "off", None),
        (COMPRESSED, "auto", (0.5, 0, 0)),
        (GRAINY, "auto", (0, 0.8, 0)),
        (BOTH, "auto", (0.5, 0.6, 0.5)),
        (CLEAN, 50, (0.5, 0.5, 0.5)),
        (COMPRESSED, 50, (1, 0, 0)),
        (GRAINY, 25, (0, 0.5, 0)),
        (BOTH, 100, (2, 2, 2)),
    ],
)
def test_a_level_follows_from_what_is_found(found, clean, level):
    assert decide(found, clean) == level


def test_looks_say_what_was_found_and_what_is_done():
    assert str(Look(COMPRESSED, (0.5, 0, 0))) == "JPEG of quality 75: cleaned at strength 25"
    assert str(Look(BOTH, (0.5, 0.6, 0.5))) == (
        "was a JPEG of quality 75, cut, noise of 6 levels: cleaned at strength 30"
    )
    assert str(Look(GRAINY, (0, 0.8, 0))) == "grey noise of 8 levels: cleaned at strength 40"
    assert str(Look(CLEAN)) == "no compression or noise found: not cleaned"
    assert str(Look(COMPRESSED, None, "no engine")) == "JPEG of quality 75: not cleaned (no engine)"
    told = Look(BOTH, (0.5, 0.6, 0.5)).to_dict()
    assert json.loads(json.dumps(told)) == told
    assert (told["jpeg_quality"], told["jpeg_grid"], told["noise"], told["strength"]) == (75, [3, 5], 6.0, 30)
    assert Look().to_dict()["looked"] is False


def test_levels_of_files_are_read_from_their_headers(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(sample("dogs"), 75))
    assert file_level(path) == pytest.approx(0.5)
    with Image.open(path) as opened:
        assert stated_level(opened) == pytest.approx(0.5)
        assert stated_level(opened.copy()) is None
    (tmp_path / "b.png").write_bytes(b"\x89PNG")
    assert file_level(tmp_path / "b.png") is None
    assert file_level(tmp_path / "none.jpg") is None
    assert stated_level(np.zeros((3, 3))) is None


# Bundles


def test_bundles_that_clean_stand_beside_those_that_do_not():
    for scale in sorted({bundle.card.scale for bundle in CLEANERS}):
        for quality in ("fast", "balanced", "best"):
            assert not choose(scale, quality)[0].card.levels
            assert cleaner(scale, quality).card.scale == scale
    assert cleaner(7, "fast") is None


@pytest.mark.parametrize("bundle", CLEANERS, ids=lambda b: b.card.name)
def test_a_bundle_that_cleans_is_whole(bundle, tmp_path):
    table = bundle.levels()
    for kind in bundle.card.files:
        data = bundle.file(kind).read_bytes()
        assert table.at(0, kind, data) == data
        assert table.at(len(table.points) - 1, kind, data) != data
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in bundle.folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / bundle.card.levels).write_bytes(b"damaged")
    with pytest.raises(BundleError, match=r"levels.npz: sha256 is"):
        Bundle.load(copy).levels()


def test_a_bundle_without_a_table_says_so():
    with pytest.raises(BundleError, match="no table of levels; choose a bundle that cleans"):
        choose(4, "fast")[0].levels()
    with pytest.raises(ValueError, match="none comes with fast_x4; leave out the model, or leave out clean"):
        Upscaler(model="fast_x4", clean=30)
    if cleaner(2, "fast") is None:
        with pytest.raises(ValueError, match="none comes with fast_x2; take scale 4, or leave out clean"):
            Upscaler(2, "fast", clean=30)
    plain = {"name": "a", "scale": 2, "margin": 1, "trims": True, "files": {"float": "a.onnx"}}
    for wrong in ({"levels": 3}, {"overshoot": 2}, {"overshoot": "much"}):
        with pytest.raises(BundleError, match="must be"):
            Card(**plain, **wrong)


# Routing


@pytest.mark.parametrize("name", NAMES)
def test_a_clean_picture_takes_the_network_for_clean_ones(name, monkeypatch):
    monkeypatch.setattr(cleaning.Cleaner, "network", None)  # which nothing may ask for
    picture = sample(name)
    made = upscaler()(picture)
    np.testing.assert_array_equal(made, upscaler(clean="off")(picture))
    slight = decoded(picture, 97)
    np.testing.assert_array_equal(upscaler()(slight), upscaler(clean="off")(slight))


def luma_error(made, wanted):
    weights = np.array([0.299, 0.587, 0.114])
    return float(np.square((made.astype(float) - wanted) @ weights)[4:-4, 4:-4].mean())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", [decoded, noisy], ids=["jpeg", "noise"])
def test_a_damaged_picture_comes_out_better_than_by_bicubic_and_than_before(name, damage):
    with Image.open(SAMPLES / "original" / f"{name}.png") as opened:
        large = np.asarray(opened.convert("RGB"))[: 4 * 96, : 4 * 112]
    with Image.open(SAMPLES / f"{name}.png") as opened:
        small = damage(np.asarray(opened.convert("RGB")))[:96, :112]
    cleaned = luma_error(upscaler()(small), large)
    assert cleaned < luma_error(imresize(small, 4), large)
    assert cleaned < luma_error(upscaler(clean="off")(small), large)


@pytest.mark.parametrize(
    "engine",
    ["native", "openvino", pytest.param("torch", marks=pytest.mark.dear("torch and its graph take a second to load"))],
)
@pytest.mark.parametrize("bundle", CLEANERS, ids=lambda b: b.card.name)
def test_engines_clean_alike(bundle, engine):
    if reason := why_not(engine):
        pytest.skip(reason)
    options = {"scale": bundle.card.scale, "quality": bundle.card.quality}
    one, other = (upscaler(engine=name, **options) for name in ("onnxruntime", engine))
    damaged = noisy(decoded(sample("dogs", 40)))
    deep = damaged.astype(np.uint16) * 257  # computed in floats by all of them
    assert abs(one(deep).astype(int) - other(deep)).max() <= 257
    # Of 8 bits, an engine takes the int8 file where it is faster with it.
    assert np.square(one(damaged).astype(float) - other(damaged)).mean() < 0.6
    plan = other.plan(damaged, look=True)
    assert (plan.engine, plan.bundle) == (engine, bundle.card.name)
    assert other.notes == ()


def test_tiles_of_a_cleaned_picture_join():
    damaged = decoded(sample("clock", 70))
    whole, tiled = (upscaler(tile=tile)(damaged).astype(int) for tile in (1000, 19))
    assert abs(whole - tiled).max() <= 1
    sixteen = upscaler(tile=19)(damaged.astype(np.uint16) * 257).astype(int)
    assert abs(sixteen / 257 - whole).max() <= 1


def test_flat_stays_flat_where_it_is_cleaned():
    made = upscaler(clean=100)(np.full((30, 33, 3), (12, 130, 250), np.uint8))
    assert (made == (12, 130, 250)).all()


@pytest.mark.parametrize("alpha", [False, True])
def test_grey_stays_grey_where_it_is_cleaned(alpha):
    colour = sample("dogs", 64)
    grey = (colour @ [0.3, 0.6, 0.1]).astype(np.uint8)[..., None].repeat(3, 2)
    half = np.concatenate([grey[:, :32], colour[:, 32:]], axis=1)
    if alpha:
        grey, half = (np.dstack([one, np.full((64, 64), 200, np.uint8)]) for one in (grey, half))
    assert (np.ptp(upscaler(clean=50)(grey)[..., :3], axis=2) == 0).all()
    tint = np.ptp(upscaler(clean=50)(half)[..., :3], axis=2)
    assert (tint[:, : 4 * 30] == 0).all()
    assert tint[:, 4 * 34 :].any()


def test_strength_is_obeyed():
    damaged = decoded(sample("dogs", 64))
    made = [upscaler(clean=clean)(damaged).astype(float) for clean in ("off", 10, 40, 100)]
    rough = [np.abs(np.diff(one, axis=1)).mean() for one in made]
    assert rough == sorted(rough, reverse=True)


def test_where_no_engine_cleans_the_picture_is_left_as_it_is(monkeypatch):
    def nothing_runs(self, kind):
        raise EngineError("no engine runs this bundle")

    monkeypatch.setattr(cleaning.Cleaner, "network", None)  # which nothing may ask for
    monkeypatch.setattr(cleaning, "EngineChoice", type("None_", (cleaning.EngineChoice,), {"engine": nothing_runs}))
    damaged = decoded(sample("dogs", 64))
    upscale = upscaler()
    np.testing.assert_array_equal(upscale(damaged), upscaler(clean="off")(damaged))
    assert "not cleaned (no engine runs this bundle)" in upscale.plan(damaged, look=True).notes[-1]


def test_files_and_plans_say_what_is_done(tmp_path):
    source, clean = tmp_path / "a.jpg", tmp_path / "b.png"
    source.write_bytes(jpeg(sample("dogs", 48), 75))
    Image.fromarray(sample("dogs", 48)).save(clean)
    upscale = upscaler()
    said = "JPEG of quality 75: cleaned at strength 25"
    plan = upscale.plan(source, look=True)
    assert (plan.bundle, plan.notes) == ("clean_fast_x4", (said,))
    assert plan.to_dict()["clean"]["jpeg_quality"] == 75
    result = upscale.upscale_file(source, tmp_path / "c.png")
    assert (result.bundle, result.notes) == ("clean_fast_x4", (said,))
    assert result.to_dict()["clean"]["cleaned"] is True
    assert upscale.plan(clean, look=True).notes == ("no compression or noise found: not cleaned",)
    result = upscale.upscale_file(clean, tmp_path / "d.png")
    assert (result.bundle, result.notes) == ("fast_x4", ())
    assert result.clean["looked"]
    assert upscaler(clean="off").plan(source, look=True).clean is None


def test_animations_are_left_as_they_are(tmp_path):
    frames = [Image.fromarray(noisy(sample("dogs", 40))) for _ in range(2)]
    path = tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    result = upscaler().upscale_file(path, tmp_path / "b.gif")
    assert (result.bundle, result.clean["looked"]) == ("fast_x4", False)


def test_other_settings_make_results_anew():
    options = ({}, {"clean": "off"}, {"clean": 30}, {"wrap": True}, {"content": "pixel"})
    assert len({settings_of(upscaler(**one)) for one in options}) == len(options)
