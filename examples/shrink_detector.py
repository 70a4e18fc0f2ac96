"""Shrink FastestDet, a detector of 80 kinds of things, on COCO pictures.

FOVEAL_DATA=data python examples/shrink_detector.py --weights weights/fastestdet.pth -o bundles/detector

The weights are `weights/weight_AP05:0.253207_280-epoch.pth` of dog-qiuqiu/FastestDet (BSD-3). The smaller network
learns from the maps of the untouched one, on pictures without labels; quality is AP50 on the pictures held out.
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_iou

from foveal.measure.benchmarks import folders
from foveal.runtime.classify import Framing
from foveal.shrink import Data, Distil, Prune, Quantise, untouched
from foveal.shrink.bundle import save_bundle
from foveal.shrink.distill.distillation import Views
from foveal.shrink.recipe import shrink
from foveal.shrink.step import Step

SIDE = 352


def conv(
    dim: int, out: int, kernel: int = 1, *, stride: int = 1, groups: int = 1, relu: bool = True
) -> list[nn.Module]:
    """A convolution and its batch norm."""
    layer = nn.Conv2d(dim, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(out), *([nn.ReLU()] if relu else [])]


class Unit(nn.Module):
    """ShuffleNet v2's unit (arXiv:1807.11164, figure 3): half of the channels pass, or all are halved in size."""

    def __init__(self, dim: int, out: int, stride: int) -> None:
        super().__init__()
        mid, own = out // 2, dim if stride == 2 else dim // 2
        deep = conv(mid, mid, 3, stride=stride, groups=mid, relu=False)
        self.branch_main = nn.Sequential(*conv(own, mid), *deep, *conv(mid, out - own))
        reduce = conv(dim, dim, 3, stride=2, groups=dim, relu=False)
        self.branch_proj = nn.Sequential(*reduce, *conv(dim, dim)) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        if self.branch_proj is not None:
            return torch.cat([self.branch_proj(x), self.branch_main(x)], 1)
        return torch.cat([x[:, ::2], self.branch_main(x[:, 1::2])], 1)


class Backbone(nn.Module):
    """Three sizes of features, strides 8, 16 and 32."""

    stage2: nn.Sequential
    stage3: nn.Sequential
    stage4: nn.Sequential

    def __init__(self) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(*conv(3, 24, 3, stride=2))
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        for stage, (dim, out, count) in enumerate(((24, 48, 4), (48, 96, 8), (96, 192, 4)), 2):
            units = [Unit(dim, out, 2), *(Unit(out, out, 1) for _ in range(count - 1))]
            self.add_module(f"stage{stage}", nn.Sequential(*units))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine = self.stage2(self.maxpool(self.first_conv(x)))
        middle = self.stage3(fine)
        return fine, middle, self.stage4(middle)


class Pyramid(nn.Module):
    """5×5 depthwise convolutions, one, two and three in a row."""

    S1: nn.Sequential
    S2: nn.Sequential
    S3: nn.Sequential

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.Conv1x1 = nn.ModuleDict({"conv1x1": nn.Sequential(*conv(dim, out))})
        for depth in (1, 2, 3):
            row = [layer for _ in range(depth) for layer in conv(out, out, 5, groups=out)]
            self.add_module(f"S{depth}", nn.Sequential(*row))
        self.output = nn.Sequential(*conv(3 * out, out, relu=False))

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv1x1["conv1x1"](x)
        return F.relu(x + self.output(torch.cat([self.S1(x), self.S2(x), self.S3(x)], 1)))


