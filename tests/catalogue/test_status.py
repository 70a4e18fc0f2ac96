from pathlib import Path

import pytest

from foveal.catalogue.claims import run
from foveal.catalogue.collect import CatalogueError, Missing
from foveal.catalogue.results import save
from foveal.catalogue.status import OWN, STATUSES, pick, rows

PASSED = {"fields": "passed", "shape": "excused: it has none"}


def status(method, located, where):
    (found,) = [row for row in rows(among={"x": located(method)}, missing=[], where=where) if row.record]
    return found


def test_a_row_without_a_record_is_planned(tmp_path):
    found = rows(among={}, missing=[], where=tmp_path)
    assert len(found) == 349
    assert {row.status for row in found} == {"planned"}


def test_a_record_whose_claims_were_not_run_is_written(make_method, located, tmp_path):
    assert status(make_method(), located, tmp_path).status == "written"


def test_a_record_works_when_checks_passed_and_claims_were_run(make_method, located, tmp_path):
    method = make_method()
    save(method, run(located(method)), checks=PASSED, where=tmp_path)
    found = status(method, located, tmp_path)
    assert (found.status, found.hold, found.stale) == ("works", 1, False)
    assert found.entry is not None
    assert found.entry.id == 63


def test_a_claim_that_did_not_hold_is_shown_and_counts_as_run(make_method, make_claim, located, tmp_path):
    method = make_method(claims=(make_claim(), make_claim("Much smaller.", at_least=100)))
    save(method, run(located(method)), checks=PASSED, where=tmp_path)
    found = status(method, located, tmp_path)
    assert (found.status, found.hold, len(found.claims)) == ("works", 1, 2)


@pytest.mark.parametrize("checks", [None, {"fields": "passed", "shape": "failed: no"}])
def test_a_record_whose_checks_did_not_pass_is_written(make_method, located, tmp_path, checks):
    method = make_method()
    save(method, run(located(method)), checks=checks, where=tmp_path)
    assert status(method, located, tmp_path).status == "written"


def test_one_claim_that_could_not_run_keeps_a_record_written(make_method, make_claim, located, tmp_path):
    method = make_method(claims=(make_claim(), make_claim("Broken.", ours=lambda: 1 / 0)))
    save(method, run(located(method)), checks=PASSED, where=tmp_path)
    assert status(method, located, tmp_path).status == "written"


def test_a_changed_claim_was_not_run(make_method, make_claim, located, tmp_path):
    method = make_method()
    save(method, run(located(method)), checks=PASSED, where=tmp_path)
    assert status(make_method(claims=(make_claim(at_least=1.9),)), located, tmp_path).status == "written"


def test_a_record_without_claims_never_works(make_method, located, tmp_path):
    method = make_method(claims=())
    save(method, [], checks=PASSED, where=tmp_path)
    assert status(method, located, tmp_path).status == "written"


def test_a_file_changed_since_is_stale(make_method, located, tmp_path, monkeypatch):
    method = make_method()
    save(method, run(located(method)), checks=PASSED, where=tmp_path)
    monkeypatch.setattr("foveal.catalogue.status.source_hash", lambda path: "another")
    found = status(method, located, tmp_path)
    assert (found.status, found.stale) == ("works", True)


def test_work_of_foveals_own_follows_the_literature(make_method, located, tmp_path):
    own = make_method(id=None, name="LumaToy")
    found = rows(among={"LumaToy": located(own)}, missing=[], where=tmp_path)
    assert len(found) == 350
    assert (found[-1].name, found[-1].family, found[-1].title, found[-1].entry) == ("LumaToy", OWN, "A Toy", None)


def test_a_record_that_cannot_be_read_is_written_with_a_note(tmp_path):
    found = rows(among={}, missing=[Missing("foveal.x", Path("x.py"), "torch", (63,))], where=tmp_path)
    row = pick("espcn", found)
    assert (row.status, row.note) == ("written", "its record needs torch: pip install foveal[torch]")


def test_pick_takes_any_spelling_and_gives_the_closest(tmp_path):
    found = rows(among={}, missing=[], where=tmp_path)
    assert pick("quick-sr-net", found).name == "QuickSRNet"
    with pytest.raises(
        CatalogueError, match=r"nothing in the catalogue is called 'espcm'; the closest are ESPCN, .*, "
    ):
        pick("espcm", found)


def test_statuses_of_the_package_are_of_the_three():
    found = rows()
    assert sum(row.entry is not None for row in found) == 349
    assert {row.status for row in found} <= set(STATUSES)
    assert pick("ESPCN", found).status in ("works", "written")
