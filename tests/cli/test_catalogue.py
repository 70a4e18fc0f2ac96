import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from foveal.catalogue import checks, collect, results
from foveal.catalogue.claims import run
from foveal.catalogue.collect import Located, Missing
from foveal.catalogue.entries import entries
from foveal.cli.catalogue import catalogue
from foveal.record import Method, Paper, smaller

PAPER = Paper("A Toy", "A. Author", 2020, "arXiv:0000.00000")
FITS = smaller("One is half of two.", paper="2 times", ours=lambda: 1.0, theirs=lambda: 2.0)
FAILS = smaller("One is a tenth of two.", paper="10 times", ours=lambda: 1.0, theirs=lambda: 2.0, at_least=10)


def record(number, name, *claims):
    return Located(Method(number, name, "objective", "A toy.", PAPER, claims=claims), "toys", Path(__file__))


@pytest.fixture
def foveal(tmp_path, monkeypatch):
    """Runs the command: ESPCN works with one claim of two holding, LumaToy was not run, SESR cannot be read."""
    monkeypatch.setattr(results, "folder", lambda *, write=False: tmp_path)
    works, own = record(63, "ESPCN", FITS, FAILS), record(None, "LumaToy", FITS)
    results.save(works.method, run(works), checks=checks.run(works.method))
    missing = [Missing("toys", Path("toys.py"), "torch", (216,))]
    monkeypatch.setattr(collect, "_collected", lambda: ({"ESPCN": works, "LumaToy": own}, missing))
    app = typer.Typer()
    app.command()(catalogue)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def test_every_row_is_listed_with_its_status(foveal):
    result = foveal()
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == 1 + 349 + 1 + 1
    assert lines[0].split() == ["name", "title", "family", "status", "claims"]
    assert lines[63].split()[-4:] == ["Network", "restore", "works", "1/2"]
    assert lines[350].split() == ["LumaToy", "A", "Toy", "foveal", "written", "0/1"]
    assert lines[-1] == "349 of 349 methods of the literature: 1 works, 1 written, 347 planned; 1 of foveal's own"
    assert "Some rows could not be read in full: its record needs torch: pip install foveal[torch]" in result.stderr


def test_the_list_is_narrowed_by_family_and_status(foveal):
    result = foveal("--family", "restore", "--status", "works")
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["name", "ESPCN", "1"]
    assert result.stdout.endswith("1 of 349 methods of the literature: 1 works\n")
    none = foveal("--family", "tokens", "--status", "works")
    assert none.stdout.endswith("0 of 349 methods of the literature: none\n")


def test_json_lists_the_same_rows(foveal):
    listed = json.loads(foveal("--json").stdout)
    assert len(listed) == 350
    espcn = next(row for row in listed if row["name"] == "ESPCN")
    assert espcn == {
        "id": 63,
        "name": "ESPCN",
        "title": entries()[63].title,
        "family": "restore",
        "status": "works",
        "claims": 2,
        "run": 2,
        "hold": 1,
    }


def test_a_name_shows_the_record_its_file_and_its_results(foveal):
    text = foveal("espcn").stdout
    for part in ("ESPCN", "restore", "works", "A. Author, 2020", __file__, "One is half of two.", "does not hold"):
        assert part in text
    assert "1 of 1 passed or excused" in text
    assert "2× (1 against 2)" in text
    assert "not run" in foveal("lumatoy").stdout


def test_a_name_without_a_record_shows_what_is_planned(foveal):
    text = foveal("dckd").stdout
    assert "planned" in text
    assert "works when Loss matches a NumPy reference" in text
    assert "https://github.com/super-SSS/DCKD" in text


def test_a_changed_file_is_pointed_out(foveal, monkeypatch):
    assert "has changed since" not in foveal("espcn").stdout
    monkeypatch.setattr("foveal.catalogue.status.source_hash", lambda path: "another")
    assert "The file has changed since results were recorded: foveal claims ESPCN --save" in foveal("espcn").stdout


def test_json_of_a_name_holds_its_recorded_results(foveal):
    shown = json.loads(foveal("espcn", "--json").stdout)
    assert shown["module"] == "toys"
    assert shown["paper"]["identifier"] == "arXiv:0000.00000"
    assert [claim["recorded"]["verdict"] for claim in shown["claims"]] == ["holds", "does not hold"]
    assert json.loads(foveal("sesr", "--json").stdout)["note"] == "its record needs torch: pip install foveal[torch]"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["espcm"], "nothing in the catalogue is called 'espcm'; the closest are ESPCN"),
        (["--family", "restoring"], "no family is called 'restoring'; the families are adapt"),
        (["--status", "done"], "no status is called 'done'; it is one of works, written, planned"),
        (["espcn", "--family", "restore"], "a name shows one method; leave out --family and --status, or the name"),
    ],
)
def test_a_wrong_call_is_told_what_to_do(foveal, arguments, text):
    result = foveal(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("foveal catalogue: ")
    assert text in result.stderr
