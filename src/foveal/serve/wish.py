"""What a client wants done with a picture: enlarge it or repair it, all of it or a part, in one file or by pages."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from foveal.images.formats import FORMATS, result_format
from foveal.runtime.asked import FixError, asked_fixes, spelled
from foveal.runtime.cleaning import AUTO, OFF, checked_clean
from foveal.runtime.film.film import is_film
from foveal.runtime.restorer import Restorer
from foveal.runtime.upscaler import Upscaler
from foveal.serve.limits import RefusedError

if TYPE_CHECKING:
    from pathlib import Path

    from foveal import images

__all__ = ["PAGES", "QUALITIES", "SCALES", "Restoration", "Upscaling", "Wish"]

SCALES, QUALITIES, PAGES = (2, 3, 4), ("fast", "balanced"), ("keep", "split")


@dataclass(frozen=True)
class Upscaling:
    """Make it larger, as `foveal upscale` does.

    Args:
        scale: output side over input side.
        quality: "fast" or "balanced".
        clean: "auto", "off", or a strength of 0 to 100.

    Raises:
        RefusedError: a value that cannot be (422).
    """

    looks: ClassVar[bool] = False  # whether a plan reads the pixels

    scale: int = 4
    quality: str = "balanced"
    clean: str = AUTO

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise RefusedError(422, f"scale must be one of {', '.join(map(str, SCALES))}, got {self.scale}")
        if self.quality not in QUALITIES:
            raise RefusedError(422, f"quality must be one of {', '.join(QUALITIES)}, got {self.quality!r}")
        try:
            checked_clean(self.clean)
        except ValueError as error:
            raise RefusedError(422, str(error)) from None

    @property
    def suffix(self) -> str:
        """What is added to a result's name."""
        return f"_x{self.scale}"

    def worker(self, threads: int | None) -> Upscaler:
        """What does it.

        Args:
            threads: processor threads; None for all.

        Returns:
            A new upscaler.

        Raises:
            RefusedError: a strength where there is no network that cleans (422).
        """
        try:
            return Upscaler(self.scale, self.quality, threads=threads, clean=self.clean)
        except ValueError as error:
            raise RefusedError(422, str(error)) from None

    def of_film(self) -> Upscaling:
        """The same for a film: a look at each frame would make it flicker.

        Returns:
            With a fixed strength, or nothing cleaned.
        """
        return replace(self, clean=OFF) if self.clean == AUTO else self


@dataclass(frozen=True)
class Restoration:
    """Repair it at its own size, as `foveal restore` does.

    Args:
        fix: "auto", or names of repairs with commas between.
        strength: of cleaning, "auto" or 1 to 100.

    Raises:
        RefusedError: a repair that nobody knows, or a strength that cannot be (422).
    """

    looks: ClassVar[bool] = True
    scale: ClassVar[int] = 1
    suffix: ClassVar[str] = "_restored"

    fix: str = AUTO
    strength: str = AUTO

    def __post_init__(self) -> None:
        try:
            asked = asked_fixes(self.fix)
            if "rolling-shutter" in asked:  # it would look at other clients' pictures
                raise FixError("rolling-shutter looks at frames beside a file, and here are none; use `foveal restore`")
        except ValueError as error:
            raise RefusedError(422, str(error)) from None
        # One spelling of each wish, or a client could have an engine opened for every order of the names.
        object.__setattr__(self, "fix", spelled(asked))
        if self.strength != AUTO:
            if not self.strength.isdecimal() or not 1 <= int(self.strength) <= 100:
                raise RefusedError(422, f"strength must be auto, or from 1 to 100, got {self.strength!r}")
            object.__setattr__(self, "strength", str(int(self.strength)))

    def worker(self, threads: int | None) -> Restorer:
        """What does it.

        Args:
            threads: processor threads; None for all.

        Returns:
            A new restorer.
        """
        return Restorer(self.fix, strength=self.strength, threads=threads)


@dataclass(frozen=True)
class Wish:
    """What a client wants.

    Args:
        what: what to do.
        format: format of the result; "" for that of the source.
        crop: left, top, width and height of a part, in pixels of the source; None for all of it.
        pages: "keep", or "split" for a file for each page of a TIFF document.

    Raises:
        RefusedError: a value that cannot be (422).
    """

    what: Upscaling | Restoration = field(default_factory=Upscaling)
    format: str = ""
    crop: tuple[int, int, int, int] | None = None
    pages: str = "keep"

    def __post_init__(self) -> None:
        if self.format and self.format not in FORMATS:
            raise RefusedError(422, f"format must be one of {', '.join(FORMATS)}, got {self.format!r}")
        if self.pages not in PAGES:
            raise RefusedError(422, f"pages must be one of {', '.join(PAGES)}, got {self.pages!r}")

    @property
    def looks(self) -> bool:
        """Whether a plan reads the whole picture."""
        return self.what.looks and self.crop is None

    def check(self, source: Path, name: str, info: images.Info) -> None:
        """See whether it can be done with a picture.

        Args:
            source: the picture or film.
            name: the client's name of it, for errors.
            info: its header.

        Raises:
            RefusedError: a film whose holes are to be filled, or that is to become another format, or a crop outside
                the picture (422).
        """
        if is_film(source) and isinstance(self.what, Restoration) and "holes" in asked_fixes(self.what.fix):
            raise RefusedError(
                422, f"{name}: it is a film, and holes want transparent pixels; leave holes out, or `foveal restore`"
            )
        if is_film(source) and self.format and self.crop is None:
            raise RefusedError(422, f"a film stays a {source.suffix[1:]} file; leave out format")
        if self.crop is None:
            return
        left, top, width, height = self.crop
        inside = min(left, top) >= 0 and left + width <= info.width and top + height <= info.height
        if not inside or min(width, height) < 1:
            raise RefusedError(
                422,
                f"crop must be left,top,width,height inside the picture of {info.width}×{info.height}, "
                f"got {','.join(map(str, self.crop))}",
            )

    def files(self, info: images.Info) -> int:
        """How many files come of a picture.

        Args:
            info: its header.

        Returns:
            One, or the number of pages.
        """
        split = self.pages == "split" and self.crop is None and info.format == "tiff"
        return info.frames if split else 1

    def ending(self, source: Path, info: images.Info) -> str:
        """Suffix of the result's file.

        Args:
            source: the picture or film.
            info: its header.

        Returns:
            With its dot.
        """
        if self.crop is not None:
            return ".png"
        return source.suffix if is_film(source) else FORMATS[self.format or result_format(info.format)].suffixes[0]
