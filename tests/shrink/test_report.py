import json
import re

import pytest
from shrunk import tiny

from foveal.shrink.prune.structure import Prune
from foveal.shrink.quantize.int8 import Quantise
from foveal.shrink.recipe import shrink
from foveal.shrink.report import HEAD, Line, plot, write_report


@pytest.fixture
def result(pretend, data):
    pretend.times, pretend.score = lambda m: float(m[0].out_channels), lambda m: 90.0 - 8 / m[0].out_channels
    return shrink(tiny(), [Prune(keep=0.5), Quantise()], data)


def test_three_reports_say_the_same(result, tmp_path):
    write_report(result, tmp_path, name="mine & <more>", notes=["nothing else"])
    markdown, page = ((tmp_path / f"report.{kind}").read_text("utf-8") for kind in ("md", "html"))
    found = json.loads((tmp_path / "report.json").read_text("utf-8"))
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert rows[0] == f"| {' | '.join(HEAD)} |"
    assert rows[3].startswith("| Prune(keep=0.5) | onnxruntime fp32 | 8 | 8–8 | 0.50 | 1.0 MiB |")
    assert rows[3].endswith("| 89.00 | -0.50 |")
    assert [line["step"] for line in found["lines"]] == ["untouched", "Prune(keep=0.5)", "Quantise()"]
    assert found["lines"][2]["measured"]["untouched"]["median"] == pytest.approx(0.25)
    assert (found["threads"], found["data"], found["batch"]) == (2, "toys", 1)
    assert "- nothing else" in markdown
    assert page.count("<tr>") == 4
    assert "mine &amp; &lt;more&gt;" in page
    assert "nothing else" in page


def test_the_page_loads_nothing_from_elsewhere(result, tmp_path):
    write_report(result, tmp_path, name="mine")
    assert not re.search(r"https?:|src=|<script|<link", (tmp_path / "report.html").read_text("utf-8"))


def test_the_plot_puts_fast_left_and_good_above(result):
    lines = [Line(s.step, s.measured, s.kept) for s in result.stages]
    svg = plot(lines, "points")
    places = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)]
    assert places[0][0] > places[1][0] > places[2][0]
    assert places[0][1] < places[1][1]
    assert 'fill="none" stroke="#1565c0"' in plot([*lines, Line("off", lines[0].measured, False)], "points")
