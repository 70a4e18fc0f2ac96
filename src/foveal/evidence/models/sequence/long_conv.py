"""Evidence for FlashButterfly: butterflies against torch.fft and the direct sum, in values, bytes and time."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from foveal.evidence.rehearsal import cached
from foveal.ops.long_conv import long_conv
from foveal.ops.long_conv.butterfly import traffic
from foveal.record import equal, faster, smaller

if TYPE_CHECKING:
    from collections.abc import Callable


class Moved(TorchDispatchMode):
    """Counts the bytes that operations read and write; views count as none."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        written = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        places = {x.untyped_storage().data_ptr() for x in read}
        if not all(x.untyped_storage().data_ptr() in places for x in written):
            self.total += sum(x.numel() * x.element_size() for x in (*read, *written))
        return out


def _noise(length: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 2, length, generator=generator), torch.randn(2, length, generator=generator)


def _lengths(backend: str) -> Tensor:
    """Convolutions of two channels of noise at odd and even lengths up to 16K, concatenated."""
    return torch.cat([long_conv(*_noise(length), backend=backend) for length in (1, 63, 1000, 4096, 10007, 16384)], -1)


@cached(maxsize=1)
def _summed() -> Tensor:
    """The last of these convolutions, as the direct sum in double precision."""
    u, kernel = (x.double().numpy().reshape(2, -1) for x in _noise(16384))
    return torch.stack([torch.from_numpy(np.convolve(*pair)[:16384]) for pair in zip(u, kernel, strict=True)])


def _moved_by_fft(length: int) -> float:
    """Counted bytes of one channel with its skip."""
    u, kernel, skip = torch.randn(1, 1, length), torch.randn(1, length), torch.randn(1)
    with torch.inference_mode(), Moved() as counted:
        long_conv(u, kernel, skip, backend="eager")
    return float(counted.total)


def _convolve(backend: str, length: int, *, batch: int = 4, channels: int = 32, device: str = "cpu") -> Any:
    """Preparation of a convolution, for `faster`."""

    def prepare() -> Callable[[], Tensor]:
        torch.manual_seed(0)
        u, kernel = torch.randn(batch, channels, length).to(device), torch.randn(channels, length).to(device)

        def call() -> Tensor:
            with torch.inference_mode():
                out = long_conv(u, kernel, backend=backend)
            if device == "cuda":
                torch.cuda.synchronize()
            return out

        return call

    return prepare


def _on_gpu(backend: str) -> Tensor:
    """Result of the convolution that is timed on a GPU."""
    out: Tensor = _convolve(backend, 2048, batch=2, channels=8, device="cuda")()()
    return out.cpu()


CLAIMS = (
    equal(
        "Order 2: two matrix products a transform give what torch.fft gives, to 16K places.",
        ours=partial(_lengths, "butterfly2"),
        theirs=partial(_lengths, "eager"),
        tolerance=1e-4,
        clause=1,
    ),
    equal(
        "Order 3: so do three.",
        ours=partial(_lengths, "butterfly3"),
        theirs=partial(_lengths, "eager"),
        tolerance=1e-4,
        clause=1,
    ),
    equal(
        "Order 2 gives the direct sum of 16K places.",
        ours=lambda: _lengths("butterfly2")[0, :, -16384:],
        theirs=_summed,
        tolerance=1e-4,
        clause=1,
    ),
    equal(
        "Order 3 gives the direct sum of 16K places.",
        ours=lambda: _lengths("butterfly3")[0, :, -16384:],
        theirs=_summed,
        tolerance=1e-4,
        clause=1,
    ),
    smaller(
        "A fused butterfly moves fewer bytes than torch.fft by a model of passes over memory, 4K places.",
        paper="one pass while a sequence fits into fast memory",
        ours=lambda: traffic(4096, butterfly=True),
        theirs=lambda: traffic(4096, butterfly=False),
        at_least=2.2,
        clause=2,
    ),
    smaller(
        "So it does at 64K places, where the sequence does not fit.",
        paper="three passes",
        ours=lambda: traffic(65536, butterfly=True),
        theirs=lambda: traffic(65536, butterfly=False),
        at_least=2.0,
        clause=2,
    ),
    smaller(
        "The model charges torch.fft with no more bytes than its operations read and write, counted at 4K places.",
        paper="",
        ours=lambda: traffic(4096, butterfly=False),
        theirs=partial(_moved_by_fft, 4096),
        clause=2,
    ),
    equal(
        "On a GPU the fused kernel gives what torch.fft gives, 2K places.",
        ours=partial(_on_gpu, "triton"),
        theirs=partial(_on_gpu, "eager"),
        tolerance=1e-4,
        needs=("gpu",),
        clause=3,
    ),
    faster(
        "On a GPU the fused kernel takes less time than torch.fft, 64 sequences of 512 channels, 2K places.",
        paper="2.2 times on an A100",
        ours=_convolve("triton", 2048, batch=64, channels=512, device="cuda"),
        theirs=_convolve("eager", 2048, batch=64, channels=512, device="cuda"),
        needs=("gpu",),
        clause=3,
    ),
    faster(
        "On a processor, not fused, butterflies of order 2 take less time than torch.fft, 4K places.",
        paper="2.2 times, fused, on an A100",
        ours=_convolve("butterfly2", 4096),
        theirs=_convolve("eager", 4096),
        beyond="speed where there is no GPU",
    ),
)
