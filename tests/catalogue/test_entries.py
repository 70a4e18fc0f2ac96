import re
from importlib.resources import files

from foveal.catalogue.entries import entries, fold


def test_every_row_of_the_literature_is_carried():
    assert list(entries()) == list(range(1, 350))
    assert entries()[63].name == "ESPCN"
    assert entries()[63].family == "restore"
    assert entries()[63].tasks == ("super-resolution", "video-super-resolution")


def test_every_row_says_what_it_is():
    for entry in entries().values():
        assert all((entry.name, entry.title, entry.family, entry.kind, entry.tasks, entry.works_when)), entry


def test_names_stay_apart_however_they_are_typed():
    assert len({fold(entry.name) for entry in entries().values()}) == 349


def test_fold_ignores_case_spaces_hyphens_and_underscores():
    assert fold("Quick SR_Net-S") == fold("quicksrnets")
    assert fold("S4") != fold("S4D")


def test_data_names_no_machine():
    text = files("foveal.catalogue").joinpath("catalogue.jsonl").read_text(encoding="utf-8")
    assert not re.search(r'"/(home|root|tmp|work)/', text)
