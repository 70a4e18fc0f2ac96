"""`foveal`: finds the command, loads its file and nothing else.

The list of commands and their one-line help stand here, so `foveal --help` imports no command and no library at all.
A command is a function with typer annotations in a file of its own. Its help is the function's docstring: the summary,
and the section `Example:` as it stands; `Args:` and what else only programmers need is left out.
"""

from __future__ import annotations

import sys
from difflib import get_close_matches
from importlib import import_module
from inspect import cleandoc
from typing import TYPE_CHECKING, Any

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
    "import": ("foveal.cli.import_:import_", "Import another tool's model as a bundle."),
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
    "spandrel": "import",
    "ncnn": "ncnn",
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
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name = arguments[0] if arguments else "--help"
    if name in ("--help", "-h", "help"):
        print(_overview())
        raise SystemExit(0)
    if name in ("--version", "-V"):
        import foveal

        print(f"foveal {foveal.__version__}")
        raise SystemExit(0)
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"commands are {', '.join(COMMANDS)}"
        print(f"foveal: no command {name!r}; {hint} `foveal --help` shows them all", file=sys.stderr)
        raise SystemExit(2)
    try:
        _run(name, arguments[1:])
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRA:
            raise
        extra = _EXTRA[missing]
        print(f"foveal {name}: needs {missing}, which is not installed; pip install 'foveal[{extra}]'", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(f"foveal {name}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    raise SystemExit(0)


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
    app(args=arguments, prog_name=f"foveal {name}")


def command_help(command: Callable[..., Any]) -> tuple[str, str]:
    """A command's help from its docstring.

    Args:
        command: function with a Google docstring.

    Returns:
        What stands above the options, and the example that stands below them.
    """
    text: list[str] = []
    example: list[str] = []
    into: list[str] | None = text
    for line in cleandoc(command.__doc__ or "").partition("\f")[0].splitlines():
        if line in _NOT_HELP:
            into = None
        elif line in ("Example:", "Examples:"):
            into = example
        elif line and not line.startswith(" ") and into is not text:
            into = text
        if into is not None:
            into.append(line)
    # "\b" before a paragraph keeps its lines as they are.
    paragraphs = [
        "\b\n" + paragraph if any(line.startswith(" ") for line in paragraph.splitlines()) else paragraph
        for paragraph in "\n".join(text).strip().split("\n\n")
    ]
    shown = "\n".join(example).strip("\n").replace("\n\n", "\n\n\b\n")
    return "\n\n".join(paragraphs), "\b\n" + shown if shown else ""


if __name__ == "__main__":
    main()
