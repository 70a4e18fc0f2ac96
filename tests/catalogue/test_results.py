import dataclasses
import json
from pathlib import Path

import pytest

from foveal.catalogue import machine, results
from foveal.catalogue.claims import key, run
from foveal.catalogue.collect import CatalogueError
from foveal.catalogue.entries import entries
from foveal.catalogue.results import file_name, folder, load, plain, recorded, save


def test_what_is_saved_comes_back(make_method, located, tmp_path):
    method = make_method()
    outcomes = run(located(method))
    path = save(method, outcomes, checks={"fields": "passed"}, where=tmp_path)
    assert path == tmp_path / "espcn.json"
    content = load(method, tmp_path)
    assert content["checks"] == {"fields": "passed"}
    assert recorded(method, content) == [json.loads(json.dumps(dataclasses.asdict(outcomes[0])))]
    assert [file.name for file in tmp_path.iterdir()] == ["espcn.json"]


def test_nothing_is_recorded_without_a_file(make_method, tmp_path):
    method = make_method()
    assert recorded(method, load(method, tmp_path)) == [None]


def test_a_run_of_some_claims_leaves_the_others(make_method, make_claim, located, tmp_path):
    one, two, three = (make_claim(f"Claim {n}.") for n in (1, 2, 3))
    both = make_method(claims=(one, two))
    save(both, run(located(both)), checks={"fields": "passed"}, where=tmp_path)
    later = make_method(claims=(three, one))
    save(later, run(located(make_method(claims=(three,)))), where=tmp_path)
    content = load(later, tmp_path)
    assert [claim["key"] for claim in content["claims"]] == [key(three), key(one)]  # two is no longer claimed
    assert content["checks"] == {"fields": "passed"}


def test_what_could_not_run_replaces_nothing(make_method, make_claim, located, tmp_path):
    method = make_method()
    save(method, run(located(method)), where=tmp_path)
    before = (tmp_path / "espcn.json").read_text()
    broken = make_method(claims=(make_claim(ours=lambda: 1 / 0),))
    outcomes = run(located(broken))
    assert outcomes[0].verdict == "could not run"
    save(broken, outcomes, where=tmp_path)
    assert (tmp_path / "espcn.json").read_text() == before


def test_a_failed_write_leaves_the_old_file_and_no_scratch(make_method, located, tmp_path, monkeypatch):
    method = make_method()
    save(method, run(located(method)), where=tmp_path)
    before = (tmp_path / "espcn.json").read_text()
    monkeypatch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save(method, [], checks={"fields": "failed"}, where=tmp_path)
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
def test_a_file_of_another_making_raises(make_method, tmp_path, text):
    (tmp_path / "espcn.json").write_text(text)
    with pytest.raises(CatalogueError, match=r"espcn.json is no results file \(.*\); delete it and record again"):
        load(make_method(), tmp_path)


def test_file_names_are_plain_and_apart(make_method):
    assert file_name(make_method(name="U-GAT-IT (v2)")) == "u_gat_it_v2.json"
    assert len({file_name(make_method(name=entry.name)) for entry in entries().values()}) == 349


def test_numbers_that_are_not_finite_become_none():
    held = {"a": (1.0, float("nan")), "b": [float("inf"), {"c": "x"}]}
    assert plain(held) == {"a": [1.0, None], "b": [None, {"c": "x"}]}


def test_results_stand_in_the_checkout_or_below_the_working_folder_or_in_the_package(tmp_path, monkeypatch):
    assert folder() == folder(write=True) == machine.checkout() / "results" / "claims"
    monkeypatch.setattr(machine, "checkout", lambda: None)
    monkeypatch.chdir(tmp_path)
    assert folder() == Path(results.__file__).parent / "results"
    assert folder(write=True) == Path("results/claims")
    (tmp_path / "results" / "claims").mkdir(parents=True)
    assert folder() == Path("results/claims")


def test_recorded_results_belong_to_records_and_can_be_read():
    from foveal.catalogue.collect import records

    known = {file_name(item.method): item.method for item in records().values()}
    for path in folder().glob("*.json"):
        assert path.name in known, f"{path} belongs to no record; delete it"
        load(known[path.name])
