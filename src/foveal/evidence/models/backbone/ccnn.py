"""Evidence for CCNN: one configuration in three dimensions, both convolutions, and digits at twice the resolution.

Digits of MNIST are classified at 14×14 pixels and then, by the same weights, as they are, at 28×28. A network that did
not learn would lose nothing either, so a floor stands beside the loss, and so does what the same network loses when its
kernels keep their taps and see half as far.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached
from foveal.evidence.tasks import cifar10, mnist
from foveal.evidence.tasks.pixel_sequences import halved
from foveal.measure.paired import interleaved, ratio
from foveal.models.backbone.ccnn import CCNN, ccnn_4_140, ccnn_6_380
from foveal.nn.global_conv import FFT_TAPS, direct_conv, fft_conv
from foveal.record import bound, equal, faster, kept, params

if TYPE_CHECKING:
    from collections.abc import Callable

NEEDS = mnist.NEEDS
STEPS = 500
CONFIGURATION: dict[str, Any] = {
    "dim": 8,
    "depth": 2,
    "kernel_size": 9,
    "hidden": 8,
    "in_channels": 2,
    "num_classes": 5,
}
SIDES = (5, 9, 11, 13, 15, 17, 21, 27)
BUILD = partial(CCNN, 24, 2, kernel_size=27, hidden=16, mask_width=0.2, in_channels=1, num_classes=10)


def dimensions_that_learn() -> float:
    """In how many dimensions the one configuration gives finite logits and every parameter a gradient.

    Returns:
        0 to 3.
    """
    count = 0
    for data_dim in (1, 2, 3):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, x = CCNN(data_dim=data_dim, **CONFIGURATION), torch.randn(3, 2, *(9, 7, 5)[:data_dim])
        out = model(x)
        out.square().sum().backward()
        # a bias under a norm has a gradient of 0, but for rounding
        learns = all(
            value.grad is not None and value.grad.isfinite().all() and (value.ndim < 2 or value.grad.any())
            for value in model.parameters()
        )
        count += bool(out.shape == (3, 5) and out.isfinite().all() and learns)
    return float(count)


def embedded(model: CCNN, configuration: dict[str, Any]) -> CCNN:
    """The network of one dimension more with the weights of another, blind along the first axis.

    Args:
        model: of one or two dimensions.
        configuration: its other arguments.

    Returns:
        Network in the mode and type of the first.
    """
    wider = CCNN(data_dim=model.data_dim + 1, **configuration).to(model.norm.weight).train(model.training)
    state, own = model.state_dict(), wider.state_dict()
    for name, value in state.items():
        if value.shape != own[name].shape:
            # centres and waves of the new axis are 0; its sharpness and mask may be anything
            fill = 1.0 if name.endswith(("sharpness", "mask_width")) else 0.0
            state[name] = torch.cat([torch.full_like(value[..., :1], fill), value], -1)
    wider.load_state_dict(state)
    return wider


@torch.no_grad()
def _sequence(data_dim: int) -> Tensor:
    """Logits of sequences, seen as pictures of one row or volumes of one plane of one row."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = CCNN(data_dim=1, **CONFIGURATION).eval(), torch.randn(4, 2, 12)
        for _ in range(data_dim - 1):
            model, x = embedded(model, CONFIGURATION), x[:, :, None]
    return model(x)


@torch.no_grad()
def _logits(data_dim: int, *, fft: bool) -> Tensor:
    """A network whose kernels see the whole input."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        size = {1: 513, 2: 31, 3: 9}[data_dim]
        model = CCNN(16, 2, data_dim=data_dim, kernel_size=size, mask_width=0.5, num_classes=7).eval()
        x = torch.randn(2, 3, *[size // 2 + 1] * data_dim)
    return model(x, fft=fft)


def _convolving(way: Callable[[Tensor, Tensor], Tensor], taps: int, *sizes: int) -> Callable[[], Any]:
    """Eight samples of 32 channels and kernels of as many taps along each axis."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 32, *sizes, generator=generator)
    kernel = torch.randn(32, *[taps] * len(sizes), generator=generator)

    def run() -> Tensor:
        with torch.inference_mode():
            return way(x, kernel)

    return run


def crossover() -> float:
    """The side of a kernel from which Fourier transforms take less time on 28×28 places, at it and all greater ones.

    Returns:
        One of `SIDES`; twice the last if they never do.
    """
    found = 2.0 * SIDES[-1]
    for side in reversed(SIDES):
        direct, fast = interleaved([_convolving(way, side, 28, 28) for way in (direct_conv, fft_conv)], pairs=7)
        if ratio(fast, direct).median >= 1:
            break
        found = float(side)
    return found


