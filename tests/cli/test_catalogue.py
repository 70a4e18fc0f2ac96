import json
from pathlib import Path

import pytest
import toys
import typer
from toys import located, stand_in, toy
from typer.testing import CliRunner

from foveal.catalogue.collect import Missing
from foveal.catalogue.entries import entries
from foveal.cli.catalogue import catalogue
from foveal.evidence import checks, machine, results
from foveal.evidence.run import run
from foveal.index import Indexed
from foveal.record import smaller

FITS = smaller("One is half of two.", paper="2 times", ours=lambda: 1.0, theirs=lambda: 2.0, clause=1)
FAILS = smaller("A tenth of two.", paper="10 times", ours=lambda: 1.0, theirs=lambda: 2.0, at_least=10, clause=2)


@pytest.fixture
def foveal(tmp_path, monkeypatch):
    """Runs the command: ESPCN runs with one claim of two holding, LumaToy was not run, SESR cannot be read."""
    monkeypatch.setattr(results, "folder", lambda *, write=False: tmp_path)
    monkeypatch.setattr(machine, "commit", lambda: "abc1234")
    record, own = located(None, FITS, FAILS), located(toy(id=None, name="LumaToy"), FITS)
    outcomes = run(record.claims, source=record.source)
    results.save(record.method, record.claims, outcomes, checks=checks.run(record.method))
    missing = Missing(Indexed("toys", Path("toys.py"), 216, "SESR", "model", ()), "torch")
    stand_in(monkeypatch, record, own, missing=[missing])
    app = typer.Typer()
    app.command()(catalogue)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def test_what_is_here_is_listed_and_the_rest_counted(foveal):
    lines = foveal().stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["name", "ESPCN", "SESR", "LumaToy"]
    assert lines[-1] == "347 more are planned; --all lists them too"


def test_every_row_is_listed_with_its_status(foveal):
    result = foveal("--all")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == 1 + 349 + 1 + 1
    assert lines[0].split() == ["name", "title", "family", "status", "claims"]
    assert lines[63].split()[-4:] == ["Network", "restore", "runs", "1/2"]
    assert lines[350].split() == ["LumaToy", "A", "Toy", "foveal", "written", "0/1"]
    assert lines[-1] == "349 of 349 methods of the literature: 1 runs, 1 written, 347 planned; 1 of foveal's own"
    assert "Some rows could not be read in full: its record needs torch: pip install '.[torch]'" in result.stderr


def test_the_list_is_narrowed_by_family_and_status(foveal):
    result = foveal("--family", "restore", "--status", "runs")
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["name", "ESPCN", "1"]
    assert result.stdout.endswith("1 of 349 methods of the literature: 1 runs\n")
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
        "status": "runs",
        "claims": 2,
        "run": 2,
        "hold": 1,
        "facets": {},
        "scales": "",
    }


def test_a_name_shows_the_record_its_file_and_its_results(foveal):
    text = foveal("espcn").stdout
    for part in (
        "ESPCN",
        "restore",
        "runs",
        "A. Author, 2020",
        toys.__file__,
        "foveal.errors",
        "One is half of two.",
        "does not hold",
    ):
        assert part in text
    assert "3 of 3 passed or excused" in text
    assert "2× (1 against 2)" in text
    assert "works when 1. Pixel-shuffle equals the rearranged transposed convolution: met" in text
    assert "after minutes of training: does not hold" in text
    assert "3. runs at least 5x faster on CPU than its HR-space twin: no claim answers it" in text
    assert "not run" in foveal("lumatoy").stdout


def test_a_name_without_a_record_shows_what_is_planned(foveal):
    text = foveal("dckd").stdout
    assert "planned" in text
    assert "works when 1. Loss matches a NumPy reference" in text
    assert "https://github.com/super-SSS/DCKD" in text


def test_changed_code_is_pointed_out(foveal, monkeypatch):
    assert "has changed since" not in foveal("espcn").stdout
    monkeypatch.setattr("foveal.catalogue.collect.closure_hash", lambda modules: "another")
    vars(stood_in()).pop("source", None)
    assert "The code has changed since results were recorded: foveal claims ESPCN --save" in foveal("espcn").stdout


def stood_in():
    from foveal.catalogue.collect import find

    return find("espcn")


def test_json_of_a_name_holds_its_recorded_results(foveal):
    shown = json.loads(foveal("espcn", "--json").stdout)
    assert (shown["module"], shown["evidence"]) == ("foveal.record", "foveal.errors")
    assert shown["paper"]["identifier"] == "arXiv:0000.00000"
    assert [claim["recorded"]["verdict"] for claim in shown["claims"]] == ["holds", "does not hold"]
    assert [clause["met"] for clause in shown["clauses"]] == [True, False, False]
    assert json.loads(foveal("sesr", "--json").stdout)["note"].startswith("its record needs torch: pip install ")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["espcm"], "nothing in the catalogue is called 'espcm'; the closest are ESPCN"),
        (["--family", "restoring"], "no family is called 'restoring'; the families are adapt"),
        (["--status", "done"], "no status is called 'done'; it is one of works, runs, written, planned"),
        (
            ["espcn", "--family", "restore"],
            "a name shows one method; leave out --family, --status, --facet and --all, or the name",
        ),
    ],
)
def test_a_wrong_call_is_told_what_to_do(foveal, arguments, text):
    result = foveal(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("foveal catalogue: ")
    assert text in result.stderr
