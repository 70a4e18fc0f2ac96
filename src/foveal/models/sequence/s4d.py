"""S4D: a state-space layer with a diagonal state matrix; its kernel takes two lines of code.

*Source*: A. Gu et al., "On the Parameterization and Initialization of Diagonal State Space Models", NeurIPS 2022
(arXiv:2206.11893), sections 3 and 4. Each channel has its own step Δ and stores N/2 of N complex states, the others
being conjugates; the real part of A is kept negative by an exponential; B is 1.

    zero-order hold:  Ā = exp(ΔA),                 B̄ = (Ā - 1) / A
    bilinear:         Ā = (1 + ΔA/2) / (1 - ΔA/2), B̄ = Δ / (1 - ΔA/2)
    kernel:     K_l = 2 Re Σ_n C_n B̄_n Ā_n^l                         a Vandermonde product, (C, L)
    recurrence: x_t = Ā ∘ x_{t-1} + B̄ u_t,   y_t = 2 Re Σ_n C_n x_n + D u_t

Initial A, n from 0: Lin, -½ + iπn; Inv, -½ + i(N/π)(N/(2n+1) - 1); LegS, the normal part of HiPPO-LegS; Random, -½ with
exp(normal) as imaginary part.

*Differs from the paper*: the kernel takes O(N·L) memory, as in the paper's two lines; its O(N + L) kernel is not
implemented.

*Provenance*: written from the paper; the layers after the convolution and the random initialisation were looked up in
the authors' code.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from foveal.models.sequence._layers import SequenceClassifier, as_complex, as_real, gated_output, hippo, log_steps
from foveal.ops.long_conv import long_conv
from foveal.record import Method, Paper

__all__ = ["S4D", "discretize", "initial_a", "s4d_classifier", "s4d_kernel"]

INITS = ("lin", "inv", "legs", "random")
DISCRETIZATIONS = ("zoh", "bilinear")


def initial_a(init: str, states: int, dim: int = 1) -> Tensor:
    """Initial state matrices.

    Args:
        init: "lin", "inv", "legs" or "random".
        states: N, even.
        dim: C, number of channels.

    Returns:
        A, (C, N/2), complex128.

    Raises:
        ValueError: if the initialisation is unknown or `states` is odd.
    """
    if init not in INITS:
        raise ValueError(f"init must be one of {', '.join(INITS)}, got {init!r}")
    if states < 2 or states % 2:
        raise ValueError(f"states must be even, they come in conjugate pairs, got {states}")
    n = torch.arange(states // 2, dtype=torch.float64)
    if init == "lin":
        imaginary = math.pi * n
    elif init == "inv":
        imaginary = states / math.pi * (states / (2 * n + 1) - 1)
    elif init == "legs":
        imaginary = hippo(states)[0].imag
    else:
        imaginary = torch.randn(dim, states // 2, dtype=torch.float64).exp()
    return torch.complex(torch.full((dim, states // 2), -0.5, dtype=torch.float64), imaginary.expand(dim, -1).clone())


def discretize(A: Tensor, step: Tensor, how: str) -> tuple[Tensor, Tensor]:  # noqa: N803 - the paper's letters
    """The matrices of the recurrence.

    Args:
        A: state matrix, (C, N/2), complex.
        step: Δ, (C,), positive.
        how: "zoh" or "bilinear".

    Returns:
        Ā and B̄, (C, N/2), complex, for B = 1.

    Raises:
        ValueError: if the discretisation is unknown.
    """
    if how not in DISCRETIZATIONS:
        raise ValueError(f"discretization must be one of {', '.join(DISCRETIZATIONS)}, got {how!r}")
    scaled = A * step[:, None]
    if how == "zoh":
        decay = torch.exp(scaled)
        return decay, (decay - 1) / A
    below = 1 / (1 - scaled / 2)
    return (1 + scaled / 2) * below, step[:, None] * below


def s4d_kernel(decay: Tensor, weights: Tensor, length: int) -> Tensor:
    """K_l = 2 Re Σ_n w_n Ā_n^l.

    Args:
        decay: Ā, (C, N/2), complex.
        weights: w = C ∘ B̄, (C, N/2), complex.
        length: L.

    Returns:
        Kernel, (C, L), real.
    """
    powers = torch.exp(torch.log(decay)[..., None] * torch.arange(length, device=decay.device))
    return 2 * (weights[:, None] @ powers)[:, 0].real


class S4D(nn.Module):
    """Convolution with an S4D kernel, GELU, a position-wise map and a gate; (B, C, L) to (B, C, L).

    Args:
        dim: C.
        states: N, even.
        init: "lin", "inv", "legs" or "random".
        discretization: "zoh" or "bilinear".
        dropout: dropout probability.
        step_range: smallest and largest Δ.

    Raises:
        ValueError: if the initialisation or discretisation is unknown, or `states` is odd.
    """

    def __init__(
        self,
        dim: int,
        *,
        states: int = 64,
        init: str = "lin",
        discretization: str = "zoh",
        dropout: float = 0.0,
        step_range: tuple[float, float] = (0.001, 0.1),
    ) -> None:
        super().__init__()
        A = initial_a(init, states, dim)  # noqa: N806
        discretize(A, torch.ones(dim), discretization)
        self.discretization = discretization
        self.log_step = nn.Parameter(log_steps(dim, *step_range))
        self.log_decay = nn.Parameter(torch.log(-A.real).to(torch.get_default_dtype()))
        self.frequency = nn.Parameter(A.imag.to(torch.get_default_dtype()))
        self.weights = nn.Parameter(as_real(torch.randn(dim, states // 2, dtype=torch.cfloat)))
        self.skip = nn.Parameter(torch.randn(dim))
        self.out = gated_output(dim, dim, dropout)

    def recurrence(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ā, B̄ and C of the recurrent form.

        Returns:
            Three complex tensors, (C, N/2).
        """
        A = torch.complex(-self.log_decay.exp(), self.frequency)  # noqa: N806
        return *discretize(A, self.log_step.exp(), self.discretization), as_complex(self.weights)

    def kernel(self, length: int) -> Tensor:
        """The convolution's weights.

        Args:
            length: L.

        Returns:
            (C, L).
        """
        decay, entering, leaving = self.recurrence()
        return s4d_kernel(decay, leaving * entering, length)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(long_conv(x, self.kernel(x.shape[2]), self.skip))

    def initial_state(self, batch: int) -> Tensor:
        """The state before the first step.

        Args:
            batch: B.

        Returns:
            Zeros, (B, C, N/2), complex.
        """
        return as_complex(self.weights).new_zeros(batch, *self.weights.shape[:2])

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Process one position of the sequence recurrently.

        Args:
            x: input, (B, C).
            state: state before the step, (B, C, N/2), complex.

        Returns:
            Output, (B, C), equal to the forward pass at that position; the state after it.
        """
        decay, entering, leaving = self.recurrence()
        state = decay * state + entering * x[..., None]
        y = 2 * (leaving * state).sum(-1).real + self.skip * x
        return self.out(y[..., None])[..., 0], state


s4d_classifier = partial(SequenceClassifier, S4D)  # the authors' example for CIFAR-10; also takes S4D's arguments

METHOD = Method(
    id=332,
    name="S4D",
    kind="model",
    summary="A state-space layer with a diagonal matrix, whose convolution kernel is a Vandermonde product.",
    paper=Paper(
        "On the Parameterization and Initialization of Diagonal State Space Models",
        "A. Gu et al.",
        2022,
        "arXiv:2206.11893",
    ),
    models={"s4d_classifier": s4d_classifier},
    cases={"s4d_classifier": {"dim": 6, "depth": 1, "states": 4}},
)
