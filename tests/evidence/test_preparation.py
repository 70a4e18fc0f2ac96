"""Claims that time, count or measure at full size can run: each side is built and called once, and nothing is timed.

A recorded run is the first to compare their numbers; here a claim whose code has rotted fails. One whose recorded
outcome is of the code as it stands is called with the slow tests only. `test_evidence.py` rehearses claims that train.
"""

from __future__ import annotations

import pickle
import sys
from contextlib import nullcontext

import pytest
import torch
from recorded import repeated

from foveal.catalogue.collect import records
from foveal.evidence.rehearsal import rehearsal
from foveal.record import bound, faster, grows, smaller

pytestmark = pytest.mark.dear("one suite for the evidence of all methods; calls at the sizes that are timed")

# Calls of many seconds: their shapes are computed, not their values.
ON_META = {"QuickSRNet": "SAFMN on a picture of 960×540 takes ten seconds"}


def positive(number):
    number = float(number)
    assert number > 0, f"a cost must be above 0, got {number}"


def prepare(claim):
    """Build both sides of a claim and call each once, a cost at its first size."""
    check = claim.check
    if claim.kind == "faster":
        ours, theirs = check["ours"](), check["theirs"]()
        ours()
        theirs()
    elif claim.kind == "smaller":
        positive(check["ours"]())
        positive(check["theirs"]())
    elif claim.kind == "grows":
        first, *_ = check["sizes"]
        positive(check["cost"](first))
        assert all(check["of"](size) > 0 for size in check["sizes"])
    else:
        assert claim.kind == "bound"
        float(check["value"]())


def chosen():
    listed = [
        (item, claim)
        for item in records().values()
        for claim in item.claims
        if claim.kind in ("faster", "smaller") or (claim.kind in ("grows", "bound") and "minutes" not in claim.needs)
    ]
    cases = [
        pytest.param(item, claim, id=f"{item.method.name}-{claim.kind}-{claim.says[:50]}", marks=repeated(item, claim))
        for item, claim in listed
    ]
    return pytest.mark.parametrize(("item", "claim"), cases)


def called_here(function, **_):
    """In place of `peak_memory`: no process of its own, and no number."""
    pickle.loads(pickle.dumps(function))()
    return 1


@pytest.fixture(scope="module")
def _in_this_process():
    with rehearsal(), pytest.MonkeyPatch.context() as patch:
        for item in records().values():
            module = sys.modules[item.evidence]
            if hasattr(module, "peak_memory"):
                patch.setattr(module, "peak_memory", called_here)
        yield


@chosen()
@pytest.mark.usefixtures("_in_this_process")
def test_both_sides_can_be_built_and_called(item, claim):
    if "gpu" in claim.needs and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    on_meta = item.method.name in ON_META and claim.kind == "faster"
    with torch.device("meta") if on_meta else nullcontext():
        prepare(claim)


def test_what_is_called_on_meta_has_a_claim_of_time():
    for name in ON_META:
        assert any(claim.kind == "faster" for claim in records()[name].claims)


def fails():
    raise RuntimeError("an argument that is no more")


def made():
    return lambda: 1


@pytest.mark.parametrize(
    "broken",
    [
        faster("a", paper="", ours=fails, theirs=made),
        faster("a", paper="", ours=made, theirs=fails),
        faster("a", paper="", ours=lambda: fails, theirs=made),
        faster("a", paper="", ours=made, theirs=lambda: fails),
        smaller("a", paper="", ours=fails, theirs=lambda: 1),
        smaller("a", paper="", ours=lambda: 1, theirs=fails),
        grows("a", paper="", cost=lambda size: fails(), sizes=(1, 2, 3)),
        grows("a", paper="", cost=lambda size: 1, sizes=(1, 2, 3), of=lambda size: fails()),
        bound("a", paper="", value=fails, at_least=1),
    ],
    ids=lambda claim: claim.kind,
)
def test_a_broken_claim_is_noticed(broken):
    with pytest.raises(RuntimeError, match="an argument that is no more"):
        prepare(broken)


@pytest.mark.parametrize(
    "claim",
    [
        smaller("a", paper="", ours=lambda: 0, theirs=lambda: 1),
        grows("a", paper="", cost=lambda size: -1, sizes=(1, 2, 3)),
    ],
    ids=lambda claim: claim.kind,
)
def test_a_cost_of_nothing_is_noticed(claim):
    with pytest.raises(AssertionError, match=r"a cost must be above 0, got (-1|0)\.0"):
        prepare(claim)


def test_a_sound_claim_passes():
    prepare(faster("a", paper="", ours=made, theirs=made))
    prepare(grows("a", paper="", cost=float, sizes=(1, 2, 3)))
