"""Evidence for FDConv: what it equals, its spectra, what it adds to a ResNet-50, and a small network on CIFAR-10."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import timm
import torch
import torchvision
from timm.layers import CondConv2d
from torch import Tensor, nn

from foveal.evidence.tasks import cifar10
from foveal.evidence.tasks.zoo import MixerNet
from foveal.measure.cost import count_parameters
from foveal.nn.fdconv import (
    FDConv,
    fourier_coefficients,
    frequency_groups,
    group_kernels,
    mixed_kernels,
    mixed_kernels_reference,
    stand_in,
    use_fdconv_,
)
from foveal.record import bound, equal, smaller

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE, GROUPS = (8, 6, 3, 3), 16  # of the kernels whose spectra are compared
DIM, STEPS = 24, 250


def _layer(kernel_size: int, stride: int) -> tuple[nn.Conv2d, Tensor]:
    torch.manual_seed(0)
    layer = nn.Conv2d(20, 24, kernel_size, stride, kernel_size // 2)
    return layer, torch.randn(2, 20, 13, 11)


@torch.no_grad()
def _output(kernel_size: int, stride: int, *, ours: bool) -> Tensor:
    layer, x = _layer(kernel_size, stride)
    return stand_in(layer, x.shape)(x) if ours else layer(x)


def _weight() -> Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _sorted_groups(rows: int, columns: int, num_groups: int) -> Tensor:
    """Groups by distance alone, which may part a coefficient from its conjugate."""
    distance = torch.hypot(torch.fft.fftfreq(rows)[:, None], torch.fft.rfftfreq(columns)).flatten()
    groups = torch.empty(len(distance), dtype=torch.int64)
    groups[distance.argsort(stable=True)] = torch.arange(len(distance)) * num_groups // len(distance)
    return groups.view(rows, -1)


def _kernels(groups: Callable[[int, int, int], Tensor] = frequency_groups) -> Tensor:
    outs, ins, height, width = SIZE
    split = groups(outs * height, ins * width, GROUPS)
    return group_kernels(fourier_coefficients(_weight()), split, GROUPS, SIZE)


def _overlap(groups: Callable[[int, int, int], Tensor] = frequency_groups) -> float:
    """Largest cosine between the magnitudes of two kernels' spectra, both taken from the kernels themselves."""
    kernels = _kernels(groups)
    spectra = torch.stack([torch.view_as_complex(fourier_coefficients(kernel)).abs() for kernel in kernels]).flatten(1)
    spectra = spectra / spectra.norm(dim=1, keepdim=True)
    return float((spectra @ spectra.T).fill_diagonal_(0).max())


def _mixed(*, reference: bool) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shares, groups = torch.rand(3, 7, generator=generator), frequency_groups(12, 15, 7)
    coefficients = torch.randn(12, 8, 2, generator=generator)
    mix = mixed_kernels_reference if reference else mixed_kernels
    return mix(coefficients, groups, shares, (4, 5, 3, 3))


def _added(build: Callable[[], nn.Module]) -> float:
    """Parameters that FDConv adds to a network."""
    with torch.device("meta"):
        plain = build()
        before = count_parameters(plain)
        return float(count_parameters(use_fdconv_(plain)) - before)


def _added_by_four_kernels() -> float:
    """Parameters that three further kernels of each of these convolutions add to a ResNet-50, attention not counted."""
    with torch.device("meta"):
        network = use_fdconv_(torchvision.models.resnet50())
    weights = [module.size for module in network.modules() if isinstance(module, FDConv)]
    return float(sum(3 * outs * ins * height * width for outs, ins, height, width in weights))


class FourKernels(nn.Module):
    """Dynamic convolution: four kernels of 3×3, mixed by a softmax of the channels' means, (B, C, H, W) to the same.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = CondConv2d(dim, dim, 3, padding=1, bias=True, num_experts=4)
        self.attention = nn.Sequential(nn.Linear(dim, 16), nn.ReLU(), nn.Linear(16, 4), nn.Softmax(1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x, self.attention(x.mean((2, 3))))
        return out


def _fdconv(dim: int) -> nn.Module:
    return FDConv(dim, dim, padding=(1, 1))


def _plain(dim: int) -> nn.Module:
    return nn.Conv2d(dim, dim, 3, padding=1)


ours, plain, four = (partial(MixerNet, mixer, DIM) for mixer in (_fdconv, _plain, FourKernels))

CLAIMS = (
    *(
        equal(
            f"In the place of a {name} it starts equal to it.",
            ours=partial(_output, kernel_size, stride, ours=True),
            theirs=partial(_output, kernel_size, stride, ours=False),
            tolerance=1e-5,
            clause=1,
        )
        for name, kernel_size, stride in (
            ("3×3 convolution", 3, 1),
            ("3×3 convolution of stride 2", 3, 2),
            ("1×1 convolution", 1, 1),
        )
    ),
    bound(
        "The spectra of the groups' kernels do not overlap.",
        paper="disjoint Fourier indices",
        value=_overlap,
        at_most=1e-12,
        unit="cosine, at most",
        clause=2,
    ),
    equal(
        "They sum to the whole kernel, so that nothing is left out to keep them apart.",
        ours=lambda: _kernels().sum(0),
        theirs=_weight,
        clause=2,
    ),
    bound(
        "Groups cut by distance alone, as in the authors' code, do overlap.",
        paper="disjoint Fourier indices",
        value=partial(_overlap, _sorted_groups),
        at_least=0.01,
        unit="cosine, at most",
        beyond="frequency diversity",
    ),
    *(
        bound(
            f"{name}'s ResNet-50 gets 3.6 M parameters more, within 5 %.",
            paper="+3.6 M",
            value=partial(_added, build),
            at_least=0.95 * 3.6e6,
            at_most=1.05 * 3.6e6,
            unit="parameters",
            clause=3,
        )
        for name, build in (
            ("torchvision", torchvision.models.resnet50),
            ("timm", partial(timm.create_model, "resnet50")),
        )
    ),
    smaller(
        "Four kernels of each of these convolutions would add at least 15 times as many.",
        paper="3.6 M and 75.3 M (DY-Conv)",
        ours=partial(_added, torchvision.models.resnet50),
        theirs=_added_by_four_kernels,
        at_least=15.0,
        beyond="parameters beside those of dynamic convolutions",
    ),
    equal(
        "One inverse transform mixes the kernels as a sum of waves, group by group, does.",
        ours=partial(_mixed, reference=False),
        theirs=partial(_mixed, reference=True),
        beyond="weights in the Fourier domain",
    ),
    cifar10.better(
        ours,
        "After the same steps a network with it is not below the one with plain 3×3 convolutions.",
        than=plain,
        steps=STEPS,
        paper="+2.2 points of box AP",
        clause=4,
    ),
    cifar10.better(
        ours,
        "Nor below the one with four kernels for each.",
        than=four,
        steps=STEPS,
        paper="+1.1 points of box AP",
        beyond="better than dynamic convolution",
    ),
)
