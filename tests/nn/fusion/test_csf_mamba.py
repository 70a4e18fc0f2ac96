import pytest
import torch

from foveal.nn.fusion.csf_mamba import CrossState, CSFMamba, _draw, cross_state_scan, cross_state_scan_reference
from foveal.ops import selective_scan


@pytest.mark.parametrize("length", [1, 7, 63])
def test_the_scan_equals_the_recurrence(length):
    inputs = _draw(0, 2, 3, 4, length)
    torch.testing.assert_close(cross_state_scan(**inputs), cross_state_scan_reference(**inputs), rtol=1e-4, atol=1e-4)


def test_equal_streams_give_twice_an_ordinary_scan():
    inputs = {name: value[:1].expand_as(value) for name, value in _draw(0, 2, 3, 4, 9).items()}
    once = selective_scan(*(inputs[name][0] for name in ("u", "delta", "A", "B", "C", "D")))
    torch.testing.assert_close(cross_state_scan(**inputs), 2 * once, rtol=1e-5, atol=1e-5)


def test_a_stream_without_input_is_read_by_nobody_but_still_reads():
    """Only the second stream's state is zero: what is left is the first one's, read with the second one's weights."""
    inputs = _draw(0, 2, 3, 4, 9)
    inputs["u"][1] = 0
    first = selective_scan(*(inputs[name][0] for name in ("u", "delta", "A", "B")), inputs["C"][1], inputs["D"][0])
    torch.testing.assert_close(cross_state_scan(**inputs), first, rtol=1e-5, atol=1e-5)


def test_the_order_of_the_streams_does_not_change_what_is_read():
    inputs = _draw(0, 2, 3, 4, 9)
    turned = {name: value.flip(0) for name, value in inputs.items()}
    torch.testing.assert_close(cross_state_scan(**inputs), cross_state_scan(**turned), rtol=1e-5, atol=1e-5)


def test_each_direction_sees_its_past_only():
    torch.manual_seed(0)
    scan, u = CrossState(4, state=2), torch.randn(2, 1, 4, 9)
    later = u.clone()
    later[1, ..., 6] += 1
    changed = (scan(u) - scan(later)).abs().amax((0, 1)) > 0
    assert changed.tolist() == [False] * 6 + [True] * 3


def test_a_block_sees_the_whole_of_the_other_map():
    torch.manual_seed(0)
    block, (x, y) = CSFMamba(8, state=2), torch.randn(2, 1, 8, 4, 5)
    y.requires_grad_()
    block(x, y)[0][0, :, 1, 2].sum().backward()
    assert (y.grad[0].abs().amax(0) > 0).all()
