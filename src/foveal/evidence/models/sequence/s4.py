"""Evidence of foveal.models.sequence.s4."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foveal.evidence.rivals.recurrent import attention_step
from foveal.models.sequence._layers import as_complex
from foveal.models.sequence.s4 import S4, _both, discretize_nplr, s4_classifier, s4_kernel
from foveal.record import equal, faster, kept, params

if TYPE_CHECKING:
    from collections.abc import Callable


class _Ssm(nn.Module):
    """The state-space part of a layer, without what follows the convolution."""

    def __init__(self, layer: S4) -> None:
        super().__init__()
        self.parts = nn.ParameterList(p for name, p in layer.named_parameters() if not name.startswith("out"))


def _small(*, states: int = 32, max_length: int = 512) -> S4:
    torch.manual_seed(0)
    return S4(4, states=states, max_length=max_length).double()


def _powers() -> Tensor:
    """C Ā^l B̄ for 512 places, one matrix product after another."""
    layer = _small()
    with torch.inference_mode():
        matrix, now = discretize_nplr(*layer._system())
        leaving, found = _both(layer.recurrence()[-1]), []
        for _ in range(512):
            found.append((leaving * now).sum(-1).real)
            now = (matrix @ now[..., None])[..., 0]
    return torch.stack(found, -1)


def _modes(*, recurrent: bool) -> Tensor:
    """A layer's output by its kernel, or step by step, (2, 4, 512)."""
    layer, x = _small(), torch.randn(2, 4, 512, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        if not recurrent:
            return layer(x)
        state, matrices, outputs = layer.initial_state(2), layer.recurrence(), []
        for place in x.unbind(2):
            out, state = layer.step(place, state, matrices)
            outputs.append(out)
        return torch.stack(outputs, 2)


def _kernels(length: int, times: int) -> Callable[[], Tensor]:
    """So many kernels of one channel, one after the other."""
    layer = S4(1, states=64, max_length=256)
    with torch.inference_mode():
        eigenvalues, low, entering, step = layer._system()
        leaving = as_complex(layer.leaving)

    def call() -> Tensor:
        with torch.inference_mode():
            for _ in range(times):
                kernel = s4_kernel(eigenvalues, low, entering, leaving, step, length)
        return kernel

    return call


def _step() -> Callable[[], Tensor]:
    """One place through a layer of width 256; what came before is in the state."""
    torch.manual_seed(0)
    layer, x = S4(256, max_length=64).eval(), torch.randn(1, 256)
    with torch.inference_mode():
        matrices, state = layer.recurrence(), layer.initial_state(1)

    def call() -> Tensor:
        with torch.inference_mode():
            return layer.step(x, state, matrices)[0]

    return call


@lru_cache(maxsize=4)
def _digits(seed: int) -> float:
    """Accuracy on the digits' test pictures, percent."""
    from foveal.evidence.tasks.cifar10 import accuracy, train_classifier
    from foveal.evidence.tasks.digits import digits

    def build() -> nn.Module:
        return s4_classifier(in_channels=1, dim=32, depth=2, states=32, max_length=256, prenorm=True)

    model = train_classifier(build, steps=800, seed=seed, data=digits("train"), flip=False, lr=1e-2, weight_decay=0.01)
    return accuracy(model, digits("test"))


CLAIMS = (
    params(
        "A feature has 4N numbers (Λ, P, B and C), Δ and the skip: 256 features of 64 states.",
        paper="5N with Q apart from P",
        model=lambda: _Ssm(S4(256)),
        expect=256 * (4 * 64 + 2),
    ),
    equal(
        "The Cauchy sums with Woodbury's correction equal C Ā^l B̄ by powers, in double precision.",
        ours=lambda: _small().kernel(512).detach(),
        theirs=_powers,
        tolerance=1e-10,
    ),
    equal(
        "The convolution equals the recurrence.",
        ours=lambda: _modes(recurrent=False),
        theirs=lambda: _modes(recurrent=True),
        tolerance=1e-10,
    ),
    faster(
        "A kernel of 16K places takes at most twice as long as 16 kernels of 1K.",
        paper="O(N + L) up to logarithms",
        ours=lambda: _kernels(16384, 1),
        theirs=lambda: _kernels(1024, 16),
        at_least=0.5,
    ),
    faster(
        "A step of generation takes less time than attention to 16K places of the same width.",
        paper="60 times faster than transformers",
        ours=_step,
        theirs=lambda: attention_step(1, 16384, 256),
    ),
    kept(
        "It learns sequential digits in minutes.",
        paper="91% on sequential CIFAR-10, 99.6% on sequential MNIST, trained for hours",
        quality=_digits,
        at_least=97.0,
        unit="%",
        data="1,000 digits drawn in 17 fonts, turned, slanted, scaled and noisy, 16×16, read as 256 places",
        needs=("minutes",),
    ),
)
