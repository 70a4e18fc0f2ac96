import pytest
import torch

from foveal.nn.fusion.gemini import GeminiFusion, gemini_attention, gemini_attention_reference


def test_the_block_equals_multi_head_attention_sample_by_sample():
    torch.manual_seed(0)
    block, (x, y) = GeminiFusion(16), torch.randn(2, 3, 35, 16)
    for stream, (own, other) in enumerate(((x, y), (y, x))):
        found = block.added(own, other, stream)
        wanted = block.added(own, other, stream, by=gemini_attention_reference)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    out = block(*(tokens.mT.unflatten(2, (5, 7)) for tokens in (x, y)))
    torch.testing.assert_close(out[1].flatten(2).mT, y + block.added(y, x, 1))


def test_a_pixel_by_hand():
    """One head of two channels, plain projections: q = x, two scores, one weighted mean."""
    x, y, r = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[0.0, 4.0]]]), torch.tensor([[[0.5, 0.5]]])
    weights = {"in_weight": torch.eye(2).repeat(3, 1), "in_bias": torch.zeros(6)}
    weights |= {"out_weight": torch.eye(2), "out_bias": torch.zeros(2)}
    noise = {"key_noise": torch.tensor([1.0, 0.0]), "value_noise": torch.tensor([0.0, 1.0])}
    out = gemini_attention(x, y, r, **weights, **noise, num_heads=1)
    scores = torch.tensor([2 * 3.0, 2 * 1.0]) / 2**0.5  # keys (3, 0) and (1, 0)
    own, other = scores.softmax(0)
    torch.testing.assert_close(out[0, 0], own * torch.tensor([2.0, 1.0]) + other * torch.tensor([0.0, 4.0]))


def test_a_pixel_sees_its_own_place_only():
    torch.manual_seed(0)
    block, (x, y) = GeminiFusion(8), torch.randn(2, 1, 8, 3, 4)
    elsewhere = y.clone()
    elsewhere[..., 1, 2] += 1
    changed = (block(x, y)[0] - block(x, elsewhere)[0]).abs().amax((0, 1)) > 0
    assert changed.nonzero().tolist() == [[1, 2]]


def test_heads_that_do_not_divide_raise():
    with pytest.raises(ValueError, match="dim must be a multiple of the 8 heads, got 12; change num_heads"):
        GeminiFusion(12)
