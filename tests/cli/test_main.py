import sys
import types
from pathlib import Path
from typing import Annotated

import pytest
import typer

from foveal.cli import main as module
from foveal.cli._speech import say
from foveal.cli.main import COMMANDS, command_help, main


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    said = capsys.readouterr()
    return end.value.code, said.out, said.err


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_overview_lists_every_command(arguments, capsys):
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    for name, (_, line) in COMMANDS.items():
        assert f"  {name}" in out
        assert line in out


def test_version(capsys):
    import foveal

    assert run(capsys, "--version") == (0, f"foveal {foveal.__version__}\n", "")


def test_unknown_command_gives_the_closest(capsys):
    code, _, err = run(capsys, "upscal")
    assert code == 2
    assert "no command 'upscal'; did you mean upscale?" in err
    assert "commands are upscale, restore, shrink" in run(capsys, "xyz")[2]


def test_a_picture_instead_of_a_command(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name, shown in (("dogs.png", "dogs.png"), ("a/b", "a/b"), ("photos", "photos"), ("my dog.jpg", "'my dog.jpg'")):
        code, _, err = run(capsys, name)
        assert code == 2
        assert f"; did you mean foveal upscale {shown}? (" in err
    assert "commands are" in run(capsys, "x" * 300)[2]


@pytest.fixture
def command(monkeypatch):
    """Make a function a command of its own."""

    def register(function):
        holder = types.ModuleType("foveal_test_command")
        holder.try_it = function
        monkeypatch.setitem(sys.modules, "foveal_test_command", holder)
        monkeypatch.setitem(COMMANDS, "try", ("foveal_test_command:try_it", "Try."))

    return register


def test_command_is_run_with_its_options(command, capsys):
    def try_it(name: str, count: int = 1) -> None:
        """Say a name."""
        print(name * count)

    command(try_it)
    assert run(capsys, "try", "ab", "--count", "2") == (0, "abab\n", "")
    code, _, err = run(capsys, "try")
    assert code == 2
    assert "Missing argument" in err
    assert run(capsys, "try", "a", "--what") == (2, "", "foveal try: No such option: --what; see foveal try --help\n")


def test_help_shows_no_types_of_python(command, capsys):
    def try_it(
        names: list[str],
        more: Annotated[list[str] | None, typer.Option()] = None,
        count: int = 1,
        folder: Path = Path(),
    ) -> None:
        """Try."""

    command(try_it)
    out = run(capsys, "try", "--help")[1]
    assert "<" not in out
    for text in ("  names", "--more TEXT", "--count N", "--folder PATH"):
        assert text in out


def test_words_that_cannot_be_written_are_written_otherwise(tmp_path):
    path = tmp_path / "out.txt"
    with path.open("w", encoding="ascii", errors="foveal") as file:
        assert say("a → b: 2×2 Z\udcfcri 漢…", file)
    assert path.read_text() == "a -> b: 2x2 Z?ri ?...\n"
    for encoding in ("cp1252", "cp437", "latin-1", "koi8-r", "shift-jis"):
        assert "a → b".encode(encoding, "foveal").decode(encoding) in ("a -> b", "a → b")
    assert not say("closed", file)
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("ascii", "foveal")


def test_a_stream_that_failed_is_silent(tmp_path):
    with Path("/dev/full").open("w") as full:
        assert not say("lost", full)
        assert say("not tried again", full)


def test_missing_extra_names_the_command_that_brings_it(command, capsys):
    def try_it() -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch.nn")

    command(try_it)
    code, _, err = run(capsys, "try")
    assert code == 2
    assert err == "foveal try: needs torch, which is not installed; pip install '.[torch]'\n"


def test_missing_module_of_our_own_is_not_blamed_on_the_user(command):
    def try_it() -> None:
        raise ModuleNotFoundError("No module named 'foveal.x'", name="foveal.x")

    command(try_it)
    with pytest.raises(ModuleNotFoundError, match=r"foveal\.x"):
        main(["try"])


def test_interruption_ends_with_130(command, capsys):
    def try_it() -> None:
        raise KeyboardInterrupt

    command(try_it)
    assert run(capsys, "try")[0] == 130


def test_every_listed_command_that_is_there_can_be_helped(capsys):
    from importlib.util import find_spec

    for name, (place, _) in COMMANDS.items():
        if find_spec(place.partition(":")[0]) is None:
            continue
        code, out, _ = run(capsys, name, "--help")
        assert code == 0
        assert f"Usage: foveal {name}" in out
        assert "Args:" not in out
        assert "$ foveal" in out, f"help of {name} ends in no transcript"


def test_help_is_the_docstring_without_what_programmers_need():
    def function() -> None:
        """Do it.

        More words,
        on two lines.

            $ kept as it is
            two lines

        Args:
            a: hidden.

        Raises:
            ValueError: hidden.

        Example:
            $ foveal do
            done

            $ foveal do again
        """

    text, example = command_help(function)
    assert text == "Do it.\n\nMore words,\non two lines.\n\n\b\n    $ kept as it is\n    two lines"
    assert example == "\b\nExample:\n    $ foveal do\n    done\n\n\b\n    $ foveal do again"
    function.__doc__ = None
    assert command_help(function) == ("", "")
    assert module.__doc__


def test_a_bare_transcript_is_the_example_and_keeps_its_lines():
    def function() -> None:
        """Do it.

        More words.

        $ foveal do
        a  b
        1  2

        c  d
        3  4

        Args:
            a: hidden.
        """

    text, example = command_help(function)
    assert text == "Do it.\n\nMore words."
    assert example == "\b\nExample:\n    $ foveal do\n    a  b\n    1  2\n\n\b\n    c  d\n    3  4"
