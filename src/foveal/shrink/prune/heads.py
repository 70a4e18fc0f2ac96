"""Attention heads, physically removed: rows of the joint query-key-value layer and columns of the projection."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.shrink.step import note

if TYPE_CHECKING:
    from collections.abc import Mapping

    from foveal.shrink.prune.score import Scorer

__all__ = ["attentions", "prune_heads_"]


def attentions(model: nn.Module) -> list[str]:
    """Names of attention modules with the members of timm's: `qkv`, `proj` and `num_heads`.

    Args:
        model: network.

    Returns:
        Names, in order.
    """
    found = []
    for name, module in model.named_modules():
        qkv, proj, heads = getattr(module, "qkv", None), getattr(module, "proj", None), getattr(module, "num_heads", 0)
        if not (isinstance(qkv, nn.Linear) and isinstance(proj, nn.Linear) and isinstance(heads, int) and heads):
            continue
        if qkv.out_features == 3 * proj.in_features and proj.in_features % heads == 0:
            found.append(name)
    return found


def _why_not(module: Any) -> str:
    if any(True for _ in module.parameters(recurse=False)):
        return "it has parameters of its own for each head"
    for word in ("norm", "gate"):
        if list(getattr(getattr(module, word, None), "parameters", list)()):
            return f"its {word} spans all heads"
    return ""


def prune_heads_(
    model: nn.Module,
    name: str,
    keep: float,
    inputs: Tensor,
    *,
    scorer: Scorer,
    gradient: Mapping[int, Tensor],
) -> int:
    """Remove the heads with the lowest scores from an attention module, in place.

    Where the network does not run afterwards, the module is put back and a note says so.

    Args:
        model: network in eval mode.
        name: name of the attention module.
        keep: share of the heads that stays; at least one does.
        inputs: inputs to try the network on.
        scorer: function from a weight, (units, …), and its gradient or None to scores.
        gradient: gradients by the identity of the parameter.

    Returns:
        Number of heads that were removed.
    """
    attention: Any = model.get_submodule(name)
    heads = attention.num_heads
    left = max(1, round(keep * heads))
    if left == heads:
        return 0
    if reason := _why_not(attention):
        note(f"prune: left the heads of {name}: {reason}")
        return 0
    qkv, proj = attention.qkv, attention.proj
    rows, columns = (
        [None if t is None else split(t).flatten(1).detach() for t in (layer.weight, gradient.get(id(layer.weight)))]
        for layer, split in (
            (qkv, lambda t: t.unflatten(0, (3, heads, -1)).transpose(0, 1)),
            (proj, lambda t: t.unflatten(1, (heads, -1)).transpose(0, 1)),
        )
    )
    parts = [scorer(weight, slope) for weight, slope in (rows, columns) if weight is not None]
    scores = sum(part / part.mean().clamp_min(1e-30) for part in parts)
    assert isinstance(scores, Tensor)
    stay = scores.argsort(descending=True, stable=True)[:left].sort().values
    before = copy.deepcopy(attention)

    def of_qkv(t: Tensor) -> Tensor:
        return t.unflatten(0, (3, heads, -1))[:, stay].flatten(0, 2)

    qkv.weight = nn.Parameter(of_qkv(qkv.weight.data))
    if qkv.bias is not None:
        qkv.bias = nn.Parameter(of_qkv(qkv.bias.data))
    proj.weight = nn.Parameter(proj.weight.data.unflatten(1, (heads, -1))[:, stay].flatten(1))
    qkv.out_features, proj.in_features = len(qkv.weight), proj.weight.shape[1]
    attention.num_heads = left
    if hasattr(attention, "attn_dim"):
        attention.attn_dim = proj.in_features
    try:
        with torch.no_grad():
            model(inputs)
    except (RuntimeError, ValueError, AssertionError):
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, before)
        note(f"prune: left the heads of {name}: {type(attention).__name__} takes all heads to span the input")
        return 0
    return heads - left
