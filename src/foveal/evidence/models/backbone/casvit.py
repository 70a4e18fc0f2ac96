"""Evidence for CAS-ViT: counts, ONNX Runtime, time beside softmax attention, and the zoo trial."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor, nn

from foveal.evidence.drawn import drawn_
from foveal.evidence.rivals.mobilevitv2 import mobilevitv2
from foveal.evidence.tasks.zoo import Zoo, widths
from foveal.evidence.timing import call
from foveal.export.onnx import to_onnx
from foveal.measure.cost import count_macs
from foveal.models.backbone.casvit import AdditiveMixer, CASViT, casvit_m, casvit_s, casvit_t, casvit_xs
from foveal.record import equal, faster, grows, macs, params
from foveal.runtime.ort import load_onnxruntime


@torch.no_grad()
def drawn() -> nn.Module:
    """Channels of CAS-ViT-XS and a block a stage, with all weights and statistics drawn.

    Returns:
        (B, 3, H, W) to (B, 1000), in eval mode.
    """
    torch.manual_seed(0)
    model = drawn_(casvit_xs(depths=(1, 1, 1, 1)).eval())
    for name, value in model.named_parameters():
        if name.endswith((".attn.proj.weight", ".local.4.weight", ".mlp.fc2.weight")):
            value.mul_(0.1)  # a mixer squares its map, which would grow beyond all bounds from block to block
    return model


@torch.no_grad()
def _logits(*, exported: bool) -> Any:
    """Logits for pictures of another size than the network was exported with."""
    x = torch.randn(3, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    if not exported:
        return drawn()(x)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        to_onnx(drawn(), path, torch.randn(2, 3, 64, 64))
        session = load_onnxruntime().InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


class SoftmaxMixer(nn.Module):
    """What the mixer replaces: timm's attention over all pixels, (B, C, H, W) to the same.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attention = Attention(dim, num_heads=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x.flatten(2).mT).mT.reshape(x.shape)


def small() -> nn.Module:
    """CAS-ViT on maps of 16×16, 8×8 and 4×4.

    Returns:
        (B, 3, 32, 32) to (B, 10).
    """
    network = CASViT((32, 64, 96), (1, 2, 2), num_classes=10)
    # stride 2 in place of 4 suits pictures of 32×32
    network.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
    return network


ZOO = Zoo(small, widths(mobilevitv2, range(72, 169, 2)), "MobileViTv2", minutes=1.5)
SIZES = (("XS", casvit_xs, "3.20 M"), ("S", casvit_s, "5.76 M"), ("M", casvit_m, "12.42 M"), ("T", casvit_t, "21.76 M"))

CLAIMS = (
    *(
        params(f"CAS-ViT-{name}.", paper=size, model=build, expect=size, tolerance=0.02, clause=1)
        for name, build, size in SIZES
    ),
    equal(
        "The network, a block a stage, has the same logits in ONNX Runtime, at another size than it was exported with.",
        ours=partial(_logits, exported=True),
        theirs=partial(_logits, exported=False),
        tolerance=1e-4,
        clause=2,
    ),
    *(
        faster(
            f"The mixer of XS's {number} stage takes at most half the time of softmax attention of equal width, at "
            f"512×512 pixels ({side}×{side} tokens).",
            paper="no softmax, no products of large matrices",
            ours=call(partial(AdditiveMixer, dim), 1, dim, side, side),
            theirs=call(partial(SoftmaxMixer, dim), 1, dim, side, side),
            at_least=2.0,
            clause=3,
        )
        for number, dim, side in (("first", 48, 128), ("second", 56, 64))
    ),
    *ZOO.claims(clause=4),
    faster(
        "The mixer of XS's third stage takes less time, too (32×32 tokens).",
        paper="no softmax, no products of large matrices",
        ours=call(partial(AdditiveMixer, 112), 1, 112, 32, 32),
        theirs=call(partial(SoftmaxMixer, 112), 1, 112, 32, 32),
        beyond="faster on small maps",
    ),
    macs(
        "A mixer of 64 channels takes 3·64² + 38·64 multiply-adds a pixel and 2·64² a picture.",
        paper="layer sizes",
        model=partial(AdditiveMixer, 64),
        shape=(1, 64, 14, 14),
        expect=14**2 * (3 * 64**2 + 38 * 64) + 2 * 64**2,
        beyond="linear complexity",
    ),
    grows(
        "They grow with the pixels.",
        paper="linear in the pixels",
        cost=lambda side: float(count_macs(AdditiveMixer(16), (1, 16, side, side))),
        sizes=(16, 32, 64),
        of=lambda side: float(side**2),
        exponent=(0.99, 1.001),
        beyond="linear complexity",
    ),
)
