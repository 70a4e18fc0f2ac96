"""MobileVMoE: a small ViT whose last MLPs have experts, one chosen for the whole picture by its super-class.

*Source*: E. Daxberger, F. Weers, B. Zhang, T. Gunter, R. Pang, M. Eichner, M. Emmersberger, Y. Yang, A. Toshev, X. Du,
"Mobile V-MoEs: Scaling Down Vision Transformers via Sparse Mixture-of-Experts", 2023 (arXiv:2309.04354). A ViT of
tokens x, (B, N, C), whose last blocks have E expert MLPs each in place of one:

    p = softmax(R · mean of norm(x) over the tokens)     (B, E), for the picture as a whole
    x = x + Σ_{e among the k largest p} p_e · MLP_e(norm(x))

so that a picture needs k experts a layer whatever its tokens, where routing tokens needs most of them. The router
learns super-classes, s = S(label), which are groups of classes that a dense network confuses:

    loss = CE(logits, label) + weight · mean over the layers of CE(R, s)
    confusion (K, K) of a trained dense network → symmetric → average linkage, the most confused groups merged first,
                                                               until E groups are left

*Differs from the paper*: the mean of the normalised tokens routes, and every expert layer has a router of its own; the
clustering is average linkage; the weight of the routers' loss is 0.3. All three are our choice, as the abstract and the
catalogue leave them open. Attention, MLP and initial weights are those of timm's ViT. Exported graphs (ONNX) compute
with a copy of the weights that a picture chose, since their shapes may not depend on the choice.
*Provenance*: written from the abstract and the catalogue's account of the mechanism; there is no authors' code.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, trunc_normal_
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from foveal.nn.isotropic import Isotropic, PatchEmbed
from foveal.ops.experts import expert_linear, group_rows, top_experts
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "Block",
    "ImageExperts",
    "mobile_vmoe",
    "mobile_vmoe_tiny",
    "routed_loss",
    "routes",
    "super_classes",
]


def super_classes(confusion: Tensor, number: int) -> Tensor:
    """Group classes that are confused with each other: average linkage on the symmetric confusion.

    Args:
        confusion: pictures of each true class (rows) that were taken for each class (columns), (K, K).
        number: number of groups, from 1 to K.

    Returns:
        Group of each class, (K,) int64, numbered in the order of their first classes.

    Raises:
        ValueError: a matrix that is not square, or a number of groups out of range.

    Example:
        >>> import torch
        >>> from foveal.models.backbone.mobile_vmoe import super_classes
        >>> super_classes(torch.tensor([[8.0, 0.0, 2.0], [0.0, 9.0, 1.0], [3.0, 0.0, 7.0]]), 2)
        tensor([0, 1, 0])
    """
    classes = len(confusion)
    if confusion.ndim != 2 or confusion.shape[1] != classes:
        raise ValueError(f"confusion must be (classes, classes), got {tuple(confusion.shape)}")
    if not 1 <= number <= classes:
        raise ValueError(f"number must be in 1…{classes}, the number of classes, got {number}")
    rates = confusion.double() / confusion.double().sum(1, keepdim=True).clamp(min=1)
    alike = rates + rates.t()
    groups = [[c] for c in range(classes)]
    while len(groups) > number:
        pairs = [(i, j) for i in range(len(groups)) for j in range(i + 1, len(groups))]
        i, j = max(pairs, key=lambda pair: float(alike[groups[pair[0]]][:, groups[pair[1]]].mean()))
        groups[i] = sorted(groups[i] + groups.pop(j))
    found = torch.zeros(classes, dtype=torch.int64)
    for i, group in enumerate(sorted(groups)):
        found[group] = i
    return found


class ImageExperts(nn.Module):
    """MLPs of experts, k for each picture as a whole; (B, N, C) to the same.

    Args:
        dim: C.
        hidden: channels of an expert's hidden layer, H.
        num_experts: E.
        top_k: experts of a picture, k.

    Raises:
        ValueError: fewer than one choice or more than experts.
    """

    def __init__(self, dim: int, hidden: int, *, num_experts: int = 10, top_k: int = 1) -> None:
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"top_k must be in 1…{num_experts}, the number of experts, got {top_k}")
        self.top_k = top_k
        self.router = nn.Linear(dim, num_experts)
        self.w1 = nn.Parameter(trunc_normal_(torch.empty(num_experts, hidden, dim), std=0.02))
        self.b1 = nn.Parameter(torch.zeros(num_experts, hidden))
        self.w2 = nn.Parameter(trunc_normal_(torch.empty(num_experts, dim, hidden), std=0.02))
        self.b2 = nn.Parameter(torch.zeros(num_experts, dim))

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = top_experts(self.router(x.mean(1)), self.top_k, renormalise=False)
        if torch.compiler.is_exporting():
            return self._gathered(x, gates, experts)
        groups = group_rows(experts, len(self.w1))
        # (B·k, N, H), the pictures of an expert after each other
        hidden = expert_linear(x, self.w1, groups, bias=self.b1, grouped_out=True)
        return expert_linear(hidden, self.w2, groups, bias=self.b2, gates=gates, activation=F.gelu, grouped_in=True)

    def _gathered(self, x: Tensor, gates: Tensor, experts: Tensor) -> Tensor:
        """The same with a copy of the chosen weights, whose shapes do not depend on the choice: for exported graphs."""
        # (B, k, N, H), then (B, k, N, C)
        hidden = F.gelu(x[:, None] @ self.w1[experts].mT + self.b1[experts][:, :, None])
        each = hidden @ self.w2[experts].mT + self.b2[experts][:, :, None]
        return (each * gates[..., None, None]).sum(1)


class Block(nn.Module):
    """Attention and the given MLP, each after a norm and with a shortcut; (B, N, C) to the same.

    Args:
        dim: C.
        num_heads: number of heads.
        mlp: MLP, or experts.
        drop_path: drop-path rate of both branches.
    """

    def __init__(self, dim: int, num_heads: int, mlp: nn.Module, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads=num_heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:  # noqa: ARG002 - tokens of any grid
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


@contextmanager
def routes(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what the routers say while the model runs inside this context.

    Args:
        model: network with `ImageExperts`.

    Yields:
        Logits of the routers, (B, E) each, in the order in which they are computed.
    """
    found: list[Tensor] = []
    handles = [
        module.router.register_forward_hook(lambda _, __, scores: found.append(scores))
        for module in model.modules()
        if isinstance(module, ImageExperts)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def routed_loss(
    logits: Tensor, scores: Sequence[Tensor], labels: Tensor, groups: Tensor, *, weight: float = 0.3
) -> Tensor:
    """Cross-entropy of the classes, and of the super-classes of every router.

    Args:
        logits: logits of the network, (B, K).
        scores: logits of the routers, (B, E) each, from `routes`; none leaves the first term.
        labels: classes, (B,) int64.
        groups: super-class of each class, (K,) int64, from `super_classes`.
        weight: weight of the mean of the routers' terms.

    Returns:
        Loss, ().
    """
    loss = F.cross_entropy(logits, labels)
    if not scores:
        return loss
    wanted = groups.to(labels.device)[labels]
    return loss + weight * torch.stack([F.cross_entropy(s, wanted) for s in scores]).mean()


def mobile_vmoe(
    dim: int = 192,
    depth: int = 12,
    num_heads: int = 3,
    patch_size: int = 16,
    in_channels: int = 3,
    num_classes: int = 1000,
    drop_path: float = 0.0,
    *,
    mlp_ratio: float = 4.0,
    num_experts: int = 10,
    top_k: int = 1,
    expert_layers: int = 2,
    grid: tuple[int, int] = (14, 14),
) -> Isotropic:
    """A ViT whose last blocks have experts.

    Args:
        dim: C.
        depth: number of blocks.
        num_heads: number of heads.
        patch_size: side of a patch in pixels.
        in_channels: number of channels of the picture.
        num_classes: number of classes; 0 returns features.
        drop_path: drop-path rate of the last block; the rates rise from 0.
        mlp_ratio: ratio of an MLP's hidden channels to C.
        num_experts: experts of a layer, E.
        top_k: experts of a picture, k.
        expert_layers: number of blocks with experts, the last ones; 0 gives the dense twin.
        grid: size of the position embedding in patches, (H', W').

    Returns:
        The network, (B, in_channels, H, W) to (B, num_classes).

    Raises:
        ValueError: more expert layers than blocks.
    """
    if not 0 <= expert_layers <= depth:
        raise ValueError(f"expert_layers must be in 0…{depth}, the number of blocks, got {expert_layers}")
    hidden, blocks = int(mlp_ratio * dim), []
    for i in range(depth):
        mlp: nn.Module = Mlp(dim, hidden)
        if i >= depth - expert_layers:
            mlp = ImageExperts(dim, hidden, num_experts=num_experts, top_k=top_k)
        blocks.append(Block(dim, num_heads, mlp, drop_path=drop_path * i / max(depth - 1, 1)))
    for module in (m for block in blocks for m in block.modules()):
        if isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    return Isotropic(
        PatchEmbed(dim, patch_size, in_channels=in_channels),
        blocks,
        dim,
        patch_size,
        grid=grid,
        num_classes=num_classes,
        in_channels=in_channels,
        norm=nn.LayerNorm(dim, eps=1e-6),
    )


mobile_vmoe_tiny = partial(mobile_vmoe, dim=192)  # Mobile V-MoE of ViT-Tiny, 10 experts in the last 2 of 12 layers

METHOD = Method(
    id=148,
    name="MobileVMoE",
    kind="model",
    summary="The last layers of a small ViT choose one expert for the whole picture, by its super-class.",
    paper=Paper(
        "Mobile V-MoEs: Scaling Down Vision Transformers via Sparse Mixture-of-Experts",
        "E. Daxberger et al.",
        2023,
        "arXiv:2309.04354",
    ),
    models={"mobile_vmoe_tiny": mobile_vmoe_tiny},
    cases={
        "mobile_vmoe_tiny": {
            "dim": 8,
            "depth": 2,
            "num_heads": 2,
            "patch_size": 4,
            "num_classes": 5,
            "num_experts": 3,
            "expert_layers": 1,
            "top_k": 2,
        }
    },
)
