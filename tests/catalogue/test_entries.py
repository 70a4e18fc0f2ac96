import json
import re
from importlib.resources import files

import pytest

from foveal.catalogue.entries import Promise, entries, fold, joined, recomposed

BAR = "Fast and small, exact to 1e-5; and, on photographs, it beats bicubic while its twin does not."
PIECES = ["Fast and small", "exact to 1e-5", "on photographs, it beats bicubic", "its twin does not"]


def row(number=1, **changes):
    plain = {
        "id": number,
        "name": "ESPCN",
        "title": "A Toy",
        "family": "restore",
        "kind": "architecture",
        "tasks": ["super-resolution"],
        "mechanism": "Pixel-shuffle.",
        "claims": [{"what": "speed", "value": "5x", "check": "time"}],
        "code": None,
        "library": None,
        "works_when": BAR,
        "effort": "S",
        "tier": 1,
    }
    return json.dumps({**plain, **changes})


def split(number=1, clauses=PIECES):
    return json.dumps({"id": number, "clauses": clauses})


def test_every_row_of_the_literature_is_carried():
    assert list(entries()) == list(range(1, 350))
    assert entries()[63].name == "ESPCN"
    assert entries()[63].family == "restore"
    assert entries()[63].tasks == ("super-resolution", "video-super-resolution")


def test_every_row_says_what_it_is():
    for entry in entries().values():
        assert all((entry.name, entry.title, entry.family, entry.kind, entry.tasks, entry.works_when)), entry
        assert entry.mechanism, entry
        assert entry.claims, entry
        assert entry.effort in {"S", "M", "L"}, entry
        assert entry.tier in {1, 2, 3}, entry


def test_every_bar_is_its_clauses_word_for_word():
    off = [entry.id for entry in entries().values() if not recomposed(entry.works_when, entry.clauses)]
    assert off == []


def test_clauses_of_one_row():
    assert entries()[63].clauses == (
        "Pixel-shuffle equals the rearranged transposed convolution",
        "the ×3 model beats bicubic by at least 0.5 dB on held-out photos after minutes of training",
        "runs at least 5x faster on CPU than its HR-space twin",
    )


def test_a_row_comes_with_its_clauses():
    entry = joined(row(), split())[1]
    assert entry.clauses == tuple(PIECES)
    assert entry.claims == (Promise("speed", "5x", "time"),)
    assert (entry.code, entry.library) == ("", "")


@pytest.mark.parametrize(
    "cut",
    [
        [BAR.removesuffix(".")],
        PIECES,
        ["Fast", "small", *PIECES[1:]],
        [*PIECES[:2], "on photographs", "it beats bicubic", "its twin does not"],
    ],
)
def test_a_bar_may_be_cut_at_any_joint(cut):
    assert recomposed(BAR, cut)


@pytest.mark.parametrize(
    "cut",
    [
        pytest.param([], id="none"),
        pytest.param(["", *PIECES], id="empty piece"),
        pytest.param(["Fast and tiny", *PIECES[1:]], id="another word"),
        pytest.param(PIECES[1:], id="first missing"),
        pytest.param([*PIECES[:1], *PIECES[2:]], id="one missing"),
        pytest.param(PIECES[:-1], id="last missing"),
        pytest.param([PIECES[1], PIECES[0], *PIECES[2:]], id="order"),
        pytest.param([*PIECES, PIECES[-1]], id="twice"),
        pytest.param([*PIECES[:2], "on", "photographs, it beats bicubic", PIECES[3]], id="cut between two words"),
        pytest.param(["Fast an", "d small", *PIECES[1:]], id="cut inside a word"),
        pytest.param([*PIECES[:3], "while its twin does not"], id="joint kept"),
        pytest.param([BAR], id="full stop kept"),
    ],
)
def test_other_pieces_do_not_recompose(cut):
    assert not recomposed(BAR, cut)


@pytest.mark.parametrize(
    ("cut", "says"),
    [
        pytest.param(
            ["Fast and small", "exact to 1e-4", *PIECES[2:]],
            "row 1, ESPCN: behind 1 matching clauses wanted pieces of ', exact to 1e-5; and, on photographs, "
            "it beats bicubic while its twin does not', got 'exact to 1e-4'; keep the words and the order",
            id="wrong",
        ),
        pytest.param(
            PIECES[:-1],
            "behind 3 matching clauses wanted pieces of ' while its twin does not', got no more clauses",
            id="last missing",
        ),
        pytest.param(
            [*PIECES[:1], *PIECES[2:]],
            "behind 1 matching clauses wanted pieces of ', exact to 1e-5; and, on photographs, it beats "
            "bicubic while its twin does not', got 'on photographs, it beats bicubic'",
            id="one missing",
        ),
        pytest.param(
            [PIECES[1], PIECES[0], *PIECES[2:]],
            f"behind 0 matching clauses wanted pieces of {BAR[:-1]!r}, got 'exact to 1e-5'",
            id="order",
        ),
    ],
)
def test_clauses_that_are_not_the_bar_are_refused(cut, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        joined(row(), split(clauses=cut))


@pytest.mark.parametrize("clauses", ["", split(clauses=[])])
def test_a_row_without_clauses_is_refused(clauses):
    says = f"wanted at least one clause for row 1, ESPCN, got none; split its works_when: {BAR}"
    with pytest.raises(ValueError, match=re.escape(says)):
        joined(row(), clauses)


def test_clauses_without_a_row_are_refused():
    says = "wanted clauses of the catalogue's rows only, got some for [2]; remove them"
    with pytest.raises(ValueError, match=re.escape(says)):
        joined(row(), f"{split()}\n{split(2)}")


def test_two_lines_of_clauses_for_one_row_are_refused():
    says = "wanted one line for each row, got two for row 1; keep one"
    with pytest.raises(ValueError, match=re.escape(says)):
        joined(row(), f"{split()}\n{split()}")


def test_names_stay_apart_however_they_are_typed():
    assert len({fold(entry.name) for entry in entries().values()}) == 349


def test_fold_ignores_case_spaces_hyphens_and_underscores():
    assert fold("Quick SR_Net-S") == fold("quicksrnets")
    assert fold("S4") != fold("S4D")


@pytest.mark.parametrize("name", ["catalogue.jsonl", "clauses.jsonl"])
def test_data_names_no_machine(name):
    text = files("foveal.catalogue").joinpath(name).read_text(encoding="utf-8")
    assert not re.search(r'"/(home|root|tmp|work)/', text)
