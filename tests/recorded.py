"""What results hold of a claim: its recorded time, and whether the code that it ran still stands."""

from functools import cache

import pytest

from foveal.catalogue.collect import records
from foveal.evidence.results import load, recorded


@cache
def _outcomes(name):
    item = records()[name]
    return recorded(item.claims, load(item.method))


def outcome_of(item, claim):
    """Recorded outcome of a claim, None if it was never run."""
    return _outcomes(item.method.name)[item.claims.index(claim)]


def seconds(item, claim):
    """Recorded time of a claim; 0 when it was never run."""
    outcome = outcome_of(item, claim)
    return outcome["seconds"] if outcome else 0.0


def repeated(item, claim):
    """The mark `slow` for a claim whose code has not changed since it was run: a rehearsal could only repeat a part."""
    outcome = outcome_of(item, claim)
    return [pytest.mark.slow] if outcome and outcome["source"] == item.source else []
