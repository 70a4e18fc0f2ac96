"""S4: a state-space layer whose matrix is normal plus low rank; its kernel is a Cauchy sum at the roots of unity.

*Source*: A. Gu, K. Goel, C. Ré, "Efficiently Modeling Long Sequences with Structured State Spaces", ICLR 2022
(arXiv:2111.00396), section 3, theorems 2 and 3, algorithm 1, appendix C. Each channel has A = Λ - P P*, B, C and a step
Δ, stored as N/2 of N complex numbers, the others being conjugates; A starts as HiPPO-LegS. Bilinear discretisation:

    Ā = (1 - ΔA/2)⁻¹ (1 + ΔA/2),  B̄ = (1 - ΔA/2)⁻¹ ΔB,  K_l = C Ā^l B̄

The generating function of K_0 … K_{L-1} at the L roots of unity z, with C̃ = C (1 - Ā^L), is, by Woodbury's identity,

    K̂(z) = 2 [ s(C̃, B) - s(C̃, P) (1+z) s(P*, B) / (1 + (1+z) s(P*, P)) ],
    s(v, w) = Σ_n v_n w_n / ( (2/Δ)(1 - z) - Λ_n (1 + z) )

and an inverse FFT gives the kernel. C̃ is learned, for a fixed L; shorter kernels are truncated, and for longer ones C̃
of twice the length is C̃ (1 + Ā^L). The recurrence takes O(N) per step:

    x_t = (2/Δ - A)⁻¹ [ (2/Δ + A) x_{t-1} + 2 B u_t ],  y_t = 2 Re (C x_t) + D u_t

*Differs from the paper*: the sums take O(N·L) memory (the authors' kernels take O(N + L)); P = Q, the later form that
is stable; the layer ends in GELU, a position-wise linear layer and a gate, as in the authors' code.

*Provenance*: written from the paper; the range of Δ and the end of the layer were looked up in the authors' code.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from foveal.models.sequence._layers import SequenceClassifier, as_complex, as_real, gated_output, hippo, log_steps
from foveal.ops.long_conv import long_conv
from foveal.record import Method, Paper

__all__ = ["S4", "discretize_nplr", "s4_classifier", "s4_kernel"]


def _both(x: Tensor) -> Tensor:
    """One half of the conjugate pairs, (C, N/2), to both, (C, N)."""
    return torch.cat([x, x.conj()], -1)


def s4_kernel(eigenvalues: Tensor, P: Tensor, B: Tensor, C: Tensor, step: Tensor, length: int) -> Tensor:  # noqa: N803
    """The convolution kernel from Cauchy sums and Woodbury's identity.

    Args:
        eigenvalues: Λ, (C, N/2), complex.
        P: low-rank factor, (C, N/2), complex.
        B: input weights, (C, N/2), complex.
        C: C̃, output weights for this length, (C, N/2), complex.
        step: Δ, (C,).
        length: L.

    Returns:
        K_0 … K_{L-1}, (C, L), real.
    """
    angle = torch.arange(length // 2 + 1, device=step.device, dtype=step.dtype) * (-2 * torch.pi / length)
    root = torch.polar(torch.ones_like(angle), angle)
    plus, minus = 1 + root, 1 - root
    # (C, N, L/2 + 1)
    lambdas = _both(eigenvalues)
    cauchy = 1 / (2 / step[:, None, None] * minus - lambdas[..., None] * plus)
    low, entering, leaving = _both(P), _both(B), _both(C)
    # (C, 4, N) @ (C, N, L/2 + 1)
    pairs = torch.stack([leaving * entering, leaving * low, low.conj() * entering, low.conj() * low], 1)
    k00, k01, k10, k11 = (pairs @ cauchy).unbind(1)
    spectrum = 2 * (k00 - k01 * plus * k10 / (1 + plus * k11))
    return torch.fft.irfft(spectrum, n=length)


def discretize_nplr(eigenvalues: Tensor, P: Tensor, B: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N803
    """The matrices of the recurrence in dense form.

    Args:
        eigenvalues: Λ, (C, N/2), complex.
        P: low-rank factor, (C, N/2), complex.
        B: input weights, (C, N/2), complex.
        step: Δ, (C,).

    Returns:
        Ā, (C, N, N), and B̄, (C, N), complex, for all N states.
    """
    low = _both(P)
    matrix = torch.diag_embed(_both(eigenvalues)) - low[..., None] * low.conj()[..., None, :]
    one = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    half = matrix * (step[:, None, None] / 2)
    below = torch.linalg.inv(one - half)
    return below @ (one + half), (below @ (step[:, None] * _both(B))[..., None])[..., 0]


class S4(nn.Module):
    """Convolution with an S4 kernel, GELU, a position-wise map and a gate; (B, C, L) to (B, C, L).

    Args:
        dim: C.
        states: N, even.
        max_length: L of C̃; kernels for longer sequences take more time.
        dropout: dropout probability.
        step_range: smallest and largest Δ.

    Raises:
        ValueError: if `states` is odd.
    """

    def __init__(
        self,
        dim: int,
        *,
        states: int = 64,
        max_length: int = 1024,
        dropout: float = 0.0,
        step_range: tuple[float, float] = (0.001, 0.1),
    ) -> None:
        super().__init__()
        if states < 2 or states % 2:
            raise ValueError(f"states must be even, they come in conjugate pairs, got {states}")
        self.max_length = max_length
        eigenvalues, low, entering, _ = (part.expand(dim, -1, *part.shape[1:]) for part in hippo(states))
        steps = log_steps(dim, *step_range)
        leaving = torch.randn(dim, states // 2, dtype=torch.cdouble)
        power = torch.linalg.matrix_power(
            discretize_nplr(eigenvalues, low, entering, steps.double().exp())[0], max_length
        )
        leaving = leaving - (_both(leaving)[:, None] @ power)[:, 0, : states // 2]
        self.log_step = nn.Parameter(steps)
        self.log_decay = nn.Parameter(torch.log(-eigenvalues.real).to(steps.dtype))
        self.frequency = nn.Parameter(eigenvalues.imag.to(steps.dtype).clone())
        self.low_rank = nn.Parameter(as_real(low))
        self.entering = nn.Parameter(as_real(entering))
        self.leaving = nn.Parameter(as_real(leaving))
        self.skip = nn.Parameter(torch.randn(dim))
        self.out = gated_output(dim, dim, dropout)

    def _system(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Λ, P, B and Δ."""
        eigenvalues = torch.complex(-self.log_decay.exp(), self.frequency)
        return eigenvalues, as_complex(self.low_rank), as_complex(self.entering), self.log_step.exp()

    def kernel(self, length: int) -> Tensor:
        """The convolution's weights.

        Args:
            length: L.

        Returns:
            (C, L).
        """
        system, leaving, reach = self._system(), as_complex(self.leaving), self.max_length
        while reach < length:
            power = torch.linalg.matrix_power(discretize_nplr(*system)[0], reach)
            leaving = leaving + (_both(leaving)[:, None] @ power)[:, 0, : leaving.shape[1]]
            reach *= 2
        eigenvalues, low, entering, step = system
        return s4_kernel(eigenvalues, low, entering, leaving, step, reach)[:, :length]

    def forward(self, x: Tensor) -> Tensor:
        return self.out(long_conv(x, self.kernel(x.shape[2]), self.skip))

    def recurrence(self) -> tuple[Tensor, ...]:
        """Precompute the factors of a step: D₀ = 2/Δ + Λ, D₁ = (2/Δ - Λ)⁻¹, P, D₁P / (1 + P* D₁ P), 2B, C.

        Returns:
            Six complex tensors, (C, N/2).
        """
        eigenvalues, low, entering, step = self._system()
        decay, _ = discretize_nplr(eigenvalues, low, entering, step)
        leaving = _both(as_complex(self.leaving))
        one = torch.eye(decay.shape[-1], dtype=decay.dtype, device=decay.device)
        shrunk = one - torch.linalg.matrix_power(decay, self.max_length)
        whole = torch.linalg.solve(shrunk, leaving[:, None], left=False)[:, 0, : low.shape[1]]
        twice = (2 / step)[:, None]
        inverse = 1 / (twice - eigenvalues)
        across = 1 + 2 * (low.conj() * inverse * low).sum(-1, keepdim=True).real
        return twice + eigenvalues, inverse, low, inverse * low / across, 2 * entering, whole

    def initial_state(self, batch: int) -> Tensor:
        """The state before the first step.

        Args:
            batch: B.

        Returns:
            Zeros, (B, C, N/2), complex.
        """
        return as_complex(self.entering).new_zeros(batch, *self.entering.shape[:2])

    def step(self, x: Tensor, state: Tensor, recurrence: tuple[Tensor, ...] | None = None) -> tuple[Tensor, Tensor]:
        """Process one position of the sequence recurrently; the cost does not depend on the preceding length.

        Args:
            x: input, (B, C).
            state: state before the step, (B, C, N/2), complex.
            recurrence: result of `recurrence`; None computes it, which takes far longer than the step.

        Returns:
            Output, (B, C), equal to the forward pass at that position; the state after it.
        """
        above, inverse, low, shared, entering, leaving = self.recurrence() if recurrence is None else recurrence
        # P* x over all N states is twice the real part over half of them.
        state = above * state - low * (2 * (low.conj() * state).sum(-1, keepdim=True).real) + entering * x[..., None]
        state = inverse * state - shared * (2 * (low.conj() * inverse * state).sum(-1, keepdim=True).real)
        y = 2 * (leaving * state).sum(-1).real + self.skip * x
        return self.out(y[..., None])[..., 0], state


s4_classifier = partial(SequenceClassifier, S4)  # also takes S4's arguments

METHOD = Method(
    id=347,
    name="S4",
    kind="model",
    summary="A state-space layer initialised from HiPPO, run as a long convolution or step by step.",
    paper=Paper(
        "Efficiently Modeling Long Sequences with Structured State Spaces", "A. Gu et al.", 2022, "arXiv:2111.00396"
    ),
    models={"s4_classifier": s4_classifier},
    cases={"s4_classifier": {"dim": 6, "depth": 1, "states": 4, "max_length": 96}},
)
