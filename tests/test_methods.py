"""The common suite: every record of the package, every check that applies to it, every case.

The checks are in `foveal.evidence.checks`; `test_checks.py` and `test_suites.py` show that each can fail. A method is
excused from one by `except_for` in its record, with the reason.
"""

from pathlib import Path

import pytest

from foveal.catalogue import records
from foveal.evidence import checks
from foveal.models import list_models

pytestmark = pytest.mark.dear("one suite for all records")

LISTING = Path(__file__).parent / "catalogue" / "public_names.txt"
SUITE = [(name, check, case) for name, item in records().items() for check, case in checks.pairs(item.method)]


@pytest.mark.parametrize(("name", "check", "case"), SUITE, ids=lambda value: value or "record")
def test_method(name, check, case):
    checks.check(records()[name].method, check, case)


def test_every_record_is_in_the_suite():
    assert {name for name, _, _ in SUITE} == set(records())


def test_every_registered_model_has_a_case():
    for name, item in records().items():
        uncovered = set(item.method.models) - set(item.method.cases)
        assert not uncovered, f"{name}: no tiny case for {', '.join(sorted(uncovered))}"


def test_create_model_takes_the_models_of_the_records():
    below = [item.method.models for item in records().values() if item.module.startswith("foveal.models.")]
    assert set(list_models()) == {name for models in below for name in models}


def test_names_are_those_of_the_listing():
    """A name that users may type disappears only together with its line in the listing, which a reviewer sees."""
    names = [f"record {name}" for name in records()]
    names += [f"model {model}" for item in records().values() for model in item.method.models]
    listed = LISTING.read_text(encoding="utf-8").splitlines()
    gone, new = sorted(set(listed) - set(names)), sorted(set(names) - set(listed))
    assert not gone, f"{gone} can no longer be found; if that is meant, take the lines out of {LISTING} and say so"
    assert not new, f"{new} must be added to {LISTING}"
    assert listed == sorted(listed), f"{LISTING} must be sorted"
