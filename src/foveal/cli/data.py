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
    only: Annotated[str, typer.Option(help="Comma-separated package names; all without it.")] = "",
) -> None:
    """Fetch freely licensed pictures from Debian's archive and prepare them for training.

    Needs apt-get and dpkg-deb, about 2 GB of room and some minutes. Wallpaper packages give photographs, game packages
    photographed textures; sources.csv names package, version, file and licence of every picture.

        $ foveal data data/photos
        fetching plasma-workspace-wallpapers
        plasma-workspace-wallpapers: 24 pictures
        ...
        1422 pictures in data/photos
    """
    from foveal.train.debian import PACKAGES, prepare

    names = [name.strip() for name in only.split(",") if name.strip()]
    known = [p.name for p in PACKAGES]
    if unknown := sorted(set(names) - set(known)):
        typer.echo(f"foveal data: no package {unknown[0]!r}; there are {', '.join(known)}", err=True)
        raise typer.Exit(2)
    chosen = tuple(p for p in PACKAGES if not names or p.name in names)
    try:
        count = prepare(out, packages or out / "packages", chosen)
    except RuntimeError as error:
        typer.echo(f"foveal data: {error}", err=True)
        raise typer.Exit(1) from None
    print(f"{count} pictures in {out}")