@cached(maxsize=4)
def _digits(part: str, *, whole: bool) -> tuple[Tensor, Tensor]:
    """Digits, (n, 1, 14, 14) or (n, 1, 28, 28), and labels; the first 2,000 to test."""
    pictures, labels = (torch.from_numpy(value) for value in mnist.digits(part))
    if part == "test":
        pictures, labels = pictures[:2000], labels[:2000]
    small = halved(pictures)
    return ((pictures[:, None].float() / 255 - 0.13) / 0.27 if whole else small), labels


class _At(nn.Module):
    """A network read at a resolution: one input, as the counting takes it."""

    def __init__(self, network: nn.Module, resolution: float) -> None:
        super().__init__()
        self.network, self.resolution = network, resolution

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x, self.resolution)
        return logits


@cached(maxsize=8)
def _network(seed: int) -> nn.Module:
    return cifar10.train_classifier(
        BUILD, steps=STEPS, seed=seed, data=_digits("train", whole=False), flip=False, lr=1e-2, weight_decay=0.0
    )


@cached(maxsize=24)
def _accuracy(seed: int, resolution: float, *, whole: bool) -> float:
    return cifar10.accuracy(_At(_network(seed), resolution), _digits("test", whole=whole))


def _kept(seed: int) -> float:
    return _accuracy(seed, 2.0, whole=True) - _accuracy(seed, 1.0, whole=False)


def _by_resampling(seed: int) -> float:
    return _accuracy(seed, 2.0, whole=True) - _accuracy(seed, 1.0, whole=True)


WORDS: dict[str, Any] = {
    "unit": "points",
    "data": f"MNIST, trained at 14×14, {STEPS} steps of 64, the first 2,000 test digits",
    "needs": NEEDS,
}
CLAIMS = (
    bound(
        "One configuration gives logits, and all of its parameters gradients, in one, two and three dimensions.",
        paper="the same architecture for 1D, 2D and 3D",
        value=dimensions_that_learn,
        at_least=3.0,
        unit="dimensions",
        clause=1,
    ),
    *(
        equal(
            f"The network of {data_dim} dimensions reads a sequence as that of one does with the same weights.",
            ours=partial(_sequence, data_dim),
            theirs=partial(_sequence, 1),
            clause=1,
        )
        for data_dim in (2, 3)
    ),
    *(
        params(f"{name} for ten classes.", paper=size, model=model, expect=size, tolerance=0.01, beyond="sizes printed")
        for name, size, model in (
            ("CCNN-4,140", "200 K", partial(ccnn_4_140, num_classes=10)),
            ("CCNN-6,380", "2 M", partial(ccnn_6_380, num_classes=10)),
        )
    ),
    *(
        equal(
            f"Logits by FFT and by direct convolution agree, number of dimensions {data_dim}.",
            ours=partial(_logits, data_dim, fft=True),
            theirs=partial(_logits, data_dim, fft=False),
            tolerance=1e-4,
            clause=2,
        )
        for data_dim in (1, 2, 3)
    ),
    bound(
        f"For pictures the FFT takes less time from some side on, near the {FFT_TAPS[2]} taps from which it is taken.",
        paper="FFT when long; the authors' code takes it from 51 taps a side",
        value=crossover,
        at_least=11.0,
        at_most=21.0,
        unit="taps a side",
        clause=2,
    ),
    faster(
        "For sequences of 256 it takes less time with 65 taps already.",
        paper="FFT when long",
        ours=partial(_convolving, fft_conv, 65, 256),
        theirs=partial(_convolving, direct_conv, 65, 256),
        clause=2,
    ),
    faster(
        "For sequences with 1,023 taps it takes at most half of the time.",
        paper="FFT when long",
        ours=partial(_convolving, fft_conv, 1023, 1024),
        theirs=partial(_convolving, direct_conv, 1023, 1024),
        at_least=2.0,
        clause=2,
    ),
    kept(
        "Read at twice the resolution it is at most five points below.",
        paper="generalises across resolutions",
        quality=_kept,
        at_least=-5.0,
        clause=3,
        **WORDS,
    ),
    kept(
        "At the resolution of training nine of ten digits are right.",
        paper="it learns",
        quality=lambda seed: _accuracy(seed, 1.0, whole=False),
        at_least=90.0,
        clause=3,
        **{**WORDS, "unit": "%"},
    ),
    kept(
        "With kernels that keep their taps it would lose at least ten points more.",
        paper="kernels are functions of coordinates",
        quality=_by_resampling,
        at_least=10.0,
        beyond="another resolution takes other kernels",
        **WORDS,
    ),
)
