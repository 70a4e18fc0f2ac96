"""Options that several commands share, and the one way in which a command stops."""

from __future__ import annotations

import os
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from foveal.cli._speech import say

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "Background",
    "Benchmarks",
    "Codec",
    "Compare",
    "Crf",
    "Json",
    "LimitMegapixels",
    "Out",
    "Quiet",
    "Recursive",
    "Resume",
    "Threads",
    "Tile",
    "background_colour",
    "data_folder",
    "stop",
    "with_address",
]

Threads = Annotated[
    int | None,
    typer.Option("--threads", "-t", metavar="N", min=1, help="Processor threads.  [default: all]", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Benchmarks = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="Folder of data: benchmark sets.  [default: FOVEAL_DATA, else ./data, else ../shared/data]",
    ),
]

# Of the commands that make pictures from pictures.
Out = Annotated[
    str | None,
    typer.Option(
        "--output", "-o", metavar="OUT", help="Folder, or for one picture a file.  [default: beside the source]"
    ),
]
Tile = Annotated[str, typer.Option("--tile", metavar="auto|N", help="Side of a tile in pixels; 0 for auto.")]
Background = Annotated[
    str,
    typer.Option(
        "--background",
        metavar="#RRGGBB",
        help="Colour behind transparent pixels, for formats without transparency.",
    ),
]
Codec = Annotated[
    str, typer.Option("--codec", metavar="NAME", help="Of films: h264, hevc, av1, vp9 or ffv1.  [default: h264]")
]
Crf = Annotated[
    int | None,
    typer.Option("--crf", metavar="N", help="Of films: rate factor, lower is better.  [default: the codec's]"),
]
Recursive = Annotated[
    bool, typer.Option("--recursive", "-r", help="Search subfolders; the results keep the folder tree.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Skip finished pictures; redo those with a newer source or other settings.")
]
Compare = Annotated[bool, typer.Option("--compare", help="Write an HTML page that compares before and after.")]
LimitMegapixels = Annotated[
    float, typer.Option("--limit-megapixels", metavar="N", min=0, help="Refuse larger pictures.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


def stop(command: str, message: object, *, code: int = 2) -> NoReturn:
    """Report on standard error why a command cannot go on, and end it.

    Args:
        command: name of the command.
        message: the problem and what to do about it.
        code: exit code.

    Raises:
        typer.Exit: always.
    """
    say(f"foveal {command}: {message}", sys.stderr)
    raise typer.Exit(code)


def background_colour(command: str, text: str) -> tuple[int, int, int] | None:
    """The colour that `--background` names; stop if it is none.

    Args:
        command: name of the command.
        text: white, black or #rrggbb; "" for none.

    Returns:
        Red, green and blue, 0 to 255, or None.
    """
    if not text:
        return None
    digits = {"white": "ffffff", "black": "000000"}.get(text.lower(), text.removeprefix("#"))
    if len(digits) == 3:
        digits = "".join(digit * 2 for digit in digits)
    try:
        red, green, blue = bytes.fromhex(digits)
    except ValueError:
        stop(command, f"--background must be white, black or #rrggbb, got {text!r}; for blue say '#0000ff' or '#00f'")
    return red, green, blue


@contextmanager
def data_folder(command: str, folder: Path | None) -> Iterator[None]:
    """Set FOVEAL_DATA to a folder inside the block; stop if it is not a folder.

    Args:
        command: name of the command.
        folder: folder of benchmark data; None leaves the environment unchanged.

    Yields:
        Nothing.
    """
    if folder is None:
        yield
        return
    if not folder.is_dir():
        stop(command, f"--data must be a folder, and {folder} is none; name one, or leave --data out")
    before = os.environ.get("FOVEAL_DATA")
    os.environ["FOVEAL_DATA"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("FOVEAL_DATA") if before is None else os.environ.update(FOVEAL_DATA=before)


def with_address(arguments: Sequence[str], option: str = "--ray") -> list[str]:
    """Give an option whose address may be left out the one that stands for this machine.

    Args:
        arguments: arguments of a command.
        option: name of the option.

    Returns:
        The arguments, with "local" behind the option unless what looks like an address follows it.
    """
    whole = list(arguments)
    end = whole.index("--") if "--" in whole else len(whole)
    if option in whole[:end]:
        at = whole.index(option) + 1
        if at == end or not re.fullmatch(r"auto|local|[^/\\]+:\d+|\w+://.*|[\d.]+", whole[at]):
            whole.insert(at, "local")
    return whole
