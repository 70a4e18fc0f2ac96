"""EfficientViT's cascaded group attention: each head sees its own channels, plus what the head before it found.

*Source*: X. Liu et al., "EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention", CVPR 2023
(arXiv:2305.07027), section 3.1, equations 2 to 4. For x: (B, C, H, W), split into h parts x₁ … x_h of C / h channels,
and N = H·W pixels

    X₁ = x₁,  X_i = x_i + y_{i-1}                              (B, C/h, N)      cascade
    Q, K, V = BN(W_i X_i),  Q ← BN(D_i * Q)                    (B, d, N), (B, d, N) and (B, C/h, N), d = 16
    y_i = softmax(Qᵀ K / √d + P_i) applied to V                (B, C/h, N)
    y = BN(W_o · relu(concat(y₁ … y_h)))                       (B, C, H, W)

D_i is a depthwise kernel, P_i: (N, N) has a number for each distance in rows and columns. Projections take C·(2d + C/h)
multiply-adds a pixel, an h-th of what h heads take that each see all channels. Around one such layer stand depthwise
convolutions and feed-forward networks, a sandwich.

*Differs from the paper*: nothing; the ReLU before the last projection and the bias P are the authors' code's. Larger
maps are attended in windows of 7×7 pixels, as there.

*Provenance*: written from the paper, with timm's parameter names and its convolution with a batch norm, which
`timm.utils.model.reparameterize_model` folds. The networks (EfficientViT-M0 … M5) are timm's; `use_cascaded_` puts the
operator of this file into them, and logits stay the same.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from timm.models.efficientvit_msra import ConvNorm
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["CascadedGroupAttention", "cascaded_attention", "cascaded_attention_reference", "use_cascaded_"]


def cascaded_attention(
    x: Tensor,
    project: Iterable[Callable[[Tensor], Tensor]],
    filters: Iterable[Callable[[Tensor], Tensor]],
    position: Tensor,
    *,
    key_dim: int,
) -> Tensor:
    """Attend head by head, each with its part of the channels and the output of the one before.

    Args:
        x: (B, C, H, W).
        project: for each head, its part to queries, keys and values, (B, C/h, H, W) to (B, 2·d + C/h, H, W).
        filters: for each head, what the queries pass, (B, d, H, W) to the same.
        position: numbers added to the scores, from each pixel to all, (h, N, N).
        key_dim: d.

    Returns:
        Outputs of all heads, (B, C, H, W).
    """
    heads: list[Tensor] = []
    for part, to_qkv, filtered, bias in zip(x.chunk(len(position), 1), project, filters, position, strict=True):
        given = part + heads[-1] if heads else part
        query, key, value = to_qkv(given).split([key_dim, key_dim, part.shape[1]], 1)
        # (B, N, d)
        query = (filtered(query) * key_dim**-0.5).flatten(2).mT
        # (B, N, N): from every pixel to all
        weights = (query @ key.flatten(2) + bias).softmax(-1)
        heads.append((value.flatten(2) @ weights.mT).view(part.shape))
    return torch.cat(heads, 1)


def cascaded_attention_reference(
    x: Tensor,
    project: Iterable[Callable[[Tensor], Tensor]],
    filters: Iterable[Callable[[Tensor], Tensor]],
    position: Tensor,
    *,
    key_dim: int,
) -> Tensor:
    """The same, pixel by pixel.

    Args:
        x: (B, C, H, W).
        project: for each head, (B, C/h, H, W) to (B, 2·d + C/h, H, W).
        filters: for each head, (B, d, H, W) to the same.
        position: (h, N, N).
        key_dim: d.

    Returns:
        (B, C, H, W).
    """
    size = x.shape[1] // len(position)
    found: list[Tensor] = []
    for i, (to_qkv, filtered, bias) in enumerate(zip(project, filters, position, strict=True)):
        given = x[:, i * size : (i + 1) * size]
        qkv = to_qkv(given + found[-1] if found else given)
        queries, keys, values = filtered(qkv[:, :key_dim]), qkv[:, key_dim : 2 * key_dim], qkv[:, 2 * key_dim :]
        pictures = []
        for query, key, value in zip(queries.flatten(2), keys.flatten(2), values.flatten(2), strict=True):
            columns = []
            for m in range(query.shape[1]):
                scores = torch.stack([q.dot(query[:, m]) / key_dim**0.5 for q in key.unbind(1)]) + bias[m]
                likely = (scores - scores.max()).exp()
                columns.append((value * likely / likely.sum()).sum(1))
            pictures.append(torch.stack(columns, 1).view(value.shape))
        found.append(torch.stack(pictures).view(given.shape))
    return torch.cat(found, 1)


class CascadedGroupAttention(nn.Module):
    """(B, C, H, W) to the same shape, for maps of one window at most.

    Args:
        dim: C.
        num_heads: h, a divisor of C.
        key_dim: d, channels of a query and of a key.
        kernels: side of the kernel that the queries of each head pass, odd; as many as there are heads, or more.
        side: largest height and width.

    Raises:
        ValueError: heads that do not divide the channels, or too few kernels.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        *,
        key_dim: int = 16,
        kernels: Sequence[int] = (5, 5, 5, 5),
        side: int = 7,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads must divide dim, got {num_heads} for {dim} channels")
        if len(kernels) < num_heads:
            raise ValueError(f"kernels must name one for each of {num_heads} heads, got {len(kernels)}")
        part = dim // num_heads
        self.key_dim = key_dim
        self.resolution = side  # timm's word; its windows are of this size
        self.qkvs = nn.ModuleList(ConvNorm(part, 2 * key_dim + part) for _ in range(num_heads))
        self.dws = nn.ModuleList(
            ConvNorm(key_dim, key_dim, size, pad=size // 2, groups=key_dim) for size in kernels[:num_heads]
        )
        # starts at 0, so that a block starts as the identity
        self.proj = nn.Sequential(nn.ReLU(), ConvNorm(dim, dim, bn_weight_init=0))
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, side**2))

    def position(self, height: int, width: int) -> Tensor:
        """What is added to the scores: a number for each distance in rows and columns.

        Args:
            height: H.
            width: W.

        Returns:
            (h, N, N).

        Raises:
            ValueError: a map larger than a window.
        """
        if max(height, width) > self.resolution:
            raise ValueError(
                f"expected a map of {self.resolution}×{self.resolution} pixels at most, got {height}×{width}; attend "
                "in windows"
            )
        down, right = (
            (place[:, None] - place).abs()
            for place in (torch.arange(length, device=self.attention_biases.device) for length in (height, width))
        )
        # (H, W, H, W)
        index = self.resolution * down[:, None, :, None] + right[None, :, None, :]
        return self.attention_biases[:, index].flatten(3, 4).flatten(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        position = self.position(*x.shape[2:])
        out: Tensor = self.proj(cascaded_attention(x, self.qkvs, self.dws, position, key_dim=self.key_dim))
        return out


def use_cascaded_(model: nn.Module) -> nn.Module:
    """Put the operator of this file in the place of timm's, with its layers and weights.

    Args:
        model: EfficientViT-M of timm, its norms folded or not; changed in place.

    Returns:
        The model.

    Raises:
        ValueError: no cascaded group attention in the model.
    """
    places = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if all(hasattr(child, part) for part in ("qkvs", "dws", "attention_biases"))
    ]
    if not places:
        raise ValueError(f"expected an EfficientViT-M of timm, got {type(model).__name__} without cascaded attention")
    for parent, name in places:
        theirs: Any = getattr(parent, name)
        heads = len(theirs.qkvs)
        ours = CascadedGroupAttention(
            heads * theirs.val_dim, heads, key_dim=theirs.key_dim, kernels=[1] * heads, side=theirs.resolution
        )
        ours.train(theirs.training)
        ours.qkvs, ours.dws, ours.proj = theirs.qkvs, theirs.dws, theirs.proj
        ours.attention_biases = theirs.attention_biases
        setattr(parent, name, ours)
    return model


def _with_weights(
    attend: Callable[..., Tensor], x: Tensor, weights: Tensor, kernels: Tensor, position: Tensor
) -> Tensor:
    """An attention whose layers have weights (h, 2·d + C/h, C/h) and kernels (h, d, 1, k, k)."""
    dim, padding = kernels.shape[1], kernels.shape[-1] // 2
    project = [partial(torch.conv2d, weight=weight[..., None, None]) for weight in weights]
    filters = [partial(torch.conv2d, weight=kernel, padding=padding, groups=dim) for kernel in kernels]
    return attend(x, project, filters, position, key_dim=dim)


def _inputs(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"x": (2, 6, 3, 4), "weights": (2, 7, 3), "kernels": (2, 2, 1, 3, 3), "position": (2, 12, 12)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


METHOD = Method(
    id=207,
    name="EfficientViT-M",
    kind="operator",
    summary="Each head attends in its own channels, to which the output of the head before is added.",
    paper=Paper(
        "EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention",
        "X. Liu et al.",
        2023,
        "arXiv:2305.07027",
    ),
    cases={
        "two_heads": Operator(
            partial(_with_weights, cascaded_attention), partial(_with_weights, cascaded_attention_reference), _inputs
        )
    },
)
