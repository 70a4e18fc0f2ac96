"""Plain deep networks of 2011: a line of notation becomes sparse convolutions, max-pooling and neurons, trained online.

*Source*: D. C. Cireşan, U. Meier, J. Masci, L. M. Gambardella and J. Schmidhuber, "High-Performance Neural Networks for
Visual Object Classification", 2011 (arXiv:1102.0183), sections 2 and 4.

A network is written layer by layer: `20M4-MP2-60M5-MP3-150N` is 20 maps by 4×4 filters, max-pooling over 2×2 without
overlap, 60 maps by 5×5, pooling over 3×3, 150 neurons; one neuron for each class follows. A skipping factor S leaves S
pixels between filter positions and is written `20M4S1`; `60M5R8` connects each map with 8 of the maps before, drawn at
random. Map j of a convolution, and the sides of its maps:

    x'_j = f(b_j + Σ_{i ∈ T_j} W_ji ∗ x_i),    M' = ⌊(M - K) / (S + 1)⌋ + 1,    f(a) = 1.7159 tanh(0.6666 a)

T_j are the maps that the table connects with j, all of them without R. Weights start uniform in ±0.05. Training takes
one picture a step, in random order and moved, scaled and rotated anew in each epoch, by plain gradient descent with a
rate that is multiplied by a factor after each epoch.

*Differs from the paper*: the notation names kernel sizes, which the paper's tables leave to the text. Sides that do not
fit are rounded down; its networks are chosen so that they fit. Filters of maps that are not connected are multiplied
by 0 instead of being left out, which costs as much as a dense layer. Elastic distortions are not included. The loss is
cross-entropy.
*Provenance*: written from the paper; no code of the authors is public.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "DeepGPUCNN",
    "ScaledTanh",
    "SparseMaps",
    "connected_convolution",
    "connected_convolution_reference",
    "connection_table",
    "distorted",
    "layers",
    "train_online",
]

LAYER = re.compile(r"(?P<maps>\d+)M(?P<side>\d+)(S(?P<skip>\d+))?(R(?P<reads>\d+))?|MP(?P<pool>\d+)|(?P<neurons>\d+)N")
START = 0.05  # bound of the first weights


def connection_table(maps: int, before: int, reads: int, *, seed: int = 0) -> Tensor:
    """Which maps of the layer before each map reads, drawn at random.

    Args:
        maps: number of maps.
        before: number of maps before.
        reads: number of maps that each reads, from 1 to `before`.
        seed: seed of the draw.

    Returns:
        Table, (maps, before) bool with `reads` true values a row.

    Raises:
        ValueError: `reads` is not between 1 and `before`.
    """
    if not 1 <= reads <= before:
        raise ValueError(f"a map reads between 1 and {before} of the maps before, got {reads}; change R")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(maps, before, generator=generator).argsort(1)[:, :reads]
    return torch.zeros(maps, before, dtype=torch.bool).scatter_(1, chosen, value=True)


def connected_convolution(x: Tensor, weight: Tensor, bias: Tensor, table: Tensor, skip: int = 0) -> Tensor:
    """Convolution in which each map reads the maps that a table names.

    Args:
        x: maps, (B, I, H, W).
        weight: filters, (O, I, K, K).
        bias: (O,).
        table: (O, I) bool.
        skip: S, pixels between filter positions.

    Returns:
        Maps, (B, O, ⌊(H - K) / (S + 1)⌋ + 1, …).
    """
    return F.conv2d(x, weight * table[:, :, None, None], bias, stride=skip + 1)


def connected_convolution_reference(x: Tensor, weight: Tensor, bias: Tensor, table: Tensor, skip: int = 0) -> Tensor:
    """The same map by map, from those that it reads.

    Args:
        x: maps, (B, I, H, W).
        weight: filters, (O, I, K, K).
        bias: (O,).
        table: (O, I) bool.
        skip: S.

    Returns:
        Maps.
    """
    return torch.cat(
        [
            F.conv2d(x[:, reads], weight[j : j + 1, reads], bias[j : j + 1], stride=skip + 1)
            for j, reads in enumerate(table)
        ],
        1,
    )


class ScaledTanh(nn.Module):
    """1.7159 tanh(0.6666 a), which is about the identity near ±1."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(0.6666 * x)


class SparseMaps(nn.Module):
    """A convolutional layer with a connection table.

    Args:
        in_channels: number of maps before, I.
        out_channels: number of maps, O.
        kernel_size: K.
        skip: S.
        reads: number of maps that each reads; None for all.
        seed: seed of the table.
    """

    table: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        skip: int = 0,
        reads: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.skip = skip
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels))
        reads = in_channels if reads is None else reads
        self.register_buffer("table", connection_table(out_channels, in_channels, reads, seed=seed))

    @property
    def connections(self) -> int:
        """Number of filters that are connected."""
        return int(self.table.sum())

    def forward(self, x: Tensor) -> Tensor:
        return connected_convolution(x, self.weight, self.bias, self.table, self.skip)


def layers(notation: str) -> list[dict[str, int]]:
    """Read the notation.

    Args:
        notation: layers from input to output, such as "20M4-MP2-60M5R8-MP3-150N".

    Returns:
        A dict for each layer: `maps`, `side` and if given `skip`, `reads`; or `pool`; or `neurons`.

    Raises:
        ValueError: a part that is none of these, or maps and pooling after neurons.
    """
    found: list[dict[str, int]] = []
    for part in notation.split("-"):
        match = LAYER.fullmatch(part)
        if match is None:
            raise ValueError(f"a layer reads 20M4, 20M4S1, 60M5R8, MP2 or 150N, got {part!r} in {notation!r}")
        found.append({name: int(value) for name, value in match.groupdict().items() if value is not None})
        if len(found) > 1 and "neurons" in found[-2] and "neurons" not in found[-1]:
            raise ValueError(f"maps and pooling come before neurons, got {part!r} after them in {notation!r}")
    return found


