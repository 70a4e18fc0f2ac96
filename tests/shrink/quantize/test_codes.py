import pytest
import torch

from foveal.shrink.quantize.codes import Codes, levels, round_to


def test_rounding():
    assert levels(8) == 127
    assert levels(4) == 7
    x = torch.tensor([-3.0, -0.6, 0.2, 0.5, 0.7, 9.0])
    assert round_to(x, torch.tensor(0.5), bits=3).tolist() == [-4, -1, 0, 1, 1, 3]


def test_four_bits_are_packed_in_half_bytes():
    codes = torch.randint(-8, 8, (5, 6), dtype=torch.int8)
    scale = torch.rand(5, 2).half()
    kept = Codes(codes, scale, bits=4, group_size=4)
    assert kept.packed.shape == (5, 3)
    assert kept.nbytes == 5 * 3 + 5 * 2 * 2
    assert torch.equal(kept.codes(), codes)
    torch.testing.assert_close(kept()[:, 3], codes[:, 3] * scale[:, 0].float())
    torch.testing.assert_close(kept()[:, 4], codes[:, 4] * scale[:, 1].float())


def test_eight_bits_keep_any_shape():
    codes = torch.randint(-128, 128, (3, 1, 4), dtype=torch.int8)
    kept = Codes(codes, torch.tensor(0.5))
    assert torch.equal(kept(), codes * 0.5)
    assert kept.nbytes == 12 + 4


def test_an_odd_row_of_four_bits_is_refused():
    with pytest.raises(ValueError, match=r"codes of 4 bits need an even number of columns, got shape \(2, 3\)"):
        Codes(torch.zeros(2, 3, dtype=torch.int8), torch.ones(2, 1), bits=4, group_size=4)
