"""Runs the recipe "add a method" of CONTRIBUTING.md as it is printed."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from documents import load
from typer.testing import CliRunner

import foveal.evidence.models.restore
import foveal.models.restore
from foveal import index
from foveal.catalogue import collect
from foveal.catalogue.__main__ import main
from foveal.catalogue.entries import entries
from foveal.catalogue.status import pick, rows
from foveal.catalogue.tables import BEGIN, END
from foveal.cli.catalogue import catalogue
from foveal.cli.claims import claims
from foveal.evidence import checks, machine
from foveal.evidence.run import run

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS: dict[str, str] = dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', TEXT, re.M | re.S))
METHOD = "src/foveal/models/restore/linear_sr.py"
EVIDENCE = "src/foveal/evidence/models/restore/linear_sr.py"
TESTS = "tests/models/restore/test_linear_sr.py"
LISTING = "tests/catalogue/public_names.txt"


new_method = load("new_method")


@pytest.fixture
def added(tmp_path, monkeypatch):
    """The files in folders that the package also looks in; the record comes back."""
    for title, text in BLOCKS.items():
        path = tmp_path / title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for package, file in ((foveal.models.restore, METHOD), (foveal.evidence.models.restore, EVIDENCE)):
        monkeypatch.setattr(package, "__path__", [*package.__path__, str((tmp_path / file).parent)])
    (here,) = index.scan((tmp_path / METHOD).parent, "foveal.models.restore")
    found = collect.locate(here)
    everything = (*index.index(), here)
    monkeypatch.setattr(collect, "index", lambda: everything)
    monkeypatch.setattr(collect, "_collected", lambda: collect.collect(everything))
    monkeypatch.setattr(collect, "closure_hash", lambda modules: "of two folders")
    monkeypatch.setattr(machine, "checkout", lambda: None)  # results of this run go below the working folder
    monkeypatch.setattr(machine, "commit", lambda: "abc1234")
    monkeypatch.chdir(tmp_path)
    yield found
    del sys.modules["foveal.models.restore.linear_sr"], sys.modules["foveal.evidence.models.restore.linear_sr"]


def test_the_recipe_has_all_its_blocks():
    assert set(BLOCKS) == {METHOD, EVIDENCE, TESTS, LISTING, "run"}


def test_the_method_passes_the_common_checks_and_its_claims_hold(added):
    assert set(checks.run(added.method).values()) == {"passed"}
    outcomes = run(added.claims)
    assert [outcome.verdict for outcome in outcomes] == ["holds"] * 3, [outcome.reason for outcome in outcomes]


@pytest.mark.parametrize(
    ("name", "place"),
    [("LinearSR", "models/restore/linear_sr"), ("DCKD", "shrink/distill/dckd"), ("SoViT", "evidence/studies/sovit")],
)
def test_the_skeleton_can_be_imported_says_the_bar_and_passes_for_nothing(tmp_path, name, place):
    written = new_method.write(name, place, tmp_path)
    *sources, test = written
    scope: dict = {}
    for path in sources:
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), scope)
    method, claimed = scope["METHOD"], scope["CLAIMS"]
    assert method.name == name
    row = entries().get(method.id)
    assert [claim.clause for claim in claimed] == list(range(1, len(row.clauses) + 1)) if row else [0]
    assert {outcome.reason for outcome in run(claimed)} == {"NotImplementedError: "}
    assert "pytest.fail" in test.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="exists; take another place, or remove it first"):
        new_method.write(name, place, tmp_path)


def test_a_place_that_is_no_path_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"the place reads models/restore/espcn, got '../x'"):
        new_method.write("X", "../x", tmp_path)


def test_its_tests_pass(added, tmp_path):
    scope: dict = {"__name__": "recipe"}
    exec(compile(BLOCKS[TESTS], TESTS, "exec"), scope)
    tests = [function for name, function in scope.items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()


def test_the_listing_names_what_the_record_holds(added):
    want = [f"model {name}" for name in added.method.models] + [f"record {added.method.name}"]
    assert BLOCKS[LISTING].splitlines() == want


@pytest.mark.dear("its commands read all records")
def test_its_commands_run_and_make_it_work(added, tmp_path):
    (tmp_path / "README.md").write_text(f"{BEGIN}\n{END}\n", encoding="utf-8")
    app = typer.Typer()
    app.command()(catalogue)
    app.command()(claims)
    assert pick("LinearSR", rows()).status == "written"
    ran = []
    for line in BLOCKS["run"].splitlines():
        program, *arguments = shlex.split(line)
        ran.append(program)
        if program == "foveal":
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, result.output
        elif program == "python":
            assert arguments[:2] == ["-m", "foveal.catalogue"]
            main(arguments[2:])
        else:  # the suite is running: it is enough that the files are there
            assert program == "pytest"
            assert all((ROOT / file).is_file() or file in BLOCKS for file in arguments)
    assert ran == ["foveal"] * 3 + ["python", "pytest"]
    assert pick("LinearSR", rows()).status == "works"


@pytest.mark.parametrize("title", [METHOD, EVIDENCE, TESTS])
@pytest.mark.parametrize("words", [["format", "--check"], ["check"]])
def test_its_files_are_formatted_and_linted_as_the_house_asks(title, words):
    # The imported file is not on disk, so ruff cannot see for itself that foveal is the project.
    ours = ["--config", 'lint.isort.known-first-party=["foveal"]']
    command = [sys.executable, "-m", "ruff", *words, *ours, "--stdin-filename", str(ROOT / title), "-"]
    found = subprocess.run(command, input=BLOCKS[title], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, f"{title}: {found.stdout}{found.stderr}"


def test_the_vocabulary_names_the_shared_words_and_those_that_the_suite_reads():
    words = set(re.findall(r"`(\w+)`", TEXT.split("### Arguments")[1].split("## Add a method")[0]))
    assert {"dim", "depth", "num_heads", "in_channels", "num_classes", "drop_path", "scale", "device", "dtype"} <= words
    assert {"out_channels", "img_size"} <= words
