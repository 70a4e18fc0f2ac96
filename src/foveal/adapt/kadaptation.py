"""KAdaptation: changes that are sums of Kronecker products, put on the kind of layers that needs the fewest directions.

*Source*: X. He et al., "Parameter-efficient Model Adaptation for Vision Transformers", AAAI 2023 (arXiv:2203.16329),
section 3. A matrix W: (C_out, C_in) is changed by

    ΔW = Σ_i A_i ⊗ u_i v_i,   A_i: (t, t), shared by all layers,   u_i: (C_out/t, r),   v_i: (r, C_in/t),   i = 1…t

which takes t³ values once and r·(C_out + C_in) a matrix, as many as LoRA of rank r, for a rank up to r·t². Which layers
are changed is measured: in a random subspace of d dimensions, ΔW = P θ, the local intrinsic dimension of a group of
layers is the least d whose accuracy is 90 % of what training the group freely reaches; the group with the least is
taken. In the paper that is attention.

*Differs from the paper*: P is a dense Gaussian matrix with columns of norm 1 in each layer, in place of Fastfood, and
between two measured dimensions the accuracy is taken as linear in log d. u starts at zero. All linear layers of
attention are changed. A delta's file repeats the t³ shared values with every tensor.

*Provenance*: written from the paper; the authors' code was not compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from foveal.adapt.adapt import score
from foveal.adapt.attach import linear_layers
from foveal.adapt.delta import Dense
from foveal.adapt.learned import attached
from foveal.cases import Operator
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from foveal.adapt.delta import Delta
    from foveal.adapt.methods import Pictures

__all__ = [
    "FreePart",
    "Kronecker",
    "KroneckerPart",
    "SubspacePart",
    "attention_layers",
    "intrinsic_dimension",
    "kadaptation",
    "kronecker_sum",
    "measured_dimensions",
    "number_of_values",
]


def kronecker_sum(shared: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Σ_i A_i ⊗ (u_i v_i), in one contraction.

    Args:
        shared: A, (t, t, t), the first axis is i.
        up: u, (t, C_out/t, r).
        down: v, (t, r, C_in/t).

    Returns:
        (C_out, C_in).
    """
    blocks = torch.einsum("iab,icr,ird->acbd", shared, up, down)
    return blocks.reshape(blocks.shape[0] * blocks.shape[1], -1)


