from pathlib import Path

import pytest
from toys import holding, located, toy

from foveal.catalogue.collect import CatalogueError, Missing
from foveal.catalogue.status import OWN, STATUSES, pick, rows
from foveal.evidence import machine, results
from foveal.evidence.run import run
from foveal.index import Indexed

PASSED = {"fields": "passed", "shape": "excused: it has none"}
ALL = [holding(f"Clause {n}.", clause=n) for n in (1, 2, 3)]  # ESPCN's bar has three


@pytest.fixture(autouse=True)
def _committed(monkeypatch):
    monkeypatch.setattr(machine, "commit", lambda: "abc1234")


def saved(where, *claims, checks=PASSED, ran=None, method=None):
    """The row of a record whose claims (or those of `ran`) were run and recorded."""
    record = located(method, *claims)
    outcomes = run(claims if ran is None else ran, source=record.source)
    results.save(record.method, claims, outcomes, checks=checks, where=where)
    (found,) = [row for row in rows(among={"x": record}, missing=[], where=where) if row.record]
    return found


def test_a_row_without_a_record_is_planned(tmp_path):
    found = rows(among={}, missing=[], where=tmp_path)
    assert len(found) == 349
    assert {row.status for row in found} == {"planned"}


def test_a_record_whose_claims_were_not_run_is_written(tmp_path):
    assert saved(tmp_path, *ALL, ran=[]).status == "written"


def test_a_record_works_when_every_clause_of_the_bar_is_met(tmp_path):
    found = saved(tmp_path, *ALL)
    assert (found.status, found.hold, found.stale, found.missed) == ("works", 3, False, ())
    assert found.entry is not None
    assert found.entry.id == 63


def test_a_claim_beyond_the_bar_may_fail(tmp_path):
    more = holding("Much smaller.", at_least=100, clause=0, beyond="a table of the paper")
    assert saved(tmp_path, *ALL, more).status == "works"


@pytest.mark.parametrize(
    "claims",
    [
        (*ALL[:2], holding("Clause 3.", clause=3, at_least=100)),
        (*ALL, holding("Clause 3 again.", clause=3, at_least=100)),
        ALL[:2],
    ],
    ids=["one does not hold", "one of two does not hold", "one is not answered"],
)
def test_a_record_that_misses_a_clause_runs(tmp_path, claims):
    found = saved(tmp_path, *claims)
    assert found.status == "runs"
    assert [clause.number for clause in found.missed] == [3]


def test_a_claim_that_wants_a_gpu_keeps_a_row_running_and_its_clause_missed(tmp_path):
    gpu = holding("On a GPU.", clause=3, needs=("gpu",))
    found = saved(tmp_path, *ALL[:2], gpu, ran=ALL[:2])
    assert (found.status, found.missed[0].verdicts) == ("runs", ("not run",))


@pytest.mark.parametrize("checks", [None, {"fields": "passed", "shape": "failed: no"}])
def test_a_record_whose_checks_did_not_pass_is_written(tmp_path, checks):
    assert saved(tmp_path, *ALL, checks=checks).status == "written"


def test_one_claim_that_could_not_run_keeps_a_record_written(tmp_path):
    assert saved(tmp_path, *ALL, holding("Broken.", ours=lambda: 1 / 0)).status == "written"


def test_a_changed_claim_was_not_run(tmp_path):
    saved(tmp_path, *ALL)
    changed = located(None, *ALL[:2], holding("Clause 3.", clause=3, at_least=1.9))
    (found,) = [row for row in rows(among={"x": changed}, missing=[], where=tmp_path) if row.record]
    assert found.status == "written"


def test_an_undecided_claim_meets_no_clause(tmp_path):
    from foveal.record import kept

    unsure = kept("Unsure.", paper="", quality=float, at_least=0.9, clause=3)
    assert saved(tmp_path, *ALL[:2], unsure).missed[0].verdicts == ("undecided",)


def test_code_changed_since_is_stale(tmp_path, monkeypatch):
    found = saved(tmp_path, *ALL)
    monkeypatch.setitem(vars(found.record), "source", "another")
    assert (found.status, found.stale) == ("works", True)


def test_work_of_foveals_own_follows_the_literature(tmp_path):
    own = located(toy(id=None, name="LumaToy"))
    found = rows(among={"LumaToy": own}, missing=[], where=tmp_path)
    assert len(found) == 350
    assert (found[-1].name, found[-1].family, found[-1].title, found[-1].entry) == ("LumaToy", OWN, "A Toy", None)


@pytest.mark.parametrize(("at_least", "status"), [(1.5, "works"), (100, "runs")])
def test_own_work_has_no_bar_but_its_claims(tmp_path, at_least, status):
    own = toy(id=None, name="LumaToy")
    assert saved(tmp_path, holding(at_least=at_least), method=own).status == status


def test_a_record_that_cannot_be_read_is_written_with_a_note(tmp_path):
    missing = Missing(Indexed("foveal.x", Path("x.py"), 63, "ESPCN", "model", ()), "torch")
    row = pick("espcn", rows(among={}, missing=[missing], where=tmp_path))
    assert row.status == "written"
    assert row.note.startswith("its record needs torch: pip install ")


def test_pick_takes_any_spelling_and_gives_the_closest(tmp_path):
    found = rows(among={}, missing=[], where=tmp_path)
    assert pick("quick-sr-net", found).name == "QuickSRNet"
    with pytest.raises(
        CatalogueError, match=r"nothing in the catalogue is called 'espcm'; the closest are ESPCN, .*, "
    ):
        pick("espcm", found)


@pytest.mark.dear("imports every method, which grows with the catalogue")
def test_statuses_of_the_package_are_of_the_four_and_every_clause_is_answered():
    found = rows()
    assert sum(row.entry is not None for row in found) == 349
    assert {row.status for row in found} <= set(STATUSES)
    unanswered = [f"{row.name}, clause {c.number}: {c.text}" for row in found for c in row.clauses if not c.claims]
    assert not unanswered, f"no claim answers {unanswered}"
