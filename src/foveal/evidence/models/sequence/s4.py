"""Evidence for S4: kernel against powers of the matrix, step against attention, accuracy against an LSTM."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foveal.evidence.rivals.recurrent import attention_step
from foveal.evidence.tasks import digits
from foveal.evidence.timing import seconds
from foveal.models.sequence._layers import as_complex
from foveal.models.sequence.s4 import S4, _both, discretize_nplr, s4_classifier, s4_kernel
from foveal.record import equal, faster, grows, params

if TYPE_CHECKING:
    from collections.abc import Callable

small = partial(s4_classifier, in_channels=1, dim=32, depth=2, states=32, max_length=256, prenorm=True)
STEPS = 800


class LSTM(nn.Module):
    """Two LSTM layers over a picture read row by row, the mean over positions, and a linear classifier.

    Args:
        dim: number of channels, C.
    """

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.layers, self.head = nn.LSTM(1, dim, num_layers=2, batch_first=True), nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x.flatten(2).transpose(1, 2))[0].mean(1))


def _layer() -> S4:
    torch.manual_seed(0)
    return S4(4, states=32, max_length=512).double()


def _powers() -> Tensor:
    """C Ā^l B̄ at 512 positions, by one matrix product after another."""
    layer = _layer()
    with torch.inference_mode():
        matrix, now = discretize_nplr(*layer._system())
        leaving, found = _both(layer.recurrence()[-1]), []
        for _ in range(512):
            found.append((leaving * now).sum(-1).real)
            now = (matrix @ now[..., None])[..., 0]
    return torch.stack(found, -1)


def _modes(*, recurrent: bool) -> Tensor:
    """A layer's output by its kernel or step by step, (2, 4, 512)."""
    layer, x = _layer(), torch.randn(2, 4, 512, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        if not recurrent:
            return layer(x)
        state, matrices, outputs = layer.initial_state(2), layer.recurrence(), []
        for place in x.unbind(2):
            out, state = layer.step(place, state, matrices)
            outputs.append(out)
        return torch.stack(outputs, 2)


def _kernel_seconds(length: int) -> float:
    """Time of one channel's kernel; always 16K positions per call, so that the cost of memory is the same for all."""
    torch.manual_seed(0)
    channels = 16384 // length
    layer = S4(channels, states=64, max_length=256)
    with torch.inference_mode():
        eigenvalues, low, entering, step = layer._system()
        leaving = as_complex(layer.leaving)

    def call() -> Tensor:
        with torch.inference_mode():
            return s4_kernel(eigenvalues, low, entering, leaving, step, length)

    return seconds(lambda: call) / channels


def _step() -> Callable[[], Tensor]:
    """One step of a layer of width 256; the past is in the state."""
    torch.manual_seed(0)
    layer, x = S4(256, max_length=64).eval(), torch.randn(1, 256)
    with torch.inference_mode():
        matrices, state = layer.recurrence(), layer.initial_state(1)

    def call() -> Tensor:
        with torch.inference_mode():
            return layer.step(x, state, matrices)[0]

    return call


CLAIMS = (
    params(
        "A feature of N = 64 has 4N numbers (Λ, P, B and C), Δ and the skip; 256 of them are mapped to 512 outputs.",
        paper="layer sizes",
        model=partial(S4, 256),
        expect=256 * (4 * 64 + 2) + 512 * 257,
        beyond="parameters of a feature",
    ),
    equal(
        "The Cauchy sums with Woodbury's correction equal C Ā^l B̄ by powers, in double precision.",
        ours=lambda: _layer().kernel(512).detach(),
        theirs=_powers,
        tolerance=1e-10,
        clause=1,
    ),
    equal(
        "The convolution equals the recurrence.",
        ours=partial(_modes, recurrent=False),
        theirs=partial(_modes, recurrent=True),
        tolerance=1e-10,
        clause=2,
    ),
    grows(
        "The time of a kernel of 64 states is proportional to its length, from 1K to 16K places.",
        paper="O(N + L) up to logarithms",
        cost=_kernel_seconds,
        sizes=(1024, 2048, 4096, 8192, 16384),
        exponent=(0.8, 1.2),
        rounds=7,
        clause=3,
    ),
    faster(
        "A step of generation takes less time than attention to 16K places of the same width.",
        paper="60 times faster than transformers",
        ours=_step,
        theirs=partial(attention_step, 1, 16384, 256),
        beyond="generation faster than transformers",
    ),
    digits.above(
        small,
        f"After {STEPS} steps it names more than 97% of sequential digits.",
        steps=STEPS,
        at_least=97.0,
        paper="91% on sequential CIFAR-10, 99.6% on sequential MNIST, trained for hours",
        clause=4,
    ),
    digits.better(
        small,
        "On sequential digits it is more accurate than an LSTM of the same width and depth after as many steps.",
        than=LSTM,
        steps=STEPS,
        paper="91% on sequential CIFAR-10, above the recurrent networks of its table",
        beyond="above recurrent networks",
    ),
)
