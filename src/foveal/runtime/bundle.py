"""Bundles: a folder with a model's ONNX files and one `card.json` that says what they are.

The card is all that the rest of `runtime` knows of a network: nobody asks which network it is, only how much it
enlarges, how far it looks, and what sizes it takes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

__all__ = ["QUALITIES", "SHIPPED", "Bundle", "BundleError", "Card", "available", "choose"]

QUALITIES = ("fast", "balanced", "best")
SHIPPED = Path(__file__).resolve().parent.parent / "bundles"
VERSION = 1


class BundleError(ValueError):
    """A bundle that is not there, or is not what its card says."""


@dataclass(frozen=True)
class Card:
    """What a bundle says of itself.

    Args:
        name: as the user names it.
        scale: output side over input side.
        margin: radius of the receptive field in input pixels.
        trims: True if the network uses no padding and so takes `margin` pixels off every side itself; False if its
            output has `scale` times the size of its input.
        files: kind → file name; "float" always, "uint8" if there is a faster file for 8-bit pictures, "int8" if there
            is another of them that computes in bytes inside.
        sha256: file name → hash, hexadecimal.
        task: what it is for.
        multiple: sides of the input must be a multiple of this.
        channels: of the input; 3 is RGB.
        quality: "fast", "balanced", "best", or "" when it is none of them.
        licence: of the weights.
        data: what they were trained on.
        measured: figures by the usual benchmarks, name → value.
        parameters: how many.
        model: how to build the network again with torch: "name" and "arguments"; empty if that cannot be done.
        equivariant: True if a turned or mirrored input gives the turned or mirrored output.
        version: of the card's own format.

    Raises:
        BundleError: a value that cannot be.
    """

    name: str
    scale: int
    margin: int
    trims: bool
    files: Mapping[str, str]
    sha256: Mapping[str, str] = field(default_factory=dict)
    task: str = "super-resolution"
    multiple: int = 1
    channels: int = 3
    quality: str = ""
    licence: str = ""
    data: str | list[str] = ""
    measured: Mapping[str, Any] = field(default_factory=dict)
    parameters: int = 0
    model: Mapping[str, Any] = field(default_factory=dict)
    equivariant: bool = False
    version: int = VERSION

    def __post_init__(self) -> None:
        for name, low in (("scale", 1), ("margin", 0), ("multiple", 1), ("channels", 1), ("parameters", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise BundleError(f"{self.name}: {name} must be a whole number of at least {low}, got {value!r}")
        for name in ("trims", "equivariant"):
            if not isinstance(getattr(self, name), bool):
                raise BundleError(f"{self.name}: {name} must be true or false, got {getattr(self, name)!r}")
        if self.version != VERSION:
            raise BundleError(f"{self.name}: card version {self.version}, this foveal reads {VERSION}; update foveal")
        if self.channels != 3:
            raise BundleError(f"{self.name}: channels must be 3 (RGB), got {self.channels}")
        if self.quality not in ("", *QUALITIES):
            raise BundleError(f"{self.name}: quality must be one of {', '.join(QUALITIES)}, got {self.quality!r}")
        if not isinstance(self.files, Mapping) or "float" not in self.files:
            raise BundleError(f"{self.name}: files must name at least a float file, got {self.files!r}")
        if unknown := set(self.files) - {"float", "uint8", "int8"}:
            raise BundleError(f"{self.name}: files may be float, uint8 and int8, got {', '.join(sorted(unknown))}")
        for name in ("files", "sha256", "measured", "model"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @classmethod
    def read(cls, path: Path) -> Card:
        """Read a card.

        Args:
            path: of a `card.json`.

        Returns:
            The card.

        Raises:
            BundleError: it is not there, not JSON, or lacks something; keys that this version does not know are left
                alone.
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

    def to_json(self) -> str:
        """The card as the text of `card.json`.

        Returns:
            JSON, indented.
        """
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return json.dumps({k: dict(v) if isinstance(v, Mapping) else v for k, v in plain.items()}, indent=2) + "\n"


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk.

    Args:
        folder: where its files are.
        card: what they are.
    """

    folder: Path
    card: Card

    @classmethod
    def load(cls, name: str | Path) -> Bundle:
        """One bundle by name or path.

        Args:
            name: of a bundle that ships with foveal, or the path of a bundle's folder or of its `card.json`.

        Returns:
            The bundle.

        Raises:
            BundleError: there is none; the message names the closest.
        """
        path = Path(name)
        if path.name == "card.json":
            path = path.parent
        # A bare word is a name first: a folder that happens to be called "fast_x4" must not change what is run.
        if path.name == str(name) and (SHIPPED / path / "card.json").is_file():
            path = SHIPPED / path
        if path.is_dir():
            return cls(path, Card.read(path / "card.json"))
        names = [bundle.card.name for bundle in available()]
        close = get_close_matches(str(name), names, n=3, cutoff=0.0)
        raise BundleError(
            f"no bundle {str(name)!r}: not the name of a shipped one (closest: {', '.join(close) or 'none shipped'}) "
            "and not a folder; `foveal models` lists them"
        )

    def file(self, kind: str) -> Path:
        """Path of one of the bundle's ONNX files, checked against the card.

        Args:
            kind: "float", "uint8" or "int8".

        Returns:
            The path.

        Raises:
            BundleError: no such kind, the file is missing, or it is not the one the card speaks of.
        """
        name = self.card.files.get(kind)
        if name is None:
            raise BundleError(f"{self.card.name}: no {kind} file; it has {', '.join(self.card.files)}")
        if Path(name).name != name:
            raise BundleError(f"{self.card.name}: {name!r} must be a plain file name inside the bundle")
        path = self.folder / name
        if not path.is_file():
            raise BundleError(f"{path}: missing; the bundle is incomplete, copy or install it again")
        wanted = self.card.sha256.get(name)
        if wanted is not None:
            got = hashlib.sha256(path.read_bytes()).hexdigest()
            if got != wanted.lower():
                raise BundleError(
                    f"{path}: sha256 is {got[:12]}…, the card says {wanted[:12]}…; the file is damaged or was changed, "
                    "install the bundle again or export it anew"
                )
        return path

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change when the card changes, the hashes of its files included."""
        return hashlib.sha256(self.card.to_json().encode()).hexdigest()[:12]


