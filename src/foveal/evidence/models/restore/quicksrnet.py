"""Evidence of foveal.models.restore.quicksrnet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.models.restore.quicksrnet import quicksrnet_small
from foveal.record import equal, faster, kept, params

if TYPE_CHECKING:
    from collections.abc import Callable


def _folding(*, fold: bool) -> Tensor:
    torch.manual_seed(0)
    network = quicksrnet_small(folded=False).eval()
    x = torch.rand(2, 3, 33, 47)
    with torch.inference_mode():
        return (network.fold() if fold else network)(x)


def _timed(model: nn.Module) -> Callable[[], Any]:
    x = torch.rand(1, 3, 540, 960)

    def call() -> Tensor:
        with torch.inference_mode():
            return model(x)

    return call


def _safmn() -> Callable[[], Any]:
    from foveal.models.restore.safmn import safmn

    return _timed(safmn(2).eval())


def _trained(seed: int) -> nn.Module:
    from foveal.evidence.tasks.photos import trained

    return trained(quicksrnet_small, 2, steps=2500, seed=seed)


def _gain(seed: int) -> float:
    from foveal.evidence.tasks.photos import gain

    return gain(_trained(seed), 2)


def _int8_change(seed: int) -> float:
    from foveal.train.brief import gain, quantized

    model = _trained(seed)
    return gain(quantized(model, 2, seed=seed), 2) - gain(model, 2)


_DATA = "trained on BSDS500 without BSD100; Set5, Set14 and BSD100, ×2, luminance PSNR, shave 2"


_NEEDS = ("minutes", "bsds400", "Set5", "Set14", "BSD100")


CLAIMS = (
    params(
        "Small at ×2: 22,752 weights and 108 biases in four convolutions.",
        paper="layer sizes",
        model=quicksrnet_small,
        expect=22_860,
    ),
    equal(
        "Folding the residual start into the weights leaves the outputs equal.",
        ours=lambda: _folding(fold=True),
        theirs=lambda: _folding(fold=False),
        tolerance=1e-5,
    ),
    faster(
        "Small enlarges 960×540 to 1920×1080 in less time than SAFMN.",
        paper="2.2 ms on a phone's accelerator",
        ours=lambda: _timed(quicksrnet_small(2).eval()),
        theirs=_safmn,
    ),
    kept(
        "After a minute of training, Small ×2 is at least 0.5 dB above bicubic on pictures it has not seen.",
        paper="",
        quality=_gain,
        at_least=0.5,
        data=_DATA,
        needs=_NEEDS,
    ),
    kept(
        "Eight-bit weights and activations cost at most 0.2 dB.",
        paper="little loss",
        quality=_int8_change,
        at_least=-0.2,
        data=_DATA,
        needs=_NEEDS,
    ),
)
