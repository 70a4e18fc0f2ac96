"""Colour of a camera: gains, colour matrix, gamma, sRGB and tone curves, and what undoes them; see `foveal.nn.isp`."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "colour_matrix",
    "degamma",
    "gain",
    "gamma",
    "inverse_gain",
    "inverse_tone_map",
    "per_picture",
    "srgb_decode",
    "srgb_encode",
    "tone_map",
]


def per_picture(parameter: Tensor | float, x: Tensor) -> Tensor:
    """Shape a parameter so that it multiplies pictures.

    Args:
        parameter: a number, or one for each picture, (B,).
        x: pictures, (B, C, H, W), whose type and device it takes.

    Returns:
        (1, 1, 1, 1) or (B, 1, 1, 1).
    """
    return torch.as_tensor(parameter, dtype=x.dtype, device=x.device).view(-1, 1, 1, 1)


def gain(x: Tensor, gains: Tensor) -> Tensor:
    """Multiply colours: a global gain, or the gains of white balance.

    Args:
        x: picture, (B, C, H, W).
        gains: gains, (C,) or (B, C); (1,) or (B, 1) for all colours.

    Returns:
        Picture, (B, C, H, W).
    """
    return x * gains[..., None, None]


def inverse_gain(x: Tensor, gains: Tensor, *, highlights: float | None = None) -> Tensor:
    """Undo `gain`; optionally leave white highlights white, since the camera clipped there (Brooks, section 3.2).

    With inflection t and mean colour m, α = (max(m - t, 0) / (1 - t))² and the factor is max(α + (1 - α)/g, 1/g).

    Args:
        x: picture, (B, C, H, W).
        gains: gains, (C,) or (B, C), above 0.
        highlights: mean brightness t in [0, 1) above which gains over 1 fade out, 0.9 in the paper; None undoes all.

    Returns:
        Picture, (B, C, H, W).
    """
    factor = 1 / gains[..., None, None]
    if highlights is None:
        return x * factor
    mask = ((x.mean(1, keepdim=True) - highlights).clamp(min=0) / (1 - highlights)).square()
    return x * torch.maximum(mask + (1 - mask) * factor, factor)


def colour_matrix(x: Tensor, matrix: Tensor) -> Tensor:
    """Mix colours, out = M x at each pixel; undone by `torch.linalg.inv(matrix)`.

    Args:
        x: picture, (B, 3, H, W).
        matrix: M, (3, 3) or (B, 3, 3); rows that sum to 1 keep grey.

    Returns:
        Picture, (B, 3, H, W).
    """
    return (matrix @ x.flatten(2)).view(x.shape)


def gamma(x: Tensor, exponent: Tensor | float = 2.2) -> Tensor:
    """Gamma curve x^(1/γ); 0 below 0.

    Args:
        x: linear values, any above 0.
        exponent: γ, a number or one for each picture, (B,).

    Returns:
        Values of the same shape.
    """
    inside = x > 0
    return torch.where(inside, torch.where(inside, x, 1).pow(1 / per_picture(exponent, x)), 0)


def degamma(x: Tensor, exponent: Tensor | float = 2.2) -> Tensor:
    """Undo `gamma`: x^γ; 0 below 0.

    Args:
        x: values after the curve.
        exponent: γ, a number or one for each picture, (B,).

    Returns:
        Linear values of the same shape.
    """
    return gamma(x, 1 / per_picture(exponent, x))


def srgb_encode(x: Tensor) -> Tensor:
    """The sRGB curve (IEC 61966-2-1): 12.92 x up to 0.0031308, above 1.055 x^(1/2.4) - 0.055.

    Args:
        x: linear values in [0, 1].

    Returns:
        Encoded values in [0, 1], of the same shape.
    """
    return torch.where(x <= 0.0031308, 12.92 * x, 1.055 * x.clamp(min=0.0031308).pow(1 / 2.4) - 0.055)


def srgb_decode(x: Tensor) -> Tensor:
    """Undo `srgb_encode`: x / 12.92 up to 0.04045, above ((x + 0.055) / 1.055)^2.4.

    Args:
        x: encoded values in [0, 1].

    Returns:
        Linear values in [0, 1], of the same shape.
    """
    return torch.where(x <= 0.04045, x / 12.92, ((x.clamp(min=0.04045) + 0.055) / 1.055).pow(2.4))


def tone_map(x: Tensor) -> Tensor:
    """Global tone curve, smoothstep 3x² - 2x³ on [0, 1] (Brooks, section 3.4); 0 below, 1 above.

    Args:
        x: values in [0, 1].

    Returns:
        Values in [0, 1], of the same shape.
    """
    x = x.clamp(0, 1)
    return (3 - 2 * x) * x.square()


def inverse_tone_map(x: Tensor) -> Tensor:
    """Undo `tone_map`: ½ - sin(asin(1 - 2x) / 3).

    Args:
        x: values in [0, 1].

    Returns:
        Values in [0, 1], of the same shape.
    """
    inside = (x > 0) & (x < 1)
    inner = torch.where(inside, x, 0.5)
    return torch.where(inside, 0.5 - torch.sin(torch.asin(1 - 2 * inner) / 3), x.detach().clamp(0, 1))