class DeepGPUCNN(nn.Sequential):
    """A network from its notation.

    Args:
        notation: hidden layers, see `layers`.
        in_channels: channels of the pictures.
        img_size: side of the pictures, pixels.
        num_classes: number of classes, each with a neuron at the end.
        seed: seed of the connection tables.

    Raises:
        ValueError: a layer that cannot be read, or maps that become smaller than the next filter or pooling.
    """

    def __init__(
        self, notation: str, *, in_channels: int = 1, img_size: int = 28, num_classes: int = 10, seed: int = 0
    ) -> None:
        super().__init__()
        channels, side, neurons = in_channels, img_size, 0
        for number, layer in enumerate(layers(notation)):
            if "neurons" in layer:
                neurons = self._neurons(neurons or channels * side * side, layer["neurons"], flat=not neurons)
                self.append(ScaledTanh())
                continue
            reach = layer.get("side", layer.get("pool", 0))
            if not 1 <= reach <= side:
                raise ValueError(
                    f"a filter or pooling of side {reach} does not fit into maps of side {side}: {notation!r}"
                )
            if "pool" in layer:
                self.append(nn.MaxPool2d(reach))
                side //= reach
                continue
            skip, reads = layer.get("skip", 0), layer.get("reads")
            self.append(SparseMaps(channels, layer["maps"], reach, skip=skip, reads=reads, seed=seed + number))
            self.append(ScaledTanh())
            channels, side = layer["maps"], (side - reach) // (skip + 1) + 1
        self._neurons(neurons or channels * side * side, num_classes, flat=not neurons)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -START, START)

    def _neurons(self, before: int, count: int, *, flat: bool) -> int:
        if flat:
            self.append(nn.Flatten())
        self.append(nn.Linear(before, count))
        return count

    def connected(self) -> int:
        """Number of parameters without the filters of maps that are not connected.

        Returns:
            Parameters.
        """
        sparse = [module for module in self if isinstance(module, SparseMaps)]
        absent = sum((m.table.numel() - m.connections) * m.weight[0, 0].numel() for m in sparse)
        return sum(p.numel() for p in self.parameters()) - absent


def distorted(
    x: Tensor, *, move: float = 0.05, scale: float = 0.15, rotate: float = 5.0, generator: torch.Generator | None = None
) -> Tensor:
    """Pictures moved, scaled and rotated at random, each in its own way; what comes in from outside is 0.

    Args:
        x: pictures, (B, C, H, W).
        move: largest translation along each axis, share of the side.
        scale: largest change of scale along each axis.
        rotate: largest rotation, degrees.
        generator: of the random numbers.

    Returns:
        Pictures.
    """
    u = 2 * torch.rand(5, len(x), generator=generator).to(x) - 1
    angle, along_x, along_y = math.radians(rotate) * u[0], 1 + scale * u[1], 1 + scale * u[2]
    rows = [
        torch.stack([angle.cos() / along_x, -angle.sin() / along_x, 2 * move * u[3]], 1),
        torch.stack([angle.sin() / along_y, angle.cos() / along_y, 2 * move * u[4]], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def train_online(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    *,
    epochs: int = 1,
    lr: float = 0.001,
    decay: float = 0.993,
    distortion: dict[str, float] | None = None,
    seed: int = 0,
    steps: int | None = None,
) -> list[float]:
    """Gradient descent with one picture a step.

    Args:
        model: network, trained in place and left in eval mode.
        x: pictures, (n, C, H, W).
        labels: (n,) int64.
        epochs: number of epochs.
        lr: rate in the first epoch.
        decay: factor of the rate after each epoch.
        distortion: arguments of `distorted`, anew in each epoch; None leaves pictures as they are.
        seed: seed of order and distortions.
        steps: largest number of steps; None for all.

    Returns:
        Mean loss of each epoch.

    Raises:
        ValueError: no pictures.
    """
    if not len(x):
        raise ValueError("pictures to train on are wanted, got none; give at least one")
    generator = torch.Generator().manual_seed(seed)
    parameters: Sequence[Tensor] = list(model.parameters())
    left, losses = math.inf if steps is None else steps, []
    model.train()
    for epoch in range(epochs):
        shown = x if distortion is None else distorted(x, **distortion, generator=generator)
        order, total, rate = torch.randperm(len(x), generator=generator).tolist(), 0.0, lr * decay**epoch
        order = order[: int(min(left, len(order)))]
        left -= len(order)
        for i in order:
            loss = F.cross_entropy(model(shown[i : i + 1]), labels[i : i + 1])
            with torch.no_grad():
                for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                    parameter.sub_(gradient, alpha=rate)
            total += loss.item()
        losses.append(total / max(1, len(order)))
    model.eval()
    return losses


def _inputs(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"x": (2, 5, 8, 7), "weight": (4, 5, 3, 3), "bias": (4,)}
    drawn: dict[str, Any] = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return drawn | {"table": connection_table(4, 5, 2, seed=seed), "skip": 1}


METHOD = Method(
    id=155,
    name="DeepGPUCNN",
    kind="operator",
    summary="A line of notation becomes a network of sparse convolutions and pooling, trained a picture a step.",
    paper=Paper(
        "High-Performance Neural Networks for Visual Object Classification",
        "D. C. Cireşan et al.",
        2011,
        "arXiv:1102.0183",
    ),
    cases={"two_of_five": Operator(connected_convolution, connected_convolution_reference, _inputs)},
)
