"""Evidence for SAT-HMR's tokens: exact when all are fine, and a toy detector of small and large digits.

A picture of 48×48 shows a digit of 24 pixels and three of 8, each on whole cells of 8 pixels; for each of the 36 cells
the network says which digit has its centre there, or none. Patches of 4 pixels are the fine ones, a cell is a coarse
one. A plain network is trained on fine patches and then further in three ways, equally long: all fine, all coarse, and
mixed, by the true map while it is trained and by its own when it is tested. "Most" of the accuracy means 80 % of the
way from all coarse to all fine, fixed beforehand.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.rivals.small import small_vit
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import digits
from foveal.evidence.timing import call
from foveal.record import bound, equal, faster, kept
from foveal.runtime.route import recording
from foveal.shrink.tokens.sat_hmr import SATHMR, map_loss

if TYPE_CHECKING:
    from collections.abc import Callable

CELL, SIDE, LARGE, SHOWN = 8, 6, 3, 3  # pixels of a cell, cells of a picture and of the large digit, small digits
NONE = 10  # class of a cell without the centre of a digit
STEPS, FURTHER, ROWS, TESTED = 450, 100, 32, 500
MOST = 0.8
DATA = f"pictures of four digits, {STEPS} steps of {ROWS} on fine patches, then {FURTHER}; {TESTED} test pictures"


@cached(maxsize=4)
@torch.inference_mode(False)
def _glyphs(part: str, cells: int) -> tuple[Tensor, Tensor]:
    return digits.pictures(part, side=cells * CELL)


def batch(part: str, count: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, what each cell shows the centre of, and the true scale maps.

    Args:
        part: whose digits are shown, "train" or "test".
        count: number of pictures, B.
        seed: seed.

    Returns:
        Pictures, (B, 1, 48, 48); classes, (B, 6, 6) int64; maps, (B, 2, 6, 6), scales as shares of the picture's side.
    """
    (large, first), (small, second) = _glyphs(part, LARGE), _glyphs(part, 1)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 1, SIDE * CELL, SIDE * CELL, generator=generator) / 3 - 2 / 3  # as a digit's background
    classes, maps = torch.full((count, SIDE, SIDE), NONE), torch.zeros(count, 2, SIDE, SIDE)
    corners = torch.randint(SIDE - LARGE + 1, (count, 2), generator=generator).tolist()
    rows = torch.randint(len(first), (count,), generator=generator).tolist()
    shown = torch.randint(len(second), (count, SHOWN), generator=generator).tolist()
    places = torch.rand(count, SIDE, SIDE, generator=generator)
    for i, (down, over) in enumerate(corners):
        block = (slice(down, down + LARGE), slice(over, over + LARGE))
        x[i, :, down * CELL : (down + LARGE) * CELL, over * CELL : (over + LARGE) * CELL] = large[rows[i]]
        classes[i, down + LARGE // 2, over + LARGE // 2] = first[rows[i]]
        maps[i, 0][block], maps[i, 1][block] = 1.0, LARGE / SIDE
        places[i][block] = -1.0
        for digit, place in zip(shown[i], places[i].flatten().topk(SHOWN).indices.tolist(), strict=True):
            row, column = divmod(place, SIDE)
            x[i, :, row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = small[digit]
            classes[i, row, column] = second[digit]
            maps[i, :, row, column] = torch.tensor([1.0, 1 / SIDE])
    return x, classes, maps


class Detector(nn.Module):
    """Classes of the cells, (B, 1, 48, 48) to (B, 11, 6, 6), and the scale map of an encoder that has one.

    Args:
        encoder: vision transformer of timm.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.embed_dim, NONE + 1)

    def mapped(self, x: Tensor, scales: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Classes and scale map.

        Args:
            x: pictures.
            scales: map that levels are chosen by; None takes the predicted one.

        Returns:
            Logits, (B, 11, 6, 6); the predicted map, (B, 2, 6, 6), or None.
        """
        found = None
        if hasattr(self.encoder, "encode"):
            tokens, found = self.encoder.encode(x, scales)
        else:
            tokens = self.encoder.forward_features(x)
        plane = tokens.transpose(1, 2).unflatten(2, (2 * SIDE, 2 * SIDE))
        return self.head(F.avg_pool2d(plane, 2).movedim(1, 3)).movedim(3, 1), found

    def forward(self, x: Tensor) -> Tensor:
        return self.mapped(x)[0]


def detector() -> Detector:
    """The plain network.

    Returns:
        Detector on fine patches.
    """
    return Detector(small_vit(dim=48, depth=4, patch=4, img_size=SIDE * CELL, in_chans=1, num_classes=0, fc_norm=False))


def _loss(model: Any, given: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    x, classes, maps = given
    said, found = model.mapped(x, maps)
    weight = torch.full((NONE + 1,), 1.0)
    weight[NONE] = 0.1  # as many cells are empty as ten for each digit
    task = F.cross_entropy(said, classes, weight=weight)
    return task if found is None or model.encoder.config.by != "scale" else task + map_loss(found, maps)


def _train(model: nn.Module, seed: int, *, steps: int, lr: float) -> nn.Module:
    rows = 4 if rehearsing() else ROWS
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return short_run(
            model,
            lambda step: batch("train", rows, seed=100_000 * seed + step + steps * 100_000_000),
            _loss,
            steps=steps,
            lr=lr,
            weight_decay=0.05,
            betas=(0.9, 0.98),
            clip=1.0,
        )


@cached(maxsize=4)
@torch.inference_mode(False)
def _begun(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = detector()
    return _train(model, seed, steps=STEPS, lr=3e-3)


@cached(maxsize=12)
@torch.inference_mode(False)
def trained(by: str, seed: int) -> Any:
    """A detector, trained on fine patches and then further.

    Args:
        by: how its tokens are chosen, see `SATHMR`.
        seed: seed of weights and pictures.

    Returns:
        The network in eval mode; do not modify it.
    """
    model: Any = copy.deepcopy(_begun(seed))
    if by != "high":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.encoder = SATHMR(layers=2, by=by).apply(model.encoder)
    return _train(model, seed, steps=FURTHER, lr=1e-3)


def accuracy(model: Any, part: str = "test", *, seed: int = 10**9, shuffled: bool = False) -> float:
    """F1 of the digits found, each in its cell.

    Args:
        model: detector.
        part: whose digits are shown.
        seed: seed of the pictures.
        shuffled: whether the predicted map's patches are put in another order before levels are chosen by it.

    Returns:
        Percent.
    """
    x, classes, _ = batch(part, 10 if rehearsing() else TESTED, seed=seed)
    order = torch.randperm(SIDE**2, generator=torch.Generator().manual_seed(0))
    found = []
    with torch.inference_mode():
        for y in x.split(100):
            said, scales = model.mapped(y)
            if shuffled:
                said, _ = model.mapped(y, scales.flatten(2)[..., order].view_as(scales))
            found.append(said.argmax(1))
    said = torch.cat(found)
    right = int(((said == classes) & (classes < NONE)).sum())
    return 200 * right / int((said < NONE).sum() + (classes < NONE).sum())


@cached(maxsize=12)
def _score(by: str, seed: int) -> float:
    return accuracy(trained(by, seed))


def _recovered(seed: int) -> float:
    """Accuracy over what most of the way from all coarse to all fine would be."""
    low, high = _score("low", seed), _score("high", seed)
    return _score("scale", seed) - (low + MOST * (high - low))


def _tokens(seed: int) -> float:
    """Tokens of the last blocks on test pictures, percent of the plain network's."""
    x = batch("test", 10 if rehearsing() else 100, seed=10**9)[0]
    with recording() as routes, torch.inference_mode():
        trained("scale", seed)(x)
    return 100 * routes[-1].counts[-1] / routes[-1].of[-1]


def _clocked(by: str) -> Callable[[], Any]:
    """Fifty test pictures through the trained network."""
    model, x = trained(by, 0), batch("test", 50, seed=10**9)[0]

    def run() -> Tensor:
        with torch.inference_mode():
            return model(x)

    return run


def _vit_s(by: str) -> nn.Module:
    """ViT-S/16 at 448 with a class token, its levels given: of 14 rows one is small, three are large, ten are empty."""
    model = small_vit(
        dim=384, depth=12, num_heads=6, patch=16, img_size=448, num_classes=1000, class_token=True, global_pool="token"
    )
    if by == "plain":
        return model
    mixed: Any = SATHMR(by="high" if by == "high" else "scale").apply(model)
    if by == "scale":
        scales = torch.zeros(1, 2, *mixed.grid)
        scales[:, 0, :4], scales[:, 1, 1:4] = 1.0, 0.8
        plainly = mixed.encode
        mixed.encode = lambda x: plainly(x, scales.expand(len(x), -1, -1, -1))
        mixed.forward = lambda x: mixed.model.forward_head(mixed.encode(x)[0])
    return mixed


def _counted() -> float:
    """Tokens of the last blocks of that ViT-S/16, one picture."""
    with recording() as routes, torch.inference_mode():
        _vit_s("scale").eval()(torch.zeros(1, 3, 448, 448))
    return routes[0].counts[-1]


def _encoded(by: str, *, tokens: bool) -> Tensor:
    """Last tokens or output of a small untrained network with class and register tokens."""
    torch.manual_seed(0)
    words: Any = {"class_token": True, "reg_tokens": 2, "global_pool": "token"}
    model: Any = small_vit(dim=24, depth=4, **words).eval()
    x = torch.rand(3, 3, 32, 32)
    network = model if by == "plain" else SATHMR(by=by).apply(model)
    with torch.inference_mode():
        return network.forward_features(x) if tokens else network(x)


CLAIMS = (
    equal(
        "With every patch read finely the encoder's tokens are those of the plain network at the high resolution.",
        ours=partial(_encoded, "high", tokens=True),
        theirs=partial(_encoded, "plain", tokens=True),
        clause=1,
    ),
    equal(
        "So is what the head makes of them.",
        ours=partial(_encoded, "high", tokens=False),
        theirs=partial(_encoded, "plain", tokens=False),
        clause=1,
    ),
    kept(
        "Fine patches find digits by at least 10 points more than coarse ones: else there is nothing to recover.",
        paper="high resolution helps where people are small",
        quality=lambda seed: _score("high", seed) - _score("low", seed),
        at_least=10.0,
        unit="points of F1",
        data=DATA,
        needs=digits.NEEDS,
        clause=2,
    ),
    kept(
        "Mixed tokens recover at least 80 % of the accuracy that fine patches have over coarse ones.",
        paper="accuracy of high resolution",
        quality=_recovered,
        at_least=0.0,
        unit="points above",
        data=DATA,
        needs=digits.NEEDS,
        clause=2,
    ),
    faster(
        "The mixed network takes less time than the one on fine patches, fifty test pictures at once.",
        paper="24 frames a second",
        ours=partial(_clocked, "scale"),
        theirs=partial(_clocked, "high"),
        needs=digits.NEEDS,
        clause=2,
    ),
    kept(
        "Levels chosen where the map says find more digits than as many of each level elsewhere.",
        paper="",
        quality=lambda seed: _score("scale", seed) - accuracy(trained("scale", seed), shuffled=True),
        at_least=10.0,
        unit="points of F1",
        data=DATA,
        needs=digits.NEEDS,
        beyond="the map is what recovers the accuracy",
    ),
    kept(
        "The last blocks of the mixed network work on at most half of the tokens.",
        paper="substantially reduced",
        quality=lambda seed: 50 - _tokens(seed),
        at_least=0.0,
        unit="points below",
        data="the first 100 test pictures",
        needs=digits.NEEDS,
        beyond="substantially fewer tokens",
    ),
    faster(
        "A ViT-S/16 at 448, of 14 rows one small, three large and ten empty, takes half the time, four at once.",
        paper="substantially reduced",
        ours=call(partial(_vit_s, "scale"), 4, 3, 448, 448),
        theirs=call(partial(_vit_s, "plain"), 4, 3, 448, 448),
        at_least=2.0,
        beyond="speed of a network of the usual size",
    ),
    bound(
        "That map leaves 134 of 785 tokens: the class token, 14 · 4 fine ones, 3 · 14 coarse ones, 5 · 7 pooled ones.",
        paper="exact",
        value=_counted,
        at_least=134,
        at_most=134,
        unit="tokens",
        beyond="token count for given scale maps",
    ),
)
