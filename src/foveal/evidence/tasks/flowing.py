"""Flows of grey pictures: bits per dimension that small flows need for CIFAR-10 after equal steps, and flows to time.

32×32 pixels of 256 levels with uniform noise; two levels of four steps with couplings of 32 channels. The pictures are
JPEG-compressed and smoother than the original ones, so figures compare flows with one another, not with a paper's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import cifar10
from foveal.generate.glow import Flow

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

__all__ = ["DATA", "NEEDS", "bits", "drawn_flow", "log_dets"]

STEPS, BATCH, TRAIN, HELD_OUT = 300, 32, 5000, 500
DEPTH, WIDTH = 4, 32
NEEDS = cifar10.NEEDS
DATA = f"{HELD_OUT} grey test pictures of CIFAR-10 after {STEPS} steps of {BATCH}"


def _grey(part: str, limit: int) -> Tensor:
    """(n, 1, 32, 32) of uint8: means of the three channels."""
    normalised, _ = cifar10.pictures(part, limit=limit)
    mean, deviation = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    values = (normalised * deviation[:, None, None] + mean[:, None, None]).mean(1, keepdim=True)
    return (255 * values).round().clamp(0, 255).to(torch.uint8)


@cached(maxsize=16)
def bits(step: Callable[..., Sequence[nn.Module]], seed: int) -> float:
    """Bits per dimension of held-out pictures for a flow trained briefly.

    Args:
        step: layers of a step of the flow, see `Flow`.
        seed: seed of weights, batches and noise.

    Returns:
        Mean over the pictures.
    """
    train, test = _grey("train", TRAIN), _grey("test", HELD_OUT)
    torch.manual_seed(seed)
    depth, width, size = (1, 4, 2) if rehearsing() else (DEPTH, WIDTH, BATCH)
    flow = Flow(levels=2, depth=depth, width=width, step=step)

    def batch(number: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1_000_003 * (seed + 1) + number)
        pixels = train[torch.randint(len(train), (size,), generator=generator)]
        return pixels, torch.rand(pixels.shape, generator=generator)

    short_run(flow, batch, lambda _, given: flow.bits(*given).mean(), steps=STEPS, lr=5e-3, clip=1.0)
    noise = torch.rand(test.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        parts = [flow.bits(test[at : at + 100], noise[at : at + 100]) for at in range(0, len(test), 100)]
    return float(torch.cat(parts).mean())


def drawn_flow(
    step: Callable[..., Sequence[nn.Module]], *, in_channels: int = 1, depth: int = 2, width: int = 8
) -> Flow:
    """A flow that is no longer near the identity.

    Args:
        step: layers of a step of the flow, see `Flow`.
        in_channels: channels of the pictures.
        depth: number of steps at each level.
        width: channels inside the couplings.

    Returns:
        The flow with normal numbers added to all parameters, in eval mode.
    """
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    flow = Flow(in_channels=in_channels, levels=2, depth=depth, width=width, step=step).eval()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.03)
    return flow


def log_dets(step: Callable[..., Sequence[nn.Module]], *, dense: bool) -> Tensor:
    """Logarithms of the determinants of small flows and pictures of 8×8.

    Args:
        step: layers of a step of the flow, see `Flow`.
        dense: whether they are those of the Jacobian that autograd gives, else what the flow says.

    Returns:
        (3,), float64.
    """
    flow = drawn_flow(step).double()
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.5
    if not dense:
        with torch.no_grad():
            return flow(x)[1]

    def latents(picture: Tensor) -> Tensor:
        return torch.cat([z.flatten() for z in flow(picture.view(1, 1, 8, 8))[0]])

    matrices = [torch.autograd.functional.jacobian(latents, picture.flatten()) for picture in x]
    return torch.stack(matrices).slogdet()[1]
