"""Evidence for LIPT: folded, sparse windows beside a gather and beside plain ones, and SwinIR of the same size."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import TypeVar

import torch
from torch import Tensor, nn

from foveal.evidence.rivals.swinir import SwinIR
from foveal.evidence.tasks import photos
from foveal.evidence.timing import call
from foveal.measure.cost import count_macs, count_parameters
from foveal.models.restore.lipt import LIPT, SparseWindowAttention
from foveal.nn.windows import joined, windowed
from foveal.record import bound, equal, faster, kept

Network = TypeVar("Network", bound=nn.Module)
STEPS = 200
WINDOW, SHIFT = 8, 4
small = partial(LIPT, dim=16, depth=4)
swin = partial(SwinIR, dim=32, depths=(4,), num_heads=4)  # as many parameters as the small LIPT, folded


def _drawn(network: Network) -> Network:
    """A network all of whose parameters and statistics count, in evaluation."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, x in [*network.named_parameters(), *network.named_buffers()]:
            if name.endswith("running_var"):
                x.copy_(0.5 + torch.rand(x.shape, generator=generator))
            elif (x.is_floating_point() and not name.endswith(("filter", "mean"))) or name.endswith("running_mean"):
                x.add_(0.02 * torch.randn(x.shape, generator=generator))
    return network.eval()


def _output(*, folded: bool) -> Tensor:
    torch.manual_seed(0)
    network, x = _drawn(LIPT(2, dim=32, depth=4)), torch.rand(2, 3, 23, 31)
    with torch.inference_mode():
        return (network.fold() if folded else network)(x)


class _Attention(nn.Module):
    """An attention layer with one output; with `plain`, both halves of the channels have plain windows."""

    def __init__(self, dim: int, *, plain: bool) -> None:
        super().__init__()
        self.layer, self.plain = SparseWindowAttention(dim, WINDOW), plain

    def forward(self, x: Tensor) -> Tensor:
        if not self.plain:
            return self.layer(x)[0]
        found = []
        for half in self.layer.project(x).chunk(2, 1):
            query, value = windowed(half.permute(0, 2, 3, 1), (WINDOW, WINDOW)).chunk(2, -1)
            found.append((query @ query.mT).softmax(-1) @ value)
        out = joined(torch.cat(found, -1), (WINDOW, WINDOW), *x.shape[2:])
        return self.layer.out(out.permute(0, 3, 1, 2))


def _macs(*, plain: bool) -> float:
    return count_macs(_Attention(64, plain=plain), (1, 64, 96, 128))


def _attended(*, gathered: bool) -> Tensor:
    """Shifted attention, or the same by picking each token of each window from the map by its place."""
    torch.manual_seed(0)
    layer, x = _drawn(SparseWindowAttention(12, WINDOW, shift=SHIFT)).double(), torch.rand(2, 12, 16, 24).double()
    with torch.inference_mode():
        if not gathered:
            return layer(x)[0]
        height, width = x.shape[2:]
        made = layer.project(x)
        out = torch.empty_like(x)
        near = range(WINDOW)
        far = [*range(0, WINDOW, 2), *range(WINDOW + 1, 2 * WINDOW, 2)]
        for top, left in product(range(SHIFT, height, WINDOW), range(SHIFT, width, WINDOW)):
            put = [((top + i) % height, (left + j) % width) for i, j in product(near, near)]
            for half, taken in ((slice(0, 6), near), (slice(6, 12), far)):
                tokens = torch.stack(
                    [made[:, :, (top + i) % height, (left + j) % width] for i, j in product(taken, taken)], 1
                )
                query, value = tokens.chunk(2, -1)[half.start // 6].chunk(2, -1)
                mixed = (query @ query.mT).softmax(-1) @ value
                for (i, j), token in zip(put, mixed.unbind(1), strict=True):
                    out[:, half, i, j] = token
        return layer.out(out)


def _folded() -> LIPT:
    return small(2).fold()


def _gain(seed: int) -> float:
    return photos.gain(photos.trained(small, 2, steps=STEPS, seed=seed), 2)


CLAIMS = (
    equal(
        "Folded, the network equals the one with branches, for drawn weights and statistics.",
        ours=lambda: _output(folded=True),
        theirs=lambda: _output(folded=False),
        tolerance=1e-4,
        clause=1,
    ),
    bound(
        "Half sparse windows take as many multiply-adds as plain 8×8 windows, 64 channels.",
        paper="no extra cost",
        value=lambda: _macs(plain=False) / _macs(plain=True),
        at_least=1.0,
        at_most=1.0,
        clause=2,
    ),
    equal(
        "Sparse and plain windows, shifted, equal attention among tokens that are gathered one by one.",
        ours=lambda: _attended(gathered=False),
        theirs=lambda: _attended(gathered=True),
        tolerance=1e-9,
        clause=3,
    ),
    photos.better(
        small,
        "After the same steps a small ×2 is not below a SwinIR with as many parameters.",
        than=swin,
        scale=2,
        steps=STEPS,
        paper="Urban100 ×4: above SwinIR-light",
        clause=4,
    ),
    faster(
        "Folded, it takes less time on a CPU than that SwinIR, 96×96.",
        paper="real-time on a GPU",
        ours=call(_folded, 1, 3, 96, 96),
        theirs=call(partial(swin, 2), 1, 3, 96, 96),
        clause=4,
    ),
    bound(
        "The two have the same number of parameters to 2 %.",
        paper="",
        value=lambda: count_parameters(_folded()) / count_parameters(swin(2)),
        at_least=0.98,
        at_most=1.02,
        clause=4,
    ),
    kept(
        "The small network has learnt in its steps: it is above bicubic.",
        paper="",
        quality=_gain,
        at_least=0.0,
        data=f"{STEPS} steps on bsds400; first 30 of Set5, Set14 and BSD100, ×2, luminance, shave 2",
        needs=photos.NEEDS,
        beyond="what is compared has been learnt",
    ),
)
