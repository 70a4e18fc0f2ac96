"""Broad Mamba: utterances of a conversation, read there and back by state-space models, fused by how sure each view is.

*Source*: Y. Shou et al., "Revisiting Multi-modal Emotion Learning with Broad State Space Models and
Probability-guidance Fusion", 2024 (arXiv:2404.17858). A conversation has L utterances in M views (text, audio, video),
each encoded by its own layers, (B, C, L) to the same:

    [u, z] = W_in norm(x),  u ← silu(dwconv(u))                           over the neighbouring utterances
    y = scan(u) + back(scan'(back(u)))                                    bidirectional SSM convolution
    x ← x + W_out (y ∘ silu(z))

    p_m = softmax(V_m h_m),  w_m = max p_m / Σ_m max p_m                  probability guidance, for each utterance
    h = Σ_m w_m h_m,  logits = V h

The broad learning head needs no gradient (C. L. P. Chen, Z. Liu, "Broad Learning System", IEEE TNNLS 2018): random
feature nodes Z = h W_z + b_z, random enhancement nodes E = tanh(Z W_e + b_e), A = [Z, E, 1], and the ridge solution
V = (AᵀA + λI)⁻¹ Aᵀ Y for one-hot labels Y.

*Differs from the paper*: the largest predicted probability of a view is its weight; the broad head stands behind the
fused features, where the paper has a broad block behind each encoder.
*Provenance*: written from the abstract and a summary of the paper; its text and code were not at hand.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.nn.ss2d import initial_step
from foveal.ops import selective_scan
from foveal.record import Method, Paper

__all__ = ["BroadHead", "BroadMamba", "bidirectional_scan", "broad_nodes", "guided_weights", "ridge"]


def bidirectional_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,  # noqa: N803 - the papers' letters
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor,  # noqa: N803
) -> Tensor:
    """The sum of a selective scan from the first to the last step and one from the last to the first.

    Args:
        u: input, (batch, dim, length).
        delta: step sizes there and back, (batch, 2, dim, length), positive; all in the order of `u`.
        A: decay of each state, (2, dim, states), negative.
        B: input weights, (batch, 2, states, length).
        C: output weights, (batch, 2, states, length).
        D: skip weights, (2, dim).

    Returns:
        (batch, dim, length).
    """

    def turned(x: Tensor) -> Tensor:
        return torch.stack((x[:, 0], x[:, 1].flip(-1)), 1)

    both = turned(u[:, None].expand(-1, 2, -1, -1)).flatten(1, 2)
    y = selective_scan(both, turned(delta).flatten(1, 2), A.flatten(0, 1), turned(B), turned(C), D.flatten())
    there, back = y.chunk(2, dim=1)
    return there + back.flip(-1)


def guided_weights(logits: Tensor) -> Tensor:
    """Weight of each view: its largest predicted probability, relative to those of the others.

    Args:
        logits: predictions of each view, (M, B, K, L).

    Returns:
        Weights, (M, B, 1, L), that add up to 1 over the views.
    """
    sure = logits.softmax(2).amax(2, keepdim=True)
    return sure / sure.sum(0)


def broad_nodes(features: Tensor, w_z: Tensor, b_z: Tensor, w_e: Tensor, b_e: Tensor) -> Tensor:
    """Feature nodes, enhancement nodes and a constant.

    Args:
        features: (N, C).
        w_z: random weights of the feature nodes, (C, Z).
        b_z: their biases, (Z,).
        w_e: random weights of the enhancement nodes, (Z, E).
        b_e: their biases, (E,).

    Returns:
        A, (N, Z + E + 1).
    """
    nodes = features @ w_z + b_z
    return torch.cat((nodes, torch.tanh(nodes @ w_e + b_e), torch.ones_like(nodes[:, :1])), 1)


def ridge(nodes: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """(AᵀA + λI)⁻¹ Aᵀ Y, solved in float64: the nodes are many and nearly dependent.

    Args:
        nodes: A, (N, P).
        targets: Y, (N, K).
        penalty: λ, positive.

    Returns:
        (P, K).
    """
    wide = nodes.double()
    gram = wide.T @ wide
    gram.diagonal().add_(penalty)
    return torch.cholesky_solve(wide.T @ targets.double(), torch.linalg.cholesky(gram)).to(nodes.dtype)


class BroadHead(nn.Module):
    """Broad learning classifier of features, (B, C, L) to (B, K, L), solved by `fit_`; it has no gradients.

    Args:
        dim: C.
        num_classes: K.
        feature_nodes: Z.
        enhancement_nodes: E.
        penalty: λ, positive.
        seed: seed of the random nodes.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        feature_nodes: int = 100,
        enhancement_nodes: int = 200,
        penalty: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.penalty, self.num_classes = penalty, num_classes
        draw = torch.Generator().manual_seed(seed)
        sizes = {"w_z": (dim, feature_nodes), "b_z": (feature_nodes,)}
        sizes |= {"w_e": (feature_nodes, enhancement_nodes), "b_e": (enhancement_nodes,)}
        for name, size in sizes.items():
            scale = size[0] ** -0.5 if len(size) == 2 else 1.0
            self.register_buffer(name, torch.randn(size, generator=draw) * scale)
        self.register_buffer("weight", torch.zeros(feature_nodes + enhancement_nodes + 1, num_classes))

    def nodes(self, features: Tensor) -> Tensor:
        """All nodes of features.

        Args:
            features: (N, C).

        Returns:
            (N, Z + E + 1).
        """
        return broad_nodes(features, self.w_z, self.b_z, self.w_e, self.b_e)  # type: ignore[arg-type]

    @torch.no_grad()
    def fit_(self, features: Tensor, labels: Tensor) -> BroadHead:
        """Solve for the weights, in place.

        Args:
            features: (B, C, L).
            labels: classes, (B, L) int64.

        Returns:
            The head.
        """
        nodes = self.nodes(features.transpose(1, 2).flatten(0, 1))
        targets = F.one_hot(labels.flatten(), self.num_classes).to(nodes.dtype)
        self.weight = ridge(nodes, targets, self.penalty)
        return self

    def forward(self, features: Tensor) -> Tensor:
        made = self.nodes(features.transpose(1, 2).flatten(0, 1)) @ self.weight
        return made.unflatten(0, (features.shape[0], -1)).transpose(1, 2)


