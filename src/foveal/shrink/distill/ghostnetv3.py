"""GhostNetV3: train a compact network with parallel branches and a teacher, then fold the branches into single layers.

*Source*: Z. Liu et al., "GhostNetV3: Exploring the Training Strategies for Compact Models", 2024 (arXiv:2404.11202),
section 3. A convolution is trained as a sum of branches, each followed by batch normalisation: three k×k convolutions,
a 1×1 one if it is depthwise, the identity if it keeps its shape. With γ, β, μ, σ of each normalisation they are

    W = Σ γ/σ · pad(W_branch),  b = Σ β - γ μ/σ                      one k×k convolution, (out, in/groups, k, k)
    loss = (1 - α) cross-entropy(s, y) + α T² KL(softmax(t/T) ‖ softmax(s/T))      s, t: logits, (B, classes)

No Mixup and no CutMix: they cost compact networks accuracy. Without branches the network is GhostNetV2.

*Differs from the paper*: the recipe here is its loss. Its learning-rate schedule belongs to whoever trains, and so does
the running average of weights.
*Provenance*: networks and folding are timm's (`timm:ghostnetv3_130`); the loss was written from the paper. α and T are
not the paper's: they are set for short trainings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.models.ghostnet import GhostModuleV3, GhostNet
from timm.utils import reparameterize_model
from torch import Tensor, nn

from foveal.cases import Transform
from foveal.record import Method, Paper
from foveal.shrink.distill.distillation import soft_targets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foveal.shrink.distill.distillation import Views
    from foveal.shrink.step import Inputs

__all__ = ["STAGES", "FoldBranches", "Row", "ghostnet", "taught"]

Row = tuple[int, int, int, float, int]  # kernel size, hidden channels, output channels, squeeze ratio, stride

# Bottlenecks by stage at width 1, GhostNet's table (arXiv:1911.11907, table 1).
STAGES: tuple[tuple[Row, ...], ...] = (
    ((3, 16, 16, 0, 1),),
    ((3, 48, 24, 0, 2),),
    ((3, 72, 24, 0, 1),),
    ((5, 72, 40, 0.25, 2),),
    ((5, 120, 40, 0.25, 1),),
    ((3, 240, 80, 0, 2),),
    ((3, 200, 80, 0, 1), (3, 184, 80, 0, 1), (3, 184, 80, 0, 1), (3, 480, 112, 0.25, 1), (3, 672, 112, 0.25, 1)),
    ((5, 672, 160, 0.25, 2),),
    ((5, 960, 160, 0, 1), (5, 960, 160, 0.25, 1), (5, 960, 160, 0, 1), (5, 960, 160, 0.25, 1)),
)


def ghostnet(
    width: float = 1.0,
    *,
    branches: bool = True,
    stages: Sequence[Sequence[Row]] = STAGES,
    stem_stride: int = 2,
    num_classes: int = 1000,
    drop_rate: float = 0.2,
) -> nn.Module:
    """A GhostNet of any width and depth: (B, 3, H, W) to (B, num_classes).

    Args:
        width: factor on all channels; 1.3 with the defaults is timm's `ghostnetv3_130`.
        branches: True builds GhostNetV3 as it is trained, False GhostNetV2.
        stages: bottlenecks by stage, channels at width 1.
        stem_stride: stride of the first convolution; 1 suits pictures of 32 pixels and less.
        num_classes: number of classes.
        drop_rate: dropout in front of the classifier.

    Returns:
        The network, with random weights.
    """
    table = [[list(row) for row in stage] for stage in stages]
    version = "v3" if branches else "v2"
    model = GhostNet(table, num_classes=num_classes, width=width, drop_rate=drop_rate, version=version)
    model.conv_stem.stride = (stem_stride, stem_stride)
    return model


def taught(views: Views, *, alpha: float = 0.5, temperature: float = 4.0) -> Tensor:
    """Loss of the recipe: labels and a strong teacher.

    Args:
        views: what student and teacher make of a batch.
        alpha: weight of the teacher, in [0, 1]; the labels have the rest.
        temperature: T, above 0.

    Returns:
        Scalar.
    """
    labels = F.cross_entropy(views.student, views.targets)
    return (1 - alpha) * labels + alpha * soft_targets(views.student, views.teacher, temperature=temperature)


@dataclass(frozen=True)
class FoldBranches:
    """Step: fold the parallel branches of a GhostNetV3. Outputs in eval mode stay what they were."""

    def apply(self, model: nn.Module, data: Inputs | None = None) -> nn.Module:  # noqa: ARG002 - nothing is calibrated
        """Fold a trained network.

        Args:
            model: network with branches, from `ghostnet` or one of timm's `ghostnetv3_*`; it is left as it is.
            data: not used.

        Returns:
            Folded copy in eval mode, without normalisation where branches were; it is not meant to be trained.

        Raises:
            TypeError: a network without GhostNetV3's modules.
            ValueError: a network that was folded before.
        """
        ghosts = [module for module in model.modules() if isinstance(module, GhostModuleV3)]
        if not ghosts:
            raise TypeError(f"model must be a GhostNetV3, got {type(model).__name__}; build one with branches=True")
        if all(ghost.infer_mode for ghost in ghosts):
            raise ValueError("the branches are folded already; use the network as it is")
        return reparameterize_model(model).eval()


def _settled(model: nn.Module, seed: int) -> nn.Module:
    """Give every normalisation statistics and weights of its own, as after a training."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, mean in ((module.weight.data, 1.0), (module.bias.data, 0.0)):
                values.copy_(mean + 0.2 * torch.randn(values.shape, generator=generator))
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(0.2 * torch.randn(module.running_mean.shape, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
    return model.eval()


def _tiny(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _settled(ghostnet(0.25, stages=STAGES[1:4], stem_stride=1, num_classes=3), seed)


METHOD = Method(
    id=21,
    name="GhostNetV3",
    kind="transform",
    summary="A compact network is trained with parallel branches and a teacher, and its branches are folded away.",
    paper=Paper(
        "GhostNetV3: Exploring the Training Strategies for Compact Models", "Z. Liu et al.", 2024, "arXiv:2404.11202"
    ),
    cases={
        "three stages": Transform(
            FoldBranches().apply,
            _tiny,
            lambda seed: torch.rand(2, 3, 16, 12, generator=torch.Generator().manual_seed(seed)),
            FoldBranches().apply,
            twice="the branches are folded already",
        )
    },
)
