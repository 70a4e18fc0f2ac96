"""Fetch freely licensed pictures from Debian's archive and prepare a training set.

Debian ships only content that anyone may use, modify and redistribute, so weights trained on these pictures carry no
non-commercial restriction. Wallpaper packages contain photographs of 4 to 24 megapixels, one game contains 240
landscapes and cities of one megapixel, others contain photographed textures. Lossily compressed pictures are halved in
size, which removes most compression artefacts (not the landscapes: they have few); flat pictures (drawn wallpapers,
masks) are dropped because they teach a network nothing.
"""

from __future__ import annotations

import csv
import functools
import shutil
import subprocess
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from foveal.errors import FovealError
from foveal.images.resize import imresize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["PACKAGES", "PHOTOGRAPHS", "TEXTURES", "FetchError", "Package", "fetch", "prepare"]


class FetchError(FovealError, RuntimeError):
    """Packages that cannot be fetched or unpacked."""


@dataclass(frozen=True)
class Package:
    """One Debian package of pictures.

    Args:
        name: name of the package in Debian 12.
        licence: licences of its pictures, from its copyright file.
        least: smallest picture taken, in megapixels.
        skip: prefixes of file names that are left out.
        halved: whether lossily compressed pictures are halved in size.
    """

    name: str
    licence: str
    least: float = 1.0
    skip: tuple[str, ...] = ()
    halved: bool = True


# foveal's sample pictures are crops of four of the lomiri wallpapers, which are therefore never trained on.
SAMPLES = ("friends_by_", "Bridge_by_", "greentock_by_", "seeding_by_")
SPACE = ("space", "nasa", "earthrise", "army", "engine", "eso", "geoscan", "lobby", "tempest")
CHARTS = ("P3-", "R2020-", "rgb-to")

PHOTOGRAPHS = (
    Package("lomiri-wallpapers-16.04", "CC-BY-4.0, CC-BY-SA-3.0, CC-BY-SA-4.0, CC0-1.0", skip=SAMPLES),
    Package("lomiri-wallpapers-20.04", "CC-BY-SA-3.0", skip=SAMPLES),
    Package("libjxl-testdata", "BSD-3-Clause, CC0-1.0", least=0.15, skip=("flower.png.im", "flower_", *CHARTS)),
    Package("plasma-workspace-wallpapers", "GPL-2+ (KDE Visual Design Group and contributors)"),
    Package("mate-backgrounds", "GPL-2+, CC-BY-SA-4.0"),
    Package("ukui-wallpapers", "CC-BY-SA-3.0"),
    Package("gnome-backgrounds", "CC-BY-SA-3.0"),
    Package("endless-sky-high-dpi", "public domain, CC-BY-SA-3.0, CC-BY-SA-4.0", skip=SPACE, halved=False),
)
TEXTURES = (
    Package("ufoai-textures", "GPL-2+, CC-BY-SA-3.0, CC-BY-3.0, public domain", least=0.24),
    Package("supertuxkart-data", "CC-BY-SA-3.0, CC-BY-SA-4.0, CC-BY-3.0, CC0, public domain, GPL", least=0.24),
    Package("openarena-081-textures", "GPL-2+", least=0.24),
    Package("colobot-common-textures", "GPL-3", least=0.24),
)
PACKAGES = PHOTOGRAPHS + TEXTURES

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tga"}
LOSSY = {".jpg", ".jpeg", ".webp"}
LARGEST = 4.2  # megapixels: a larger picture is halved until it is smaller, so that its detail is dense
FLAT = 3.0  # mean squared error of bicubic at ×2, in levels², below which a picture is dropped
# Files with such names are not training pictures: shading data, or the same photograph in another encoding.
OFTEN = (
    *("normal", "_nm.", "_n.", "_s.", "_gloss", "heightmap", "lightmap", "_spec", "screenshot", "alpha", "mask"),
    *("_709_", "_2020_", "_acescg", "grayscale"),
)


