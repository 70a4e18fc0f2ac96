"""Damaged pictures behind one call: what is wrong is found, repaired at the same size, and told.

restore = Restorer()                            # finds JPEG, noise and darkness by itself
better = restore(array)                         # path, PIL image, NumPy array or torch tensor
Restorer("rain,noise").restore_file("wet.jpg", "dry.jpg")  # with everything else that the file holds
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.runtime.asked import AUTO, FIXES, FORMULAS, FixError, asked_fixes
from foveal.runtime.bundle import Bundle
from foveal.runtime.card import Card
from foveal.runtime.cleaning import checked_clean, file_level, stated_level
from foveal.runtime.enlarge import Progress, counter
from foveal.runtime.file_work import Begun, work_on_file
from foveal.runtime.inputs import measure, take
from foveal.runtime.light import Light
from foveal.runtime.machine import cores
from foveal.runtime.repairing import facts, plan_repairs, repaired, told
from foveal.runtime.repairs import Clean, Finding, Given, Moves, Repair, Weather
from foveal.runtime.result import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from foveal.images import Picture
    from foveal.runtime.plan import Plan

__all__ = ["Restorer"]

ORDER = ("holes", "clean", "weather", "shutter", "blur", "light", "exposure")
_AUTOMATIC = ("clean", "light")  # what is looked for unasked


class Restorer:
    """Repairs pictures at their own size.

    Args:
        fix: "auto": what is found (JPEG, noise, darkness); or names with commas between: "jpeg", "noise", "rain",
            "snow", "light", "holes", "blur" or "blur=SIGMA", "exposure=STOPS", "rolling-shutter"
            (`foveal.runtime.asked`).
        strength: of cleaning, "auto" for as much as is needed, or 1 to 100.
        engine: name of an engine, or "auto" for the fastest here.
        threads: processor threads; all by default.
        tile: side of a tile in pixels, or "auto".
        infrared: picture file of the same scene and size in infrared, which files are fused with before they are
            repaired (`foveal.runtime.fuse.fuse`).
        exposures: picture files of the same scene and size, exposed otherwise, which files are merged with before they
            are repaired (`foveal.runtime.fuse.merge`).
        mask: where holes are: a picture file, white where it is to be filled, a folder of such files with the pictures'
            names, or an array; None takes transparent pixels.

    Attributes:
        fix: what is repaired.
        threads: processor threads.
        card: the bundles' names and hashes as one card.

    Raises:
        ValueError: a value that cannot be (`FixError` for an unknown repair).
    """

    scale = 1
    wrap = False
    cleaner = None

    def __init__(
        self,
        fix: str = AUTO,
        *,
        strength: str | int = AUTO,
        engine: str = "auto",
        threads: int | None = None,
        tile: int | str = "auto",
        infrared: str | Path | None = None,
        exposures: Sequence[str | Path] = (),
        mask: str | Path | NDArray | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        asked = asked_fixes(fix)
        self.fix, self.threads = fix, threads or cores()
        self._infrared, self._exposures = infrared, tuple(exposures)
        self.clean = checked_clean(strength)
        self._mask = _checked_mask(mask, asked)
        self._asked = frozenset((FIXES | FORMULAS)[name] for name in asked)
        of = frozenset(asked) & {"jpeg", "noise"}

        def make(name: str) -> Repair:
            if name in FORMULAS.values():
                return _by_formula(name, asked, mask, of)
            bundle = Bundle.load(f"repair_{name}")
            if name == "clean":
                return Clean(
                    bundle, engine, self.threads, tile, strength=self.clean, of=of or frozenset({"jpeg", "noise"})
                )
            return (Weather if name == "weather" else Light)(bundle, engine, self.threads, tile)

        self._repairs = [make(name) for name in ORDER if name in (self._asked or _AUTOMATIC)]
        self.card = _joined(self._repairs)

    @property
    def name(self) -> str:
        """What repairs: the names of the bundles."""
        return self.card.name

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences the user should read about engines; they hold for every picture."""
        return tuple(dict.fromkeys(note for repair in self._repairs for note in repair.notes))

    @property
    def combines(self) -> bool:
        """Whether files are merged or fused with others, which films cannot be."""
        return bool(self._exposures) or self._infrared is not None

    def engine(self) -> str:
        """Name of the engine of the first repair.

        Returns:
            The name.
        """
        return self._repairs[0].way.engine()

    def prepare(self) -> None:
        """Nothing is opened before a picture was looked at."""

    @property
    def settings(self) -> str:
        """What was asked for, on which a result depends besides the bundles."""
        others = [*self._exposures, *([] if self._infrared is None else ["with", self._infrared])]
        masks = [] if self._mask is None else ["mask", self._mask]
        return " ".join(map(str, ["fix", self.fix, self.clean, *others, *masks]))

    @property
    def moves(self) -> bool:
        """Whether it needs to know how the frames of a film move."""
        return "shutter" in self._asked

    def look_over(
        self,
        shots: Sequence[NDArray],
        *,
        alpha: bool = False,
        stated: float | None = None,
        still: bool = True,
        source: Path | None = None,
        moves: Moves | None = None,
    ) -> tuple[Finding, ...]:
        """What is wrong with pictures that are to be treated alike, such as frames of a film.

        Args:
            shots: one or more pictures, (H, W, C); what is usual among them decides.
            alpha: their last channel is alpha.
            stated: level that a JPEG file states; None for another file.
            still: False for an animation, whose palette's dither is no noise: it is not cleaned.
            source: file that they come from; None for pictures in memory.
            moves: how the frames of a film move; None for pictures.

        Returns:
            What was found, in the order of the repairs.
        """
        given = Given(alpha, stated, source, moves)
        found: list[Finding] = []
        for repair in self._repairs:
            if repair.name == "clean" and not still:
                continue
            finding = repair.look(shots, replace(given, asked=repair.name in self._asked))
            if finding is None:
                continue
            found.append(finding)
            if repair.name == "holes":  # what they show is no part of the picture
                shots = [finding.way.picture(one, alpha, None, lambda _: None) for one in shots]
        return tuple(found)

    def __call__(self, image: Any, progress: Progress | None = None) -> Any:
        """Repair a picture.

        Args:
            image: a path, a PIL image, a NumPy array, a torch tensor or a `foveal.images.Picture`, as
                `foveal.Upscaler` takes them.
            progress: function called after every batch of tiles.

        Returns:
            The same kind and size.

        Raises:
            TypeError: none of these kinds, or pixels of another dtype.
            ValueError: an array that is no picture, or the path of an animation.
            EngineError: no engine runs a bundle, or the one that ran it failed.
        """
        taken = take(image)
        made = []
        for pixels in taken.frames:
            findings = self.look_over([pixels], alpha=taken.alpha, stated=_stated(image), source=_file(image))
            step = counter(progress, pixels.shape[0] * pixels.shape[1], passes=max(1, len(findings)))
            made.append(np.concatenate(list(repaired(pixels, taken.alpha, findings, step))))
        return taken.give(made)

    def look(self, image: Any) -> tuple[Finding, ...]:
        """What is wrong with a picture.

        Args:
            image: a picture, as for a call.

        Returns:
            What was found, in the order of the repairs.
        """
        taken = take(image)
        return self.look_over(taken.frames[:1], alpha=taken.alpha, stated=_stated(image), source=_file(image))

    def plan(self, image: Any, *, file_format: str = "", look: bool = False) -> Plan:
        """What repairing a picture will take, if every repair that may be needed is.

        Args:
            image: anything that can be repaired, or (width, height) of an 8-bit RGB picture.
            file_format: format of the result's file.
            look: read the picture, plan for what is found in it, and say so.

        Returns:
            The plan.

        Raises:
            TypeError: none of these kinds, or pixels of another dtype.
            ValueError: an array that is no picture, or a pair that is no size.
            EngineError: no engine runs a bundle.
        """
        size = measure(image)
        alone = not self.combines  # else it is looked at when it is made
        still = not isinstance(image, tuple) and size.frames == 1 and size.file_format != "gif" and alone
        found = self.look(image) if look and still else None
        ways = [one.way for one in (self._repairs if found is None else found)]
        plan = plan_repairs(ways, size, engine=self.engine(), threads=self.threads, file_format=file_format)
        if found is None:
            return replace(plan, notes=self.notes)
        return replace(plan, notes=(*self.notes, told(found)), clean=facts(found))

    def restore_file(
        self,
        source: str | Path,
        target: str | Path,
        *,
        page: int | None = None,
        overwrite: bool = False,
        limit_pixels: int | None = None,
        background: tuple[int, int, int] | None = None,
        progress: Progress | None = None,
    ) -> Result:
        """Repair a file, with everything else it holds.

        Args:
            source: picture or animation to read; of an animation every frame is treated as the first needs it.
            target: file to write; its suffix says the format.
            page: page of a TIFF document, from 0, that becomes a picture of its own; None for all of them in one file.
            overwrite: replace a target that exists.
            limit_pixels: refuse larger pictures; by default what `foveal.images.read` allows.
            background: colour, 0 to 255, to put below transparent pixels where the format has no transparency.
            progress: function called after every batch of tiles.

        Returns:
            What was done.

        Raises:
            FileExistsError: the target exists and `overwrite` is False.
            ValueError: the source is no picture, or the target cannot hold it (`PictureError`).
            EngineError: no engine runs a bundle, or the one that ran it failed.
        """
        source, target = Path(source), Path(target)
        findings: list[Finding] = []
        notes: list[str] = []

        def begin(begun: Begun) -> Callable[[Picture], Iterator[NDArray]]:
            first = self._together(begun.frame.pixels, source, limit_pixels, notes)
            findings.extend(
                self.look_over([first], alpha=begun.frame.alpha, stated=begun.stated, still=begun.still, source=source)
            )
            step = begun.steps(max(1, len(findings)))

            def make(picture: Picture) -> Iterator[NDArray]:
                pixels = first if picture is begun.frame else picture.pixels
                return repaired(pixels, picture.alpha, findings, step, notes.append)

            return make

        done = work_on_file(
            source, target, 1, begin, page=page, overwrite=overwrite, limit_pixels=limit_pixels,
            background=background, progress=progress,
        )  # fmt: skip
        return Result(
            source=source,
            target=target,
            width=done.width,
            height=done.height,
            frames=done.frames,
            megapixels=done.megapixels,
            seconds=done.seconds,
            bundle="+".join(f.way.name for f in findings) or "nothing",
            engine=" and ".join(dict.fromkeys(f.way.engine() for f in findings)) or self.engine(),
            threads=self.threads,
            notes=tuple(dict.fromkeys([*self.notes, told(findings), *notes, *done.left_out])),
            clean=facts(findings),
        )

    def _together(self, pixels: NDArray, source: Path, limit_pixels: int | None, notes: list[str]) -> NDArray:
        """A picture with its other exposures and its infrared twin."""
        others = [*self._exposures, *([] if self._infrared is None else [self._infrared])]
        if not others:
            return pixels
        from foveal import images
        from foveal.runtime.fuse import FuseError, fuse, merge

        limit = images.LIMIT_PIXELS if limit_pixels is None else limit_pixels
        read = [images.read(Path(other), limit_pixels=limit).frame(0).pixels for other in others]
        try:
            if self._exposures:
                pixels = merge([pixels, *read[: len(self._exposures)]])
                notes.append(f"{len(self._exposures) + 1} exposures merged")
            if self._infrared is not None:
                pixels = fuse(pixels, read[-1])
                notes.append(f"fused with {self._infrared}")
        except FuseError as error:
            raise FuseError(f"{source} with {', '.join(map(str, others))}: {error}") from error
        return pixels

    upscale_file = restore_file  # by which a run of pictures calls what makes a file


