"""BiViT: a vision transformer of one-bit weights and activations, with an attention map of zeros and ones.

*Source*: Y. He et al., "BiViT: Extremely Compressed Binary Vision Transformer", ICCV 2023 (arXiv:2211.07091), section 3
(softmax-aware binarisation, cross-layer binarisation, parameterised weight scales).

    attention:  A = softmax(QKᵀ),  Â = α B,  B in {0, 1}:   minimise ‖A_i − α_i B_i‖² for each query i
                its k largest entries, S_k their sum:       k_i = argmax S_k² / k,  α_i = S_k / k
    layers:     y = s ∘ (sign(W) sign(x)) mean|x| + b       s learnt, one for each output channel, from mean |W|
    QKᵀ:        sign(Q) sign(K)ᵀ ∘ mean|Q| mean|K|ᵀ / √d     BV: signs of V, by head and channel
    phases:     first the attention modules are binary and the MLPs real, and trained; then the MLPs too

Long-tailed rows keep few entries and flat ones many, so a threshold follows each row. Tokens x (B, N, C); A and B
(B, heads, N, N). Gradients are straight through: the identity for A, 1[|·| ≤ 1] for signs. All products are
`foveal.ops.xnor`'s: B V = ((2B − 1) sign(V) + Σ_j sign(V_j)) / 2. Patch embedding, norms and head stay real.

*Differs from the paper*: the scales of activations, which it leaves open, are means of magnitudes by token (by head for
Q and K), as in XNOR-Net; the optimal threshold of a row is found exactly by sorting.
*Provenance*: written from the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.cases import Transform
from foveal.ops.xnor import sign, xnor_matmul
from foveal.record import Method, Paper
from foveal.shrink.quantize.fake import QuantizedLayer, straight_through
from foveal.shrink.quantize.xnor_net import filter_scales, weight_signs

if TYPE_CHECKING:
    from collections.abc import Callable

    from foveal.shrink.data import Data
    from foveal.shrink.step import Inputs

__all__ = ["BiViT", "BinaryAttention", "BinaryLinear", "LearntScale", "phases", "select", "softmax_aware"]


def softmax_aware(attention: Tensor) -> tuple[Tensor, Tensor]:
    """The closest α B to each row of an attention map.

    Args:
        attention: attention, at least 0, (…, N, N).

    Returns:
        B, 0 or 1, (…, N, N), and α, (…, N, 1).
    """
    order = attention.sort(dim=-1, descending=True)
    counts = torch.arange(1, attention.shape[-1] + 1, device=attention.device, dtype=attention.dtype)
    sums = order.values.cumsum(-1)
    best = (sums.square() / counts).argmax(-1, keepdim=True)
    chosen = torch.zeros_like(attention).scatter(-1, order.indices, (counts - 1 <= best).to(attention.dtype))
    return chosen, sums.gather(-1, best) / (best + 1)


def select(chosen: Tensor, v: Tensor) -> Tensor:
    """Sums of the signs of the chosen rows, exact: B @ sign(V).

    Args:
        chosen: B, 0 or 1, (…, M, N).
        v: V, (…, N, D).

    Returns:
        Sums, (…, M, D).
    """
    return (xnor_matmul(2 * chosen - 1, v.mT) + sign(v).sum(-2, keepdim=True)) / 2


class LearntScale(nn.Module):
    """Weight quantiser s ∘ sign(W) with a learnt scale for each output channel, stored as bits and scales.

    Args:
        weight: weight, (N, K), whose mean magnitudes the scales start from.
    """

    bits = 1

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(filter_scales(weight).clone())

    def forward(self, weight: Tensor) -> Tensor:
        """Quantise.

        Args:
            weight: weight, (N, K).

        Returns:
            s ∘ sign(W).
        """
        return self.scale * weight_signs(weight)

    def encode(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Encode weights.

        Args:
            x: weight, (N, K).

        Returns:
            Codes, 1 for weights of at least 0, int64; `scale`.
        """
        return (x.detach() >= 0).long(), {"scale": self.scale.detach()}

    def decode(self, codes: Tensor, constants: dict[str, Tensor]) -> Tensor:
        """Decode weights.

        Args:
            codes: 0 or 1, (N, K).
            constants: `scale`.

        Returns:
            Weights, ±scale.
        """
        return constants["scale"] * (2 * codes - 1)


class BinaryLinear(QuantizedLayer):
    """A linear layer of binary weights and inputs with learnt scales.

    Args:
        layer: linear layer.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer, weight=LearntScale(layer.weight))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: tokens, (…, K).

        Returns:
            Outputs, (…, N).
        """
        weight, quantizer = self.layer.weight, self.weight_quantizer
        # A layer loaded from a packed file holds ±s already.
        scale = quantizer.scale if isinstance(quantizer, LearntScale) else weight.abs().amax(1, keepdim=True)
        y = xnor_matmul(x, weight_signs(weight)) * scale.flatten() * x.abs().mean(-1, keepdim=True)
        return y if self.layer.bias is None else y + self.layer.bias