class Head(nn.Module):
    """For each place of the map whether there is something, its box, and what it is."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.conv1x1 = nn.ModuleDict({"conv1x1": nn.Sequential(*conv(dim, dim))})
        for name, out in (("obj", 1), ("reg", 4), ("cls", classes)):
            layers = [*conv(dim, dim, 5, groups=dim), *conv(dim, out, relu=False)]
            self.add_module(f"{name}_layers", nn.ModuleDict({"conv5x5": nn.Sequential(*layers)}))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1x1["conv1x1"](x)
        thing, box, kind = (getattr(self, f"{name}_layers")["conv5x5"](x) for name in ("obj", "reg", "cls"))
        return torch.cat([thing.sigmoid(), box, kind.softmax(1)], 1)


class FastestDet(nn.Module):
    """(B, 3, 352, 352), blue first, in [0, 1], to (B, 85, 22, 22)."""

    def __init__(self, classes: int = 80) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.avg_pool = nn.AvgPool2d(3, 2, 1)
        self.upsample = nn.Upsample(scale_factor=2)
        self.SPP = Pyramid(48 + 96 + 192, 96)
        self.detect_head = Head(96, classes)

    def forward(self, x: Tensor) -> Tensor:
        fine, middle, coarse = self.backbone(x)
        return self.detect_head(self.SPP(torch.cat([self.avg_pool(fine), middle, self.upsample(coarse)], 1)))


def detector(weights: Path) -> nn.Module:
    """The trained network."""
    model = FastestDet()
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model.eval()


def boxes(maps: Tensor, *, least: float = 0.01) -> list[Tensor]:
    """Boxes of each picture, (n, 6): left, top, right, bottom in parts of the picture, score, class."""
    found = []
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in maps.shape[2:]), indexing="ij")
    for one in maps:
        score, kind = one[5:].max(0)
        score = one[0].clamp_min(0) ** 0.6 * score.clamp_min(0) ** 0.4
        x, y = (one[1].tanh() + columns) / maps.shape[3], (one[2].tanh() + rows) / maps.shape[2]
        width, height = one[3].sigmoid() / 2, one[4].sigmoid() / 2
        every = torch.stack([x - width, y - height, x + width, y + height, score, kind.to(score)]).flatten(1).T
        every = every[every[:, 4] > least]
        found.append(every[batched_nms(every[:, :4], every[:, 4], every[:, 5], 0.45)])
    return found


def average_precision(found: Sequence[Tensor], truth: Sequence[Tensor], *, overlap: float = 0.5) -> float:
    """Mean over the classes of the area under precision and recall, in percent.

    `found` as `boxes` gives it; `truth`, (n, 5) for each picture: the box and its class.
    """
    hits: dict[float, list[tuple[float, bool]]] = defaultdict(list)
    for ours, theirs in zip(found, truth, strict=True):
        shared = box_iou(ours[:, :4], theirs[:, :4]).numpy() * (ours[:, 5:] == theirs[:, 4]).numpy()
        for i in ours[:, 4].argsort(descending=True).tolist():  # the surest first; each thing is found once
            best = int(shared[i].argmax()) if len(theirs) else 0
            right = len(theirs) > 0 and bool(shared[i, best] >= overlap)
            hits[float(ours[i, 5])].append((float(ours[i, 4]), right))
            if right:
                shared[:, best] = 0
    every = []
    for kind, count in Counter(torch.cat([t[:, 4] for t in truth]).tolist()).items():
        order = np.array([right for _, right in sorted(hits[kind], key=lambda hit: -hit[0])], bool)
        precision, recall = np.cumsum(order) / np.arange(1, len(order) + 1), np.cumsum(order) / count
        every.append(np.mean([max(precision[recall >= r], default=0.0) for r in np.linspace(0, 1, 101)]))
    return 100 * float(np.mean(every))


@cache
def pictures(part: str) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Pictures of COCO, (n, 3, 352, 352) uint8, blue first, and their boxes as `average_precision` takes them."""
    place = next(folder / "coco256" for folder in folders() if (folder / "coco256").is_dir())
    shown, truth = [], []
    for path in sorted((place / "images" / part).iterdir()):
        with Image.open(path) as opened:
            pixels = np.asarray(opened.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        shown.append(torch.from_numpy(pixels[..., ::-1].copy()).permute(2, 0, 1))
        written = place / "boxes" / part / f"{path.stem}.txt"
        lines = written.read_text().splitlines() if written.is_file() else []  # nothing to be seen
        given = torch.tensor([[float(word) for word in line.split()] for line in lines])
        kind, middle, half = given.reshape(-1, 5).split([1, 2, 2], 1)
        truth.append(torch.cat([middle - half / 2, middle + half / 2, kind], 1))
    return torch.stack(shown), tuple(truth)


def coco() -> Data:
    """Pictures to learn from, flipped and shifted, and AP50 of those held out."""
    train, _ = pictures("train2017")
    held, truth = pictures("val2017")

    def batches(step: int) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(step)
        x = train[torch.randint(len(train), (16,), generator=draw)].float() / 255
        top, left = torch.randint(-48, 49, (2,), generator=draw).tolist()
        x = x.roll((top, left), (2, 3)).contiguous(memory_format=torch.channels_last)  # twice as fast
        return (x.flip(3) if step % 2 else x), torch.zeros(16)

    def quality(model: nn.Module) -> float:
        with torch.inference_mode():
            maps = torch.cat([model(part.float() / 255) for part in held.split(16)])
        return average_precision(boxes(maps), truth)

    name = f"{len(held)} pictures of COCO"
    return Data(train.float() / 255, quality, "AP50", name, batches, lambda out, _: out.mean())


def like_the_teacher(views: Views) -> Tensor:
    """Distance of the maps: of things and kinds as probabilities, of boxes where the teacher sees something."""
    mine, theirs = views.student, views.teacher
    thing = F.binary_cross_entropy(mine[:, :1].clamp(1e-6, 1 - 1e-6), theirs[:, :1])
    box = (theirs[:, :1] * (mine[:, 1:5] - theirs[:, 1:5]).abs()).sum() / theirs[:, :1].sum().clamp_min(1)
    kind = -(theirs[:, :1] * theirs[:, 5:] * mine[:, 5:].clamp_min(1e-6).log()).sum() / theirs[:, :1].sum().clamp_min(1)
    return 10 * thing + box + kind


def maps() -> Callable[[Views], Tensor]:
    """The loss of the distillation."""
    return like_the_teacher


def recipe(keep: float, steps: int) -> list[Step]:
    """Prune, distil, int8; at keep = 1 int8 alone."""
    if keep == 1:
        return [Quantise(samples=128)]
    taught = Distil(untouched, loss=maps, steps=steps, lr=1e-3)
    return [Prune(keep=keep), taught, Quantise(samples=128)]


def main() -> None:
    """Shrink it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="the .pth file")
    parser.add_argument("--keep", type=float, default=1.0, help="share of each width that stays")
    parser.add_argument("--steps", type=int, default=600, help="training steps")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the bundle")
    given = parser.parse_args()
    shrunk = shrink(detector(given.weights), recipe(given.keep, given.steps), coco(), tell=print)
    save_bundle(shrunk, given.out, framing=Framing((SIDE, SIDE)), purpose="dense", licence="BSD-3", overwrite=True)
    print(f"{given.out}: {1 / shrunk.last.untouched.median:.2f} times as fast, {shrunk.lost:+.1f} AP50")


if __name__ == "__main__":
    main()
