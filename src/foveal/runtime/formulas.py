"""Repairs by a formula instead of a bundle; all of them are asked for, nothing of it happens unasked.

| a repair | looks for | done by |
|---|---|---|
| holes | the mask that the user names, or transparent pixels | `foveal.images.fill`, `exemplar` where they are wide |
| shutter | the movement from frame to frame of a film or a folder | `foveal.images.shutter` |
| blur | the width of a Gaussian, in the spectrum; or it is given | `foveal.images.deblur` |
| exposure | nothing: the stops are given | `foveal.images.exposure` |

NumPy only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.images.degradation import find_jpeg, luminance, noise
from foveal.images.exposure import MOST_STOPS, exposed
from foveal.runtime.asked import FixError, asked_number, asked_stroke
from foveal.runtime.pixels import largest_value
from foveal.runtime.repairs import Finding, Given
from foveal.runtime.ways import Whole, by_colours

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["READ", "Blur", "Exposure", "Holes", "Shutter"]

WIDE = 6  # half the width, in pixels, from which a hole is filled with texture
READ = 0.7  # share of the time between frames in which most cameras read their rows
GIVEN, FOUND, STROKE = 0.5, 1.0, 2.0  # least noise, in levels, that a filter is told: a width that is read is not exact
# Levels it is told for one level of noise, and for a JPEG of quality 50: as it is, and where it is cleaned before.
PER_NOISE, PER_JPEG = (1.5, 0.6), (6.0, 5.0)
NOISIEST = 10.0  # levels of noise above which no blur can be read


def _colours(pixels: NDArray) -> NDArray:
    return pixels[..., :-1] if pixels.shape[2] in (2, 4) else pixels


class _Formula:
    """What all of them share.

    Args:
        name: of the repair.
        pace: seconds a megapixel, roughly.
    """

    notes: tuple[str, ...] = ()
    bundle = None

    def __init__(self, name: str, pace: float) -> None:
        self.name = name
        self.way = Whole(name, lambda pixels, _: pixels, pace)

    def _finding(self, make: Any, says: str, facts: dict[str, Any]) -> Finding:
        return Finding(self.name, says, facts, Whole(self.name, make, self.way.pace))


class Holes(_Formula):
    """Lost parts of a picture, which a mask or transparency names.

    Args:
        mask: picture file whose bright pixels are holes, a folder of such files with the pictures' names, or an array,
            (H, W), above 0.5 of white; None takes fully transparent pixels, which become opaque.
    """

    def __init__(self, mask: str | Path | NDArray | None) -> None:
        super().__init__("holes", 3.0)
        self._mask = mask

    def _of(self, source: Path | None) -> NDArray[np.bool_] | None:
        """The mask of a file; None where none is named."""
        if self._mask is None:
            return None
        if isinstance(self._mask, np.ndarray):
            return self._bright(self._mask, "the mask")
        from foveal import images

        path = Path(self._mask)
        if path.is_dir():
            if source is None:
                raise FixError(f"mask {path} is a folder, and a picture in memory has no name; give its mask itself")
            of_it = sorted(one for one in path.iterdir() if one.stem == source.stem and one.is_file())
            if not of_it:
                raise FixError(f"{source}: no mask in {path} is named {source.stem}; add {source.stem}.png there")
            path = of_it[0]
        return self._bright(images.read(path).frame(0).pixels, str(path))

    @staticmethod
    def _bright(mask: NDArray, name: str) -> NDArray[np.bool_]:
        if mask.ndim not in (2, 3) or (mask.dtype != np.bool_ and mask.dtype.kind not in "uf"):
            raise FixError(
                f"{name} must be (H, W), of booleans, uint8, uint16 or floats in [0, 1], got {mask.shape} {mask.dtype};"
                " convert it"
            )
        return mask.astype(np.bool_) if mask.dtype == np.bool_ and mask.ndim == 2 else luminance(mask) >= 127.5

    def look(self, shots: Sequence[NDArray], given: Given) -> Finding | None:
        """Look at a picture, or at some that are to be treated alike.

        Args:
            shots: the pictures, (H, W, C); the first one's size counts, and its transparency.
            given: what else is known of them.

        Returns:
            What is lost, or None.

        Raises:
            FixError: no mask and no transparency, a mask of another size, or one that leaves nothing.
        """
        first, mask = shots[0], self._of(given.source)
        if mask is None and not given.alpha:
            raise FixError(
                "which pixels are holes is not said: give --mask FILE (mask=…), white where it is to be filled, or a "
                "picture with transparent pixels"
            )
        by_mask = mask is not None
        if mask is None:
            mask = first[..., -1] == 0
        if mask.shape != first.shape[:2]:
            raise FixError(
                f"the mask must be {first.shape[1]}×{first.shape[0]} as the picture, got {mask.shape[1]}×"
                f"{mask.shape[0]}; resize it"
            )
        if not mask.any():
            return None
        if mask.all():
            raise FixError("the holes leave nothing of the picture to fill them from; mark less of it")
        share, holes = float(mask.mean()), mask

        def make(pixels: NDArray, alpha: bool) -> NDArray:
            return filled(pixels, holes if by_mask else pixels[..., -1] == 0, alpha=alpha, opaque=not by_mask)

        kept = self._kept(first, make)
        named = "the mask" if by_mask else "transparency"
        shown = f"{100 * share:.2g}" if share < 0.995 else "more than 99"
        says = f"holes by {named}, {shown} % of the picture: filled from around them"
        return self._finding(kept, says, {"share": round(share, 5), "by": "mask" if by_mask else "transparency"})

    @staticmethod
    def _kept(first: NDArray, make: Any) -> Any:
        """The same function, which fills the picture that was looked at only once."""
        known: list[NDArray] = []

        def once(pixels: NDArray, alpha: bool) -> NDArray:
            if pixels is not first:
                return np.asarray(make(pixels, alpha))
            if not known:
                known.append(make(pixels, alpha))
            return known[0]

        return once


def filled(pixels: NDArray, holes: NDArray[np.bool_], *, alpha: bool, opaque: bool) -> NDArray:
    """A picture without its holes; all other pixels stay.

    Args:
        pixels: (H, W, C).
        holes: (H, W).
        alpha: the last channel is alpha.
        opaque: make what is filled opaque; else alpha stays, and transparent pixels are left as they are.

    Returns:
        A new array of the same shape and dtype.
    """
    from foveal.images.exemplar import exemplar
    from foveal.images.fill import eroded, grown, harmonic

    out = pixels.copy()
    unseen = (pixels[..., -1] == 0) if alpha else np.zeros_like(holes)
    if not opaque:
        holes = holes & ~unseen
    lost = holes | unseen
    if not holes.any() or lost.all():
        return out
    white = np.float32(largest_value(pixels.dtype))
    colours = harmonic(_colours(pixels).astype(np.float32) / white, lost)
    wide = holes & grown(eroded(lost, WIDE), 2 * WIDE)
    if wide.any():
        colours = exemplar(colours, wide, unknown=lost & ~wide)
    values = (colours[holes].clip(0, 1) * white).round() if pixels.dtype.kind == "u" else colours[holes].clip(0, 1)
    out[holes, : colours.shape[2]] = values.astype(pixels.dtype)
    if opaque and alpha:
        out[holes, -1] = largest_value(pixels.dtype)
    return out


@dataclass(frozen=True)
class _Kernel:
    """A blur: its filter, how it is told, and the least noise its filter is told."""

    weights: NDArray[np.float32]
    says: str
    facts: dict[str, Any]
    least: float


class Blur(_Formula):
    """A slight blur.

    Args:
        strength: "" to read it from the picture, a Gaussian's standard deviation in pixels, or "motion:LENGTH:ANGLE".
        of: which of "jpeg" and "noise" are cleaned before.
    """

    def __init__(self, strength: str, of: frozenset[str]) -> None:
        super().__init__("blur", 1.0)
        self._strength, self._of = strength, of

    def _kernel(self, shots: Sequence[NDArray], noisy: float) -> _Kernel | None:
        from foveal.images import deblur

        if self._strength.startswith("motion"):
            length, angle = asked_stroke(self._strength)
            facts = {"length": length, "angle": angle}
            return _Kernel(deblur.stroke(length, angle), f"movement of {length:g} pixels", facts, STROKE)
        if self._strength:
            sigma = asked_number("blur", self._strength, 0.3, 4)
            return _Kernel(deblur.gaussian(sigma), f"blur of {sigma:g} pixels as given", {"sigma": sigma}, GIVEN)
        if noisy > NOISIEST:
            return None
        found = [seen for one in shots if (seen := deblur.traces(one)) is not None]
        sigma = float(np.median([deblur.width_of(seen) for seen in found])) if found else 0.0
        if sigma < deblur.LEAST_WIDTH:
            return None
        weights = deblur.gaussian(deblur.MARGIN * sigma)
        return _Kernel(weights, f"blur of {sigma:.1f} pixels", {"sigma": round(sigma, 2)}, FOUND)

    def look(self, shots: Sequence[NDArray], given: Given) -> Finding | None:
        """Look at a picture, or at some that are to be treated alike.

        Args:
            shots: the pictures, (H, W, C); the median of what is read decides.
            given: what else is known of them.

        Returns:
            The blur, or None where none is found, or where noise hides it.
        """
        from foveal.images import deblur

        noisy = float(np.median([noise(one)[0] for one in shots]))
        level = given.stated
        if level is None:
            level = float(np.median([find_jpeg(one).jpeg for one in shots]))
        kernel = self._kernel(shots, noisy)
        if kernel is None:
            return None
        parts = (kernel.least, PER_NOISE["noise" in self._of] * noisy, PER_JPEG["jpeg" in self._of] * level)
        told = float(np.linalg.norm(parts))
        facts = {**kernel.facts, "noise": round(told, 2), "given": bool(self._strength)}
        make = by_colours(partial(deblur.wiener, kernel=kernel.weights, noise=told))
        return self._finding(make, f"{kernel.says}: sharpened", facts)


class Exposure(_Formula):
    """More or less light, by stops that are given.

    Args:
        strength: stops.
    """

    def __init__(self, strength: str) -> None:
        super().__init__("exposure", 0.03)
        self._stops = asked_number("exposure", strength, -MOST_STOPS, MOST_STOPS)

    def look(self, shots: Sequence[NDArray], given: Given) -> Finding | None:  # noqa: ARG002
        """Nothing is looked for.

        Args:
            shots: takes no part.
            given: takes no part.

        Returns:
            The stops; None for none.
        """
        if not self._stops:
            return None
        make = by_colours(partial(exposed, stops=self._stops))
        return self._finding(make, f"exposed by {self._stops:+g} stops", {"stops": self._stops})


def _natural(path: Path) -> list[tuple[int, str]]:
    """Names in the order in which people count."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


