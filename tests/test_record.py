import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest

from foveal import record
from foveal.record import KINDS, Claim, Method, Paper, equal, faster, kept, macs, params, smaller

PAPER = Paper("A Toy", "A. Author", 2020, "arXiv:0000.00000")


def one():
    return 1


BUILT = {
    "params": params("P.", paper="16", model=one, expect=16, tolerance=0.1, needs=("Set5",)),
    "macs": macs("M.", paper="600", model=one, shape=(1, 3, 5, 10), expect=600, tolerance=0.2, needs=("Set5",)),
    "equal": equal("E.", ours=one, theirs=one, tolerance=1e-3, needs=("Set5",)),
    "faster": faster("F.", paper="2×", ours=one, theirs=one, at_least=2, threads=4, needs=("Set5",)),
    "smaller": smaller("S.", paper="3×", ours=one, theirs=one, at_least=3, needs=("Set5",)),
    "kept": kept("K.", paper="1 dB", quality=one, at_least=0.5, unit="%", seeds=3, data="toys", needs=("Set5",)),
}
HELD = {
    "params": {"model": one, "expect": 16, "tolerance": 0.1},
    "macs": {"model": one, "shape": (1, 3, 5, 10), "expect": 600, "tolerance": 0.2},
    "equal": {"ours": one, "theirs": one, "tolerance": 1e-3},
    "faster": {"ours": one, "theirs": one, "at_least": 2, "threads": 4},
    "smaller": {"ours": one, "theirs": one, "at_least": 3},
    "kept": {"quality": one, "at_least": 0.5, "unit": "%", "seeds": 3, "data": "toys"},
}


@pytest.mark.parametrize("kind", BUILT)
def test_a_constructor_builds_a_claim_of_its_kind_that_holds_what_it_was_given(kind):
    claim = BUILT[kind]
    assert claim.kind == kind
    assert claim.says == f"{kind[0].upper()}."
    assert claim.paper
    assert dict(claim.check) == HELD[kind]
    assert claim.needs == ("Set5",)


def test_equal_is_exact_unless_the_paper_says_otherwise():
    assert equal("E.", ours=one, theirs=one).paper == "exact"


def test_records_are_frozen():
    method = Method(63, "ESPCN", "model", "A toy.", PAPER)
    with pytest.raises(FrozenInstanceError):
        method.name = "other"
    with pytest.raises(FrozenInstanceError):
        BUILT["params"].says = "other"
    with pytest.raises(TypeError):
        BUILT["params"].check["expect"] = 17


def test_a_claim_keeps_its_own_copy_of_the_check():
    check = {"expect": 1}
    claim = Claim("params", "P.", "1", check)
    check["expect"] = 2
    assert claim.check["expect"] == 1


def test_every_kind_of_method_is_taken():
    for kind in KINDS:
        assert Method(None, "Toy", kind, "A toy.", PAPER).kind == kind


def test_an_unknown_kind_raises():
    with pytest.raises(ValueError, match=r"kind must be one of model, operator, .*benchmark, got 'network'"):
        Method(63, "ESPCN", "network", "A toy.", PAPER)


def test_a_case_for_a_model_that_is_not_listed_raises():
    with pytest.raises(ValueError, match="ESPCN: case 'b' names no model; models are a, c"):
        Method(63, "ESPCN", "model", "A toy.", PAPER, models={"a": one, "c": one}, cases={"a": {}, "b": {}})


def test_public_names_are_listed():
    constructors = {name for name in BUILT if callable(getattr(record, name))}
    assert set(record.__all__) == constructors | {"Claim", "Method", "Paper"}


def test_it_imports_nothing_but_the_standard_library():
    code = (
        "import sys; before = set(sys.modules); import foveal.record; "
        "print(*{m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["foveal"]
