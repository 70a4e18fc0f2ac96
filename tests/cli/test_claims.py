import json
import os

import pytest
import typer
from toys import located, stand_in, toy
from typer.testing import CliRunner

from foveal.cli.claims import claims
from foveal.evidence import machine
from foveal.record import bound, params, smaller

FITS = smaller("One is half of two.", paper="2 times", ours=lambda: 1.0, theirs=lambda: 2.0)
FAILS = smaller("One is a tenth of two.", paper="10 times", ours=lambda: 1.0, theirs=lambda: 2.0, at_least=10)
BREAKS = params("It counts.", paper="3", model=lambda: 1 / 0, expect=3)
SLOW = smaller("Trained.", paper="", ours=lambda: 1.0, theirs=lambda: 2.0, needs=("minutes",))
WANTS = smaller("On data.", paper="", ours=lambda: 1.0, theirs=lambda: 2.0, needs=("Set5",))


@pytest.fixture
def foveal(tmp_path, monkeypatch):
    """Runs the command over toy records; results go to a folder of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FOVEAL_DATA", raising=False)
    monkeypatch.setattr(machine, "checkout", lambda: None)
    monkeypatch.setattr(machine, "commit", lambda: "abc1234")
    app = typer.Typer()
    app.command()(claims)

    def invoke(*arguments, **toys):
        stand_in(monkeypatch, *(located(toy(id=None, name=name), *made) for name, made in toys.items()))
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return invoke


def test_paper_here_and_verdict_are_printed_with_date_hardware_and_threads(foveal):
    result = foveal("toy", Toy=(FITS,))
    assert result.exit_code == 0, result.output
    heading, columns, line, checks = result.stdout.splitlines()
    assert heading.startswith("Toy  20")
    assert machine.describe()["processor"] in heading
    assert f"{machine.cores()} cores" in heading
    assert columns.split() == ["kind", "claim", "paper", "here", "verdict", "threads", "seconds"]
    assert line.split("  ")[:4] == ["smaller", "One is half of two.", "2 times", "2× (1 against 2)"]
    assert "holds" in line
    assert checks == "common checks: 3 of 3 passed or excused"


@pytest.mark.parametrize(
    ("made", "code", "text"),
    [
        ((FITS,), 0, "holds"),
        ((FITS, FAILS), 1, "does not hold"),
        ((BREAKS, FITS), 1, "could not run"),
        ((WANTS,), 1, "benchmark data 'Set5' is not on this machine"),
    ],
)
def test_the_exit_code_tells_whether_all_is_well(foveal, made, code, text):
    result = foveal("Toy", Toy=made)
    assert result.exit_code == code, result.output
    assert text in result.stdout


def test_a_claim_that_breaks_does_not_stop_the_next(foveal):
    result = foveal("--all", First=(BREAKS, FITS), Second=(FITS,))
    assert "ZeroDivisionError: division by zero" in result.stdout
    assert result.stdout.count("2× (1 against 2)") == 2


def test_json_holds_everything(foveal):
    result = foveal("Toy", "--json", Toy=(FITS, FAILS))
    (report,) = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (report["method"], report["id"], report["checks"]) == (
        "Toy",
        None,
        {"fields": "passed", "seeded": "passed", "empty": "passed"},
    )
    assert [claim["verdict"] for claim in report["claims"]] == ["holds", "does not hold"]
    assert {"paper", "here", "date", "machine", "threads", "versions", "seconds"} <= set(report["claims"][0])


def test_save_records_and_plain_runs_do_not(foveal, tmp_path):
    foveal("Toy", Toy=(FITS,))
    assert not (tmp_path / "results").exists()
    result = foveal("Toy", "--save", Toy=(FITS, BREAKS))
    assert "recorded in results/claims/toy.json" in result.stderr
    content = json.loads((tmp_path / "results" / "claims" / "toy.json").read_text())
    assert [claim["says"] for claim in content["claims"]] == [FITS.says]
    assert content["checks"] == {"fields": "passed", "seeded": "passed", "empty": "passed"}


def test_an_interrupted_run_has_recorded_what_it_finished_and_goes_on(foveal, tmp_path):
    stops = smaller("Stops.", paper="", ours=_stop, theirs=lambda: 2.0)
    result = foveal("Toy", "--save", Toy=(FITS, stops))
    assert isinstance(result.exception, SystemExit)
    recorded = tmp_path / "results" / "claims" / "toy.json"
    assert [claim["says"] for claim in json.loads(recorded.read_text())["claims"]] == [FITS.says]
    result = foveal("Toy", "--resume", "--save", "--json", Toy=(FITS, FAILS))
    (report,) = json.loads(result.stdout)
    assert [claim["says"] for claim in report["claims"]] == [FAILS.says]
    assert [claim["says"] for claim in json.loads(recorded.read_text())["claims"]] == [FITS.says, FAILS.says]


def _stop():
    raise KeyboardInterrupt


def test_a_broken_claim_keeps_its_trace_in_json(foveal):
    (report,) = json.loads(foveal("Toy", "--json", Toy=(BREAKS,)).stdout)
    assert "ZeroDivisionError: division by zero" in report["claims"][0]["trace"]


def test_changed_code_is_not_recorded(foveal, tmp_path, monkeypatch):
    foveal("Toy", Toy=(FITS,))
    monkeypatch.setattr(machine, "commit", lambda: "abc1234+")
    result = foveal("Toy", "--save", Toy=(FITS,))
    assert result.exit_code == 2
    assert "the code differs from its commit, so nobody could run it again; commit first" in result.stderr
    assert not (tmp_path / "results").exists()


def test_only_runs_one_kind_and_no_checks(foveal):
    result = foveal("Toy", "--only", "smaller", Toy=(FITS, BREAKS))
    assert result.exit_code == 0
    assert "It counts." not in result.stdout
    assert "common checks" not in result.stdout


def test_only_may_be_repeated(foveal):
    other = bound("A third kind.", paper="1", value=lambda: 1.0, at_least=0.5)
    result = foveal("Toy", "--only", "smaller", "--only", "params", "--json", Toy=(FITS, other, BREAKS))
    (report,) = json.loads(result.stdout)
    assert [claim["says"] for claim in report["claims"]] == [FITS.says, BREAKS.says]


def test_only_checks_runs_no_claim_and_keeps_their_outcomes(foveal, tmp_path):
    foveal("Toy", "--only", FITS.kind, "--save", Toy=(FITS,))
    result = foveal("Toy", "--only", "checks", "--save", Toy=(FITS,))
    assert result.exit_code == 0
    assert "common checks" in result.stdout
    assert FITS.says not in result.stdout
    content = json.loads((tmp_path / "results" / "claims" / "toy.json").read_text())
    assert [claim["says"] for claim in content["claims"]] == [FITS.says]
    assert content["checks"] == {"fields": "passed", "seeded": "passed", "empty": "passed"}


def test_quick_skips_training_without_failing(foveal):
    result = foveal("Toy", "--quick", Toy=(SLOW, FITS))
    assert result.exit_code == 0
    assert "skipped" in result.stdout


def test_data_is_where_claims_look_and_is_put_back(foveal, tmp_path, monkeypatch):
    (tmp_path / "sets" / "Set5").mkdir(parents=True)
    assert foveal("Toy", "--data", tmp_path / "sets", Toy=(WANTS,)).exit_code == 0
    assert "FOVEAL_DATA" not in os.environ
    monkeypatch.setenv("FOVEAL_DATA", "elsewhere")
    assert foveal("Toy", "--data", tmp_path / "sets", Toy=(WANTS,)).exit_code == 0
    assert os.environ["FOVEAL_DATA"] == "elsewhere"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "name one or more methods, or pass --all"),
        (["Toy", "--all"], "name one or more methods, or pass --all"),
        (["Tony"], "no record is called 'Tony'; the closest are Toy"),
        (["Toy", "--only", "fast"], "no kind of claim is called 'fast'; the kinds are params, macs"),
        (["Toy", "--quick", "--save"], "a quick run is no record; leave out --quick or --save"),
        (["Toy", "--data", "nowhere"], "--data must be a folder, and nowhere is none"),
    ],
)
def test_a_wrong_call_is_told_what_to_do(foveal, arguments, text):
    result = foveal(*arguments, Toy=(FITS,))
    assert result.exit_code == 2
    assert result.stderr.startswith("foveal claims: ")
    assert text in result.stderr
