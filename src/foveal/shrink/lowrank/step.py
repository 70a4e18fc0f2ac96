"""Low rank: linear layers and convolutions become two thinner ones, with ranks by measured output error.

Source: the truncated singular value decomposition, of W·L for inputs with covariance L·Lᵀ, so that what is cut off is
the least of the layer's *output* on the calibration data (P. Chen et al., "DRONE: Data-aware Low-rank Compression for
Large NLP Models", NeurIPS 2021, section 3); a k×k convolution is read as the matrix (out, in·k·k), its first factor
keeps the window (Y. Zhang et al., "Accelerating Very Deep Convolutional Networks", arXiv:1505.06798).

Shapes: a layer's weight is a matrix W: (out, in·k·k); rank r gives A: (r, in·k·k) and B: (out, r).

Differs from the paper: ranks come from `foveal.shrink.allocate`: least total harm, measured at the network's output
with one layer changed at a time, under a budget of multiply-adds.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.shrink.allocate import allocate, sensitivity
from foveal.shrink.data import Data, calibration
from foveal.shrink.prune.leave import left_alone
from foveal.shrink.step import ShrinkError, note

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from foveal.shrink.step import Inputs

__all__ = ["LowRank", "factorise_", "factors", "most_useful_rank"]


def factors(weight: Tensor, rank: int, covariance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The two factors of rank r whose product is nearest to a weight, or changes its outputs least.

    Args:
        weight: W, (out, in).
        rank: r, from 1 to the smaller side.
        covariance: mean of x·xᵀ over the layer's inputs, (in, in); None takes all inputs as equally likely.

    Returns:
        B, (out, r), and A, (r, in), with B·A ≈ W.

    Raises:
        ValueError: a rank outside its range.
    """
    if not 1 <= rank <= min(weight.shape):
        raise ValueError(f"rank must be in 1…{min(weight.shape)} for a weight of {tuple(weight.shape)}, got {rank}")
    matrix = weight.double()
    if covariance is None:
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :rank].to(weight), (s[:rank, None] * v[:rank]).to(weight)
    square = covariance.double()
    ridge = 1e-4 * square.diagonal().mean().clamp_min(1e-12)  # directions without data keep a little weight
    lower = torch.linalg.cholesky(square + ridge * torch.eye(len(square), dtype=torch.float64))
    u, s, v = torch.linalg.svd(matrix @ lower, full_matrices=False)
    a = torch.linalg.solve_triangular(lower, s[:rank, None] * v[:rank], upper=False, left=False)
    return u[:, :rank].to(weight), a.to(weight)


def most_useful_rank(weight: Tensor) -> int:
    """The largest rank at which two factors take fewer multiply-adds than the layer.

    Args:
        weight: weight, (out, in, …).

    Returns:
        Rank; 0 if none saves anything.
    """
    out, rest = weight.shape[0], weight[0].numel()
    return (out * rest - 1) // (out + rest)


def _layers(model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    }


def _patches(layer: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
    """Inputs of the layer as a matrix, (places, in·k·k)."""
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    padding: Any = layer.padding if not isinstance(layer.padding, str) else 0
    columns = F.unfold(x, layer.kernel_size, dilation=layer.dilation, padding=padding, stride=layer.stride)
    return columns.transpose(1, 2).flatten(0, 1)


@torch.no_grad()
def _observe(model: nn.Module, names: list[str], inputs: Tensor) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Covariance of the inputs of layers, and the number of places at which each layer is applied to one input."""
    covariances: dict[str, Tensor] = {}
    places: dict[str, int] = {}

    def watch(name: str) -> Any:
        def hook(layer: Any, given: tuple[Tensor, ...], out: Tensor) -> None:
            x = _patches(layer, given[0])
            covariances[name] = x.T @ x / len(x)
            places[name] = out.numel() // (layer.weight.shape[0] * len(inputs))

        return hook

    handles = [model.get_submodule(name).register_forward_hook(watch(name)) for name in names]
    try:
        model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return covariances, places


def _split(layer: nn.Linear | nn.Conv2d, rank: int, covariance: Tensor | None) -> nn.Sequential:
    weight = layer.weight.detach()
    b, a = factors(weight.flatten(1), rank, covariance)
    bias = layer.bias is not None
    first: nn.Linear | nn.Conv2d
    second: nn.Linear | nn.Conv2d
    if isinstance(layer, nn.Linear):
        first, second = nn.Linear(weight.shape[1], rank, bias=False), nn.Linear(rank, weight.shape[0], bias=bias)
    else:
        first = copy.copy(layer)  # the class too: timm's convolutions pad in their own way
        first._parameters = dict(layer._parameters) | {"bias": None}
        first.out_channels = rank
        second = nn.Conv2d(rank, weight.shape[0], 1, bias=bias)
    first.weight = nn.Parameter(a.reshape(rank, *weight.shape[1:]).contiguous())
    second.weight = nn.Parameter(b.reshape(*second.weight.shape).contiguous())
    if layer.bias is not None:
        second.bias = nn.Parameter(layer.bias.detach().clone())
    return nn.Sequential(first, second)


@torch.no_grad()
def factorise_(
    model: nn.Module, ranks: Mapping[str, int], covariances: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Replace layers by two factors each, in place.

    Args:
        model: network.
        ranks: ranks by the layer's name.
        covariances: mean of x·xᵀ over the layers' inputs.

    Returns:
        The same network.
    """
    for name, rank in ranks.items():
        layer: Any = model.get_submodule(name)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, _split(layer, rank, (covariances or {}).get(name)))
    return model


