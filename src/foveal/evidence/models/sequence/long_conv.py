"""Evidence of foveal.models.sequence.long_conv."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from foveal.ops.long_conv import long_conv
from foveal.ops.long_conv.butterfly import traffic
from foveal.record import equal, faster, smaller

if TYPE_CHECKING:
    from collections.abc import Callable


def _noise(length: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 2, length, generator=generator), torch.randn(2, length, generator=generator)


def _lengths(backend: str) -> Tensor:
    """Two channels of noise at odd and even lengths up to 16K, one after the other."""
    return torch.cat([long_conv(*_noise(length), backend=backend) for length in (1, 63, 1000, 4096, 10007, 16384)], -1)


def _summed() -> Tensor:
    """The last of these, as the direct sum in double precision."""
    u, kernel = (x.double().numpy().reshape(2, -1) for x in _noise(16384))
    return torch.stack([torch.from_numpy(np.convolve(*pair)[:16384]) for pair in zip(u, kernel, strict=True)])


def _convolve(backend: str) -> Callable[[], Tensor]:
    torch.manual_seed(0)
    u, kernel = torch.randn(4, 32, 4096), torch.randn(32, 4096)

    def call() -> Tensor:
        with torch.inference_mode():
            return long_conv(u, kernel, backend=backend)

    return call


CLAIMS = (
    equal(
        "Order 2: two matrix products a transform give what torch.fft gives, to 16K places.",
        ours=lambda: _lengths("butterfly2"),
        theirs=lambda: _lengths("eager"),
        tolerance=1e-4,
    ),
    equal(
        "Order 3: so do three.",
        ours=lambda: _lengths("butterfly3"),
        theirs=lambda: _lengths("eager"),
        tolerance=1e-4,
    ),
    equal(
        "Order 3 gives the direct sum of 16K places.",
        ours=lambda: _lengths("butterfly3")[0, :, -16384:],
        theirs=_summed,
        tolerance=1e-4,
    ),
    smaller(
        "A fused butterfly moves fewer bytes than torch.fft by a model of passes over memory, 4K places.",
        paper="one pass while a sequence fits into fast memory",
        ours=lambda: traffic(4096, butterfly=True),
        theirs=lambda: traffic(4096, butterfly=False),
        at_least=2.2,
    ),
    smaller(
        "So it does at 64K places, where the sequence does not fit.",
        paper="three passes",
        ours=lambda: traffic(65536, butterfly=True),
        theirs=lambda: traffic(65536, butterfly=False),
        at_least=2.0,
    ),
    faster(
        "On a processor, not fused, butterflies of order 2 take less time than torch.fft, 4K places.",
        paper="2.2 times, fused, on an A100",
        ours=lambda: _convolve("butterfly2"),
        theirs=lambda: _convolve("eager"),
    ),
)
