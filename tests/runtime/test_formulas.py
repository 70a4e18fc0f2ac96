"""Repairs by a formula: what they find, what they say, what they leave alone, and what they refuse."""

import numpy as np
import pytest
import torch
from PIL import Image

from foveal import images
from foveal.images.resize import imresize
from foveal.runtime.asked import FixError
from foveal.runtime.formulas import filled
from foveal.runtime.restorer import Restorer
from foveal.runtime.resume import settings_of
from foveal.train.restore.bank.blur import Blur, MotionBlur
from foveal.train.restore.bank.shutter import RollingShutter


@pytest.fixture(scope="module")
def photo(pytestconfig):
    folder = pytestconfig.rootpath / "samples" / "original"
    with Image.open(folder / "dandelion.png") as opened:
        return np.asarray(opened.convert("RGB"))[100:228, 200:360]


def damaged(pixels, damage):
    x = torch.tensor(pixels).permute(2, 0, 1)[None].float() / 255
    return damage(x, torch.Generator())[0].mul(255).round().byte().permute(1, 2, 0).contiguous().numpy()


def psnr(a, b):
    return 10 * np.log10(255**2 / np.square(a.astype(float) - b).mean())


def holed(photo):
    mask = np.zeros(photo.shape[:2], np.uint8)
    mask[40:43, 20:120] = mask[70:100, 60:84] = 255
    return np.where(mask[..., None] > 0, np.uint8(255), photo), mask


def test_holes_are_filled_and_nothing_else_changes(photo, tmp_path):
    broken, mask = holed(photo)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    restore = Restorer("holes", mask=tmp_path / "mask.png")
    made = restore(broken)
    assert np.array_equal(made[mask == 0], photo[mask == 0])
    assert psnr(made[mask > 0], photo[mask > 0]) > psnr(broken[mask > 0], photo[mask > 0]) + 8
    (finding,) = restore.look(broken)
    assert finding.says == "holes by the mask, 5 % of the picture: filled from around them"
    assert np.array_equal(Restorer("holes", mask=mask > 0)(broken), made)
    deep = Restorer("holes", mask=mask)(broken.astype(np.uint16) * 257)
    assert np.array_equal(deep[mask == 0], photo[mask == 0].astype(np.uint16) * 257)
    assert abs(deep / 257 - made).max() < 40  # texture may come from elsewhere
    real = Restorer("holes", mask=mask)(broken.astype(np.float32) / 255)
    assert 0 <= real.min() <= real.max() <= 1


def test_transparent_pixels_are_holes_without_a_mask(photo):
    broken, mask = holed(photo)
    alpha = np.where(mask > 0, 0, 200).astype(np.uint8)
    made = Restorer("holes")(np.dstack([broken, alpha]))
    assert (made[..., 3] == np.where(mask > 0, 255, 200)).all()
    assert np.array_equal(made[mask == 0, :3], photo[mask == 0])
    whole = np.dstack([photo, np.full(photo.shape[:2], 9, np.uint8)])
    assert Restorer("holes").look(whole) == ()


def test_a_mask_leaves_transparency_alone(photo):
    broken, mask = holed(photo)
    alpha = np.full(mask.shape, 255, np.uint8)
    alpha[:, :70] = 0
    made = Restorer("holes", mask=mask)(np.dstack([broken, alpha]))
    assert np.array_equal(made[..., 3], alpha)
    assert np.array_equal(made[:, :70, :3], broken[:, :70])
    assert not np.array_equal(made[:, 70:, :3], broken[:, 70:])
    grey = filled(broken[..., :1], mask > 0, alpha=False, opaque=False)
    assert grey.shape == (*mask.shape, 1)


