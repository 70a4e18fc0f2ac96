"""`foveal data`: training pictures that anyone may use."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads it
from typing import Annotated

import typer


def data(
    out: Annotated[Path, typer.Argument(help="Folder for the pictures and sources.csv.")],
    packages: Annotated[
        Path | None, typer.Option(help="Folder for the downloaded packages; OUT/packages without it.")
    ] = None,
    kind: Annotated[str, typer.Option(help="all, photographs (wallpapers) or textures (of games).")] = "all",
    reduce: Annotated[int, typer.Option(help="Make every picture so many times smaller, and sharper.", min=1)] = 1,
    only: Annotated[str, typer.Option(help="Comma-separated package names, instead of a kind.")] = "",
) -> None:
    """Fetch freely licensed pictures from Debian's archive and prepare them for training.

    Needs apt-get and dpkg-deb, about 2 GB of room and some minutes. Wallpaper packages give photographs, game packages
    photographed textures; sources.csv names package, version, file and licence of every picture.

        $ foveal data data/pictures
        fetching plasma-workspace-wallpapers
        plasma-workspace-wallpapers: 24 pictures
        ...
        1438 pictures in data/pictures
    """
    from foveal.train.restore.debian import PACKAGES, PHOTOGRAPHS, TEXTURES, FetchError, prepare

    kinds = {"all": PACKAGES, "photographs": PHOTOGRAPHS, "textures": TEXTURES}
    if kind not in kinds:
        typer.echo(f"foveal data: --kind must be one of {', '.join(kinds)}, got {kind!r}", err=True)
        raise typer.Exit(2)
    names = [name.strip() for name in only.split(",") if name.strip()]
    known = [p.name for p in PACKAGES]
    if unknown := sorted(set(names) - set(known)):
        typer.echo(f"foveal data: no package {unknown[0]!r}; there are {', '.join(known)}", err=True)
        raise typer.Exit(2)
    chosen = tuple(p for p in PACKAGES if p.name in names) or kinds[kind]
    try:
        count = prepare(out, packages or out / "packages", chosen, reduce=reduce)
    except FetchError as error:
        typer.echo(f"foveal data: {error}", err=True)
        raise typer.Exit(1) from None
    print(f"{count} pictures in {out}")
