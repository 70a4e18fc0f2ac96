"""Repairs: what is found, what is done about it, in which order, and that nothing else changes."""

import io

import numpy as np
import pytest
from PIL import Image

from foveal import images
from foveal.images.resize import imresize
from foveal.runtime.asked import FixError
from foveal.runtime.bundle import Bundle
from foveal.runtime.card import BundleError
from foveal.runtime.control import Control, averaged
from foveal.runtime.fuse import FuseError
from foveal.runtime.repairs import brightness
from foveal.runtime.restorer import Restorer
from foveal.runtime.resume import settings_of
from foveal.train.restore.degradations import add_noise


@pytest.fixture(scope="module")
def photo(pytestconfig):
    folder = pytestconfig.rootpath / "samples" / "original"
    with Image.open(sorted(folder.iterdir())[0]) as opened:
        return np.asarray(opened.convert("RGB"))[200:360, 250:450]


@pytest.fixture(scope="module")
def restore():
    return Restorer(engine="onnxruntime", threads=1)


def as_jpeg(pixels, quality):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file


def psnr(a, b):
    return 10 * np.log10(255**2 / np.square(a.astype(float) - b).mean())


def test_a_clean_picture_stays_as_it_is(restore, photo):
    small = imresize(photo, 1 / 2)
    assert restore.look(small) == ()
    assert np.array_equal(restore(small), small)


def test_a_jpeg_is_found_and_repaired(restore, photo):
    damaged = Image.open(as_jpeg(photo, 25))
    (finding,) = restore.look(damaged)
    assert finding.repair == "clean"
    assert finding.facts["jpeg_quality"] == 25
    assert "JPEG of quality 25" in finding.says
    made = np.asarray(restore(damaged))
    assert psnr(made, photo) > psnr(np.asarray(damaged), photo) + 0.3


def test_noise_is_found_and_repaired(restore, photo):
    damaged = add_noise(photo, 20, np.random.default_rng(0))
    (finding,) = restore.look(damaged)
    assert finding.facts["noise"] == pytest.approx(20, rel=0.2)
    assert psnr(restore(damaged), photo) > psnr(damaged, photo) + 4


def test_a_dark_picture_is_found_and_made_brighter(restore, photo):
    dark = (imresize(photo, 1 / 2).astype(float) ** 2.2 / 255**1.2 * 0.15).round().astype(np.uint8)
    found = restore.look(dark)
    assert found[-1].repair == "light"
    assert found[-1].facts["median"] < 0.16
    assert restore(dark).mean() > 2 * dark.mean()


def test_what_is_asked_for_is_done_and_nothing_else(photo):
    damaged = add_noise(photo, 20, np.random.default_rng(0))
    only_jpeg = Restorer("jpeg", engine="onnxruntime", threads=1)
    assert only_jpeg.look(damaged) == ()
    both = Restorer("snow,light", engine="onnxruntime", threads=1)
    assert [finding.repair for finding in both.look(photo)] == ["weather", "light"]
    assert both.name == "repair_weather+repair_light"


def test_repairs_follow_one_another(photo):
    both = Restorer("rain,light", engine="onnxruntime", threads=1)
    apart = [Restorer(fix, engine="onnxruntime", threads=1) for fix in ("rain", "light")]
    numbers = both.look(photo)[1].facts
    first = apart[0](photo)
    assert abs(both(photo).astype(int) - apart[1](first)).max() <= 8  # light looks at the picture before the rain goes
    assert numbers["asked"]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_kind_of_picture_comes_back_as_it_was_given(restore, photo, channels):
    damaged = add_noise(photo[:70, :90], 25, np.random.default_rng(1))
    whole = np.concatenate([damaged, np.full((70, 90, 1), 255, np.uint8)], axis=2)
    given = {1: damaged[..., :1], 2: whole[..., 2:], 3: damaged, 4: whole}[channels]
    for dtype, white in ((np.uint8, 1), (np.uint16, 257)):
        made = restore(given.astype(dtype) * dtype(white))
        assert made.shape == given.shape
        assert made.dtype == dtype
        if channels in (2, 4):
            assert (made[..., -1] == np.iinfo(dtype).max).all()


