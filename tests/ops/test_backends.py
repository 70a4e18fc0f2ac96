import threading

import pytest
import torch

from foveal.ops import backends as module
from foveal.ops import long_conv, selective_scan, ssd, ssd_noncausal, use_backend
from foveal.ops.backends import Backend, BackendError, choose, differentiable_gradients, reasons
from foveal.ops.conv3x3 import BACKENDS as CONV3X3
from foveal.ops.experts import EXPERTS
from foveal.ops.long_conv import BACKENDS as LONG_CONV
from foveal.ops.scan2d import BACKENDS as SCAN2D
from foveal.ops.selective_scan import BACKENDS as SCAN
from foveal.ops.selective_scan import explain
from foveal.ops.ssd import BACKENDS as SSD
from foveal.ops.ssd import NONCAUSAL

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


def test_the_names_are_those_of_the_operators():
    found = {backend.name for each in (CONV3X3, EXPERTS, LONG_CONV, SCAN2D, SCAN, SSD, NONCAUSAL) for backend in each}
    assert found == set(module.NAMES)
    assert all("eager" in {backend.name for backend in each} for each in (CONV3X3, LONG_CONV, SCAN2D, SCAN, SSD))


def test_a_backend_in_force_wins_over_auto_and_only_over_it(monkeypatch):
    monkeypatch.setattr(module, "NAMES", (*module.NAMES, "quick", "plain"))
    with use_backend("plain"):
        assert choose(BACKENDS, "auto", tensor=None).name == "plain"
        assert choose(BACKENDS, "quick", tensor=None).name == "quick"
        assert reasons(BACKENDS, None) == {
            "quick": "set aside: use_backend('plain') is in force", "plain": "can run"
        }  # fmt: skip
        with use_backend("auto"):
            assert choose(BACKENDS, "auto", tensor=None).name == "quick"
    assert choose(BACKENDS, "auto", tensor=None).name == "quick"
    with use_backend("quick"), pytest.raises(BackendError, match="'quick' cannot run: there is no quick here; buy one"):
        choose(BACKENDS, "auto", tensor=1)
    with use_backend("eager"):  # which these have not
        assert choose(BACKENDS, "auto", tensor=None).name == "quick"


def test_an_unknown_backend_is_not_put_in_force():
    with (
        pytest.raises(ValueError, match=r"use_backend takes one of auto, native, .*reference, got 'fast'"),
        use_backend("fast"),
    ):
        pass


def test_threads_choose_for_themselves():
    seen = []
    with use_backend("eager"):
        thread = threading.Thread(target=lambda: seen.append(choose(SSD, "auto", torch.ones(1)).name))
        thread.start()
        thread.join()
        assert choose(SSD, "auto", torch.ones(1)).name == "eager"
    assert seen == [choose(SSD, "auto", torch.ones(1)).name]


@pytest.mark.parametrize("name", ["eager", "reference"])
def test_every_operator_obeys_a_backend_in_force(name):
    """Exactly the result of the named one, which differs from the kernel's in the last bits."""
    given = torch.rand(6, 2, 8, 50, generator=torch.Generator().manual_seed(0))
    u, delta, B, C = given[0], given[1], given[2, :, :3], given[3, :, :3]  # noqa: N806
    rates = -given[4, 0, :, :3].contiguous()
    x, dt = u.mT[..., None], delta.mT
    calls = [
        lambda **kw: selective_scan(u, delta, rates, B, C, **kw),
        lambda **kw: ssd(x, dt, rates[:, 0], B.mT[:, :, None], C.mT[:, :, None], **kw),
        lambda **kw: long_conv(u, given[5, 0], **kw),
    ]
    for call in calls:
        with use_backend(name):
            assert torch.equal(call(), call(backend=name))
    with use_backend(name):
        assert explain()["reference" if name == "eager" else "eager"] == f"set aside: use_backend({name!r}) is in force"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixed_precision_does_not_reach_the_products(dtype):
    x, dt = torch.randn(2, 1, 50, 2, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    dt = dt[..., 0].float().abs()
    calls = [
        lambda **kw: ssd(x, dt, -torch.ones(2), x[:, :, :1], x[:, :, 1:], **kw),
        lambda **kw: ssd_noncausal(x, dt, -torch.ones(2), x[:, :, :1], x[:, :, 1:], **kw),
        lambda **kw: long_conv(x[0].permute(1, 2, 0), x[0, :, 0].mT, **kw),
    ]
    for call, names in zip(calls, (("native", "eager"), ("eager",), ("eager", "butterfly2")), strict=True):
        for name in names:
            if name == "native" and explain()["native"] != "can run":
                continue
            wanted = call(backend=name)
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(call(backend=name), wanted)


def test_gradients_go_to_what_needs_them():
    x, y = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0)
    found = differentiable_gradients(lambda a, b, _: (a * a * b, a), (x, y, None), (torch.tensor(1.0), None))
    assert found[0] == 12
    assert found[1:] == [None, None]
    assert torch.autograd.grad(found[0], x)[0] == 6
