import pytest
import torch
from timm.models.mobilevit import LinearSelfAttention, MobileVitV2Block

from foveal.evidence.rivals.mobilevitv2 import mobilevitv2


@pytest.mark.parametrize(("dim", "channels"), [(24, (48, 72)), (30, (64, 88))])  # multiples of 8
def test_two_stages_attend_on_small_maps(dim, channels):
    torch.manual_seed(0)
    network, seen = mobilevitv2(dim, depths=(1, 2)), []
    for block in (module for module in network.modules() if isinstance(module, MobileVitV2Block)):
        block.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[1:])))
    out = network(torch.randn(2, 3, 32, 32))
    assert seen == [(channels[0], 8, 8), (channels[1], 4, 4)]
    assert sum(isinstance(module, LinearSelfAttention) for module in network.modules()) == 3
    assert out.shape == (2, 10)
    out.square().sum().backward()
    assert all(value.grad is not None for value in network.parameters())
