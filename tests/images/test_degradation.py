import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.images import degradation
from foveal.images.degradation import examine, find_jpeg, jpeg_file_level, jpeg_level, jpeg_quality

SAMPLES = Path(__file__).parents[2] / "samples"
NAMES = ("bridge", "clock", "dandelion", "dogs")


def sample(name):
    with Image.open(SAMPLES / f"{name}.png") as picture:
        return np.asarray(picture.convert("RGB"))


def jpeg_file(picture, quality=75, **options):
    file = io.BytesIO()
    stated = {} if "qtables" in options else {"quality": quality}
    Image.fromarray(picture).save(file, "JPEG", **stated, **options)
    return file.getvalue()


def saved(picture, quality, **options):
    with Image.open(io.BytesIO(jpeg_file(picture, quality, **options))) as back:
        return np.asarray(back)


def noisy(picture, sigma, *, grey=False):
    noise = np.random.default_rng(0).normal(0, sigma, (*picture.shape[:2], 1 if grey else 3))
    return np.clip(np.rint(picture + noise), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 51, 75, 92, 100])
def test_level_and_quality_are_inverse(quality):
    assert jpeg_quality(jpeg_level(quality)) == pytest.approx(quality)


@pytest.mark.parametrize("quality", [5, 40, 50, 75, 95, 100])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"exif": b"Exif\0\0" + bytes(300)}])
def test_a_file_states_its_quality(quality, options):
    assert jpeg_file_level(jpeg_file(sample("dogs"), quality, **options)) == pytest.approx(jpeg_level(quality))


def test_pillow_writes_the_table_that_is_expected():
    with Image.open(io.BytesIO(jpeg_file(sample("dogs"), 60))) as picture:
        assert sorted(picture.quantization[0]) == sorted(degradation.jpeg_table(60).ravel())


def test_a_table_of_another_shape_has_the_level_of_its_low_frequencies():
    coarse, fine = (jpeg_file_level(jpeg_file(sample("dogs"), qtables=[[step] * 64] * 2)) for step in (20, 5))
    assert coarse == pytest.approx(4 * fine)
    assert jpeg_level(90) < fine < jpeg_level(85)


@pytest.mark.parametrize(
    "damage", [lambda d: d[:2], lambda d: d[:30], lambda d: b"\x89PNG" + d, lambda d: d[:2] + d[25:]]
)
def test_of_what_is_no_whole_jpeg_nothing_is_read(damage):
    assert jpeg_file_level(damage(jpeg_file(sample("dogs")))) is None


def test_sixteen_bit_tables_are_read():
    data = jpeg_file(sample("dogs"), 75)
    at = data.index(b"\xff\xdb")
    size = int.from_bytes(data[at + 2 : at + 4], "big")
    part = data[at + 4 : at + 2 + size]
    wide = bytes([0x10 | part[0]]) + b"".join(bytes([0, step]) for step in part[1:65])
    segment = b"\xff\xdb" + (len(wide) + 2).to_bytes(2, "big") + wide
    rest = data[at + 2 + size :] if size == 67 else b"\xff\xdb" + (size - 63).to_bytes(2, "big") + part[65:] + data[
        at + 2 + size :
    ]  # fmt: skip
    assert jpeg_file_level(data[:at] + segment + rest) == pytest.approx(0.5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("quality", [40, 75, 90])
def test_pixels_show_the_quality_on_the_grid_of_a_cut(name, quality):
    found = find_jpeg(saved(sample(name), quality)[3:, 5:])
    assert (found.quality, found.grid, found.seen) == (quality, (5, 3), "pixels")


def test_a_large_picture_is_judged_by_parts():
    picture = np.tile(sample("dogs"), (9, 9, 1))
    found = find_jpeg(saved(picture, 80)[1:, 2:])
    assert (found.quality, found.grid) == (80, (7, 6))


@pytest.mark.parametrize("kind", ["uint16", "float", "grey", "alpha"])
def test_every_kind_of_pixels_is_read(kind):
    picture = saved(sample("bridge"), 70)
    made = {
        "uint16": lambda: picture.astype(np.uint16) * 257,
        "float": lambda: picture.astype(np.float32) / 255,
        "grey": lambda: saved(picture[..., 1], 70),
        "alpha": lambda: np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)]),
    }[kind]()
    assert examine(made).quality == 70


@pytest.mark.parametrize("name", NAMES)
def test_a_clean_picture_is_left_alone(name):
    found = examine(sample(name))
    assert (found.jpeg, found.noise, found.seen, found.slight) == (0, 0, "", True)
    assert found.quality is None


@pytest.mark.parametrize(
    "picture", [np.zeros((40, 40, 3), np.uint8), np.full((200, 300), 255, np.uint8), np.ones((1, 7))]
)
def test_flat_and_tiny_pictures_are_clean(picture):
    assert examine(picture).slight


def test_a_file_of_a_high_quality_is_slight():
    picture = saved(sample("dogs"), 95)
    assert examine(picture, file_level=jpeg_level(95)).slight
    assert not examine(saved(sample("dogs"), 90), file_level=jpeg_level(90)).slight


@pytest.mark.parametrize("name", NAMES)
def test_a_jpeg_that_was_a_coarser_one_is_found_out(name):
    once, twice = (saved(sample(name), 90), saved(saved(sample(name), 50), 90))
    assert examine(once, file_level=jpeg_level(90)).quality == 90
    assert 45 <= examine(twice, file_level=jpeg_level(90)).quality <= 55
    assert 45 <= examine(twice).quality <= 55


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sigma", [5, 10])
def test_noise_of_colour_is_measured(name, sigma):
    found = examine(noisy(sample(name), sigma))
    assert found.noise == pytest.approx(sigma, rel=0.25)
    assert found.colour == pytest.approx(sigma, rel=0.25)
    assert not found.slight


@pytest.mark.parametrize("name", NAMES)
def test_grey_noise_is_told_from_detail(name):
    found = examine(noisy(sample(name), 10, grey=True))
    assert found.noise == pytest.approx(15, rel=0.35)
    assert found.colour == 0


def test_a_grey_picture_has_no_noise_of_colour():
    found = examine(noisy(sample("dandelion"), 10, grey=True)[..., 0])
    assert found.noise > 9
    assert found.colour == 0
