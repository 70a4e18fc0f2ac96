import subprocess
import sys

import pytest
from toys import located, stand_in, toy

from foveal.catalogue.collect import CatalogueError, Missing, closest, collect, find, records, unreadable
from foveal.index import scan

RECORD = """
from foveal.record import Method, Paper
METHOD = Method(id={id}, name="{name}", kind="objective", summary="A toy.", paper=Paper("T", "A", 2020, "X"){more})
"""
CLAIMS = """
from foveal.record import smaller
CLAIMS = (smaller("Less.", paper="", ours=float, theirs=float{more}),)
"""


def record(name="ESPCN", number="63", more=""):
    return RECORD.format(id=number, name=name, more=more)


def claims(more=", clause=1"):
    return CLAIMS.format(more=more)


@pytest.mark.dear("imports every method, which grows with the catalogue")
def test_records_of_the_package_fit_together_and_can_all_be_read():
    assert unreadable() == []
    assert records()
    for name, item in records().items():
        assert item.method.name == name
        assert item.path.is_file()
        assert item.module.startswith("foveal.")
        assert item.evidence.startswith("foveal.evidence.")
        assert len(item.source) == 16


def test_importing_the_catalogue_does_not_import_torch():
    code = "import sys, foveal.catalogue, foveal.cli.claims, foveal.cli.catalogue; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_method_is_collected_with_its_evidence(package):
    folder, name = package(one=record(), evidence__sub____init__="", evidence__sub__one=claims())
    found, missing = collect(scan(folder, name))
    assert list(found) == ["ESPCN"]
    assert (found["ESPCN"].evidence, len(found["ESPCN"].claims)) == (f"{name}.evidence.one", 1)
    assert missing == []


def test_a_study_is_its_own_evidence(package):
    folder, name = package(evidence__sub__survey=record() + claims())
    found, _ = collect(scan(folder, name))
    assert found["ESPCN"].evidence == found["ESPCN"].module == f"{name}.evidence.survey"


@pytest.mark.parametrize(
    ("method", "evidence", "message"),
    [
        (record(), None, r"one below foveal, the other below foveal.evidence"),
        (record(), "CLAIMS = ()", r"must hold CLAIMS, a tuple of at least one claim; got \(\)"),
        (record(), "", r"must hold CLAIMS, a tuple of at least one claim; got None"),
        (record(), claims(""), r"'Less.' answers no clause; give clause=1 to 3, or say in beyond= which promise"),
        (record(), claims(", clause=4"), r"'Less.' answers clause 4, and row 63 has 3"),
        (record("New", 350), claims(), r"New has id 350, which the catalogue does not have; its ids are 1 to 349"),
        (record("SESR", 63), claims(), r"id 63 is ESPCN in the catalogue, the record says SESR"),
        (record("ESPCN", "None"), claims(), r"ESPCN is row 63 of the catalogue, its record has id None; give it id=63"),
        (
            "METHOD = Method(id=63, name='ESPCN', kind='model')".replace("METHOD =", "Method = dict\nMETHOD ="),
            claims(),
            r"METHOD must be a foveal.record.Method, got dict",
        ),
    ],
)
def test_what_does_not_fit_raises(package, method, evidence, message):
    files = {"evidence__sub____init__": "", "wrong": method}
    if evidence is not None:
        files["evidence__sub__wrong"] = evidence
    folder, name = package(**files)
    with pytest.raises(CatalogueError, match=message) as caught:
        collect(scan(folder, name))
    assert "wrong" in str(caught.value)


@pytest.mark.parametrize("where", ["method", "evidence"])
def test_a_missing_package_is_told_and_hides_no_other_row(package, where):
    needy = "import a_package_nobody_has\n"
    folder, name = package(
        needy=(needy if where == "method" else "") + record(),
        fine=record("SESR", 216),
        evidence__sub____init__="",
        evidence__sub__needy=(needy if where == "evidence" else "") + claims(),
        evidence__sub__fine=claims(),
    )
    collected, missing = collect(scan(folder, name))
    assert list(collected) == ["SESR"]
    assert [(item.indexed.id, item.package) for item in missing] == [(63, "a_package_nobody_has")]


def test_find_takes_any_spelling(monkeypatch):
    stand_in(monkeypatch, located(toy(id=173, name="QuickSRNet")))
    for typed in ("quicksrnet", "QUICK-SR-Net", "quick_srnet"):
        assert find(typed).method.name == "QuickSRNet"


def test_find_gives_the_three_closest(monkeypatch):
    stand_in(monkeypatch, *(located(toy(name=name)) for name in ("ESPCN", "SESR", "SAFMN", "SamplingAug")))
    with pytest.raises(CatalogueError, match=r"no record is called 'sespr'; the closest are SESR, ESPCN, SamplingAug$"):
        find("sespr")
    with pytest.raises(CatalogueError, match="DCKD is row 1 of the catalogue but has no record here yet; the closest"):
        find("dckd")


def test_find_says_which_package_a_record_needs(monkeypatch):
    from pathlib import Path

    from foveal.index import Indexed

    missing = Missing(Indexed("foveal.x", Path("x.py"), 63, "ESPCN", "model", ()), "torch")
    stand_in(monkeypatch, missing=[missing])
    with pytest.raises(CatalogueError, match=r"ESPCN needs torch: pip install '.*\[torch\]'"):
        find("espcn")


def test_closest_is_ordered_and_short():
    assert closest("tokn", ["Token", "Tome", "ToCom", "MX"])[0] == "Token"
    assert len(closest("zzz", ["a", "b", "c", "d"])) == 3
