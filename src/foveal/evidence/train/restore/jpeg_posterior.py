"""Evidence for JPEG by posterior sampling: files given back, samples that differ, and a twin trained by squared error.

Luminance of photographs, coded at qualities of 5 to 50. The twin is the same decoder with the same projection, without
noise and without a critic, trained as long.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from foveal.evidence.rehearsal import cached
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import restoring
from foveal.images.degradation import jpeg_table
from foveal.nn.jpeg_bins import JpegBins, compressed
from foveal.record import bound, kept
from foveal.train.restore.jpeg_posterior import Critic, JpegDecoder, PosteriorTraining, first_moment, samples
from foveal.train.restore.losses import luminance

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    Batch = tuple[JpegBins, Tensor]

STEPS, PATCH = 150, 48
WORST, BEST = 5, 50
QUALITIES = (5, 20, 50)  # of the test
COUNT = 16  # samples whose mean is taken
DATA = f"{STEPS} steps on bsds400; crops of 128 pixels of 30 of BSD100, luminance, qualities 5, 20 and 50"
_decoder = partial(JpegDecoder, dim=24, depth=3)


def coded(planes: Tensor, qualities: list[int]) -> JpegBins:
    """Code pictures, each at a quality, by the tables that most programs write.

    Args:
        planes: (B, 1, H, W) in [0, 1].
        qualities: B of them.

    Returns:
        Their bins.
    """
    tables = np.stack([jpeg_table(quality) for quality in qualities])
    return compressed(planes, torch.from_numpy(tables)[:, None].to(planes))


def _batches(seed: int) -> Callable[[int], Batch]:
    load = restoring.clean(seed, patch=PATCH)

    def pair(step: int) -> Batch:
        wanted = luminance(load(step))
        drawn = np.random.default_rng((seed, step, 2)).integers(WORST, BEST + 1, len(wanted))
        return coded(wanted, drawn.tolist()), wanted

    return pair


def _squared_error(model: nn.Module, batch: Batch) -> Tensor:
    return first_moment(model(batch[0])[None], batch[1])


@cached(maxsize=8)
def trained(seed: int, *, stochastic: bool) -> JpegDecoder:
    """A decoder after some steps.

    Args:
        seed: of weights, patches, qualities and noise.
        stochastic: whether it draws samples, trained with a critic; otherwise the twin, trained by squared error.

    Returns:
        The decoder in eval mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if not stochastic:
            twin = _decoder(noise=0)
            short_run(twin, _batches(seed), _squared_error, steps=STEPS, lr=2e-3)
            return twin
        training = PosteriorTraining(_decoder(), Critic(24))
        short_run(training, _batches(seed), lambda model, batch: model.loss(*batch), steps=STEPS, lr=2e-3)  # type: ignore[operator]
        return training.decoder


@cached(maxsize=16)
def _restored(seed: int, quality: int) -> tuple[Tensor, Tensor]:
    """Samples, (K, B, 1, H, W), and the twin's pictures, (B, 1, H, W), of the test pictures."""
    bins, decoder, twin = (
        coded(_test(), [quality] * len(_test())),
        *(trained(seed, stochastic=s) for s in (True, False)),
    )
    with torch.inference_mode():
        return samples(decoder, bins, COUNT, torch.Generator().manual_seed(1000 + seed)), twin(bins)


def _test() -> Tensor:
    """The test pictures' luminance, (30, 1, 128, 128)."""
    return luminance(restoring.crops())


def energy(planes: Tensor) -> Tensor:
    """Power of the discrete Laplacian, which is that of high frequencies mostly.

    Args:
        planes: (..., 1, H, W).

    Returns:
        Mean over all.
    """
    inner = planes[..., 1:-1, 1:-1]
    around = planes[..., :-2, 1:-1] + planes[..., 2:, 1:-1] + planes[..., 1:-1, :-2] + planes[..., 1:-1, 2:]
    return (4 * inner - around).square().mean()


def _changed() -> float:
    """Number of coefficients that any sample of any test picture codes differently, over all qualities."""
    decoder, count = trained(0, stochastic=True), 0
    generator = torch.Generator().manual_seed(0)
    for quality in (5, 10, 20, 30, 40, 50):
        bins = coded(_test(), [quality] * len(_test()))
        with torch.inference_mode():
            drawn = samples(decoder, bins, 2, generator)
        count += sum(int((bins.requantized(sample) != bins.indices).sum()) for sample in drawn)
    return float(count)


def _spread(seed: int) -> float:
    """Standard deviation of a pixel over samples, in levels of 255, mean over pixels, pictures and qualities."""
    return float(np.mean([255 * float(_restored(seed, q)[0].std(0).mean()) for q in QUALITIES]))


def _mean_against_twin(seed: int) -> float:
    """PSNR of the mean of samples minus that of the twin, dB, mean over pictures and qualities."""
    differences = []
    for quality in QUALITIES:
        drawn, twin = _restored(seed, quality)
        ours, theirs = (restoring.psnr(out, _test()).mean() for out in (drawn.mean(0), twin))
        differences.append(float(ours - theirs))
    return float(np.mean(differences))


def _energy_against_twin(seed: int) -> float:
    """High-frequency power of single samples over the twin's, dB, mean over qualities."""
    pairs = (_restored(seed, quality) for quality in QUALITIES)
    return float(np.mean([10 * float(torch.log10(energy(drawn) / energy(twin))) for drawn, twin in pairs]))


CLAIMS = (
    bound(
        "Coded again, every sample of every test picture gives the same coefficients, at qualities of 5 to 50.",
        paper="perfect consistency",
        value=_changed,
        at_most=0,
        unit="coefficients that differ",
        needs=restoring.NEEDS,
        clause=1,
    ),
    kept(
        "Samples differ by more than rounding to 8 bits.",
        paper="diverse samples",
        quality=_spread,
        at_least=0.5,
        unit="levels",
        data=DATA,
        needs=restoring.NEEDS,
        clause=2,
    ),
    kept(
        "The mean of sixteen samples is within 0.3 dB of a twin trained by squared error.",
        paper="the mean of the posterior",
        quality=_mean_against_twin,
        at_least=-0.3,
        data=DATA,
        needs=restoring.NEEDS,
        clause=3,
    ),
    kept(
        "Single samples have more power at high frequencies than the twin's pictures.",
        paper="high perceptual quality",
        quality=_energy_against_twin,
        at_least=0.0,
        data=DATA,
        needs=restoring.NEEDS,
        clause=4,
    ),
)
