"""Classifiers that fail on damaged pictures: trained ResNets on CIFAR-10, adapted to its test pictures after damage.

An adaptation sees the damaged test pictures without labels and is scored on the same ones, as test-time adaptation is.
The floor is the classifier as it was.

Weights: `pretrained_models` of akamaster/pytorch_resnet_cifar10 (BSD-2), in a data folder under the name of that
repository.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.adapt.adapt import score
from foveal.adapt.methods import Pictures
from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.tasks import cifar10
from foveal.evidence.tasks.corruptions import CORRUPTIONS, corrupt
from foveal.measure import benchmarks

if TYPE_CHECKING:
    from collections.abc import Callable

    from foveal.adapt.delta import Delta

__all__ = ["DEPTHS", "NEEDS", "damaged", "error", "source"]

benchmarks.SETS.setdefault("cifar10_resnets", ("pytorch_resnet_cifar10/pretrained_models",))
NEEDS = (*cifar10.NEEDS, "cifar10_resnets")
DEPTHS = (20, 32)
LIMIT, DEGREE = 500, 4


class _Block(nn.Module):
    """Two 3×3 convolutions; a wider output pads the shortcut with as many channels on both sides."""

    def __init__(self, dim: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.side, self.stride = (out - dim) // 2, stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = F.pad(x[..., :: self.stride, :: self.stride], (0, 0, 0, 0, self.side, self.side))
        return F.relu(x + y)


class StoredResNet(nn.Module):
    """ResNet for CIFAR-10 with the layer names of the stored weights: (B, 3, 32, 32) to (B, 10).

    Args:
        depth: number of layers, 6n + 2.
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        count = (depth - 2) // 6
        for stage, (dim, out) in enumerate([(16, 16), (16, 32), (32, 64)], start=1):
            first = _Block(dim, out, 1 if stage == 1 else 2)
            setattr(self, f"layer{stage}", nn.Sequential(first, *(_Block(out, out, 1) for _ in range(count - 1))))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classify.

        Args:
            x: pictures, (B, 3, 32, 32), normalised by ImageNet's mean and deviation.

        Returns:
            Logits, (B, 10).
        """
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3):
            x = stage(x)  # type: ignore[operator]
        return self.linear(x.mean((2, 3)))


@cached(maxsize=2)
def source(depth: int) -> nn.Module:
    """A classifier that was trained on clean pictures.

    Args:
        depth: number of layers, of `DEPTHS`.

    Returns:
        The classifier in eval mode; do not modify it.
    """
    model = StoredResNet(8 if rehearsing() else depth)
    if not rehearsing():
        path = next(benchmarks.find("cifar10_resnets").glob(f"resnet{depth}-*.th"))
        stored: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        model.load_state_dict({name.removeprefix("module."): tensor for name, tensor in stored.items()})
    return model.eval()


@cached(maxsize=8)
def damaged(kind: str) -> tuple[Tensor, Tensor]:
    """Test pictures after damage.

    Args:
        kind: one of `CORRUPTIONS`.

    Returns:
        Pictures, (n, 3, 32, 32), normalised as the classifiers want them; labels, (n,).
    """
    x, labels = cifar10.pictures("test", limit=LIMIT)
    x = corrupt(x, kind, degree=DEGREE)
    ours, theirs = (
        [torch.tensor(values).view(1, 3, 1, 1) for values in pair]
        for pair in (
            ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
            ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        )
    )
    return (x * ours[1] + ours[0] - theirs[0]) / theirs[1], labels


def error(depth: int, adapter: Callable[[nn.Module, Pictures], Delta] | None) -> float:
    """Mean error over all kinds of damage.

    Args:
        depth: number of layers, of `DEPTHS`.
        adapter: function from classifier and pictures to a delta; None for the classifier as it was.

    Returns:
        Percent of the pictures that are classified wrongly.
    """
    model, total = source(depth), 0.0
    for kind in CORRUPTIONS:
        x, labels = damaged(kind)
        undo = adapter(model, Pictures(x)).fold_(model) if adapter is not None else lambda: None
        try:
            total += 100 - score(model, x, labels)
        finally:
            undo()
    return total / len(CORRUPTIONS)
