import pytest
import timm
import torch

from foveal.measure.cost import count_macs
from foveal.models.backbone.efficientvim import (
    EfficientViMBlock,
    HiddenStateMixer,
    efficientvim_m1,
    summed_up,
    use_plain_blocks_,
)

SMALL = {"embed_dim": (16, 24, 32), "state_dim": (5, 4, 3), "num_classes": 7}


def awake(model):
    """Batch norms begin with a scale of 0, which would hide the branches before them."""
    torch.manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn(value.shape) * 0.1)
    return model.eval()


def test_it_is_timms_network():
    model = efficientvim_m1(in_channels=1, drop_path=0.1, **SMALL)
    assert type(model) is type(timm.create_model("efficientvim_m1"))
    assert model(torch.rand(2, 1, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize("size", [(64, 64), (100, 37)])
def test_plain_blocks_give_timms_logits(size):
    model, x = awake(efficientvim_m1(**SMALL)), torch.randn(2, 3, *size)
    before = model(x)
    assert use_plain_blocks_(model) is model
    assert all(type(block) is EfficientViMBlock for stage in model.stages for block in stage.blocks)
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-6)
    block = model.stages[1].blocks[0]
    for value in (block.mixer.out_proj.conv.weight, block.mixer.dw.conv.weight, block.ffn.fc2.norm.weight):
        kept = value.data.clone()
        value.data.add_(0.5)
        assert not torch.allclose(model(x), before, rtol=1e-3, atol=1e-3)
        value.data.copy_(kept)


def test_plain_blocks_train_as_timms_do():
    model = awake(efficientvim_m1(**SMALL)).train()
    plain = use_plain_blocks_(awake(efficientvim_m1(**SMALL))).train()
    plain.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 64, 64)
    for network in (model, plain):
        network(x).square().mean().backward()
    slopes = dict(model.named_parameters())
    for name, value in plain.named_parameters():
        torch.testing.assert_close(value.grad, slopes[name].grad, rtol=1e-3, atol=1e-5)


def test_a_sum_over_tokens_by_hand():
    tokens = torch.tensor([[[1.0, 3.0]]])
    weights = torch.tensor([[[1.0, 1.0], [2.0, 0.0]]])
    importance = torch.tensor([[[0.0, 0.0], [0.0, 100.0]]])
    torch.testing.assert_close(summed_up(tokens, weights, importance), torch.tensor([[[2.0, 0.0]]]))


def test_a_changes_nothing():
    mixer, x = awake(HiddenStateMixer(8, 3)).double(), torch.randn(2, 8, 4, 5, dtype=torch.float64)
    before = mixer(x)[0]
    with torch.no_grad():
        mixer.A.add_(3)
    torch.testing.assert_close(mixer(x)[0], before)


def test_mixing_does_not_grow_with_the_tokens():
    # What grows is linear in the tokens: projections to b, c and dt, sums and reading, 3·C·N + 27·N + 2·C·N each.
    costs = [count_macs(HiddenStateMixer(16, 4), (1, 16, side, 8)) for side in (8, 16)]
    mixing = 3 * 16 * 16 * 4
    assert [cost - mixing for cost in costs] == [tokens * (5 * 16 * 4 + 27 * 4) for tokens in (64, 128)]


def test_mixing_happens_in_the_states():
    mixer = HiddenStateMixer(16, 4)
    y, h = mixer(torch.rand(2, 16, 6, 5))
    assert y.shape == (2, 16, 6, 5)
    assert h.shape == (2, 16, 4)
    assert mixer.mixed(h).shape == h.shape
