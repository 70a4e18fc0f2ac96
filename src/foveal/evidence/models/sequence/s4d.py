"""Evidence of foveal.models.sequence.s4d."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from foveal.models.sequence._layers import hippo
from foveal.models.sequence.s4d import S4D, s4d_classifier
from foveal.record import equal, kept, params, smaller


def _modes(*, recurrent: bool, discretization: str) -> Tensor:
    """A convolution's output by its kernel, or step by step, double precision, (2, 4, 300)."""
    torch.manual_seed(0)
    layer = S4D(4, states=16, discretization=discretization).double()
    x = torch.randn(2, 4, 300, dtype=torch.float64)
    with torch.inference_mode():
        if not recurrent:
            return layer(x)
        state, outputs = layer.initial_state(2), []
        for place in x.unbind(2):
            out, state = layer.step(place, state)
            outputs.append(out)
        return torch.stack(outputs, 2)


def _gap(states: int) -> float:
    """Distance of the step response of the diagonal to that of all of HiPPO-LegS, over its first four states.

    The kernel itself keeps fast oscillations, which no input sees; theorem 3 halves B. HiPPO's matrix is triangular, so
    that its first four states are a system of their own.
    """
    times = torch.arange(801, dtype=torch.float64) / 100
    eigenvalues, _, entering, vectors = hippo(states)
    grown = (torch.exp(eigenvalues[:, None] * times) - 1) / eigenvalues[:, None]
    diagonal = ((vectors[:4] * entering) @ grown).real
    root = torch.sqrt(2 * torch.arange(4, dtype=torch.float64) + 1)
    matrix = -torch.tril(root[:, None] * root) + torch.diag(torch.arange(4, dtype=torch.float64))
    moved = torch.linalg.matrix_exp(matrix * times[:, None, None]) @ root
    full = torch.linalg.solve(matrix, (moved - root).T)
    return float(((diagonal - full).norm(dim=1) / full.norm(dim=1)).mean())


@lru_cache(maxsize=8)
def _digits(init: str, seed: int) -> float:
    """Accuracy on the digits' test pictures, percent."""
    from foveal.evidence.tasks.cifar10 import accuracy, train_classifier
    from foveal.evidence.tasks.digits import digits

    def build() -> nn.Module:
        return s4d_classifier(in_channels=1, dim=32, depth=2, states=32, init=init, prenorm=True)

    model = train_classifier(build, steps=800, seed=seed, data=digits("train"), flip=False, lr=1e-2, weight_decay=0.01)
    return accuracy(model, digits("test"))


CLAIMS = (
    params(
        "The authors' example for CIFAR-10: four layers of width 128 with 64 states.",
        paper="not printed; their example.py builds 201,482",
        model=s4d_classifier,
        expect=201_482,
    ),
    equal(
        "Zero-order hold: the convolution equals the recurrence.",
        ours=lambda: _modes(recurrent=False, discretization="zoh"),
        theirs=lambda: _modes(recurrent=True, discretization="zoh"),
        tolerance=1e-10,
    ),
    equal(
        "Bilinear: the convolution equals the recurrence.",
        ours=lambda: _modes(recurrent=False, discretization="bilinear"),
        theirs=lambda: _modes(recurrent=True, discretization="bilinear"),
        tolerance=1e-10,
    ),
    smaller(
        "Without its low rank HiPPO's response comes close as states grow: distance at 256 against 8 states.",
        paper="equal in the limit, theorem 3",
        ours=lambda: _gap(256),
        theirs=lambda: _gap(8),
        at_least=10,
    ),
    kept(
        "On sequential digits the Lin start is better than the random one after as many steps.",
        paper="85% against 77% on average over LRA",
        quality=lambda seed: _digits("lin", seed) - _digits("random", seed),
        at_least=0.0,
        unit="points",
        data="1,000 digits drawn in 17 fonts, turned, slanted, scaled and noisy, 16×16, read as 256 places",
        needs=("minutes",),
    ),
)
