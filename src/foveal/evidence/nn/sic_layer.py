"""Evidence for the SIC layer: closed forms of its counts, the dense topology, and a small ResNet rebuilt with it.

The rebuilt ResNet-8 has a spatial bottleneck in the second layer of the first stage's block, a projection from half of
the channels of an 8 × C/8 torus in that of the third, and SIC layers of all channels elsewhere but in the stem. It has
a quarter more channels than the ResNet-8 that it is compared with.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from foveal.evidence.rivals.small import CifarResNet
from foveal.evidence.tasks import cifar10
from foveal.measure.cost import count_macs
from foveal.nn.sic_layer import SIC, SpatialBottleneck, channel_blocks, project_blocks
from foveal.record import equal, macs, params, smaller

WIDTH, WIDER, STEPS = 16, 20, 600
PICTURE = (1, 3, 32, 32)


def _cheaper(name: str, layer: nn.Conv2d) -> nn.Module:
    dim = layer.in_channels
    if name.startswith("layer1") and name.endswith("conv2"):
        return SpatialBottleneck(dim)
    if name.startswith("layer3") and name.endswith("conv2"):
        return SIC(dim, grid=(8, dim // 8), span=(4, dim // 8))
    return SIC(dim, layer.out_channels, stride=layer.stride[0])


def _rebuilt(width: int = WIDER) -> nn.Module:
    """ResNet-8 whose convolutions are replaced as it is built; not by `foveal.swap`, which would time each."""
    net = CifarResNet(8, width=width)
    for name, layer in list(net.named_modules()):
        if isinstance(layer, nn.Conv2d) and name != "conv1":
            net.set_submodule(name, _cheaper(name, layer))
    return net


RESNET = partial(CifarResNet, 8, width=WIDTH)


def _features(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


CLAIMS = (
    macs(
        "A SIC layer takes H·W·(k²·C + C·N) multiply-adds.",
        paper="closed form",
        model=partial(SIC, 48, 64, kernel_size=5),
        shape=(1, 48, 12, 20),
        expect=12 * 20 * (25 * 48 + 48 * 64),
        clause=1,
    ),
    macs(
        "With the channels on a torus, H·W·(k²·C + N·s₁·s₂).",
        paper="closed form",
        model=partial(SIC, 48, 96, grid=(6, 8), span=(3, 4), out_grid=(12, 8)),
        shape=(1, 48, 12, 20),
        expect=12 * 20 * (9 * 48 + 96 * 3 * 4),
        clause=1,
    ),
    macs(
        "With a spatial bottleneck, H·W·(C + C·N / s² + N).",
        paper="closed form",
        model=partial(SpatialBottleneck, 48, 64),
        shape=(1, 48, 12, 20),
        expect=12 * 20 * (48 + 48 * 64 // 4 + 64),
        clause=1,
    ),
    params(
        "A block of 12 of 48 channels takes a quarter of the projection's weights.",
        paper="layer sizes",
        model=partial(SIC, 48, grid=(6, 8), span=(3, 4)),
        expect=9 * 48 + 48 * 12,
        beyond="connections of topological subdivisioning",
    ),
    equal(
        "A block as large as the grid gives what the projection of all channels gives.",
        ours=lambda: project_blocks(
            _features(0, 2, 24, 5, 7), _features(1, 40, 24), channel_blocks((2, 3, 4), (2, 3, 4), (5, 2, 4))
        ),
        theirs=lambda: torch.conv2d(_features(0, 2, 24, 5, 7), _features(1, 40, 24)[..., None, None]),
        tolerance=1e-6,
        clause=2,
    ),
    smaller(
        "The rebuilt ResNet-8 takes at least four times fewer multiply-adds.",
        paper="4.5 times fewer than ResNet-50",
        ours=lambda: float(count_macs(_rebuilt(), PICTURE)),
        theirs=lambda: float(count_macs(RESNET(), PICTURE)),
        at_least=4.0,
        clause=3,
    ),
    cifar10.better(
        _rebuilt,
        "It loses at most two points to the ResNet-8 of convolutions.",
        than=RESNET,
        steps=STEPS,
        paper="similar accuracy",
        by=-2.0,
        clause=3,
    ),
)
