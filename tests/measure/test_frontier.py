import re
from xml.etree import ElementTree

import pytest

from foveal.measure.frontier import Point, frontier, scatter


def test_a_point_is_beaten_by_one_that_is_no_worse_in_both():
    points = [Point("a", 1, 30), Point("b", 2, 31), Point("c", 2, 30.5), Point("d", 3, 31), Point("e", 1, 30)]
    assert frontier(points) == [True, True, False, False, True]


def test_the_plot_is_an_element_with_every_point_in_its_place():
    points = [Point("fast <1>", 1, 30, 0.9, 1.2), Point("good", 4, 32, kept=False, says="the best")]
    drawn = ElementTree.fromstring(scatter(points, cost="s/MP", quality="dB"))
    circles = drawn.findall("circle")
    (fast, good) = [(float(c.get("cx")), float(c.get("cy"))) for c in circles]
    assert fast[0] < good[0]
    assert fast[1] > good[1]  # downwards
    assert [c.get("fill") for c in circles] == ["#1565c0", "none"]
    assert [c.find("title").text for c in circles] == ["fast <1>: 1 s/MP, 30.00", "the best"]
    assert len(re.findall(r'stroke="#1565c0"/>', scatter(points))) == 1  # one bar of quartiles
    assert "http" not in scatter(points)


def test_a_single_point_at_no_cost_can_be_drawn():
    assert "nan" not in scatter([Point("a", 0, 0)])
    with pytest.raises(ValueError, match="a plot needs at least one point, got none"):
        scatter([])
