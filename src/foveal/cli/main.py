"""`foveal`: finds the command, loads its file and nothing else.

The list of commands and their one-line help stand here, so `foveal --help` imports no command and no library at all.
A command is a function with typer annotations in a file of its own. Its help is the function's docstring: the summary,
and the section `Example:` as it stands; `Args:` and what else only programmers need is left out.
"""

from __future__ import annotations

import os
import shlex
import sys
from difflib import get_close_matches
from importlib import import_module
from inspect import cleandoc
from typing import TYPE_CHECKING, Any

from foveal.cli._speech import ready, say

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["COMMANDS", "command_help", "main"]

COMMANDS: dict[str, tuple[str, str]] = {
    "upscale": ("foveal.cli.upscale:upscale", "Make pictures two, three or four times larger."),
    "models": ("foveal.cli.models:models", "List bundles and networks."),
    "measure": ("foveal.cli.measure:measure", "Parameters, multiply-adds, latency and memory of a model."),
    "eval": ("foveal.cli.eval:eval", "PSNR and SSIM on a set of pictures."),
    "train": ("foveal.cli.train:train", "Train a network from a recipe."),
    "data": ("foveal.cli.data:data", "Fetch and prepare freely licensed training pictures."),
    "export": ("foveal.cli.export:export", "Export a network to a bundle, checked against torch."),
    "catalogue": ("foveal.cli.catalogue:catalogue", "The methods of the literature and what stands here."),
    "claims": ("foveal.cli.claims:claims", "Run what a paper claims, on this machine."),
    "doctor": ("foveal.cli.doctor:doctor", "What works here, and why the rest does not."),
}

# What brings a module that the light install lacks.
_EXTRA = {
    "torch": "torch",
    "torchvision": "torch",
    "timm": "torch",
    "safetensors": "torch",
    "onnx": "torch",
    "onnxscript": "torch",
    "matplotlib": "torch",
    "openvino": "openvino",
    "fastapi": "serve",
    "uvicorn": "serve",
}

_NOT_HELP = {"Args:", "Arguments:", "Returns:", "Raises:", "Yields:", "Attributes:"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command line; leaves with its exit code.

    Args:
        arguments: without the program's name; those of this process by default.

    Raises:
        SystemExit: always.
    """
    ready()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name = arguments[0] if arguments else "--help"
    if name in ("--help", "-h", "help"):
        say(_overview(), sys.stdout)
        raise SystemExit(0)
    if name in ("--version", "-V"):
        import foveal

        say(f"foveal {foveal.__version__}", sys.stdout)
        raise SystemExit(0)
    if name not in COMMANDS:
        say(f"foveal: no command {name!r}; {_instead(name)} (`foveal --help` shows them all)", sys.stderr)
        raise SystemExit(2)
    try:
        _run(name, arguments[1:])
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRA:
            raise
        extra = _EXTRA[missing]
        say(f"foveal {name}: needs {missing}, which is not installed; pip install 'foveal[{extra}]'", sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        say(f"foveal {name}: interrupted", sys.stderr)
        raise SystemExit(130) from None
    raise SystemExit(0)


def _instead(name: str) -> str:
    """What somebody may have meant by a command that there is not."""
    close = get_close_matches(name, COMMANDS, n=1)
    if close:
        return f"did you mean {close[0]}?"
    # Pictures and folders are what people drop on a program.
    if "." in name or "/" in name or os.path.exists(name):  # noqa: PTH110  Path.exists raises where a name is too long
        return f"did you mean foveal upscale {shlex.quote(name)}?"
    return f"commands are {', '.join(COMMANDS)}"


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {line}" for name, (_, line) in COMMANDS.items()]
    return "\n".join(
        [
            "Usage: foveal COMMAND [OPTIONS] …",
            "",
            "Makes vision models cost less, and proves what the saving cost.",
            "",
            "Commands:",
            *lines,
            "",
            "Options:",
            "  --help     This text; `foveal COMMAND --help` for one command.",
            "  --version  The version.",
            "",
            "Example:",
            "  $ foveal upscale photo.jpg",
        ]
    )


def _run(name: str, arguments: list[str]) -> None:
    module, _, function = COMMANDS[name][0].partition(":")
    command = getattr(import_module(module), function)
    import typer

    text, example = command_help(command)
    # Plain help: it is quick, it can be piped, and a transcript stays as it was typed.
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    context = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
    app.command(help=text, epilog=example, context_settings=context)(command)
    made = typer.main.get_command(app)
    for parameter in made.params:
        _show_plainly(parameter)
    try:
        code = made(args=arguments, prog_name=f"foveal {name}", standalone_mode=False)
    except Exception as error:
        # The error of a wrong option; which module it comes from depends on the version of typer.
        if not hasattr(error, "format_message"):
            raise
        message = " ".join(error.format_message().split()).rstrip(".")
        say(f"foveal {name}: {message}; see foveal {name} --help", sys.stderr)
        code = 2
    raise SystemExit(code if isinstance(code, int) else 0)


def _show_plainly(parameter: Any) -> None:
    """Let help say N, TEXT or PATH where typer says how Python writes a type; a metavar stays."""
    shown = getattr(parameter, "display_type_rich", None)
    if shown is None:  # an older typer, which does not
        return
    words = {"int": "N", "float": "N", "str": "TEXT", "path": "PATH", "directory": "PATH", "file": "PATH"}

    def plain(ctx: Any) -> str | None:
        text = shown(ctx=ctx)
        if not text or not text.startswith("<"):
            return text
        if parameter.param_type_name == "argument":
            return None
        bare = text.strip("<>.").removeprefix("list[").removesuffix("]").removesuffix(" range")
        return words.get(bare, bare.upper())

    parameter.display_type_rich = plain


def command_help(command: Callable[..., Any]) -> tuple[str, str]:
    """A command's help from its docstring.

    Args:
        command: function with a Google docstring.

    Returns:
        What stands above the options, and the example that stands below them.
    """
    text: list[str] = []
    example: list[str] = []
    transcript: list[str] = []
    into: list[str] | None = text
    for line in cleandoc(command.__doc__ or "").partition("\f")[0].splitlines():
        if line in _NOT_HELP:
            into = None
        elif line.startswith("$ ") and into is text:
            # A transcript that stands bare in the text is the example, and its lines stay lines.
            example += ["Example:"]
            into = transcript
        elif line in ("Example:", "Examples:"):
            into = example
        elif line and not line.startswith(" ") and into is not text and into is not transcript:
            into = text
        if into is not None:
            into.append(line)
    example += ["    " + line if line else "" for line in transcript]
    # "\b" before a paragraph keeps its lines as they are.
    paragraphs = [
        "\b\n" + paragraph if any(line.startswith(" ") for line in paragraph.splitlines()) else paragraph
        for paragraph in "\n".join(text).strip().split("\n\n")
    ]
    shown = "\n".join(example).strip("\n").replace("\n\n", "\n\n\b\n")
    return "\n\n".join(paragraphs), "\b\n" + shown if shown else ""


if __name__ == "__main__":
    main()
