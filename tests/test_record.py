import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest

from foveal import record
from foveal.record import KINDS, Claim, Method, Paper, bound, equal, faster, grows, kept, macs, params, printed, smaller

PAPER = Paper("A Toy", "A. Author", 2020, "arXiv:0000.00000")


def one():
    return 1


BUILT = {
    "params": params("P.", paper="16", model=one, expect=16, tolerance=0.1, needs=("Set5",)),
    "macs": macs("M.", paper="600", model=one, shape=(1, 3, 5, 10), expect=600, tolerance=0.2, needs=("Set5",)),
    "equal": equal("E.", ours=one, theirs=one, tolerance=1e-3, needs=("Set5",)),
    "faster": faster("F.", paper="2×", ours=one, theirs=one, at_least=2, threads=4, needs=("Set5",)),
    "smaller": smaller("S.", paper="3×", ours=one, theirs=one, at_least=3, needs=("Set5",)),
    "kept": kept("K.", paper="1 dB", quality=one, at_least=0.5, unit="%", seeds=4, data="toys", needs=("Set5",)),
    "grows": grows("G.", paper="n²", cost=one, sizes=[1, 2, 4], exponent=(1.9, 2.1), rounds=2, needs=("Set5",)),
    "bound": bound("B.", paper="1", value=one, at_least=0, at_most=2, unit="dB", needs=("Set5",)),
}
HELD = {
    "params": {"model": one, "expect": 16, "tolerance": 0.1},
    "macs": {"model": one, "shape": (1, 3, 5, 10), "expect": 600, "tolerance": 0.2},
    "equal": {"ours": one, "theirs": one, "tolerance": 1e-3},
    "faster": {"ours": one, "theirs": one, "at_least": 2, "threads": 4},
    "smaller": {"ours": one, "theirs": one, "at_least": 3},
    "kept": {"quality": one, "at_least": 0.5, "unit": "%", "seeds": 4, "data": "toys"},
    "grows": {"cost": one, "sizes": (1, 2, 4), "of": float, "exponent": (1.9, 2.1), "rounds": 2},
    "bound": {"value": one, "at_least": 0, "at_most": 2, "unit": "dB"},
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


@pytest.mark.parametrize(
    ("text", "value", "rounding"),
    [
        ("4.6 G", 4.6e9, 0.05e9),
        ("33 M", 33e6, 0.5e6),
        ("239,520", 239520, 0),
        ("0.063", 0.063, 0.0005),
        ("7K", 7e3, 500),
    ],
)
def test_a_printed_number_carries_its_rounding(text, value, rounding):
    assert printed(text) == (pytest.approx(value), pytest.approx(rounding))
    claim = params("P.", paper=text, model=one, expect=text)
    assert claim.check["tolerance"] == pytest.approx(rounding / value)
    assert params("P.", paper=text, model=one, expect=text, tolerance=0.5).check["tolerance"] == 0.5


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: printed("4.6 GB"), "a printed number reads '4.6 G', '33 M' or '239,520', got '4.6 GB'"),
        (lambda: kept("K.", paper="", quality=one, at_least=0, seeds=2), "at least 3 seeds, got 2; without seeds use"),
        (lambda: grows("G.", paper="", cost=one, sizes=(1, 2)), "an exponent takes at least three sizes, got 2"),
        (lambda: bound("B.", paper="", value=one), "give at_least, at_most or both"),
        (
            lambda: equal("E.", ours=one, theirs=one, clause=1, beyond="more"),
            "give clause or beyond, not both; got 1 and 'more'",
        ),
    ],
)
def test_a_claim_that_cannot_be_checked_is_refused(build, text):
    with pytest.raises(ValueError, match=text):
        build()


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
    with pytest.raises(ValueError, match=r"kind must be one of model, operator, .*application, got 'network'"):
        Method(63, "ESPCN", "network", "A toy.", PAPER)


def test_a_case_for_a_model_that_is_not_listed_raises():
    with pytest.raises(ValueError, match="ESPCN: case 'b' names no model; models are a, c"):
        Method(63, "ESPCN", "model", "A toy.", PAPER, models={"a": one, "c": one}, cases={"a": {}, "b": {}})


def test_public_names_are_listed():
    constructors = {name for name in BUILT if callable(getattr(record, name))}
    assert set(record.__all__) == constructors | {"Claim", "KINDS", "Method", "Paper", "printed"}


def test_it_imports_nothing_but_the_standard_library():
    code = (
        "import sys; before = set(sys.modules); import foveal.record; "
        "print(*{m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["foveal"]
