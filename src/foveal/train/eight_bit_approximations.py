"""8-bit approximations: what data-parallel processes send each other is a byte for each value, summed in 32 bits.

*Source*: T. Dettmers, "8-Bit Approximations for Parallelism in Deep Learning", 2015 (arXiv:1511.04561), sections 2, 3.
A tensor is divided by its largest absolute value, a = max |x|, and each value becomes the nearest of 256 numbers. In
the dynamic tree type a byte is a sign, e zeros, a one, and f = 6 - e bits of a fraction:

    value = ± 10⁻ᵉ (1 + 9 (j + 1/2) / 2ᶠ) / 10,   j = 0 … 2ᶠ - 1,   e = 0 … 6

so that large values have six bits of fraction and small ones reach down to 5.5·10⁻⁷. The two bytes that are left stand
for 0 and 1. Encoding searches the nearest number, decoding looks it up. In data parallelism each of W processes sends
the codes and the largest value of its gradients, and adds up those of all in 32 bits: g = Σ_w a_w table[codes_w] / W.

*Differs from the paper*: codes are positions in the sorted table instead of the bits above; the numbers are the same.
Gradients are gathered from all processes instead of travelling in a ring. As in the paper, what a step rounds away is
not carried to the next.
*Provenance*: written from the paper; the 256 numbers differ from those of bitsandbytes' `create_dynamic_map` by 6e-8 at
most (float32).
"""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import GradBucket, ProcessGroup  # no postponed annotations: DDP reads those of a hook
from torch.futures import Future

from foveal.cases import Procedure
from foveal.record import Method, Paper

__all__ = ["EightBitExchange", "decode", "dynamic_tree", "eight_bit_hook", "encode", "linear"]

EXPONENTS = 7  # zeros before the indicator bit: 0 to 6


def dynamic_tree() -> Tensor:
    """The numbers of the dynamic tree type.

    Returns:
        Table, (256,) float32 in [-0.993, 1], in ascending order.
    """
    halves = []
    for zeros in range(EXPONENTS):
        steps = 2 ** (EXPONENTS - 1 - zeros)
        fraction = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
        halves.append(10.0**-zeros * (1 + 9 * fraction) / 10)
    positive = torch.cat(halves)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return torch.cat([-positive, ends, positive]).sort().values.float()


def linear() -> Tensor:
    """The numbers of symmetric 8-bit integers, for comparison.

    Returns:
        Table, (255,) float32, k / 127 for k from -127 to 127.
    """
    return torch.arange(-127, 128) / 127


@cache
def _bounds(device: torch.device) -> tuple[Tensor, Tensor]:
    """The dynamic tree's table on a device, and the numbers between neighbours."""
    table = dynamic_tree().to(device)
    return table, (table[1:] + table[:-1]) / 2


def encode(x: Tensor, table: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Approximate a tensor by a byte for each value.

    Args:
        x: any shape, floating point, finite.
        table: at most 256 numbers in ascending order, within [-1, 1]; None for the dynamic tree.

    Returns:
        Codes, uint8 of the same shape, and the largest absolute value, () float32.

    Raises:
        ValueError: the tensor is empty or has a value that is not finite, or the table has more than 256 numbers.
    """
    if table is not None and len(table) > 256:
        raise ValueError(f"a byte stands for at most 256 numbers, got a table of {len(table)}; use a smaller one")
    if not x.numel():
        raise ValueError("a tensor with at least one value is wanted, got an empty one; leave it out")
    largest = x.detach().abs().amax().float()
    if not torch.isfinite(largest):
        raise ValueError("finite values are wanted, got inf or nan; skip the step or lower the learning rate")
    bounds = _bounds(x.device)[1] if table is None else (table[1:] + table[:-1]) / 2
    scaled = x.detach().float() / largest.clamp(min=torch.finfo(torch.float32).tiny)
    return torch.bucketize(scaled, bounds).to(torch.uint8), largest


def decode(codes: Tensor, largest: Tensor, table: Tensor | None = None) -> Tensor:
    """The values that codes stand for.

    Args:
        codes: as `encode` returns them.
        largest: largest absolute value, broadcast to the codes.
        table: the table of `encode`; None for the dynamic tree.

    Returns:
        Values, float32.
    """
    table = _bounds(codes.device)[0] if table is None else table
    return table[codes.long()] * largest


@dataclass
class EightBitExchange:
    """What the hook works with, and what it has sent.

    `sent` counts the bytes of codes and scales that this process has handed over, `plain` those that the same gradients
    take in their own type.

    Args:
        group: processes that exchange gradients; None for all.
    """

    group: ProcessGroup | None = None
    sent: int = field(default=0, init=False)
    plain: int = field(default=0, init=False)


def eight_bit_hook(state: EightBitExchange, bucket: GradBucket) -> Future[Tensor]:
    """Average gradients over processes, sent as bytes: a hook of `DistributedDataParallel.register_comm_hook`.

    Args:
        state: exchange that counts bytes; one for each model.
        bucket: gradients that are ready, of which each has a largest value of its own.

    Returns:
        Future of the averaged bucket.

    Raises:
        ValueError: a gradient has a value that is not finite.
    """
    flat, parts = bucket.buffer(), [g.reshape(-1) for g in bucket.gradients()]
    sizes = [part.numel() for part in parts]
    coded = [encode(part) for part in parts]
    codes, largest = torch.cat([c for c, _ in coded]), torch.stack([a for _, a in coded])
    state.sent += codes.nbytes + largest.nbytes
    state.plain += flat.nbytes
    world = dist.get_world_size(state.group)
    all_codes, all_largest = ([torch.empty_like(t) for _ in range(world)] for t in (codes, largest))
    works = [
        dist.all_gather(all_codes, codes, group=state.group, async_op=True),
        dist.all_gather(all_largest, largest, group=state.group, async_op=True),
    ]

    def averaged(_: Future[list[Future[Any]]]) -> Tensor:
        counts = torch.tensor(sizes, device=codes.device)
        total = torch.zeros_like(flat, dtype=torch.float32)
        for theirs, a in zip(all_codes, all_largest, strict=True):
            total += decode(theirs, a.repeat_interleave(counts))
        return flat.copy_(total / world)

    return torch.futures.collect_all([work.get_future() for work in works]).then(averaged)


def _there_and_back(seed: int) -> Tensor:
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(seed))
    return decode(*encode(x))


METHOD = Method(
    id=50,
    name="8-bit approximations",
    kind="procedure",
    summary="Processes that train together send gradients as bytes of a dynamic tree type and add them in 32 bits.",
    paper=Paper("8-Bit Approximations for Parallelism in Deep Learning", "T. Dettmers", 2015, "arXiv:1511.04561"),
    cases={
        "there_and_back": Procedure(
            _there_and_back,
            empty=lambda: encode(torch.empty(0)),
            refuses="a tensor with at least one value is wanted, got an empty one",
        )
    },
)
