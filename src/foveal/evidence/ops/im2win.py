"""Evidence for Im2win: the twelve layers of the paper's benchmark, for one picture.

The layers are those of the authors' code: channels, side of the input, output channels, side of the kernel, stride.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.ops.im2win import im2col_elements, im2win_conv2d, im2win_elements
from foveal.ops.im2win.reference import windows
from foveal.record import bound, equal, faster, smaller

if TYPE_CHECKING:
    from collections.abc import Callable

LAYERS = (
    *((3, 227, 96, 11, 4), (3, 231, 96, 11, 4), (3, 227, 64, 7, 2), (32, 224, 64, 7, 2)),
    *((96, 24, 256, 5, 1), (256, 12, 512, 3, 1), (3, 224, 64, 3, 1), (64, 112, 128, 3, 1)),
    *((64, 56, 64, 3, 1), (128, 28, 128, 3, 1), (256, 14, 256, 3, 1), (512, 7, 512, 3, 1)),
)
FLOAT = 4  # bytes


def _layer(channels: int, side: int, out: int, kernel: int, _: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(side)
    x = torch.randn(1, channels, side, side, generator=generator)
    return x, torch.randn(out, channels, kernel, kernel, generator=generator) / (channels * kernel**2) ** 0.5


def _unfolded(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """im2col and a product of matrices."""
    kernel = weight.shape[2]
    side = (x.shape[2] - kernel) // stride + 1
    return (weight.flatten(1) @ F.unfold(x, kernel, stride=stride)).unflatten(2, (side, side))


def _convolved(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    return im2win_conv2d(x, weight, stride=stride)


def _outputs(convolve: Callable[[Tensor, Tensor, int], Tensor]) -> Tensor:
    """Outputs of the twelve layers, one after the other."""
    with torch.inference_mode():
        return torch.cat([convolve(*_layer(*layer), layer[4]).flatten() for layer in LAYERS])


def _run(convolve: Callable[[Tensor, Tensor, int], Tensor]) -> Callable[[], list[Tensor]]:
    given = [(*_layer(*layer), layer[4]) for layer in LAYERS]

    def run() -> list[Tensor]:
        with torch.inference_mode():
            return [convolve(*tensors) for tensors in given]

    return run


def _bytes(count: Callable[..., int], layer: tuple[int, ...]) -> int:
    channels, side, _, kernel, stride = layer
    return FLOAT * count((1, channels, side, side), (kernel, kernel), stride)


def _largest_share() -> float:
    """Largest share of im2col's bytes among the layers with k > 1 and stride 1, both buffers made and measured."""
    shares = []
    for layer in LAYERS:
        kernel, stride = layer[3:]
        if kernel > 1 and stride == 1:
            x = torch.empty(1, *layer[:2], layer[1], device="meta")
            shares.append(windows(x, kernel, stride).nbytes / F.unfold(x, kernel, stride=stride).nbytes)
    return max(shares)


CLAIMS = (
    equal(
        "Outputs of the twelve layers are those of torch's conv2d, by the compiled kernel if it is installed.",
        ours=partial(_outputs, _convolved),
        theirs=partial(_outputs, lambda x, weight, stride: torch.conv2d(x, weight, None, stride)),
        tolerance=1e-4,
        clause=1,
    ),
    equal(
        "Those in plain torch are, too.",
        ours=partial(_outputs, lambda x, weight, stride: im2win_conv2d(x, weight, stride=stride, backend="eager")),
        theirs=partial(_outputs, lambda x, weight, stride: torch.conv2d(x, weight, None, stride)),
        tolerance=1e-4,
        clause=1,
    ),
    bound(
        "The buffer of every layer with k > 1 and stride 1 is smaller than im2col's, the largest share.",
        paper="kh·W for kh·kw·W'",
        value=_largest_share,
        at_most=0.999,
        clause=2,
    ),
    smaller(
        "Bytes of all twelve buffers against im2col's, by the formula.",
        paper="less memory",
        ours=lambda: sum(_bytes(im2win_elements, layer) for layer in LAYERS),
        theirs=lambda: sum(_bytes(im2col_elements, layer) for layer in LAYERS),
        at_least=2.0,
        clause=2,
    ),
    faster(
        "The twelve layers in turn against unfold and matmul.",
        paper="3.5× the speed of im2col on a GPU",
        ours=lambda: _run(_convolved),
        theirs=lambda: _run(_unfolded),
        clause=3,
    ),
    equal(
        "On a GPU a kernel of its own equals conv2d; there is none yet.",
        ours=lambda: _on_gpu(lambda x, weight, stride: im2win_conv2d(x, weight, stride=stride, backend="triton")),
        theirs=lambda: _on_gpu(lambda x, weight, stride: torch.conv2d(x, weight, None, stride)),
        tolerance=1e-4,
        needs=("gpu",),
        clause=4,
    ),
)


def _on_gpu(convolve: Callable[[Tensor, Tensor, int], Tensor]) -> Tensor:
    def there(x: Tensor, weight: Tensor, stride: int) -> Tensor:
        return convolve(x.double().cuda(), weight.double().cuda(), stride).cpu()  # float32 may be rounded to TF32

    return _outputs(there)
