"""Runs the Python of the documents and the scripts: what a block prints must be what its comments say it prints."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def load(name, folder=ROOT / "scripts"):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def promised(code: str) -> list[str]:
    """The lines that comments of their own promise below a `print`, as `# 544 544`."""
    found, printing = [], False
    for line in code.splitlines():
        if line.startswith("# "):
            found += [line[2:]] if printing else []
        else:
            printing = line.lstrip().startswith("print(")
    return found


def check(code: str, name: str) -> list[str]:
    """Run a block in the working folder and look for the promised lines, in order, in what it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, name, "exec"), {"__name__": "__main__", "__file__": name})
    printed = out.getvalue().splitlines()
    rest = iter(printed)
    for line in promised(code):
        if line not in rest:
            raise AssertionError(f"{name} promises {line!r} and prints {printed}")
    return printed
