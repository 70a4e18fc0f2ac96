"""The examples, the code on the docs' pages, and the command lines they show."""

import re
import shlex
import sys

import pytest
import typer
from documents import ROOT, blocks, check, promised
from typer.main import get_command

from foveal.cli.main import COMMANDS

PAGES = sorted((ROOT / "docs").glob("*.md"))
EXAMPLES = {
    "custom_pixels.py": [],
    "plan_first.py": ["samples/dogs.png", "samples/clock.png"],
    "upscale_folder.py": ["samples", "large"],
}
DOWNLOADS = {
    f"shrink_{name}.py" for name in ("cifar", "detector", "lite0", "saliency", "upscaler")
}  # test_shrink_examples.py
CODE = [
    pytest.param(code, page.name, id=f"{page.name}-{number}")
    for page in PAGES
    for number, code in enumerate(blocks(page.read_text(encoding="utf-8"), "python"))
]
# README beside the pages; a prompt is allowed, a comment and a pipe end the command.
LINES = sorted(
    {
        line.removeprefix("$ ").split(" #")[0].strip()
        for page in [*PAGES, ROOT / "README.md"]
        for language in ("sh", "console", "bash")
        for block in blocks(page.read_text(encoding="utf-8"), language)
        for line in block.replace("\\\n", " ").splitlines()
        if re.match(r"(\$ )?foveal ", line)
    }
)


@pytest.mark.dear("imports what it shows, and measures bundles")
@pytest.mark.parametrize(("code", "name"), CODE)
def test_code_of_a_page_runs(code, name, beside_samples):
    check(code, name)


def test_there_is_code_on_the_pages():
    assert sum(bool(promised(param.values[0])) for param in CODE) >= 8


@pytest.mark.dear("imports what it shows, and measures bundles")
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name, beside_samples, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, *EXAMPLES[name]])
    printed = check((ROOT / "examples" / name).read_text(encoding="utf-8"), name)
    assert printed
    if name == "upscale_folder.py":
        made = sorted(path.name for path in (beside_samples / "large").iterdir())
        assert made == sorted(path.name for path in (ROOT / "samples").glob("*.png"))


def test_every_example_is_run():
    assert sorted({*EXAMPLES, *DOWNLOADS}) == sorted(path.name for path in (ROOT / "examples").glob("*.py"))


def options_of(name):
    """The options that a command knows."""
    module, _, function = COMMANDS[name][0].partition(":")
    __import__(module)
    app = typer.Typer(add_completion=False)
    app.command()(getattr(sys.modules[module], function))
    known = {"--help", "-h"}
    for parameter in get_command(app).params:
        known |= {*parameter.opts, *parameter.secondary_opts}
    return known


def unknown(line):
    """What is wrong with a command line, or ""."""
    _, command, *rest = shlex.split(re.split(r" [|>&] ", line)[0])
    if command.startswith("-"):
        return "" if command in ("--help", "--version") else f"no option {command}"
    if command not in COMMANDS:
        return f"no command {command}"
    named = {word.split("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
    missing = named - options_of(command)
    return f"no option {sorted(missing)[0]} of {command}" if missing else ""


@pytest.mark.parametrize("line", LINES)
def test_a_command_line_names_what_there_is(line):
    assert unknown(line) == ""


@pytest.mark.parametrize(
    ("line", "wrong"),
    [("foveal enlarge x.png", "no command enlarge"), ("foveal upscale x --bigger", "no option --bigger of upscale")],
)
def test_a_wrong_command_line_is_noticed(line, wrong):
    assert unknown(line) == wrong
