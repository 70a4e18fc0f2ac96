"""Evidence for CFSR: edge filters apart and folded, against ShuffleMixer, and against attention in 8×8 windows."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from foveal.evidence.rivals.shuffle_mixer import ShuffleMixer
from foveal.evidence.tasks import photos
from foveal.evidence.tasks.equal_minutes import Trial
from foveal.evidence.timing import call
from foveal.measure.cost import count_macs, count_parameters
from foveal.models.restore.cfsr import CFSR, ConvMixer, EdgeConv2d
from foveal.nn.windows import WindowAttention
from foveal.record import bound, equal, faster, kept, params, smaller

small = partial(CFSR, dim=24, depths=(3, 3))
mixer = partial(ShuffleMixer, dim=32, depth=3)
TRIAL = Trial((small, mixer), 2, 0.75)


class _Apart(nn.Module):
    """An edge convolution as the paper trains it: its kernel and each filter are applied apart, then summed."""

    def __init__(self, conv: EdgeConv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        conv, dim = self.conv, x.shape[1]
        out = F.conv2d(x, conv.weight, conv.bias, padding=1, groups=dim)
        for filter_, scales in zip(conv.filters, conv.scales, strict=True):
            kernel = filter_.expand(dim, 1, 3, 3)
            out = out + scales[:, None, None] * F.conv2d(x, kernel, padding=1, groups=dim)
        return out


def _output(*, folded: bool) -> Tensor:
    """A network whose blocks and filters all count, folded or with its filters apart."""
    torch.manual_seed(0)
    network, x = CFSR(2, dim=24, depths=(2, 2)).eval(), torch.rand(2, 3, 23, 31)
    for name, parameter in network.named_parameters():
        if name.endswith(("scales", "layer_scale_1", "layer_scale_2")):
            nn.init.normal_(parameter)
    if folded:
        network = network.fold()
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, EdgeConv2d):
                setattr(module, name, _Apart(child))
    with torch.inference_mode():
        return network(x)


class _Attention(nn.Module):
    """Norm and attention in 8×8 windows, (B, C, H, W) to the same."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm, self.attention = LayerNorm2d(dim), WindowAttention(dim, num_heads, (8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(self.norm(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _folded(scale: int) -> CFSR:
    return CFSR(scale).fold()


def _macs(network: nn.Module) -> float:
    """Multiply-adds for a result of 1280×720, ×2."""
    return count_macs(network, (1, 3, 360, 640))


CLAIMS = (
    equal(
        "Folded, the network equals the one whose edge filters are applied apart.",
        ours=lambda: _output(folded=True),
        theirs=lambda: _output(folded=False),
        tolerance=1e-5,
        clause=1,
    ),
    smaller(
        "At ×2 it has 26 % fewer parameters than ShuffleMixer.",
        paper="26 % fewer",
        ours=lambda: count_parameters(CFSR(2).fold()),
        theirs=lambda: count_parameters(ShuffleMixer(2)),
        at_least=1 / (1 - 0.26),
        clause=2,
    ),
    smaller(
        "At ×2 it takes 31 % fewer multiply-adds than ShuffleMixer.",
        paper="31 % fewer",
        ours=lambda: _macs(CFSR(2).fold()),
        theirs=lambda: _macs(ShuffleMixer(2)),
        at_least=1 / (1 - 0.31),
        clause=2,
    ),
    faster(
        "A mixing layer takes less processor time than attention in 8×8 windows of the same width, 320×184.",
        paper="cheaper than attention",
        ours=call(partial(ConvMixer, 48), 1, 48, 184, 320),
        theirs=call(partial(_Attention, 48, 6), 1, 48, 184, 320),
        clause=3,
    ),
    TRIAL.better(
        small,
        "After equal processor minutes a small ×2 is not below a ShuffleMixer.",
        than=mixer,
        by=0.0,
        paper="Urban100: + 0.39 dB",
        clause=4,
    ),
    kept(
        "The small network has learnt in its minutes: it is above bicubic.",
        paper="",
        quality=partial(TRIAL.gain, small),
        at_least=0.0,
        data=TRIAL.data,
        needs=photos.NEEDS,
        beyond="what is compared has been learnt",
    ),
    bound(
        "For that it has at least 26 % fewer parameters.",
        paper="26 % fewer",
        value=lambda: count_parameters(small(2).fold()) / count_parameters(mixer(2)),
        at_most=1 - 0.26,
        clause=4,
    ),
    *(
        params(
            f"Parameters of CFSR ×{scale}, folded.",
            paper="authors' code",
            model=partial(_folded, scale),
            expect=expect,
            beyond="size of CFSR",
        )
        for scale, expect in ((2, 291_324), (3, 297_819), (4, 306_912))
    ),
)
