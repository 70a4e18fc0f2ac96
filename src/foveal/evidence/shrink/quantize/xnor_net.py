"""Evidence for XNOR-Net: exact bits, bytes, time, and CIFAR-10 against the real network and against BinaryNet.

BinaryNet (M. Courbariaux et al., arXiv:1602.02830) trains the same layers without scales: all weights are signs, those
of the first and the last layer too, real weights are clipped to [−1, 1], and pooling and normalisation stand between a
convolution and the next sign.

All networks train at a learning rate of 5e-3, the better of two for the rival. One seed of 300 steps, in percent:

    learning rate   real    BWN    XNOR-Net   BinaryNet
    2e-3            59.7    57.1   50.5       44.9
    5e-3            60.9    58.6   50.4       50.0
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached
from foveal.evidence.tasks import cifar10
from foveal.ops.xnor import pack_signs, sign, xnor_conv2d
from foveal.record import bound, equal, faster, kept
from foveal.shrink.quantize.fake import quantized_layers
from foveal.shrink.quantize.packed import packed_bytes
from foveal.shrink.quantize.xnor_net import XNORNet, packed_, speed_up, xnor_block

if TYPE_CHECKING:
    from collections.abc import Callable

    from foveal.record import Claim

STEPS, RATE = 300, 5e-3
WIDTHS = (32, 64, 128, 128)
DATA = f"{STEPS} steps of 64 on CIFAR-10, the first 2,000 test pictures"


def _layers(*, signs: bool) -> nn.Module:
    """A VGG-like network of six layers: 16×16 pixels after the first convolution, then pooled three times."""
    blocks = [
        xnor_block(nn.Conv2d(c, d, 3, padding=1, bias=False), nn.MaxPool2d(2), activation=None if signs else nn.ReLU())
        for c, d in pairwise(WIDTHS)
    ]
    last = WIDTHS[-1]
    return nn.Sequential(
        nn.Conv2d(3, WIDTHS[0], 3, 2, 1, bias=False),
        *blocks,
        nn.BatchNorm2d(last),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * last, 10),
    )


def _real() -> nn.Module:
    return _layers(signs=False)


def _bwn() -> nn.Module:
    return XNORNet(inputs=False).apply(_layers(signs=False))


def _xnor(*, scale_inputs: bool = True) -> nn.Module:
    return XNORNet(scale_inputs=scale_inputs).apply(_layers(signs=True))


class _Signed(nn.Module):
    """A layer of BinaryNet: weights are signs, and real weights are clipped while it trains."""

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        weight = self.layer.weight
        if self.training:
            with torch.no_grad():
                weight.clamp_(-1, 1)
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, sign(weight))
        return F.conv2d(x, sign(weight), None, self.layer.stride, self.layer.padding)


class _Sign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return sign(x)


def _binary_net(*, real_ends: bool = False) -> nn.Module:
    """The layers of `_layers` in BinaryNet's order: convolution, pooling, normalisation, sign."""
    last = 4 * WIDTHS[-1]
    first, head = nn.Conv2d(3, WIDTHS[0], 3, 2, 1, bias=False), nn.Linear(last, 10, bias=real_ends)
    parts: list[nn.Module] = [first if real_ends else _Signed(first), nn.BatchNorm2d(WIDTHS[0]), _Sign()]
    for c, d in pairwise(WIDTHS):
        conv = _Signed(nn.Conv2d(c, d, 3, padding=1, bias=False))
        parts += [conv, nn.MaxPool2d(2), nn.BatchNorm2d(d), _Sign()]
    end = [head] if real_ends else [_Signed(head), nn.BatchNorm1d(10)]
    return nn.Sequential(*parts, nn.Flatten(), *end)


@cached(maxsize=16)
def _accuracy(build: Callable[[], nn.Module], seed: int) -> float:
    return cifar10.accuracy(cifar10.train_classifier(build, steps=STEPS, seed=seed, lr=RATE))


