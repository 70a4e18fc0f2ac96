"""A build of the kernels that is older than a function."""

from types import SimpleNamespace

import pytest

from foveal.ops import since


@pytest.mark.parametrize(
    ("built", "reason", "said"),
    [
        (SimpleNamespace(foveal_new=1), None, None),
        (SimpleNamespace(), None, "the installed foveal-kernels has no foveal_new; run `pip install --force-reinstall"),
        (None, "not installed", "not installed"),
    ],
)
def test_what_is_missing_is_named(monkeypatch, built, reason, said):
    monkeypatch.setattr(since, "library", lambda: built)
    monkeypatch.setattr(since, "why_not", lambda: reason)
    found = since.lacks("foveal_new")
    assert found is None if said is None else found.startswith(said)
