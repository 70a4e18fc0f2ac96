import numpy as np
import pytest
from PIL import Image

from foveal.errors import FovealError
from foveal.images.resize import imresize
from foveal.train.restore.pairs import Pairs, PicturesError, noisy


def dihedral(image):
    for flip in (image, image.transpose(1, 0, 2)):
        for y in (1, -1):
            for x in (1, -1):
                yield flip[::y, ::x]


def test_patches_are_matching_parts_of_the_pictures(pictures):
    pairs = Pairs.from_folder(pictures, 2, patch=8, fraction=1.0)
    assert {int(k) for k in pairs.places[:, 0]} == {0, 1}, "the picture smaller than a patch is left out"
    low, high = pairs.batch(6, np.random.default_rng(1))
    assert low.shape == (6, 8, 8, 3)
    assert high.shape == (6, 16, 16, 3)
    whole = [np.asarray(Image.open(p)) for p in (pictures / "0.png", pictures / "deep" / "1.png")]
    reduced = [imresize(w, 0.5) for w in whole]
    for a, b in zip(low, high, strict=True):
        places = [
            (k, y, x, turned)
            for k, r in enumerate(reduced)
            for y in range(r.shape[0] - 7)
            for x in range(r.shape[1] - 7)
            for turned, patch in enumerate(dihedral(r[y : y + 8, x : x + 8]))
            if np.abs(patch.astype(int) - a).max() <= 1
        ]
        assert any(
            np.array_equal(list(dihedral(whole[k][2 * y : 2 * y + 16, 2 * x : 2 * x + 16]))[turned], b)
            for k, y, x, turned in places
        )


def test_batch_is_a_function_of_its_generator(pictures):
    pairs = Pairs.from_folder(pictures, 2, patch=8)
    first, again, other = (pairs.batch(4, np.random.default_rng(seed))[0] for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_second_call_reads_what_the_first_kept(pictures, monkeypatch):
    first = Pairs.from_folder(pictures, 3, patch=8)
    monkeypatch.setattr("foveal.train.restore.pairs._pair", None)
    again = Pairs.from_folder(pictures, 3, patch=8)
    assert np.array_equal(first.high, again.high)
    assert np.array_equal(first.places, again.places)


def test_folder_without_large_enough_pictures(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(
        PicturesError,
        match="no picture of at least 192 pixels a side among the 1 found; take larger ones, or a smaller",
    ):
        Pairs.from_folder(tmp_path, 4, patch=48)
    with pytest.raises(PicturesError, match="no pictures below it; `foveal data"):
        Pairs.from_folder(tmp_path / "none", 4, patch=48)
    assert issubclass(PicturesError, FovealError)


def test_at_scale_1_both_pictures_are_the_same_but_for_the_noise(tmp_path):
    picture = np.full((40, 40, 3), 128, np.uint8)
    picture[:, 20:] = np.random.default_rng(0).integers(0, 256, (40, 20, 3))
    Image.fromarray(picture).save(tmp_path / "a.png")
    pairs = Pairs.from_folder(tmp_path, 1, patch=8, fraction=0.5)
    low, high = pairs.batch(6, np.random.default_rng(1))
    assert low.shape == (6, 8, 8, 3)
    assert np.array_equal(low, high)
    assert pairs.places[:, 2].min() > 8, "places are taken where detail is"
    pairs = Pairs.from_folder(tmp_path, 1, patch=8, fraction=0.5, noise=20.0)
    given, clean = pairs.batch(6, np.random.default_rng(1))
    assert np.array_equal(clean, high), "the noise is drawn after the patches"
    assert np.array_equal(given, pairs.batch(6, np.random.default_rng(1))[0])
    assert given.std() > clean.std()


def test_noise_has_the_deviation_asked_for():
    flat = np.full((200, 200, 3), 128, np.uint8)
    made = noisy(flat, 10.0, np.random.default_rng(0))
    assert made.dtype == np.uint8
    assert made.std() == pytest.approx(10, rel=0.02)
    assert made.mean() == pytest.approx(128, abs=0.1)
    assert noisy(flat, 0.0, np.random.default_rng(0)) is flat
    black = noisy(0 * flat, 10.0, np.random.default_rng(0))
    assert black.min() == 0
    assert (black == 0).mean() == pytest.approx(0.52, abs=0.02), "clipped, not wrapped"


def test_folder_that_cannot_be_written_is_kept_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".foveal").touch()  # a file where the folder would be
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)).save(tmp_path / "data" / "a.png")
    monkeypatch.setenv("FOVEAL_CACHE", str(tmp_path / "cache"))
    assert Pairs.from_folder(tmp_path / "data", 2, patch=8).batch(1, np.random.default_rng(0))[0].shape == (1, 8, 8, 3)
    assert list((tmp_path / "cache").rglob("high.npy"))


def test_failure_leaves_nothing_behind(tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(OSError, match=r"b\.png"):
        Pairs.from_folder(tmp_path, 2, patch=8)
    assert list((tmp_path / ".foveal").iterdir()) == []
