"""Evidence for LambdaNetworks: its definition, timm's layer, what it keeps in memory, and a stage of convolutions."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.layers.bottleneck_attn import BottleneckAttn
from timm.layers.lambda_layer import LambdaLayer as TimmsLayer
from torch import Tensor, nn

from foveal.evidence.tasks import cifar10
from foveal.evidence.tasks.zoo import MixerNet
from foveal.measure.cost import count_parameters, peak_memory
from foveal.nn.lambda_networks import LambdaLayer, lambda_layer, lambda_layer_reference
from foveal.record import bound, equal, grows, params, smaller

if TYPE_CHECKING:
    from collections.abc import Callable

DIM = 64
SIDES = (16, 24, 32, 48, 64)
STEPS = 500


def _drawn(side: int = 7, window: int = 5) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    sizes = {"queries": (2, 4, 6), "keys": (2, 6), "values": (2, 5)}
    found = {name: torch.randn(*size, side, side + 2, generator=draw) for name, size in sizes.items()}
    return {**found, "weight": torch.randn(6, window, window, generator=draw)}


def _content_only(*, ours: bool) -> Tensor:
    """Without embeddings the layer is linear attention: values weighted by the keys, read by the queries."""
    given = _drawn()
    if ours:
        return lambda_layer(**{**given, "weight": torch.zeros_like(given["weight"])})
    shares, values = given["keys"].flatten(2).softmax(-1), given["values"].flatten(2)
    read = torch.einsum("bhkn,bkm,bvm->bhvn", given["queries"].flatten(3), shares, values)
    return read.reshape(2, 20, 7, 9)


def _beside_timm(window: int | None, *, ours: bool) -> Tensor:
    """Both layers in training mode with timm's weights; no window means an embedding of every displacement."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs: Any = TimmsLayer(24, feat_size=(11, 11), num_heads=4, dim_head=8, r=window)  # type: ignore[arg-type]
        x = torch.randn(2, 24, 11, 11)
    if not ours:
        return theirs(x).detach()
    layer = LambdaLayer(24, num_heads=4, dim_k=8, kernel_size=window or 21)
    for name in ("qkv", "norm_q", "norm_v"):
        getattr(layer, name).load_state_dict(getattr(theirs, name).state_dict())
    with torch.no_grad():
        if window is None:
            layer.conv_lambda.weight.copy_(theirs.pos_emb.permute(2, 0, 1)[:, None])
            layer.conv_lambda.bias.zero_()  # type: ignore[union-attr]
        else:
            layer.conv_lambda.weight.copy_(theirs.conv_lambda.weight.squeeze(-1))
            layer.conv_lambda.bias.copy_(theirs.conv_lambda.bias)  # type: ignore[union-attr]
        return layer(x)


def _ours(side: int) -> nn.Module:  # noqa: ARG001 - a builder of either layer takes the side
    return LambdaLayer(DIM, kernel_size=7)


def _theirs(side: int) -> nn.Module:
    return BottleneckAttn(DIM, feat_size=(side, side), num_heads=4, dim_head=16)


def _pixels(side: int) -> float:
    return float(side**2)


def _kept_bytes(side: int, build: Callable[[int], nn.Module]) -> float:
    """Bytes, without weights, that a layer saves for the backward pass on one picture of side×side."""
    with torch.device("meta"):
        layer, x = build(side).train(), torch.zeros(1, DIM, side, side, requires_grad=True)
    weights = {id(parameter) for parameter in layer.parameters()}
    found: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        origin = tensor if tensor._base is None else tensor._base
        if id(origin) not in weights:
            found[id(origin)] = origin
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x)
    return float(sum(tensor.untyped_storage().nbytes() for tensor in found.values()))


def _run(build: Callable[[int], nn.Module]) -> Tensor:
    with torch.inference_mode():
        return build(64).eval()(torch.randn(1, DIM, 64, 64))


def _convolution(dim: int) -> nn.Module:
    """As in a ResNet, a normalisation follows, here and after the lambda layer."""
    return nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim))


def _second_stage(dim: int) -> nn.Module:
    if dim == WIDTH:
        return _convolution(dim)
    return nn.Sequential(LambdaLayer(dim, kernel_size=7), nn.BatchNorm2d(dim))


WIDTH = 32
LAMBDAS = partial(MixerNet, _second_stage, WIDTH)
CONVOLUTIONS = partial(MixerNet, _convolution, WIDTH)


CLAIMS = (
    params(
        "timm's LambdaResNet-26-T.",
        paper="timm",
        model=partial(timm.create_model, "lambda_resnet26t"),
        expect=10_958_272,
        beyond="the network",
    ),
    equal(
        "It is the sum over all pairs of pixels, written as one einsum.",
        ours=lambda: lambda_layer(**_drawn()),
        theirs=lambda: lambda_layer_reference(**_drawn()),
        clause=1,
    ),
    equal(
        "The same where the picture is wider than two windows.",
        ours=lambda: lambda_layer(**_drawn(13, 7)),
        theirs=lambda: lambda_layer_reference(**_drawn(13, 7)),
        clause=1,
    ),
    equal(
        "It gives what timm's layer with a lambda convolution gives with the same weights.",
        ours=partial(_beside_timm, 5, ours=True),
        theirs=partial(_beside_timm, 5, ours=False),
        clause=1,
    ),
    equal(
        "It gives what timm's layer with an embedding of every displacement gives.",
        ours=partial(_beside_timm, None, ours=True),
        theirs=partial(_beside_timm, None, ours=False),
        clause=1,
    ),
    equal(
        "Without embeddings it is linear attention.",
        ours=partial(_content_only, ours=True),
        theirs=partial(_content_only, ours=False),
        beyond="content lambda equals linear attention",
    ),
    grows(
        "What it keeps for training grows as the pixels do, from 16×16 to 64×64.",
        paper="no attention maps",
        cost=partial(_kept_bytes, build=_ours),
        sizes=SIDES,
        of=_pixels,
        exponent=(0.9, 1.1),
        clause=2,
    ),
    grows(
        "What attention with relative positions keeps (timm's bottleneck attention) grows almost quadratically.",
        paper="quadratic",
        cost=partial(_kept_bytes, build=_theirs),
        sizes=SIDES,
        of=_pixels,
        exponent=(1.6, float("inf")),
        clause=2,
    ),
    smaller(
        "At 64×64 one picture runs in less than a fifth of the memory of that attention.",
        paper="no attention maps",
        ours=lambda: float(peak_memory(partial(_run, _ours))),
        theirs=lambda: float(peak_memory(partial(_run, _theirs))),
        at_least=5.0,
        beyond="peak memory against self-attention with relative positions",
    ),
    bound(
        "The network whose second stage has lambda layers for 3×3 convolutions has at most 0.6 of the parameters.",
        paper="fewer parameters",
        value=lambda: count_parameters(LAMBDAS()) / count_parameters(CONVOLUTIONS()),
        at_most=0.6,
        clause=3,
    ),
    cifar10.better(
        LAMBDAS,
        "After the same steps it is not below the one with convolutions in both stages.",
        than=CONVOLUTIONS,
        steps=STEPS,
        paper="better than convolutions",
        clause=3,
    ),
)
