"""Once, for all evidence: methods and evidence pair up, cheap claims are run, dear ones are rehearsed.

A dear claim whose recorded outcome is of the code as it stands is rehearsed with the slow tests only.
"""

from pathlib import Path

import pytest
from recorded import repeated, seconds

import foveal.evidence
from foveal.catalogue.collect import records
from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.run import key, run_one
from foveal.index import evidence_of, index

pytestmark = pytest.mark.dear("one suite for the evidence of all methods")
ROOT = Path(foveal.evidence.__file__).parent
CHEAP = 1.0  # seconds that an exact claim may take to be run with every test
SHARED = {"checks", "leaderboard", "rivals", "tasks", "__pycache__"}  # folders of evidence that prove no method
CLAIMS = [(item, claim) for item in records().values() for claim in item.claims]


def chosen(*kinds, dear=False):
    listed = [
        (item, claim)
        for item, claim in CLAIMS
        if claim.kind in kinds
        and "gpu" not in claim.needs
        and (claim.kind == "kept" or "minutes" in claim.needs if dear else seconds(item, claim) <= CHEAP)
    ]
    ids = [f"{item.method.name}-{claim.says[:50]}" for item, claim in listed]
    marks = [repeated(item, claim) if dear else [] for item, claim in listed]
    cases = [pytest.param(*case, id=name, marks=said) for case, name, said in zip(listed, ids, marks, strict=True)]
    return pytest.mark.parametrize(("item", "claim"), cases)


def test_every_method_has_its_evidence_and_every_evidence_its_method():
    methods = {evidence_of(item.module) for item in index()}
    folders = [path for path in ROOT.iterdir() if path.is_dir() and path.name not in SHARED]
    files = [path for folder in folders for path in folder.rglob("*.py") if path.stem != "__init__"]
    assert {".".join(("foveal.evidence", *path.relative_to(ROOT).with_suffix("").parts)) for path in files} == methods


@chosen("params", "macs")
def test_counts_are_what_is_recorded_of_them(item, claim):
    """A count that does not fit the paper's number is a result; then it must be recorded as one."""
    outcome = run_one(claim)
    assert outcome.verdict in ("holds", "does not hold"), outcome.trace
    if outcome.verdict == "does not hold":
        assert claim.paper, f"{claim.says}: got {outcome.here}, and no figure of a paper explains another expectation"


@chosen("equal")
def test_exact_claims_hold(item, claim):
    outcome = run_one(claim)
    assert outcome.verdict == "holds", f"{outcome.here} {outcome.trace}"


@pytest.fixture(scope="module")
def _rehearsal():
    with rehearsal():
        yield


@chosen("kept", "grows", "bound", dear=True)
@pytest.mark.usefixtures("_rehearsal")
def test_dear_claims_are_rehearsed(item, claim):
    outcome = run_one(claim)
    assert outcome.verdict in ("holds", "does not hold"), outcome.trace


def test_claims_of_a_row_do_not_say_the_same_twice():
    for item in records().values():
        keys = [key(claim) for claim in item.claims]
        assert len(set(keys)) == len(keys), item.method.name
