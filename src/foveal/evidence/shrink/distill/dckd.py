"""Evidence for DCKD: its loss in NumPy, the schedule of its negatives, its encoder, and a small student ×2.

After hundreds of steps and not hundreds of thousands the student is still far from its teacher, and L_contrast, a
ratio, is large: it weighs 0.01 in the comparisons, and the paper's 0.1 in one beyond the bar.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.rivals.edsr import EDSR
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import photos
from foveal.evidence.tasks.distilling_photos import better, logits, pictures_alone, student, teacher
from foveal.evidence.trained_once import trained_once
from foveal.measure import benchmarks
from foveal.measure.quality import benchmark_pairs
from foveal.record import bound, equal
from foveal.shrink.distill import vq
from foveal.shrink.distill.dckd import DCKD, WEIGHTS, refreshes
from foveal.shrink.distill.distillation import Distillation, Views
from foveal.shrink.distill.vq import VQAutoEncoder, VQEncoder

if TYPE_CHECKING:
    from collections.abc import Callable

    from foveal.shrink.distill.distillation import Loss

CODES, ENCODER_STEPS = 256, 600
small = partial(EDSR, dim=8, depth=2)
SCHEDULE: dict[str, Any] = {"intervals": (100,)}  # more often, negatives are too near the student after so few steps
TINY: dict[str, Any] = {"intervals": (2, 3), "phase": 6}


def _seeded(build: Callable[[], Any], seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def _auto_encoder() -> VQAutoEncoder:
    return _seeded(lambda: VQAutoEncoder(VQEncoder(codes=CODES)))


def _train_encoder() -> VQAutoEncoder:
    """The auto-encoder trained on high-resolution patches of 48×48 pixels."""
    batches = photos.batches(2, 200)
    model = _auto_encoder()
    short_run(model, batches, lambda net, batch: net(batch[1]), steps=ENCODER_STEPS, clip=1.0)
    return model


@cached(maxsize=1)
def _encoder() -> VQAutoEncoder:
    model: Any = trained_once(
        _auto_encoder,
        _train_encoder,
        modules=[vq.__name__, photos.__name__],
        key=f"VQ auto-encoder codes {CODES} steps {ENCODER_STEPS}",
    )
    return model


def _minutes() -> float:
    begun = time.perf_counter()
    _train_encoder()
    return (time.perf_counter() - begun) / 60


def _above_colour() -> float:
    """PSNR of decoded pictures of Set5 minus that of one colour, the mean of each picture, dB."""
    if rehearsing():
        pictures = list(photos.batches(2, 1)(0)[1].split(1))
    else:
        pictures = [photos.tensor(high[None].copy()) for *_, high in benchmark_pairs(benchmarks.find("Set5"), 2)]
    model, found = _encoder(), []
    for picture in pictures:
        x = picture[..., : picture.shape[2] // 16 * 16, : picture.shape[3] // 16 * 16]
        with torch.inference_mode():
            ours, floor = ((y - x).square().mean() for y in (model.decoded(x)[0], x.mean((2, 3), keepdim=True)))
        found.append(10 * float(torch.log10(floor / ours)))
    return float(np.mean(found))


@cached(maxsize=16)
def _student(kind: str, seed: int) -> nn.Module:
    loss: dict[str, Callable[[nn.Module, nn.Module], Loss]] = {
        "none": lambda *_: pictures_alone,
        "logits": lambda *_: logits,
        "dckd": lambda ours, guide: DCKD(ours, guide, _encoder().encoder, weights=(0.01, 0.001), **SCHEDULE),
        "as printed": lambda ours, guide: DCKD(ours, guide, _encoder().encoder, **SCHEDULE),
    }
    return student(loss[kind], seed=seed, build=small, taught_by=teacher)


def _setting() -> tuple[DCKD, Views]:
    """An untrained DCKD in eval mode and what networks make of a batch of noise."""

    def build() -> tuple[DCKD, Views]:
        learner, guide = EDSR(2, dim=4, depth=1), EDSR(2, dim=4, depth=1).eval()
        module = DCKD(learner, guide, VQEncoder(codes=32)).eval()
        nn.init.normal_(module.history.tail.bias)  # type: ignore[arg-type, union-attr]
        low, high = torch.rand(4, 3, 8, 8), torch.rand(4, 3, 16, 16)
        with torch.no_grad():
            return module, Views(low, high, learner(low), guide(low))

    return _seeded(build)


def _loss() -> Tensor:
    module, views = _setting()
    with torch.no_grad():
        return _seeded(lambda: module(views), 1)


def _reference() -> np.ndarray:
    """The loss in NumPy, from pictures, features and latent vectors; random numbers are drawn in the same order."""
    module, views = _setting()
    encoder: Any = module._networks[2]

    def drawn() -> tuple[np.ndarray, tuple[Tensor, ...]]:
        return (torch.rand(4, 4) < 0.5).numpy(), module.negatives(views.inputs)

    changes, negatives = _seeded(drawn, 1)

    def changed(x: np.ndarray, change: np.ndarray, *, back: bool) -> np.ndarray:
        acts = [lambda v: 1 - v, lambda v: v[:, ::-1], lambda v: v[:, :, ::-1], lambda v: v.transpose(0, 2, 1)]
        chosen = [act for act, taken in zip(acts, change, strict=True) if taken]
        for act in reversed(chosen) if back else chosen:
            x = act(x)
        return x

    low = np.stack([changed(x, c, back=False) for x, c in zip(views.inputs.numpy(), changes, strict=True)])
    with torch.no_grad():
        taught: Any = module._networks[1](torch.from_numpy(low.copy()))  # type: ignore[operator]
        features = [[f.numpy() for f in encoder.features(x)] for x in (views.student, views.teacher, *negatives)]
        latent = [encoder.latent(encoder.features(x)[-1]).numpy() for x in (views.student, views.teacher)]
    restored = np.stack([changed(x, c, back=True) for x, c in zip(taught.numpy(), changes, strict=True)])
    made = views.student.numpy()
    total = sum(np.abs(made - x).mean() for x in (views.targets.numpy(), views.teacher.numpy(), restored))
    for scale, weight in enumerate(WEIGHTS):
        anchor, near, *far = (f[scale] for f in features)
        distances = sum(np.abs(anchor - x).mean() for x in far)
        total += 0.1 * weight * np.abs(anchor - near).mean() / (distances + 1e-7)
    book, entropy = encoder.codebook.detach().numpy(), []
    for ours, theirs in zip(*latent, strict=True):
        p, q = (np.exp(-((z - book) ** 2).sum(1)) for z in (ours, theirs))
        entropy.append(-(q / q.sum() * np.log(p / p.sum())).sum())
    return np.asarray(total + 0.001 * np.mean(entropy))


def _changes() -> list[bool]:
    """For each of twelve steps, whether the negatives of one input are others than in the step before."""

    def run() -> list[bool]:
        learner, guide = EDSR(2, dim=4, depth=1), EDSR(2, dim=4, depth=1)
        loss = DCKD(learner, guide, VQEncoder(codes=8), **TINY)
        module = Distillation(learner, guide, loss).train()
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
        batch = torch.rand(1, 3, 6, 6), torch.rand(1, 3, 12, 12)
        with torch.no_grad():
            last, found = loss.history(batch[0]), []
        for _ in range(12):
            optimizer.zero_grad()
            module(batch).backward()
            optimizer.step()
            with torch.no_grad():
                now = loss.history(batch[0])
            found.append(not torch.equal(now, last))
            last = now
        return found

    return _seeded(run)


CLAIMS = (
    equal(
        "The whole loss equals a NumPy reference.",
        ours=_loss,
        theirs=_reference,
        tolerance=1e-5,
        clause=1,
    ),
    equal(
        "Negatives change after scheduled updates and at no other step.",
        ours=lambda: np.array(_changes(), np.float64),
        theirs=lambda: np.array([n > 0 and refreshes(n, **TINY) for n in range(12)], np.float64),
        tolerance=0.0,
        clause=2,
    ),
    better(
        "DCKD's student ×2 is above the student without a teacher.",
        partial(_student, "dckd"),
        than=partial(_student, "none"),
        paper="above",
        clause=3,
    ),
    better(
        "DCKD's student ×2 is not below logits-KD's.",
        partial(_student, "dckd"),
        than=partial(_student, "logits"),
        paper="above",
        clause=3,
    ),
    better(
        "With L_contrast at the paper's weight of 0.1 DCKD's student ×2 is not below logits-KD's either.",
        partial(_student, "as printed"),
        than=partial(_student, "logits"),
        paper="above",
        beyond="quality at the paper's weights",
    ),
    bound(
        "The VQ encoder is trained in minutes.",
        paper="VQGAN's released weights",
        value=_minutes,
        at_most=10.0,
        unit="minutes",
        needs=("minutes", "bsds400"),
        clause=4,
    ),
    bound(
        "It has learnt: its codes keep more of Set5 than each picture's mean colour.",
        paper="VQGAN's released weights",
        value=_above_colour,
        at_least=0.0,
        unit="dB",
        needs=("minutes", "bsds400", "Set5"),
        clause=4,
    ),
)
