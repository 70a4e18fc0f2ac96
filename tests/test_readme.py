"""README says what is so."""

import re
import struct
from pathlib import Path

import pytest
from documents import ROOT, blocks, check, promised

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SCREEN = 60  # lines


@pytest.mark.dear("measures the speed of a bundle first")
def test_the_code_runs_and_prints_what_it_says(beside_samples):
    (code,) = blocks(TEXT, "python")
    assert promised(code), "the block must show what it prints"
    assert len(code.strip().splitlines()) <= 8
    check(code, "README.md")
    assert (beside_samples / "dogs_x4.png").is_file()


def test_a_block_that_prints_something_else_is_noticed():
    with pytest.raises(AssertionError, match="promises '2' and prints \\['3'\\]"):
        check("print(3)\n# 2\n", "toy")


def test_the_first_screen_has_its_parts_in_order():
    parts = [
        "# foveal",
        "![",
        "<!-- picture:start -->",
        "```sh\npip install",
        "```python",
        "<!-- catalogue -->",
        "](docs/upscale.md)",
    ]
    places = [TEXT.index(part) for part in parts]
    assert places == sorted(places)
    assert TEXT[: places[-1]].count("\n") <= SCREEN


def test_the_picture_and_its_figures_were_made_by_the_script():
    (picture,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", TEXT)
    data = (ROOT / picture).read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", data[16:24])
    assert width > height > 100
    figures = re.search(r"<!-- picture:start -->\n(.*?)\n<!-- picture:end -->", TEXT, re.DOTALL)
    assert figures is not None
    assert re.search(r"bicubic \d+\.\d\d dB, foveal's `\w+` \d+\.\d\d dB", figures[1])
    assert re.search(r"BSD100 is [+-]\d\.\d\d dB", figures[1])  # one picture does not stand alone
    assert figures[1] in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")


def test_pictures_come_first():
    sentence = TEXT.split("\n\n")[1]
    assert sentence.startswith("foveal upscales pictures")
    assert sentence in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")


def test_at_most_three_badges():
    assert len(re.findall(r"\[!\[|shields\.io|badge", TEXT)) <= 3


def test_it_says_where_it_runs_and_what_is_not_tested():
    for word in ("Linux", "Windows and macOS", "/proc/cpuinfo", "GPU", "--device cuda"):
        assert word in TEXT, word


def test_it_promises_no_package_index():
    assert "not on a package index" in TEXT
    assert re.findall(r"pip install '?foveal", TEXT) == []


def test_links_to_files_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)", TEXT) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_target_it_names_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z]+)`", TEXT))
    assert {"demo", "test"} <= named
    assert named <= targets


def test_extras_it_names_exist():
    import tomllib

    project = tomllib.loads(Path(ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = set(re.findall(r"\.\[(\w+)\]", TEXT))
    assert named
    assert named <= set(project["optional-dependencies"])
