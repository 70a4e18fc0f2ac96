"""ABAIR: one frozen restorer, a low-rank adapter for each degradation, and an estimator that blends them per picture.

    phase I     min ‖f(x; W) − y‖₁ + λ · CE(segments(features), kind of damage of each pixel)
    phase II    min ‖f(x; W + Uₖ Vₖ) − y‖₁   over Uₖ, Vₖ, with pictures of degradation k alone
    phase III   min CE(e(x), k)              over the estimator e
    restored    f(x; W + Σₖ softmax(e(x))ₖ · Uₖ Vₖ)

for every convolution W, (out, in, k, k), of the restorer, with U (out, r) and V (r, in · k · k); U starts at zero.

*Source*: D. Serrano-Lozano, L. Herranz, S. Su, J. Vazquez-Corral, "Adaptive Blind All-in-One Image Restoration"
(arXiv:2411.18412), section 3: degradation CutMix and the segmentation head (phase I), adapters (II), estimator (III).

*Differs from the paper*: the restorer is any network of plain convolutions that returns a picture; degradations come
from `foveal.train.restore.bank`. Since the blend is linear in the weights, it is computed by adding the updates to the
weights once per picture, which costs no multiply-adds at the picture's size.

*Provenance*: written from the paper.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from foveal.cases import Procedure
from foveal.record import Method, Paper
from foveal.train.restore.bank import bank

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["ABAIR", "Adapter", "Estimator", "SegmentationHead", "cutmix", "pretraining"]


def cutmix(pictures: Tensor, names: Sequence[str], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Degradation CutMix: each picture has one degradation, and a rectangle of it another.

    Args:
        pictures: undamaged pictures, (B, 3, H, W) in [0, 1].
        names: degradations of the bank, K.
        generator: source of kinds, strengths and rectangles.

    Returns:
        Damaged pictures, (B, 3, H, W), and the index of each pixel's degradation, (B, H, W) int64.
    """
    height, width = pictures.shape[-2:]
    labels = torch.zeros(len(pictures), height, width, dtype=torch.int64)
    made = []
    for k, picture in enumerate(pictures.split(1)):
        kinds = torch.randint(len(names), (2,), generator=generator).tolist()
        outside, inside = (bank(names[i]).draw(generator)(picture, generator) for i in kinds)
        sides = (torch.rand(2, generator=generator) * torch.tensor([height, width])).long().tolist()
        top, left = (
            int(torch.randint(whole - side + 1, (), generator=generator))
            for whole, side in zip((height, width), sides, strict=True)
        )
        box = ..., slice(top, top + sides[0]), slice(left, left + sides[1])
        mixed = outside.clone()
        mixed[box] = inside[box]
        labels[k] = kinds[0]
        labels[k][box] = kinds[1]
        made.append(mixed)
    return torch.cat(made), labels


class SegmentationHead(nn.Module):
    """Auxiliary head of phase I: kind of damage of each pixel, from the restorer's last features.

    Args:
        dim: channels of the features, C.
        kinds: K, degradations.
    """

    def __init__(self, dim: int, kinds: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1), nn.GELU(), nn.Conv2d(dim, kinds, 1))

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits at the picture's size.

        Args:
            features: (B, C, h, w).
            size: H and W.

        Returns:
            (B, K, H, W).
        """
        return F.interpolate(self.layers(features), size, mode="bilinear", align_corners=False)


@contextmanager
def _inputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """What a layer is given during a forward pass."""
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        yield seen
    finally:
        hook.remove()


def pretraining(
    network: nn.Module, head: SegmentationHead, batch: tuple[Tensor, Tensor, Tensor], *, last: str, weight: float = 0.01
) -> Tensor:
    """Objective of phase I.

    Args:
        network: restorer, (B, 3, H, W) to the same.
        head: segmentation head, dropped after this phase.
        batch: damaged pictures and originals, (B, 3, H, W), and labels, (B, H, W).
        last: name of the restorer's last layer, whose input the head sees.
        weight: λ.

    Returns:
        Loss, a scalar.
    """
    given, wanted, labels = batch
    with _inputs_of(network.get_submodule(last)) as seen:
        out = network(given)
    segments = head(seen[0], (given.shape[-2], given.shape[-1]))
    return F.l1_loss(out, wanted) + weight * F.cross_entropy(segments, labels)


class Adapter(nn.Module):
    """Low-rank updates of the weights of some convolutions; zero at the start.

    Args:
        weights: the convolutions' weights, (out, in, k, k) each.
        rank: r.
    """

    def __init__(self, weights: Sequence[Tensor], *, rank: int) -> None:
        super().__init__()
        self.up = nn.ParameterList(w.new_zeros(len(w), rank) for w in weights)
        self.down = nn.ParameterList(torch.randn(rank, w[0].numel()).to(w) * w[0].numel() ** -0.5 for w in weights)

    def forward(self) -> list[Tensor]:
        """The updates.

        Returns:
            U V of each convolution, (out, in · k · k).
        """
        return [up @ down for up, down in zip(self.up, self.down, strict=True)]


class Estimator(nn.Module):
    """Which degradations a picture has, by convolutions of it and its detail, their means and log-variances, one layer.

    Args:
        dim: channels.
        kinds: K.
    """

    def __init__(self, dim: int, kinds: int) -> None:
        super().__init__()
        widths = (6, dim, dim, dim)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(widths))
        self.head = nn.Linear(2 * dim, kinds)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the degradations.

        Args:
            x: (B, 3, H, W) in [0, 1].

        Returns:
            (B, K).
        """
        detail = x - F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        x = torch.cat([x - 0.5, 8 * detail], 1)
        for layer in self.layers:
            x = F.gelu(layer(x))
        spread = (x.var((2, 3), correction=0) + 1e-6).log()
        out: Tensor = self.head(torch.cat([x.mean((2, 3)), spread / 2 + 2], 1))
        return out


