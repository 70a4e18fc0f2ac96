"""Evidence for Tutel: the dense one-hot einsum of the same capacity, and two processes beside one.

Loads fall as 1, ½, ⅓, … over the experts. The two processes are started with gloo on this machine; each keeps one
layer, calls it in every mode and never moves its weights.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from foveal.evidence.rehearsal import cached
from foveal.evidence.rivals.padded_experts import draw, einsum_mlp, with_gradients
from foveal.measure.cost import peak_memory
from foveal.nn.tutel import MODES, Tutel, tutel_mlp
from foveal.record import equal, faster, smaller

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS, DIM, HIDDEN, EXPERTS, TOP_K = 4096, 384, 1536, 16, 2
SIZES = "4,096 tokens of 384 channels, 16 experts, 2 a token, capacity factor 1"
PROCESSES = 2


def _sparse(x: Tensor, w1: Tensor, w2: Tensor, gates: Tensor, experts: Tensor, *, factor: float = 1.0) -> Tensor:
    """Ours with the second weights the other way around, as the rival takes them."""
    return tutel_mlp(x, w1, w2.mT, gates, experts, capacity_factor=factor)


def _dense(x: Tensor, w1: Tensor, w2: Tensor, gates: Tensor, experts: Tensor, *, factor: float = 1.0) -> Tensor:
    capacity = None if factor == 0 else TOP_K * int(factor * -(-len(x) // len(w1)))
    return einsum_mlp(x, w1, w2, gates, experts, capacity=capacity)


def _small(layer: Callable[..., Tensor], factor: float) -> Tensor:
    """Output and gradients of a layer with three experts that no token goes to, each over its largest value."""
    found = with_gradients(partial(layer, factor=factor), draw(301, 24, 40, EXPERTS, TOP_K, unused=3))
    return torch.cat([t.flatten() / t.abs().max() for t in found])


def _step(layer: Callable[..., Tensor]) -> None:
    with_gradients(layer, draw(ROWS, DIM, HIDDEN, EXPERTS, TOP_K))


def _peak(layer: Callable[..., Tensor]) -> float:
    return float(peak_memory(partial(_step, layer)))


def _timed(layer: Callable[..., Tensor], device: str = "cpu") -> Callable[[], None]:
    given = {name: t.to(device) for name, t in draw(ROWS, DIM, HIDDEN, EXPERTS, TOP_K).items()}

    def run() -> None:
        with_gradients(layer, given)
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def _layer(num_experts: int, group: dist.ProcessGroup | None) -> Tutel:
    """A layer whose weights are the same for any number of processes."""
    generator = torch.Generator().manual_seed(0)
    layer = Tutel(12, hidden=10, num_experts=num_experts, capacity_factor=0.0, group=group)
    whole = [torch.randn(num_experts * 10, 12, generator=generator) for _ in range(2)]
    with torch.no_grad():
        layer.router.weight.copy_(torch.randn(num_experts, 12, generator=generator))
        for parameter, value in zip((layer.w1, layer.w2), whole, strict=True):
            parameter.copy_(value.chunk(layer.world)[layer.rank])
    return layer


def _stepped(layer: Tutel, mode: str) -> dict[str, Tensor]:
    """Outputs of this process's tokens, and the gradients of a step."""
    generator = torch.Generator().manual_seed(1)
    tokens, probes = (torch.randn(34, 12, generator=generator).chunk(layer.world)[layer.rank] for _ in range(2))
    layer.zero_grad()
    x = tokens.clone().requires_grad_()
    y, _ = layer(x, mode=mode)
    (y * probes).sum().backward()
    assert x.grad is not None
    assert layer.router.weight.grad is not None
    assert layer.w1.grad is not None
    assert layer.w2.grad is not None
    router = layer.router.weight.grad.clone()
    if layer.group is not None:
        dist.all_reduce(router, group=layer.group)
    return {"y": y.detach(), "x": x.grad, "w1": layer.w1.grad, "w2": layer.w2.grad, "router": router}


def work(folder: str, rank: int) -> None:
    """Body of each process: all modes of one layer after each other, results to a file.

    Args:
        folder: folder for the results and for what the processes find each other by.
        rank: rank of the process.
    """
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", PROCESSES)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES)
    found: dict[str, dict[str, Tensor]] = {}
    for count, modes in ((4, MODES), (3, ("data", "sharded"))):  # three experts: a share ends inside the second
        layer = _layer(count, dist.group.WORLD)
        found |= {f"{mode} {count}": _stepped(layer, mode) for mode in modes}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@cached(maxsize=1)
def together() -> dict[str, dict[str, Tensor]]:
    """Results of two processes, joined: "mode experts" → outputs and gradients.

    Returns:
        Outputs and gradients of tokens and weights in the order of the ranks; the router's is the sum.

    Raises:
        RuntimeError: one of the processes failed.
    """
    path = os.pathsep.join([str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        code = "import sys; from foveal.evidence.nn.tutel import work; work(sys.argv[1], int(sys.argv[2]))"
        started = [
            subprocess.Popen(
                [sys.executable, "-c", code, folder, str(rank)],
                stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path},
            )
            for rank in range(PROCESSES)
        ]
        said = [process.communicate(timeout=120)[1].decode(errors="replace") for process in started]
        if any(process.returncode for process in started):
            raise RuntimeError(f"a process of the group failed: {' / '.join(s.strip()[-300:] for s in said)}")
        parts = [torch.load(f"{folder}/{rank}.pt") for rank in range(PROCESSES)]
    return {
        mode: {
            name: values[0] if name == "router" else torch.cat(values)
            for name, values in ((name, [part[mode][name] for part in parts]) for name in parts[0][mode])
        }
        for mode in parts[0]
    }


def _joined(found: dict[str, Tensor]) -> Tensor:
    return torch.cat([t.flatten() / t.abs().max() for t in found.values()])


def _two(mode: str, count: int) -> Tensor:
    return _joined(together()[f"{mode} {count}"])


def _one(count: int) -> Tensor:
    return _joined(_stepped(_layer(count, None), "data"))


CLAIMS = (
    equal(
        "Output and gradients equal the one-hot einsum's with capacity factor 1, which drops tokens.",
        ours=partial(_small, _sparse, 1.0),
        theirs=partial(_small, _dense, 1.0),
        clause=1,
    ),
    equal(
        "So they do with as much capacity as the fullest expert needs.",
        ours=partial(_small, _sparse, 0.0),
        theirs=partial(_small, _dense, 0.0),
        clause=1,
    ),
    smaller(
        f"A training step takes less memory than the einsum, {SIZES}, measured in a process each.",
        paper="",
        ours=partial(_peak, _sparse),
        theirs=partial(_peak, _dense),
        clause=2,
    ),
    faster(
        f"It takes less time, {SIZES}.",
        paper="",
        ours=partial(_timed, _sparse),
        theirs=partial(_timed, _dense),
        clause=2,
    ),
    *(
        equal(
            f"Two processes, mode {mode!r}, {count} experts: output and gradients equal one process's.",
            paper="no mathematical inequivalence, no migration",
            ours=partial(_two, mode, count),
            theirs=partial(_one, count),
            clause=3,
        )
        for count, modes in ((4, MODES), (3, ("data", "sharded")))
        for mode in modes
    ),
    faster(
        f"On a GPU it takes less time than the einsum, {SIZES}.",
        paper="4.96× against earlier systems on 16 A100",
        ours=partial(_timed, _sparse, "cuda"),
        theirs=partial(_timed, _dense, "cuda"),
        needs=("gpu",),
        clause=4,
    ),
)
