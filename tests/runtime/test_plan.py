import json
from dataclasses import replace

import pytest

from foveal.runtime.plan import make_plan, memory
from foveal.runtime.throughput import Throughput
from foveal.runtime.tiles import make_grid


def test_plan_grows_with_the_picture(bundles):
    bundle = bundles["trims"]
    throughput = Throughput(64, 0.5, 0.25)
    small = make_plan(bundle, "onnxruntime", throughput, make_grid(64, 64, 64, bundle.card), 2)
    assert small.tiles == 1
    assert small.seconds == pytest.approx(0.25 + 0.5 * 66 * 66 / 1e6)
    large = make_plan(bundle, "onnxruntime", throughput, make_grid(640, 640, 64, bundle.card), 2)
    assert large.tiles == 100
    assert large.megapixels == pytest.approx(4 * 640 * 640 / 1e6)
    assert large.memory > small.memory
    animation = make_plan(bundle, "onnxruntime", throughput, make_grid(64, 64, 64, bundle.card), 2, frames=10)
    assert animation.seconds == pytest.approx(0.25 + 10 * (small.seconds - 0.25))
    assert "64×64 → 128×128 × 10 frames" in str(animation)
    assert json.loads(json.dumps(large.to_dict()))["tile"] == [64, 64]


def test_overlapping_tiles_take_memory_for_their_sums(bundles):
    card = bundles["same"].card
    grid = make_grid(100, 1000, 50, card)
    exact, overlap = (memory(grid, replace(card, tiling=t), "torch", 3, whole=False) for t in ("exact", "overlap"))
    # A band of 50 rows and twice the margin of 1, twice as wide; four channels and a weight, four bytes each.
    assert overlap - exact == (50 + 2) * 1000 * 4 * 20


def test_hundred_megapixels_stay_under_two_gigabytes(bundles):
    card = bundles["x3"].card
    for pixel_bytes in (3, 8):
        grid = make_grid(10_000, 10_000, 384, card, automatic=True, pixel_bytes=pixel_bytes)
        assert memory(grid, card, "openvino", pixel_bytes, whole=False) < 2e9
        assert memory(grid, card, "openvino", pixel_bytes, whole=True) > 2e9
