"""Evidence for ACLA: its reference, its time beside attention to all pixels, and denoising beside more convolutions.

Backbones are residual blocks without normalisation. With ACLA there are three of them, each followed by a layer that
reads the stages before it; the rival has a fourth block in place of the three layers, which costs exactly as much.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import rehearsing
from foveal.evidence.rivals.edsr import Block
from foveal.evidence.tasks import restoring
from foveal.evidence.timing import call, seconds
from foveal.measure.cost import count_macs
from foveal.nn.acla import ACLA, Insertion, cross_layer_attention, cross_layer_attention_plain
from foveal.record import bound, equal, grows, kept

STEPS, PATCH = 400, 32
NOISE = ("noise",)
DIM, STAGES, KEYS = 24, 3, 4
LAYERS = 2  # of the attention whose time is measured
SIDES, FULL_SIDES = (64, 96, 128, 192, 256), (32, 40, 48, 64)


class Backbone(nn.Module):
    """(B, 3, H, W) to the same, without noise.

    Args:
        blocks: number of residual blocks.
        attends: whether a layer of ACLA follows each block.
    """

    def __init__(self, *, blocks: int, attends: bool) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, DIM, 3, padding=1), nn.Conv2d(DIM, 3, 3, padding=1)
        self.body = nn.ModuleList(Block(DIM) for _ in range(blocks))
        self.attention = nn.ModuleList(ACLA(DIM, i + 1, KEYS) for i in range(blocks if attends else 0))

    def forward(self, x: Tensor) -> Tensor:
        features = self.head(x - 0.5)
        earlier = [features]
        for i, block in enumerate(self.body):
            features = block(features)
            if self.attention:
                attended = self.attention[i](features, earlier)
                earlier.append(features)
                features = attended
        return x + self.tail(features)


attending = partial(Backbone, blocks=STAGES, attends=True)
convolving = partial(Backbone, blocks=STAGES + 1, attends=False)


class _Alone(nn.Module):
    """A layer that reads its own input as each earlier layer, so that it has one input."""

    def __init__(self, layers: int = LAYERS) -> None:
        super().__init__()
        self.layer = ACLA(DIM, layers, KEYS)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, [x] * self.layer.layers)


class _Full(nn.Module):
    """Attention of each pixel to all pixels of as many layers."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Conv2d(DIM, DIM, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        # (B, L · H · W, C)
        key, value = (torch.cat([one(x).flatten(2).mT] * LAYERS, 1) for one in (self.key, self.value))
        weights = (self.query(x).flatten(2).mT @ key.mT / DIM**0.5).softmax(-1)
        return x + self.out((weights @ value).mT.unflatten(2, x.shape[2:]))


def _time(side: int, build: type[nn.Module]) -> float:
    """Seconds of a layer on a map of `side` × `side`; a rehearsal uses an eighth of the side."""
    side = side // 8 if rehearsing() else side
    return seconds(call(build, 1, DIM, side, side))


def _pixels(side: int) -> float:
    return float(side**2)


def _macs(build: partial[Backbone], side: int = 32) -> float:
    """Multiply-adds of a pixel, reading the keys (four pixels and their sum's weight each) included."""
    network = build()
    counted = count_macs(network, (1, 3, side, side)) / side**2
    layers = [module for module in network.modules() if isinstance(module, ACLA)]
    return counted + sum(4 * layer.layers * layer.keys * DIM for layer in layers)


def _gain(build: partial[Backbone], seed: int) -> float:
    model = restoring.trained(build, NOISE, steps=STEPS, seed=seed, patch=PATCH)
    return restoring.gain(model, NOISE)


def _difference(seed: int) -> float:
    return _gain(attending, seed) - _gain(convolving, seed)


def _drawn() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    shape = (2, 3, 5, 13, 17)
    return {
        "values": torch.randn(2, 3, 6, 13, 17, generator=draw),
        "offset": 3 * torch.randn(2, 3, 5, 2, 13, 17, generator=draw),
        "scores": torch.randn(shape, generator=draw),
        "kept": (torch.rand(shape, generator=draw) < 0.5).float(),
    }


def _one_pixel(*, ours: bool) -> Tensor:
    """With one key of one layer at a whole offset, a pixel gets that pixel."""
    x = torch.randn(1, 1, 4, 9, 11, generator=torch.Generator().manual_seed(0))
    if not ours:
        return F.pad(x[:, 0], (0, 3, 2, 0))[..., :9, 3:]
    offset = torch.tensor([-2.0, 3]).view(1, 1, 1, 2, 1, 1).expand(1, 1, 1, 2, 9, 11)
    ones = torch.ones(1, 1, 1, 9, 11)
    return cross_layer_attention(x, offset, ones, ones)


def _searched() -> float:
    """Share of the cost that is left when only the first place lowers the loss, 8 places that cost the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        search = Insertion([1.0] * 8)
        optimizer = torch.optim.Adam(search.parameters(), lr=0.1)
        for _ in range(200):
            loss = 1 - search()[0] + search.cost()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            chosen = search.eval()()
    return chosen.mean().item() if chosen[0] else 1.0


DATA = f"{STEPS} steps on bsds400 with noise; crops of 128 pixels of 30 of BSD100, RGB; paired"

CLAIMS = (
    grows(
        "Its time grows linearly in pixels, 64 to 256 a side, two layers.",
        paper="a few keys a layer",
        cost=partial(_time, build=_Alone),
        sizes=SIDES,
        of=_pixels,
        exponent=(0.8, 1.2),
        rounds=3,
        clause=1,
    ),
    grows(
        "The time of attention to all pixels of the two layers grows at least quadratically, 32 to 64 a side.",
        paper="quadratic",
        cost=partial(_time, build=_Full),
        sizes=FULL_SIDES,
        of=_pixels,
        exponent=(1.8, float("inf")),
        rounds=3,
        clause=1,
    ),
    kept(
        "After the same steps a denoiser with it is above one with more convolutions.",
        paper="effective",
        quality=_difference,
        at_least=0.0,
        data=DATA,
        needs=restoring.NEEDS,
        clause=2,
    ),
    bound(
        "The two take the same number of multiply-adds to 1 %, those of reading the keys included.",
        paper="",
        value=lambda: _macs(attending) / _macs(convolving),
        at_least=0.99,
        at_most=1.01,
        clause=2,
    ),
    kept(
        "The denoiser with it has learnt: it removes noise.",
        paper="",
        quality=partial(_gain, attending),
        at_least=0.0,
        data=DATA,
        needs=restoring.NEEDS,
        beyond="what is compared has been learnt",
    ),
    equal(
        "It equals the sum over all pixels of each layer, each weighed by how near a key lies to it.",
        ours=lambda: cross_layer_attention(**_drawn()),
        theirs=lambda: cross_layer_attention_plain(**_drawn()),
        tolerance=1e-5,
        beyond="keys at any place, some of them left out",
    ),
    equal(
        "With one key at a whole offset each pixel gets that pixel.",
        ours=lambda: _one_pixel(ours=True),
        theirs=lambda: _one_pixel(ours=False),
        beyond="keys at any place, some of them left out",
    ),
    bound(
        "A search of eight places, one of which lowers the loss, leaves that one.",
        paper="a compact network",
        value=_searched,
        at_most=1 / 8,
        beyond="places are searched under a cost",
    ),
)
