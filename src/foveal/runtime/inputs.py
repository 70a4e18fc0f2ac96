"""Kinds of pictures in memory and on disk, one table: how each is recognised, measured, taken apart and given back.

| a picture | pixels | given back as |
|---|---|---|
| NumPy array, (H, W) or (H, W, C) | as they are | an array of its dtype and number of axes |
| torch tensor, (C, H, W) or (B, C, H, W) | each picture as an array | a tensor of its dtype on its device |
| PIL image | in grey or RGB, with alpha if it has any | a PIL image with its profile, EXIF and resolution |
| `foveal.images.Picture` | as they are | a `Picture` with everything else it holds |
| path of a still picture | as `foveal.images.read` gives them | a `Picture` |

`measure` and `take` of a kind share their checks, so that what gets a plan can be enlarged. torch and Pillow are not
imported to recognise their objects: whoever has one has loaded its library.
"""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.runtime.pixels import largest_value

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["Size", "Taken", "measure", "take"]


@dataclass(frozen=True)
class Size:
    """What a plan needs to know of a picture.

    Args:
        height: height in pixels.
        width: width in pixels.
        channels: 1 to 4; the last of 2 or 4 is alpha.
        dtype: dtype of the pixels.
        frames: number of frames, or of pictures in a batch.
        file_format: format of the file, "" for a picture in memory.
    """

    height: int
    width: int
    channels: int = 3
    dtype: np.dtype = np.dtype(np.uint8)  # noqa: RUF009 - dtypes are immutable
    frames: int = 1
    file_format: str = ""


@dataclass(frozen=True)
class Taken:
    """The pixels of a picture, and the way back.

    Args:
        frames: pixels, (H, W, C) each.
        alpha: the last channel is alpha.
        give: function from the results, (s·H, s·W, C) each, to a picture of the kind that was taken.
        planar: make the results with their channels one after the other in memory.
    """

    frames: list[NDArray]
    alpha: bool
    give: Callable[[list[NDArray]], Any]
    planar: bool = False


@dataclass(frozen=True)
class _Kind:
    """One row of the table."""

    owns: Callable[[Any], bool]
    measure: Callable[[Any], Size]
    take: Callable[[Any], Taken]


def measure(image: Any) -> Size:
    """Size of a picture, with the checks that `take` makes.

    Args:
        image: a picture of a kind in the table; of an animation only the path. Or (width, height) in pixels, for an
            8-bit RGB picture.

    Returns:
        The size.

    Raises:
        TypeError: none of these kinds, or pixels of a dtype that pictures do not have.
        ValueError: an array or a tensor that is no picture, a PIL mode that does not say what white is, a pair that
            is no size, or a file that is no picture.
    """
    if isinstance(image, tuple):
        if len(image) != 2 or not all(isinstance(side, int | np.integer) and side >= 1 for side in image):
            raise ValueError(f"a size must be (width, height) in whole pixels, both at least 1, got {image!r}")
        return Size(int(image[1]), int(image[0]))
    return _kind(image, "a path, a PIL image, a NumPy array, a torch tensor or (width, height)").measure(image)


def take(image: Any) -> Taken:
    """Take a picture apart.

    Args:
        image: a picture of a kind in the table.

    Returns:
        Its pixels, and the way back.

    Raises:
        TypeError: none of these kinds, or pixels of a dtype that pictures do not have.
        ValueError: an array or a tensor that is no picture, a PIL mode that does not say what white is, the path of an
            animation, or a file that is no picture.
    """
    return _kind(image, "a path, a PIL image, a NumPy array or a torch tensor").take(image)


def _kind(image: Any, wanted: str) -> _Kind:
    for kind in _KINDS:
        if kind.owns(image):
            return kind
    raise TypeError(f"image must be {wanted}, got {type(image).__module__}.{type(image).__qualname__}")


def _check_values(pixels: NDArray) -> None:
    """Floats must be in [0, 1], or what was meant as 0 to 255 would come out white; a little beyond is forgiven."""
    largest_value(pixels.dtype)
    if pixels.dtype.kind == "f":
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= -0.5 and high <= 1.5):
            raise ValueError(
                f"floating-point pixels must be in [0, 1], got {low:g} to {high:g}; divide by 255 (or give uint8)"
            )


# NumPy


def _check_array(image: NDArray) -> NDArray:
    """An array as (H, W, C), if it is a picture."""
    if image.ndim not in (2, 3) or 0 in image.shape or (image.ndim == 3 and image.shape[2] > 4):
        raise ValueError(
            f"an array must be (H, W) or (H, W, C) with C from 1 to 4 and not empty, got shape {image.shape}"
        )
    _check_values(image)
    return image[..., None] if image.ndim == 2 else image


def _size_of(pixels: NDArray) -> Size:
    height, width, channels = pixels.shape
    return Size(height, width, channels, pixels.dtype)


def _take_array(image: NDArray) -> Taken:
    pixels = _check_array(image)
    flat = image.ndim == 2
    return Taken([pixels], pixels.shape[2] in (2, 4), lambda made: made[0][..., 0] if flat else made[0])


# torch


