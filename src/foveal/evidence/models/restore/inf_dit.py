"""Evidence for Inf-DiT: blocks against the whole picture, memory at growing sizes, and photographs ×2 against bicubic.

Memory is `foveal.measure.live.live_bytes`. Pictures, which are there before and after, do not count: blocks are dropped
as they come.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import diffusing
from foveal.measure.live import live_bytes
from foveal.models.restore.inf_dit import InfDiT
from foveal.nn.block_attention import dense
from foveal.nn.unet import UNet
from foveal.record import bound, equal, grows, kept, params, smaller
from foveal.train.diffusion import cosine_schedule

if TYPE_CHECKING:
    from foveal.train.restore.residual_sr import ResidualSR

STEPS, PATCH = 900, 16  # PATCH: side of a low-resolution patch
ASKED = 2  # how often sampling asks the network; of 1, 2, 4 and 10, the fewer the nearer to the mean
DATA = (
    f"{STEPS} steps of 8 patches, bsds400; one sample of the middles of 30 of BSD100, 64×64, RGB, ×2, {ASKED} steps of "
    "DDIM"
)
SPREAD = 0.2  # of the residuals that diffuse, in bsds400, ×2
SIDES = (64, 128, 256)  # of the large picture

small = partial(InfDiT, 2, dim=48, depth=3, num_heads=4, patch_size=2, block=16)
# For memory: blocks of 64 tokens, and a U-Net as wide.
sized = partial(InfDiT, 2, dim=32, depth=2, num_heads=2, patch_size=4, block=32)
unet = partial(UNet, dim=32, multiples=(1, 2), patch=2)


def _pictures(height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(1, 3, height // 2, width // 2, generator=generator)
    return low, torch.randn(1, 3, height, width, generator=generator), torch.tensor([40])


def _blocks(height: int, width: int) -> float:
    model, given = sized().eval(), _pictures(height, width)

    def work() -> None:
        for _ in model.blockwise(*given):
            pass

    return live_bytes(work)


def _whole(side: int) -> float:
    return live_bytes(partial(sized().eval(), *_pictures(side, side)))


def _unet(side: int) -> float:
    low, noisy, t = _pictures(side, side)
    return live_bytes(partial(unet().eval(), noisy, t, low))


def _drawn(model: InfDiT) -> InfDiT:
    """Weights that do something, unlike the zeros it starts with."""
    for p in model.parameters():
        nn.init.normal_(p, std=0.15)
    return model


@cached(maxsize=1)
def _passes() -> tuple[Tensor, Tensor]:
    """Block by block, and under a mask; a picture of 4 × 3 blocks, the last ones cut off."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _drawn(small()).eval()
        low, noisy, t = torch.rand(1, 3, 29, 21), torch.randn(1, 3, 58, 42), torch.tensor([80])
    with torch.no_grad():
        return model.streamed(low, noisy, t), model(low, noisy, t, see=dense)


class Denoiser(nn.Module):
    """The network under the paper's preconditioning (EDM), written for √ᾱ x₀ + √(1 - ᾱ) ε; it predicts x₀.

    With σ the spread of residuals and d = ᾱ σ² + 1 - ᾱ, x₀ = √ᾱ σ² / d · x + σ √((1 - ᾱ) / d) · network(x / √d).

    Args:
        network: the network.
        streamed: whether it works block by block.
    """

    def __init__(self, network: InfDiT, *, streamed: bool = False) -> None:
        super().__init__()
        self.network, self.streamed = network, streamed

    def forward(self, noisy: Tensor, t: Tensor, low: Tensor) -> Tensor:
        kept = cosine_schedule(100).to(noisy)[t][:, None, None, None]
        total = kept * SPREAD**2 + 1 - kept
        out = (self.network.streamed if self.streamed else self.network)(low, noisy / total.sqrt(), t)
        return kept.sqrt() * SPREAD**2 / total * noisy + SPREAD * ((1 - kept) / total).sqrt() * out


@cached(maxsize=3)
def _model(seed: int) -> ResidualSR:
    model = diffusing.build(seed, lambda: Denoiser(small()), 2, predicted="clean")

    def loss(model: Any, batch: diffusing.Batch) -> Tensor:
        low, high, t, noise = batch
        return model.loss(low, high, t=t, noise=noise, norm=torch.nn.functional.mse_loss)

    short_run(model, diffusing.batches(seed, scale=2, patch=PATCH), loss, steps=STEPS, lr=2e-3, clip=1.0)
    cast("Denoiser", model.network).streamed = True
    return model


CLAIMS = (
    params(
        "Parameters of the paper's network with 28 layers of 1280 channels, ×4.",
        paper="layer sizes",
        model=InfDiT,
        expect=754_083_408,
        beyond="size",
    ),
    equal(
        "Blocks in the order of reading, with a kept row, give what the whole picture gives under a mask.",
        ours=lambda: _passes()[0],
        theirs=lambda: _passes()[1],
        tolerance=1e-5,
        clause=1,
    ),
    grows(
        "Peak activation memory of square pictures, block by block, grows no faster than their side.",
        paper="O(N), not O(N²)",
        cost=lambda side: _blocks(side, side),
        sizes=SIDES,
        exponent=(0.0, 1.1),
        clause=2,
    ),
    bound(
        "A picture four times as high takes the same memory.",
        paper="a row of blocks",
        value=lambda: _blocks(4 * SIDES[0], SIDES[0]) / _blocks(SIDES[0], SIDES[0]),
        at_most=1.01,
        unit="times",
        clause=2,
    ),
    grows(
        "That of the same network on the whole picture grows with the area.",
        paper="O(N²)",
        cost=_whole,
        sizes=SIDES,
        exponent=(1.8, 2.2),
        beyond="the check before can fail",
    ),
    smaller(
        "At 256×256 it takes less than a fifth of what a U-Net of as many channels takes for the whole picture.",
        paper="more than 5 times less at 4096×4096",
        ours=lambda: _blocks(256, 256),
        theirs=lambda: _unet(256),
        at_least=5.0,
        beyond="memory against U-Nets",
    ),
    kept(
        "A small network ×2, sampled block by block, is above bicubic.",
        paper="DIV2K: best in FID",
        quality=lambda seed: diffusing.score(_model(seed), steps=ASKED),
        at_least=0.0,
        data=DATA,
        needs=diffusing.NEEDS,
        clause=3,
    ),
)