class Shutter(_Formula):
    """A rolling shutter, in films and folders of frames.

    Args:
        strength: share of the time between frames in which rows are read; "" takes what most cameras have.
    """

    def __init__(self, strength: str) -> None:
        super().__init__("shutter", 0.6)
        self._read = asked_number("rolling-shutter", strength, -1, 1) if strength else READ

    def _between(self, pixels: NDArray, source: Path | None) -> tuple[float, float] | None:
        """Movement at a file of a folder of frames; None where its neighbours show none."""
        from foveal import images
        from foveal.images.shutter import LEAST_PEAK, movement

        beside = [] if source is None else source.parent.glob(f"*{source.suffix}")
        names = sorted((one for one in beside if not one.name.startswith(".")), key=_natural)
        if source is None or len(names) < 2:
            what = "a picture in memory" if source is None else f"{source}, alone of its kind in its folder"
            raise FixError(
                "rolling-shutter is told by the movement from frame to frame: wanted a film, or the frames of one in a "
                f"folder, numbered, got {what}; put the frame before or after it beside it, or leave it out"
            )
        at = [one.name for one in names].index(source.name)
        found = []
        for other, way in ((at - 1, -1), (at + 1, 1)):
            if not 0 <= other < len(names):
                continue
            beside_it = images.read(names[other]).frame(0).pixels
            if beside_it.shape[:2] != pixels.shape[:2]:
                continue
            first, second = (beside_it, pixels) if way < 0 else (pixels, beside_it)
            down, across, peak = movement(first, second)
            if peak >= LEAST_PEAK:
                found.append((down, across))
        return tuple(float(x) for x in np.mean(found, axis=0)) if found else None  # type: ignore[return-value]

    def look(self, shots: Sequence[NDArray], given: Given) -> Finding | None:
        """Look at a frame and those beside it, or at what was measured of a film.

        Args:
            shots: the pictures, (H, W, C).
            given: what else is known of them.

        Returns:
            The movement, or None where there is none of half a pixel.

        Raises:
            FixError: a picture without frames beside it.
        """
        from foveal.images.shutter import unrolled

        moves = given.moves
        usual = self._between(shots[0], given.source) if moves is None else moves.usual
        if usual is None or np.hypot(*usual) * abs(self._read) < 0.5:
            return None

        def make(pixels: NDArray, alpha: bool) -> NDArray:  # noqa: ARG001 - alpha moves too
            down, across = usual if moves is None else moves.now
            return unrolled(pixels, down=down, across=across, read=self._read)

        pace = f"{np.hypot(*usual):.1f} pixels a frame"
        says = (
            f"rolling shutter, {pace}{' at most times' if moves else ''}: rows put back for a readout of {self._read:g}"
        )
        facts = {"down": round(usual[0], 2), "across": round(usual[1], 2), "read": self._read}
        return self._finding(make, says, facts)
