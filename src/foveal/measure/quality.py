"""Quality of an upscaled picture against the original: PSNR and SSIM by the literature's protocol. NumPy only.

Both are computed on luminance (BT.601, 16 to 235) of pictures rounded to 8 bits, without the outermost `scale` pixels.

Source of SSIM: Z. Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE TIP
13(4), 2004: Gaussian window of 11×11 with σ = 1.5, K₁ = 0.01, K₂ = 0.03, averaged where the window lies inside.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.images.resize import imresize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["Score", "benchmark_pairs", "bicubic", "evaluate", "from_torch", "luma", "psnr", "ssim"]

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
WINDOW, SIGMA = 11, 1.5
BT601 = (65.481, 128.553, 24.966)  # luminance of full red, green and blue, above 16 for black


def luma(rgb: NDArray) -> NDArray[np.float64]:
    """Luminance with the weights of MATLAB's `rgb2ycbcr`, not rounded.

    Args:
        rgb: picture in 0 to 255, (H, W, 3); (H, W) and (H, W, 1) are taken to be luminance already.

    Returns:
        Luminance, (H, W), 16 for black and 235 for white.

    Raises:
        ValueError: neither one nor three channels.
    """
    if rgb.ndim == 2 or (rgb.ndim == 3 and rgb.shape[2] == 1):
        return rgb.reshape(rgb.shape[:2]).astype(np.float64)
    if rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"a picture must be (H, W), (H, W, 1) or (H, W, 3), got shape {rgb.shape}")
    return 16 + rgb.astype(np.float64) @ (np.array(BT601) / 255)


def _prepared(a: NDArray, b: NDArray, shave: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = luma(a), luma(b)
    if x.shape != y.shape:
        raise ValueError(f"pictures must be of one size, got {x.shape[1]}×{x.shape[0]} and {y.shape[1]}×{y.shape[0]}")
    if shave < 0 or 2 * shave >= min(x.shape):
        raise ValueError(f"shave must leave something of {x.shape[1]}×{x.shape[0]} pixels, got {shave}")
    inside = slice(shave, -shave or None)
    return x[inside, inside], y[inside, inside]


def psnr(a: NDArray, b: NDArray, *, shave: int) -> float:
    """Peak signal-to-noise ratio of luminance.

    Args:
        a: picture in 0 to 255, (H, W, 3), or its luminance, (H, W).
        b: picture of the same size.
        shave: pixels left out on every side.

    Returns:
        dB; infinite for equal pictures.

    Raises:
        ValueError: different sizes, or nothing left inside.
    """
    x, y = _prepared(a, b, shave)
    error = float(np.square(x - y).mean())
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def _blurred(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted mean under the window at every position where it lies inside, (H - 10, W - 10)."""
    weights = np.exp(-np.square(np.arange(WINDOW) - WINDOW // 2) / (2 * SIGMA**2))
    weights /= weights.sum()
    rows = sum(w * x[i : x.shape[0] - WINDOW + 1 + i] for i, w in enumerate(weights))
    return sum(w * rows[:, i : x.shape[1] - WINDOW + 1 + i] for i, w in enumerate(weights))  # type: ignore[index, return-value]


def ssim(a: NDArray, b: NDArray, *, shave: int) -> float:
    """Structural similarity of luminance.

    Args:
        a: picture in 0 to 255, (H, W, 3), or its luminance, (H, W).
        b: picture of the same size.
        shave: pixels left out on every side.

    Returns:
        Similarity, at most 1, which only equal pictures reach.

    Raises:
        ValueError: different sizes, or less than the window of 11×11 left inside.
    """
    x, y = _prepared(a, b, shave)
    if min(x.shape) < WINDOW:
        raise ValueError(f"SSIM needs {WINDOW}×{WINDOW} pixels inside the border, got {x.shape[1]}×{x.shape[0]}")
    mean_x, mean_y = _blurred(x), _blurred(y)
    spread = _blurred(x * x) - mean_x**2 + _blurred(y * y) - mean_y**2
    joint = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(
        ((2 * mean_x * mean_y + c1) * (2 * joint + c2) / ((mean_x**2 + mean_y**2 + c1) * (spread + c2))).mean()
    )


@dataclass(frozen=True)
class Score:
    """Mean quality over a folder of pictures.

    Args:
        name: name of the benchmark.
        scale: upscaling factor.
        pictures: number of pictures.
        psnr: mean PSNR, dB.
        ssim: mean SSIM, at most 1; None if it was not computed.
    """

    name: str
    scale: int
    pictures: int
    psnr: float
    ssim: float | None

    def to_json(self) -> dict[str, Any]:
        """The score as plain data.

        Returns:
            The fields.
        """
        return asdict(self)


def _read(path: Path) -> NDArray[np.uint8]:
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def benchmark_pairs(
    folder: Path, scale: int, *, limit: int | None = None
) -> Iterator[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]]:
    """Low- and high-resolution pictures of a benchmark.

    Pairs stored as `x4/001_LR.png` and `x4/001_HR.png` are used unchanged. At a scale that is not stored, and in a
    plain folder of pictures, the low-resolution picture is made by `imresize`.

    Args:
        folder: folder of the benchmark.
        scale: s.
        limit: largest number of pictures, in the order of their names.

    Yields:
        Name, low resolution (h, w, 3) and high resolution (s·h, s·w, 3).

    Raises:
        ValueError: no such folder, or no pictures in it.
    """
    given = folder / f"x{scale}"
    largest = max(folder.glob("x[0-9]"), default=folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of pictures")
    source = given if given.is_dir() else largest
    paths = sorted(source.glob("*_HR.*")) or sorted(p for p in source.iterdir() if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"{folder}: no pictures for scale {scale}; expected x{scale}/*_HR.png or a folder of pictures")
    for path in paths[:limit]:
        high = _read(path)
        high = high[: high.shape[0] // scale * scale, : high.shape[1] // scale * scale]
        low_path = path.with_name(path.name.replace("_HR", "_LR"))
        low = _read(low_path) if source == given and low_path != path else imresize(high, 1 / scale)
        yield path.stem.removesuffix("_HR"), low, high


def evaluate(
    upscale: Callable[[NDArray[np.uint8]], NDArray],
    folder: Path,
    scale: int,
    *,
    name: str = "",
    structure: bool = True,
    limit: int | None = None,
) -> Score:
    """Mean PSNR and SSIM over a benchmark.

    Args:
        upscale: function of an 8-bit picture (h, w, 3) that returns it s times larger, (s·h, s·w, 3), or only its
            luminance, (s·h, s·w).
        folder: folder of the benchmark.
        scale: s, also the width of the border left out.
        name: name of the benchmark; "" takes the folder's.
        structure: whether to compute SSIM too, which takes longer.
        limit: largest number of pictures.

    Returns:
        The means.
    """
    quality = []
    for _, low, high in benchmark_pairs(folder, scale, limit=limit):
        out = upscale(low)
        similar = ssim(out, high, shave=scale) if structure else float("nan")
        quality.append((psnr(out, high, shave=scale), similar))
    mean = np.mean(quality, axis=0)
    return Score(name or folder.name, scale, len(quality), float(mean[0]), float(mean[1]) if structure else None)


def bicubic(scale: int) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
    """Bicubic upscaling, the baseline of every table.

    Args:
        scale: s.

    Returns:
        A function of (h, w, 3) 8-bit pictures.
    """
    return lambda low: imresize(low, scale)


def from_torch(model: Any, *, luminance: bool = False) -> Callable[[NDArray[np.uint8]], NDArray]:
    """Wrap a network as a function of 8-bit arrays.

    Args:
        model: network, (1, C, h, w) to (1, C, s·h, s·w) in [0, 1].
        luminance: whether the network has C = 1 and takes and returns luminance.

    Returns:
        A function of (h, w, 3) 8-bit pictures; the result is rounded to 8 bits, (s·h, s·w, 3) or (s·h, s·w).
    """
    import torch

    def upscale(low: NDArray[np.uint8]) -> NDArray:
        picture = luma(low)[..., None] if luminance else low
        weight = next(model.parameters(), torch.empty(0))
        x = torch.from_numpy(np.array(picture, np.float32)).to(weight.device).permute(2, 0, 1)[None] / 255
        training = model.training
        model.eval()
        with torch.inference_mode():
            out = model(x)[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
        model.train(training)
        return out[..., 0] if luminance else out

    return upscale
