import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from foveal.images.resize import imresize
from foveal.runtime.bundle import available
from foveal.runtime.card import BundleError
from foveal.runtime.engines import EngineError, EngineMemoryError, why_not
from foveal.runtime.throughput import remembered
from foveal.runtime.tiles import make_grid
from foveal.runtime.upscaler import Upscaler

ENLARGING = [bundle for bundle in available() if bundle.card.purpose == "super-resolution"]
KINDS = ("trims", "x1", "x3", "same", "blocks", "same_blocks", "float")


def make(bundle, **options):
    return Upscaler(model=bundle, **{"engine": "onnxruntime", "threads": 1, **options})


def worst(a, b):
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    return abs(a.astype(np.float64) - b.astype(np.float64)).max()


# No seams


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile", [1, 7, 16, 33])
def test_tiled_equals_untiled(kind, tile, bundles, natural):
    for height, width in [(1, 1), (37, 50), (63, 41)]:
        if height * width / tile**2 > 300:
            continue
        image = natural(height, width)
        whole = make(bundles[kind], tile=1000)(image)
        assert worst(make(bundles[kind], tile=tile)(image), whole) <= 1


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiled_equals_untiled_for_every_kind_of_pixel(channels, dtype, bundles, natural):
    image = np.concatenate([natural(45, 33), natural(45, 33, 1)], axis=2)[..., :channels].astype(dtype)
    if channels in (2, 4):
        image[:20, :, -1] = 255
        image[30:, :, -1] = 0
    if dtype == np.uint16:
        image *= 257
    assert worst(make(bundles["trims"], tile=16)(image), make(bundles["trims"], tile=1000)(image)) <= 1


@pytest.mark.parametrize("bundle", available(), ids=lambda b: b.card.name)
def test_tiled_equals_untiled_for_every_shipped_bundle(bundle, natural):
    image = natural(45, 61)
    whole = make(bundle, tile=1000)(image)
    assert whole.shape == (45 * bundle.card.scale, 61 * bundle.card.scale, 3)
    assert worst(make(bundle, tile=19)(image), whole) <= 1
    sixteen = image.astype(np.uint16) * 257
    # One level of 8 bits.
    assert worst(make(bundle, tile=19)(sixteen), make(bundle, tile=1000)(sixteen)) <= 257


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_engines_make_the_same_picture(engine, bundles, natural):
    if reason := why_not(engine):
        pytest.skip(reason)
    image = natural(30, 40)
    for kind in ("trims", "same_blocks"):
        theirs = make(bundles[kind])(image)
        # Engines with bfloat16 may differ by a level or two in the uint8 file.
        assert worst(make(bundles[kind], engine=engine, tile=16)(image), theirs) <= 2


def test_extreme_shapes(bundles, natural):
    for height, width in [(1, 1), (1, 5000), (5000, 1), (2, 3)]:
        image = natural(height, width)
        assert make(bundles["trims"])(image).shape == (2 * height, 2 * width, 3)
        assert make(bundles["same_blocks"])(image[..., 0]).shape == (2 * height, 2 * width)


# Kinds of pixels


def test_bytes_and_floats_take_different_files_to_the_same_picture(bundles, natural):
    image = natural(40, 30)
    fast, slow = make(bundles["trims"])(image), make(bundles["float"])(image)
    assert worst(fast, slow) <= 1
    floats = make(bundles["trims"])(image.astype(np.float32) / 255)
    assert floats.dtype == np.float32
    assert 0 <= floats.min() < floats.max() <= 1
    assert abs(floats * 255 - fast).max() <= 1
    sixteen = make(bundles["trims"])(image.astype(np.uint16) * 257)
    assert sixteen.dtype == np.uint16
    assert abs(sixteen / 257 - fast).max() <= 1
    assert len(np.unique(sixteen % 257)) > 100  # more than 8 bits came out