class ABAIR(nn.Module):
    """A frozen restorer with adapters blended for each picture, (B, 3, H, W) to the same.

    Args:
        network: pretrained restorer of plain convolutions; its parameters are frozen.
        names: degradations, one adapter each.
        rank: r, of the adapters.
        dim: channels of the estimator.

    Raises:
        ValueError: a network without convolutions.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], *, rank: int = 1, dim: int = 12) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.rank = rank
        self.places = tuple(f"{n}.weight" for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
        if not self.places:
            raise ValueError("ABAIR adapts convolutions, and the network has none; give a convolutional restorer")
        self.adapters = nn.ModuleDict()
        self.estimator = Estimator(dim, len(names))
        for name in names:
            self.adapters[name] = Adapter(self._weights(), rank=rank)

    def _weights(self) -> list[Tensor]:
        return [self.network.get_parameter(place) for place in self.places]

    def train(self, mode: bool = True) -> ABAIR:
        """Train or evaluate; the frozen restorer always evaluates.

        Args:
            mode: whether to train.

        Returns:
            Itself.
        """
        super().train(mode)
        self.network.eval()
        return self

    def add(self, name: str) -> None:
        """Take in a new degradation: a zero adapter, and one more output of the estimator, to be refreshed.

        Args:
            name: the degradation.

        Raises:
            ValueError: a degradation that has an adapter.
        """
        if name in self.adapters:
            raise ValueError(f"{name!r} has an adapter; the degradations are {', '.join(self.adapters)}")
        old = self.estimator.head
        self.adapters[name] = Adapter(self._weights(), rank=self.rank)
        self.estimator.head = nn.Linear(old.in_features, old.out_features + 1).to(old.weight)
        with torch.no_grad():
            self.estimator.head.weight[:-1] = old.weight
            self.estimator.head.bias[:-1] = old.bias

    def learn_(self, part: str) -> ABAIR:
        """Choose what the next training changes.

        Args:
            part: name of an adapter, or "estimator".

        Returns:
            Itself; only parameters of that part require gradients.

        Raises:
            ValueError: no such part.
        """
        if part != "estimator" and part not in self.adapters:
            raise ValueError(f"no part is called {part!r}; choose estimator or one of {', '.join(self.adapters)}")
        self.requires_grad_(False)
        (self.estimator if part == "estimator" else self.adapters[part]).requires_grad_(True)
        return self

    def blended(self, weights: Tensor) -> dict[str, Tensor]:
        """The restorer's convolutions with the adapters added.

        Args:
            weights: of the adapters, (K,); adapters of weight zero are skipped.

        Returns:
            Name of the parameter to W + Σₖ weightsₖ · Uₖ Vₖ.
        """
        sums = self._weights()
        for weight, adapter in zip(weights, self.adapters.values(), strict=True):
            if weight.requires_grad or float(weight) != 0:
                sums = [w + weight * update.view_as(w) for w, update in zip(sums, adapter(), strict=True)]
        return dict(zip(self.places, sums, strict=True))

    def adapted(self, x: Tensor, name: str) -> Tensor:
        """Restore pictures with one adapter, as in phase II.

        Args:
            x: (B, 3, H, W).
            name: degradation.

        Returns:
            (B, 3, H, W).
        """
        weights = torch.tensor([float(other == name) for other in self.adapters])
        out: Tensor = functional_call(self.network, self.blended(weights.to(x)), (x,))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Restore pictures, each with its own blend.

        Args:
            x: (B, 3, H, W).

        Returns:
            (B, 3, H, W).
        """
        weights = self.estimator(x).softmax(1)
        each = zip(x.split(1), weights, strict=True)
        return torch.cat([functional_call(self.network, self.blended(w), (one,)) for one, w in each])

    @torch.no_grad()
    def folded(self, weights: Tensor) -> nn.Module:
        """A plain network for one blend.

        Args:
            weights: of the adapters, (K,).

        Returns:
            A copy of the restorer that holds the blended weights.
        """
        made = copy.deepcopy(self.network)
        made.load_state_dict(self.blended(weights), strict=False)
        return made


def _case(seed: int) -> Any:
    """A blend of two random adapters of one convolution."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ABAIR(nn.Conv2d(3, 3, 3, padding=1), ("noise", "blur"))
        for name, parameter in model.adapters.named_parameters():
            if ".up." in name:
                nn.init.normal_(parameter)
        return model(torch.rand(2, 3, 9, 7)).detach()


METHOD = Method(
    id=43,
    name="ABAIR",
    kind="procedure",
    summary="One frozen restorer with a low-rank adapter per degradation, blended for each picture by an estimator.",
    paper=Paper("Adaptive Blind All-in-One Image Restoration", "D. Serrano-Lozano et al.", 2024, "arXiv:2411.18412"),
    cases={
        "two_adapters": Procedure(
            run=_case,
            empty=lambda: ABAIR(nn.Identity(), ("noise",)),
            refuses="ABAIR adapts convolutions, and the network has none; give a convolutional restorer",
        )
    },
)
