"""RAW of virtual cameras in minutes, made from real pictures: classified, or reconstructed from what the camera shows.

A picture is linearised, lit by a black body, seen by a real sensor's colours, exposed, given shot and read noise and
rounded to 12 bits. Three sensors make the training data, a fourth, of another maker, only tests. The camera corrects
light and exposure as cameras do, by `ADAPTATION` of what is missing in log units, so warm light stays somewhat warm and
dark scenes stay somewhat dark. Floors: chance, 10 %, for classes; one fixed inverse for reconstruction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.tasks import cifar10, photos
from foveal.measure import benchmarks
from foveal.nn import isp

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "CAMERAS",
    "CLASSES",
    "HELD_OUT",
    "PICTURES",
    "Shots",
    "classes",
    "classes_linear",
    "developed",
    "exposed",
    "light_gains",
    "psnr",
    "sensor",
    "shots",
    "stream",
]

CLASSES = cifar10.NEEDS
PICTURES = ("minutes", "bsds400", "BSD100")
# XYZ to the sensor's colours, as their makers' profiles give them (those of Brooks' released code).
CAMERAS = {
    "Nexus 6P": ((1.0234, -0.2969, -0.2266), (-0.5625, 1.6328, -0.0469), (-0.0703, 0.2188, 0.6406)),
    "Sony A7R": ((0.4913, -0.0541, -0.0202), (-0.6130, 1.3513, 0.2906), (-0.1564, 0.2151, 0.7183)),
    "Sony RX100 IV": ((0.6596, -0.2079, -0.0562), (-0.4782, 1.3016, 0.1933), (-0.0970, 0.1581, 0.5181)),
    "Olympus E-M10": ((0.8380, -0.2630, -0.0639), (-0.2887, 1.0725, 0.2496), (-0.0627, 0.1427, 0.5438)),
}
HELD_OUT = "Olympus E-M10"
TRAINING = tuple(name for name in CAMERAS if name != HELD_OUT)
RGB_TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
KELVIN = (2850.0, 7500.0)  # from a light bulb to shade; uniform in reciprocal kelvin, as the eye counts
STOPS = (-3.0, 0.0)  # log2 of the exposure; at 0 white is at the sensor's limit
ADAPTATION = 0.7  # share of light and exposure that the camera corrects, in log units
MIDDLE = 5500.0  # kelvin that the camera corrects towards
LEVELS = 4095  # of a RAW value


def _white(kelvin: Tensor) -> Tensor:
    """XYZ of black bodies with Y = 1, (n, 3), by Kim's cubic fit of the Planckian locus, 1667 to 25000 K."""
    t = 1e3 / kelvin
    low = -0.2661239 * t**3 - 0.2343589 * t**2 + 0.8776956 * t + 0.179910
    high = -3.0258469 * t**3 + 2.1070379 * t**2 + 0.2226347 * t + 0.240390
    x = torch.where(kelvin <= 4000, low, high)
    bottom = -1.1063814 * x**3 - 1.34811020 * x**2 + 2.18555832 * x - 0.20219683
    middle = -0.9549476 * x**3 - 1.37418593 * x**2 + 2.09137015 * x - 0.16748867
    top = 3.0817580 * x**3 - 5.87338670 * x**2 + 3.75112997 * x - 0.37001483
    y = torch.where(kelvin <= 2222, bottom, torch.where(kelvin <= 4000, middle, top))
    return torch.stack([x / y, torch.ones_like(x), (1 - x - y) / y], -1)


def light_gains(camera: str, kelvin: Tensor) -> Tensor:
    """White balance gains that make a light white.

    Args:
        camera: name in `CAMERAS`.
        kelvin: temperatures of black bodies, (n,), 1667 to 25000.

    Returns:
        Gains of red, green, blue, (n, 3); green is 1.
    """
    white = _white(kelvin) @ torch.tensor(CAMERAS[camera]).T
    return white[:, 1:2] / white


def sensor(camera: str) -> Tensor:
    """Matrix from linear sRGB to the camera's colours after white balance; rows sum to 1.

    Args:
        camera: name in `CAMERAS`.

    Returns:
        Matrix, (3, 3).
    """
    matrix = torch.tensor(CAMERAS[camera]) @ torch.tensor(RGB_TO_XYZ)
    return matrix / matrix.sum(1, keepdim=True)


