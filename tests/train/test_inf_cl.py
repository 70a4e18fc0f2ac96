import math
import queue
import threading

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from foveal.measure.saved import saved_bytes
from foveal.train import inf_cl
from foveal.train.inf_cl import InfCL, full_info_nce, inf_cl_loss


def drawn(pairs=13, dim=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(pairs, dim, generator=generator, dtype=dtype) for _ in range(2)]


def with_gradients(loss, q, k, **words):
    q, k = (x.detach().clone().requires_grad_() for x in (q, k))
    scale = torch.tensor(1.3, dtype=q.dtype, requires_grad=True)
    value = loss(q, k, scale=scale, **words)
    (2 * value).backward()
    return [value.detach(), q.grad, k.grad, scale.grad]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("pairs", "tile"), [(1, 1), (7, 3), (13, 4), (13, 13), (13, 100), (64, 16)])
def test_loss_and_gradients_are_those_of_the_whole_matrix(pairs, tile, symmetric):
    q, k = drawn(pairs)
    ours = with_gradients(inf_cl_loss, q, k, tile=tile, symmetric=symmetric)
    for got, wanted in zip(ours, with_gradients(full_info_nce, q, k, symmetric=symmetric), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-13)


def test_the_loss_by_hand():
    q, k = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    rows = (math.log(2) + math.log(1 + math.e) - 1) / 2  # S = [[1, 1], [0, 1]]
    columns = (math.log(math.e + 1) - 1 + math.log(2)) / 2
    assert float(inf_cl_loss(q, k, symmetric=False)) == pytest.approx(rows, abs=1e-6)
    assert float(inf_cl_loss(q, k, tile=1)) == pytest.approx((rows + columns) / 2, abs=1e-6)
    assert float(inf_cl_loss(torch.ones(9, 3), torch.ones(9, 3), tile=2)) == pytest.approx(math.log(9), abs=1e-6)


def test_large_similarities_overflow_nothing():
    q, k = drawn()
    for got in with_gradients(inf_cl_loss, 1e3 * q, k, tile=4):
        assert got.isfinite().all()


def test_gradcheck():
    q, k = (x.requires_grad_() for x in drawn(5, 3))
    scale = torch.tensor([0.8], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, k, s: inf_cl_loss(q, k, scale=s, tile=2), (q, k, scale))


class Threads(inf_cl._Ring):
    """A ring of threads; the group is its rank and, for each thread, places for messages in the order of sending."""

    def __init__(self, group):
        self.rank, self.inboxes = group
        self.world = len(self.inboxes)
        self.places = iter(range(10))

    def started(self, *tensors):
        at = next(self.places)
        self.inboxes[(self.rank + 1) % self.world][at].put([t.clone() for t in tensors])
        return lambda: self.inboxes[self.rank][at].get(timeout=10)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_ring_gives_the_loss_of_all_pairs(monkeypatch, world, symmetric):
    monkeypatch.setattr(inf_cl, "_Ring", Threads)
    q, k = drawn(12)
    inboxes, found = [[queue.Queue() for _ in range(10)] for _ in range(world)], {}

    def run(rank):
        own = q.chunk(world)[rank], k.chunk(world)[rank]
        found[rank] = with_gradients(inf_cl_loss, *own, symmetric=symmetric, tile=3, group=(rank, inboxes))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = with_gradients(full_info_nce, q, k, symmetric=symmetric)
    parts = [[found[rank][i] for rank in range(world)] for i in range(4)]
    for i, join in enumerate((torch.stack, torch.cat, torch.cat, torch.stack)):
        # the mean over processes, as data parallelism takes it
        got = join(parts[i]).mean(0) if join is torch.stack else join(parts[i]) / world
        torch.testing.assert_close(got, wanted[i], rtol=0, atol=1e-13)


def test_a_group_of_one_is_no_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        q, k = drawn()
        ours = with_gradients(inf_cl_loss, q, k, group=dist.group.WORLD)
    finally:
        dist.destroy_process_group()
    for got, wanted in zip(ours, with_gradients(inf_cl_loss, q, k), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.slow
def test_two_processes_give_the_loss_of_all_pairs():
    from foveal.evidence.train.inf_cl import _with_gradients, together

    for case, found in together().items():
        name, symmetric = case.split()
        wanted = _with_gradients(full_info_nce, getattr(torch, name), symmetric=symmetric == "True")
        for part, value in wanted.items():
            torch.testing.assert_close(found[part], value, rtol=1e-5, atol=1e-6)


def test_a_process_that_fails_is_told(monkeypatch):
    from foveal.evidence.train import inf_cl as evidence

    monkeypatch.setattr(evidence.sys, "executable", "false")
    with pytest.raises(RuntimeError, match="a process of the group failed"):
        evidence.together.__wrapped__()


def test_features_and_sums_are_all_that_is_kept():
    q, k = (x.requires_grad_() for x in drawn(64, 3))
    assert saved_bytes(lambda: inf_cl_loss(q, k, tile=8)) == 8 * (2 * 64 * 3 + 2 * 64 + 1)
    assert saved_bytes(lambda: full_info_nce(q, k)) > 8 * 2 * 64 * 64


def test_half_types_are_computed_in_float32():
    q, k = (x.bfloat16() for x in drawn())
    with torch.autocast("cpu", torch.bfloat16):
        loss = inf_cl_loss(q, k)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, full_info_nce(q.float(), k.float()))


def test_the_module_normalises_and_its_temperature_learns():
    q, k = drawn(dtype=torch.float32)
    module = InfCL(temperature=0.5, tile=4)
    loss = module(q, k)
    torch.testing.assert_close(loss, full_info_nce(F.normalize(q, dim=1), F.normalize(k, dim=1), scale=2.0))
    loss.backward()
    assert module.log_scale.grad.abs() > 0
    clamped = InfCL(temperature=1e-4, largest=2.0)(q, k)
    torch.testing.assert_close(clamped, loss)


def test_what_is_no_batch_is_told():
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"q and k must be pairs, .* got \(3, 2\) and \(2, 2\)"):
        inf_cl_loss(x, x[:2])
    with pytest.raises(ValueError, match=r"with n ≥ 1, got \(0, 2\) and \(0, 2\)"):
        inf_cl_loss(x[:0], x[:0])
    with pytest.raises(ValueError, match="tile must be at least 1, got 0; 1024 fits the caches"):
        inf_cl_loss(x, x, tile=0)
    with pytest.raises(ValueError, match=r"scale must be one number, got a tensor of shape \(3,\)"):
        inf_cl_loss(x, x, scale=torch.ones(3))
