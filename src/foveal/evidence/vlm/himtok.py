"""Evidence for HiMTok: handwritten digits and boxes as tokens, and a reader that finds the tokens in a picture.

A mask has 48×48 pixels and shows a digit of MNIST in its left or right half, 26 to 34 pixels high and in bold type (its
strokes widened by two pixels to all sides), or, in a quarter of the training masks, a filled box anywhere. The
tokenizer first learns without rounding to codes, from whole sequences, then with it; half of the masks of a step are
then decoded from all tokens, the others from prefixes of any length. Run-length coding loses nothing, tokens do: bits
are those that give the IoU of the claim before. A scene is a picture of CIFAR-10, enlarged to 48×48, with a digit in
each half, of two classes and two colours; asked is for the mask of one class. The reader, a few convolutions and three
blocks, says the tokens one after another, and learns by cross-entropy and by the mask loss through the frozen decoder.
Its rival is a U-Net of at least as many parameters as reader and decoder have together, told the class in every block
and trained for as many steps on the same scenes.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import cifar10, mnist
from foveal.evidence.trained_once import trained_once
from foveal.nn.unet import UNet
from foveal.record import bound, equal, kept
from foveal.vlm.himtok import (
    Block,
    Each,
    MaskTokenizer,
    attends,
    box_mask,
    extent,
    mask_loss,
    quantize,
    run_length_bits,
)

if TYPE_CHECKING:
    from collections.abc import Callable

NEEDS = mnist.NEEDS
SIDE, HALF, PATCH, DIM, DEPTH, HEADS = 48, 24, 12, 64, 2, 4
TOKENS, CODES, CODE, BITS = 32, 1024, 12, 10
FREE, ROUNDED, ROWS = 500, 4000, 32  # steps without and with rounding to codes, masks of a step
DICE = 1.0  # weight of the Dice loss, for all networks
READ, CLASSES = 900, 10  # steps of reader and U-Net
LENGTHS = (1, 2, 4, 8, 16, 32)
COUNT = {"train": 20_000, "test": 400}
DATA = f"{COUNT['test']} digits of MNIST's test part on 48×48; {FREE} + {ROUNDED} steps of {ROWS} masks"
SCENES = f"{COUNT['test']} scenes of two digits on CIFAR-10, test parts; {READ} steps of {ROWS}; tokenizers: {DATA}"
MODULE = "foveal.evidence.vlm.himtok"


@cached(maxsize=2)
@torch.inference_mode(False)
def _digits(part: str) -> tuple[Tensor, Tensor]:
    """Masks of digits, cut to their extent, (n, 34, 22), bool and empty beyond; labels, (n,)."""
    count = 20 if rehearsing() else COUNT[part]
    draw = np.random.default_rng(len(part))
    x, labels = (shown[:count] for shown in mnist.digits(part))
    made = torch.zeros(count, 34, 22, dtype=torch.bool)
    for picture, mask in zip(torch.from_numpy(x / 255).float(), made, strict=True):
        top, left, bottom, right = extent(picture[None] > 0.2)[0].tolist()
        height = int(draw.integers(26, 35))
        width = min(max(round((right - left) * height / (bottom - top)), 10), 22)
        cut = picture[None, None, top:bottom, left:right]
        thin = F.interpolate(cut, (height - 4, width - 4), mode="bicubic", antialias=True) > 0.3
        mask[:height, :width] = F.max_pool2d(F.pad(thin.float(), (2, 2, 2, 2)), 5, 1, 2)[0, 0] > 0
    return made, torch.from_numpy(labels)


def _placed(digits: Tensor, right: Tensor, generator: torch.Generator) -> Tensor:
    """Put digits, (n, 34, 22), into the left or right half, (n, 48, 48), float."""
    made = torch.zeros(len(digits), SIDE, SIDE)
    _, _, height, width = extent(digits).clamp(min=1).unbind(1)
    shift = torch.rand(2, len(digits), generator=generator)
    tops = ((SIDE - height) / 2 - 2 + 5 * shift[0]).long()
    lefts = (((HALF - width) / 2 - 2 + 5 * shift[1]).long()).clamp(min=0).minimum(HALF - width) + HALF * right
    for mask, digit, top, left in zip(made, digits, tops.tolist(), lefts.tolist(), strict=True):
        spot = mask[top : top + 34, left : left + 22]
        spot += digit[: spot.shape[0], : spot.shape[1]]
    return made


def _boxes(count: int, generator: torch.Generator) -> Tensor:
    """Boxes with sides of 10 to 40 pixels, (n, 4)."""
    sides = torch.randint(10, 41, (count, 2), generator=generator)
    first = ((SIDE + 1 - sides) * torch.rand(count, 2, generator=generator)).long()
    return torch.cat((first, first + sides), 1)


def _masks(seed: int, step: int) -> tuple[int, Tensor, Tensor]:
    """Step, masks of digits and boxes, (B, 48, 48), and prefix lengths, (B,)."""
    digits, rows = _digits("train")[0], 4 if rehearsing() else ROWS
    generator = torch.Generator().manual_seed(100_000 * seed + step)
    drawn = torch.randint(len(digits), (rows - rows // 4,), generator=generator)
    halves = torch.randint(2, drawn.shape, generator=generator)
    masks = torch.cat((
        _placed(digits[drawn], halves, generator),
        box_mask(_boxes(rows // 4, generator), (SIDE, SIDE)),
    ))  # fmt: skip
    lengths = torch.randint(1, TOKENS + 1, (rows,), generator=generator)
    return step, masks, lengths.where(torch.rand(rows, generator=generator) < 0.5, torch.tensor(TOKENS))


def _build() -> MaskTokenizer:
    return MaskTokenizer(
        SIDE, patch_size=PATCH, queries=TOKENS, codebook=CODES, code=CODE, dim=DIM, depth=DEPTH, num_heads=HEADS
    )


@cached(maxsize=4)
@torch.inference_mode(False)
def _tokenizer(seed: int) -> MaskTokenizer:
    def free(net: Any, given: tuple[int, Tensor, Tensor]) -> Tensor:
        _, masks, lengths = given
        whole = torch.full_like(lengths, TOKENS)
        return mask_loss(net.draw(F.normalize(net.latents(masks), dim=-1)), masks, whole, dice=DICE)

    def rounded(net: Any, given: tuple[int, Tensor, Tensor]) -> Tensor:
        step, masks, lengths = given
        if step % 20 == 0 and step < 0.6 * ROUNDED:
            net.revive_(masks)
        loss: Tensor = net(masks, lengths, dice=DICE)
        return loss

    def train() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _build()
            short_run(model, partial(_masks, seed), free, steps=FREE, lr=3e-3, clip=1.0)
            return short_run(
                model, lambda step: (step, *_masks(seed, FREE + step)[1:]), rounded, steps=ROUNDED, lr=3e-3, clip=1.0
            )

    key = f"tokenizer, {FREE} + {ROUNDED} steps of {ROWS}, seed {seed}"
    made: Any = trained_once(_build, train, modules=[MODULE], key=key)
    return made.requires_grad_(False)  # type: ignore[no-any-return]


@cached(maxsize=1)
@torch.inference_mode(False)
def _tested() -> Tensor:
    """Digits that no tokenizer has seen, (n, 48, 48)."""
    digits, generator = _digits("test")[0], torch.Generator().manual_seed(1)
    return _placed(digits, torch.randint(2, (len(digits),), generator=generator), generator)


def _iou(shown: Tensor, true: Tensor) -> float:
    """Mean intersection over union of masks, (n, H, W), percent."""
    shown, true = shown.flatten(1) > 0, true.flatten(1) > 0
    return 100 * float(((shown & true).sum(1) / (shown | true).sum(1).clamp(min=1)).mean())


@cached(maxsize=4)
@torch.no_grad()
def _curve(seed: int) -> dict[int, float]:
    """IoU of test digits decoded from prefixes of their tokens."""
    model, masks = _tokenizer(seed), _tested()
    tokens = model.encode(masks)
    return {length: _iou(model.decode(tokens[:, :length]), masks) for length in LENGTHS}


def _rises(seed: int) -> float:
    """The least that IoU gains from a prefix to the next longer one."""
    curve = list(_curve(seed).values())
    return min(b - a for a, b in pairwise(curve))


def _saved() -> float:
    """Bits of 32 tokens over those of run-length coding, a mean over test digits, percent."""
    return 100 * TOKENS * BITS / float(run_length_bits(_tested() > 0).double().mean())


def _entropy() -> float:
    """Bits of 32 tokens over those of runs coded ideally, by how often each length occurs in the training digits."""
    digits, generator = _digits("train")[0][:2000], torch.Generator().manual_seed(2)
    known = _placed(digits, torch.randint(2, (len(digits),), generator=generator), generator)

    def runs(masks: Tensor) -> list[np.ndarray]:
        rows = (masks > 0).flatten(1).numpy()
        return [np.diff(np.flatnonzero(np.diff(row.astype(np.int8), prepend=2, append=2))) for row in rows]

    share = np.bincount(np.concatenate(runs(known)), minlength=SIDE**2 + 1) + 0.01
    bits = -np.log2(share / share.sum())
    return 100 * TOKENS * BITS / float(np.mean([bits[found].sum() for found in runs(_tested())]))


@torch.no_grad()
def _box_iou(seed: int, *, digits: bool = False) -> float:
    """IoU of boxes that became tokens and boxes again, or of the boxes that tokens of digits give, percent."""
    model = _tokenizer(seed)
    masks = _tested() if digits else box_mask(_boxes(len(_tested()), torch.Generator().manual_seed(7)), (SIDE, SIDE))
    found = extent(model.decode(model.encode(masks)) > 0, share=0.1 if digits else 0.5)
    return _iou(box_mask(found, (SIDE, SIDE)), box_mask(extent(masks > 0), (SIDE, SIDE)))


@cached(maxsize=2)
@torch.inference_mode(False)
def _grounds(part: str) -> Tensor:
    """Pictures of CIFAR-10, (n, 3, 48, 48), values in about [0, 0.6]."""
    pictures = cifar10.pictures(part, limit=4000 if part == "train" else COUNT["test"])[0]
    return (0.3 + 0.15 * F.interpolate(pictures, (SIDE, SIDE), mode="bilinear")).clamp(0, 0.6)


def _scenes(part: str, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scenes, (B, 3, 48, 48), the class that is asked for, (B,), and its mask, (B, 48, 48)."""
    (digits, labels), grounds = _digits(part), _grounds(part)
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(len(labels), (count,), generator=generator)
    # another class: the digit that is the first, in a random order, of those with another label
    order = torch.rand(count, len(labels), generator=generator).masked_fill(labels[first][:, None] == labels, -1)
    half = torch.randint(2, (count,), generator=generator)
    asked = _placed(digits[first], half, generator)
    other = _placed(digits[order.argmax(1)], 1 - half, generator)
    pictures = grounds[torch.randint(len(grounds), (count,), generator=generator)]
    for mask in (other, asked):
        colour = 0.6 + 0.4 * torch.rand(count, 3, 1, 1, generator=generator)
        pictures = pictures + 0.8 * mask[:, None] * (colour - pictures)
    return 2 * pictures - 1, labels[first], asked


