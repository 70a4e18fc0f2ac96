"""LambdaNetworks' layer: the context becomes a small linear function per pixel, which is applied to the pixel's query.

*Source*: I. Bello, "LambdaNetworks: Modeling Long-Range Interactions Without Attention", ICLR 2021
(arXiv:2102.08602), sections 3.1 and 3.2. For pixels n and m of N, with queries q_nh of h heads, keys k_m and values v_m
that all heads share, and an embedding e of the displacement from n to m,

    λ_n = Σ_m (σ(k)_m + e_{m-n}) v_mᵀ          (K, V): a content lambda, equal for all n, and a position lambda
    y_nh = λ_nᵀ q_nh                            (V), and the heads side by side make h·V channels

σ is a softmax over the pixels m, for each of the K channels. No map of N×N weights is ever stored: the lambdas take
N·K·V numbers, with V = C / h. With e = 0 outside a window of r×r the position lambdas are a convolution of the values,
one kernel for each of K (the lambda convolution); with r = 2·side - 1 the window holds every displacement.

*Differs from the paper*: the intra-depth u is 1, as in timm. A bias of the lambda convolution, which timm has, is added
to each entry of the position lambda.

*Provenance*: written from the paper; order and initial spread of the weights as in timm, whose layer gives the same
numbers with the same weights, to 2e-7 of the largest by either kind of embeddings. The networks
(LambdaResNet-26-T and others) are timm's, used as they are.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.nn.same_size import keeps_size
from foveal.record import Method, Paper

__all__ = ["LambdaLayer", "lambda_layer", "lambda_layer_reference", "pair_embeddings", "stand_in"]


def pair_embeddings(weight: Tensor, height: int, width: int) -> Tensor:
    """Embeddings of the displacements of all pairs of pixels, 0 for those outside the window.

    Args:
        weight: embeddings of displacements, (K, r, r) with odd r; the middle one is of no displacement.
        height: H.
        width: W.

    Returns:
        (K, N, N): from the pixel of the second axis to that of the third, N = H·W.
    """
    last = weight.shape[-1] - 1
    pixels = torch.arange(height * width, device=weight.device)
    rows, columns = pixels // width, pixels % width
    down, right = (place - place[:, None] + last // 2 for place in (rows, columns))
    inside = (down >= 0) & (down <= last) & (right >= 0) & (right <= last)
    return weight[:, down.clamp(0, last), right.clamp(0, last)] * inside


def lambda_layer(queries: Tensor, keys: Tensor, values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply each pixel's lambda to its queries.

    Args:
        queries: (B, h, K, H, W).
        keys: (B, K, H, W), before the softmax.
        values: (B, V, H, W).
        weight: embeddings of displacements, (K, r, r) with odd r; the middle one is of no displacement.
        bias: added to the position lambdas, (K,).

    Returns:
        (B, h·V, H, W).
    """
    height, width = values.shape[2:]
    asked, known = queries.flatten(3), values.flatten(2)
    content = keys.flatten(2).softmax(-1) @ known.transpose(1, 2)  # (B, K, V)
    if height * width <= 2 * weight.shape[-1] ** 2:  # up to there a product with a matrix of all pairs is faster
        pairs = pair_embeddings(weight, height, width)
        lambdas = (known @ pairs.flatten(0, 1).T).unflatten(2, (-1, height * width))  # (B, V, K, N)
        lambdas = lambdas if bias is None else lambdas + bias[:, None]
    else:
        alone = values.reshape(-1, 1, height, width)
        position = torch.conv2d(alone, weight[:, None], bias, padding=weight.shape[-1] // 2)  # (B·V, K, H, W)
        lambdas = position.flatten(2).view(*known.shape[:2], len(weight), -1)  # (B, V, K, N)
    out = torch.einsum("bhkn,bvkn->bhvn", asked, lambdas) + torch.einsum("bhkn,bkv->bhvn", asked, content)
    return out.reshape(len(values), -1, height, width)


def lambda_layer_reference(
    queries: Tensor, keys: Tensor, values: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """The definition: embeddings of all pairs of pixels, and all lambdas summed up before they are applied.

    Args:
        queries: (B, h, K, H, W).
        keys: (B, K, H, W).
        values: (B, V, H, W).
        weight: (K, r, r).
        bias: (K,).

    Returns:
        (B, h·V, H, W).
    """
    pairs = pair_embeddings(weight, *values.shape[2:])
    shares = keys.flatten(2).softmax(-1)
    lambdas = torch.einsum("bkm,bvm->bkv", shares, values.flatten(2))[:, None]
    lambdas = lambdas + torch.einsum("knm,bvm->bnkv", pairs, values.flatten(2))
    if bias is not None:
        lambdas = lambdas + bias[:, None]
    out = torch.einsum("bhkn,bnkv->bhvn", queries.flatten(3), lambdas)
    return out.reshape(len(values), -1, *values.shape[2:])


class LambdaLayer(nn.Module):
    """(B, C, H, W) to (B, C_out, H, W).

    Args:
        dim: C.
        out_channels: C_out; None for C.
        num_heads: h, heads of queries; keys and values are shared by them.
        dim_k: K, channels of a query and of a key.
        kernel_size: r, odd, side of the window of the position lambdas.

    Raises:
        ValueError: output channels that the heads do not divide, or an even kernel.
    """

    def __init__(
        self, dim: int, *, out_channels: int | None = None, num_heads: int = 4, dim_k: int = 16, kernel_size: int = 9
    ) -> None:
        super().__init__()
        out = out_channels or dim
        if num_heads < 1 or out % num_heads:
            raise ValueError(f"num_heads must divide the {out} output channels, got {num_heads}")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}; take {kernel_size + 1}")
        self.num_heads, self.dim_k, self.dim_v = num_heads, dim_k, out // num_heads
        self.qkv = nn.Conv2d(dim, (num_heads + 1) * dim_k + self.dim_v, 1, bias=False)
        self.norm_q = nn.BatchNorm2d(num_heads * dim_k)
        self.norm_v = nn.BatchNorm2d(self.dim_v)
        self.conv_lambda = nn.Conv2d(1, dim_k, kernel_size)
        nn.init.trunc_normal_(self.qkv.weight, std=dim**-0.5)
        nn.init.trunc_normal_(self.conv_lambda.weight, std=dim_k**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = self.qkv(x).split([self.num_heads * self.dim_k, self.dim_k, self.dim_v], 1)
        queries = self.norm_q(queries).unflatten(1, (self.num_heads, self.dim_k))
        weight = self.conv_lambda.weight.squeeze(1)
        return lambda_layer(queries, keys, self.norm_v(values), weight, self.conv_lambda.bias)


def stand_in(layer: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """A lambda layer in the place of a dense convolution, with weights drawn anew: it is learnt from there.

    Its window is at least 7×7, and no larger than the picture has displacements. A bias of the convolution is kept.

    Args:
        layer: dense convolution of stride 1 that keeps height and width, and whose output channels four heads divide.
        shape: shape of its input, (B, C, H, W).

    Returns:
        The stand-in.

    Raises:
        ValueError: another layer.
    """
    if not isinstance(layer, nn.Conv2d) or layer.groups != 1:
        raise ValueError(f"lambda stands in for a dense convolution, got {layer}")
    side = max(layer.kernel_size)
    if not keeps_size(layer):
        raise ValueError("lambda keeps height and width: it needs stride 1 and full padding")
    window = min(max(7, side), 2 * max(shape[-2:]) - 1)
    stand = LambdaLayer(layer.in_channels, out_channels=layer.out_channels, kernel_size=window | 1)
    if layer.bias is None:
        return stand
    return nn.Sequential(stand, _Bias(layer.bias.detach().clone()))


class _Bias(nn.Module):
    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias[:, None, None]


def _inputs(seed: int, side: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"queries": (2, 2, 3, 5, 7), "keys": (2, 3, 5, 7), "values": (2, 4, 5, 7), "weight": (3, side, side)}
    return {name: torch.randn(shape, generator=draw) for name, shape in {**shapes, "bias": (3,)}.items()}


METHOD = Method(
    id=93,
    name="LambdaNetworks",
    kind="operator",
    summary="The context becomes a small linear function per pixel, which is applied to the pixel's query.",
    paper=Paper(
        "LambdaNetworks: Modeling Long-Range Interactions Without Attention", "I. Bello", 2021, "arXiv:2102.08602"
    ),
    cases={
        "convolved": Operator(lambda_layer, lambda_layer_reference, partial(_inputs, side=3)),
        "by_matrix": Operator(lambda_layer, lambda_layer_reference, partial(_inputs, side=9)),
    },
)
