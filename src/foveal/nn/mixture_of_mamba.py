"""Mixture-of-Mamba: a Mamba mixer whose projections have one set of weights for each modality, text or image.

*Source*: W. Liang, J. Shen, G. Zhang, N. Dong, L. Zettlemoyer, L. Yu, "Mixture-of-Mamba: Enhancing Multi-Modal
State-Space Models with Modality-Aware Sparsity", 2025 (arXiv:2501.16295), read in abstract and by the authors' code,
github.com/Weixin-Liang/Mixture-of-Mamba, MIT. Token t has the modality m = m(t), which is given, not learned:

    [x_t, z_t] = W_in[m] tokens_t                                (B, N, C) to two of (B, E, N), E = expand · C
    u = silu(conv1d(x))                                          shared, over the interleaved sequence
    [step, B, C]_t = W_x[m] u_t,  delta_t = softplus(W_dt[m] step_t + bias[m]),  A = -exp(A_log)
    y = (selective scan of u with delta, A, B, C, D) ∘ silu(z)   shared
    out_t = W_out[m] y_t

Each token meets one set of weights, so that multiply-adds are those of one dense Mamba, and text and image reach each
other through convolution and state alone. With equal sets it is the dense mixer.

*Differs from the paper*: nothing known. Here a set is a slice of one parameter, (modalities, out, in); theirs is a list
of layers.
*Provenance*: written from the authors' code. With their weights, three modalities and the scan done step by step, the
output equals that of their code to 3e-7 and the gradients of all projections to 8e-7.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.ops import selective_scan
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foveal.nn.mamba import Mamba

__all__ = ["MixtureOfMamba", "ModalityLinear", "modality_linear", "modality_linear_reference", "rows_of"]


def rows_of(modality: Tensor, modalities: int) -> list[Tensor]:
    """Places of the tokens of each modality in the flattened batch.

    Args:
        modality: modality of each token, (…) int64.
        modalities: number of modalities, M.

    Returns:
        M tensors of places, int64; one is empty where a modality does not occur.

    Raises:
        ValueError: a modality that there is not.
    """
    tags = modality.flatten()
    rows = [(tags == m).nonzero()[:, 0] for m in range(modalities)]
    if sum(map(len, rows)) != len(tags):
        found = sorted(set(tags.tolist()))
        raise ValueError(f"modality must be in 0…{modalities - 1}, got {found}; build the layer with more modalities")
    return rows


def _by_rows(x: Tensor, weight: Tensor, bias: Tensor | None, rows: Sequence[Tensor]) -> Tensor:
    """One product a modality, its rows gathered and put back."""
    flat = x.flatten(0, -2)
    parts = [
        F.linear(flat[at], w, None if bias is None else bias[m])
        for m, (at, w) in enumerate(zip(rows, weight, strict=True))
    ]
    back = torch.cat(tuple(rows)).argsort()
    return torch.cat(parts)[back].view(*x.shape[:-1], weight.shape[1])


def modality_linear(x: Tensor, weight: Tensor, bias: Tensor | None, modality: Tensor) -> Tensor:
    """Linear layer with one weight for each modality.

    Args:
        x: tokens, (…, in).
        weight: (M, out, in).
        bias: (M, out), or None.
        modality: modality of each token, (…) int64.

    Returns:
        (…, out).

    Raises:
        ValueError: as many modalities as tokens are not given.
    """
    if modality.shape != x.shape[:-1]:
        raise ValueError(f"modality must be {tuple(x.shape[:-1])}, one for each token, got {tuple(modality.shape)}")
    return _by_rows(x, weight, bias, rows_of(modality, len(weight)))


def modality_linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None, modality: Tensor) -> Tensor:
    """The same with a weight looked up for each token.

    Args:
        x: tokens, (…, in).
        weight: (M, out, in).
        bias: (M, out), or None.
        modality: modality of each token, (…) int64.

    Returns:
        (…, out).
    """
    out = (weight[modality] * x[..., None, :]).sum(-1)
    return out if bias is None else out + bias[modality]


class ModalityLinear(nn.Module):
    """Linear layer with one weight for each modality, (…, in) to (…, out).

    Args:
        inputs: channels in.
        outputs: channels out.
        modalities: M.
        bias: whether each modality has one.
    """

    def __init__(self, inputs: int, outputs: int, modalities: int, *, bias: bool = False) -> None:
        super().__init__()
        bound = inputs**-0.5
        self.weight = nn.Parameter(torch.empty(modalities, outputs, inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(modalities, outputs)) if bias else None

    def forward(self, x: Tensor, rows: Sequence[Tensor]) -> Tensor:
        return _by_rows(x, self.weight, self.bias, rows)


class MixtureOfMamba(nn.Module):
    """Mixer of an interleaved sequence, (B, N, dim) and modalities (B, N) to (B, N, dim).

    Args:
        dim: C.
        modalities: M.
        state: state size per inner channel.
        expand: ratio of inner channels to `dim`.
        kernel_size: number of tokens the causal convolution covers: the current one and those before it.
        dt_rank: rank of the step-size projection; None means `dim` / 16, rounded up.
    """

    def __init__(
        self,
        dim: int,
        *,
        modalities: int = 2,
        state: int = 16,
        expand: float = 2.0,
        kernel_size: int = 4,
        dt_rank: int | None = None,
    ) -> None:
        super().__init__()
        inner, rank = int(expand * dim), -(-dim // 16) if dt_rank is None else dt_rank
        self.split, self.modalities = (rank, state, state), modalities
        self.in_proj = ModalityLinear(dim, 2 * inner, modalities)
        self.conv1d = nn.Conv1d(inner, inner, kernel_size, padding=kernel_size - 1, groups=inner)
        self.x_proj = ModalityLinear(inner, sum(self.split), modalities)
        self.dt_proj = ModalityLinear(rank, inner, modalities, bias=True)
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = ModalityLinear(inner, dim, modalities)
        # step sizes log-uniform in 0.001 to 0.1, as in Mamba; the bias is added before softplus
        step = torch.exp(torch.rand(modalities, inner) * math.log(100) + math.log(1e-3))
        self.dt_proj.bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))

    @classmethod
    def from_dense(cls, mixer: Mamba, modalities: int) -> MixtureOfMamba:
        """A mixture whose sets are all those of a dense mixer.

        Args:
            mixer: dense mixer of one direction.
            modalities: M.

        Returns:
            The mixture; its parameters are copies.

        Raises:
            ValueError: a mixer of two directions.
        """
        if mixer.bidirectional:
            raise ValueError("the mixer must read in one direction, got a bidirectional one; build it without")
        rank, state, _ = mixer.split
        inner, dim = mixer.in_proj.out_features // 2, mixer.in_proj.in_features
        (kernel_size,) = mixer.conv1d.kernel_size
        own = cls(
            dim, modalities=modalities, state=state, expand=inner / dim, kernel_size=kernel_size, dt_rank=rank
        ).to(mixer.D)
        shared = ("conv1d.", "A_log", "D")
        own.load_state_dict(
            {
                name: value if name.startswith(shared) else value.expand(modalities, *value.shape)
                for name, value in mixer.state_dict().items()
            }
        )
        return own

    def forward(self, tokens: Tensor, modality: Tensor) -> Tensor:
        if modality.shape != tokens.shape[:-1]:
            wanted = tuple(tokens.shape[:-1])
            raise ValueError(f"modality must be {wanted}, one for each token, got {tuple(modality.shape)}")
        rows = rows_of(modality, self.modalities)
        # two of (B, E, N)
        x, z = self.in_proj(tokens, rows).transpose(1, 2).chunk(2, dim=1)
        u = F.silu(self.conv1d(x)[..., : x.shape[-1]])
        # (B, N, R + 2·D)
        step, weights_in, weights_out = self.x_proj(u.transpose(1, 2), rows).split(self.split, dim=-1)
        delta = self.dt_proj(step, rows).transpose(1, 2)
        into, out = weights_in.transpose(1, 2), weights_out.transpose(1, 2)
        y = selective_scan(u, delta, -self.A_log.exp(), into, out, self.D, z, delta_softplus=True)
        return self.out_proj(y.transpose(1, 2), rows)


def _inputs(seed: int, *, modalities: int = 3, shape: tuple[int, ...] = (2, 7), used: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(*shape, 5, generator=generator),
        "weight": torch.randn(modalities, 4, 5, generator=generator),
        "bias": torch.randn(modalities, 4, generator=generator),
        "modality": torch.randint(used, shape, generator=generator),
    }


METHOD = Method(
    id=296,
    name="Mixture-of-Mamba",
    kind="operator",
    summary="A Mamba mixer with one set of projections for each modality and a shared convolution and scan.",
    paper=Paper(
        "Mixture-of-Mamba: Enhancing Multi-Modal State-Space Models with Modality-Aware Sparsity",
        "W. Liang et al.",
        2025,
        "arXiv:2501.16295",
    ),
    cases={
        "three_modalities": Operator(modality_linear, modality_linear_reference, _inputs),
        "one_of_them_unused": Operator(
            modality_linear, modality_linear_reference, lambda seed: _inputs(seed, shape=(1, 9), used=2)
        ),
    },
)