class _Reader(nn.Module):
    """Scene and class to the tokens of a mask, each told those before it."""

    def __init__(self) -> None:
        super().__init__()

        def step(before: int, behind: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(before, behind, 3, stride, 1), nn.GroupNorm(4, behind), nn.GELU()
            )  # fmt: skip

        self.stem = nn.Sequential(step(3, 24, 2), step(24, 48, 2))
        self.body = nn.Sequential(step(48, 48, 1), step(48, DIM, 2))
        self.asked, self.said = nn.Embedding(CLASSES, 2 * 48), nn.Linear(CODE, DIM)
        self.place = nn.Parameter(0.5 * torch.randn((SIDE // 8) ** 2, DIM))
        self.order = nn.Parameter(0.5 * torch.randn(TOKENS, DIM))
        self.seen = nn.Linear(DIM, DIM)
        self.blocks = nn.ModuleList(Block(DIM, HEADS) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(DIM) for _ in range(2))
        self.out, self.scale = Each(TOKENS, DIM, CODE), nn.Parameter(torch.tensor(2.0))
        self.register_buffer("allowed", attends(len(self.place), TOKENS), persistent=False)

    def picture(self, scenes: Tensor, classes: Tensor) -> Tensor:
        scale, shift = self.asked(classes)[..., None, None].chunk(2, 1)
        x = self.body(self.stem(scenes) * (1 + scale) + shift)
        return self.seen(x.flatten(2).transpose(1, 2)) + self.place  # type: ignore[no-any-return]

    def forward(self, seen: Tensor, told: Tensor, codes: Tensor) -> Tensor:
        """Logits of tokens, (B, K, V), from what is seen, (B, N, C), and tokens before each, (B, K), V for none."""
        said = self.said(F.pad(codes, (0, 0, 0, 1))[told])  # zeros for none
        x = self.norms[0](torch.cat((seen, said + self.order), 1))
        for block in self.blocks:
            x = block(x, self.allowed)
        near = self.out(self.norms[1](x[:, -TOKENS:])) @ codes.T
        return self.scale.exp() * near  # type: ignore[no-any-return]

    @torch.no_grad()
    def say(self, scenes: Tensor, classes: Tensor, codes: Tensor) -> Tensor:
        """The likeliest token, one after another, (B, K)."""
        seen, told = self.picture(scenes, classes), torch.full((len(scenes), TOKENS + 1), CODES)
        for place in range(TOKENS):
            told[:, place + 1] = self(seen, told[:, :-1], codes)[:, place].argmax(-1)
        return told[:, 1:]


def _codes(model: MaskTokenizer) -> Tensor:
    return F.normalize(model.codebook, dim=1)


@cached(maxsize=4)
@torch.inference_mode(False)
def _reader(seed: int) -> _Reader:
    tokenizer = _tokenizer(seed)

    def loss(net: Any, given: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        scenes, classes, masks = given
        tokens = tokenizer.encode(masks)
        told = F.pad(tokens, (1, -1), value=CODES)
        told = told.masked_fill(torch.rand(told.shape) < 0.5, CODES)  # so that it looks at the picture as well
        logits = net(net.picture(scenes, classes), told, _codes(tokenizer))
        lengths = torch.randint(1, TOKENS + 1, classes.shape).where(
            torch.rand(classes.shape) < 0.5, torch.tensor(TOKENS)
        )
        drawn = tokenizer.draw(tokenizer.soft(logits.softmax(-1)), lengths)
        return mask_loss(drawn, masks, lengths, dice=DICE) + 0.1 * F.cross_entropy(
            logits.flatten(0, 1), tokens.flatten()
        )

    return _learnt(_Reader, loss, seed)  # type: ignore[return-value]


def _rival() -> UNet:
    return UNet(1, condition=3, dim=16, multiples=(1, 2, 4), patch=2)


def _segments(net: Any, scenes: Tensor, classes: Tensor) -> Tensor:
    """Logits of masks, (B, 48, 48), by a U-Net that is told the class as others are told the time, and by a plane."""
    plane = (classes / CLASSES)[:, None, None, None].expand(-1, 1, SIDE, SIDE)
    return net(plane, 100.0 * classes, scenes)[:, 0]  # type: ignore[no-any-return]


@cached(maxsize=4)
@torch.inference_mode(False)
def _unet(seed: int) -> UNet:
    def loss(net: Any, given: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        scenes, classes, masks = given
        return mask_loss(_segments(net, scenes, classes), masks, torch.full_like(classes, 48), dice=DICE)  # not blurred

    return _learnt(_rival, loss, seed)  # type: ignore[return-value]


def _learnt(build: Callable[[], nn.Module], loss: Callable[[Any, Any], Tensor], seed: int) -> nn.Module:
    """A network trained on scenes, the same for all."""

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        return _scenes("train", 4 if rehearsing() else ROWS, 100_000 * seed + step)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return short_run(build(), batch, loss, steps=READ, lr=3e-3, clip=1.0).requires_grad_(False)


@cached(maxsize=8)
@torch.no_grad()
def _found(seed: int, *, unet: bool = False) -> float:
    """IoU of masks that are found in test scenes, percent."""
    scenes, classes, masks = _scenes("test", len(_digits("test")[1]), 10**9)
    if unet:
        return _iou(_segments(_unet(seed), scenes, classes), masks)
    tokenizer = _tokenizer(seed)
    return _iou(tokenizer.decode(_reader(seed).say(scenes, classes, _codes(tokenizer))), masks)


def _parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def _size() -> float:
    """Parameters of reader and decoder over those of the U-Net, percent."""
    made = _build()
    decoder = sum(_parameters(net) for net in (made.decoder, made.unfold, made.pixels, made.norms[2], made.norms[3]))
    decoder += sum(p.numel() for p in (made.codebook, made.blank, made.order))
    return 100 * (_parameters(_Reader()) + decoder) / _parameters(_rival())


@torch.no_grad()
def _prefixes(*, cut: bool) -> Tensor:
    """Codes of the first 5 of 8 tokens by the whole encoder, or by one that has only five queries."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MaskTokenizer(12, patch_size=4, queries=8, codebook=16, code=4, dim=8, depth=2, num_heads=2)
    masks = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(0))
    if cut:
        model.query, model.queries, model.allowed = nn.Parameter(model.query[:5]), 5, attends(9, 5)
    return quantize(model.latents(masks), model.codebook)[0][:, :5]


WORDS: dict[str, Any] = {"data": DATA, "needs": NEEDS}
READS: dict[str, Any] = {"data": SCENES, "needs": (*NEEDS, *cifar10.NEEDS[1:])}
CLAIMS = (
    kept(
        "Decoded from 1, 2, 4, 8, 16 and 32 tokens, test digits never lose IoU on average from one length to the next.",
        paper="coarse to fine",
        quality=_rises,
        at_least=0.0,
        unit="points",
        clause=1,
        **WORDS,
    ),
    kept(
        "From 32 tokens alone they are decoded with an IoU of at least 90 %.",
        paper="",
        quality=lambda seed: _curve(seed)[TOKENS],
        at_least=90.0,
        unit="%",
        clause=2,
        **WORDS,
    ),
    bound(
        "32 tokens of 10 bits are at most 80 % of the bits of run lengths in Elias' γ code, in the better order.",
        paper="",
        value=_saved,
        at_most=80.0,
        unit="%",
        clause=3,
        needs=NEEDS,
    ),
    kept(
        "A reader of picture and class says tokens whose masks have 70 % of the IoU of a U-Net's, trained as long.",
        paper="",
        quality=lambda seed: 100 * _found(seed) / max(_found(seed, unet=True), 1e-9),
        at_least=70.0,
        unit="%",
        clause=4,
        **READS,
    ),
    bound(
        "Reader and decoder have together at most as many parameters as the U-Net, and no less than 90 % of them.",
        paper="",
        value=_size,
        at_least=90.0,
        at_most=100.0,
        unit="%",
        clause=4,
    ),
    kept(
        "Boxes that become tokens and boxes again keep an IoU of at least 90 %.",
        paper="",
        quality=_box_iou,
        at_least=90.0,
        unit="%",
        clause=5,
        **WORDS,
    ),
    kept(
        "The U-Net finds at least 70 %, so there is something to reach; both digits together have about 50 %.",
        paper="",
        quality=lambda seed: _found(seed, unet=True),
        at_least=70.0,
        unit="%",
        beyond="segmentation benchmarks",
        **READS,
    ),
    kept(
        "The boxes of digits, read from their tokens, have an IoU of at least 90 %.",
        paper="bidirectional",
        quality=lambda seed: _box_iou(seed, digits=True),
        at_least=90.0,
        unit="%",
        beyond="bidirectional box-mask token conversion",
        **WORDS,
    ),
    bound(
        "They are fewer than with a code that fits the lengths of runs ideally.",
        paper="",
        value=_entropy,
        at_most=100.0,
        unit="%",
        beyond="mask budget",
        needs=NEEDS,
    ),
    equal(
        "The first tokens are those of an encoder that has no more queries: what is said later changes nothing before.",
        ours=partial(_prefixes, cut=False),
        theirs=partial(_prefixes, cut=True),
        beyond="coarse to fine",
    ),
)
