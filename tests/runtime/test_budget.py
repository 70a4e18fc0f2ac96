"""Two networks that share a picture: every pixel is one network's, the work stays within the budget."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.runtime import budget as module
from foveal.runtime.budget import checked_budget, smaller
from foveal.runtime.bundle import Bundle
from foveal.runtime.engines import EngineMemoryError
from foveal.runtime.network import Network
from foveal.runtime.resume import settings_of
from foveal.runtime.route import recording
from foveal.runtime.upscaler import Upscaler


def make(scale=2, quality="balanced", **options):
    return Upscaler(scale, quality, **{"engine": "onnxruntime", "threads": 1, "clean": "off", **options})


@pytest.fixture(scope="module")
def whole():
    return make()


@pytest.fixture(scope="module")
def fast():
    return make(quality="fast")


@pytest.fixture(scope="module")
def half():
    return make(budget=0.5, tile=48)


def mixed(natural, height=70, width=90):
    """Noise on the left, a slope on the right."""
    image = natural(height, width)
    image[:, width // 2 :] = np.linspace(40, 200, height).astype(np.uint8)[:, None, None]
    return image


def masked(route, shape):
    rows, columns = route.work.shape[1:]
    y, x = (np.arange(n) for n in shape)
    return (route.work[0] == 1)[y[:, None] // -(-shape[0] // rows), x // -(-shape[1] // columns)]


def kinds(image):
    deep = image.astype(np.uint16) * 257
    alpha = np.full((*image.shape[:2], 1), 65535, np.uint16)
    alpha[:9], alpha[9:14] = 0, 30000
    return {"colour": image, "grey": image[..., 0], "alpha": np.dstack([deep, alpha]), "float": image / np.float32(255)}


@pytest.mark.parametrize("kind", ["colour", "grey", "alpha", "float"])
def test_every_pixel_is_that_of_one_network(kind, natural, whole, fast, half):
    image = kinds(mixed(natural))[kind]
    with recording() as routes:
        made = half(image)
    assert (made.shape, made.dtype) == (whole(image).shape, image.dtype)
    (route,) = routes
    large = masked(route, image.shape[:2]).repeat(2, 0).repeat(2, 1)
    assert 0.1 < large.mean() < 0.7
    # One level for ONNX Runtime, whose last bit depends on a tile's size.
    step = {"u": np.iinfo(made.dtype).max / 255 if made.dtype.kind == "u" else 1, "f": 1 / 255}[made.dtype.kind]
    for one, where in ((whole, large), (fast, ~large)):
        off = abs(made.astype(float) - one(image).astype(float))[where]
        assert off.max() <= step
        assert off.mean() < step / 50


def test_at_one_nothing_changes(natural, whole):
    image, same = natural(40, 50), make(budget=1)
    np.testing.assert_array_equal(same(image), whole(image))
    assert (same.name, same.budget, settings_of(same)) == ("balanced_x2", 1.0, settings_of(whole))
    with recording() as routes:
        same(image)
    assert routes == []


def test_detail_gets_the_work(natural, half):
    with recording() as routes:
        half(mixed(natural))
    (route,) = routes
    large = masked(route, (70, 90))
    assert large[:, :40].mean() > 0.4
    assert large[:, 50:].mean() < 0.1
    assert route.unit == "multiply-adds"
    assert 0.4 < route.share <= 0.5
    assert set(np.unique(route.work)) == {np.float32(6616 / 76984), 1}
    assert route.draw(mixed(natural)).shape == (70, 90, 3)


def test_more_budget_is_more_work_and_too_little_is_the_smaller_network(natural, fast):
    image, shares = natural(70, 90), []
    for budget in (0.01, 0.5, 0.7, 0.9):
        upscale = make(budget=budget, tile=48)
        with recording() as routes:
            made = upscale(image)
        shares.append((routes[0].work[0] == 1).mean())
        if budget == 0.01:
            assert abs(made.astype(int) - fast(image)).max() <= 1
            assert routes[0].share > budget
        else:
            assert routes[0].share <= budget
    assert shares[0] == 0
    assert shares == sorted(set(shares))


def test_it_is_told_in_plan_and_result(natural, tmp_path, half, whole):
    Image.fromarray(mixed(natural)).save(tmp_path / "a.png")
    plan = half.plan(tmp_path / "a.png", look=True)
    result = half.upscale_file(tmp_path / "a.png", tmp_path / "b.png")
    assert plan.bundle == result.bundle == half.name == "balanced_x2 at 0.5"
    (said,) = result.notes
    assert said.startswith("budget 0.5: balanced_x2 for ")
    assert "% of the picture, fast_x2 for the rest, 0." in said
    assert said.endswith(" of the work")
    assert said in plan.notes
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "b.png")), half(mixed(natural)))
    seconds = [(one := up.plan((90, 70))).seconds - one.start for up in (half, make(tile=48))]
    assert seconds[0] < 0.9 * seconds[1]
    little = make(budget=0.01).upscale_file(tmp_path / "a.png", tmp_path / "c.png")
    assert little.notes[0].startswith("budget 0.01: balanced_x2 for 0% of the picture, fast_x2 for the rest, 0.")
    assert little.notes[0].endswith(" of the work, the least there is")


def test_frames_of_an_animation_are_made_alike(natural, tmp_path, half, whole):
    frames = [Image.fromarray(natural(24, 30, seed)).quantize(16) for seed in (0, 1)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=80)
    results = [up.upscale_file(tmp_path / "a.gif", tmp_path / f"{i}.gif") for i, up in enumerate((half, whole))]
    assert results[0].bundle == results[1].bundle == half.plan(tmp_path / "a.gif").bundle == "balanced_x2"
    assert "budget 0.5 takes no part: balanced_x2 makes all frames alike" in results[0].notes
    assert (tmp_path / "0.gif").read_bytes() == (tmp_path / "1.gif").read_bytes()


def test_a_damaged_picture_is_shared_by_the_networks_that_clean(natural):
    image = mixed(natural)
    upscale = make(budget=0.6, clean=60)
    with recording() as routes:
        made = upscale(image)
    assert 0 < (routes[0].work[0] == 1).mean() < 1
    both = [make(quality=quality, clean=60)(image).astype(int) for quality in ("balanced", "fast")]
    nearest = np.minimum(*(abs(made - one).max(axis=2) for one in both))
    assert nearest.max() <= 1
    assert upscale.plan(image, look=True).bundle == "clean_balanced_x2 at 0.6"


def test_textures_and_planar_results_are_shared_too(natural, half):
    image = mixed(natural)
    assert make(budget=0.5, wrap=True)(image).shape == (140, 180, 3)
    planar = np.empty((3, 140, 180), np.uint8).transpose(1, 2, 0)  # as a tensor's result lies in memory
    list(half._way(module.Look()).bands(image, alpha=False, out=planar))
    np.testing.assert_array_equal(planar, half(image))


def test_short_memory_makes_rectangles_smaller(natural, half, monkeypatch):
    image = mixed(natural)
    want, run, notes = half(image), Network.run, []

    def starved(self, kind, x):
        if max(x.shape[1:3]) > 44 or max(x.shape[2:]) > 44:
            raise EngineMemoryError("too large")
        return run(self, kind, x)

    monkeypatch.setattr(Network, "run", starved)
    running = half._way(module.Look())
    made = np.concatenate(list(running.bands(image, alpha=False, note=notes.append)))
    assert abs(made.astype(int) - want).max() <= 1
    assert [note for note in notes if note.startswith("out of memory: went on with tiles of ")] == notes[1:]
    assert 1 <= len(notes[1:]) <= 2, "said once for each network"
    monkeypatch.setattr(Network, "run", lambda *_: (_ for _ in ()).throw(EngineMemoryError("too large")))
    with pytest.raises(EngineMemoryError) as caught:
        half(image)
    assert caught.value.__notes__ == ["while balanced_x2 and fast_x2 shared a picture of 90×70"]


def test_progress_counts_every_pixel_once(natural, half):
    told = []
    half(mixed(natural), progress=lambda *one: told.append(one))
    assert told[-1][0] == pytest.approx(told[-1][1])
    assert len(told) > 2


def test_results_depend_on_the_budget_and_on_the_smaller_bundle(half, whole):
    assert len({settings_of(up) for up in (half, whole, make(budget=0.6))}) == 3
    assert len(half.settled()) == len(whole.settled()) + 1
    other = make(budget=0.5)
    other.adopt(half.settled())
    assert other.settled() == half.settled()


def test_the_smaller_bundle_lies_in_the_same_folder(bundles, tmp_path):
    assert smaller(Bundle.load("balanced_x3")).card.name == "fast_x3"
    assert smaller(Bundle.load("clean_balanced_x4")).card.name == "clean_fast_x4"
    assert smaller(Bundle.load("fast_x2")) is None
    assert smaller(bundles["trims"]) is None, "a bundle without a quality"
    for name, quality, parameters in (("own", "best", 900), ("light", "fast", 90), ("heavy", "balanced", 9000)):
        shutil.copytree(bundles["trims"].folder, tmp_path / name)
        card = replace(bundles["trims"].card, name=name, quality=quality, parameters=parameters)
        (tmp_path / name / "card.json").write_text(card.to_json())
    own = Bundle.load(tmp_path / "own")
    assert smaller(own).card.name == "light"
    assert Upscaler(model=own, engine="onnxruntime", threads=1, budget=0.5).name == "own at 0.5"
    (tmp_path / "light" / "card.json").write_text("{}")
    assert smaller(own) is None, "what cannot be read is no help"


@pytest.mark.parametrize("budget", [0, -1, 1.5, float("nan"), "half", True])
def test_a_budget_is_a_share(budget):
    with pytest.raises(ValueError, match=r"budget must be in \(0, 1\], got .*; 0.5 is half of the network's work"):
        checked_budget(budget)


def test_what_cannot_be_shared_raises(bundles, whole_picture):
    with pytest.raises(ValueError, match=r"budget=0.5 asks for a smaller network, and fast_x2 is the smallest"):
        make(quality="fast", budget=0.5)
    with pytest.raises(ValueError, match=r"budget=0.5 asks for a smaller network beside tiny, and there is none"):
        Upscaler(model=bundles["trims"], budget=0.5)
    with pytest.raises(ValueError, match=r"budget=0.5 runs parts of a picture, and global looks at all of it"):
        Upscaler(model=whole_picture(scale=2), budget=0.5)
    with pytest.raises(ValueError, match=r"budget=0.5 shares work between networks, pixel art takes none"):
        make(content="pixel", budget=0.5)


def test_films_are_not_shared(half):
    film = pytest.importorskip("foveal.runtime.film.film")
    for run in (film.plan_film, film.upscale_film):
        with pytest.raises(film.FilmError, match=r"a.mp4: a budget of 0.5 would share each frame otherwise"):
            run(half, Path("a.mp4"), Path("b.mp4"))
