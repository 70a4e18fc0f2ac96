"""SiT: a vision transformer slims itself: convex combinations take the place of its patches, at several depths.

*Source*: Z. Zong et al., "Self-slimmed Vision Transformer", ECCV 2022 (arXiv:2111.12624): token slimming module
(section 3.2), feature recalibration distillation (section 3.3).

    A = softmax over patches of s · W₂ gelu(W₁ norm(x))      (B, N, M), M < N; s: a learned scale
    z = Aᵀ x                                                 slimmed tokens, (B, M, C)
    u = MLP over tokens(norm(z)),  u + MLP(norm(u))          reversed, only while training, (B, N, C)
    loss = loss(labels) + λ Σ_blocks mean (reversed − teacher)² / blocks + μ KL(teacher ‖ student)

The teacher is the same network before slimming, from whose weights the student starts. Where nothing is slimmed yet,
its patches are compared with the teacher's as they are. The class token passes the modules by.

Shapes: B batch, N patches, M tokens that are left, C channels.

*Differs from the paper*: networks are timm's vision transformers; the token labelling and the convolutional teacher of
LV-ViT are left out. The counts are N · keep, N · keep² …, rounded down, as in the authors' code (196, 98, 49, 24).
*Provenance*: written from the paper; layer sizes and the loss weights were looked up in the authors' code, whose two
modules, run by hand, give the same tokens to 4e-7.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Transform
from foveal.record import Method, Paper
from foveal.shrink.data import Data
from foveal.shrink.distill.distillation import Distil, Views, soft_targets
from foveal.shrink.tokens.between import blocks_of, insert_

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from foveal.shrink.step import Inputs

__all__ = ["Reverse", "SiT", "Slim", "SlimmingLoss", "slim_"]


class Slim(nn.Module):
    """Token slimming module, (B, N, C) to (B, M, C).

    Args:
        dim: C, at least 2.
        tokens: M.
    """

    def __init__(self, dim: int, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.scores = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, tokens))
        self.scale = nn.Parameter(torch.ones(()))

    def weights(self, x: Tensor) -> Tensor:
        """Weight of each patch in each token.

        Args:
            x: patches, (B, N, C).

        Returns:
            Weights, (B, M, N), at least 0; they sum to 1 over the patches.
        """
        return (self.scores(x) * self.scale).transpose(1, 2).softmax(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.weights(x) @ x


class Reverse(nn.Module):
    """Reverse token slimming module, (B, M, C) to (B, N, C).

    Args:
        dim: C.
        tokens: M.
        patches: N.
        ratio: channels inside both MLPs, over N and over C.
    """

    def __init__(self, dim: int, tokens: int, patches: int, *, ratio: float = 4.0) -> None:
        super().__init__()
        inner, hidden = int(patches * ratio), int(dim * ratio)
        self.norm = nn.LayerNorm(dim)
        self.over_tokens = nn.Sequential(nn.Linear(tokens, inner), nn.GELU(), nn.Linear(inner, patches))
        self.over_channels = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, z: Tensor) -> Tensor:
        u = self.over_tokens(self.norm(z).transpose(1, 2)).transpose(1, 2)
        return u + self.over_channels(u)


def slim_(model: nn.Module, *, after: Sequence[int], keep: float = 0.5) -> nn.Module:
    """Insert slimming modules, in place.

    Args:
        model: vision transformer of timm.
        after: numbers of blocks, from 1, after which tokens become fewer, ascending.
        keep: share of the tokens that each module leaves, in (0, 1).

    Returns:
        The same network.

    Raises:
        ValueError: too few blocks for `after`, or too few patches for `keep`.
    """
    depth = len(blocks_of(model, step="SiT"))
    if after[-1] >= depth:
        raise ValueError(f"after must stay below the {depth} blocks, got {tuple(after)}; the last has no use of it")
    network: Any = model
    dim, patches = network.embed_dim, network.patch_embed.num_patches
    counts = [int(patches * keep**i) for i in range(1, len(after) + 1)]
    if counts[-1] < 1:
        raise ValueError(f"keep must leave a token of {patches} after {len(after)} modules, got {keep}; raise it")
    modules = {number: Slim(dim, count) for number, count in zip(after, counts, strict=True)}
    return insert_(model, modules, step="SiT")


class SlimmingLoss(nn.Module):
    """Loss of labels, logits and recalibrated features; its reverse modules are trained and left behind.

    Args:
        student: slimmed network, see `slim_`.
        supervised: function from logits and labels to a scalar.
        feature: λ, weight of the features.
        logits: μ, weight of the logits.
        temperature: temperature of the logits.
    """

    def __init__(
        self,
        student: nn.Module,
        supervised: Callable[[Tensor, Tensor], Tensor],
        *,
        feature: float = 2.0,
        logits: float = 2.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.supervised, self.feature, self.logits, self.temperature = supervised, feature, logits, temperature
        network: Any = student
        blocks, self.protect = network.blocks, network.num_prefix_tokens
        patches, dim = network.patch_embed.num_patches, network.embed_dim
        self.student_taps: tuple[str, ...] = ()
        self.reverse = nn.ModuleList()
        tokens = patches
        for number in range(blocks.depth):
            module = blocks._modules.get(f"before_{number + 1}")
            if isinstance(module, Slim):
                tokens = module.tokens
            self.student_taps += (f"blocks.{number}" if module is None else f"blocks.before_{number + 1}",)
            self.reverse.append(nn.Identity() if tokens == patches else Reverse(dim, tokens, patches))
        self.teacher_taps = tuple(f"blocks.{number}" for number in range(blocks.depth))

    def forward(self, views: Views) -> Tensor:
        loss = self.supervised(views.student, views.targets)
        loss = loss + self.logits * soft_targets(views.student, views.teacher, temperature=self.temperature)
        gaps = []
        for name, reverse, made, taught in zip(
            self.student_taps, self.reverse, views.student_features, views.teacher_features, strict=True
        ):
            patches = made if "before" in name else made[:, self.protect :]
            gaps.append(F.mse_loss(reverse(patches), taught[:, self.protect :]))
        return loss + self.feature * torch.stack(gaps).mean()


@dataclass(frozen=True)
class SiT:
    """Step: slim a vision transformer of timm, and train it with itself as the teacher if the data has labels.

    Args:
        after: numbers of blocks, from 1, after which tokens become fewer, ascending.
        keep: share of the tokens that each module leaves, in (0, 1).
        steps: number of training steps, at least 1.
        lr: peak learning rate of AdamW, above 0.
        feature: weight of the features.
        logits: weight of the logits.

    Raises:
        ValueError: block numbers that do not rise from 1 on, or a share outside its range.
    """

    after: tuple[int, ...] = (3, 6, 9)
    keep: float = 0.5
    steps: int = 500
    lr: float = 2e-4
    feature: float = 2.0
    logits: float = 2.0

    def __post_init__(self) -> None:
        if not self.after or list(self.after) != sorted(set(self.after)) or self.after[0] < 1:
            raise ValueError(f"after must be rising numbers of blocks from 1 on, got {self.after}")
        if not 0 < self.keep < 1:
            raise ValueError(f"keep must be in (0, 1), got {self.keep}; 0.5 leaves half each time")

    def apply(self, model: nn.Module, data: Inputs | Data | None = None) -> nn.Module:
        """Insert the modules, and train.

        Args:
            model: trained vision transformer of timm.
            data: `Data` with `batches` and `loss`; without them the modules stay as they start, to be trained later.

        Returns:
            The same network.
        """
        teacher = copy.deepcopy(model)
        slim_(model, after=self.after, keep=self.keep)
        if not isinstance(data, Data) or data.batches is None or data.loss is None:
            return model
        loss = SlimmingLoss(model, data.loss, feature=self.feature, logits=self.logits)
        loss.to(next(model.parameters()).device)
        training = Distil(
            teacher,
            lambda: loss,
            steps=self.steps,
            lr=self.lr,
            student_taps=loss.student_taps,
            teacher_taps=loss.teacher_taps,
        )
        return training.apply(model, data)


def _tiny(seed: int) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionTransformer(img_size=12, patch_size=4, embed_dim=8, depth=3, num_heads=2, num_classes=3)


def _picture(seed: int) -> Tensor:
    return torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


def _distilled(model: nn.Module) -> nn.Module:
    labels = torch.tensor([0, 2])
    data = Data(_picture(0), lambda _: 0.0, batches=lambda step: (_picture(step), labels), loss=F.cross_entropy)
    return SiT(after=(1, 2), steps=2).apply(model, data)


METHOD = Method(
    id=300,
    name="SiT",
    kind="transform",
    summary="A vision transformer learns convex combinations of its tokens, taught by itself before slimming.",
    paper=Paper("Self-slimmed Vision Transformer", "Z. Zong et al.", 2022, "arXiv:2111.12624"),
    cases={"distilled": Transform(_distilled, _tiny, _picture, twice="model makes tokens fewer already")},
)
