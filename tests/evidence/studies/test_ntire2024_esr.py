import math

import pytest

from foveal.evidence.studies.ntire2024_esr import passes, score

RLFN = {"seconds": 0.01354, "macs": 19.67e9, "parameters": 317_218}


def test_the_baseline_has_the_square_of_e():
    assert score(RLFN, RLFN) == pytest.approx(math.exp(2))


def test_time_weighs_most():
    halves = [score({**RLFN, name: RLFN[name] / 2}, RLFN) for name in RLFN]
    assert halves == pytest.approx([0.7 * math.e + 0.3 * math.exp(2), *[0.15 * math.e + 0.85 * math.exp(2)] * 2])


def test_the_gate_is_below_the_baseline():
    assert passes(27.0, 27.07)
    assert not passes(26.98, 27.07)


def test_figures_that_cannot_be():
    for ours, theirs in (({**RLFN, "macs": -1}, RLFN), (RLFN, {**RLFN, "macs": 0}), ({**RLFN, "macs": math.nan}, RLFN)):
        with pytest.raises(ValueError, match="macs must be at least 0, and above 0 for the baseline, got"):
            score(ours, theirs)
