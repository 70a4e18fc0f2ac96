"""Evidence for S4D: convolution against recurrence, diagonal against full HiPPO, Lin against random initialisation."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from foveal.evidence.tasks import digits
from foveal.models.sequence._layers import hippo
from foveal.models.sequence.s4d import S4D, s4d_classifier
from foveal.record import equal, grows, params

small = partial(s4d_classifier, in_channels=1, dim=32, depth=2, states=32, prenorm=True)
random_start = partial(small, init="random")


def _modes(discretization: str, *, recurrent: bool) -> Tensor:
    """A convolution's output by its kernel or step by step, double precision, (2, 4, 300)."""
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


def step_gap(states: int) -> float:
    """Distance between the step responses of the diagonal and the full HiPPO-LegS, over its first four states.

    The kernel itself has fast oscillations, which no input excites; theorem 3 halves B. HiPPO's matrix is triangular,
    so its first four states form a system of their own.

    Args:
        states: number of states, N.

    Returns:
        Norm of the difference over the norm of HiPPO's response, mean over the four states.
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


CLAIMS = (
    params(
        "The authors' example for CIFAR-10: four layers of width 128 with 64 states.",
        paper="authors' code",
        model=s4d_classifier,
        expect=201_482,
        beyond="the example of the authors' code",
    ),
    equal(
        "Zero-order hold: the convolution equals the recurrence.",
        ours=partial(_modes, "zoh", recurrent=False),
        theirs=partial(_modes, "zoh", recurrent=True),
        tolerance=1e-10,
        clause=1,
    ),
    equal(
        "Bilinear: the convolution equals the recurrence.",
        ours=partial(_modes, "bilinear", recurrent=False),
        theirs=partial(_modes, "bilinear", recurrent=True),
        tolerance=1e-10,
        clause=1,
    ),
    grows(
        "From 8 to 256 states the distance of the step response to that of all of HiPPO falls at least like 1 / N.",
        paper="equal in the limit, theorem 3",
        cost=step_gap,
        sizes=(8, 16, 32, 64, 128, 256),
        exponent=(-4.0, -1.0),
        clause=2,
    ),
    digits.better(
        small,
        "On sequential digits the Lin start is better than the random one after as many steps.",
        than=random_start,
        steps=600,
        paper="85% against 77% on average over LRA",
        clause=3,
    ),
)