def fetch(folder: Path, packages: tuple[Package, ...] = PACKAGES, say: Callable[[str], None] = print) -> list[Path]:
    """Download the packages' archives with `apt-get download`; existing archives are kept.

    Args:
        folder: folder for the `.deb` files; created if missing.
        packages: packages to use.
        say: function called with lines of progress.

    Returns:
        One archive per package, in order.

    Raises:
        FetchError: `apt-get` is missing or refuses a package.
    """
    if shutil.which("apt-get") is None:
        raise FetchError("fetching needs apt-get (Debian or Ubuntu); elsewhere, put the .deb files into the folder")
    folder.mkdir(parents=True, exist_ok=True)
    archives = []
    for package in packages:
        found = sorted(folder.glob(f"{package.name}_*.deb"))
        if not found:
            say(f"fetching {package.name}")
            done = subprocess.run(
                ["apt-get", "download", "-q", package.name], cwd=folder, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise FetchError(f"apt-get download {package.name} failed: {done.stderr.strip()}; try apt-get update")
            found = sorted(folder.glob(f"{package.name}_*.deb"))
        archives.append(found[-1])
    return archives


def _unpack(archive: Path, folder: str) -> None:
    if shutil.which("dpkg-deb") is None:
        raise FetchError("unpacking needs dpkg-deb (Debian or Ubuntu); elsewhere, any folder of pictures does as well")
    done = subprocess.run(["dpkg-deb", "-x", str(archive), folder], capture_output=True, text=True, check=False)
    if done.returncode:
        raise FetchError(f"{archive} cannot be unpacked: {done.stderr.strip()}; remove it to fetch it again")


def _pictures(root: Path, package: Package) -> Iterator[Path]:
    """Every picture below `root` that is large enough; of a picture in several sizes, only the largest."""
    for archive in root.rglob("*.pk3"):
        with zipfile.ZipFile(archive) as z:
            z.extractall(archive.with_suffix(".d"))
    best: dict[Path, tuple[float, Path]] = {}
    for path in sorted(root.rglob("*")):
        low = path.name.lower()
        if path.suffix.lower() not in SUFFIXES or path.is_symlink() or path.name.startswith(package.skip or "/"):
            continue
        if any(word in low for word in OFTEN):
            continue
        try:
            with Image.open(path) as picture:
                size = picture.width * picture.height / 1e6
        except OSError:
            continue
        # KDE stores a picture in many sizes: NAME/contents/images/WIDTHxHEIGHT.png
        key = path.parent if path.parent.name.startswith("images") else path
        if size >= package.least and size > best.get(key, (0.0, path))[0]:
            best[key] = (size, path)
    yield from (path for _, path in sorted(best.values(), key=lambda item: item[1]))


def _load(path: Path, reduce: int = 1, *, halved: bool = True) -> np.ndarray | None:
    """The picture as a training target, (H, W, 3) uint8, or None if it has too little detail."""
    with Image.open(path) as picture:
        seen = picture.convert("RGBA" if picture.mode in ("RGBA", "LA", "P", "PA") else "RGB")
    if seen.mode == "RGBA" and np.asarray(seen)[..., 3].min() < 250:
        return None
    image = np.asarray(seen.convert("RGB"))
    if halved and path.suffix.lower() in LOSSY:
        image = imresize(image, 0.5, dtype=np.float32)
    while image.shape[0] * image.shape[1] > LARGEST * 1e6:
        image = imresize(image, 0.5, dtype=np.float32)
    if reduce > 1:
        size = (image.shape[1] // reduce, image.shape[0] // reduce)
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    image = image[: image.shape[0] // 12 * 12, : image.shape[1] // 12 * 12]
    if min(image.shape[:2]) < 192:
        return None
    back = imresize(imresize(image, 0.5, dtype=np.float32), 2, dtype=np.float32)
    return None if np.square(image.astype(np.float32) - back).mean() < FLAT else image


def prepare(
    out: Path,
    debs: Path,
    packages: tuple[Package, ...] = PACKAGES,
    say: Callable[[str], None] = print,
    *,
    reduce: int = 1,
) -> int:
    """Unpack the archives and write the training pictures with a list of their sources.

    Args:
        out: folder for `NNNN.png` and `sources.csv` (picture, package, version, file, licence).
        debs: folder of the archives; missing ones are downloaded by `fetch`.
        packages: packages to use.
        say: function called with lines of progress.
        reduce: factor by which every picture is reduced, which makes it sharper per pixel.

    Returns:
        Number of pictures written.

    Raises:
        ValueError: `reduce` below 1.
        FetchError: an archive cannot be fetched or unpacked.
    """
    if reduce < 1:
        raise ValueError(f"reduce must be at least 1, got {reduce}")
    archives = fetch(debs, packages, say)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, str, str, str, str]] = []
    for package, archive in zip(packages, archives, strict=True):
        with tempfile.TemporaryDirectory() as folder:
            _unpack(archive, folder)
            paths = list(_pictures(Path(folder), package))
            with ThreadPoolExecutor(2) as pool:
                images = pool.map(functools.partial(_load, reduce=reduce, halved=package.halved), paths)
                for path, image in zip(paths, images, strict=True):
                    if image is None:
                        continue
                    name = f"{len(rows):04d}.png"
                    Image.fromarray(image).save(out / name, compress_level=1)
                    version = archive.name.split("_")[1].replace("%3a", ":")
                    rows.append((name, package.name, version, str(path.relative_to(folder)), package.licence))
        say(f"{package.name}: {sum(r[1] == package.name for r in rows)} pictures")
    with (out / "sources.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("picture", "package", "version", "file", "licence"))
        writer.writerows(rows)
    return len(rows)
