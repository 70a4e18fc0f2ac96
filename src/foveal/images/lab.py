"""Lab pixels of TIFF files, in the encodings that libvips does not support.

L* is 0 to 100, a* and b* about −128 to 127. CIELAB of 8 bits (photometric 8) stores a* and b* as signed bytes, ICCLAB
(photometric 9) of 8 or 16 bits with an offset of half the range.

Source: TIFF 6.0, section 23; Adobe Photoshop TIFF Technical Notes (2002), ICC L*a*b*.
"""

from __future__ import annotations

from typing import Any

from .tiff import CIELAB, ICCLAB

__all__ = ["own", "to_rgb"]


def own(photometric: int, bits: int) -> bool:
    """Whether pixels of this kind are converted here instead of by libvips.

    Args:
        photometric: photometric interpretation of the TIFF.
        bits: bits per sample.

    Returns:
        True for 8-bit CIELAB and 8-bit or 16-bit ICCLAB.
    """
    return (photometric, bits) in ((CIELAB, 8), (ICCLAB, 8), (ICCLAB, 16))


def to_rgb(image: Any, photometric: int) -> Any:
    """Convert raw samples to RGB.

    Args:
        image: pyvips image of at least three bands, uchar or ushort; further bands are kept.
        photometric: CIELAB or ICCLAB.

    Returns:
        A pyvips image in sRGB, of the same bit depth.
    """
    deep = image.format == "ushort"
    if photometric == CIELAB:
        light = image[0] * (100 / 255)
        red, blue = (image[i].copy(format="char") for i in (1, 2))
    else:
        light = image[0] * (100 / 65280 if deep else 100 / 255)
        red, blue = (image[i] / 256 - 128 if deep else image[i] - 128 for i in (1, 2))
    lab = light.cast("float").bandjoin([red.cast("float"), blue.cast("float")]).copy(interpretation="lab")
    rgb = lab.colourspace("rgb16" if deep else "srgb")
    return rgb.bandjoin(image[3 : image.bands]) if image.bands > 3 else rgb