def test_depth_to_space_puts_each_block_in_its_place(bundles, natural):
    # Nearest neighbours through the strided view, against a plain loop.
    from foveal.runtime.pixels import _grey_shuffle, _shuffle

    for scale in (2, 3, 4):
        blocks = np.random.default_rng(0).integers(0, 256, (5, 4, 3 * scale * scale), np.uint8)
        out = np.zeros((5 * scale, 9 * scale, 3), np.uint8)
        _shuffle(blocks, out[:, : 4 * scale], scale)
        grey = np.zeros((5 * scale, 4 * scale, 1), np.uint8)
        _grey_shuffle(blocks, grey, scale)
        for y in range(5 * scale):
            for x in range(4 * scale):
                at = 3 * (scale * (y % scale) + x % scale)
                colour = blocks[y // scale, x // scale, at : at + 3]
                assert (out[y, x] == colour).all()
                assert grey[y, x, 0] == int(colour.astype(int).sum() + 1) // 3
        assert not out[:, 4 * scale :].any()


def test_grey_is_the_mean_of_three_equal_channels(bundles, natural):
    grey = natural(20, 30)[..., 0]
    colour = make(bundles["trims"])(grey[..., None].repeat(3, axis=2))
    assert worst(make(bundles["trims"])(grey), np.round(colour.mean(axis=2)).astype(np.uint8)) <= 1
    sixteen = make(bundles["trims"])(grey.astype(np.uint16) * 257)
    assert abs(sixteen / 257 - colour.mean(axis=2)).max() <= 1
    assert make(bundles["trims"])(grey[..., None]).shape == (40, 60, 1)


@pytest.mark.parametrize("bundle", ENLARGING, ids=lambda b: b.card.name)
def test_mean_colour_stays(bundle, natural):
    upscale = make(bundle)
    for image in (np.full((24, 30, 3), (3, 128, 250), np.uint8), natural(40, 48)):
        large = upscale(image)
        back = imresize(large, size=image.shape[:2])
        means = abs(back.mean(axis=(0, 1)) - image.mean(axis=(0, 1)))
        assert means.max() <= 0.5
        assert abs(large.mean(axis=(0, 1)) - image.mean(axis=(0, 1))).max() <= 0.5


# Alpha


def disc(background, size=48, dtype=np.uint8):
    """A white disc with a soft edge on transparent `background`."""
    white = np.iinfo(dtype).max
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    alpha = np.clip(size / 3 - np.hypot(x, y), 0, 1)
    image = np.full((size, size, 4), background * (white // 255), dtype)
    image[alpha > 0, :3] = white
    image[..., 3] = np.round(alpha * white)
    return image


@pytest.mark.parametrize("bundle", ENLARGING, ids=lambda b: b.card.name)
@pytest.mark.parametrize("background", [0, 255])
def test_disc_has_no_halo(bundle, background):
    least = 0.9 if bundle.card.levels else 0.98  # what cleans may take a soft edge for something else
    for dtype, tile in ((np.uint8, "auto"), (np.uint16, 16)):
        white = np.iinfo(dtype).max
        large = make(bundle, tile=tile)(disc(background, dtype=dtype))
        visible = large[..., 3] > 0.1 * white
        assert (large[visible][:, :3] >= least * white).all()
        s = bundle.card.scale
        middle, corner = large[20 * s : 28 * s, 20 * s : 28 * s, 3], large[: 4 * s, : 4 * s, 3]
        assert (middle == white).all()
        assert (corner == 0).all()
        # Composited, what was transparent does not show.
        assert len(np.unique(large[..., 3])) > 5


def test_opaque_stays_opaque_and_transparent_transparent(bundles, natural):
    colour = natural(20, 24)
    for value in (255, 0):
        image = np.dstack([colour, np.full((20, 24), value, np.uint8)])
        large = make(bundles["trims"])(image)
        assert (large[..., 3] == value).all()
        if value:
            assert worst(large[..., :3], make(bundles["trims"])(colour)) == 0
        else:  # hidden colours are carried along
            assert worst(large[..., :3], colour.repeat(2, 0).repeat(2, 1)) == 0


def test_hidden_colours_stay_hidden(bundles, natural):
    image = np.dstack([natural(30, 30), np.zeros((30, 30), np.uint8)])
    image[10:20, 10:20, 3] = 200
    other = image.copy()
    other[image[..., 3] == 0, :3] = 77
    one, two = make(bundles["trims"])(image), make(bundles["trims"])(other)
    shown = one[..., 3] > 0
    np.testing.assert_array_equal(one[shown], two[shown])


def test_alpha_of_grey_and_of_floats(bundles):
    image = disc(0)[..., 2:]  # grey and alpha
    large = make(bundles["trims"])(image)
    assert large.shape == (96, 96, 2)
    floats = make(bundles["trims"])(image.astype(np.float64) / 255)
    assert floats.dtype == np.float64
    assert abs(floats[..., 1] * 255 - large[..., 1]).max() <= 0.51


# Kinds of pictures


def test_pillow_in_pillow_out(bundles, natural):
    upscale = make(bundles["trims"])
    colour = Image.fromarray(natural(20, 30))
    colour.info.update(icc_profile=b"profile", dpi=(72, 72), transparency=None)
    del colour.info["transparency"]
    large = upscale(colour)
    assert (large.mode, large.size) == ("RGB", (60, 40))
    assert large.info == {"icc_profile": b"profile", "dpi": (72, 72)}
    np.testing.assert_array_equal(np.asarray(large), upscale(natural(20, 30)))
    for mode, out in [
        ("L", "L"),
        ("LA", "LA"),
        ("RGBA", "RGBA"),
        ("1", "L"),
        ("P", "RGB"),
        ("CMYK", "RGB"),
        ("I;16", "I;16"),
    ]:
        image = colour.convert("L").convert(mode) if mode == "I;16" else colour.convert(mode)
        image.info["icc_profile"] = b"profile"
        large = upscale(image)
        assert (large.mode, large.size) == (out, (60, 40))
        assert ("icc_profile" in large.info) == (mode != "CMYK")
    palette = colour.convert("P")
    palette.info["transparency"] = 3
    assert upscale(palette).mode == "RGBA"
    with pytest.raises(ValueError, match=r"PIL mode F does not say what white is; give an array"):
        upscale(colour.convert("F"))


def test_tensor_in_tensor_out(bundles, natural):
    torch = pytest.importorskip("torch")
    upscale = make(bundles["trims"])
    image = natural(20, 30)
    expected = upscale(image)
    one = torch.from_numpy(image).permute(2, 0, 1)
    large = upscale(one)
    assert large.is_contiguous()
    np.testing.assert_array_equal(large.permute(1, 2, 0).numpy(), expected)
    batch = torch.stack([one, one.flip(2)]).float() / 255
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        large = upscale(batch.to(dtype).requires_grad_())
        assert (large.dtype, tuple(large.shape)) == (dtype, (2, 3, 40, 60))
    large = upscale(batch)
    assert abs(large[0].permute(1, 2, 0).numpy() * 255 - expected).max() <= 1
    assert upscale(one[:1]).shape == (1, 40, 60)
    with pytest.raises(ValueError, match=r"a tensor must be \(C, H, W\) or \(B, C, H, W\).*got \(20, 30\)"):
        upscale(one[0])


def test_arrays_may_have_any_strides(bundles, natural):
    image = natural(40, 60)
    view = image[::2, ::-3]
    np.testing.assert_array_equal(make(bundles["trims"])(view), make(bundles["trims"])(view.copy()))
    assert not np.shares_memory(make(bundles["trims"])(image), image)


def test_what_is_no_picture(bundles):
    upscale = make(bundles["trims"])
    with pytest.raises(TypeError, match=r"image must be a path, a PIL image, .* got builtins\.list"):
        upscale([1])
    for shape in [(3,), (0, 3, 3), (4, 4, 5), (1, 1, 1, 3)]:
        with pytest.raises(ValueError, match=r"an array must be .* with C from 1 to 4 and not empty"):
            upscale(np.zeros(shape, np.uint8))
    with pytest.raises(TypeError, match="pixels must be uint8, uint16 or floating point, got int64"):
        upscale(np.zeros((4, 4), int))
    with pytest.raises(ValueError, match=r"must be in \[0, 1\], got 0 to 255; divide by 255"):
        upscale(np.linspace(0, 255, 64).reshape(8, 8))
    with pytest.raises(ValueError, match=r"must be in \[0, 1\], got nan"):
        upscale(np.full((4, 4), np.nan))


def test_wrong_options():
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        Upscaler(threads=0)
    with pytest.raises(ValueError, match='tile must be "auto" or a number of pixels of at least 1, got 0'):
        Upscaler(tile=0)
    with pytest.raises(
        ValueError, match="engine must be auto or one of native, onnxruntime, openvino, torch, ncnn, got 'gpu'"
    ):
        Upscaler(engine="gpu")


# What engines may do wrong


class Spoiled:
    """An engine whose answer is changed before it is given back."""

    name, threads = "spoiled", 1

    def __init__(self, engine, change):
        self.engine, self.change, self.shapes = engine, change, []

    def run(self, x):
        self.shapes.append(x.shape)
        return self.change(self.engine.run(x).copy(), x)


@pytest.fixture
def spoil(bundles):
    def with_change(change, kind="trims", **options):
        upscale = make(bundles[kind] if isinstance(kind, str) else kind, **options)
        opened = upscale._network._open
        engines = []

        def spoiled(file):
            engines.append(Spoiled(opened(file), change))
            return engines[-1]

        upscale._network._open = spoiled
        return upscale, engines

    return with_change


def test_values_that_are_no_numbers_are_noticed(spoil, natural):
    def one_nan(y, x):
        y[0, 1, 3, 4] = np.nan
        return y

    upscale, _ = spoil(one_nan, "float")
    with pytest.raises(EngineError, match="spoiled: tiny made values that are no numbers"):
        upscale(natural(20, 20))


@pytest.mark.parametrize("kind", ["trims", "float"])
def test_black_tiles_are_noticed(kind, spoil, natural):
    upscale, _ = spoil(lambda y, x: y * 0, kind)
    with pytest.raises(EngineError, match="spoiled: tiny made black pixels where the picture is bright"):
        upscale(np.maximum(natural(20, 20), 120))
    assert not upscale(np.zeros((20, 20, 3), np.uint8)).any()  # black is what a black picture should give


@pytest.mark.parametrize("kind", ["trims", "same", "float"])
def test_a_black_patch_is_noticed_and_fine_dark_detail_is_not(kind, spoil):
    image = np.full((64, 64, 3), 200, np.uint8)

    def patch(y, x):
        y[:] = 150 if y.dtype == np.uint8 else 0.6
        where = (slice(None), slice(20, 40)) if y.dtype == np.uint8 else (slice(None), slice(None), slice(40, 80))
        y[where] = 0
        return y

    with pytest.raises(EngineError, match="made black pixels where the picture is bright"):
        spoil(patch, kind)[0](image)
    # Letters: dark blocks where the picture is grey between black and white.
    image[::2] = 0
    spoil(patch, kind)[0](image)


def test_output_of_another_size_is_noticed(spoil, natural):
    upscale, _ = spoil(lambda y, x: y[:, 1:])
    with pytest.raises(
        EngineError, match=r"made an output of shape .* where its card promises .*does not match its card"
    ):
        upscale(natural(20, 20))


def test_out_of_memory_halves_the_tile(spoil, natural):
    def starve(y, x):
        if x.shape[1] > 30:
            raise EngineMemoryError("no")
        return y

    upscale, engines = spoil(starve, tile=64)
    image = natural(90, 70)
    large = upscale(image)
    assert max(shape[1] for shape in engines[0].shapes[-3:]) <= 30
    plain, _ = spoil(lambda y, x: y)
    assert worst(large, plain(image)) <= 1
    starved, _ = spoil(lambda y, x: (_ for _ in ()).throw(EngineMemoryError("none at all")))
    with pytest.raises(MemoryError, match="none at all"):
        starved(image)


def test_a_note_belongs_to_one_picture(spoil, natural, tmp_path):
    def starve(y, x):
        if x.shape[1] > 30:
            raise EngineMemoryError("no")
        return y

    upscale, _ = spoil(starve, tile=64)
    for name, height in (("large", 90), ("small", 20)):
        Image.fromarray(natural(height, 20)).save(tmp_path / f"{name}.png")
    noted = upscale.upscale_file(tmp_path / "large.png", tmp_path / "a.png").notes
    assert noted == ("out of memory: went on with tiles of 22",)
    assert upscale.upscale_file(tmp_path / "small.png", tmp_path / "b.png").notes == ()
    assert upscale.notes == ()


def test_what_fails_inside_names_bundle_engine_and_tile(spoil, natural, bundles):
    def fail(y, x):
        raise ZeroDivisionError("inside")

    upscale, _ = spoil(fail, tile=16)
    with pytest.raises(ZeroDivisionError, match="inside") as caught:
        upscale(natural(30, 40))
    assert caught.value.__notes__ == ["while tiny ran in onnxruntime with tiles of 14×15 on a picture of 40×30"]
    assert caught.traceback[-1].name == "fail"


def test_only_pictures_are_upscaled(bundles):
    for purpose in ("classification", "dense"):
        bundle = replace(bundles["x1"], card=replace(bundles["x1"].card, purpose=purpose))
        with pytest.raises(
            BundleError, match=f"tiny: its purpose is {purpose}, an Upscaler runs super-resolution and "
        ):
            make(bundle)


def test_restoration_is_a_purpose_of_its_own(bundles, natural, monkeypatch):
    card = replace(bundles["x1"].card, purpose="restoration", quality="balanced")
    monkeypatch.setattr("foveal.runtime.bundle.available", lambda: [replace(bundles["x1"], card=card)])
    image = natural(20, 30)
    restore = Upscaler(1, purpose="restoration", engine="onnxruntime", threads=1)
    assert restore.card == card
    np.testing.assert_array_equal(restore(image), make(bundles["x1"])(image))
    assert restore.plan(image).scale == 1
    with pytest.raises(
        BundleError, match="no super-resolution bundle enlarges by 1; none is installed for that purpose"
    ):
        Upscaler(1)


@pytest.mark.parametrize("kind", ["trims", "same_blocks"])
def test_small_pictures_are_mirrored_up_to_the_minimum(kind, spoil, bundles, natural):
    card = replace(bundles[kind].card, minimum=37)
    least = -(-37 // card.multiple) * card.multiple
    upscale, engines = spoil(lambda y, x: y, replace(bundles[kind], card=card), tile=16)
    for height, width in [(1, 1), (5, 70), (40, 40)]:
        image = natural(height, width)
        for picture in (image, image.astype(np.uint16) * 257):
            np.testing.assert_array_equal(upscale(picture), make(bundles[kind], tile=16)(picture))
    sides = {min(s[1:3] if s[-1] == 3 else s[2:]) for engine in engines for s in engine.shapes}
    assert sides == {least}


# Progress and plans


def test_progress_covers_the_picture_once(bundles, natural):
    calls = []
    make(bundles["trims"], tile=8)(natural(30, 250), progress=lambda *call: calls.append(call))
    covered = np.zeros((60, 500), int)
    for _, total, (left, top, right, bottom) in calls:
        assert total == pytest.approx(0.03)
        covered[top:bottom, left:right] += 1
    assert (covered == 1).all()
    assert [call[0] for call in calls] == sorted(call[0] for call in calls)
    assert calls[-1][0] == pytest.approx(0.03)


def test_plan_of_every_kind(bundles, natural):
    upscale = make(bundles["trims"], tile=16)
    image = natural(20, 40)
    plans = [upscale.plan(image), upscale.plan((40, 20)), upscale.plan(Image.fromarray(image))]
    if "torch" in sys.modules:
        plans.append(upscale.plan(sys.modules["torch"].from_numpy(image).permute(2, 0, 1)))
    for plan in plans:
        assert (plan.width, plan.height, plan.tiles, plan.tile) == (40, 20, 6, (14, 10))
        assert (plan.engine, plan.threads, plan.bundle) == ("onnxruntime", 1, "tiny")
        assert plan.seconds > 0


def test_automatic_tile_is_the_measured_one(bundles, natural):
    upscale = make(bundles["trims"])
    assert upscale._choice.tile("uint8") == 256
    assert upscale.plan((200, 20)).tile[0] <= 48  # conftest measures tiles of 32, half as much again is allowed
    assert upscale._choice.tile("uint8") == 32


@pytest.mark.parametrize("kind", ["trims", "same", "blocks", "x3"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_best_is_the_mean_over_mirror_images(kind, dtype, bundles, natural):
    image = (natural(20, 24).astype(float) / 255 * np.iinfo(dtype).max).astype(dtype)
    white = np.iinfo(dtype).max
    once, best = (
        Upscaler(model=bundles[kind], quality=quality, engine="onnxruntime", threads=1) for quality in ("fast", "best")
    )
    floats = image / white
    ways = [(slice(None, None, y), slice(None, None, x)) for y in (1, -1) for x in (1, -1)]
    # Not clipped before the mean is taken, so only what stays inside can be compared.
    each = np.stack([once(np.ascontiguousarray(floats[way]))[way] for way in ways])
    inside = ((each > 0) & (each < 1)).all(axis=0)
    want = np.round(each.mean(axis=0) * white)
    assert inside.sum() > 100
    assert abs(best(image).astype(float) - want)[inside].max() <= (1 if dtype == np.uint8 else 2)
    assert best.name == "tiny mirrored"
    assert best.notes == ()
    assert best.plan(image).bundle == "tiny mirrored"
    found = remembered(bundles[kind], "onnxruntime", 1, "float")
    plan = best.plan(image)
    assert plan.seconds - plan.start == pytest.approx(
        4 * found.seconds * make_grid(20, 24, found.tile, best.card, automatic=True).pixels / 1e6
    )


def test_an_equivariant_network_is_asked_once(bundles, natural):
    image = natural(20, 24)
    bundle = replace(bundles["trims"], card=replace(bundles["trims"].card, equivariant=True))
    once, best = (
        Upscaler(model=bundle, quality=quality, engine="onnxruntime", threads=1) for quality in ("fast", "best")
    )
    assert best.name == "tiny"
    np.testing.assert_array_equal(best(image), once(image))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_shipped_best_enlarges_every_turn_of_a_picture_alike(scale, natural):
    image = natural(24, 30)
    best = Upscaler(scale=scale, quality="best", engine="onnxruntime", threads=1)
    assert best.card.equivariant
    assert best.notes[0] == f"no bundle of quality best ×{scale} yet; using balanced_x{scale}"
    large = best(image)
    assert worst(best(np.ascontiguousarray(image[:, ::-1]))[:, ::-1], large) <= 1
    assert worst(best(np.ascontiguousarray(image.transpose(1, 0, 2))).transpose(1, 0, 2), large) <= 1


def test_mirror_images_make_a_picture_better():
    """By a shipped network, on one of the pictures that come with foveal."""
    original = np.asarray(Image.open("samples/original/bridge.png").convert("RGB"))
    original = original[: original.shape[0] // 4 * 4, : original.shape[1] // 4 * 4]
    small = imresize(original, 0.25)
    errors = [
        np.square(Upscaler(model="fast_x4", quality=quality, threads=1)(small).astype(float) - original).mean()
        for quality in ("fast", "best")
    ]
    assert errors[1] < errors[0]


def test_large_copy_of_a_picture_keeps_what_belongs_to_it(bundles, natural):
    images = pytest.importorskip("foveal.images.picture")
    metadata = pytest.importorskip("foveal.images.metadata").Metadata(icc=b"profile")
    picture = images.Picture(natural(10, 12), alpha=False, metadata=metadata)
    large = make(bundles["trims"])(picture)
    assert large.metadata is metadata
    assert large == replace(picture, pixels=large.pixels) or large.pixels.shape == (20, 24, 3)


# Files


def test_path_in_picture_out(bundles, natural, tmp_path):
    from foveal import images

    image = natural(20, 30)
    Image.fromarray(image).save(tmp_path / "a.png", dpi=(300, 300))
    upscale = make(bundles["trims"])
    large = upscale(tmp_path / "a.png")
    assert isinstance(large, images.Picture)
    assert large.metadata.dpi == pytest.approx((300, 300), abs=0.1)
    np.testing.assert_array_equal(large.pixels, upscale(image))
    assert upscale.plan(str(tmp_path / "a.png")).width == 30
    frames = [Image.new("RGB", (8, 6), (40 * i, 0, 0)) for i in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=50)
    with pytest.raises(ValueError, match=r"a\.gif: holds 3 frames; upscale_file\(source, target\) does all of them"):
        upscale(str(tmp_path / "a.gif"))


def test_file_is_what_the_array_would_be(bundles, natural, tmp_path):
    image = natural(70, 50)
    Image.fromarray(image).save(tmp_path / "a.png")
    upscale = make(bundles["trims"], tile=16)
    calls = []
    result = upscale.upscale_file(tmp_path / "a.png", tmp_path / "b.png", progress=lambda *call: calls.append(call))
    with Image.open(tmp_path / "b.png") as written:
        np.testing.assert_array_equal(np.asarray(written), upscale(image))
    assert (result.width, result.height, result.frames, result.engine) == (100, 140, 1, "onnxruntime")
    assert calls[-1][0] == pytest.approx(result.megapixels)
    with pytest.raises(FileExistsError, match=r"b\.png: exists already; say --overwrite"):
        upscale.upscale_file(tmp_path / "a.png", tmp_path / "b.png")
    upscale.upscale_file(tmp_path / "a.png", tmp_path / "b.png", overwrite=True)


def test_failure_while_writing_is_told_and_leaves_nothing(bundles, natural, tmp_path, monkeypatch):
    from foveal import images

    Image.fromarray(natural(70, 50)).save(tmp_path / "a.png")

    def full(self, block):
        raise OSError("no space left")

    monkeypatch.setattr(images.Writer, "rows", full)
    with pytest.raises(OSError, match="no space left"):
        make(bundles["trims"], tile=16).upscale_file(tmp_path / "a.png", tmp_path / "b.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_failure_of_the_engine_leaves_nothing(spoil, natural, tmp_path):
    Image.fromarray(natural(70, 50)).save(tmp_path / "a.png")
    calls = []

    def later(y, x):
        calls.append(1)
        if len(calls) > 2:
            raise EngineError("gone")
        return y

    upscale, _ = spoil(later, tile=16)
    with pytest.raises(EngineError, match="gone"):
        upscale.upscale_file(tmp_path / "a.png", tmp_path / "b.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
