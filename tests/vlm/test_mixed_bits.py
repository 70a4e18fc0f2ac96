import pytest
import torch

from foveal.vlm.mixed_bits import cache_bytes, decode, encode


@pytest.mark.parametrize("by_channel", [True, False])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_what_is_stored_is_within_half_a_step(bits, by_channel):
    x = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(0))
    coded = encode(x, bits, by_channel=by_channel)
    wrong = (decode(coded) - x).abs()
    if bits == 16:
        assert torch.equal(decode(coded), x)
    else:
        assert (wrong <= coded.step / 2 + 1e-6).all()
        assert coded.codes.numel() == -(-2 * 7 * 3 * bits // 8)
    assert decode(encode(x[:, :0], bits, by_channel=by_channel)).shape == (2, 0, 3)


def test_bytes_by_hand():
    # keys and values: 3·2·4 numbers of 4 bits each, 5·2·4 of 2 bits; steps and offsets of 4 bytes
    high = 2 * 12 + 2 * 2 * (4 + 3) * 4
    low = 2 * 10 + 2 * 2 * (4 + 5) * 4
    assert cache_bytes(3, 5, heads=2, dim=4, bits=(4, 2), size=4) == high + low
    assert cache_bytes(3, 0, heads=2, dim=4, bits=(16, 2), size=2) == 2 * 3 * 2 * 4 * 2
