"""Changes in training: a layer's weight is computed from the frozen one and a few parameters that learn.

`attach_` puts a part on layers by torch's parametrisation, so that the layer itself, and whatever calls it, stays as it
is; `difference` reads what was learnt as a `Delta`.

    work = copy.deepcopy(model).requires_grad_(False)
    attach_(work, partial(LowRankPart, rank=4))
    ...                                           # train the parameters with requires_grad
    delta = difference(model, work)

LoRA (E. Hu et al., arXiv:2106.09685) is the part that the others are compared with: ΔW = α/r · up · down, up = 0.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from foveal.adapt.delta import AdaptError, Delta, Dense, LowRank, Replaced, fingerprint, tensor_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from foveal.adapt.delta import Change

__all__ = ["LowRankPart", "Part", "attach_", "difference", "linear_layers", "parts"]


class Part(Protocol):
    """What is put on a weight: an `nn.Module` whose parameters learn."""

    def __call__(self, weight: Tensor) -> Tensor:
        """The weight that the layer uses.

        Args:
            weight: frozen weight.

        Returns:
            The changed weight, of the same shape.
        """
        ...

    def change(self) -> Change:
        """What was learnt.

        Returns:
            The change, as it is stored.
        """
        ...


class LowRankPart(nn.Module):
    """LoRA: W + α/r · up · down, equal to W at first.

    Args:
        weight: frozen weight, (C_out, C_in) or (C_out, C_in, k, k).
        rank: r, at least 1.
        alpha: α; None for r, so that the factor is 1.

    Raises:
        ValueError: a rank below 1 or above both sides of the matrix.
    """

    def __init__(self, weight: Tensor, *, rank: int = 4, alpha: float | None = None) -> None:
        super().__init__()
        rows, columns = weight.shape[0], math.prod(weight.shape[1:])
        if not 1 <= rank <= min(rows, columns):
            raise ValueError(f"rank must be in 1…{min(rows, columns)} for a matrix of {rows}×{columns}, got {rank}")
        self.factor = 1.0 if alpha is None else alpha / rank
        self.up = nn.Parameter(weight.new_zeros(rows, rank))
        self.down = nn.Parameter(weight.new_empty(rank, columns).uniform_(-1, 1) / columns**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.factor * self.up @ self.down).view_as(weight)

    def change(self) -> LowRank:
        """See `Part`.

        Returns:
            The factors, `up` scaled by α/r.
        """
        return LowRank(self.factor * self.up.detach(), self.down.detach())


def linear_layers(name: str, module: nn.Module) -> bool:
    """The usual choice of layers: linear ones inside the network, without its head.

    Args:
        name: dotted name of the module.
        module: any.

    Returns:
        Whether it gets a part.
    """
    return isinstance(module, nn.Linear) and name.rpartition(".")[2] not in ("head", "fc", "classifier")


def attach_(
    model: nn.Module, make: Callable[[Tensor], nn.Module], *, where: Callable[[str, nn.Module], bool] = linear_layers
) -> dict[str, nn.Module]:
    """Put a part on the weights of some layers, in place; the weights below it no longer learn.

    Args:
        model: network.
        make: function from a weight to its part.
        where: function from a layer's name and the layer to whether it gets one.

    Returns:
        Name of each weight → its part.

    Raises:
        AdaptError: no layer is chosen, or one that has a part.
    """
    chosen = [(name, module) for name, module in model.named_modules() if where(name, module)]
    if not chosen:
        raise AdaptError(f"no layer of {type(model).__name__} is chosen; let `where` take some, such as convolutions")
    made: dict[str, nn.Module] = {}
    for name, module in chosen:
        if parametrize.is_parametrized(module, "weight"):
            raise AdaptError(f"{name!r} has a part already; train one at a time and add the deltas")
        weight: Any = module.weight
        weight.requires_grad_(False)
        made[f"{name}.weight"] = make(weight)
        parametrize.register_parametrization(module, "weight", made[f"{name}.weight"])
    return made


def parts(model: nn.Module) -> dict[str, nn.Module]:
    """The parts that are attached.

    Args:
        model: network.

    Returns:
        Name of each weight → its part.
    """
    return {
        f"{name}.weight".lstrip("."): module.parametrizations.weight[0]  # type: ignore[union-attr, index]
        for name, module in model.named_modules()
        if parametrize.is_parametrized(module, "weight")
    }


@torch.no_grad()
def difference(before: nn.Module, after: nn.Module, **about: Any) -> Delta:
    """What an adaptation changed: parts as they are stored, other parameters and buffers by their difference.

    Args:
        before: the model as it was.
        after: a copy of it that was adapted; parts may be attached.
        **about: plain facts to keep with the delta.

    Returns:
        The delta from `before` to `after`; tensors that stayed equal are not in it.

    Raises:
        AdaptError: a copy with tensors that the model does not have.
    """
    attached = parts(after)
    changes: dict[str, Change] = {name: part.change() for name, part in attached.items()}  # type: ignore[operator]
    for name, new in [*after.named_parameters(), *after.named_buffers()]:
        if ".parametrizations." in f".{name}" or name.endswith("num_batches_tracked"):
            continue  # what is attached was read above; a counter of batches changes no output
        old = tensor_of(before, name)
        if old is None:
            raise AdaptError(f"{name!r} is not in the model before; a delta changes tensors and adds none")
        if old.shape != new.shape:
            changes[name] = Replaced(new.detach().clone())
        elif not torch.equal(old, new):
            changes[name] = Dense((new - old).detach())
    base = {name: fingerprint(tensor) for name in changes if (tensor := tensor_of(before, name)) is not None}
    return Delta(changes, base, about)
