import re
from pathlib import Path

import pytest
from toys import holding, located, toy

from foveal.catalogue.__main__ import main
from foveal.catalogue.collect import CatalogueError
from foveal.catalogue.status import rows
from foveal.catalogue.tables import BEGIN, END, counts, page, refreshed, sentence
from foveal.evidence import machine
from foveal.evidence.results import save
from foveal.evidence.run import run

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """One row that runs with one of two claims holding, one own record not run, the rest planned."""
    monkeypatch.setattr(machine, "commit", lambda: "abc1234")
    claims = (holding("It | is small."), holding("It is tiny.", at_least=99, clause=2))
    record, own = located(None, *claims), located(toy(id=None, name="Luma-Toy v2"))
    save(record.method, claims, run(claims), checks={"fields": "passed"}, where=tmp_path)
    return rows(among={"a": record, "b": own}, missing=[], where=tmp_path)


def test_counts_add_up_kind_by_kind(listed):
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in counts(listed).splitlines()]
    assert lines[0] == ["kind", "works", "runs", "written", "planned", "all"]
    assert lines[2] == ["architecture", "0", "1", "0", "133", "134"]
    assert lines[-1] == ["**all**", "0", "1", "0", "348", "349"]
    for column in range(1, 6):
        assert sum(int(line[column]) for line in lines[2:-1]) == int(lines[-1][column])


def test_the_sentence_counts_rows_and_claims(listed):
    assert sentence(listed) == (
        "1 of 349 published methods are implemented; 0 meet every clause of their bar on the machine that measured "
        "them, and 1 of 2 recorded claims hold."
    )


def test_page_shows_every_row_and_every_recorded_claim(listed):
    text = page(listed)
    assert (
        sum(bool(re.match(r"\| \d+ \|", line)) for line in text[text.index("## The literature") :].splitlines()) == 349
    )
    assert "| [ESPCN](#espcn) | restore | runs | 1 of 3 | 1 of 2 |" in text
    assert "| [Luma-Toy v2](#luma-toy-v2) | foveal | written | – | 0 of 1 |" in text
    assert r"| 1 | It \| is small. | 2 times | 2× (1 against 2) | holds |" in text
    assert "| 2 | It is tiny. | 2 times | 2× (1 against 2) | does not hold |" in text
    assert "1. Pixel-shuffle equals the rearranged transposed convolution: met" in text
    assert "after minutes of training: **does not hold**" in text
    assert "3. runs at least 5x faster on CPU than its HR-space twin: **not answered**" in text
    assert "Not run yet: One is less than two." in text
    assert "### restore (42)" in text


def test_refreshed_changes_only_what_stands_between_the_markers(listed):
    text = f"above\n{BEGIN}\nold\n{END}\nbelow\n"
    once = refreshed(text, listed)
    assert once == f"above\n{BEGIN}\n{sentence(listed)}\n{END}\nbelow\n"
    assert refreshed(once, listed) == once


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_refreshed_needs_one_pair_of_markers(listed, text):
    with pytest.raises(CatalogueError, match=r"the sentence goes between one .*; found \d and \d"):
        refreshed(text, listed)


@pytest.mark.dear("imports every method, if it is the first")
def test_main_renews_files_in_place(tmp_path):
    file = tmp_path / "TEXT.md"
    file.write_text(f"{BEGIN}\n{END}\n", encoding="utf-8")
    main([str(file)])
    assert file.read_text(encoding="utf-8") == f"{BEGIN}\n{sentence(rows())}\n{END}\n"


@pytest.mark.skipif(not README.is_file(), reason="there is no README.md beside the tests")
def test_readme_is_up_to_date():
    text = README.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1, f"README.md needs one line {BEGIN} and one line {END}"
    assert refreshed(text, rows()) == text, "renew it with: python -m foveal.catalogue README.md"
