"""ACLA: each pixel attends to a few pixels of earlier layers, at places and in a number that it chooses itself.

*Source*: Y. Wang et al., "Adaptive Cross-Layer Attention for Image Restoration", 2022 (arXiv:2203.03619), read in
abstract; formulas from the authors' code. x: features, (B, C, H, W), with those of L earlier layers x¹ … xᴸ, K keys a
layer:

    Δ = W_Δ x,  a = W_a x,  g = W_g x           offset in pixels, score and gate of key k of layer l at each pixel p
    m = 1[g + noise > 0]                        whether a key is kept; logistic noise while training
    y_p = Σ m e^a vˡ(p + Δ) / Σ m e^a           sums over l and k; vˡ = W_v xˡ, read bilinearly, 0 outside
    ACLA(x) = x + W y                           W: 1×1 each

Per pixel it costs (L + 1) C² + 9 K L C multiply-adds, whatever the picture's size; attention to all pixels of those
layers costs 2 L C for each of them. Gradients reach the gates straight through, by those of σ((g + noise) / τ); the
noise is the difference of two of Gumbel's. A pixel that keeps no key gets nothing.

Where a backbone gets such layers is learnt with its weights: position i has a gate of the same kind, and the loss a
term of the expected cost, Σᵢ σ(αᵢ) cᵢ / Σᵢ cᵢ (`Insertion`).

*Differs from the paper*: in the authors' code the gate multiplies the score and no key is left out; here, as the
abstract has it, keys that are not kept do not take part. Offsets start on a ring that widens with k and do not depend
on x yet; W starts at 0, so that a backbone is unchanged. The cost term is written from the abstract.

*Provenance*: written from the abstract and the authors' code. With all keys kept the sum equals that of their
CL_Attention to 9e-7 for the offsets that it reads.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ACLA", "Insertion", "cross_layer_attention", "cross_layer_attention_plain", "hard_gate"]

GATE = 2.0  # gates start as open as this: about nine of ten keys are kept


def _weights(scores: Tensor, kept: Tensor) -> Tensor:
    """Softmax over the kept keys of all layers, (B, L, K, H, W); 0 for the others."""
    top = scores.detach().masked_fill(kept == 0, float("-inf")).amax((1, 2), keepdim=True)
    # The clamp bounds the gradient of a gate that is shut; where all are shut there is no top.
    share = kept * (scores - top.masked_fill(top.isinf(), 0)).clamp_max(0).exp()
    total = share.sum((1, 2), keepdim=True)
    return share / (total + (total == 0))


def cross_layer_attention(values: Tensor, offset: Tensor, scores: Tensor, kept: Tensor) -> Tensor:
    """Weighted sum of a few pixels of each layer.

    Args:
        values: vˡ, (B, L, C, H, W).
        offset: rows and columns from a pixel to its keys, (B, L, K, 2, H, W).
        scores: a, (B, L, K, H, W).
        kept: m, 0 or 1, (B, L, K, H, W).

    Returns:
        y, (B, C, H, W); 0 where no key is kept.
    """
    batch, layers, keys = scores.shape[:3]
    height, width = values.shape[3:]
    rows, columns = (torch.arange(n, device=offset.device, dtype=offset.dtype) for n in (height, width))
    # grid_sample counts a picture from -1 to 1, from edge to edge.
    down = (2 * (offset[:, :, :, 0] + rows[:, None]) + 1) / height - 1
    right = (2 * (offset[:, :, :, 1] + columns) + 1) / width - 1
    # (B · L, K · H, W, 2)
    grid = torch.stack((right, down), -1).flatten(2, 3).flatten(0, 1)
    found = F.grid_sample(values.flatten(0, 1), grid, align_corners=False)
    # (B, L, C, K, H, W)
    found = found.view(batch, layers, -1, keys, height, width)
    return torch.einsum("blckhw,blkhw->bchw", found, _weights(scores, kept))


def cross_layer_attention_plain(values: Tensor, offset: Tensor, scores: Tensor, kept: Tensor) -> Tensor:
    """`cross_layer_attention` as a sum over all pixels, each weighed by how near a key lies to it.

    Args:
        values: vˡ, (B, L, C, H, W).
        offset: rows and columns from a pixel to its keys, (B, L, K, 2, H, W).
        scores: a, (B, L, K, H, W).
        kept: m, 0 or 1, (B, L, K, H, W).

    Returns:
        y, (B, C, H, W).
    """
    height, width = values.shape[3:]
    rows, columns = (torch.arange(n, device=offset.device, dtype=offset.dtype) for n in (height, width))
    down, right = offset[:, :, :, 0] + rows[:, None], offset[:, :, :, 1] + columns
    # (B, L, K, H, W, H) and (B, L, K, H, W, W): hats of width 2 around each pixel
    near_rows = (1 - (down[..., None] - rows).abs()).clamp_min(0)
    near_columns = (1 - (right[..., None] - columns).abs()).clamp_min(0)
    weights = _weights(scores, kept)
    return torch.einsum("blcij,blkhwi,blkhwj,blkhw->bchw", values, near_rows, near_columns, weights)


def hard_gate(logits: Tensor, *, temperature: float = 1.0, noisy: bool = False) -> Tensor:
    """0 or 1, with the gradient of a sigmoid.

    Args:
        logits: g, of any shape.
        temperature: τ, above 0; gradients are local where it is small.
        noisy: whether to add logistic noise, by which the gate is 1 with probability σ(g).

    Returns:
        1 where g, with its noise, is above 0, else 0.
    """
    if noisy:
        uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
        logits = logits + uniform.log() - (-uniform).log1p()
    soft = (logits / temperature).sigmoid()
    return (logits > 0).to(logits) + (soft - soft.detach())


class ACLA(nn.Module):
    """Attention to earlier layers, (B, C, H, W) to the same.

    Args:
        dim: C.
        layers: L, the number of earlier layers.
        keys: K, the number of keys of each layer.
        temperature: τ of the gates.

    Raises:
        ValueError: if there is no layer or no key.
    """

    def __init__(self, dim: int, layers: int, keys: int = 4, *, temperature: float = 1.0) -> None:
        super().__init__()
        if layers < 1 or keys < 1:
            raise ValueError(f"layers and keys must be at least 1, got {layers} and {keys}")
        self.layers, self.keys, self.temperature = layers, keys, temperature
        self.value, self.out = nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, dim, 1)
        # Offsets, scores and gates, in this order
        self.choose = nn.Conv2d(dim, 4 * layers * keys, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)
        with torch.no_grad():
            self.choose.weight[: 2 * layers * keys] = 0
            assert self.choose.bias is not None
            k = torch.arange(keys)
            angle, reach = 2 * math.pi * k / keys, 1 + 2 * k / keys
            ring = torch.stack((reach * angle.sin(), reach * angle.cos()), 1)
            scores, gates = torch.zeros(layers * keys), torch.full((layers * keys,), GATE)
            self.choose.bias.copy_(torch.cat((ring.repeat(layers, 1).flatten(), scores, gates)))

    def choices(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where the keys of each pixel lie, how much each counts and whether it is kept.

        Args:
            x: (B, C, H, W).

        Returns:
            Offsets, (B, L, K, 2, H, W); scores and gates, (B, L, K, H, W).
        """
        offset, scores, gates = self.choose(x).split([part * self.layers * self.keys for part in (2, 1, 1)], 1)
        shape = (self.layers, self.keys)
        kept = hard_gate(gates, temperature=self.temperature, noisy=self.training)
        return offset.unflatten(1, (*shape, 2)), scores.unflatten(1, shape), kept.unflatten(1, shape)

    def forward(self, x: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        """Attend.

        Args:
            x: (B, C, H, W).
            earlier: features of L earlier layers, (B, C, H, W) each.

        Returns:
            (B, C, H, W).

        Raises:
            ValueError: another number of layers.
        """
        if len(earlier) != self.layers:
            raise ValueError(f"features of {self.layers} earlier layers wanted, got {len(earlier)}")
        values = torch.stack([self.value(one) for one in earlier], 1)
        return x + self.out(cross_layer_attention(values, *self.choices(x)))


class Insertion(nn.Module):
    """Gates of the places in a backbone where a layer may be inserted.

    Args:
        costs: cᵢ, the cost of a layer at each place, such as its multiply-adds.
        temperature: τ.
    """

    costs: Tensor

    def __init__(self, costs: Sequence[float], *, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.logits = nn.Parameter(torch.zeros(len(costs)))
        self.register_buffer("costs", torch.tensor(costs, dtype=torch.float32) / sum(costs))

    def forward(self) -> Tensor:
        """Draw places.

        Returns:
            0 or 1 for each, (places,), to be multiplied with what the layer adds; without noise in evaluation.
        """
        return hard_gate(self.logits, temperature=self.temperature, noisy=self.training)

    def cost(self) -> Tensor:
        """Expected cost, to be added to the loss.

        Returns:
            Share of the cost of all places, a scalar in [0, 1].
        """
        return (self.logits.sigmoid() * self.costs).sum()


def _inputs(seed: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    shape = (2, 2, 3, 5, 7)
    return {
        "values": torch.randn(2, 2, 4, 5, 7, generator=draw),
        "offset": 2 * torch.randn(2, 2, 3, 2, 5, 7, generator=draw),
        "scores": torch.randn(shape, generator=draw),
        "kept": (torch.rand(shape, generator=draw) < 0.6).float(),
    }


METHOD = Method(
    id=71,
    name="ACLA",
    kind="operator",
    summary="Each pixel attends to a few pixels of earlier layers, at places and in a number that it chooses itself.",
    paper=Paper("Adaptive Cross-Layer Attention for Image Restoration", "Y. Wang et al.", 2022, "arXiv:2203.03619"),
    cases={"few keys": Operator(cross_layer_attention, cross_layer_attention_plain, _inputs)},
)
