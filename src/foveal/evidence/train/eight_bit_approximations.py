"""Evidence for 8-bit approximations: the table's numbers, errors over five decades, two processes on CIFAR-10.

The two processes hold half of each batch of 64 and exchange gradients after every step, as bytes or in 32 bits. Seeds,
batches and steps are the same. "Seed noise" is taken as one point: accuracies of the 32-bit runs spread by about that.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from foveal.evidence.processes import together
from foveal.evidence.rehearsal import cached
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import cifar10
from foveal.record import bound, equal, kept, smaller
from foveal.train.eight_bit_approximations import EightBitExchange, decode, dynamic_tree, eight_bit_hook, encode, linear

STEPS, BATCH, PROCESSES = 500, 64, 2
DATA = f"{STEPS} steps of {BATCH} pictures of CIFAR-10 in two processes, the first 2,000 test pictures; paired"
# Numbers of `create_dynamic_map(signed=True)` of bitsandbytes 0.50 by their place in the table
NUMBERS = {
    0: -0.992968738,
    1: -0.978906274,
    63: -0.107031256,
    64: -0.0985937491,
    96: -0.00971874967,
    120: -8.87499991e-05,
    126: -5.50000038e-07,
    127: 0.0,
    128: 5.50000038e-07,
    130: 7.7499999e-06,
    160: 0.0142187504,
    191: 0.107031256,
    192: 0.12109375,
    254: 0.992968738,
    255: 1.0,
}


def _relative_error(table: Tensor) -> float:
    """Mean relative error of values whose logarithm is uniform over five decades below the largest."""
    x = 10 ** (-5 * torch.rand(100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    x[0] = 1.0
    back = decode(*encode(x, table), table).double()
    return float(((back - x).abs() / x).mean())


def _by_bits() -> Tensor:
    """The table from the bytes: sign, zeros up to the indicator bit, fraction; 0 and 1 are bytes 0 and 128."""
    numbers = []
    for byte in range(256):
        sign, rest = byte >> 7, byte & 127
        if rest:
            bits = rest.bit_length() - 1
            fraction = (rest - (1 << bits) + 0.5) / (1 << bits)
            numbers.append((-1) ** sign * 10.0 ** (bits - 6) * (0.1 + 0.9 * fraction))
        else:
            numbers.append(float(sign))
    return torch.tensor(sorted(numbers))


def _network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, 2, 1), nn.GroupNorm(4, 32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, 2, 1), nn.GroupNorm(4, 64), nn.ReLU()),
        *(nn.Conv2d(64, 128, 3, 2, 1), nn.GroupNorm(4, 128), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)),
    )


def work(rank: int, *, seed: int, coded: bool) -> dict[str, Any]:
    """One process of a training.

    Args:
        rank: its rank.
        seed: seed of weights and batches, of all processes.
        coded: whether gradients are sent as bytes.

    Returns:
        Accuracy in percent, bytes sent and bytes in 32 bits, and the largest weight.
    """
    inputs, labels = cifar10.pictures("train")
    torch.manual_seed(seed)
    model = DistributedDataParallel(_network())
    state = EightBitExchange()
    if coded:
        model.register_comm_hook(state, eight_bit_hook)
    rows = torch.randint(len(labels), (STEPS, BATCH), generator=torch.Generator().manual_seed(seed))

    def batches(step: int) -> tuple[Tensor, Tensor]:
        own = rows[step].chunk(PROCESSES)[rank]
        return inputs[own], labels[own]

    def loss(network: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(network(pair[0]), pair[1])

    short_run(model, batches, loss, steps=STEPS, weight_decay=0.05)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    score = cifar10.accuracy(model.module) if rank == 0 else 0.0
    return {"accuracy": score, "sent": state.sent, "plain": state.plain, "weights": weights}


@cached(maxsize=6)
def trained(seed: int, *, coded: bool) -> list[dict[str, Any]]:
    """Results of both processes.

    Args:
        seed: seed of weights and batches.
        coded: whether gradients are sent as bytes.

    Returns:
        By rank, what `work` returns.
    """
    return together(work, processes=PROCESSES, seed=seed, coded=coded)


def _difference(seed: int) -> float:
    return trained(seed, coded=True)[0]["accuracy"] - trained(seed, coded=False)[0]["accuracy"]


def _learnt(seed: int) -> float:
    return trained(seed, coded=True)[0]["accuracy"] - cifar10.FLOOR


def _apart() -> float:
    first, second = (part["weights"] for part in trained(0, coded=True))
    return float((first - second).abs().max())


def _bytes(name: str) -> float:
    return float(trained(0, coded=True)[0][name])


CLAIMS = (
    equal(
        "The 256 numbers are those of the bytes: sign, zeros, indicator bit, fraction.",
        ours=dynamic_tree,
        theirs=_by_bits,
        tolerance=1e-7,
        clause=1,
    ),
    equal(
        "The 256 numbers at fifteen places are those of bitsandbytes' dynamic map.",
        ours=lambda: dynamic_tree()[list(NUMBERS)],
        theirs=lambda: torch.tensor([*NUMBERS.values()]),
        tolerance=1e-6,
        clause=1,
    ),
    smaller(
        "Mean relative error of values over five decades, beside symmetric 8-bit integers.",
        paper="",
        ours=lambda: _relative_error(dynamic_tree()),
        theirs=lambda: _relative_error(linear()),
        clause=2,
    ),
    kept(
        "A small network in two processes that send bytes is at most one point below the same with 32 bits.",
        paper="no loss on CIFAR-10",
        quality=_difference,
        at_least=-1.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        clause=3,
    ),
    smaller(
        "Bytes that a process sends in this training, codes and scales, beside 32-bit gradients.",
        paper="4",
        ours=partial(_bytes, "sent"),
        theirs=partial(_bytes, "plain"),
        at_least=3.9,
        needs=cifar10.NEEDS,
        clause=3,
    ),
    kept(
        "What is compared has been learnt: it is far above chance.",
        paper="",
        quality=_learnt,
        at_least=25.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        beyond="the network that sends bytes learns",
    ),
    bound(
        "Weights of the two processes after the training differ by nothing.",
        paper="",
        value=_apart,
        at_most=0.0,
        needs=cifar10.NEEDS,
        beyond="processes stay together",
    ),
)
