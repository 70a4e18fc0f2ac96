"""Evidence for BAT-HMER: flipped layout trees, and handwritten formulas read with and without a backward decoder.

The rival is the forward decoder alone, of the same sizes, behind an encoder of the same kind, for as many steps on the
same batches. Expression accuracy is the share of 1,000 formulas, of digits that were never seen, of which every symbol
and relation is right.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import formulas
from foveal.evidence.trained_once import trained_once
from foveal.vlm.bat_hmer import BatHmer, Layout, TreeDecoder, loss, mirror, steps

FIRST, STEPS, ROWS, LR = 300, 450, 32, 2e-3  # steps of the encoder on single symbols, then of everything
DIM, GROWTH = 80, 16
SIZES: dict[str, Any] = {"hidden": 96, "embed": 64, "relation_embed": 16, "attention": 32, "reach": 5}
OWN = 1.0  # decoders learn on what they said themselves, the rival too


class _Dense(nn.Module):
    """Convolutions that see all that earlier ones made."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels + n * GROWTH, GROWTH, 3, padding=1, bias=False), nn.BatchNorm2d(GROWTH), nn.ReLU()
            )
            for n in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat((x, layer(x)), 1)
        return x


class _Encoder(nn.Module):
    """A small DenseNet, (B, 1, 32, 96) to (B, 80, 8, 24); it is told where a pixel is."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 5, 2, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU(), _Dense(16, 2),
            nn.Conv2d(48, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.AvgPool2d(2), _Dense(32, 3),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        y, across = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
        places = torch.stack((y.expand(height, width), across.expand(height, width)))
        return self.body(torch.cat((x, places.expand(len(x), -1, -1, -1)), 1))  # type: ignore[no-any-return]


@cached(maxsize=1)
@torch.inference_mode(False)
def _encoder() -> _Encoder:
    """Taught which symbol has its middle in a cell."""
    pictures, _, cells = formulas.pictures("train")
    none = len(formulas.SYMBOLS)
    weight = torch.ones(none + 1)
    weight[none] = 0.1  # most cells

    def batch(step: int) -> tuple[Tensor, Tensor]:
        which = torch.randint(len(pictures), (ROWS,), generator=torch.Generator().manual_seed(step))
        return pictures[which], cells[which]

    def see(net: Any, given: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(net(given[0]), given[1].where(given[1] >= 0, none), weight=weight)

    def train() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made, head = _Encoder(), nn.Conv2d(DIM, none + 1, 1)
        short_run(nn.Sequential(made, head), batch, see, steps=FIRST, lr=4e-3)
        return made

    key = f"encoder of formulas, {FIRST} steps of {ROWS}"
    made: Any = trained_once(_Encoder, train, modules=["foveal.evidence.vlm.bat_hmer"], key=key)
    return made  # type: ignore[no-any-return]


def _model(seed: int, *, both: bool) -> BatHmer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder, count = copy.deepcopy(_encoder()), len(formulas.SYMBOLS)
        back = TreeDecoder(count, DIM, **SIZES) if both else None
        return BatHmer(encoder, DIM, TreeDecoder(count, DIM, **SIZES, aided=both), back, own=OWN)


@cached(maxsize=8)
@torch.inference_mode(False)
def _trained(seed: int, *, both: bool) -> BatHmer:
    pictures, trees, _ = formulas.pictures("train")
    model = _model(seed, both=both)

    def batch(step: int) -> tuple[Tensor, list[Layout]]:
        generator = torch.Generator().manual_seed(100_000 * seed + step)
        which = torch.randint(len(trees), (4 if rehearsing() else ROWS,), generator=generator)
        return pictures[which], [trees[n] for n in which]

    def learn(net: Any, given: tuple[Tensor, list[Layout]]) -> Tensor:
        ways = (steps(given[1]), steps([mirror(tree) for tree in given[1]]))[: 1 + both]
        return loss(net(given[0], ways), ways)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        short_run(model, batch, learn, steps=STEPS, lr=LR, weight_decay=0.01, clip=1.0)
    return model


@cached(maxsize=8)
def _read(seed: int, *, both: bool) -> tuple[list[Layout], ...]:
    """The test formulas as they are read; with two decoders, also those of the backward one, turned round."""
    model, pictures = _trained(seed, both=both), formulas.pictures("test")[0]
    parts = [model.read(part, longest=2 * formulas.LONGEST) for part in pictures.split(100)]
    ahead, *back = ([tree for part in way for tree in part] for way in zip(*parts, strict=True))
    return ahead, *([mirror(tree) for tree in way] for way in back)


def _accuracy(seed: int, *, both: bool, way: int = 0) -> float:
    """Formulas read without a mistake, percent."""
    return 100 * float(
        np.mean([a == b for a, b in zip(_read(seed, both=both)[way], formulas.pictures("test")[1], strict=True)])
    )