@dataclass(frozen=True)
class LowRank:
    """Step: factorise linear layers and convolutions where it saves multiply-adds; tune afterwards.

    Args:
        keep: budget: share of the multiply-adds of these layers that stays, in (0, 1).
        shares: shares of a layer's multiply-adds that are tried for it.
        samples: number of inputs that harm is measured on.
        aware: whether the factors minimise the error of the outputs on the data instead of the weights'.
        without: names of layers to leave alone.

    Raises:
        ValueError: a share outside its range.
    """

    keep: float = 0.5
    shares: tuple[float, ...] = (0.8, 0.6, 0.45, 0.3, 0.2)
    samples: int = 16
    aware: bool = True
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, values in (("keep", (self.keep,)), ("shares", self.shares)):
            if not values or not all(0 < value < 1 for value in values):
                raise ValueError(f"{name} must be in (0, 1), got {getattr(self, name)}; it is the share that stays")
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")

    @torch.no_grad()
    def apply(self, model: nn.Module, data: Inputs | Data | None = None) -> nn.Module:
        """Factorise layers of a copy of the model.

        Args:
            model: network in eval mode.
            data: inputs to measure harm on.

        Returns:
            The network with two layers in place of one.

        Raises:
            ShrinkError: no layer that could be factorised, or a budget below what the smallest ranks take.
        """
        inputs = calibration(data, step="LowRank", limit=self.samples)
        thin = copy.deepcopy(model).eval()
        left = left_alone(thin, inputs)
        layers = {n: m for n, m in _layers(thin).items() if n not in self.without and most_useful_rank(m.weight) >= 8}
        for name in layers.keys() & left.keys():
            note(f"lowrank: left {name}: {left[name]}")
        names = [name for name in layers if name not in left]
        if not names:
            raise ShrinkError(
                f"LowRank: {type(model).__name__} has no layer that two factors of rank 8 or more make cheaper; "
                "leave the step out"
            )
        covariances, places = _observe(thin, names, inputs)
        names = [name for name in names if name in places]
        choices, cost = [], []
        for name in names:
            out, rest = layers[name].weight.flatten(1).shape
            a_rank, whole = (out + rest) * places[name], out * rest * places[name]
            ranks = {max(8, int(share * whole / a_rank) // 8 * 8) for share in self.shares}
            fitting = sorted((rank for rank in ranks if rank <= most_useful_rank(layers[name].weight)), reverse=True)
            fitting += [fitting[-1]] * (len(self.shares) - len(fitting)) if fitting else [0] * len(self.shares)
            choices.append([0, *fitting])  # 0 keeps the layer
            cost.append([whole, *((rank * a_rank) if rank else whole for rank in fitting)])
        covariance = covariances if self.aware else {}

        @contextmanager
        def change(layer: Any, choice: int) -> Iterator[None]:
            name = next(n for n in names if layers[n] is layer)
            rank, before = choices[names.index(name)][choice], layer.weight.data
            if rank:
                b, a = cached(name, rank)
                layer.weight.data = (b @ a).view_as(before)
            try:
                yield
            finally:
                layer.weight.data = before

        def cached(name: str, rank: int) -> tuple[Tensor, Tensor]:
            if name not in whole_factors:
                weight = layers[name].weight.detach().flatten(1)
                whole_factors[name] = factors(weight, max(choices[names.index(name)]), covariance.get(name))
            b, a = whole_factors[name]
            return b[:, :rank], a[:rank]

        whole_factors: dict[str, tuple[Tensor, Tensor]] = {}
        harm = sensitivity(thin, names, range(len(self.shares) + 1), change, inputs)
        costs = np.asarray(cost, np.float64)
        try:
            picked = allocate(harm, costs, self.keep * costs[:, 0].sum())
        except ValueError as error:
            least = costs.min(1).sum() / costs[:, 0].sum()
            raise ShrinkError(
                f"LowRank: keep = {self.keep} cannot be met, the smallest ranks tried take {least:.2f}; raise keep or "
                "add smaller shares"
            ) from error
        ranks_of = {name: choices[i][j] for i, (name, j) in enumerate(zip(names, picked, strict=True)) if choices[i][j]}
        note(f"lowrank: {len(ranks_of)} of {len(names)} layers became two")
        return factorise_(thin, ranks_of, covariance)