def available(folder: Path | None = None) -> list[Bundle]:
    """All bundles of a folder, those that ship with foveal by default.

    Args:
        folder: that holds a folder for each bundle.

    Returns:
        The bundles, by scale, then from the fastest to the best.
    """
    folder = SHIPPED if folder is None else folder
    bundles = [Bundle(path.parent, Card.read(path)) for path in folder.glob("*/card.json")]
    rank = {"": len(QUALITIES), **{quality: i for i, quality in enumerate(QUALITIES)}}
    return sorted(bundles, key=lambda b: (b.card.scale, rank[b.card.quality], b.card.name))


def choose(scale: int, quality: str = "balanced") -> tuple[Bundle, str]:
    """The shipped bundle for a scale and a quality.

    Args:
        scale: 2, 3 or 4.
        quality: "fast", "balanced" or "best".

    Returns:
        The bundle, and a sentence for the user when it is not of the quality asked for ("" otherwise).

    Raises:
        BundleError: none for that scale.
        ValueError: an unknown quality.
    """
    if quality not in QUALITIES:
        raise ValueError(f"quality must be one of {', '.join(QUALITIES)}, got {quality!r}")
    bundles = [bundle for bundle in available() if bundle.card.scale == scale]
    if not bundles:
        scales = sorted({bundle.card.scale for bundle in available()})
        raise BundleError(f"no bundle enlarges by {scale}; there are some for {', '.join(map(str, scales)) or 'none'}")
    wanted = QUALITIES.index(quality)
    ranked = {QUALITIES.index(b.card.quality): b for b in reversed(bundles) if b.card.quality}
    if not ranked:
        return bundles[0], f"no bundle ×{scale} states its quality; using {bundles[0].card.name}"
    # The nearest one, the better of two equally near.
    nearest = min(ranked, key=lambda rank: (abs(rank - wanted), -rank))
    bundle = ranked[nearest]
    # Where there is no bundle for it, best is the better bundle with its mirror images.
    if nearest == wanted or (quality == "best" and not bundle.card.equivariant):
        return bundle, ""
    return bundle, f"no bundle of quality {quality} ×{scale} yet; using {bundle.card.name}"
