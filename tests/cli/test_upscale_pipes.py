"""`foveal upscale - -o -` as a process, and what it refuses."""

import io
import subprocess
import sys

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from foveal import Upscaler
from foveal.cli.upscale import upscale

COMMAND = [sys.executable, "-c", "from foveal.cli.main import main; main()", "upscale"]
FAST = ["-s", "2", "--quality", "fast", "-t", "1"]


def picture(file_format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 12, 3), np.uint8)).save(file, file_format)
    return file.getvalue()


def refused(*arguments: str, data: bytes = b"") -> str:
    app = typer.Typer()
    app.command()(upscale)
    done = CliRunner().invoke(app, [*arguments, *FAST], input=data)
    assert done.exit_code == 2, done.output
    return done.stderr


@pytest.mark.dear("a process that opens an engine")
def test_a_picture_goes_through_pipes():
    done = subprocess.run([*COMMAND, "-", "-o", "-", *FAST], input=picture(), capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    want = Upscaler(2, "fast", threads=1)(np.asarray(Image.open(io.BytesIO(picture()))))
    made = Image.open(io.BytesIO(done.stdout))
    assert made.format == "PNG"
    assert np.array_equal(np.asarray(made), want)
    assert b"1 picture" in done.stderr


@pytest.mark.dear("a process that opens an engine")
def test_from_a_pipe_to_a_file_and_from_a_file_to_a_pipe(tmp_path):
    source, target = tmp_path / "photo.png", tmp_path / "large.webp"
    source.write_bytes(picture())
    app = typer.Typer()
    app.command()(upscale)
    done = CliRunner().invoke(app, ["-", "-o", str(target), *FAST], input=picture("WEBP"))
    assert done.exit_code == 0, done.output
    with Image.open(target) as made:
        assert made.size == (24, 18)
    assert not (tmp_path / ".foveal.jsonl").exists()
    done = CliRunner().invoke(app, [str(source), "-o", "-", "-f", "jpeg", *FAST])
    assert done.exit_code == 0, done.stderr
    assert done.stdout_bytes.startswith(b"\xff\xd8\xff")


def test_what_is_refused(tmp_path):
    assert "- stands for one picture, and 2 inputs are named; give one" in refused("-", "a.png", "-o", "-")
    assert "needs a place; say -o FILE, or -o - for standard output" in refused("-")
    assert "leave out --json, --compare and --dry-run" in refused("-", "-o", "-", "--json")
    assert "standard input is empty; does the command before the pipe write" in refused("-", "-o", "-")
    assert "-o - takes one picture, and" in refused(str(tmp_path), "-o", "-")
    app = typer.Typer()
    app.command()(upscale)
    done = CliRunner().invoke(app, ["-", "-o", "-", *FAST], input=b"no picture")
    assert done.exit_code != 0
    assert done.stdout_bytes == b""
    assert "not a picture that foveal reads" in done.stderr
