"""Predict from its header, before the work starts, what a file will lose."""

from __future__ import annotations

from dataclasses import replace
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
    page: int | None = None,
) -> tuple[str, ...]:
    """List what an upscaled file will not keep; makes the same checks as `Writer`, without writing.

    Args:
        source: file to read.
        target: file to write; its suffix selects the format. Neither it nor its folder need exist.
        scale: ratio of output side to input side.
        limit_pixels: largest number of pixels per frame; pictures whose header gives more are rejected.
        background: background colour for transparent pixels.
        page: page of a document, from 0, that becomes a file of its own; None for all.

    Returns:
        Sentences for the user; empty if everything is kept.

    Raises:
        PictureError: if the file cannot be read or written.
    """
    info, parts = header(source, limit_pixels=limit_pixels)
    if page is not None:
        info = info.pages[page] if info.pages else replace(info, frames=1)
        parts = (parts[page if len(parts) > 1 else 0],)
    form = format_for(target)
    notes: dict[str, None] = {}
    for one, metadata in zip(info.pages or (info,), parts, strict=True):
        channels = one.channels
        if one.format == "gif" and one.frames == 1 and has_alpha(channels, metadata) and not form.alpha:
            # Only the pixels show whether the transparent colour is used.
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