def _plain(shared: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return torch.stack([torch.kron(a, u @ v) for a, u, v in zip(shared, up, down, strict=True)]).sum(0)


def number_of_values(shapes: Iterable[tuple[int, int]], *, t: int, rank: int) -> int:
    """How many values learn.

    Args:
        shapes: (C_out, C_in) of each matrix.
        t: number of products.
        rank: r.

    Returns:
        t³ + r Σ (C_out + C_in).
    """
    return t**3 + rank * sum(rows + columns for rows, columns in shapes)


@dataclass(frozen=True)
class Kronecker:
    """A change kept as a sum of Kronecker products.

    Args:
        shared: A, (t, t, t).
        up: u, (t, C_out/t, r).
        down: v, (t, r, C_in/t).
    """

    shared: Tensor
    up: Tensor
    down: Tensor
    kind: ClassVar[str] = "kronecker"

    def difference(self) -> Tensor:
        """See `foveal.adapt.delta.Change`.

        Returns:
            ΔW, (C_out, C_in).
        """
        return kronecker_sum(self.shared, self.up, self.down)

    def scaled(self, factor: float) -> Kronecker:
        """See `foveal.adapt.delta.Change`.

        Args:
            factor: any number.

        Returns:
            The same factors, `up` scaled.
        """
        return Kronecker(self.shared, factor * self.up, self.down)


class KroneckerPart(nn.Module):
    """W + Σ_i A_i ⊗ (u_i v_i), equal to W at first.

    Args:
        weight: frozen weight, (C_out, C_in) or (C_out, C_in, k, k); both sides of the matrix are multiples of t.
        shared: A, (t, t, t), the same for all layers.
        rank: r, at least 1.

    Raises:
        ValueError: sides that t does not divide, or a rank below 1.
    """

    def __init__(self, weight: Tensor, shared: nn.Parameter, *, rank: int = 1) -> None:
        super().__init__()
        t, rows, columns = len(shared), weight.shape[0], math.prod(weight.shape[1:])
        if rank < 1 or rows % t or columns % t:
            raise ValueError(
                f"rank must be at least 1 and t divide both sides, got rank {rank} and t = {t} for {rows}×{columns}; "
                f"take t = {math.gcd(t, rows, columns)}"
            )
        self.shared = shared
        self.up = nn.Parameter(weight.new_zeros(t, rows // t, rank))
        self.down = nn.Parameter(weight.new_empty(t, rank, columns // t).uniform_(-1, 1) / columns**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        """Add the change.

        Args:
            weight: W.

        Returns:
            W + ΔW, of the same shape.
        """
        return weight + kronecker_sum(self.shared, self.up, self.down).view_as(weight)

    def change(self) -> Kronecker:
        """See `foveal.adapt.attach.Part`.

        Returns:
            The factors.
        """
        return Kronecker(self.shared.detach(), self.up.detach(), self.down.detach())


class SubspacePart(nn.Module):
    """W + P θ, in a random subspace whose coordinates all layers of a group share.

    Args:
        weight: frozen weight, any shape.
        coordinates: θ, (d,).
    """

    projection: Tensor

    def __init__(self, weight: Tensor, coordinates: nn.Parameter) -> None:
        super().__init__()
        self.coordinates = coordinates
        drawn = torch.randn(weight.numel(), len(coordinates)).to(weight)
        self.register_buffer("projection", drawn / drawn.norm(dim=0))

    def forward(self, weight: Tensor) -> Tensor:
        """Add the change.

        Args:
            weight: W.

        Returns:
            W + P θ, of the same shape.
        """
        return weight + (self.projection @ self.coordinates).view_as(weight)

    def change(self) -> Dense:
        """See `foveal.adapt.attach.Part`.

        Returns:
            P θ, flat.
        """
        return Dense(self.projection @ self.coordinates.detach())


class FreePart(nn.Module):
    """W + D, every value of D learns: what a group of layers reaches without a subspace.

    Args:
        weight: frozen weight, any shape.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros_like(weight))

    def forward(self, weight: Tensor) -> Tensor:
        """Add the change.

        Args:
            weight: W.

        Returns:
            W + D.
        """
        return weight + self.value

    def change(self) -> Dense:
        """See `foveal.adapt.attach.Part`.

        Returns:
            D.
        """
        return Dense(self.value.detach())


def intrinsic_dimension(accuracies: Mapping[int, float], full: float, *, share: float = 0.9) -> float:
    """The least dimension that reaches a share of the full accuracy.

    Args:
        accuracies: d → accuracy in a subspace of d dimensions, at least one.
        full: accuracy without a subspace.
        share: in (0, 1].

    Returns:
        d, linear in log d between two measured ones; infinite if none reaches it.

    Raises:
        ValueError: a share outside (0, 1], or no dimension.
    """
    if not 0 < share <= 1 or not accuracies:
        raise ValueError(f"share must be in (0, 1] and some dimension be measured, got {share} and {len(accuracies)}")
    wanted, before = share * full, None
    for d, found in sorted(accuracies.items()):
        if found >= wanted:
            if before is None:
                return float(d)
            step = (wanted - before[1]) / (found - before[1])
            return float(before[0] * (d / before[0]) ** step)
        before = (d, found)
    return math.inf


def measured_dimensions(
    model: nn.Module,
    pictures: Pictures,
    held: tuple[Tensor, Tensor],
    groups: Mapping[str, Callable[[str, nn.Module], bool]],
    *,
    dims: Sequence[int] = (8, 32, 128),
    share: float = 0.9,
    steps: int = 100,
    lr: float = 3e-3,
    lr_subspace: float = 3e-2,
    batch: int = 64,
    seed: int = 0,
    num_classes: int | None = None,
) -> dict[str, float]:
    """Local intrinsic dimension of groups of layers on a task; the head learns with each.

    Args:
        model: classifier; it stays as it is.
        pictures: pictures with labels.
        held: held-out inputs and labels.
        groups: name → function from a layer's name and the layer to whether it is one of the group.
        dims: dimensions to measure.
        share: of the accuracy of free training.
        steps: number of steps of each training.
        lr: peak learning rate of free training.
        lr_subspace: peak learning rate of coordinates.
        batch: B.
        seed: seed of batches and subspaces.
        num_classes: number of classes; None for the model's.

    Returns:
        Name → dimension.
    """

    def accuracy(make: Callable[[Tensor], nn.Module], where: Callable[[str, nn.Module], bool], rate: float) -> float:
        settings: dict[str, Any] = {
            "steps": steps,
            "lr": rate,
            "seed": seed,
            "batch": batch,
            "num_classes": num_classes,
        }
        undo = attached(model, pictures, make, method="subspace", where=where, **settings).fold_(model)
        try:
            return score(model, *held)
        finally:
            undo()

    found = {}
    for name, where in groups.items():
        reached = {}
        for d in dims:
            coordinates = nn.Parameter(torch.zeros(d))
            reached[d] = accuracy(lambda weight, at=coordinates: SubspacePart(weight, at), where, lr_subspace)  # type: ignore[misc]
        found[name] = intrinsic_dimension(reached, accuracy(FreePart, where, lr), share=share)
    return found


def attention_layers(name: str, module: nn.Module) -> bool:
    """Linear layers of attention, which have the least local intrinsic dimension in the paper.

    Args:
        name: dotted name of the module.
        module: any.

    Returns:
        Whether it is one.
    """
    return linear_layers(name, module) and "attn" in name


def kadaptation(
    model: nn.Module,
    pictures: Pictures,
    *,
    steps: int = 200,
    seed: int = 0,
    t: int = 4,
    rank: int = 1,
    lr: float = 5e-3,
    batch: int = 64,
    num_classes: int | None = None,
    where: Callable[[str, nn.Module], bool] | None = None,
) -> Delta:
    """Adapt a classifier by sums of Kronecker products.

    Args:
        model: classifier; it stays as it is.
        pictures: pictures with labels.
        steps: number of steps.
        seed: seed of batches and new parameters.
        t: number of products; layers whose sides it does not divide are left out.
        rank: r.
        lr: peak learning rate.
        batch: B.
        num_classes: number of classes; None for the model's.
        where: function from a layer's name and the layer to whether it gets a part; None takes attention, or all
            linear layers of a network without.

    Returns:
        What would change.
    """
    if where is None:
        some = any(attention_layers(name, module) for name, module in model.named_modules())
        where = attention_layers if some else linear_layers
    chosen = where
    generator = torch.Generator().manual_seed(seed)
    shared = nn.Parameter(torch.randn(t, t, t, generator=generator))

    def fits(name: str, module: nn.Module) -> bool:
        weight = getattr(module, "weight", None)
        return chosen(name, module) and weight is not None and not (len(weight) % t or weight[0].numel() % t)

    def make(weight: Tensor) -> KroneckerPart:
        return KroneckerPart(weight, shared, rank=rank)

    settings: dict[str, Any] = {"steps": steps, "lr": lr, "seed": seed, "batch": batch, "num_classes": num_classes}
    return attached(model, pictures, make, method="kadaptation", where=fits, **settings)


def _inputs(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"shared": (3, 3, 3), "up": (3, 5, 2), "down": (3, 2, 7)}
    return {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


METHOD = Method(
    id=137,
    name="KAdaptation",
    kind="operator",
    summary="Changes that are sums of Kronecker products with shared factors, where few directions are needed.",
    paper=Paper(
        "Parameter-efficient Model Adaptation for Vision Transformers", "X. He et al.", 2023, "arXiv:2203.16329"
    ),
    cases={"kronecker_sum": Operator(kronecker_sum, _plain, _inputs)},
)