def test_a_file_is_filled_before_it_is_looked_at(photo, tmp_path):
    dark = (imresize(photo, 1 / 2) // 8).astype(np.uint8)
    mask = np.zeros(dark.shape[:2], np.uint8)
    mask[10:60] = 255
    Image.fromarray(np.where(mask[..., None] > 0, np.uint8(255), dark)).save(tmp_path / "a.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks" / "a.bmp")
    restore = Restorer("holes,light", mask=tmp_path / "masks", engine="onnxruntime", threads=1)
    result = restore.restore_file(tmp_path / "a.png", tmp_path / "b.png")
    assert result.bundle == "holes+repair_light"
    assert result.engine == "numpy and onnxruntime"
    assert result.clean["found"][0]["by"] == "mask"
    assert result.clean["found"][1]["median"] < 0.16
    assert restore.plan(tmp_path / "a.png", look=True).bundle == "holes+repair_light"
    Image.fromarray(dark).save(tmp_path / "c.png")
    with pytest.raises(FixError, match=r"c.png: no mask in .*masks is named c; add c.png there"):
        restore.restore_file(tmp_path / "c.png", tmp_path / "d.png")
    with pytest.raises(FixError, match="is a folder, and a picture in memory has no name; give its mask itself"):
        restore(dark)


def test_masks_that_cannot_be_are_refused(photo, tmp_path):
    small = photo[:32, :40]
    for mask, text in (
        (None, "which pixels are holes is not said: give --mask FILE"),
        (np.zeros((20, 20), bool), "the mask must be 40×32 as the picture, got 20×20; resize it"),
        (np.ones((32, 40), bool), "the holes leave nothing of the picture to fill them from; mark less of it"),
        (np.array(["a"]), r"the mask must be \(H, W\), of booleans, uint8, .* convert it"),
    ):
        with pytest.raises(FixError, match=text):
            Restorer("holes", mask=mask)(small)
    assert Restorer("holes", mask=np.zeros((32, 40), bool)).look(small) == ()
    with pytest.raises(FixError, match="a mask says where holes are; add holes to fix"):
        Restorer("noise", mask=tmp_path)
    with pytest.raises(FixError, match="nowhere: no such file or folder; name a picture that is white"):
        Restorer("holes", mask=tmp_path / "nowhere")


def test_a_result_depends_on_its_mask(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    wishes = [("holes", None), ("holes", tmp_path / "a.png"), ("holes", np.zeros((4, 4), bool)), ("blur", None)]
    assert len({settings_of(Restorer(fix, mask=mask)) for fix, mask in wishes}) == 4


def test_a_blur_is_read_or_given_and_undone(photo):
    seen = damaged(photo, Blur(1.6))
    read, given = Restorer("blur"), Restorer("blur=1.6")
    (finding,) = read.look(seen)
    assert finding.facts["sigma"] == pytest.approx(1.6, abs=0.45)
    assert finding.says.endswith("pixels: sharpened")
    assert psnr(read(seen), photo) > psnr(seen, photo) + 0.5
    assert psnr(given(seen), photo) > psnr(seen, photo) + 1
    assert read.look(imresize(photo, 1 / 2)) == ()
    moved = damaged(photo, MotionBlur(9, 30))
    assert psnr(Restorer("blur=motion:9:30")(moved), photo) > psnr(moved, photo) + 1
    whole = np.dstack([seen, np.where(np.arange(160) < 80, 0, 77).astype(np.uint8) * np.ones((128, 1), np.uint8)])
    made = given(whole)
    assert np.array_equal(made[..., 3], whole[..., 3])
    assert np.array_equal(made[:, :80], whole[:, :80])


def test_noise_keeps_a_blur_from_being_sharpened_much(photo):
    seen = damaged(photo, Blur(1.6)).astype(float)
    noisy = np.clip(np.rint(seen + np.random.default_rng(0).normal(0, 6, seen.shape)), 0, 255).astype(np.uint8)
    alone, both = Restorer("blur=1.6"), Restorer("blur=1.6,noise", engine="onnxruntime", threads=1)
    assert alone.look(noisy)[0].facts["noise"] > both.look(noisy)[1].facts["noise"] > 1
    assert psnr(alone(noisy), photo) > psnr(noisy, photo)
    assert psnr(both(noisy), photo) > psnr(noisy, photo) + 1
    noisier = np.clip(seen + np.random.default_rng(0).normal(0, 25, seen.shape), 0, 255).astype(np.uint8)
    assert Restorer("blur").look(noisier) == ()


def test_stops_are_given(photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "a.png")
    result = Restorer("exposure=+1").restore_file(tmp_path / "a.png", tmp_path / "b.png")
    assert "exposed by +1 stops" in result.notes
    assert (result.bundle, result.engine) == ("exposure", "numpy")
    made = images.read(tmp_path / "b.png").frame(0).pixels
    assert made.mean() > photo.mean() + 10
    assert Restorer("exposure=0").look(photo) == ()


def test_a_rolling_shutter_in_a_folder_of_frames(photo, tmp_path):
    for k in range(3):
        moved = np.roll(photo, 6 * k, axis=1)
        Image.fromarray(damaged(moved, RollingShutter(across=6, down=0, read=1))).save(tmp_path / f"f{k + 9}.png")
    restore = Restorer("rolling-shutter=1")
    result = restore.restore_file(tmp_path / "f10.png", tmp_path / "out.webp")
    assert "rolling shutter, 6.0 pixels a frame: rows put back for a readout of 1" in result.notes
    wanted = np.roll(photo, 6, axis=1)[10:-10, 20:-20]
    before, after = (images.read(tmp_path / name).frame(0).pixels[10:-10, 20:-20] for name in ("f10.png", "out.webp"))
    assert psnr(after, wanted) > psnr(before, wanted) + 3
    assert restore.look(tmp_path / "f9.png")[0].facts["across"] == pytest.approx(6, abs=0.3)
    (tmp_path / "alone").mkdir()
    Image.fromarray(photo).save(tmp_path / "alone" / "a.png")
    with pytest.raises(FixError, match=r"wanted a film, or the frames .* got .*a.png, alone of its kind in its folder"):
        restore.look(tmp_path / "alone" / "a.png")
    with pytest.raises(FixError, match="got a picture in memory; put the frame before or after it beside it"):
        restore(photo)
    Image.fromarray(photo[::-1].copy()).save(tmp_path / "alone" / "b.png")
    Image.fromarray(photo[:50]).save(tmp_path / "alone" / "c.png")
    assert restore.look(tmp_path / "alone" / "b.png") == ()
