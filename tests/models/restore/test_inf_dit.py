import pytest
import torch
from torch import nn

from foveal.models.restore.inf_dit import InfDiT
from foveal.nn.block_attention import beside, dense

SMALL = {"dim": 16, "depth": 2, "num_heads": 2, "patch_size": 2, "block": 8}


def network(**changed):
    torch.manual_seed(0)
    model = InfDiT(2, **SMALL | changed).double()
    for p in model.parameters():  # it starts as zero
        nn.init.normal_(p, std=0.3)
    return model


def pictures(height, width, batch=2):
    torch.manual_seed(1)
    low = torch.rand(batch, 3, height, width, dtype=torch.float64)
    return low, torch.randn(batch, 3, 2 * height, 2 * width, dtype=torch.float64), torch.tensor([3, 70])[:batch]


@pytest.mark.parametrize(("height", "width"), [(4, 4), (11, 14), (3, 9), (13, 4)])
def test_block_by_block_equals_the_whole_picture(height, width):
    model, given = network(), pictures(height, width)
    with torch.no_grad():
        whole, under_a_mask, streamed = model(*given), model(*given, see=dense), model.streamed(*given)
    assert whole.shape == (2, 3, 2 * height, 2 * width)
    torch.testing.assert_close(whole, under_a_mask, rtol=0, atol=1e-11)
    torch.testing.assert_close(streamed, whole, rtol=0, atol=1e-11)


def test_gradients_under_the_mask_are_the_same():
    model, given = network(), pictures(7, 10)
    gradients = [torch.autograd.grad(model(*given, see=see).square().sum(), list(model.parameters()))
                 for see in (beside, dense)]  # fmt: skip
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_noise_spreads_down_and_right_only():
    model, (low, noisy, t) = network(depth=2), pictures(16, 16, 1)
    changed = noisy.clone()
    changed[..., 8:16, 8:16] += 1  # block (1, 1)
    with torch.no_grad():
        blocks = (model(low, noisy, t) != model(low, changed, t)).any(1)[0].unflatten(0, (4, 8)).unflatten(2, (4, 8))
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[1:, 1:] = True  # two layers: two blocks far
    assert torch.equal(blocks.any(3).any(1), expected)


def test_low_resolution_reaches_its_neighbours():
    model, (low, noisy, t) = network(depth=1), pictures(20, 20, 1)
    nn.init.zeros_(model.whole[2].weight)
    changed = low.clone()
    changed[..., 10, 10] += 1  # block (2, 2)
    with torch.no_grad():
        blocks = (model(low, noisy, t) != model(changed, noisy, t)).any(1)[0].unflatten(0, (5, 8)).unflatten(2, (5, 8))
    near = blocks.any(3).any(1)
    assert near[1:4, 1:4].all()
    assert not near[0].any()
    assert not near[:, 0].any()


def test_blocks_come_in_the_order_of_reading():
    model, given = network(), pictures(6, 5)
    made = [(row, column, tuple(block.shape[-2:])) for row, column, block in model.blockwise(*given)]
    assert made == [(0, 0, (8, 8)), (0, 1, (8, 2)), (1, 0, (4, 8)), (1, 1, (4, 2))]


def test_time_noise_and_picture_default_to_zero():
    model, (low, noisy, _) = network(), pictures(4, 6)
    with torch.no_grad():
        assert torch.equal(model(low), model(low, torch.zeros_like(noisy), torch.zeros(2)))
        torch.testing.assert_close(model.streamed(low), model(low), rtol=0, atol=1e-11)


def test_it_starts_as_zero():
    assert not InfDiT(2, **SMALL)(torch.rand(1, 3, 4, 4)).any()


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match=r"dim must be a multiple of 4 · num_heads = 8, got 12"):
        InfDiT(2, **SMALL | {"dim": 12})
    for block, patch in ((6, 2), (8, 3)):
        text = f"block must be a multiple of patch_size = {patch} and of 2 · scale = 4, got {block}"
        with pytest.raises(ValueError, match=text):
            InfDiT(2, **SMALL | {"block": block, "patch_size": patch})
    model = network()
    text = "a low resolution of 4×4 takes a noisy picture of 8×8, got 8×6"
    with pytest.raises(ValueError, match=text):
        model(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 8, 6))
    with pytest.raises(ValueError, match=text):
        next(model.blockwise(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 8, 6)))
