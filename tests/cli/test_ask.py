import json
import re

import pytest

from foveal.cli.main import main

pytestmark = pytest.mark.dear("imports transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from asked import llava_folder

    return llava_folder(tmp_path_factory.mktemp("llava"))


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(["ask", *arguments])
    said = capsys.readouterr()
    return end.value.code, said.out, said.err


def test_an_answer_with_what_it_took(capsys, folder, beside_samples):
    arguments = ["samples/dogs.png", "what is this?", "--model", str(folder), "--words", "3"]
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (0, "")
    answer, route, times = out.splitlines()
    assert len(answer.split()) == 3
    assert route == "layers 0 to 1: 20 tokens, 16 visual; layer 2: 8 tokens, 4 visual"
    assert re.fullmatch(r"first word \d+\.\d\d s, others \d+\.\d\d s, cache \d+\.\d kB", times)
    code, out, _ = run(capsys, *arguments, "--json", "--keep", "0.5", "--method", "random")
    told = json.loads(out)
    assert (told["model"], told["question"]) == (str(folder), "what is this?")
    assert told["answers"][0]["route"]["tokens"] == [12, 12, 12]


def test_methods_side_by_side(capsys, folder, beside_samples):
    picture, arguments = "samples/clock.png", ["what is this?", "--model", str(folder), "--words", "2", "--compare"]
    code, out, _ = run(capsys, picture, *arguments, "--method", "feather")
    assert code == 0
    head, *lines = out.splitlines()
    assert head.split()[:4] == ["method", "tokens", "a", "layer"]
    assert [line.split()[:2] for line in lines] == [["full", "20"], ["feather", "14"], ["random", "8"]]
    code, out, _ = run(capsys, picture, *arguments, "--method", "random", "--json")
    assert [answer["method"] for answer in json.loads(out)["answers"]] == ["full", "random"]


def test_what_cannot_be_asked(capsys, folder, beside_samples):
    good = ["samples/dogs.png", "what?", "--model", str(folder)]
    for arguments, text in (
        (["samples/dogs.png", "--model", str(folder)], "samples/dogs.png is a picture, and no question follows"),
        (["none.png", "what?", "--model", str(folder)], "none.png"),
        ([*good, "--keep", "0"], "keep must be in (0, 1], got 0.0; 0.25 keeps a quarter"),
        ([*good, "--method", "fast"], "no method is called 'fast'; did you mean fastv?"),
        ([*good[:3], "samples"], "samples holds no model of transformers"),
        ([*good[:3], "nowhere"], "nowhere is no folder"),
    ):
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (2, "")
        assert err.startswith("foveal ask: ")
        assert text in err
        assert len(err.splitlines()) == 1
