import dataclasses
import json
from pathlib import Path

import pytest
from toys import holding, toy

from foveal.catalogue.collect import records
from foveal.catalogue.entries import entries
from foveal.evidence import machine, results
from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.results import ResultsError, file_name, folder, load, plain, recorded, refusal, save
from foveal.evidence.run import key, run


@pytest.fixture(autouse=True)
def _committed(monkeypatch):
    monkeypatch.setattr(machine, "commit", lambda: "abc1234")


def test_what_is_saved_comes_back(tmp_path):
    claims = (holding(),)
    (outcome,) = outcomes = run(claims)
    path = save(toy(), claims, outcomes, checks={"fields": "passed"}, where=tmp_path)
    assert path == tmp_path / "espcn.json"
    content = load(toy(), tmp_path)
    assert content["checks"] == {"fields": "passed"}
    wanted = json.loads(json.dumps(dataclasses.asdict(outcome))) | {"history": []}
    del wanted["rehearsed"], wanted["trace"]
    assert recorded(claims, content) == [wanted]
    assert [file.name for file in tmp_path.iterdir()] == ["espcn.json"]


def test_nothing_is_recorded_without_a_file(tmp_path):
    assert recorded((holding(),), load(toy(), tmp_path)) == [None]


def test_a_second_run_adds_to_the_history(tmp_path):
    values = iter((1.0, 0.5, 4.0))
    claims = (holding(ours=lambda: next(values)),)
    for _ in range(3):
        save(toy(), claims, run(claims), where=tmp_path)
    (outcome,) = load(toy(), tmp_path)["claims"]
    assert (outcome["value"], outcome["verdict"]) == (0.5, "does not hold")
    assert [(run["value"], run["verdict"]) for run in outcome["history"]] == [(2.0, "holds"), (4.0, "holds")]


def test_a_run_of_some_claims_leaves_the_others(tmp_path):
    one, two, three = (holding(f"Claim {n}.") for n in (1, 2, 3))
    save(toy(), (one, two), run((one, two)), checks={"fields": "passed"}, where=tmp_path)
    save(toy(), (three, one), run((three,)), where=tmp_path)
    content = load(toy(), tmp_path)
    assert [claim["key"] for claim in content["claims"]] == [key(three), key(one)]  # two is no longer claimed
    assert content["checks"] == {"fields": "passed"}


def test_what_could_not_run_replaces_nothing(tmp_path):
    save(toy(), (holding(),), run((holding(),)), where=tmp_path)
    before = (tmp_path / "espcn.json").read_text()
    broken = (holding(ours=lambda: 1 / 0),)
    outcomes = run(broken)
    assert outcomes[0].verdict == "could not run"
    save(toy(), broken, outcomes, where=tmp_path)
    assert (tmp_path / "espcn.json").read_text() == before


def test_only_whole_runs_of_committed_code_are_recorded(tmp_path, monkeypatch):
    claims = (holding(),)
    with rehearsal():
        shortened = run(claims)
    for outcomes in (shortened, run(claims, quick=True)):
        with pytest.raises(ResultsError, match="a quick or shortened run is no record; run without --quick"):
            save(toy(), claims, outcomes, where=tmp_path)
    monkeypatch.setattr(machine, "commit", lambda: "abc1234+")
    with pytest.raises(ResultsError, match=r"the code differs from its commit, .*; commit first, then record"):
        save(toy(), claims, run(claims), where=tmp_path)
    assert "commit first" in refusal()
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file_and_no_scratch(tmp_path, monkeypatch):
    save(toy(), (holding(),), run((holding(),)), where=tmp_path)
    before = (tmp_path / "espcn.json").read_text()
    monkeypatch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save(toy(), (holding(),), [], checks={"fields": "failed"}, where=tmp_path)
    assert (tmp_path / "espcn.json").read_text() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"format": 2, "checks": {}, "claims": []}',
        '{"format": 1, "checks": {}, "claims": [{"verdict": "passed"}]}',
        '{"format": 1, "checks": {}, "claims": [{"verdict": "holds"}]}',
    ],
)
def test_a_file_of_another_making_raises(tmp_path, text):
    (tmp_path / "espcn.json").write_text(text)
    with pytest.raises(ResultsError, match=r"espcn.json is no results file \(.*\); delete it and record again"):
        load(toy(), tmp_path)


def test_file_names_are_plain_and_apart():
    assert file_name(toy(name="U-GAT-IT (v2)")) == "u_gat_it_v2.json"
    assert len({file_name(toy(name=entry.name)) for entry in entries().values()}) == 349


def test_numbers_that_are_not_finite_become_none():
    held = {"a": (1.0, float("nan")), "b": [float("inf"), {"c": "x"}]}
    assert plain(held) == {"a": [1.0, None], "b": [None, {"c": "x"}]}


def test_results_stand_in_the_checkout_or_below_the_working_folder_or_in_the_package(tmp_path, monkeypatch):
    assert folder() == folder(write=True) == machine.checkout() / "results" / "claims"
    monkeypatch.setattr(machine, "checkout", lambda: None)
    monkeypatch.chdir(tmp_path)
    assert folder() == Path(results.__file__).parents[1] / "catalogue" / "results"
    assert folder(write=True) == Path("results/claims")
    (tmp_path / "results" / "claims").mkdir(parents=True)
    assert folder() == Path("results/claims")


def test_recorded_results_belong_to_records_and_can_be_read():
    known = {file_name(item.method): item.method for item in records().values()}
    for path in folder().glob("*.json"):
        assert path.name in known, f"{path} belongs to no record; delete it"
        load(known[path.name])
