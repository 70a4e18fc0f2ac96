"""What will become of a file, told from its header before the work starts."""

from __future__ import annotations

from pathlib import Path

from .fit import has_alpha, not_kept, refuse_unfit
from .formats import format_for
from .reader import LIMIT_PIXELS, header, read

__all__ = ["foresee"]


def foresee(
    source: str | Path,
    target: str | Path,
    scale: int,
    *,
    limit_pixels: int = LIMIT_PIXELS,
    background: tuple[int, int, int] | None = None,
) -> tuple[str, ...]:
    """Tell what an enlarged file will not keep; the same checks as the `Writer` makes, without writing.

    Args:
        source: to read.
        target: to write; its suffix names the format. Neither it nor its folder need exist.
        scale: output side over input side.
        limit_pixels: refuse pictures whose header promises more pixels a frame than this.
        background: colour to put below transparent pixels.

    Returns:
        Sentences for the user, none if all is kept.

    Raises:
        PictureError: it cannot be done.
    """
    info, parts = header(source, limit_pixels=limit_pixels)
    form = format_for(target)
    notes: dict[str, None] = {}
    for one, metadata in zip(info.pages or (info,), parts, strict=True):
        channels = one.channels
        if one.format == "gif" and one.frames == 1 and has_alpha(channels, metadata) and not form.alpha:
            # Whether the transparent colour is used, only the pixels show.
            channels = read(source, limit_pixels=limit_pixels).channels
        refuse_unfit(
            Path(target),
            form,
            one.width * scale,
            one.height * scale,
            channels,
            metadata,
            frames=info.frames,
            differing=bool(info.pages),
            background=background is not None,
        )
        notes |= dict.fromkeys(not_kept(form, channels, metadata, frames=info.frames))
    return tuple(notes)
