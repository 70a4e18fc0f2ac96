"""Options mean one thing in every command, and every command stops in the same way."""

import re

import pytest
import typer

from foveal.cli import _options
from foveal.cli.main import COMMANDS, main

MEANINGS = {
    "--threads": "-t, --threads N Processor threads. [default: all] [x>=1]",
    "--json": "--json One JSON document on standard output.",
    "--quiet": "-q, --quiet Print nothing but errors.",
    "--scale": "-s, --scale N ",
    "--data": "--data PATH Folder of data: ",
    "--help": "-h, --help Show this message and exit.",
}
WRONG = {
    "upscale": (["photo.png", "--tile", "x"], "--tile must be auto or a number of pixels, got 'x'"),
    "upscale --ray": (
        ["photo.png", "--ray", "ray://head:10001"],
        "--ray must be HOST:PORT of a cluster's head, auto or",
    ),
    "restore": (["photo.png", "--fix", "mud"], "fix must be auto, or of jpeg, noise, rain"),
    "restore exposure": (["photo.png", "--fix", "exposure"], "say by how many stops, such as exposure=+1"),
    "restore blur": (["photo.png", "--fix", "blur=90"], "blur must be a number from 0.3 to 4, got '90'; write blur"),
    "restore --mask": (["photo.png", "--fix", "holes", "--mask", "none.png"], "mask none.png: no such file or folder"),
    "shrink": (["zebra", "--data", "nowhere", "-o", "out"], "nowhere: no folder of class folders, and no set"),
    "adapt": (
        ["zebra", "--data", "nowhere", "-o", "out", "--labels", "few"],
        "--labels must be a number of at least 1",
    ),
    "run": (["nothing", "photo.png"], "no bundle 'nothing'"),
    "ask": (["Why?", "--model", "nowhere"], "no picture, only the question 'Why?'; name pictures before it"),
    "vlm-bench": (["none.jsonl", "--model", "x", "--keep", "half"], "--keep takes shares with commas between, such as"),
    "swap": (["resnet10t", "--try", "pcon"], "no operator is called 'pcon'; did you mean 'pconv'"),
    "models": (["zebra"], "nothing is called 'zebra'; foveal models lists all"),
    "measure": (["sesr_m5", "--shape", "1,3"], "--shape must be four whole numbers such as 1,3,256,256, got '1,3'"),
    "leaderboard": (["x5"], "the scale must be x2, x3 or x4, got 'x5'"),
    "eval": (["bicubic", "--data", "nowhere"], "--data must be a folder, and nowhere is none; name one, or"),
    "train": (["nothing.toml"], "nothing.toml: no such recipe"),
    "data": (["out", "--kind", "x"], "--kind must be one of all, photographs, textures, got 'x'"),
    "export": (["no_model", "-o", "out"], "no model is called 'no_model'"),
    "import": (["none.onnx", "-o", "out"], "none.onnx"),
    "serve": (["--host", "example.org"], "opens the server to other computers and needs a token; add --token auto"),
    "catalogue": (["--family", "x"], "no family is called 'x'; the families are"),
    "claims": ([], "name one or more methods, or pass --all"),
    "doctor": (["--x"], "No such option: --x; see foveal doctor --help"),
}


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    said = capsys.readouterr()
    return end.value.code, said.out, said.err


def options(text):
    """Each option of a help on one line."""
    text = text.partition("\nOptions:\n")[2].partition("\n  Example:\n")[0]
    return [" ".join(part.split()) for part in re.split(r"\n(?=  -)", text)]


def test_options_mean_one_thing_everywhere(capsys):
    seen = set()
    for name in COMMANDS:
        for line in options(run(capsys, name, "--help")[1]):
            for option, meaning in MEANINGS.items():
                if option in line.split()[:3]:
                    assert line.startswith(meaning), f"foveal {name} says {line!r}"
                    seen.add(option)
    assert seen == set(MEANINGS)


@pytest.mark.dear("imports torch and every method")
def test_every_command_stops_with_its_name_and_what_is_wrong(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {name.split()[0] for name in WRONG} == COMMANDS.keys()
    for key, (arguments, text) in WRONG.items():
        name = key.split()[0]
        code, out, err = run(capsys, name, *arguments)
        assert (code, out) == (2, ""), name
        assert err.startswith(f"foveal {name}: ")
        assert text in err
        assert len(err.splitlines()) == 1


def test_stopping_prints_one_line_and_leaves_with_a_code(capsys):
    with pytest.raises(typer.Exit) as end:
        _options.stop("do", ValueError("no a; give one"), code=3)
    assert end.value.exit_code == 3
    assert capsys.readouterr().err == "foveal do: no a; give one\n"


def test_a_data_folder_is_set_for_a_while_only(tmp_path, monkeypatch):
    import os

    monkeypatch.setenv("FOVEAL_DATA", "before")
    with _options.data_folder("do", None):
        assert os.environ["FOVEAL_DATA"] == "before"
    with _options.data_folder("do", tmp_path):
        assert os.environ["FOVEAL_DATA"] == str(tmp_path)
    assert os.environ["FOVEAL_DATA"] == "before"
    monkeypatch.delenv("FOVEAL_DATA")
    with _options.data_folder("do", tmp_path):
        assert os.environ["FOVEAL_DATA"] == str(tmp_path)
    assert "FOVEAL_DATA" not in os.environ