class BinaryAttention(nn.Module):
    """Self-attention of binary queries, keys, values and attention map, tokens (B, N, C) to (B, N, C).

    Args:
        attention: attention module of timm, without mask, gate or dropout of its map.
        binarise: function from an attention map to B and α.

    Raises:
        ValueError: an attention module with a gate, or dropout of its map.
    """

    def __init__(self, attention: Any, *, binarise: Callable[[Tensor], tuple[Tensor, Tensor]] = softmax_aware) -> None:
        super().__init__()
        if getattr(attention, "gate", None) is not None or attention.attn_drop.p > 0:
            raise ValueError("binary attention has no gate and no dropout of its map; build the model without them")
        self.num_heads, self.scale, self.binarise = attention.num_heads, attention.scale, binarise
        self.qkv, self.proj = BinaryLinear(attention.qkv), BinaryLinear(attention.proj)
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        self.norm, self.proj_drop = getattr(attention, "norm", nn.Identity()), attention.proj_drop

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Attend.

        Args:
            x: tokens, (B, N, C).
            attn_mask: None.
            is_causal: False.

        Returns:
            Tokens, (B, N, C).

        Raises:
            ValueError: a mask.
        """
        if attn_mask is not None or is_causal:
            raise ValueError("binary attention takes no mask; leave attn_mask and is_causal out")
        # (B, N, 3·C) to three of (B, heads, N, d)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        sizes = q.abs().mean(-1, keepdim=True) * k.abs().mean(-1)[..., None, :]
        attention = (xnor_matmul(q, k) * sizes * self.scale).softmax(-1)
        chosen, alpha = self.binarise(attention.detach())
        # α · (A / α) has the gradient of A.
        chosen = straight_through(attention / alpha, chosen)
        y = select(chosen, v) * alpha * v.abs().mean((-2, -1), keepdim=True)
        return self.proj_drop(self.proj(self.norm(y.transpose(1, 2).flatten(2))))


@dataclass(frozen=True)
class BiViT:
    """Step: make a trained vision transformer of timm binary, to be trained further; `phases` gives the paper's order.

    Args:
        attention: whether the attention modules become binary.
        mlp: whether the linear layers of the MLPs become binary.
        binarise: function from an attention map to B and α.

    Raises:
        ValueError: neither part.
    """

    attention: bool = True
    mlp: bool = True
    binarise: Callable[[Tensor], tuple[Tensor, Tensor]] = softmax_aware

    def __post_init__(self) -> None:
        if not (self.attention or self.mlp):
            raise ValueError("BiViT makes attention, mlp or both binary, got neither")

    def apply(self, model: nn.Module, data: Inputs | Data | None = None) -> nn.Module:  # noqa: ARG002 - the protocol
        """Replace attention modules and MLP layers, in place.

        Args:
            model: vision transformer of timm.
            data: not used.

        Returns:
            The same model, to be trained.

        Raises:
            ValueError: no block to change, or blocks that are binary already.
        """
        blocks: list[Any] = [m for m in model.modules() if hasattr(m, "attn") and hasattr(m, "mlp")]
        if not blocks:
            raise ValueError(f"{type(model).__name__} has no blocks of attn and mlp; take a vision transformer of timm")
        done = (
            [isinstance(b.attn, BinaryAttention) for b in blocks],
            [isinstance(b.mlp.fc1, BinaryLinear) for b in blocks],
        )
        if (self.attention and any(done[0])) or (self.mlp and any(done[1])):
            raise ValueError("the model is binary already; apply each part once")
        for block in blocks:
            if self.attention:
                block.attn = BinaryAttention(block.attn, binarise=self.binarise)
            if self.mlp:
                block.mlp.fc1, block.mlp.fc2 = BinaryLinear(block.mlp.fc1), BinaryLinear(block.mlp.fc2)
        return model


def phases(binarise: Callable[[Tensor], tuple[Tensor, Tensor]] = softmax_aware) -> tuple[BiViT, BiViT]:
    """Cross-layer binarisation: the steps of the two phases, each to be followed by training.

    Args:
        binarise: function from an attention map to B and α.

    Returns:
        The attention modules, then the MLPs.
    """
    return BiViT(mlp=False, binarise=binarise), BiViT(attention=False, binarise=binarise)


def _tiny(seed: int) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3)


METHOD = Method(
    id=318,
    name="BiViT",
    kind="transform",
    summary="A vision transformer of bits whose attention map keeps, for each query, the entries that fit it best.",
    paper=Paper("BiViT: Extremely Compressed Binary Vision Transformer", "Y. He et al.", 2022, "arXiv:2211.07091"),
    cases={
        "vit": Transform(
            BiViT().apply,
            _tiny,
            lambda seed: torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed)),
            twice="the model is binary already",
        )
    },
)