def _better(
    says: str, build: Callable[[], nn.Module], than: Callable[[], nn.Module], *, by: float, paper: str, **words: object
) -> Claim:
    return kept(
        says,
        paper=paper,
        quality=lambda seed: _accuracy(build, seed) - _accuracy(than, seed),
        at_least=by,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        **words,  # type: ignore[arg-type]
    )


def _convolution(channels: int = 100) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, 15, 13, generator=generator), torch.randn(48, channels, 3, 3, generator=generator)


def _trained_network(*, packed: bool) -> Tensor:
    """Outputs of a network of xnor layers with normalisations that have seen data, as trained or in bits."""
    torch.manual_seed(0)
    model, x = _xnor(), torch.randn(8, 3, 32, 32)
    model(x)
    with torch.no_grad():
        return (packed_(model) if packed else model.eval())(x)


def _bytes() -> Tensor:
    """Bytes of the binary layers in a packed file."""
    whole = _xnor()
    layers = [layer for _, layer in quantized_layers(whole)]
    return torch.tensor(float(sum(packed_bytes(layer) for layer in layers)))


def _thirty_second() -> Tensor:
    weights = [layer.layer.weight for _, layer in quantized_layers(_xnor())]
    return torch.tensor(float(sum(4 * w.numel() / 32 + 4 * w.shape[0] for w in weights)))


def _in_bits() -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, words = torch.randn(1, 256, 14, 14, generator=generator), pack_signs(torch.randn(256, 256, 3, 3))

    def run() -> Tensor:
        with torch.inference_mode():
            return xnor_conv2d(x, words, padding=1)

    return run


def _in_floats() -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(1, 256, 14, 14, generator=generator), torch.randn(256, 256, 3, 3)

    def run() -> Tensor:
        with torch.inference_mode():
            return F.conv2d(x, weight, padding=1)

    return run


CLAIMS = (
    equal(
        "A convolution of packed signs is that of float signs, to the bit.",
        ours=lambda: xnor_conv2d(_convolution()[0], pack_signs(_convolution()[1]), padding=1),
        theirs=lambda: F.conv2d(sign(_convolution()[0]), sign(_convolution()[1]), padding=1),
        tolerance=0.0,
        clause=1,
    ),
    equal(
        "A network with its weights in bits computes what it computed in training.",
        ours=partial(_trained_network, packed=True),
        theirs=partial(_trained_network, packed=False),
        beyond="inference in bits",
    ),
    equal(
        "Binary layers take a 32nd of the bytes of their float weights, and one float for each filter.",
        paper="32× smaller",
        ours=_bytes,
        theirs=_thirty_second,
        tolerance=0.0,
        clause=2,
    ),
    faster(
        "A 3×3 convolution of 256 channels in bits, packing included, against torch's in float32, on one thread.",
        paper="58× on a CPU of 2016",
        ours=_in_bits,
        theirs=_in_floats,
        at_least=2.0,
        threads=1,
        clause=3,
    ),
    bound(
        "The theoretical gain of a 3×3 convolution of 256 channels is 62.27.",
        paper="62.27×",
        value=lambda: speed_up(256),
        at_least=62.265,
        at_most=62.275,
        beyond="theoretical speed",
    ),
    _better(
        "Binary weights lose at most 2 points of accuracy.",
        _bwn,
        _real,
        by=-2.0,
        paper="56.8% against 56.6% top-1, AlexNet",
        clause=4,
    ),
    _better(
        "XNOR-Net is at least 3 points more accurate than BinaryNet on the same layers.",
        _xnor,
        _binary_net,
        by=3.0,
        paper="44.2% against 27.9% top-1, AlexNet",
        clause=5,
    ),
    _better(
        "XNOR-Net is more accurate than BinaryNet with its first and last layers real, too.",
        _xnor,
        partial(_binary_net, real_ends=True),
        by=0.0,
        paper="",
        beyond="accuracy by the scales and the order of the block alone",
    ),
)
