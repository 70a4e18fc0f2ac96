"""`foveal`: finds the command and loads only its file.

The list of commands with their one-line help is here, so `foveal --help` imports no command and no library. A command
is a function with typer annotations in its own file. Its help is the function's docstring: the summary, and the section
`Example:` unchanged; `Args:` and other sections for programmers are left out.
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
    "upscale": ("foveal.cli.upscale:upscale", "Upscale pictures and films two, three or four times."),
    "restore": ("foveal.cli.restore:restore", "Repair damaged, noisy and dark pictures at their own size."),
    "shrink": ("foveal.cli.shrink:shrink", "Make a model cheaper, every step measured on this machine."),
    "swap": ("foveal.cli.swap:swap", "Time cheaper operators in the place of a network's layers."),
    "adapt": ("foveal.cli.adapt:adapt", "Adapt a classifier to new pictures by a small delta."),
    "run": ("foveal.cli.run:run", "Run a classifier's bundle on pictures."),
    "ask": ("foveal.cli.ask:ask", "Ask a vision-language model that reads fewer visual tokens."),
    "vlm-bench": ("foveal.cli.vlm_bench:vlm_bench", "Compare methods that drop visual tokens, on your questions."),
    "models": ("foveal.cli.models:models", "List bundles to run and networks to train."),
    "measure": ("foveal.cli.measure:measure", "Measure parameters, multiply-adds, latency and memory of a model."),
    "eval": ("foveal.cli.eval:eval", "Measure PSNR and SSIM on a set of pictures."),
    "train": ("foveal.cli.train:train", "Train a network from a recipe."),
    "leaderboard": ("foveal.cli.leaderboard:leaderboard", "Train and time super-resolution networks, on one page."),
    "data": ("foveal.cli.data:data", "Fetch and prepare freely licensed training pictures."),
    "export": ("foveal.cli.export:export", "Export a network to a bundle, checked against torch."),
    "import": ("foveal.cli.import_:import_", "Import another tool's model as a bundle."),
    "serve": ("foveal.cli.serve:serve", "Serve a page to drop pictures on, and the same over HTTP."),
    "catalogue": ("foveal.cli.catalogue:catalogue", "List published methods and which are implemented."),
    "claims": ("foveal.cli.claims:claims", "Run the claims of papers on this machine."),
    "doctor": ("foveal.cli.doctor:doctor", "Check engines, kernels and picture formats on this machine."),
}

# Extra that installs a module missing from the light install.
_EXTRA = {
    "torch": "torch",
    "torchvision": "torch",
    "timm": "torch",
    "safetensors": "torch",
    "onnx": "torch",
    "onnxscript": "torch",
    "matplotlib": "torch",
    "openvino": "openvino",
    "torch_pruning": "shrink",
    "spandrel": "import",
    "transformers": "vlm",
    "ncnn": "ncnn",
    "fastapi": "serve",
    "uvicorn": "serve",
    "av": "video",
    "ray": "ray",
    "pillow_heif": "heic",
    "imagecodecs": "jxl",
    "pillow_jxl": "jxl",
    "rawpy": "raw",
}

_NOT_HELP = {"Args:", "Arguments:", "Returns:", "Raises:", "Yields:", "Attributes:"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command line and exit with its code.

    Args:
        arguments: arguments without the program's name; None for those of this process.

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
        from foveal._install import install_hint

        extra = _EXTRA[missing]
        say(f"foveal {name}: needs {missing}, which is not installed; {install_hint(extra)}", sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        say(f"foveal {name}: interrupted", sys.stderr)
        raise SystemExit(130) from None
    raise SystemExit(0)


def _instead(name: str) -> str:
    """Suggestion for an unknown command."""
    close = get_close_matches(name, COMMANDS, n=1)
    if close:
        return f"did you mean {close[0]}?"
    # Users may drop pictures and folders on the program.
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
            "Upscales pictures, makes vision models cheaper, and measures papers' claims again.",
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

    from foveal.cli._options import with_address

    text, example = command_help(command)
    # Plain help: it is fast, it can be piped, and transcripts keep their lines.
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    context = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
    app.command(help=text, epilog=example, context_settings=context)(command)
    made = typer.main.get_command(app)
    for parameter in made.params:
        _show_plainly(parameter)
    try:
        code = made(args=with_address(arguments), prog_name=f"foveal {name}", standalone_mode=False)
    except Exception as error:
        # The error of a wrong option; its module depends on the version of typer.
        if not hasattr(error, "format_message"):
            raise
        message = " ".join(error.format_message().split()).rstrip(".")
        say(f"foveal {name}: {message}; see foveal {name} --help", sys.stderr)
        code = 2
    raise SystemExit(code if isinstance(code, int) else 0)


def _show_plainly(parameter: Any) -> None:
    """Show N, TEXT or PATH in the help where typer shows the name of a Python type; a metavar is kept."""
    shown = getattr(parameter, "display_type_rich", None)
    if shown is None:  # an older typer, which shows no types
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
    """Help of a command from its docstring.

    Args:
        command: function with a Google-style docstring.

    Returns:
        The text above the options, and the example below them.
    """
    text: list[str] = []
    example: list[str] = []
    transcript: list[str] = []
    into: list[str] | None = text
    for line in cleandoc(command.__doc__ or "").partition("\f")[0].splitlines():
        if line in _NOT_HELP:
            into = None
        elif line.startswith("$ ") and into is text:
            # A bare transcript in the text is the example, and its lines are kept.
            example += ["Example:"]
            into = transcript
        elif line in ("Example:", "Examples:"):
            into = example
        elif line and not line.startswith(" ") and into is not text and into is not transcript:
            into = text
        if into is not None:
            into.append(line)
    example += ["    " + line if line else "" for line in transcript]
    # "\b" before a paragraph keeps its lines.
    paragraphs = [
        "\b\n" + paragraph if any(line.startswith(" ") for line in paragraph.splitlines()) else paragraph
        for paragraph in "\n".join(text).strip().split("\n\n")
    ]
    shown = "\n".join(example).strip("\n").replace("\n\n", "\n\n\b\n")
    return "\n\n".join(paragraphs), "\b\n" + shown if shown else ""


if __name__ == "__main__":
    main()