def _stated(image: Any) -> float | None:
    """Level that a JPEG states, of a path or of a PIL image."""
    return file_level(Path(image)) if isinstance(image, str | os.PathLike) else stated_level(image)


def _file(image: Any) -> Path | None:
    """The file of a picture that is given by its path."""
    return Path(image) if isinstance(image, str | os.PathLike) else None


def _checked_mask(mask: str | Path | NDArray | None, asked: dict[str, str]) -> str | None:
    """What a result depends on of a mask, for the record."""
    if mask is None:
        return None
    if "holes" not in asked:
        raise FixError("a mask says where holes are; add holes to fix (--fix holes), or leave the mask out")
    if isinstance(mask, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(mask).tobytes()).hexdigest()[:12]
    path = Path(mask)
    if not path.exists():
        raise FixError(f"mask {path}: no such file or folder; name a picture that is white where it is to be filled")
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return f"{path} {max((one.stat().st_mtime_ns for one in files), default=0)}"


def _by_formula(name: str, asked: dict[str, str], mask: str | Path | NDArray | None, of: frozenset[str]) -> Repair:
    from foveal.runtime.formulas import Blur, Exposure, Holes, Shutter

    if name == "holes":
        return Holes(mask)
    if name == "blur":
        return Blur(asked["blur"], of)
    return Exposure(asked["exposure"]) if name == "exposure" else Shutter(asked["rolling-shutter"])


def _joined(repairs: list[Repair]) -> Card:
    """The cards of several bundles as one, on whose hashes a record of results depends."""
    cards = [repair.bundle.card for repair in repairs if repair.bundle is not None]
    hashes = {f"{card.name}/{file}": h for card in cards for file, h in card.sha256.items()}
    name = "+".join(repair.name if repair.bundle is None else repair.bundle.card.name for repair in repairs)
    return Card(name=name, scale=1, margin=0, trims=True, files={"float": name}, sha256=hashes, purpose="restoration")
