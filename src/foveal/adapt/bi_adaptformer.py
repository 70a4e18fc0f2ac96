"""Bi-AdaptFormer: adapters whose weights are one bit each, trained as such and kept as packed bits.

*Source*: S. Jie et al., "Revisiting the Parameter Efficiency of Adapters from the Perspective of Precision Redundancy",
ICCV 2023 (arXiv:2307.16867), section 3. A matrix W with mean μ and deviation σ is replaced, in training too, by

    Ŵ = σ · Q((W - μ) / σ) + μ,   Q(z): the nearest of 2^b levels with the least error for z ~ N(0, 1)

with the gradient of Q taken as 1. One bit has the levels ±√(2/π). Stored are b bits a weight and μ, σ a matrix. The
matrices are those of AdaptFormer, y = MLP(x) + s · up relu(down x), or the factors of a low-rank change, which folds:
`PackedLowRank` is that change in a `Delta`.

*Differs from the paper*: the adapter reads the MLP's input, after its norm. Levels have the least squared error
(Lloyd and Max); the authors' code iterates medians, which is the least absolute error and gives ±0.6745 for one bit:
`error="absolute"`. `up` starts near zero and not at it, as in the authors' code, since the levels have no zero.

*Provenance*: written from the paper; levels for the absolute error equal the authors' to 1e-6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from foveal.adapt.coded import CodedMatrix, gaussian_levels, unpacked
from foveal.adapt.delta import AdaptError
from foveal.adapt.learned import attached
from foveal.cases import Procedure
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from pathlib import Path

    from foveal.adapt.delta import Delta
    from foveal.adapt.methods import Pictures

__all__ = [
    "BinaryAdapter",
    "BinaryPart",
    "PackedLowRank",
    "adaptformer_",
    "bi_adaptformer",
    "load_adapters_",
    "save_adapters",
]


@dataclass(frozen=True)
class PackedLowRank:
    """A low-rank change whose factors are kept as bits.

    Args:
        up: bytes of the outer factor.
        down: bytes of the inner factor.
        scalars: μ and σ of both, (2, 2).
        sizes: rows, rank, columns and bits, (4,), int32.
    """

    up: Tensor
    down: Tensor
    scalars: Tensor
    sizes: Tensor
    kind: ClassVar[str] = "packed-low-rank"

    def difference(self) -> Tensor:
        """See `foveal.adapt.delta.Change`.

        Returns:
            ΔW, (C_out, C_in·k·k).
        """
        rows, rank, columns, bits = self.sizes.tolist()
        up = unpacked(self.up, self.scalars[0], (rows, rank), bits)
        return up @ unpacked(self.down, self.scalars[1], (rank, columns), bits)

    def scaled(self, factor: float) -> PackedLowRank:
        """See `foveal.adapt.delta.Change`.

        Args:
            factor: any number.

        Returns:
            The same bits, μ and σ of `up` scaled.
        """
        return PackedLowRank(self.up, self.down, torch.stack([factor * self.scalars[0], self.scalars[1]]), self.sizes)


class BinaryPart(nn.Module):
    """W + up · down with coded factors; nearly W at first.

    Args:
        weight: frozen weight, (C_out, C_in) or (C_out, C_in, k, k).
        rank: r, at least 1.
        bits: b.

    Raises:
        ValueError: a rank below 1.
    """

    def __init__(self, weight: Tensor, *, rank: int = 32, bits: int = 1) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}; one bit a weight allows 16 times that of fp16")
        columns = math.prod(weight.shape[1:])
        self.up = CodedMatrix(weight.shape[0], rank, bits=bits, deviation=1e-3)
        self.down = CodedMatrix(rank, columns, bits=bits, deviation=(3 * columns) ** -0.5)

    def forward(self, weight: Tensor) -> Tensor:
        """Add the change.

        Args:
            weight: W.

        Returns:
            W + ΔW, of the same shape.
        """
        return weight + (self.up() @ self.down()).view_as(weight)

    def change(self) -> PackedLowRank:
        """See `foveal.adapt.attach.Part`.

        Returns:
            The bits.
        """
        (up, first), (down, second) = self.up.packed(), self.down.packed()
        sizes = torch.tensor([*self.up.weight.shape, self.down.weight.shape[1], self.up.bits], dtype=torch.int32)
        return PackedLowRank(up, down, torch.stack([first, second]), sizes)


class BinaryAdapter(nn.Module):
    """AdaptFormer with coded matrices beside an MLP: MLP(x) + s · up relu(down x).

    Args:
        mlp: the frozen MLP, (…, C) to (…, C).
        dim: C.
        hidden: width of the adapter.
        bits: b.
        scale: s.
    """

    def __init__(self, mlp: nn.Module, dim: int, *, hidden: int = 32, bits: int = 1, scale: float = 1.0) -> None:
        super().__init__()
        self.mlp, self.scale = mlp, scale
        self.down = CodedMatrix(hidden, dim, bits=bits, deviation=(3 * dim) ** -0.5)
        self.up = CodedMatrix(dim, hidden, bits=bits, deviation=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """MLP and adapter.

        Args:
            x: (…, C).

        Returns:
            (…, C).
        """
        return self.mlp(x) + self.scale * (x @ self.down().T).relu() @ self.up().T  # type: ignore[no-any-return]


def adaptformer_(model: nn.Module, *, hidden: int = 32, bits: int = 1, scale: float = 1.0) -> dict[str, BinaryAdapter]:
    """Put an adapter beside each MLP of a transformer, in place; only the adapters learn afterwards.

    Args:
        model: transformer whose MLPs are called `mlp` and begin with a linear layer, as timm's do.
        hidden: width of the adapters.
        bits: b.
        scale: s.

    Returns:
        Name of each MLP → its adapter.

    Raises:
        AdaptError: no MLP.
    """
    found = [(name, module) for name, module in model.named_modules() if name.rpartition(".")[2] == "mlp"]
    if not found:
        raise AdaptError(f"{type(model).__name__} has no module called mlp; use bi_adaptformer, which takes any layer")
    model.requires_grad_(False)
    made = {}
    for name, module in found:
        dim = next(m for m in module.modules() if isinstance(m, nn.Linear)).in_features
        parent, _, last = name.rpartition(".")
        made[name] = BinaryAdapter(module, dim, hidden=hidden, bits=bits, scale=scale)
        setattr(model.get_submodule(parent), last, made[name])
    return made


def _coded(model: nn.Module) -> dict[str, CodedMatrix]:
    return {name: module for name, module in model.named_modules() if isinstance(module, CodedMatrix)}


def save_adapters(model: nn.Module, path: Path | str) -> None:
    """Write the bits of all coded matrices to one file.

    Args:
        model: transformer with adapters.
        path: .safetensors file.
    """
    from safetensors.torch import save_file

    found = {name: matrix.packed() for name, matrix in _coded(model).items()}
    words = ("bits", "scalars")
    save_file({f"{name}.{word}": t for name, pair in found.items() for word, t in zip(words, pair, strict=True)}, path)


def load_adapters_(model: nn.Module, path: Path | str) -> None:
    """Give adapters the matrices of a file, in place: they compute bit for bit what the saved ones did.

    Args:
        model: transformer with adapters of the same sizes.
        path: file written by `save_adapters`.

    Raises:
        AdaptError: a file of other adapters.
    """
    from safetensors.torch import load_file

    stored, found = load_file(path), _coded(model)
    for name, matrix in found.items():
        packed, scalars = stored.get(f"{name}.bits"), stored.get(f"{name}.scalars")
        wanted = -(-matrix.weight.numel() * matrix.bits // 8)
        if packed is None or scalars is None or len(packed) != wanted:
            raise AdaptError(f"{path}: no {wanted} bytes for {name!r}; insert adapters of the sizes that were saved")
        shape = (matrix.weight.shape[0], matrix.weight.shape[1])
        value = unpacked(packed, scalars, shape, matrix.bits)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, _Fixed(value))


class _Fixed(nn.Module):
    """A matrix that was loaded and no longer learns; coding it anew would move μ and σ."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self) -> Any:
        return self.value