def _is_tensor(image: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(image, torch.Tensor)


def _check_tensor(image: Any) -> list[NDArray]:
    """The pictures of a tensor, (H, W, C) each."""
    if image.ndim not in (3, 4) or 0 in image.shape or image.shape[-3] > 4:
        raise ValueError(
            f"a tensor must be (C, H, W) or (B, C, H, W) with C from 1 to 4 and not empty, got {tuple(image.shape)}"
        )
    batch = image.detach().cpu()
    if str(batch.dtype) == "torch.bfloat16":  # NumPy has no such type
        batch = batch.float()
    frames = [one.numpy().transpose(1, 2, 0) for one in (batch if batch.ndim == 4 else [batch])]
    for one in frames:
        _check_values(one)
    return frames


def _measure_tensor(image: Any) -> Size:
    frames = _check_tensor(image)
    return replace(_size_of(frames[0]), frames=len(frames))


def _take_tensor(image: Any) -> Taken:
    frames = _check_tensor(image)

    def give(made: list[NDArray]) -> Any:
        torch = sys.modules["torch"]
        done = [torch.from_numpy(one.transpose(2, 0, 1)) for one in made]
        out = torch.stack(done) if image.ndim == 4 else done[0]
        return out.to(device=image.device, dtype=image.dtype)

    return Taken(frames, frames[0].shape[2] in (2, 4), give, planar=True)


# Pillow

# Modes that are kept, and what the others are converted to: RGB, or this.
_MODES = {"1": "L", "L": "L", "LA": "LA", "La": "LA", "PA": "RGBA", "RGBA": "RGBA", "RGBa": "RGBA"}
_BANDS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
_KEPT = ("icc_profile", "exif", "xmp", "dpi", "gamma", "srgb")


def _is_pillow(image: Any) -> bool:
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(image, pillow.Image)


def _pillow_mode(image: Any) -> str:
    """The mode that is enlarged: L, LA, RGB or RGBA; "" for grey of 16 bits."""
    if image.mode.startswith("I;16"):
        return ""
    if image.mode in ("F", "I"):
        raise ValueError(
            f"PIL mode {image.mode} does not say what white is; give an array: uint16, or floats in [0, 1]"
        )
    mode = _MODES.get(image.mode, "RGB")
    return {"L": "LA", "RGB": "RGBA"}.get(mode, mode) if "transparency" in image.info else mode


def _measure_pillow(image: Any) -> Size:
    mode = _pillow_mode(image)
    if 0 in image.size:
        raise ValueError(f"a PIL image must not be empty, got {image.width}×{image.height}")
    return Size(image.height, image.width, _BANDS.get(mode, 1), np.dtype(np.uint8 if mode else np.uint16))


def _take_pillow(image: Any) -> Taken:
    size, mode = _measure_pillow(image), _pillow_mode(image)
    kept = {key: value for key, value in image.info.items() if key in _KEPT}
    if image.mode in ("CMYK", "LAB"):
        kept.pop("icc_profile", None)  # it describes inks, not the RGB that comes out
        from foveal.images.pillow import plain

        image = plain(image)
    # A photograph's MPO holds previews and gain maps behind it, which are no frames.
    if getattr(image, "n_frames", 1) > 1 and image.tell() == 0 and image.format != "MPO":
        warnings.warn(
            f"this PIL image holds {image.n_frames} frames, and the first alone is enlarged; "
            "upscale_file(source, target) does all of them",
            stacklevel=4,
        )
    if mode and mode != image.mode:
        # La and RGBa only know the way through their own straight counterpart.
        image = image.convert(mode)
    pixels = np.asarray(image).astype(size.dtype, copy=False).reshape(size.height, size.width, size.channels)

    def give(made: list[NDArray]) -> Any:
        large = sys.modules["PIL.Image"].fromarray(made[0][..., 0] if size.channels == 1 else made[0])
        large.info.update(kept)
        return large

    return Taken([pixels], size.channels in (2, 4), give)


# foveal.images


def _take_picture(picture: Any) -> Taken:
    return Taken([picture.pixels], picture.alpha, lambda made: replace(picture, pixels=made[0]))


def _measure_path(path: str | os.PathLike) -> Size:
    from foveal import images

    info = images.probe(Path(path))
    dtype = np.dtype(np.uint8 if info.bits == 8 else np.uint16)
    return Size(info.height, info.width, info.channels, dtype, info.frames, info.format)


def _take_path(path: str | os.PathLike) -> Taken:
    from foveal import images

    reading = images.read(Path(path))
    if reading.frames > 1:
        raise ValueError(f"{path}: holds {reading.frames} frames; upscale_file(source, target) does all of them")
    return _take_picture(reading.frame(0))


_KINDS = (
    _Kind(lambda image: isinstance(image, np.ndarray), lambda image: _size_of(_check_array(image)), _take_array),
    _Kind(lambda image: isinstance(image, str | os.PathLike), _measure_path, _take_path),
    _Kind(_is_tensor, _measure_tensor, _take_tensor),
    _Kind(_is_pillow, _measure_pillow, _take_pillow),
    _Kind(
        lambda image: hasattr(image, "pixels") and hasattr(image, "metadata"),
        lambda image: _size_of(image.pixels),
        _take_picture,
    ),
)
