import pytest
import torch

import foveal.vlm
from foveal.vlm.fastv import FastV
from foveal.vlm.method import METHODS, Cut, Reducer, Seen, VlmError, count, list_methods, make, share, top


def test_the_highest_are_chosen_among_those_allowed():
    score = torch.tensor([[5.0, 1.0, 3.0, 3.0], [1.0, 2.0, 3.0, 4.0]])
    among = torch.tensor([[False, True, True, True], [True, True, False, False]])
    assert top(score, among, torch.tensor([1, 5])).tolist() == [[False, False, True, False], [True, True, False, False]]
    assert not top(score, among, torch.tensor([0, 0])).any()
    assert top(score.half(), among, torch.tensor([2, 1])).tolist()[0] == [False, False, True, True]


def test_shares_are_rounded_and_leave_at_least_one():
    total = torch.tensor([0, 1, 3, 10, 576])
    assert count(total, 0.25).tolist() == [0, 1, 1, 3, 144]
    assert count(total, 1.0).tolist() == total.tolist()
    assert count(total, 1e-6).tolist() == [0, 1, 1, 1, 1]


def test_the_last_token_is_no_padding():
    real = torch.tensor([[False, True, True], [True, True, False], [True, True, True]])
    nothing = torch.zeros(3, 3)
    assert Seen(nothing, real, real, real, nothing, nothing).last.tolist() == [2, 1, 2]


def test_methods_are_made_by_their_names():
    assert list_methods() == sorted(METHODS)
    for name in list_methods():
        made = make(name, 0.5)
        assert made.keep == 0.5
        assert isinstance(made, Reducer)
    assert make("fastv", 0.5, layer=3) == FastV(0.5, 3)
    assert make("fastv") == FastV()
    mine = FastV(0.1)
    assert make(mine) is mine


def test_wrong_methods_raise():
    with pytest.raises(VlmError, match="no method is called 'fastw'; did you mean fastv"):
        make("fastw")
    with pytest.raises(VlmError, match="no method is called 'zebra'; there are dynamic_llava, fastv, feather"):
        make("zebra")
    with pytest.raises(VlmError, match="fastv has no option 'depth'; it has keep, layer, rotary"):
        make("fastv", 0.5, depth=3)
    with pytest.raises(VlmError, match="has its own fields; give keep and options there"):
        make(FastV(), 0.5)


@pytest.mark.parametrize("keep", [0, -0.1, 1.01])
def test_wrong_shares_raise(keep):
    with pytest.raises(VlmError, match=rf"keep must be in \(0, 1\], got {keep}; 0.25 keeps a quarter"):
        share(keep)
    for name in list_methods():
        with pytest.raises(VlmError, match="keep must be in"):
            make(name, keep)


def test_wrong_cuts_raise():
    with pytest.raises(ValueError, match="layer must be at least 0, got -1"):
        Cut(-1)
    with pytest.raises(ValueError, match="scored must be a layer below 2, where the tokens go, got 2"):
        Cut(2, scored=2)
    assert Cut(2, scored=2, cache=True).scored == 2


def test_names_of_the_package_are_loaded_when_used():
    assert set(foveal.vlm.__all__) <= set(dir(foveal.vlm))
    assert foveal.vlm.VlmError is VlmError
    with pytest.raises(AttributeError, match=r"module 'foveal\.vlm' has no attribute 'zebra'; it has Accelerated"):
        _ = foveal.vlm.zebra