def bi_adaptformer(
    model: nn.Module,
    pictures: Pictures,
    *,
    steps: int = 200,
    seed: int = 0,
    rank: int = 32,
    bits: int = 1,
    lr: float = 3e-3,
    batch: int = 64,
    num_classes: int | None = None,
) -> Delta:
    """Adapt a classifier by low-rank changes of one bit a value, which fold.

    Args:
        model: classifier; it stays as it is.
        pictures: pictures with labels.
        steps: number of steps.
        seed: seed of batches and new parameters.
        rank: r.
        bits: b.
        lr: peak learning rate.
        batch: B.
        num_classes: number of classes; None for the model's.

    Returns:
        What would change.
    """

    def make(weight: Tensor) -> BinaryPart:
        return BinaryPart(weight, rank=rank, bits=bits)

    settings: dict[str, Any] = {"steps": steps, "lr": lr, "seed": seed, "batch": batch, "num_classes": num_classes}
    return attached(model, pictures, make, method="one-bit", **settings)


def _reloaded(seed: int) -> Tensor:
    torch.manual_seed(seed)
    return BinaryPart(torch.zeros(5, 7), rank=3).change().difference()


METHOD = Method(
    id=84,
    name="Bi-AdaptFormer",
    kind="procedure",
    summary="Adapters trained with one bit a weight and kept as packed bits and two numbers a matrix.",
    paper=Paper(
        "Revisiting the Parameter Efficiency of Adapters from the Perspective of Precision Redundancy",
        "S. Jie et al.",
        2023,
        "arXiv:2307.16867",
    ),
    cases={"reload": Procedure(_reloaded, lambda: gaussian_levels(0), "bits must be 1, 2 or 4")},
)
