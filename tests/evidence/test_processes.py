import pytest
import torch
import torch.distributed as dist

from foveal.evidence.processes import together
from foveal.evidence.rehearsal import rehearsal, rehearsing

pytestmark = pytest.mark.dear("starts processes")


def added(rank, *, start):
    total = torch.tensor(float(start + rank))
    dist.all_reduce(total)
    return {"rank": rank, "total": total, "rehearsing": rehearsing()}


def broken(rank):
    raise OSError(f"no such thing in {rank}")


def test_processes_find_each_other_and_hand_back_what_they_found(monkeypatch, request):
    monkeypatch.setenv("PYTHONPATH", str(request.path.parent))
    monkeypatch.setattr(added, "__module__", request.path.stem)
    with rehearsal():
        found = together(added, start=3)
    assert [part["rank"] for part in found] == [0, 1]
    assert all(part["total"] == 7 and part["rehearsing"] for part in found)
    monkeypatch.setattr(broken, "__module__", request.path.stem)
    with pytest.raises(RuntimeError, match=r"(?s)a process of the group failed: .*no such thing in 0"):
        together(broken, processes=1)
