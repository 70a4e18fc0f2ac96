"""`foveal upscale - -o -`: a picture from standard input, and one to standard output."""

from __future__ import annotations

import shutil
import sys
from contextlib import nullcontext, redirect_stdout, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from foveal.cli._options import stop

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["pipes", "through_pipes"]


def pipes(inputs: list[str], out: str | None) -> bool:
    """Whether a picture comes from or goes to a pipe.

    Args:
        inputs: inputs as the user named them.
        out: value of `--output`.

    Returns:
        Whether one of them is "-".
    """
    return "-" in inputs or out == "-"


def through_pipes(command: Callable[..., None], arguments: dict[str, Any]) -> int:
    """Run the command on files in place of the pipes; what it prints goes to standard error if the picture does not.

    Args:
        command: `foveal upscale`.
        arguments: its arguments by name.

    Returns:
        The exit code.
    """
    inputs, out = [*(arguments["pictures"] or []), *(arguments["more"] or [])], arguments["out"]
    if len(inputs) != 1:
        _stop(f"- stands for one picture, and {len(inputs)} inputs are named; give one")
    if out is None:
        _stop("a picture from standard input needs a place; say -o FILE, or -o - for standard output")
    if out == "-" and (arguments["json"] or arguments["compare"] or arguments["dry_run"]):
        _stop("-o - fills standard output with the picture; leave out --json, --compare and --dry-run")
    if out == "-" and arguments["pages"] == "split":
        _stop("-o - takes one picture, and --pages split makes several; name a file or a folder")
    if out == "-" and sys.stdout.isatty():
        _stop("-o - would write a picture to the terminal; add > FILE or a pipe")
    with TemporaryDirectory(prefix="foveal-") as name:
        source = _source(inputs[0], Path(name))
        target = (
            Path(name) / f"result{_suffix(source, arguments['file_format'], result=True)}" if out == "-" else Path(out)
        )
        changed = {"pictures": [str(source)], "more": None, "out": str(target)}
        with redirect_stdout(sys.stderr) if out == "-" else nullcontext():
            try:
                command(**{**arguments, **changed})
            except typer.Exit as end:
                if end.exit_code:
                    return end.exit_code
        if out == "-":
            with target.open("rb") as made, suppress(BrokenPipeError):  # the reader has enough
                shutil.copyfileobj(made, sys.stdout.buffer)
                sys.stdout.buffer.flush()
    return 0


def _stop(text: str) -> NoReturn:
    stop("upscale", text)


def _source(named: str, folder: Path) -> Path:
    """The source as a file; standard input is copied into the folder."""
    if named != "-":
        if Path(named).is_dir():
            _stop(f"-o - takes one picture, and {named} is a folder; name a folder for the results")
        return Path(named)
    if sys.stdin.isatty():
        _stop("standard input is a terminal; pipe a picture into it, such as < photo.jpg")
    path = folder / "stdin"
    with path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    if not path.stat().st_size:
        _stop("standard input is empty; does the command before the pipe write a picture?")
    suffix = _suffix(path, "")
    return path.rename(path.with_suffix(suffix)) if suffix else path


def _suffix(source: Path, wanted: str, *, result: bool = False) -> str:
    """The suffix of a format, or of what a file is, or of its result; "" where that is unknown."""
    from foveal.images.formats import READABLE, result_format, sniff

    name: str | None = wanted.lower()
    if not name and source.is_file():
        with source.open("rb") as file:
            name = sniff(file.read(4096))
    if name not in READABLE:
        return source.suffix
    return READABLE[result_format(name) if result else name].suffixes[0]
