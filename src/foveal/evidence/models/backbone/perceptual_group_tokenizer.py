"""Evidence for the Perceptual Group Tokenizer: one checkpoint without labels, read with 8 to 64 groups.

A tiny network is trained on CIFAR-10 by self-distillation as in DINO (M. Caron et al., arXiv:2104.14294): two views of
each picture, a teacher that is the moving average of the student, outputs centred and sharpened. It is trained with 16
groups and read with 8, 16, 32 and 64. A probe is ridge regression from the mean of the patches behind each layer to the
classes, on 2,000 labelled training pictures; its penalty is chosen on 1,000 further ones.
"""

from __future__ import annotations

import copy
import itertools
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import cifar10, digits
from foveal.measure.cost import count_macs
from foveal.models.backbone.perceptual_group_tokenizer import PerceptualGroupTokenizer
from foveal.record import bound, equal, kept

if TYPE_CHECKING:
    from collections.abc import Callable

COUNTS = (8, 16, 32, 64)
STEPS, BATCH, RATE, PROTOTYPES = 400, 64, 1e-3, 256
LABELLED, CHOSEN = 2000, 1000
DIM, DEPTH, HEADS, ROUNDS, PATCHES = 64, 2, 4, 2, 64
DATA = (
    f"CIFAR-10 without labels, {STEPS} steps of {BATCH}; probe on {LABELLED:,} labelled pictures, 2,000 test pictures"
)

tiny = partial(
    PerceptualGroupTokenizer,
    dim=DIM,
    depth=DEPTH,
    num_heads=HEADS,
    groups=16,
    rounds=ROUNDS,
    patch_size=4,
    grid=(8, 8),
    num_classes=0,
    mlp_ratio=2.0,
)


def _view(x: Tensor) -> Tensor:
    """Crops of 30 to 100 % of the area, mirrored or not, of other brightness, contrast and colour, in shades or not."""
    count = len(x)
    side = (0.3 + 0.7 * torch.rand(count)).sqrt()
    shift = (1 - side)[:, None] * (2 * torch.rand(count, 2) - 1)
    mirrored = 1 - 2.0 * torch.randint(2, (count,))
    zero = torch.zeros(count)
    matrix = torch.stack((side * mirrored, zero, shift[:, 0], zero, side, shift[:, 1]), 1).view(count, 2, 3)
    x = F.grid_sample(x, F.affine_grid(matrix, list(x.shape), align_corners=False), align_corners=False)
    contrast, colour = 0.7 + 0.6 * torch.rand(count, 1, 1, 1), 0.3 * torch.randn(count, 3, 1, 1)
    shades = (torch.rand(count, 1, 1, 1) < 0.2).float()
    x = x * contrast + colour
    return x * (1 - shades) + x.mean(1, keepdim=True) * shades


class _Distilled(nn.Module):
    """Student, teacher and centre of DINO; called with two views, it gives the loss."""

    def __init__(self) -> None:
        super().__init__()
        head = nn.Sequential(nn.Linear(DIM, 128), nn.GELU(), nn.Linear(128, 64))
        self.student = nn.ModuleList([tiny(), head, nn.Linear(64, PROTOTYPES, bias=False)])
        self.teacher = copy.deepcopy(self.student).requires_grad_(requires_grad=False)
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(PROTOTYPES))

    @staticmethod
    def _scores(parts: nn.ModuleList, x: Tensor) -> Tensor:
        net, head, prototypes = parts
        weight: Any = prototypes.weight
        return F.normalize(head(net(x)), dim=1) @ F.normalize(weight, dim=1).T

    def forward(self, views: tuple[Tensor, Tensor]) -> Tensor:
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                slow.lerp_(fast, 0.01)
            every = self._scores(self.teacher, torch.cat(views))
            wanted = ((every - self.centre) / 0.04).softmax(1)
            self.centre.lerp_(every.mean(0), 0.1)
        # the teacher's second view for the student's first, and the other way round
        found = (self._scores(self.student, torch.cat(views)) / 0.1).log_softmax(1)
        return -(wanted.roll(len(views[0]), 0) * found).sum(1).mean()


