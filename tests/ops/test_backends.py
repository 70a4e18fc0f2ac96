import pytest

from foveal.ops.backends import Backend, BackendError, choose, reasons

BACKENDS = (
    Backend("quick", lambda: "quick", lambda tensor: "there is no quick here; buy one" if tensor else None),
    Backend("plain", lambda: "plain", lambda _: None),
)


def test_auto_takes_the_first_that_can_run():
    assert choose(BACKENDS, "auto", tensor=None).name == "quick"
    assert choose(BACKENDS, "auto", tensor=1).name == "plain"


def test_a_named_backend_that_cannot_run_raises_with_its_reason():
    with pytest.raises(BackendError, match="backend 'quick' cannot run: there is no quick here; buy one"):
        choose(BACKENDS, "quick", tensor=1)


def test_an_unknown_backend_raises_with_the_names():
    with pytest.raises(ValueError, match="backend must be one of auto, quick, plain, got 'fast'"):
        choose(BACKENDS, "fast", tensor=None)


def test_reasons_tell_both():
    assert reasons(BACKENDS, 1) == {"quick": "there is no quick here; buy one", "plain": "can run"}
