"""Evidence for Rev-MBConv-UNet: its stages forth and back, and beside the same network with all activations kept.

In a whole training step one bottleneck at a time is computed again, with all that it keeps. Against stages of two
blocks that leaves a factor of 2.7, not three; what is measured has four.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from foveal.measure.cost import peak_memory
from foveal.measure.saved import saved_bytes
from foveal.models.dense.rev_mbconv_unet import RevMBConvUNet, stage
from foveal.nn.reversible import inverse
from foveal.record import equal, grows, smaller

CROP = (128, 128, 128)  # voxels, as BraTS is usually cropped to
LARGER = (128, 128, 384)  # three times as many
SMALL, THRICE = (32, 32, 32), (32, 32, 96)  # of what is measured


def _volume(channels: int, *sides: int) -> Tensor:
    return torch.randn(1, channels, *sides, generator=torch.Generator().manual_seed(1))


def _there_and_back(dim: int, depth: int, *, recovered: bool) -> Tensor:
    """A volume, or what the inverse makes of the output of a stage."""
    x = _volume(dim, 8, 9, 7)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        blocks = stage(dim, depth)
        return inverse(blocks(x), blocks.pairs) if recovered else x


def _gradients(*, store: bool) -> Tensor:
    """Gradients of all parameters and of the volume, each over its largest value."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = RevMBConvUNet(dim=8, depths=(4, 4, 4), expansion=4, store=store)
    x = _volume(4, 9, 12, 14).requires_grad_()
    loss = model(x).square().mean()
    found = torch.autograd.grad(loss, [x, *model.parameters()])
    return torch.cat([gradient.flatten() / gradient.abs().max() for gradient in found])


def _kept(depth: int, *, store: bool, dim: int = 32, sides: tuple[int, ...] = CROP) -> float:
    """Bytes kept for the backward pass besides parameters."""
    with torch.device("meta"):
        model, x = RevMBConvUNet(dim=dim, depths=(depth,) * 5, store=store), torch.zeros(1, 4, *sides)
    return saved_bytes(lambda: model(x), model.parameters())


def _trained(*, store: bool, dim: int, sides: tuple[int, ...], depth: int) -> None:
    model = RevMBConvUNet(dim=dim, depths=(depth,) * 3, store=store)
    model(_volume(4, *sides)).square().mean().backward()


def _peak(*, store: bool, dim: int = 16, sides: tuple[int, ...] = SMALL, depth: int = 4) -> float:
    return float(peak_memory(partial(_trained, store=store, dim=dim, sides=sides, depth=depth)))


CLAIMS = (
    *(
        equal(
            f"The input of {depth} blocks of {dim} channels is recovered from their output.",
            paper="recompute input activations given the outputs",
            ours=partial(_there_and_back, dim, depth, recovered=True),
            theirs=partial(_there_and_back, dim, depth, recovered=False),
            tolerance=1e-4,
            clause=1,
        )
        for dim, depth in ((16, 8), (64, 2))
    ),
    equal(
        "Gradients of all parameters and of the volume equal those with all activations kept, four blocks a stage.",
        paper="exact",
        ours=partial(_gradients, store=False),
        theirs=partial(_gradients, store=True),
        tolerance=1e-4,
        clause=2,
    ),
    grows(
        "What is kept of a 128×128×128 volume does not depend on the number of blocks.",
        paper="no need to store activations",
        cost=partial(_kept, store=False),
        sizes=(1, 2, 4, 8),
        exponent=(-0.01, 0.01),
        clause=3,
    ),
    grows(
        "What the plain network keeps grows with it, once the blocks outweigh what is around them.",
        paper="",
        cost=partial(_kept, store=True),
        sizes=(1, 2, 4, 8),
        exponent=(0.95, 1.05),
        clause=3,
    ),
    smaller(
        "A volume three times as large is kept in less than the plain network needs.",
        paper="up to 3× larger volumes",
        ours=partial(_kept, 2, store=False, sides=LARGER),
        theirs=partial(_kept, 2, store=True),
        beyond="3× larger volumes in the same memory",
    ),
    smaller(
        "A network of twice the channels keeps less than the plain one.",
        paper="up to 2× the channels",
        ours=partial(_kept, 2, store=False, dim=64),
        theirs=partial(_kept, 2, store=True),
        beyond="2× the channels in the same memory",
    ),
    smaller(
        "Measured in a process each, what is computed again included, four blocks a stage: a training step on a volume "
        "three times as large takes less memory.",
        paper="up to 3× larger volumes",
        ours=partial(_peak, store=False, sides=THRICE),
        theirs=partial(_peak, store=True),
        beyond="3× larger volumes in the same memory, in use",
    ),
    smaller(
        "Measured too: a training step with twice the channels and a quarter more blocks takes less memory.",
        paper="25% more depth, or up to 2× the channels",
        ours=partial(_peak, store=False, dim=32, depth=5),
        theirs=partial(_peak, store=True),
        beyond="2× the channels in the same memory, in use",
    ),
)
