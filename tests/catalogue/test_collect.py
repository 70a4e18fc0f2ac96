import subprocess
import sys
from pathlib import Path

import pytest

from foveal.catalogue import collect as module
from foveal.catalogue.collect import CatalogueError, Missing, closest, collect, find, modules, records, unreadable

RECORD = """
from foveal.record import Method, Paper
METHOD = Method(id={id}, name="{name}", kind="{kind}", summary="A toy.", paper=Paper("T", "A", 2020, "X"){more})
"""


def record(name="ESPCN", number="63", kind="objective", more=""):
    return RECORD.format(id=number, name=name, kind=kind, more=more)


def test_records_of_the_package_fit_together_and_can_all_be_read():
    assert unreadable() == []
    assert records()
    for name, item in records().items():
        assert item.method.name == name
        assert item.path.is_file()
        assert item.module.startswith("foveal.")


def test_importing_the_catalogue_does_not_import_torch():
    code = "import sys, foveal.catalogue, foveal.cli.claims, foveal.cli.catalogue; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_only_files_with_a_record_are_imported(package):
    folder, name = package(
        plain="raise RuntimeError('must not be imported')",
        mention='"""A file ends with `METHOD = Method(...)`."""\ndef f():\n    METHOD = 1\nraise RuntimeError',
        one=record(),
        many="from foveal.record import Method\nMETHODS: tuple[Method, ...] = ()",
        serve__sub__page=record("SESR", 216),
        inner__sub__deep=record("SESR", 216),
    )
    found = modules(folder, name)
    assert [module for module, _ in found] == [f"{name}.inner.deep", f"{name}.many", f"{name}.one"]
    collected, missing = collect(found)
    assert list(collected) == ["ESPCN", "SESR"]
    assert collected["SESR"].path == folder / "inner" / "deep.py"
    assert missing == []


def test_a_package_may_hold_its_record_in_init(package):
    folder, name = package(inner__sub____init__=record())
    assert modules(folder, name) == [(f"{name}.inner", folder / "inner" / "__init__.py")]


def test_a_file_may_hold_several(package):
    text = record() + record("Own", "None").replace("METHOD =", "_OWN =") + "METHODS = (_OWN,)\n"
    collected, _ = collect(modules(*package(two=text)))
    assert sorted(collected) == ["ESPCN", "Own"]


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        (record(), record("Espcn"), "name 'espcn' is taken twice"),
        (
            record(more=", models={'net': dict}"),
            record("SESR", 216, more=", models={'net': dict}"),
            "model 'net' is taken twice",
        ),
    ],
)
def test_what_is_taken_twice_raises_and_names_both_files(package, first, second, text):
    folder, name = package(first=first, second=second)
    with pytest.raises(CatalogueError, match=text) as caught:
        collect(modules(folder, name))
    assert str(folder / "first.py") in str(caught.value)
    assert str(folder / "second.py") in str(caught.value)


def test_duplicate_ids_raise_and_name_both_files(package):
    folder, name = package(first=record(), second=record("ESPCN again"))
    with pytest.raises(CatalogueError, match=r"id 63 is taken twice: by ESPCN in .*first.py and by .* in .*second.py"):
        collect(modules(folder, name))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (record("New", 350), r"New has id 350, which the catalogue does not have; its ids are 1 to 349"),
        (record("SESR", 63), r"id 63 is ESPCN in the catalogue, the record says SESR"),
        (record("ESPCN", "None"), r"ESPCN is row 63 of the catalogue, its record has id None; give it id=63"),
        ("METHOD = 'ESPCN'", r"METHOD must be a foveal.record.Method, METHODS a tuple of it; got str"),
    ],
)
def test_a_record_that_does_not_fit_raises(package, text, message):
    folder, name = package(wrong=text)
    with pytest.raises(CatalogueError, match=message) as caught:
        collect(modules(folder, name))
    assert str(folder / "wrong.py") in str(caught.value)


def test_a_missing_package_is_told_with_the_rows_it_hides(package):
    folder, name = package(needy="import a_package_nobody_has\n" + record(), fine=record("SESR", 216))
    collected, missing = collect(modules(folder, name))
    assert list(collected) == ["SESR"]
    assert missing == [Missing(f"{name}.needy", folder / "needy.py", "a_package_nobody_has", (63,))]


def test_a_missing_part_of_foveal_is_an_error(package):
    with pytest.raises(ModuleNotFoundError, match=r"foveal\.nowhere"):
        collect(modules(*package(broken="import foveal.nowhere\n" + record())))


def test_find_takes_any_spelling(make_method, located):
    among = {"QuickSRNet": located(make_method(id=173, name="QuickSRNet"))}
    for typed in ("quicksrnet", "QUICK-SR-Net", "quick_srnet"):
        assert find(typed, among).method.name == "QuickSRNet"


def test_find_gives_the_three_closest(make_method, located):
    among = {name: located(make_method(name=name)) for name in ("ESPCN", "SESR", "SAFMN", "SamplingAug")}
    with pytest.raises(CatalogueError, match=r"no record is called 'sespr'; the closest are SESR, ESPCN, SamplingAug$"):
        find("sespr", among)
    with pytest.raises(CatalogueError, match="DCKD is row 1 of the catalogue but has no record here yet; the closest"):
        find("dckd", among)
    with pytest.raises(CatalogueError, match="there are no records at all"):
        find("sesr", {})


def test_find_says_what_cannot_be_read(monkeypatch):
    monkeypatch.setattr(module, "_collected", lambda: ({}, [Missing("foveal.x", Path("x.py"), "torch", (63,))]))
    with pytest.raises(CatalogueError, match=r"1 more cannot be read without torch: pip install foveal\[torch\]"):
        find("espcn")


def test_closest_is_ordered_and_short():
    assert closest("tokn", ["Token", "Tome", "ToCom", "MX"])[0] == "Token"
    assert len(closest("zzz", ["a", "b", "c", "d"])) == 3