def test_a_file_keeps_all_it_holds_and_says_what_was_done(restore, photo, tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "a walk"
    source = tmp_path / "a.jpg"
    Image.fromarray(photo).save(source, quality=30, exif=exif, dpi=(300, 300))
    result = restore.restore_file(source, tmp_path / "b.png")
    assert (result.width, result.height, result.bundle) == (200, 160, "repair_clean")
    assert result.clean["found"][0]["jpeg_quality"] == 30
    assert any("JPEG of quality 30" in note for note in result.notes)
    made = images.read(tmp_path / "b.png").frame(0)
    assert np.array_equal(made.pixels, restore(source).pixels)
    with Image.open(tmp_path / "b.png") as opened:
        assert opened.getexif()[0x010E] == "a walk"
        assert opened.info["dpi"][0] == pytest.approx(300, abs=1)
    with pytest.raises(FileExistsError, match="--overwrite"):
        restore.restore_file(source, tmp_path / "b.png")


def test_nothing_found_writes_the_same_pixels(restore, photo, tmp_path):
    source = tmp_path / "a.png"
    Image.fromarray(imresize(photo, 1 / 2)).save(source)
    result = restore.restore_file(source, tmp_path / "b.png")
    assert result.bundle == "nothing"
    assert "nothing found to repair" in result.notes
    assert np.array_equal(images.read(tmp_path / "b.png").frame(0).pixels, imresize(photo, 1 / 2))


def test_a_plan_says_what_will_be_done(restore, photo, tmp_path):
    source = tmp_path / "a.jpg"
    Image.fromarray(photo).save(source, quality=30)
    ahead = restore.plan(source)
    assert ahead.bundle == "repair_clean+repair_light"
    looked = restore.plan(source, look=True)
    assert looked.bundle == "repair_clean"
    assert looked.clean["found"][0]["jpeg_quality"] == 30
    assert 0 < looked.seconds < ahead.seconds + 1
    Image.fromarray(imresize(photo, 1 / 2)).save(tmp_path / "c.png")
    assert restore.plan(tmp_path / "c.png", look=True).bundle == "nothing"


def test_progress_counts_every_repair_and_stops_in_the_first(photo, tmp_path):
    source = tmp_path / "a.jpg"
    Image.fromarray(photo // 8).save(source, quality=20)
    restore = Restorer(engine="onnxruntime", threads=1, tile=64)
    told = []
    result = restore.restore_file(source, tmp_path / "b.png", progress=lambda done, whole, _: told.append(done / whole))
    assert result.bundle == "repair_clean+repair_light"
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)
    assert sum(share < 0.49 for share in told) > 1  # in the first repair too
    again = []
    restore(source, progress=lambda done, whole, _: again.append(done / whole))
    assert again == pytest.approx(told)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore.restore_file(source, tmp_path / "c.png", progress=stop)
    assert not (tmp_path / "c.png").exists()


def test_tiles_meet_without_a_seam(photo):
    damaged = add_noise(photo, 20, np.random.default_rng(0))
    for fix in ("noise", "rain", "light"):
        whole, parts = (Restorer(fix, engine="onnxruntime", threads=1, tile=tile)(damaged) for tile in (512, 48))
        assert abs(whole.astype(int) - parts).max() <= 1


def test_the_median_counts_what_can_be_seen():
    grey = np.full((4, 4, 2), 200, np.uint8)
    grey[:2, :, 0] = 10
    grey[2:, :, 1] = 0
    assert brightness(grey, True) == pytest.approx(10 / 255)
    assert brightness(grey * 0, True) == 0.5


@pytest.mark.parametrize("shape", [(96, 96), (97, 40), (301, 222), (3, 5)])
def test_the_average_is_that_of_torch(shape):
    torch = pytest.importorskip("torch")
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    wanted = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(pixels).permute(2, 0, 1)[None].double() / 255, 96)
    np.testing.assert_allclose(averaged(pixels, 96, 96), wanted[0].permute(1, 2, 0), atol=1e-6)


def test_what_cannot_be_is_refused():
    with pytest.raises(FixError, match="fix must be auto, or of jpeg, noise, rain, snow, light, holes"):
        Restorer("mud")
    with pytest.raises(ValueError, match="clean must be auto, off or a strength"):
        Restorer(strength="much")
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        Restorer(threads=0)
    with pytest.raises(BundleError, match="nothing in it looks at the whole picture"):
        Control(Bundle.load("repair_clean"), 1)


def test_exposures_are_merged_and_an_infrared_twin_is_fused(photo, tmp_path):
    small = imresize(photo, 1 / 2)
    for name, pixels in (("a", small // 3), ("b", small), ("c", np.minimum(small * 2.0, 255).astype(np.uint8))):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    Image.fromarray(255 - small[..., 0]).save(tmp_path / "infrared.png")
    options = {"fix": "jpeg", "engine": "onnxruntime", "threads": 1}
    merged = Restorer(**options, exposures=[tmp_path / "b.png", tmp_path / "c.png"])
    result = merged.restore_file(tmp_path / "a.png", tmp_path / "merged.png")
    assert "3 exposures merged" in result.notes
    made = images.read(tmp_path / "merged.png").frame(0).pixels
    assert small.mean() / 3 < made.mean() < 255
    fused = Restorer(**options, infrared=tmp_path / "infrared.png")
    result = fused.restore_file(tmp_path / "b.png", tmp_path / "fused.png")
    assert any("fused with" in note for note in result.notes)
    assert not np.array_equal(images.read(tmp_path / "fused.png").frame(0).pixels, small)
    Image.fromarray(small[:30]).save(tmp_path / "half.png")
    with pytest.raises(FuseError, match=r"b\.png with .*half\.png: both pictures must have one size"):
        Restorer(**options, infrared=tmp_path / "half.png").restore_file(tmp_path / "b.png", tmp_path / "no.png")
    assert not (tmp_path / "no.png").exists()


def test_an_animation_is_not_cleaned_of_its_dither(restore, photo, tmp_path):
    frames = [Image.fromarray(add_noise(photo[:60, :60], 20, np.random.default_rng(k))) for k in range(2)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    result = restore.restore_file(tmp_path / "a.gif", tmp_path / "b.gif")
    assert result.frames == 2
    assert result.bundle == "nothing"


def test_a_result_depends_on_what_it_was_made_with():
    plain, other = Restorer("jpeg"), Restorer("jpeg", infrared="b.png")
    assert settings_of(plain) == settings_of(Restorer("jpeg"))
    assert len({settings_of(plain), settings_of(other), settings_of(Restorer("noise"))}) == 3
