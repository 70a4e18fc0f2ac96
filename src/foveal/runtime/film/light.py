"""HDR10's static metadata: the display on which a film was graded, and how bright its brightest pixels are.

FFmpeg gives them with each frame, as its structures AVMasteringDisplayMetadata and AVContentLightMetadata; encoders
take them as text, in units of their own.

Source: SMPTE ST 2086 (mastering display), CTA-861.3 (content light level), ITU-T H.265 annex D (their units).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

__all__ = ["DARK", "Light", "light_of"]

_CHROMA, _LUMINANCE = 50000, 10000  # units of H.264 and H.265: 0.00002, and 0.0001 cd/m²


@dataclass(frozen=True)
class Light:
    """Static metadata; what a film does not say is None.

    Args:
        display: x and y of red, green, blue and white, and the least and the greatest luminance in cd/m².
        level: greatest light level of a pixel and of a frame's mean, in cd/m².
    """

    display: tuple[float, ...] | None = None
    level: tuple[int, int] | None = None

    def __bool__(self) -> bool:
        return self.display is not None or self.level is not None

    def options(self, codec: str) -> dict[str, str]:
        """Options of an FFmpeg encoder that write it.

        Args:
            codec: name in `CODECS`.

        Returns:
            Name of an option and its text; empty if there is nothing to write, or the encoder has no such option.
        """
        names = {
            "h264": ("x264-params", "mastering-display", "cll"),
            "hevc": ("x265-params", "master-display", "max-cll"),
            "av1": ("svtav1-params", "mastering-display", "content-light"),
        }.get(codec)
        if not self or names is None:
            return {}
        option, display, level = names
        parts = []
        if self.display is not None:
            parts.append(f"{display}={_words(self.display, exact=codec == 'av1')}")
        if self.level is not None:
            parts.append(f"{level}={self.level[0]},{self.level[1]}")
        return {option: ":".join(parts)}


DARK = Light()


def _words(display: tuple[float, ...], *, exact: bool) -> str:
    def chroma(value: float) -> str:
        return f"{value:.6f}" if exact else str(round(value * _CHROMA))

    def luminance(value: float) -> str:
        return f"{value:.4f}" if exact else str(round(value * _LUMINANCE))

    red, green, blue, white = ((chroma(display[i]), chroma(display[i + 1])) for i in (0, 2, 4, 6))
    points = "".join(f"{name}({x},{y})" for name, (x, y) in zip(("G", "B", "R", "WP"), (green, blue, red, white),
                                                                strict=True))  # fmt: skip
    return f"{points}L({luminance(display[9])},{luminance(display[8])})"


def light_of(frame: Any) -> Light:
    """The metadata of a frame.

    Args:
        frame: PyAV's frame.

    Returns:
        The metadata, empty if it has none, or none that can be read.
    """
    found = {side.type.name: bytes(side) for side in frame.side_data}
    display, level = None, None
    if len(raw := found.get("MASTERING_DISPLAY_METADATA", b"")) >= 88:
        *numbers, has_primaries, has_luminance = struct.unpack_from("=22i", raw)
        above, below = numbers[::2], numbers[1::2]
        if has_primaries and has_luminance and all(value > 0 for value in below):
            display = tuple(a / b for a, b in zip(above, below, strict=True))
    if len(raw := found.get("CONTENT_LIGHT_LEVEL", b"")) >= 8:
        level = struct.unpack_from("=2I", raw)
    return Light(display, level)
