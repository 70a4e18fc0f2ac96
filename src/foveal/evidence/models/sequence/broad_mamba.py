"""Evidence for Broad-Mamba: two explicit recurrences, views weighted or not, the broad head beside a trained one."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import dialogues
from foveal.evidence.timing import call, seconds
from foveal.models.sequence.broad_mamba import BroadHead, BroadMamba, bidirectional_scan
from foveal.ops.selective_scan.reference import selective_scan_reference
from foveal.record import equal, faster, grows, kept

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS, HEAD_STEPS = 100, 300
WIDTH = 32
guided = partial(BroadMamba, dialogues.VIEWS, num_classes=dialogues.CLASSES, dim=WIDTH, depth=1, state=8)
equally = partial(guided, guided=False)
DATA = f"{STEPS} steps on 200 synthetic conversations in two noisy views; 24,000 test utterances"


def _scanned(*, recurrent: bool) -> Tensor:
    """Both directions at once, or the sum of two explicit recurrences, float32."""
    draw = torch.Generator().manual_seed(0)
    u, skip = torch.randn(2, 16, 100, generator=draw), torch.randn(2, 16, generator=draw)
    delta, rates = torch.rand(2, 2, 16, 100, generator=draw), -torch.rand(2, 16, 8, generator=draw)
    weights_in, weights_out = torch.randn(2, 2, 2, 8, 100, generator=draw)
    if not recurrent:
        return bidirectional_scan(u, delta, rates, weights_in, weights_out, skip)
    there = u, delta[:, 0], rates[0], weights_in[:, :1], weights_out[:, :1], skip[0]
    last = (x.flip(-1) for x in (u, delta[:, 1], weights_in[:, 1:], weights_out[:, 1:]))
    u_back, delta_back, in_back, out_back = last
    back = u_back, delta_back, rates[1], in_back, out_back, skip[1]
    return selective_scan_reference(*there)[0] + selective_scan_reference(*back)[0].flip(-1)


def _guidance(seed: int) -> float:
    """Accuracy with views weighted by their probabilities, less that with equal weights."""
    ours, theirs = (dialogues.score(dialogues.trained(build, steps=STEPS, seed=seed)) for build in (guided, equally))
    return ours - theirs


def _linear(features: Tensor, labels: Tensor, seed: int) -> nn.Module:
    """A linear head trained by gradient on fixed features, (n, C, L)."""
    flat, targets = features.transpose(1, 2).flatten(0, 1), labels.flatten()

    def batches(step: int) -> tuple[Tensor, Tensor]:  # noqa: ARG001 - drawn from torch's seeded generator
        rows = torch.randint(len(flat), (256,))
        return flat[rows, :, None], targets[rows, None]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Conv1d(features.shape[1], dialogues.CLASSES, 1)
        return short_run(
            head, batches, lambda model, pair: F.cross_entropy(model(pair[0]), pair[1]), steps=HEAD_STEPS, lr=1e-2
        )


@cached(maxsize=3)
def _features(seed: int, part: str) -> tuple[Tensor, Tensor]:
    features, labels = dialogues.conversations(part)
    model: Any = dialogues.trained(guided, steps=STEPS, seed=seed)
    with torch.inference_mode():
        made = model.features(features)[0]
    return made.clone(), labels


def _heads(seed: int) -> float:
    """Accuracy of the broad head less that of a linear head trained by gradient, on the same features."""
    given, (tests, emotions) = _features(seed, "train"), _features(seed, "test")
    broad = BroadHead(WIDTH, dialogues.CLASSES, seed=seed).fit_(*given)
    right = [float((head(tests).argmax(1) == emotions).float().mean()) for head in (broad, _linear(*given, seed))]
    return 100 * (right[0] - right[1])


def _drawn() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(200, WIDTH, 24, generator=draw), torch.randint(dialogues.CLASSES, (200, 24), generator=draw)


def _solve() -> Callable[[], object]:
    features, labels = _drawn()
    return lambda: BroadHead(WIDTH, dialogues.CLASSES).fit_(features, labels)


def _train() -> Callable[[], object]:
    features, labels = _drawn()
    return lambda: _linear(features, labels, 0)


class _Attention(nn.Module):
    """A Transformer layer over utterances, (B, C, L)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(1, 2))


def _seconds(build: Callable[[], nn.Module], length: int) -> float:
    return seconds(call(build, 1, 64, length), repeats=5)


CLAIMS = (
    equal(
        "Both directions at once give the sum of two explicit recurrences.",
        ours=partial(_scanned, recurrent=False),
        theirs=partial(_scanned, recurrent=True),
        tolerance=1e-4,
        clause=1,
    ),
    kept(
        "Two noisy views weighted by their probabilities: more accurate than with equal weights.",
        paper="maximises the consistency of the modalities",
        quality=_guidance,
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=dialogues.NEEDS,
        clause=2,
    ),
    kept(
        "The broad head on the trained features is at least as accurate as a linear head trained by gradient.",
        paper="",
        quality=_heads,
        at_least=0.0,
        unit="points",
        data=f"{DATA}; the linear head trained in {HEAD_STEPS} steps of 256",
        needs=dialogues.NEEDS,
        clause=3,
    ),
    faster(
        "Solving for the broad head takes less time than those steps of the linear head.",
        paper="",
        ours=_solve,
        theirs=_train,
        clause=4,
    ),
    grows(
        "The time of the network is proportional to the length of a conversation.",
        paper="linear",
        cost=partial(_seconds, partial(BroadMamba, (64,), dim=64, depth=1)),
        sizes=(1024, 4096, 16384),
        exponent=(0.8, 1.1),
        rounds=5,
        beyond="complexity in the length of a dialogue",
    ),
    grows(
        "Measured in the same way, that of a Transformer layer grows faster.",
        paper="quadratic",
        cost=partial(_seconds, _Attention),
        sizes=(1024, 4096, 16384),
        exponent=(1.3, 2.2),
        rounds=1,
        beyond="complexity of a Transformer",
    ),
)