def exposed(
    linear: Tensor, gains: Tensor, matrix: Tensor, exposure: Tensor, *, generator: torch.Generator, noise: bool = True
) -> Tensor:
    """Expose a scene.

    Args:
        linear: scene in linear sRGB, (B, 3, H, W), in [0, 1].
        gains: gains that make its light white, (B, 3).
        matrix: linear sRGB to the camera's colours, (B, 3, 3).
        exposure: factor, (B,); at 1 a white surface is at the sensor's limit in its brightest colour.
        generator: source of the noise.
        noise: whether to add shot and read noise of random levels.

    Returns:
        RAW, RGGB, (B, 1, H, W), in [0, 1], of 12 bits.
    """
    least = gains.amin(1, keepdim=True)
    colours = isp.gain(isp.colour_matrix(linear, matrix).clamp(0, 1), exposure[:, None] * least / gains)
    raw = isp.mosaic(colours)
    if noise:
        shot, read = isp.noise_levels(len(raw), generator=generator)
        raw = isp.shot_and_read_noise(raw, shot, read, generator=generator)
    return (raw.clamp(0, 1) * LEVELS).round() / LEVELS


def _uniform(count: int, ends: tuple[float, float], generator: torch.Generator) -> Tensor:
    return ends[0] + (ends[1] - ends[0]) * torch.rand(count, generator=generator)


