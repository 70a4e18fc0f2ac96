"""What is done about compression artefacts and noise: looked for in the source, cleaned by a network that is told them.

A clean picture takes the network for clean pictures. Any other takes the bundle beside it whose network is told how
damaged the picture is (`levels.py`): one look at the whole picture, so that its tiles agree. The level is read from
the quantisation table of a JPEG file, from the pixels of a picture that was one, and from its noise
(`foveal.images.degradation`); or it is the user's strength of 0 to 100, where 50 stands for a JPEG of quality 50 and
for noise of 10 levels.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.images.degradation import Degradation, examine
from foveal.images.jpeg_level import jpeg_file_level, table_level
from foveal.runtime.bundle import cleaner
from foveal.runtime.engine_choice import EngineChoice
from foveal.runtime.engines import EngineError
from foveal.runtime.inputs import take
from foveal.runtime.network import Network

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from foveal.runtime.bundle import Bundle
    from foveal.runtime.engines import Engine, FileKind, PixelKind
    from foveal.runtime.inputs import Size

__all__ = [
    "AUTO",
    "OFF",
    "Cleaner",
    "Cleaning",
    "Look",
    "checked_clean",
    "chosen_cleaner",
    "decide",
    "file_level",
    "stated_level",
]

AUTO, OFF = "auto", "off"
FULL = 50  # strength of a JPEG of quality 50, and of noise of 10 levels
NOISE_UNIT = 10.0  # levels of 255
_HEADER = 1 << 19  # bytes of a JPEG file in which its tables are looked for
_KEPT = 4  # levels whose networks stay open

Level = tuple[float, float, float]


def checked_clean(clean: str | int) -> str | int:
    """A setting of `clean` as it is used.

    Args:
        clean: "auto", "off", or a strength of 0 to 100, also as text.

    Returns:
        "auto", "off", or 1 to 100.

    Raises:
        ValueError: anything else.
    """
    if clean in (AUTO, OFF):
        return clean
    if isinstance(clean, str) and clean.isdecimal():
        clean = int(clean)
    if not isinstance(clean, int) or isinstance(clean, bool) or not 0 <= clean <= 100:
        raise ValueError(f"clean must be auto, off or a strength from 0 to 100, got {clean!r}")
    return clean or OFF


@dataclass(frozen=True)
class Look:
    """What a picture has been through, and what is done about it.

    Args:
        found: what was found; None where nothing was looked for.
        level: what the network is told: step of the JPEG's table, noise, noise of colour; None to leave it as it is.
        why: why it is left as it is, where that is not for being clean.
    """

    found: Degradation | None = None
    level: Level | None = None
    why: str = ""

    @property
    def strength(self) -> int:
        """How much is cleaned, 0 to 100."""
        return 0 if self.level is None else max(1, min(100, round(FULL * max(self.level))))

    def __str__(self) -> str:
        parts = []
        if self.found is not None:
            if self.found.quality is not None:
                cut = "" if self.found.grid == (0, 0) else ", cut"
                seen = "JPEG of quality" if self.found.seen == "file" else "was a JPEG of quality"
                parts.append(f"{seen} {self.found.quality}{cut}")
            if self.found.noise:
                kind = "noise" if self.found.colour else "grey noise"
                parts.append(f"{kind} of {self.found.noise:.0f} levels")
            if not parts:
                parts.append("no compression or noise found")
        done = f"cleaned at strength {self.strength}" if self.level is not None else "not cleaned"
        return ", ".join(parts) + (": " if parts else "") + done + (f" ({self.why})" if self.why else "")

    def to_dict(self) -> dict[str, Any]:
        """The look as plain data.

        Returns:
            What was found, and what is done about it.
        """
        found = self.found
        return {
            "looked": found is not None,
            "jpeg_quality": None if found is None else found.quality,
            "jpeg_step": None if found is None else round(found.jpeg, 3),
            "jpeg_seen_in": None if found is None or not found.seen else found.seen,
            "jpeg_grid": None if found is None or not found.seen else list(found.grid),
            "noise": None if found is None else round(found.noise, 2),
            "colour_noise": None if found is None else round(found.colour, 2),
            "cleaned": self.level is not None,
            "strength": self.strength,
            "why": self.why,
        }


def decide(found: Degradation, clean: str | int) -> Level | None:
    """What the network is told.

    Args:
        found: what the picture has been through.
        clean: "auto", "off" or a strength of 1 to 100.

    Returns:
        Step of the JPEG's table, noise, and noise of colour; None to leave the picture as it is.
    """
    if clean == OFF:
        return None
    if clean == AUTO:
        return None if found.slight else (found.jpeg, found.noise / NOISE_UNIT, found.colour / NOISE_UNIT)
    level = int(clean) / FULL
    if not found.seen and not found.noise:
        return level / 2, level / 2, level / 2
    noise = level if found.noise else 0.0
    return level if found.seen else 0.0, noise, noise if found.colour else 0.0


def file_level(path: Path) -> float | None:
    """Level that a JPEG file states.

    Args:
        path: of any file.

    Returns:
        As `foveal.images.jpeg_level.jpeg_file_level`; None for another file, or one that cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(2)
            return jpeg_file_level(head + file.read(_HEADER)) if head == b"\xff\xd8" else None
    except OSError:
        return None


def stated_level(image: Any) -> float | None:
    """Level that a PIL image read from a JPEG file states.

    Args:
        image: any picture.

    Returns:
        The level; None for another picture.
    """
    tables = getattr(image, "quantization", None)
    if getattr(image, "format", None) != "JPEG" or not isinstance(tables, dict) or len(tables.get(0, ())) != 64:
        return None
    return table_level(np.array(tables[0]).reshape(8, 8))


