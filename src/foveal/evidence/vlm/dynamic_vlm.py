"""Evidence for Dynamic-VLM: the budget for 1 to 128 frames, prefills, and films read from a quarter of the tokens.

A film has eight frames of 4×4 tokens. Two pictures of Imagenette, what a frozen EfficientNet-Lite0 sees of them, 2×2
tokens each, move straight across a blank background, one in the first four frames, the other in the last four. Asked
are the classes of both, of ten, and the place of what is seen in each frame, of nine; both count half. One network,
trained with a side drawn anew at each step, reads 32 of 128 tokens; its twin is trained as long on all 128. Of 13 draws
only one leaves a frame whole, and in the paper fewer, so that the first network is no measure of what 128 tokens give.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import mosaics
from foveal.evidence.timing import seconds
from foveal.record import bound, equal, faster, grows, kept
from foveal.vlm.dynamic_vlm import Compressor, compress, side
from foveal.vlm.tiny import tiny

if TYPE_CHECKING:
    from collections.abc import Callable

LENGTHS, BUDGETS = range(1, 129), (128, 1000, 3200)
FRAMES, GRID, PLACES = 8, 4, 9  # frames, tokens of a side, places of a picture
WHOLE = FRAMES * GRID**2  # tokens
DIM, STEPS, ROWS, TESTED = 64, 350, 64, 1000
DATA = f"{TESTED} films of moving test pictures of Imagenette, {STEPS} steps of {ROWS} films"


@cached(maxsize=1)
@torch.no_grad()
def _made() -> Tensor:
    """Tokens that a compressor makes of clips of each length, for each budget, (3, 128)."""
    x, found = torch.zeros(max(LENGTHS), 576, 1), []
    for budget in BUDGETS:
        model = Compressor(1, 1, budget=budget).eval()
        found.append([len(model([x[:length]])[0]) for length in LENGTHS])
    return torch.tensor(found)


def _by_hand() -> Tensor:
    """The largest squares, by trying all sides."""
    return torch.tensor(
        [
            [max(s * s * length for s in range(1, 25) if s * s * length <= budget) for length in LENGTHS]
            for budget in BUDGETS
        ]
    )


def _prefill(tokens: int) -> Callable[[], Any]:
    text = {"hidden_size": 256, "intermediate_size": 688, "num_key_value_heads": 4, "head_dim": 64}
    decoder = tiny("llava", depth=2, max_position_embeddings=20_000, **text).model.language_model
    given = torch.randn(1, tokens, 256, generator=torch.Generator().manual_seed(0))

    def run() -> Any:
        with torch.inference_mode():
            return decoder(inputs_embeds=given, use_cache=True).last_hidden_state

    return run


def _tokens(frames: int) -> int:
    return frames * side(frames) ** 2


class _Classifier(nn.Module):
    """Films, (B, 8, 16, 320), to logits of both classes, (B, 2, 10), and of the place in each frame, (B, 8, 9)."""

    def __init__(self, *, least: int) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(GRID**2, mosaics.CHANNELS))
        self.time = nn.Parameter(torch.randn(FRAMES, 1, mosaics.CHANNELS))
        self.compress = Compressor(mosaics.CHANNELS, DIM, budget=WHOLE, most=GRID**2, least=least)
        self.asked, self.norm = nn.Parameter(torch.randn(2 + FRAMES, DIM)), nn.LayerNorm(DIM)
        words: dict[str, Any] = {"dropout": 0.0, "batch_first": True, "norm_first": True}
        self.layers = nn.ModuleList([nn.TransformerDecoderLayer(DIM, 4, 2 * DIM, **words) for _ in range(2)])
        self.what, self.where = nn.Linear(DIM, 10), nn.Linear(DIM, PLACES)

    def forward(self, films: Tensor) -> list[Tensor]:
        frames = (films + self.place + self.time).flatten(0, 1)
        small = self.compress.project(compress(frames, self.compress.side(FRAMES)))
        # (B · 8, s², 64) to (B, 8 · s², 64)
        tokens = small.unflatten(0, (len(films), FRAMES)).flatten(1, 2)
        tokens, read = self.norm(tokens), self.asked.expand(len(films), -1, -1)
        for layer in self.layers:
            read = layer(read, tokens)
        return [self.what(read[:, :2]), self.where(read[:, 2:])]


@cached(maxsize=2)
@torch.inference_mode(False)
def _pictures(part: str) -> tuple[Tensor, Tensor]:
    """Features of pictures, (n, 2, 2, 320), normalised, and classes, (n,)."""
    seen, labels = mosaics.features(part)
    known = mosaics.features("train")[0]
    return (seen - known.mean((0, 1, 2))) / known.std((0, 1, 2)).clamp(min=1e-6), labels


def _films(part: str, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Films, (count, 8, 16, 320), both classes, (count, 2), and the place in each frame, (count, 8)."""
    seen, labels = _pictures(part)
    generator, rows, half = torch.Generator().manual_seed(seed), torch.arange(count), FRAMES // 2
    shown = torch.randint(len(seen), (2, count), generator=generator)
    ends = torch.randint(GRID - 1, (2, 2, count, 2), generator=generator)  # of both, top left corners, first and last
    films, places = torch.zeros(count, FRAMES, GRID, GRID, mosaics.CHANNELS), []
    for t in range(FRAMES):
        moving, (first, last) = seen[shown[t // half]], ends[t // half]
        top, left = (first + (last - first) * (t % half) / (half - 1)).round().long().unbind(1)
        places.append(top * (GRID - 1) + left)
        for i in range(2):
            for j in range(2):
                films[rows, t, top + i, left + j] = moving[:, i, j]
    return films.flatten(2, 3), labels[shown].T, torch.stack(places, 1)


@cached(maxsize=8)
def _trained(seed: int, *, least: int = GRID**2 // 4) -> _Classifier:
    def loss(model: nn.Module, given: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        what, where = model(given[0])
        return F.cross_entropy(what.mT, given[1]) + F.cross_entropy(where.mT, given[2])

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _Classifier(least=least)
        rows = 4 if rehearsing() else ROWS
        batch = partial(_films, "train", rows)
        short_run(model, lambda step: batch(100_000 * seed + step), loss, steps=STEPS, lr=3e-3, clip=1.0)
    return model


@cached(maxsize=16)
def _right(seed: int, tokens: int, *, least: int = GRID**2 // 4) -> float:
    """Questions answered rightly with a budget of tokens, percent."""
    model, found = _trained(seed, least=least), []
    before, model.compress.budget = model.compress.budget, tokens
    with torch.no_grad():
        for part in range(1 if rehearsing() else TESTED // 100):
            films, *wanted = _films("val", 4 if rehearsing() else 100, 10**9 + part)
            said = model(films)
            found.append(sum((x.argmax(2) == real).double().mean() for x, real in zip(said, wanted, strict=True)) / 2)
    model.compress.budget = before
    return 100 * float(torch.stack(found).mean())


WORDS: dict[str, Any] = {"data": DATA, "needs": mosaics.NEEDS}
CLAIMS = (
    bound(
        "For 1 to 128 frames no clip has more tokens than budgets of 128, 1,000 and 3,200.",
        paper="token count adapts to clip length",
        value=lambda: 100 * float((_made() / torch.tensor(BUDGETS)[:, None]).max()),
        at_most=100.0,
        unit="% of the budget",
        clause=1,
    ),
    equal(
        "Their sides are the largest that fit.",
        ours=_made,
        theirs=_by_hand,
        tolerance=0.0,
        clause=1,
    ),
    bound(
        "From 6 frames on, no clip uses less than 65% of the budget of 3,200.",
        paper="",
        value=lambda: 100 * float(_made()[2, 5:].min()) / 3200,
        at_least=65.0,
        unit="%",
        clause=1,
    ),
    grows(
        "The time to read 1 to 4 frames, 576 to 2,304 tokens, follows their tokens.",
        paper="compute control",
        cost=lambda frames: seconds(lambda: _prefill(_tokens(frames))),
        sizes=(1, 2, 4),
        of=_tokens,
        exponent=(0.8, 1.6),
        rounds=3,
        clause=2,
    ),
    faster(
        "To read 128 frames takes at most 1.25 times as long as 6: tokens are 3,200 and 3,174.",
        paper="compute control",
        ours=lambda: _prefill(_tokens(128)),
        theirs=lambda: _prefill(_tokens(6)),
        at_least=0.8,
        clause=2,
    ),
    faster(
        "To read 16 frames is at least 2.8 times as fast as without averaging: 3,136 tokens of 9,216.",
        paper="compute control",
        ours=lambda: _prefill(_tokens(16)),
        theirs=lambda: _prefill(16 * 576),
        at_least=2.8,
        clause=2,
    ),
    kept(
        "At a quarter of the tokens, 32 of 128, the classifier is at most 2 points below its twin that reads all.",
        paper="",
        quality=lambda seed: _right(seed, WHOLE // 4) - _right(seed, WHOLE, least=GRID**2),
        at_least=-2.0,
        unit="points",
        clause=3,
        **WORDS,
    ),
    kept(
        "It then answers at least 85% of the questions rightly; chance is below 11%.",
        paper="",
        quality=lambda seed: _right(seed, WHOLE // 4),
        at_least=85.0,
        unit="%",
        clause=3,
        **WORDS,
    ),
    kept(
        "The twin, of which no fewer tokens were drawn in training, is at least 10 points worse at a quarter of them.",
        paper="sides are drawn in training",
        quality=lambda seed: _right(seed, WHOLE // 4) - _right(seed, WHOLE // 4, least=GRID**2),
        at_least=10.0,
        unit="points",
        beyond="token count adapts to clip length",
        **WORDS,
    ),
    kept(
        "With one token a frame the classifier is at least 15 points worse: the number of tokens matters.",
        paper="",
        quality=lambda seed: _right(seed, WHOLE // 4) - _right(seed, FRAMES),
        at_least=15.0,
        unit="points",
        beyond="compute control",
        **WORDS,
    ),
)
