"""`foveal data`: freely licensed training pictures."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  typer reads the annotation
from typing import Annotated

import typer

from foveal.cli._options import stop

__all__ = ["data"]


def data(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the pictures and sources.csv.")],
    packages: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Folder for the downloaded packages.  [default: OUT/packages]")
    ] = None,
    kind: Annotated[
        str, typer.Option(metavar="NAME", help="all, photographs (wallpapers) or textures (from games).")
    ] = "all",
    reduce: Annotated[
        int, typer.Option(metavar="N", help="Reduce every picture by this factor, which makes it sharper.", min=1)
    ] = 1,
    only: Annotated[str, typer.Option(metavar="NAMES", help="Comma-separated package names, instead of a kind.")] = "",
) -> None:
    """Fetch freely licensed pictures from Debian's archive and prepare them for training.

    Needs apt-get and dpkg-deb, and for all packages about 2 GB of disk space and a few minutes. Wallpaper packages
    contain photographs, game packages photographed textures; sources.csv lists package, version, file and licence of
    every picture.

    Args:
        out: folder for the pictures and sources.csv.
        packages: folder for the downloaded packages; None for `packages` in `out`.
        kind: kind of packages: all, photographs or textures.
        reduce: factor by which every picture is reduced.
        only: comma-separated package names, instead of a kind.

    Raises:
        typer.Exit: an unknown kind or package, or packages that cannot be fetched.

    Example:
        $ foveal data data/pictures --only plasma-workspace-wallpapers
        fetching plasma-workspace-wallpapers
        plasma-workspace-wallpapers: 24 pictures
        24 pictures in data/pictures
    """
    from foveal.train.restore.debian import PACKAGES, PHOTOGRAPHS, TEXTURES, FetchError, prepare

    kinds = {"all": PACKAGES, "photographs": PHOTOGRAPHS, "textures": TEXTURES}
    if kind not in kinds:
        stop("data", f"--kind must be one of {', '.join(kinds)}, got {kind!r}")
    names = [name.strip() for name in only.split(",") if name.strip()]
    known = [p.name for p in PACKAGES]
    if unknown := sorted(set(names) - set(known)):
        stop("data", f"no package {unknown[0]!r}; there are {', '.join(known)}")
    chosen = tuple(p for p in PACKAGES if p.name in names) or kinds[kind]
    try:
        count = prepare(out, packages or out / "packages", chosen, reduce=reduce)
    except FetchError as error:
        stop("data", error, code=1)
    print(f"{count} pictures in {out}")