@cached(maxsize=6)
def _network(seed: int, *, trained: bool) -> PerceptualGroupTokenizer:
    """The teacher after training, or the network as it begins."""
    photos = cifar10.pictures("train")[0]

    def batches(_: int) -> tuple[Tensor, Tensor]:
        x = photos[torch.randint(len(photos), (BATCH,))]
        return _view(x), _view(x)

    with torch.inference_mode(mode=False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _Distilled()
        if trained:
            short_run(
                model, batches, lambda model, views: model(views), steps=STEPS, lr=RATE, weight_decay=0.04, clip=1.0
            )
        net: Any = model.teacher[0]
        return net.eval()


def _features(model: PerceptualGroupTokenizer, groups: int, x: Tensor) -> Tensor:
    """Means of the patches behind each layer, (n, depth · C)."""
    model.set_groups(groups)
    with torch.inference_mode():
        found = [model.forward_intermediates(part, norm=True, intermediates_only=True) for part in x.split(250)]
    return torch.cat([torch.cat([level.mean((2, 3)) for level in maps], 1) for maps in found])


def _probe(read: Callable[[Tensor], Tensor]) -> float:
    """Percent of the test pictures that a linear probe classifies correctly."""
    x, labels = cifar10.pictures("train")
    most = min(LABELLED + CHOSEN, len(x))
    fit = most * 2 // 3
    test, answers = cifar10.pictures("test", limit=2000)
    known, asked = read(x[:most]).flatten(1).double(), read(test).flatten(1).double()
    mean, deviation = known[:fit].mean(0), known[:fit].std(0) + 1e-6
    known, asked = ((part - mean) / deviation for part in (known, asked))
    wanted = F.one_hot(labels[:fit], 10).double() - 0.1
    # rows by rows or columns by columns, whichever is smaller
    wide = known.shape[1] > fit
    gram = known[:fit] @ known[:fit].T if wide else known[:fit].T @ known[:fit]
    best, right = -1.0, 0.0
    for penalty in (1.0, 10.0, 100.0, 1e3, 1e4):
        ridge = gram + penalty * torch.eye(len(gram), dtype=torch.float64)
        weight = (
            known[:fit].T @ torch.linalg.solve(ridge, wanted)
            if wide
            else torch.linalg.solve(ridge, known[:fit].T @ wanted)
        )
        here = float(((known[fit:] @ weight).argmax(1) == labels[fit:most]).double().mean())
        if here > best:
            best, right = here, float(((asked @ weight).argmax(1) == answers).double().mean())
    return 100 * right


@cached(maxsize=24)
def _read(seed: int, groups: int, *, trained: bool) -> float:
    return _probe(partial(_features, _network(seed, trained=trained), groups))


@cached(maxsize=1)
def _pixels() -> float:
    return _probe(lambda x: x)


def _above_pixels(seed: int) -> float:
    """The least advantage over pixels at any number of groups."""
    return min(_read(seed, groups, trained=True) for groups in COUNTS) - _pixels()


def _above_random(seed: int) -> float:
    """The least advantage over the network before training at any number of groups."""
    return min(_read(seed, groups, trained=True) - _read(seed, groups, trained=False) for groups in COUNTS)


def _steadiness(seed: int) -> float:
    """The largest step of the curve between neighbouring numbers of groups, negative."""
    curve = [_read(seed, groups, trained=True) for groups in COUNTS]
    return -max(abs(b - a) for a, b in itertools.pairwise(curve))


def _counted(groups: int) -> float:
    model = tiny()
    model.set_groups(groups)
    return float(count_macs(model, (1, 3, 32, 32)))


def _by_formula(groups: int) -> float:
    inner = DIM // HEADS
    patches = PATCHES * (2 + 1 + 2 * 2) * DIM**2  # keys and values, output, MLP
    group = groups * HEADS * ROUNDS * inner**2 * (1 + 6 + 2 * 2)  # query, GRU, MLP
    between = (2 * ROUNDS + 1) * PATCHES * groups * DIM
    return float(DEPTH * (patches + group + between) + PATCHES * 48 * DIM)


def _costs(cost: Callable[[int], float]) -> Tensor:
    return torch.tensor([cost(groups) for groups in COUNTS], dtype=torch.float64)


@cached(maxsize=1)
def _marked() -> tuple[Tensor, Tensor]:
    """Photographs with a white digit in each, (n, 3, 32, 32), and which patches it covers, (n, 8, 8)."""
    with torch.inference_mode(mode=False):
        ink = (digits.pictures("test", side=24)[0][:500] * 0.3 + 0.2).clamp(0, 1)
        photos = cifar10.pictures("test")[0][: len(ink)]
        generator, canvas = torch.Generator().manual_seed(0), torch.zeros(len(ink), 1, 32, 32)
        for one, drawn in zip(canvas, ink, strict=True):
            top, left = torch.randint(9, (2,), generator=generator).tolist()
            one[:, top : top + 24, left : left + 24] = drawn
        covered = F.avg_pool2d(canvas, 4)[:, 0] > 0.3
        return photos * (1 - canvas) + 2.5 * canvas, covered


def _best_overlap(parts: Tensor, covered: Tensor) -> Tensor:
    """The best intersection over union of any part, (n, M, 8, 8) and (n, 8, 8) bool to (n,)."""
    both = (parts & covered[:, None]).sum((2, 3))
    either = (parts | covered[:, None]).sum((2, 3))
    return (both / either.clamp(min=1)).amax(1)


def _overlap(seed: int, groups: int, *, trained: bool = True) -> float:
    """Best group of a head of the last layer, mean over heads and pictures, percent."""
    x, covered = _marked()
    model = _network(seed, trained=trained)
    model.set_groups(groups)
    with torch.inference_mode():
        shares = model.group_maps(x)
    owner = shares.argmax(2)
    parts = torch.stack([owner == m for m in range(groups)], 2)  # (n, heads, M, 8, 8)
    return 100 * float(torch.stack([_best_overlap(parts[:, head], covered).mean() for head in range(HEADS)]).mean())


def _grid_overlap(groups: int) -> float:
    """The same of as many equal cells of a grid."""
    _, covered = _marked()
    rows = {8: 2, 16: 4, 32: 4, 64: 8}[groups]
    columns = groups // rows
    number = (torch.arange(8) * rows // 8)[:, None] * columns + torch.arange(8) * columns // 8
    cells = torch.stack([number == m for m in range(groups)])
    return 100 * float(_best_overlap(cells.expand(len(covered), -1, -1, -1), covered).mean())


def _over_grid(seed: int) -> float:
    """The least advantage over the grid at any number of groups."""
    return min(_overlap(seed, groups) - _grid_overlap(groups) for groups in COUNTS)


WHERE = "500 CIFAR-10 test photographs with a rendered digit, patches of 4×4; 8 to 64 groups of the last layer's heads"

CLAIMS = (
    equal(
        "Multiply-adds are those of patches, of group tokens, and C times patches times groups.",
        paper="patches × groups",
        ours=partial(_costs, _counted),
        theirs=partial(_costs, _by_formula),
        tolerance=0.0,
        beyond="attention cost",
    ),
    bound(
        "Each doubling from 8 to 64 groups costs more multiply-adds than the number before: the least factor.",
        paper="adaptive computation",
        value=lambda: min(_counted(b) / _counted(a) for a, b in itertools.pairwise(COUNTS)),
        at_least=1.01,
        unit="times",
        clause=1,
    ),
    kept(
        "With 8, 16, 32 and 64 groups the probe is at least as accurate as one on pixels.",
        paper="80.3 % on ImageNet",
        quality=_above_pixels,
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        clause=2,
    ),
    kept(
        "With 8, 16, 32 and 64 groups it is at least as accurate as one on the network before training.",
        paper="80.3 % on ImageNet",
        quality=_above_random,
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        clause=2,
    ),
    kept(
        "No doubling of the groups changes the probe's accuracy by more than 3 points.",
        paper="adaptive computation without re-training",
        quality=_steadiness,
        at_least=-3.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        clause=2,
    ),
    kept(
        "The best group overlaps a digit more than the best of as many grid cells does.",
        paper="groups are objects and parts",
        quality=_over_grid,
        at_least=0.0,
        unit="points of overlap",
        data=WHERE,
        needs=cifar10.NEEDS,
        clause=3,
    ),
    kept(
        "With 16 groups it overlaps more than the best group of the network before training.",
        paper="groups are objects and parts",
        quality=lambda seed: _overlap(seed, 16) - _overlap(seed, 16, trained=False),
        at_least=0.0,
        unit="points of overlap",
        data=WHERE,
        needs=cifar10.NEEDS,
        beyond="groups are learned",
    ),
)
