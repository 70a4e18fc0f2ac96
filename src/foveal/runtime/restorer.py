"""Damaged pictures behind one call: what is wrong is found, repaired at the same size, and told.

restore = Restorer()                            # finds JPEG, noise and darkness by itself
better = restore(array)                         # path, PIL image, NumPy array or torch tensor
Restorer("rain,noise").restore_file("wet.jpg", "dry.jpg")  # with everything else that the file holds
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.errors import FovealError
from foveal.runtime.bundle import Bundle
from foveal.runtime.card import Card
from foveal.runtime.cleaning import AUTO, checked_clean, file_level, stated_level
from foveal.runtime.enlarge import Progress, Step, counter
from foveal.runtime.file_work import Begun, work_on_file
from foveal.runtime.inputs import measure, take
from foveal.runtime.light import Light
from foveal.runtime.machine import cores
from foveal.runtime.plan import Plan, make_plan
from foveal.runtime.repairs import FIXES, Clean, Finding, Repair, Weather
from foveal.runtime.result import Result
from foveal.runtime.tiled import tiled
from foveal.runtime.tiles import make_grid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from foveal.images import Picture

__all__ = ["FixError", "Restorer", "asked_fixes"]

ORDER = ("clean", "weather", "light")
_AUTOMATIC = ("clean", "light")  # what is looked for unasked
# Damage that users ask about and no bundle repairs, and why.
_ELSEWHERE = {
    "exposure": "of a picture alone, how it was meant to be exposed cannot be told well enough yet",
    "blur": "none is shipped yet",
    "holes": "none is shipped yet",
    "rolling-shutter": "it needs two frames read in opposite directions: foveal.train.restore.self_drsc",
}


class FixError(FovealError, ValueError):
    """A repair that nobody knows, or that cannot be done here."""


def asked_fixes(fix: str) -> frozenset[str]:
    """What the user asks to be repaired.

    Args:
        fix: "auto", or names of `foveal.runtime.repairs.FIXES` with commas between.

    Returns:
        The names; none for "auto".

    Raises:
        FixError: an unknown name, none, or one that no bundle repairs.
    """
    if fix == AUTO:
        return frozenset()
    names = [name.strip() for name in fix.split(",")]
    for name in names:
        if name in _ELSEWHERE:
            raise FixError(f"no bundle repairs {name}: {_ELSEWHERE[name]}; take of {', '.join(FIXES)}")
        if name not in FIXES:
            raise FixError(f"fix must be auto, or of {', '.join(FIXES)} with commas between, got {fix!r}")
    return frozenset(names)


class Restorer:
    """Repairs pictures at their own size.

    Args:
        fix: "auto": what is found (JPEG, noise, darkness); or names with commas between: "jpeg", "noise", "rain",
            "snow", "light".
        strength: of cleaning, "auto" for as much as is needed, or 1 to 100.
        engine: name of an engine, or "auto" for the fastest here.
        threads: processor threads; all by default.
        tile: side of a tile in pixels, or "auto".
        infrared: picture file of the same scene and size in infrared, which files are fused with before they are
            repaired (`foveal.runtime.fuse.fuse`).
        exposures: picture files of the same scene and size, exposed otherwise, which files are merged with before they
            are repaired (`foveal.runtime.fuse.merge`).

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
    ) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        asked = asked_fixes(fix)
        self.fix, self.threads = fix, threads or cores()
        self._infrared, self._exposures = infrared, tuple(exposures)
        self.clean = checked_clean(strength)
        self._asked = frozenset(FIXES[name] for name in asked)

        def make(name: str) -> Repair:
            bundle = Bundle.load(f"repair_{name}")
            if name == "clean":
                of = asked & {"jpeg", "noise"} or frozenset({"jpeg", "noise"})
                return Clean(bundle, engine, self.threads, tile, strength=self.clean, of=of)
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

    def engine(self) -> str:
        """Name of the engine of the first repair.

        Returns:
            The name.
        """
        return self._repairs[0].choice.engine("float")

    def prepare(self) -> None:
        """Nothing is opened before a picture was looked at."""

    @property
    def settings(self) -> str:
        """What was asked for, on which a result depends besides the bundles."""
        others = [*self._exposures, *([] if self._infrared is None else ["with", self._infrared])]
        return " ".join(map(str, ["fix", self.fix, self.clean, *others]))

    def _look(self, pixels: NDArray, alpha: bool, stated: float | None, *, still: bool = True) -> list[Finding]:
        """What every repair finds in a picture as it is; of an animation, whose palette's dither is no noise, light."""
        repairs = [repair for repair in self._repairs if still or repair.name != "clean"]
        looks = (repair.look(pixels, alpha, stated, asked=repair.name in self._asked) for repair in repairs)
        return [finding for finding in looks if finding is not None]

    def _bands(
        self,
        pixels: NDArray,
        alpha: bool,
        findings: list[Finding],
        step: Step | None,
        note: Callable[[str], None] = lambda _: None,
    ) -> Iterator[NDArray]:
        """A picture repaired: by every repair but the last in memory, by the last one band by band; alpha stays."""
        if not findings:
            if step is not None:
                step((0, 0, pixels.shape[1], pixels.shape[0]))
            yield pixels
            return
        colours = _colours(pixels)
        *before, last = findings
        for finding in before:
            out = np.empty_like(colours)
            for _ in tiled(colours, finding.network, finding.choice, alpha=False, out=out, step=step, note=note):
                pass
            colours = out
        top = 0
        for band in tiled(colours, last.network, last.choice, alpha=False, step=step, note=note):
            rows = pixels[top : top + len(band)]
            top += len(band)
            if pixels.shape[2] in (1, 3):
                yield band
                continue
            whole = rows.copy()
            # What hides behind transparent pixels stays as it was.
            seen = rows[..., -1:] > 0 if alpha else np.True_
            np.copyto(whole[..., :-1], band, where=seen)
            yield whole

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
            findings = self._look(pixels, taken.alpha, _stated(image))
            step = counter(progress, pixels.shape[0] * pixels.shape[1], passes=max(1, len(findings)))
            made.append(np.concatenate(list(self._bands(pixels, taken.alpha, findings, step))))
        return taken.give(made)

    def look(self, image: Any) -> tuple[Finding, ...]:
        """What is wrong with a picture.

        Args:
            image: a picture, as for a call.

        Returns:
            What was found, in the order of the repairs.
        """
        taken = take(image)
        return tuple(self._look(taken.frames[0], taken.alpha, _stated(image)))

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
        pixel_bytes = size.channels * size.dtype.itemsize
        alone = not self._exposures and self._infrared is None  # else it is looked at when it is made
        still = not isinstance(image, tuple) and size.frames == 1 and size.file_format != "gif" and alone
        found = self.look(image) if look and still else None
        ways = [(f.network, f.choice) for f in (self._repairs if found is None else found)]
        plans: list[Plan] = []
        for network, choice in ways:
            kind = network.kind(size.dtype)
            throughput = choice.throughput(kind)
            grid = make_grid(
                size.height, size.width, choice.tile(kind), network.card, automatic=choice.automatic,
                pixel_bytes=pixel_bytes,
            )  # fmt: skip
            plans.append(
                make_plan(
                    choice.bundle, choice.engine(kind), throughput, grid, self.threads, pixel_bytes=pixel_bytes,
                    frames=size.frames, file_format=(file_format or size.file_format) if not plans else "",
                )
            )  # fmt: skip
        says = () if found is None else (_told(found),)
        if not plans:
            return Plan(
                "nothing", self.engine(), self.threads, 1, size.width, size.height, size.frames,
                (size.width, size.height), 1, 1, 0, 0, 0.0, notes=(*self.notes, *says), clean={"found": []},
            )  # fmt: skip
        return replace(
            plans[0],
            bundle="+".join(plan.bundle for plan in plans),
            memory=max(plan.memory for plan in plans) + size.width * size.height * pixel_bytes * (len(plans) - 1),
            seconds=sum(plan.seconds for plan in plans),
            start=sum(plan.start for plan in plans),
            notes=(*self.notes, *says),
            clean=None
            if found is None
            else {"found": [finding.facts | {"repair": finding.repair} for finding in found]},
        )

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
            findings.extend(self._look(first, begun.frame.alpha, begun.stated, still=begun.still))
            step = begun.steps(max(1, len(findings)))

            def make(picture: Picture) -> Iterator[NDArray]:
                pixels = first if picture is begun.frame else picture.pixels
                return self._bands(pixels, picture.alpha, findings, step, notes.append)

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
            bundle="+".join(f.network.card.name for f in findings) or "nothing",
            engine=" and ".join(dict.fromkeys(f.choice.engine("float") for f in findings)) or self.engine(),
            threads=self.threads,
            notes=tuple(dict.fromkeys([*self.notes, _told(findings), *notes, *done.left_out])),
            clean={"found": [finding.facts | {"repair": finding.repair} for finding in findings]},
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


def _colours(pixels: NDArray) -> NDArray:
    """The channels that are repaired: all but a last of two or four."""
    return np.ascontiguousarray(pixels[..., :-1]) if pixels.shape[2] in (2, 4) else pixels


def _stated(image: Any) -> float | None:
    """Level that a JPEG states, of a path or of a PIL image."""
    return file_level(Path(image)) if isinstance(image, str | os.PathLike) else stated_level(image)


def _told(findings: list[Finding] | tuple[Finding, ...]) -> str:
    """What was found, for the user."""
    return "; ".join(finding.says for finding in findings) or "nothing found to repair"


def _joined(repairs: list[Repair]) -> Card:
    """The cards of several bundles as one, on whose hashes a record of results depends."""
    hashes = {f"{r.bundle.card.name}/{file}": h for r in repairs for file, h in r.bundle.card.sha256.items()}
    name = "+".join(repair.bundle.card.name for repair in repairs)
    return Card(name=name, scale=1, margin=0, trims=True, files={"float": name}, sha256=hashes, purpose="restoration")
