"""The card of a bundle, `card.json`: all that the rest of `runtime` knows of a network.

Nobody asks which network it is, only what it is for, how much it enlarges, how far it looks, how it may be tiled and
which sizes it takes. This file is the format's one place: exports write a card through it, and every card is checked
both when it is written and when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args

from foveal.errors import FovealError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["PURPOSES", "QUALITIES", "TILINGS", "VERSION", "BundleError", "Card", "Purpose", "Tiling"]

Purpose = Literal["super-resolution", "restoration", "classification", "dense"]
Tiling = Literal["exact", "overlap"]

PURPOSES: tuple[Purpose, ...] = get_args(Purpose)
TILINGS: tuple[Tiling, ...] = get_args(Tiling)
QUALITIES = ("fast", "balanced", "best")
FILES = ("float", "uint8", "int8")
# 1 had no purpose, tiling and minimum, and a free text `task`.
VERSION = 2


class BundleError(FovealError, ValueError):
    """A bundle that is not there, or is not what its card says."""


@dataclass(frozen=True)
class Card:
    """What a bundle says of itself.

    Args:
        name: name that the user types.
        scale: output side over input side; 1 for a network that restores a picture or answers pixel by pixel.
        margin: with exact tiling, the radius of the receptive field in input pixels; with overlapping tiles, half the
            width of the overlap.
        trims: True if the network uses no padding and so takes `margin` pixels off every side itself; False if its
            output has `scale` times the size of its input.
        files: kind → file name; "float" always, "uint8" if there is a faster file for 8-bit pictures, "int8" if there
            is another of them that computes in bytes inside. Overlapping tiles are blended in floats, so they use the
            float file only.
        sha256: file name → hash, hexadecimal.
        purpose: purpose of the network: "super-resolution" enlarges, "restoration" (denoising, deblurring, …) returns
            a better picture, "classification" gives one answer for a picture, "dense" (segmentation, depth, …) one for
            each pixel.
        tiling: "exact" if the receptive field is known, so that tiles with `margin` pixels around them give what the
            whole picture would; "overlap" for a global network, whose tiles are blended over their overlap.
        multiple: sides of the input must be a multiple of this.
        minimum: smallest side of the input, margins included; smaller inputs are mirrored up and their result is cut.
        channels: channels of the input; 3 is RGB.
        quality: "fast", "balanced", "best", or "" when it is none of them.
        licence: licence of the weights.
        data: training data.
        measured: figures by the usual benchmarks, name → value.
        parameters: number of parameters.
        model: "name" and "arguments" that build the network again with torch; empty if that cannot be done.
        equivariant: True if a turned or mirrored input gives the turned or mirrored output.
        batches: False if the files take one picture at a time.
        levels: file name of the table of levels (`levels.py`) of a network that is told how damaged a picture is; ""
            for any other.
        control: file name of the table of a network whose constants are set by a look at the whole picture
            (`control.py`); "" for any other.
        overshoot: share of the source's local range by which results may go beyond it (`local_range.py`); None for no
            limit.
        imported: for a model of another tool its "file", "family" and "sha256", and the largest change of an output
            value by what lies beyond the margin, "seam"; else empty.
        version: version of the card's own format.

    Raises:
        BundleError: a value that cannot be.
    """

    name: str
    scale: int
    margin: int
    trims: bool
    files: Mapping[str, str]
    sha256: Mapping[str, str] = field(default_factory=dict)
    purpose: Purpose = "super-resolution"
    tiling: Tiling = "exact"
    multiple: int = 1
    minimum: int = 1
    channels: int = 3
    quality: str = ""
    licence: str = ""
    data: str | list[str] = ""
    measured: Mapping[str, Any] = field(default_factory=dict)
    parameters: int = 0
    model: Mapping[str, Any] = field(default_factory=dict)
    equivariant: bool = False
    batches: bool = True
    levels: str = ""
    control: str = ""
    overshoot: float | None = None
    imported: Mapping[str, Any] = field(default_factory=dict)
    version: int = VERSION

    def __post_init__(self) -> None:
        for name, low in (
            ("version", 1),
            ("scale", 1),
            ("margin", 0),
            ("multiple", 1),
            ("minimum", 1),
            ("channels", 1),
            ("parameters", 0),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise BundleError(f"{self.name}: {name} must be a whole number of at least {low}, got {value!r}")
        for name in ("trims", "equivariant", "batches"):
            if not isinstance(getattr(self, name), bool):
                raise BundleError(f"{self.name}: {name} must be true or false, got {getattr(self, name)!r}")
        if self.version > VERSION:
            raise BundleError(f"{self.name}: card version {self.version}, this foveal reads {VERSION}; update foveal")
        for name in ("levels", "control"):
            if not isinstance(getattr(self, name), str):
                raise BundleError(f"{self.name}: {name} must be a file name, got {getattr(self, name)!r}")
        if self.overshoot is not None and not (isinstance(self.overshoot, int | float) and 0 <= self.overshoot <= 1):
            raise BundleError(f"{self.name}: overshoot must be null or in [0, 1], got {self.overshoot!r}")
        if self.channels != 3:
            raise BundleError(f"{self.name}: channels must be 3 (RGB), got {self.channels}")
        for name, words in (("purpose", PURPOSES), ("tiling", TILINGS), ("quality", ("", *QUALITIES))):
            if getattr(self, name) not in words:
                wanted = ", ".join(filter(None, words))
                raise BundleError(f"{self.name}: {name} must be one of {wanted}, got {getattr(self, name)!r}")
        if self.tiling == "overlap" and (self.trims or self.margin < 1):
            raise BundleError(
                f"{self.name}: overlapping tiles need a margin of at least 1 and a network that does not trim, got "
                f"margin {self.margin} and trims {self.trims}"
            )
        if not isinstance(self.files, Mapping) or "float" not in self.files:
            raise BundleError(f"{self.name}: files must name at least a float file, got {self.files!r}")
        if unknown := set(self.files) - set(FILES):
            raise BundleError(f"{self.name}: files may be float, uint8 and int8, got {', '.join(sorted(unknown))}")
        for name in ("files", "sha256", "measured", "model", "imported"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @classmethod
    def read(cls, path: Path) -> Card:
        """Read a card.

        Args:
            path: path of a `card.json`.

        Returns:
            The card; keys that this version does not know are left out.

        Raises:
            BundleError: it is not there, not JSON, or lacks something.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise BundleError(f"{path.parent}: no card.json here, so this is no bundle") from None
        except (OSError, ValueError) as error:
            raise BundleError(f"{path}: cannot be read as JSON ({error})") from error
        if not isinstance(values, dict):
            raise BundleError(f"{path}: a card must be one JSON object, got {type(values).__name__}")
        known = {f.name for f in fields(cls)}
        required = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
        if missing := required - values.keys():
            raise BundleError(f"{path}: the card lacks {', '.join(sorted(missing))}")
        return cls(**{key: value for key, value in values.items() if key in known})

    def to_dict(self) -> dict[str, Any]:
        """The card as plain data.

        Returns:
            Its fields.
        """
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return {key: dict(value) if isinstance(value, Mapping) else value for key, value in plain.items()}

    def to_json(self) -> str:
        """The card as the text of `card.json`.

        Returns:
            JSON, indented.
        """
        return json.dumps(self.to_dict(), indent=2) + "\n"
