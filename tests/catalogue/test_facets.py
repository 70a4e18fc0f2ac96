"""Facets of compression methods and of state space models."""

import pytest

from foveal.catalogue.collect import CatalogueError
from foveal.catalogue.entries import entries
from foveal.catalogue.facets import COMPRESSION, QUANTIZERS, STATE_SPACES, chosen, covered, facets, read, unclassified


def test_no_row_that_a_survey_covers_is_unclassified():
    compression, quantizers, state_spaces = covered(entries().values())
    assert len(compression) >= 40
    assert len(quantizers) >= 14
    assert len(state_spaces) >= 29
    assert not {59, 73, 303, 292} & {row.id for row in state_spaces}
    assert unclassified(entries().values()) == []


def test_an_unclassified_row_is_noticed(monkeypatch):
    some = {number: dict(found) for number, found in facets().items()}
    del some[140]["levels"], some[47], some[280]["scan"], some[7]
    monkeypatch.setattr("foveal.catalogue.facets.facets", lambda: some)
    assert ("PAMS", "levels") in unclassified(entries().values())
    assert ("PlainMamba", "scan") in unclassified(entries().values())
    for name, taxonomy in (("RD-Prune", COMPRESSION), ("Fusion-Mamba", STATE_SPACES)):
        assert [facet for other, facet in unclassified(entries().values()) if other == name] == list(taxonomy)


@pytest.mark.parametrize(
    "word",
    [f"{facet}={value}" for facet, values in {**COMPRESSION, **QUANTIZERS, **STATE_SPACES}.items() for value in values],
)
def test_every_value_of_the_taxonomies_has_a_row(word: str):
    assert chosen([word])


def test_facets_narrow_each_other():
    assert chosen(["method=quantization", "levels=binary"]) == {255, 318}
    assert chosen(["network=hybrid with convolution", "scan=snake"]) == {285}
    assert chosen([]) == set(entries())


def test_what_is_refused():
    with pytest.raises(CatalogueError, match=r"a facet is NAME=VALUE with one of the names method, .*, got 'pruning'"):
        chosen(["pruning"])
    with pytest.raises(CatalogueError, match="range is one of dynamic, learned, static, got 'fixed'"):
        chosen(["range=fixed"])
    with pytest.raises(ValueError, match="got two for row 1; keep one"):
        read('{"id": 1}\n{"id": 1}')
    with pytest.raises(ValueError, match="row 1: wanted one of none, calibration, full, got data = 'some'"):
        read('{"id": 1, "data": "some"}')
