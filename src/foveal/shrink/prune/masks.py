"""Masks of weights: patterns made from scores, checks of patterns, and layers that train under a mask.

A mask is a boolean tensor of the weight's shape, True where a weight stays. Weights are read as matrices (out, in): a
convolution's input channels and taps are its columns, in torch's order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Mask",
    "bake_",
    "block_mask",
    "density",
    "fine_mask",
    "global_mask",
    "is_blocks",
    "is_n_of_m",
    "mask_",
    "masked",
    "n_of_m_mask",
]


def _share(keep: float) -> None:
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be in (0, 1], got {keep}; it is the share that stays")


def fine_mask(scores: Tensor, keep: float) -> Tensor:
    """Keep the weights with the highest scores.

    Args:
        scores: score of each weight, of any shape.
        keep: share that stays, in (0, 1].

    Returns:
        Mask with round(keep·n) entries True; of equal scores the first stay.

    Raises:
        ValueError: a share outside its range.
    """
    _share(keep)
    order = scores.reshape(-1).sort(descending=True, stable=True).indices
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[order[: round(keep * scores.numel())]] = True
    return mask.view(scores.shape)


def global_mask(scores: Mapping[str, Tensor], keep: float) -> dict[str, Tensor]:
    """Keep the weights with the highest scores over all layers together.

    Args:
        scores: scores by layer.
        keep: share of all weights that stays, in (0, 1].

    Returns:
        Masks by layer.
    """
    together = fine_mask(torch.cat([x.reshape(-1) for x in scores.values()]), keep)
    parts = together.split([x.numel() for x in scores.values()])
    return {name: part.view(x.shape) for (name, x), part in zip(scores.items(), parts, strict=True)}


def n_of_m_mask(scores: Tensor, n: int, m: int) -> Tensor:
    """Keep the n highest of every m scores in a row.

    Args:
        scores: scores of a weight, (out, …).
        n: entries that stay of each group.
        m: size of a group; must divide the row.

    Returns:
        Mask.

    Raises:
        ValueError: n outside 1…m, or a row that m does not divide.
    """
    rows = scores.reshape(len(scores), -1)
    if not 1 <= n <= m:
        raise ValueError(f"n must be in 1…m, got n = {n} and m = {m}")
    if rows.shape[1] % m:
        raise ValueError(f"rows of {rows.shape[1]} weights do not divide into groups of {m}; leave this layer dense")
    groups = rows.reshape(len(rows), -1, m)
    best = groups.sort(dim=-1, descending=True, stable=True).indices[..., :n]
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, best, True).view(scores.shape)


def block_mask(scores: Tensor, keep: float, block: tuple[int, int]) -> Tensor:
    """Keep the blocks with the highest mean score.

    Args:
        scores: scores of a weight, (out, …).
        keep: share of the blocks that stays, in (0, 1].
        block: rows and columns of a block; must divide the weight.

    Returns:
        Mask of whole blocks.

    Raises:
        ValueError: blocks that do not divide the weight, or a share outside its range.
    """
    rows = scores.reshape(len(scores), -1)
    height, width = block
    if rows.shape[0] % height or rows.shape[1] % width:
        raise ValueError(f"a weight of {tuple(rows.shape)} does not divide into blocks of {block}; choose other blocks")
    tiles = rows.view(len(rows) // height, height, -1, width).mean((1, 3))
    kept = fine_mask(tiles, keep)
    return kept.repeat_interleave(height, 0).repeat_interleave(width, 1).view(scores.shape)


def is_n_of_m(weight: Tensor, n: int, m: int) -> bool:
    """Whether every m weights in a row hold at most n that are not zero.

    Args:
        weight: weight or mask, (out, …).
        n: largest number of entries.
        m: size of a group.

    Returns:
        Whether the pattern holds.
    """
    rows = weight.reshape(len(weight), -1)
    return rows.shape[1] % m == 0 and int((rows != 0).view(-1, m).sum(1).max()) <= n


def is_blocks(mask: Tensor, block: tuple[int, int]) -> bool:
    """Whether a mask consists of whole blocks.

    Args:
        mask: mask, (out, …).
        block: rows and columns of a block.

    Returns:
        Whether the pattern holds.
    """
    rows = mask.reshape(len(mask), -1)
    height, width = block
    if rows.shape[0] % height or rows.shape[1] % width:
        return False
    tiles = (rows != 0).view(len(rows) // height, height, -1, width).sum((1, 3))
    return bool(((tiles == 0) | (tiles == height * width)).all())


class Mask(nn.Module):
    """Parametrisation that multiplies a weight by a mask, so that training keeps the zeros.

    Args:
        mask: mask of the weight's shape.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """The masked weight.

        Args:
            weight: weight.

        Returns:
            Weight with zeros where the mask is False.
        """
        return weight * self.mask


def mask_(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Put masks on the weights of layers, in place; a mask that is there already is replaced.

    Args:
        model: network.
        masks: masks by the layer's name.

    Returns:
        The same model.

    Raises:
        ValueError: a layer without a weight, or a mask of another shape.
    """
    for name, mask in masks.items():
        layer = model.get_submodule(name)
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, Tensor) or weight.shape != mask.shape:
            got = "no weight" if not isinstance(weight, Tensor) else f"a weight of {tuple(weight.shape)}"
            raise ValueError(f"layer {name!r} has {got}, the mask is {tuple(mask.shape)}")
        found = _mask_of(layer)
        if found is None:
            parametrize.register_parametrization(layer, "weight", Mask(mask.bool()))
        else:
            found.mask = mask.bool()
    return model


def _mask_of(layer: nn.Module) -> Mask | None:
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    return next((p for p in layer.parametrizations["weight"] if isinstance(p, Mask)), None)  # type: ignore[index, union-attr]


def masked(model: nn.Module) -> dict[str, Tensor]:
    """The masks in a model.

    Args:
        model: network.

    Returns:
        Masks by the layer's name.
    """
    return {name: mask.mask for name, layer in model.named_modules() if (mask := _mask_of(layer)) is not None}


def bake_(model: nn.Module) -> nn.Module:
    """Make masks permanent: weights hold their zeros, and the masks are gone.

    Args:
        model: network.

    Returns:
        The same model.
    """
    for name in masked(model):
        parametrize.remove_parametrizations(model.get_submodule(name), "weight")
    return model


def density(model: nn.Module) -> float:
    """Share of the weights of linear layers and convolutions that are not zero.

    Args:
        model: network, with masks or without.

    Returns:
        Share in [0, 1].

    Raises:
        ValueError: a model without such layers.
    """
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)]
    if not weights:
        raise ValueError(f"{type(model).__name__} has no linear layer or convolution")
    return sum(int((w != 0).sum()) for w in weights) / sum(w.numel() for w in weights)