def _cameras(count: int, names: tuple[str, ...], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Random cameras and lights: gains for the light and for `MIDDLE`, (n, 3), and matrices, (n, 3, 3)."""
    chosen = torch.randint(len(names), (count,), generator=generator)
    kelvin = 1 / _uniform(count, (1 / KELVIN[0], 1 / KELVIN[1]), generator)
    rows = torch.arange(count)
    gains = torch.stack([light_gains(name, kelvin) for name in names])[chosen, rows]
    middle = torch.cat([light_gains(name, torch.tensor([MIDDLE])) for name in names])[chosen]
    return gains, middle, torch.stack([sensor(name) for name in names])[chosen]


@cached(maxsize=4)
def classes_linear(part: str, *, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """CIFAR-10 in linear sRGB.

    Args:
        part: "train" or "test".
        limit: number of pictures; None takes all.

    Returns:
        Pictures, (n, 3, 32, 32), in [0, 1]; labels, (n,).
    """
    x, labels = cifar10.pictures(part, limit=limit)
    mean, deviation = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    x = x * deviation.view(3, 1, 1) + mean.view(3, 1, 1)
    return isp.srgb_decode(x.clamp(0, 1)), labels


@cached(maxsize=4)
def classes(part: str, *, limit: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """CIFAR-10 as RAW of the training cameras, each picture with its own camera, light, exposure and noise.

    Args:
        part: "train" or "test".
        limit: number of pictures.
        seed: seed of everything drawn.

    Returns:
        RAW, RGGB, (n, 1, 32, 32), in [0, 1]; labels, (n,).
    """
    linear, labels = classes_linear(part, limit=limit)
    generator = torch.Generator().manual_seed(seed)
    gains, _, matrix = _cameras(len(linear), TRAINING, generator)
    exposure = torch.exp2(_uniform(len(linear), STOPS, generator))
    return exposed(linear, gains, matrix, exposure, generator=generator), labels


def stream(linear: Tensor, frames: int, *, seed: int) -> Tensor:
    """Frames of still scenes while the light changes: exposure and temperature wander, noise is drawn anew.

    The exposure starts between 2⁻⁵ and 1 and takes steps of half a stop; reciprocal kelvin take steps of a tenth of
    their range. One camera, the held-out one; its noise is that of a high gain.

    Args:
        linear: scenes in linear sRGB, (B, 3, H, W), in [0, 1].
        frames: number of frames, T.
        seed: seed of everything drawn.

    Returns:
        RAW, RGGB, (T, B, 1, H, W), in [0, 1], of 12 bits.
    """
    generator, count = torch.Generator().manual_seed(seed), len(linear)
    stops = _uniform(count, (-5.0, 0.0), generator)
    place = torch.rand(count, generator=generator)
    matrix, found = sensor(HELD_OUT).expand(count, -1, -1), []
    for _ in range(frames):
        kelvin = 1 / (1 / KELVIN[0] + place * (1 / KELVIN[1] - 1 / KELVIN[0]))
        gains = light_gains(HELD_OUT, kelvin)
        raw = exposed(linear, gains, matrix, torch.exp2(stops), generator=generator, noise=False)
        raw = isp.shot_and_read_noise(raw, 2e-3, 4e-6, generator=generator)
        found.append((raw.clamp(0, 1) * LEVELS).round() / LEVELS)
        stops = (stops + 0.5 * torch.randn(count, generator=generator)).clamp(-5, 0)
        place = (place + 0.1 * torch.randn(count, generator=generator)).clamp(0, 1)
    return torch.stack(found)


@dataclass(frozen=True)
class Shots:
    """What a camera recorded, what it showed, and how it developed the one into the other.

    Args:
        raw: RAW, RGGB, (n, 1, H, W), in [0, 1], without noise.
        rgb: picture that the camera shows, (n, 3, H, W), in [0, 1], of 8 bits.
        gains: gains it applied, light and exposure together, (n, 3).
        matrix: the camera's colours to linear sRGB, (n, 3, 3).
    """

    raw: Tensor
    rgb: Tensor
    gains: Tensor
    matrix: Tensor


def developed(raw: Tensor, gains: Tensor, matrix: Tensor) -> Tensor:
    """The camera's own development: demosaicing, gains, colour matrix, gamma, tone curve.

    Args:
        raw: RAW, RGGB, (B, 1, H, W), in [0, 1].
        gains: gains, (B, 3).
        matrix: camera colours to linear sRGB, (B, 3, 3).

    Returns:
        Picture, (B, 3, H, W), in [0, 1].
    """
    colours = isp.gain(isp.demosaic(raw), gains)
    return isp.tone_map(isp.gamma(isp.colour_matrix(colours, matrix).clamp(0, 1)))


def _frames(part: str, count: int, side: int, seed: int) -> Tensor:
    """Whole photographs, the middle square of each made small: what a camera sets is set for the whole frame."""
    if rehearsing():
        return photos.tensor(photos.patches(1, patch=16).batch(4, np.random.default_rng(seed))[1])
    folder = benchmarks.find("bsds400") if part == "train" else benchmarks.find("BSD100") / "x4"
    paths = sorted(folder.glob("*.jpg" if part == "train" else "*_HR.png"))
    order = np.random.default_rng(seed).permutation(len(paths)) if part == "train" else np.arange(len(paths))
    found = []
    for i in order[:count]:
        with Image.open(paths[i]) as picture:
            least, (width, height) = min(picture.size), picture.size
            left, top = (width - least) // 2, (height - least) // 2
            square = picture.convert("RGB").crop((left, top, left + least, top + least))
        found.append(np.asarray(square.resize((side, side), Image.Resampling.BOX)))
    return photos.tensor(np.stack(found))


@cached(maxsize=8)
def shots(part: str, count: int, *, seed: int, side: int = 64) -> Shots:
    """Photographs as a camera records and shows them.

    Args:
        part: "train", bsds400 by the training cameras, or "test", BSD100 by the held-out one.
        count: number of pictures; 100 at most for "test".
        seed: seed of the choice of pictures, cameras, lights and exposures.
        side: side of the pictures, in pixels.

    Returns:
        The shots.
    """
    linear = isp.srgb_decode(_frames(part, count, side, seed))
    generator = torch.Generator().manual_seed(seed)
    light, middle, matrix = _cameras(len(linear), TRAINING if part == "train" else (HELD_OUT,), generator)
    exposure = torch.exp2(_uniform(len(linear), STOPS, generator))
    raw = exposed(linear, light, matrix, exposure, generator=generator, noise=False)
    balance = middle ** (1 - ADAPTATION) * light**ADAPTATION
    gains = balance / light.amin(1, keepdim=True) * exposure[:, None] ** -ADAPTATION
    back = torch.linalg.inv(matrix)
    rgb = (developed(raw, gains, back) * 255).round() / 255
    return Shots(raw, rgb, gains, back)


def psnr(ours: Tensor, raw: Tensor, *, shave: int = 2) -> float:
    """Peak signal-to-noise ratio of RAW, the mean over pictures.

    Args:
        ours: RAW, (n, 1, H, W).
        raw: RAW to compare with, the sensor's limit at 1.
        shave: pixels left out on every side.

    Returns:
        dB.
    """
    inside = slice(shave, -shave)
    error = (ours.clamp(0, 1) - raw)[..., inside, inside].square().mean((1, 2, 3))
    return float((-10 * torch.log10(error.clamp(min=1e-12))).mean())