def chosen_cleaner(bundle: Bundle, clean: str | int, *, named: bool, purpose: str) -> Bundle | None:
    """The bundle that damaged pictures take.

    Args:
        bundle: bundle for clean pictures.
        clean: "auto", "off" or a strength of 1 to 100.
        named: whether the user named the bundle, instead of its scale and quality.
        purpose: purpose asked for.

    Returns:
        The bundle; None where there is none.

    Raises:
        ValueError: a strength where there is none.
    """
    card = bundle.card
    if named:
        found = bundle if card.levels else None
    else:
        found = cleaner(card.scale, card.quality) if purpose == "super-resolution" else None
    if found is None and isinstance(clean, int):
        instead = "leave out the model" if named else "take scale 4"
        raise ValueError(
            f"clean={clean} asks for cleaning, and none comes with {card.name}; {instead}, or leave out clean"
        )
    return found


class Cleaner:
    """The bundle that cleans, opened at the levels that pictures need.

    Args:
        bundle: bundle with a table of levels.
        engine: engine that the user wants, or "auto".
        threads: processor threads.
        tile: side of a tile in input pixels, or "auto".
        mirrored: see `Network`.
    """

    def __init__(self, bundle: Bundle, engine: str, threads: int, tile: int | str, *, mirrored: bool) -> None:
        self.bundle, self.card = bundle, bundle.card
        self.choice = EngineChoice(bundle, engine, threads, tile)
        self._mirrored = mirrored
        self._table = bundle.levels()
        self._networks: OrderedDict[int, Network] = OrderedDict()

    def why_not(self) -> str:
        """Why nothing can be cleaned here.

        Returns:
            What is missing and what to do; "" where cleaning works.
        """
        try:
            self.choice.engine("uint8" if "uint8" in self.card.files else "float")
        except EngineError as error:
            return str(error)
        return ""

    def network(self, level: Level) -> Network:
        """The network of a level.

        Args:
            level: step of the JPEG's table, noise, and noise of colour.

        Returns:
            The network of the nearest level of the table; the last few stay open.
        """
        row = self._table.nearest(level)
        if row not in self._networks:

            def at(which: FileKind, data: bytes) -> bytes:
                return self._table.at(row, which, data)

            def open_file(kind: PixelKind) -> Engine:
                return self.choice.open(kind, at)

            self._networks[row] = Network(self.card, open_file, mirrored=self._mirrored)
            if len(self._networks) > _KEPT:
                self._networks.popitem(last=False)
        self._networks.move_to_end(row)
        return self._networks[row]


class Cleaning:
    """The looks at pictures, and what follows from them.

    Args:
        bundle: bundle that cleans; None where there is none.
        setting: "auto", "off" or a strength of 1 to 100.
        make: function from the bundle to its `Cleaner`, called when a picture first needs it.

    Attributes:
        bundle: bundle that damaged pictures take; None where nothing is cleaned.
    """

    def __init__(self, bundle: Bundle | None, setting: str | int, make: Callable[[Bundle], Cleaner]) -> None:
        self.bundle = None if setting == OFF else bundle
        self._setting, self._make = setting, make
        self._cleaner: Cleaner | None = None

    @property
    def cleaner(self) -> Cleaner:
        """What cleans, made now if it was not before."""
        if self._cleaner is None:
            assert self.bundle is not None
            self._cleaner = self._make(self.bundle)
        return self._cleaner

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences the user should read about the engine that cleans."""
        return () if self._cleaner is None else self._cleaner.choice.notes

    def look(self, pixels: NDArray, alpha: bool, stated: float | None) -> Look:
        """What a picture has been through, and what is done about it.

        Args:
            pixels: (H, W, C).
            alpha: the last channel is alpha.
            stated: level that its JPEG file states; None for another file.

        Returns:
            The look; nothing is looked for where nothing is cleaned.
        """
        if self.bundle is None:
            return Look()
        if not alpha and pixels.shape[2] in (2, 4):
            pixels = pixels[..., :-1]
        return self._decided(examine(pixels, file_level=stated))

    def _decided(self, found: Degradation) -> Look:
        level = decide(found, self._setting)
        if level is None:
            return Look(found)
        if why := self.cleaner.why_not():
            return Look(found, None, why)
        return Look(found, level)

    def foresee(self, image: Any, size: Size, *, closely: bool) -> Look:
        """What is known of a picture before it is enlarged.

        Args:
            image: picture of any kind, or a size.
            size: its size.
            closely: read it and look; else a path is asked no more than the header of a JPEG says.

        Returns:
            The look.
        """
        # The palettes of animations are dithered, which is no noise; and their frames must look alike.
        if self.bundle is None or isinstance(image, tuple) or size.frames > 1 or size.file_format == "gif":
            return Look()
        stated = file_level(Path(image)) if isinstance(image, str | os.PathLike) else stated_level(image)
        if closely:
            taken = take(image)
            return self.look(taken.frames[0], taken.alpha, stated)
        return Look() if stated is None else self._decided(Degradation(stated, seen="file"))

    def said(self, look: Look, *, all_of_it: bool = False) -> tuple[str, ...]:
        """What the user should read about a look.

        Args:
            look: the look.
            all_of_it: say also that nothing is done.

        Returns:
            A sentence, or none.
        """
        if self.bundle is None or not (look.level is not None or look.why or (all_of_it and look.found)):
            return ()
        return (str(look),)

    def told(self, look: Look) -> dict[str, Any] | None:
        """A look as plain data.

        Args:
            look: the look.

        Returns:
            Its fields; None where nothing is cleaned.
        """
        return None if self.bundle is None else look.to_dict()
