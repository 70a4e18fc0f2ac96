"""Bundles: a folder with a model's ONNX files and the `card.json` (`card.py`) that says what they are."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from foveal.runtime.card import PURPOSES, QUALITIES, BundleError, Card, Purpose
from foveal.runtime.levels import Levels

if TYPE_CHECKING:
    from foveal.runtime.engines import FileKind

__all__ = ["FOREIGN", "SHIPPED", "Bundle", "BundleError", "Card", "available", "choose", "cleaner"]

# Suffixes of the models of other tools.
FOREIGN = (".pth", ".pt", ".ckpt", ".safetensors", ".onnx", ".param", ".bin")
SHIPPED = Path(__file__).resolve().parent.parent / "bundles"


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk.

    Args:
        folder: folder of its files.
        card: card that says what they are.
    """

    folder: Path
    card: Card

    @classmethod
    def load(cls, name: str | Path) -> Bundle:
        """One bundle by name or path.

        Args:
            name: name of a bundle that ships with foveal; the path of a bundle's folder or of its `card.json`; or the
                path of another tool's model (.pth, .safetensors, .onnx, .param), which is imported once.

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
        if path.suffix.lower() in FOREIGN:
            # By name: it stands above this folder, which does without torch.
            return cls.load(import_module("foveal.export.foreign").imported(path))
        names = [bundle.card.name for bundle in available()]
        close = get_close_matches(str(name), names, n=3, cutoff=0.0)
        raise BundleError(
            f"no bundle {str(name)!r}: not the name of a shipped one (closest: {', '.join(close) or 'none shipped'}) "
            "and not a folder; `foveal models` lists them"
        )

    def file(self, kind: FileKind) -> Path:
        """Path of one of the bundle's ONNX files, checked against the card.

        Args:
            kind: kind of the file.

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
        # What has a hash and is no file of its own (the weights of a .param) belongs to every one.
        for part in (name, *(self.card.sha256.keys() - set(self.card.files.values()))):
            if (wanted := self.card.sha256.get(part)) is not None:
                self._check(self.folder / Path(part).name, wanted)
        return path

    @staticmethod
    def _check(path: Path, wanted: str) -> None:
        if not path.is_file():
            raise BundleError(f"{path}: missing; the bundle is incomplete, copy or install it again")
        got = hashlib.sha256(path.read_bytes()).hexdigest()
        if got != wanted.lower():
            raise BundleError(
                f"{path}: sha256 is {got[:12]}…, the card says {wanted[:12]}…; the file is damaged or was changed, "
                "install the bundle again or export it anew"
            )

    def levels(self) -> Levels:
        """The bundle's table of levels.

        Returns:
            The table.

        Raises:
            BundleError: it has none, or it is not the one the card speaks of.
        """
        if not self.card.levels:
            raise BundleError(f"{self.card.name}: no table of levels; choose a bundle that cleans")
        self.file("float")  # which checks the table's hash as well
        return Levels.read(self.folder / Path(self.card.levels).name)

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change when the card changes, the hashes of its files included."""
        return hashlib.sha256(self.card.to_json().encode()).hexdigest()[:12]


def available(folder: Path | None = None) -> list[Bundle]:
    """All bundles of a folder, those that ship with foveal by default.

    Args:
        folder: folder that holds a folder for each bundle.

    Returns:
        The bundles, by scale, then from the fastest to the best; those that clean come after them, and those that
        repair at the same size are last.
    """
    folder = SHIPPED if folder is None else folder
    bundles = [Bundle(path.parent, Card.read(path)) for path in folder.glob("*/card.json")]
    rank = {"": len(QUALITIES), **{quality: i for i, quality in enumerate(QUALITIES)}}
    return sorted(
        bundles, key=lambda b: (b.card.scale == 1, bool(b.card.levels), b.card.scale, rank[b.card.quality], b.card.name)
    )


def choose(scale: int, quality: str = "balanced", *, purpose: Purpose = "super-resolution") -> tuple[Bundle, str]:
    """The shipped bundle for a purpose, a scale and a quality.

    Args:
        scale: output side over input side: 2, 3 or 4 to enlarge, 1 to restore.
        quality: "fast", "balanced" or "best".
        purpose: purpose of the bundle; one of another purpose is never taken.

    Returns:
        The bundle, and a sentence for the user when it is not of the quality asked for ("" otherwise).

    Raises:
        BundleError: none for that purpose and scale.
        ValueError: an unknown quality or purpose.
    """
    if quality not in QUALITIES:
        raise ValueError(f"quality must be one of {', '.join(QUALITIES)}, got {quality!r}")
    if purpose not in PURPOSES:
        raise ValueError(f"purpose must be one of {', '.join(PURPOSES)}, got {purpose!r}")
    fitting = [bundle for bundle in available() if bundle.card.purpose == purpose and not bundle.card.levels]
    bundles = [bundle for bundle in fitting if bundle.card.scale == scale]
    if not bundles:
        scales = sorted({bundle.card.scale for bundle in fitting})
        there = f"there are some for {', '.join(map(str, scales))}" if scales else "none is installed for that purpose"
        raise BundleError(f"no {purpose} bundle enlarges by {scale}; {there}")
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


def cleaner(scale: int, quality: str) -> Bundle | None:
    """The shipped bundle that enlarges damaged pictures.

    Args:
        scale: output side over input side.
        quality: of the bundle for clean pictures beside it.

    Returns:
        The bundle with a table of levels, of that quality or the nearest; None where there is none for the scale.
    """
    wanted = QUALITIES.index(quality) if quality in QUALITIES else QUALITIES.index("balanced")
    fitting = [b for b in available() if b.card.levels and b.card.scale == scale and b.card.quality in QUALITIES]
    return min(fitting, key=lambda b: abs(QUALITIES.index(b.card.quality) - wanted), default=None)
