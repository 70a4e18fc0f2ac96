"""OFA-KD: stages of the student answer in logits, where networks of any architecture can be compared, not in features.

*Source*: Z. Hao et al., "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation",
NeurIPS 2023 (arXiv:2310.19444), sections 3.2 and 3.3. Each tapped stage of the student gets an exit branch to logits;
with logits s of a branch or of the student itself, the teacher's t, both (B, classes), p = softmax(s/T),
q = softmax(t/T), and e the one-hot label,

    L(s) = -mean over B of Σ over classes of ((q + e)^γ - e) log p
    loss = cross-entropy(student, y) + w Σ over branches of L(branch) + v L(student)

γ above 1 enhances what the teacher says of the true class; γ = 1 is soft cross-entropy.

    CNN       (B, C, H, W): halvings by separable convolutions, mean over the map, linear layer
    tokens    (B, N, C): merging of 2×2 tokens, transformer blocks, mean over the tokens, linear layer

The branches belong to the loss: the student has nothing to remove when it is exported.

*Differs from the paper*: the branches of tokens average them all; a class token must not be among them.
*Provenance*: written from the paper; layers of the branches and defaults of T, w and v as in the authors' code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Objective
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foveal.shrink.distill.distillation import Views

__all__ = ["OFAKD", "SeparableHalving", "TokenExit", "cnn_exit", "cnn_exits", "ofa"]


def ofa(student: Tensor, teacher: Tensor, targets: Tensor, *, gamma: float = 1.0, temperature: float = 1.0) -> Tensor:
    """Cross-entropy with the teacher's probabilities, enhanced at the true class.

    Args:
        student: logits of the student or of a branch, (B, classes).
        teacher: the teacher's logits, (B, classes).
        targets: labels, (B,).
        gamma: γ, at least 1; the paper takes 1 to 1.5.
        temperature: T, above 0.

    Returns:
        Scalar, the mean over the batch.
    """
    q = (teacher.detach() / temperature).softmax(1)
    true = F.one_hot(targets, q.shape[1]).to(q.dtype)
    return -(((q + true) ** gamma - true) * F.log_softmax(student / temperature, 1)).sum(1).mean()


class SeparableHalving(nn.Sequential):
    """Two depthwise separable convolutions, the first with stride 2: (B, C, H, W) to (B, out, ⌈H/2⌉, ⌈W/2⌉).

    Args:
        dim: input channels, C.
        out: output channels.
    """

    def __init__(self, dim: int, out: int) -> None:
        super().__init__(
            nn.Conv2d(dim, dim, 3, 2, 1, groups=dim, bias=False),
            nn.Conv2d(dim, dim, 1, bias=False),
            nn.BatchNorm2d(dim),
            nn.ReLU(),
            nn.Conv2d(dim, dim, 3, 1, 1, groups=dim, bias=False),
            nn.Conv2d(dim, out, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
        )


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def cnn_exit(dim: int, *, halvings: int, features: int, num_classes: int) -> nn.Module:
    """Exit branch of a stage of a convolutional student.

    Args:
        dim: channels of the stage, C.
        halvings: number of stages after it; each halving but the last doubles the channels.
        features: width in front of the linear layer; the paper's is the larger of student's and teacher's last one.
        num_classes: number of classes.

    Returns:
        Network from (B, C, H, W) to (B, num_classes).
    """
    steps = [
        SeparableHalving(dim * 2**i, features if i == halvings - 1 else dim * 2 ** (i + 1)) for i in range(halvings)
    ]
    body: list[nn.Module] = list(steps) or [nn.Conv2d(dim, features, 1)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, num_classes)).apply(_start)


class TokenExit(nn.Module):
    """Exit branch of a stage of a transformer or an MLP: (B, N, C) to (B, num_classes), N a square number.

    Args:
        dim: channels of the tokens, C.
        merges: how often 2×2 tokens become one; the paper merges down to a 7×7 grid.
        features: channels from the first merging on, and of the blocks.
        num_classes: number of classes.
        depth: number of transformer blocks; the paper's is the number of stages after this one, at least 1.
        num_heads: attention heads of a block.

    Raises:
        ValueError: tokens that keep their channels where the blocks want others.
    """

    def __init__(
        self, dim: int, *, merges: int, features: int, num_classes: int, depth: int = 1, num_heads: int = 4
    ) -> None:
        super().__init__()
        from timm.models.vision_transformer import Block

        if not merges and dim != features:
            raise ValueError(f"without merges the blocks keep the {dim} channels, got features={features}; give {dim}")
        dims = [dim] + [features] * merges
        self.merges = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(4 * dims[i]), nn.Linear(4 * dims[i], features, bias=False))
            for i in range(merges)
        )
        self.blocks = nn.Sequential(*(Block(features, num_heads) for _ in range(depth)))
        self.head = nn.Linear(features, num_classes)
        self.apply(_start)

    def forward(self, x: Tensor) -> Tensor:
        """Classify.

        Args:
            x: tokens in reading order, (B, N, C).

        Returns:
            Logits, (B, num_classes).

        Raises:
            ValueError: tokens that form no square, or one that cannot be halved.
        """
        for i, merge in enumerate(self.merges):
            side = round(x.shape[1] ** 0.5)
            if side**2 != x.shape[1] or side % 2:
                raise ValueError(
                    f"merging needs a square of tokens with even sides, got {x.shape[1]}; use fewer merges"
                )
            # (B, side/2, 2, side/2, 2, C) to (B, N/4, 4·C)
            grid = x.unflatten(1, (side // 2, 2, side // 2, 2)).permute(0, 1, 3, 4, 2, 5)
            x = merge(grid.flatten(3).flatten(1, 2))
            if i < len(self.merges) - 1:
                x = F.gelu(x)
        return self.head(self.blocks(x).mean(1))


def cnn_exits(dims: Sequence[int], *, features: int, num_classes: int) -> list[nn.Module]:
    """Exit branches of all stages of a convolutional student.

    Args:
        dims: channels of its stages, first to last.
        features: width in front of the linear layers.
        num_classes: number of classes.

    Returns:
        One branch per stage.
    """
    return [
        cnn_exit(dim, halvings=len(dims) - 1 - i, features=features, num_classes=num_classes)
        for i, dim in enumerate(dims)
    ]


class OFAKD(nn.Module):
    """The loss of `Views`, trained with the student and left behind: one exit branch for each of the student's taps.

    Args:
        exits: branches in the order of the taps, from a tap's output to (B, num_classes).
        gamma: γ, at least 1.
        temperature: T, above 0.
        weight: w, weight of the branches.
        final: v, weight of the same loss on the student's own logits.

    Raises:
        ValueError: γ below 1.
    """

    def __init__(
        self,
        exits: Sequence[nn.Module],
        *,
        gamma: float = 1.0,
        temperature: float = 1.0,
        weight: float = 1.0,
        final: float = 1.0,
    ) -> None:
        super().__init__()
        if gamma < 1:
            raise ValueError(
                f"gamma must be at least 1, got {gamma}; 1 is soft cross-entropy, the paper takes 1 to 1.5"
            )
        self.exits = nn.ModuleList(exits)
        self.gamma, self.temperature, self.weight, self.final = gamma, temperature, weight, final

    def forward(self, views: Views) -> Tensor:
        """Loss of a batch.

        Args:
            views: what student and teacher make of it, with a tap for each branch.

        Returns:
            Scalar.

        Raises:
            ValueError: numbers of taps and branches that differ.
        """
        taps = views.student_features
        if len(taps) != len(self.exits):
            raise ValueError(f"{len(self.exits)} exits need as many student_taps, got {len(taps)}")
        logits = [leave(tap) for leave, tap in zip(self.exits, taps, strict=True)]
        values = [
            ofa(s, views.teacher, views.targets, gamma=self.gamma, temperature=self.temperature)
            for s in (*logits, views.student)
        ]
        branches = self.weight * torch.stack(values[:-1]).sum() if logits else 0.0
        return F.cross_entropy(views.student, views.targets) + branches + self.final * values[-1]


def _drawn(seed: int, *, same: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (2 * torch.randn(6, 5, generator=generator) for _ in range(2))
    return {"student": student, "teacher": student.clone() if same else teacher, "targets": torch.arange(6) % 5}


METHOD = Method(
    id=20,
    name="OFA-KD",
    kind="objective",
    summary="Stages of a student answer in logits, so that a teacher of any architecture can correct them.",
    paper=Paper(
        "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation",
        "Z. Hao et al.",
        2023,
        "arXiv:2310.19444",
    ),
    cases={
        "gamma 1": Objective(ofa, _drawn, ("student",), best=lambda seed: _drawn(seed, same=True)),
        "gamma 1.4": Objective(
            lambda student, teacher, targets: ofa(student, teacher, targets, gamma=1.4), _drawn, ("student",)
        ),
    },
)
