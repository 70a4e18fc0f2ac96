"""What a picture has been through, read from its file or its pixels."""

from __future__ import annotations

__all__ = ["jpeg_level"]


def jpeg_level(quality: float) -> float:
    """Step of the luminance table of a JPEG quality, as a multiple of quality 50's.

    Args:
        quality: of the Independent JPEG Group's scale, 1 to 100.

    Returns:
        0 for 100, 0.5 for 75, 1 for 50, 2 for 25.
    """
    return 2 - quality / 50 if quality >= 50 else 50 / quality
