"""A film repaired at its own size: frames spread over it are looked at once, and all are treated alike.

    result = restore_film(Restorer(), Path("clip.mp4"), Path("mended.mp4"))

Deciding frame by frame would flicker. Sound, subtitles, timestamps and colour tags are kept and the work survives a
stop as in `foveal.runtime.film.film`. A film in which nothing is found is copied, because another encoding would cost
quality and give nothing.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.runtime.film.film import PROBED, FilmPlan, FilmResult, plan_film, upscale_film
from foveal.runtime.film.moves import FilmMoves
from foveal.runtime.film.source import FilmError, header, rgb, spread
from foveal.runtime.inputs import measure
from foveal.runtime.repairing import facts, plan_repairs, repaired, told
from foveal.runtime.resume import settings_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from foveal.runtime.film.encode import Coding
    from foveal.runtime.plan import Plan
    from foveal.runtime.restorer import Restorer

__all__ = ["COPIED", "LOOKED", "FilmRestorer", "plan_restored", "restore_film"]

COPIED = "copied, because another encoding would cost quality and give nothing"
LOOKED = 5  # frames that decide what is done to a film


class FilmRestorer:
    """A restorer that has settled what one film needs.

    Args:
        restorer: what looks and repairs.
        source: film to read.

    Attributes:
        findings: what is repaired in every frame.
        looked: number of frames that decided it.

    Raises:
        FilmError: no film, one without frames, or a restorer that merges or fuses pictures.
    """

    scale = 1

    def __init__(self, restorer: Restorer, source: Path) -> None:
        if restorer.combines:
            raise FilmError(
                f"{source}: exposures and an infrared twin go with a picture, and this is a film; take a frame of it, "
                "or a Restorer without them"
            )
        film = header(source)
        shots = [rgb(shot, film) for shot in spread(source, film, LOOKED)]
        self._moves = FilmMoves(source, film) if restorer.moves else None
        self.findings = restorer.look_over(shots, source=source, moves=self._moves)
        self.looked = len(shots)
        self.name, self.threads, self._restorer = settings_of(restorer), restorer.threads, restorer

    def __call__(self, pixels: NDArray) -> NDArray:
        """Repair a frame.

        Args:
            pixels: RGB, (H, W, 3), uint8 or uint16.

        Returns:
            The same shape and dtype.
        """
        return np.concatenate(list(repaired(pixels, False, self.findings)))

    def at(self, pts: int, pixels: NDArray) -> NDArray:
        """Repair a frame of the film.

        Args:
            pts: its timestamp, by which its movement is known where the rolling shutter is repaired.
            pixels: RGB, (H, W, 3), uint8 or uint16.

        Returns:
            The same shape and dtype.
        """
        if self._moves is not None:
            self._moves.at = pts
        return self(pixels)

    @property
    def says(self) -> str:
        """What was found and is done, and by how many frames it was decided."""
        frames = f"{self.looked} frames spread over the film" if self.looked > 1 else "its only frame"
        return f"{told(self.findings)} (decided by {frames})"

    @property
    def clean(self) -> dict[str, Any]:
        """What was found, as plain data."""
        return {**facts(self.findings), "frames_looked_at": self.looked}

    def engine(self) -> str:
        """Names of the engines that repair.

        Returns:
            The names.
        """
        names = dict.fromkeys(finding.way.engine() for finding in self.findings)
        return " and ".join(names) or self._restorer.engine()

    def plan(self, size: tuple[int, int]) -> Plan:
        """What repairing a frame will take.

        Args:
            size: width and height.

        Returns:
            The plan; its notes say what was found.
        """
        ways = [finding.way for finding in self.findings]
        plan = plan_repairs(ways, measure(size), engine=self._restorer.engine(), threads=self.threads)
        return replace(plan, notes=(*self._restorer.notes, self.says))

    def copies(self, source: Path, target: Path, coding: Coding | None) -> bool:
        """Whether the film is only copied.

        Args:
            source: film to read.
            target: file to write.
            coding: codec and quality that were asked for; None for the usual ones.

        Returns:
            Whether nothing is repaired, no coding was asked for, and both files end in the same suffix.
        """
        return not self.findings and coding is None and source.suffix.lower() == target.suffix.lower()


def plan_restored(
    worker: FilmRestorer, source: Path, target: Path, coding: Coding | None = None, *, probed: int = PROBED
) -> FilmPlan:
    """What repairing a film will take.

    Args:
        worker: a restorer that has settled what this film needs.
        source: film to read.
        target: file to write.
        coding: codec and quality; None for the container's usual ones.
        probed: number of frames to measure.

    Returns:
        The plan.
    """
    copied = worker.copies(source, target, coding)
    plan = plan_film(worker, source, target, coding, probed=0 if copied else probed)
    return replace(plan, seconds=0.0, ready=0, notes=(worker.says, COPIED), copied=True) if copied else plan


def restore_film(
    restorer: Restorer | FilmRestorer,
    source: Path,
    target: Path,
    *,
    coding: Coding | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> FilmResult:
    """Repair a film.

    Args:
        restorer: what repairs; a `Restorer` looks at some frames first, a `FilmRestorer` has done so.
        source: film to read.
        target: film to write; its suffix says the container.
        coding: codec and quality; by default H.264 at rate factor 18, VP9 for .webm.
        overwrite: replace a target that exists.
        progress: function called after every frame with frames done and in all.

    Returns:
        What was done; the first note says what was found.

    Raises:
        FileExistsError: the target exists and `overwrite` is False.
        FilmError: no film, a frame that cannot be decoded, or a container that does not take the codec.
    """
    worker = restorer if isinstance(restorer, FilmRestorer) else FilmRestorer(restorer, source)
    if not worker.copies(source, target, coding):
        made = upscale_film(worker, source, target, coding=coding, overwrite=overwrite, progress=progress)
        return replace(made, notes=(worker.says, *made.notes))
    begun = time.perf_counter()
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target}: exists already; --overwrite (overwrite=True) replaces it")
    film, part = header(source), target.with_name(f".{target.stem}.part{target.suffix}")
    try:
        shutil.copyfile(source, part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return FilmResult(
        source, target, film.width, film.height, film.frames, 0, time.perf_counter() - begun, film.others,
        (worker.says, COPIED),
    )  # fmt: skip
