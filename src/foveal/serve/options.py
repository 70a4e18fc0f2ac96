"""The options of a request, from its query: what to do with a picture, and how its result is written."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Depends, Query, Request

from foveal.runtime.asked import FIXES
from foveal.serve.limits import RefusedError
from foveal.serve.wish import Restoration, Upscaling, Wish

__all__ = ["Either", "Restored", "Upscaled"]

_UPSCALING, _RESTORATION = ("scale", "quality", "clean"), ("fix", "strength")
_HOW = ("format", "crop", "pages")
_OWN = {"upscale": _UPSCALING, "restore": _RESTORATION}


def _upscaling(
    scale: Annotated[int, Query(description="Output side over input side: 2, 3 or 4.")] = 4,
    quality: Annotated[str, Query(max_length=40, description="fast or balanced.")] = "balanced",
    clean: Annotated[
        str, Query(max_length=40, description="auto (nothing for films), off, or a strength of 0 to 100.")
    ] = "auto",
) -> Upscaling:
    return Upscaling(scale, quality, clean)


def _restoration(
    fix: Annotated[
        str,
        Query(
            max_length=100,
            description="auto (JPEG, noise and darkness, where found), or with commas between, of "
            f"{', '.join(FIXES)}, holes (transparent pixels), blur or blur=SIGMA, exposure=STOPS. All but "
            "JPEG, noise and light are repaired only if they are asked for.",
        ),
    ] = "auto",
    strength: Annotated[
        str, Query(max_length=40, description="Of cleaning JPEG and noise: auto (as much as needed), or 1 to 100.")
    ] = "auto",
) -> Restoration:
    return Restoration(fix, strength)


def _how(
    output: Annotated[
        str,
        Query(
            alias="format",
            max_length=40,
            description="Format of a picture's result; by default the source's, or png. A film keeps its own.",
        ),
    ] = "",
    crop: Annotated[
        str,
        Query(description="left,top,width,height: only this part, as a PNG; of a film, of a frame from its middle."),
    ] = "",
    pages: Annotated[
        str,
        Query(
            max_length=40,
            description="keep, or split: a file for each page of a TIFF document, together as a zip.",
        ),
    ] = "keep",
) -> dict[str, Any]:
    part = None
    if crop:
        numbers = crop.split(",")
        if len(numbers) != 4 or not all(n.strip().isdecimal() and len(n) < 9 for n in numbers):
            raise RefusedError(422, f"crop must be left,top,width,height in pixels, got {crop[:60]!r}")
        part = tuple(int(number) for number in numbers)
    return {"format": output, "crop": part, "pages": pages}


_Upscaling = Annotated[Upscaling, Depends(_upscaling)]
_Restoration = Annotated[Restoration, Depends(_restoration)]
_How = Annotated[dict[str, Any], Depends(_how)]


def _only(request: Request, do: str, *more: str) -> None:
    """An option that nobody reads is a mistake of whoever sent it."""
    known = (*_OWN[do], *_HOW)
    for name in request.query_params:
        if name not in known + more:
            raise RefusedError(
                422, f"{do} has no option {name[:40]!r}; leave it out, or take of {', '.join(sorted(known))}"
            )


def _upscaled(request: Request, what: _Upscaling, how: _How) -> Wish:
    _only(request, "upscale", "name")
    return Wish(what, **how)


def _restored(request: Request, what: _Restoration, how: _How) -> Wish:
    _only(request, "restore", "name")
    return Wish(what, **how)


def _any(
    request: Request,
    larger: _Upscaling,
    better: _Restoration,
    how: _How,
    do: Annotated[
        Literal["upscale", "restore"],
        Query(description="What to do; scale, quality and clean are of upscale, fix and strength of restore."),
    ] = "upscale",
) -> Wish:
    _only(request, do, "do")
    return Wish(larger if do == "upscale" else better, **how)


# Wishes of requests.
Upscaled = Annotated[Wish, Depends(_upscaled)]
Restored = Annotated[Wish, Depends(_restored)]
Either = Annotated[Wish, Depends(_any)]