class _Norm(nn.LayerNorm):
    """Layer norm of each utterance, (B, C, L) to the same."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class _Layer(nn.Module):
    """Convolution, bidirectional scan and gate, (B, dim, L) to the same."""

    def __init__(self, dim: int, *, state: int, expand: float, kernel_size: int) -> None:
        super().__init__()
        inner, rank = int(expand * dim), -(-dim // 16)
        self.split = (rank, state, state)
        self.norm = _Norm(dim)
        self.in_proj = nn.Conv1d(dim, 2 * inner, 1, bias=False)
        self.conv = nn.Conv1d(inner, inner, kernel_size, padding=kernel_size // 2, groups=inner)
        self.x_proj = nn.Parameter(torch.empty(2, sum(self.split), inner).uniform_(-1, 1) / inner**0.5)
        self.dt_proj = nn.Parameter(torch.empty(2, inner, rank).uniform_(-1, 1) / rank**0.5)
        self.dt_bias = nn.Parameter(initial_step(2 * inner).view(2, inner, 1))
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(2, inner, 1))
        self.D = nn.Parameter(torch.ones(2, inner))
        self.out_proj = nn.Conv1d(inner, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u, z = self.in_proj(self.norm(x)).chunk(2, dim=1)
        u = F.silu(self.conv(u))
        # (B, 2, R + 2·D, L)
        step, weights_in, weights_out = (self.x_proj @ u[:, None]).split(self.split, dim=2)
        delta = F.softplus(self.dt_proj @ step + self.dt_bias)
        y = bidirectional_scan(u, delta, -self.A_log.exp(), weights_in, weights_out, self.D)
        return x + self.out_proj(y * F.silu(z))


class BroadMamba(nn.Module):
    """A class for each utterance, (B, sum of views, L) to (B, num_classes, L).

    Args:
        views: channels of the features of each view, in the order in which they stand in the input.
        num_classes: number of classes.
        dim: C.
        depth: layers of each view's encoder.
        state: state size of each scanned channel.
        expand: ratio of scanned channels to `dim`.
        kernel_size: utterances that a convolution covers, odd.
        guided: whether views are weighted by their probabilities; False weights them equally.

    Raises:
        ValueError: an even kernel.
    """

    def __init__(
        self,
        views: tuple[int, ...] = (100, 100, 512),
        *,
        num_classes: int = 6,
        dim: int = 128,
        depth: int = 2,
        state: int = 16,
        expand: float = 2.0,
        kernel_size: int = 3,
        guided: bool = True,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}; take {kernel_size + 1}")
        self.views, self.in_channels, self.guided = views, sum(views), guided
        self.encoders = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(channels, dim, 1),
                *(_Layer(dim, state=state, expand=expand, kernel_size=kernel_size) for _ in range(depth)),
                _Norm(dim),
            )
            for channels in views
        )
        self.view_heads = nn.ModuleList(nn.Conv1d(dim, num_classes, 1) for _ in views)
        self.head: nn.Module = nn.Conv1d(dim, num_classes, 1)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Fused features and what each view alone predicts.

        Args:
            x: features of the utterances, the views one after the other, (B, sum of views, L).

        Returns:
            Fused features, (B, C, L); logits of each view, (M, B, K, L).
        """
        parts = x.flatten(2).split(self.views, dim=1)
        encoded = torch.stack([encoder(part) for encoder, part in zip(self.encoders, parts, strict=True)])
        logits = torch.stack([head(part) for head, part in zip(self.view_heads, encoded, strict=True)])
        fused = (encoded * guided_weights(logits)).sum(0) if self.guided else encoded.mean(0)
        return fused, logits

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the fused prediction plus the mean of the views', for training.

        Args:
            x: features of the utterances, (B, sum of views, L).
            labels: classes, (B, L) int64.

        Returns:
            Scalar.
        """
        fused, logits = self.features(x)
        alone = torch.stack([F.cross_entropy(each, labels) for each in logits]).mean()
        return F.cross_entropy(self.head(fused), labels) + alone

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)[0])


METHOD = Method(
    id=272,
    name="Broad-Mamba",
    kind="model",
    summary="Utterances in several views are read there and back by state-space models and fused by how sure each is.",
    paper=Paper(
        "Revisiting Multi-modal Emotion Learning with Broad State Space Models and Probability-guidance Fusion",
        "Y. Shou et al.",
        2024,
        "arXiv:2404.17858",
    ),
    models={"broad_mamba": BroadMamba},
    cases={"broad_mamba": {"views": (2, 3), "num_classes": 4, "dim": 8, "depth": 1, "state": 2}},
    except_for={"shape": "gives a class for each utterance, (B, num_classes, L); tests of the method check it"},
)
