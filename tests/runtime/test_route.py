import numpy as np
import pytest

from foveal.runtime.route import COLD, HOT, Route, recorded, recording


def route(**words):
    work = np.array([[[0.0, 1.0], [0.5, 1.0]]], np.float32)
    return Route(work, **{"counts": (4.0, 2.0, 2.0), "of": (4.0, 4.0, 4.0), **words})


def test_it_says_what_was_worked_on():
    assert str(route()) == "66.7% of the tokens; stage 0: 4 of 4 tokens; stages 1 to 2: 2 of 4 tokens"
    assert route().share == pytest.approx(8 / 12)


@pytest.mark.parametrize("shape", [(4, 6, 3), (5, 7)])
def test_it_draws_itself_over_a_picture(shape):
    picture = np.full(shape, 200, np.uint8)
    drawn = route().draw(picture, opacity=1.0)
    assert drawn.shape == (*shape[:2], 3)
    assert drawn[0, 0].tolist() == COLD.tolist()
    assert drawn[-1, -1].tolist() == HOT.tolist()
    assert drawn[-1, 0].tolist() == np.rint((COLD + HOT) / 2).tolist()
    assert np.array_equal(route().draw(picture, opacity=0.0)[..., 0], picture.reshape(*shape[:2], -1)[..., 0])


def test_only_inside_a_recording():
    assert recorded() is None
    with recording() as outer:
        recorded().append(route())
        with recording() as inner:
            assert recorded() is inner
        assert len(outer) == 1
    assert recorded() is None


def test_wrong_arguments_raise():
    with pytest.raises(ValueError, match=r"work must be \(B, H', W'\), got an array of 2 axes; add the batch"):
        Route(np.zeros((2, 2), np.float32), (1.0,), (1.0,))
    with pytest.raises(ValueError, match="counts and of must have a number for each stage, got 3 and 1"):
        route(of=(4.0,))
    with pytest.raises(ValueError, match=r"opacity must be in \[0, 1\], got 2"):
        route().draw(np.zeros((2, 2), np.uint8), opacity=2)
    with pytest.raises(ValueError, match=r"picture must be \(H, W, 3\) or \(H, W\), got \(2, 2, 4\); drop its alpha"):
        route().draw(np.zeros((2, 2, 4), np.uint8))
