"""Evidence for FFNet: its mixer as an ONNX file, counts, and FFNified attention beside attention in windows."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import onnx
import torch
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from foveal.evidence.tasks import cifar10
from foveal.evidence.tasks.zoo import MixerNet
from foveal.evidence.timing import call
from foveal.export.onnx import to_onnx
from foveal.models.backbone.ffnet import (
    FFNifiedAttention,
    ffnet_1,
    ffnet_2,
    ffnet_3,
    ffnet_4,
    ffnified_attention,
    ffnified_attention_reference,
)
from foveal.nn.windows import WindowAttention
from foveal.record import bound, equal, faster, macs, params
from foveal.runtime.ort import load_onnxruntime

if TYPE_CHECKING:
    from collections.abc import Callable

PLAIN = {"Add", "Conv", "Div", "Erf", "Gelu", "Mul"}  # convolutions, what GELU is made of, elementwise
STEPS, DIM = 200, 40


def _mixer() -> nn.Module:
    """The mixer with its branches, with weights and statistics drawn."""
    torch.manual_seed(0)
    mixer = FFNifiedAttention(24).eval()
    for name, value in mixer.state_dict().items():
        if "running_var" in name:
            value.uniform_(0.5, 2)
        elif "num_batches" not in name:
            value.normal_(std=0.3)
    return mixer


class Windows(nn.Module):
    """The attention version: attention in windows, (B, C, H, W) to the same.

    Args:
        dim: C, a multiple of `num_heads`.
        side: side of the windows.
        num_heads: number of heads.
    """

    def __init__(self, dim: int, *, side: int = 8, num_heads: int = 2) -> None:
        super().__init__()
        self.attention = WindowAttention(dim, num_heads, (side, side))

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def operators(network: nn.Module, dim: int) -> Counter[str]:
    """Operators in the ONNX file of a mixer.

    Args:
        network: (B, C, H, W) to the same.
        dim: C.

    Returns:
        Name of an operator → number of its nodes.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "mixer.onnx"
        to_onnx(network, path, torch.randn(2, dim, 16, 16))
        return Counter(node.op_type for node in onnx.load(path).graph.node)


def others(found: Counter[str]) -> float:
    """Nodes of other operators than the plain ones.

    Args:
        found: name of an operator → number of its nodes.

    Returns:
        Number of nodes; all of them, and at least 1, unless there are three convolutions.
    """
    if found["Conv"] != 3:
        return float(max(1, sum(found.values())))
    return float(sum(count for name, count in found.items() if name not in PLAIN))


@torch.no_grad()
def _outputs(*, exported: bool) -> Any:
    """What the mixer gives on a map of another size than it was exported with."""
    x = torch.randn(3, 24, 13, 21, generator=torch.Generator().manual_seed(0))
    if not exported:
        return _mixer()(x)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "mixer.onnx"
        to_onnx(_merged(_mixer)(), path, torch.randn(2, 24, 16, 16))
        session = load_onnxruntime().InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def _read(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    torch.manual_seed(0)
    return function(torch.randn(2, 6, 13, 11), *(torch.randn(6, 1, 7, 7) / 7 for _ in range(2)))


def _merged(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A network as it is used: branches and norms in the convolutions."""
    return lambda: reparameterize_model(build().eval())


def attending(dim: int = DIM) -> MixerNet:
    """The attention version of the small network: windows of 8×8, those of the second block shifted.

    Args:
        dim: channels of the first stage, even.

    Returns:
        (B, 3, 32, 32) to (B, 10).
    """
    network: Any = MixerNet(Windows, dim)
    network.stage1[1].mixer.attention.shift = (4, 4)  # a window is the whole map of the second stage
    built: MixerNet = network
    return built


ffnified = partial(MixerNet, FFNifiedAttention, DIM)

SIZES = (
    ("1", ffnet_1, "13.7 M", "2.9 G", 256),
    ("2", ffnet_2, "26.9 M", "6.0 G", 256),
    ("3", ffnet_3, "48.3 M", "10.1 G", 256),
    ("4", ffnet_4, "79.2 M", "43.1 G", 384),
)

CLAIMS = (
    bound(
        "The ONNX file of the mixer has three convolutions and nothing else than GELU and elementwise operators.",
        paper="only convolutions and GELU",
        value=lambda: others(operators(_merged(_mixer)(), 24)),
        at_most=0.0,
        unit="nodes of other operators",
        clause=1,
    ),
    equal(
        "On a map of another size, the file gives what the mixer with its branches gives in torch.",
        ours=lambda: _outputs(exported=True),
        theirs=lambda: _outputs(exported=False),
        clause=1,
    ),
    equal(
        "FFNified attention is attention: products with keys, an activation, sums of values.",
        ours=lambda: _read(ffnified_attention),
        theirs=lambda: _read(ffnified_attention_reference),
        beyond="the frame of query, key and value",
    ),
    *(
        params(f"FFNet-{name}, merged.", paper=size, model=_merged(build), expect=size, beyond="sizes as published")
        for name, build, size, _, _ in SIZES
    ),
    *(
        macs(
            f"FFNet-{name} at {side}×{side}, merged, within 3 %.",
            paper=cost,
            model=_merged(build),
            shape=(1, 3, side, side),
            expect=cost,
            tolerance=0.03,  # FFNet-1's is 2.98 G
            beyond="cost as published",
        )
        for name, build, _, cost, side in SIZES
    ),
    *(
        faster(
            f"The mixer takes less time than attention in 7×7 windows, {dim} channels of {side}×{side}.",
            paper="less latency than attention",
            ours=call(_merged(partial(FFNifiedAttention, dim)), 1, dim, side, side),
            theirs=call(partial(WindowAttention, dim, dim // 32, (7, 7)), 1, side, side, dim),
            clause=2,
        )
        for dim, side in ((96, 56), (384, 14))
    ),
    cifar10.better(
        ffnified,
        "A small network with FFNified attention is at least as accurate as with attention in windows of 8×8.",
        than=attending,
        steps=STEPS,
        paper="as accurate as with attention, or more",
        clause=3,
    ),
)
