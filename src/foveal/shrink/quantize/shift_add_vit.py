"""ShiftAddViT: a trained vision transformer whose products become additions and shifts, some tokens excepted.

*Source*: H. You et al., "ShiftAddViT: Mixture of Multiplication Primitives Towards Efficient Vision Transformer",
NeurIPS 2023 (arXiv:2306.06446), section 4 (reparameterised attention, shift layers, mixture of experts).

    add:     q, k in {0, 1}: 1 above the token's mean     y = V/2 + q (kᵀ V)/π,  y/‖y‖ + dwconv(V)
    shift:   w ≈ sign(w)·2^p, p = round(log₂ |w|)         x·w = Σ ±(x << p)
    mixture: y = p_e(x) E_e(x), e = argmax p(x), p = softmax(x G), E the trained MLP and its copy of shift layers
    balance: L = SCV(αᵢ Σₓ pᵢ(x)) + SCV(αᵢ Σₓ qᵢ(x)),  αᵢ = Latᵢ / Σⱼ Latⱼ,  qᵢ = P(lᵢ + εᵢ > lⱼ + εⱼ),  ε ~ N(0, 1/2²)

SCV is the squared coefficient of variation, l = x G are the router's logits, Latᵢ is the time that expert i takes for a
token. kᵀ V first makes attention linear in the number of tokens. Tokens x (B, N, C); q, k, V (B, heads, N, d).
Cross-entropy plus 0.01 L is trained in two phases, after `ShiftAddViT(mlp="mult")` and `ShiftAddViT(attention=False)`;
`foveal.shrink.quantize.powers_of_two.integer_` then makes the shift layers integers.

*Differs from the paper*: a token's threshold is its own mean, not the batch's, so that its code does not depend on
other pictures; p is kept in a window of 7 exponents below the layer's largest one, with 0 below it, so that a weight
has 4 bits and products fit bytes; tokens of shift layers have 8 bits; L is a mean over layers. The router starts with
logits of deviation 2, so that tokens clearly prefer an expert, with noise or without.
*Provenance*: written from the paper; the form of the attention, the noise and the weight of L looked up in the authors'
code.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Transform
from foveal.record import Method, Paper
from foveal.shrink.distill.taps import Taps
from foveal.shrink.quantize.fake import straight_through
from foveal.shrink.quantize.powers_of_two import PowersOfTwo, shift_layer

if TYPE_CHECKING:
    from foveal.shrink.data import Data
    from foveal.shrink.step import Inputs

__all__ = ["AddAttention", "ShiftAddViT", "ShiftMixture", "balanced", "binary_codes", "latency_aware", "routers"]

MLPS = ("moe", "shift", "mult")


def binary_codes(x: Tensor) -> Tensor:
    """Codes of queries or keys, with the gradient of clamp(x/‖x‖, 0, 1).

    Args:
        x: queries or keys, (…, d).

    Returns:
        1 where x is above its mean over d, else 0, (…, d).
    """
    x = F.normalize(x, dim=-1)
    return straight_through(x.clamp(0, 1), (x > x.mean(-1, keepdim=True)).to(x.dtype))


class AddAttention(nn.Module):
    """Self-attention by additions, linear in the number of tokens, (B, N, C) to (B, N, C).

    Args:
        attention: attention module of timm, without mask or gate.
        kernel_size: side of the depthwise convolution over tokens, odd.

    Raises:
        ValueError: an attention module with a gate.
    """

    def __init__(self, attention: Any, *, kernel_size: int = 9) -> None:
        super().__init__()
        if getattr(attention, "gate", None) is not None:
            raise ValueError("attention by additions has no gate; build the model without it")
        self.num_heads = attention.num_heads
        self.qkv, self.proj = attention.qkv, attention.proj
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        self.norm, self.proj_drop = getattr(attention, "norm", nn.Identity()), attention.proj_drop
        heads = self.num_heads
        self.local = nn.Conv2d(heads, heads, (kernel_size, 1), padding=(kernel_size // 2, 0), groups=heads, bias=False)

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
            raise ValueError("attention by additions takes no mask; leave attn_mask and is_causal out")
        # (B, N, 3·C) to three of (B, heads, N, d)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = binary_codes(self.q_norm(q)), binary_codes(self.k_norm(k))
        y = F.normalize(v / 2 + q @ (k.mT @ v) / math.pi, dim=-1) + self.local(v)
        return self.proj_drop(self.proj(self.norm(y.transpose(1, 2).flatten(2))))


def latency_aware(logits: Tensor, latencies: tuple[float, float]) -> Tensor:
    """The loss that gives each expert tokens in inverse proportion to its latency.

    Args:
        logits: logits of the router, (…, 2).
        latencies: time of a token in each expert, in any unit.

    Returns:
        Scalar, 0 when both experts are busy equally long.
    """
    logits = logits.flatten(0, -2)
    alpha = logits.new_tensor(latencies) / sum(latencies)
    # The difference of two noises of deviation 1/2 has deviation 1/√2.
    first = torch.special.ndtr((logits[:, 0] - logits[:, 1]) * math.sqrt(2))
    importance, load = logits.softmax(-1).sum(0), torch.stack([first, 1 - first], -1).sum(0)
    return sum((alpha * x).var() / (alpha * x).mean().square() for x in (importance, load))  # type: ignore[return-value]


class ShiftMixture(nn.Module):
    """An MLP and its copy of shift layers; each token goes to one of them. (…, C) to (…, C).

    Args:
        mlp: MLP of timm, with the linear layers `fc1` and `fc2`.
        bits: bits of a weight.
        latencies: time of a token in the MLP and in its copy, in any unit; `balanced` reads them.
    """

    def __init__(self, mlp: Any, *, bits: int = 4, latencies: tuple[float, float] = (2.0, 1.0)) -> None:
        super().__init__()
        self.latencies = latencies
        self.router = nn.Linear(mlp.fc1.in_features, 2, bias=False)
        nn.init.normal_(self.router.weight, std=2 / math.sqrt(mlp.fc1.in_features))
        self.experts = nn.ModuleList([mlp, _shift_mlp(copy.deepcopy(mlp), bits)])

    def forward(self, x: Tensor) -> Tensor:
        """Apply an expert to each token.

        Args:
            x: tokens, (…, C).

        Returns:
            Tokens, (…, C).
        """
        tokens = x.flatten(0, -2)
        logits = self.router(tokens)
        noisy = logits + torch.randn_like(logits) / 2 if self.training else logits
        probability, chosen = logits.softmax(-1), noisy.argmax(-1)
        y = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero().flatten()
            if len(rows):
                y = y.index_copy(0, rows, probability[rows, number, None] * expert(tokens[rows]))
        return y.view_as(x)


def _shift_mlp(mlp: Any, bits: int) -> Any:
    mlp.fc1, mlp.fc2 = shift_layer(mlp.fc1, bits=bits), shift_layer(mlp.fc2, bits=bits)
    return mlp


def routers(model: nn.Module) -> dict[str, ShiftMixture]:
    """The mixtures of a model.

    Args:
        model: network.

    Returns:
        Name of the router → the mixture it belongs to.
    """
    return {f"{n}.router".removeprefix("."): m for n, m in model.named_modules() if isinstance(m, ShiftMixture)}


def balanced(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output of a model and the loss L of its routers.

    Args:
        model: network with mixtures, or without.
        x: its inputs.

    Returns:
        Output; L, the mean of `latency_aware` over the mixtures, 0 without any.
    """
    found = routers(model)
    with Taps(model, list(found)) as taps:
        y = model(x)
    losses = [latency_aware(taps[name], mixture.latencies) for name, mixture in found.items()]
    return y, torch.stack(losses).mean() if losses else y.new_zeros(())


@dataclass(frozen=True)
class ShiftAddViT:
    """Step: reparameterise a trained vision transformer of timm, to be trained further; then `integer_`.

    Args:
        attention: whether attention becomes additions.
        mlp: "moe" for mixtures, "shift" for shift layers alone, "mult" for MLPs as they are.
        latencies: time of a token in an MLP and in its shift layers, in any unit, above 0.
        bits: bits of a shifted weight, 2 to 4.

    Raises:
        ValueError: an unknown kind of MLP, a latency that is not positive, or nothing to change.
    """

    attention: bool = True
    mlp: str = "moe"
    latencies: tuple[float, float] = (2.0, 1.0)
    bits: int = 4

    def __post_init__(self) -> None:
        if self.mlp not in MLPS:
            raise ValueError(f"mlp must be one of {', '.join(MLPS)}, got {self.mlp!r}")
        if not min(self.latencies) > 0:
            raise ValueError(
                f"latencies must be above 0, got {self.latencies}; measure both experts on the same tokens"
            )
        if not self.attention and self.mlp == "mult":
            raise ValueError("ShiftAddViT changes attention, MLPs or both, got neither; set attention or another mlp")
        PowersOfTwo(self.bits)

    def apply(self, model: nn.Module, data: Inputs | Data | None = None) -> nn.Module:  # noqa: ARG002 - the protocol
        """Replace attention modules and MLPs, in place.

        Args:
            model: vision transformer of timm.
            data: not used.

        Returns:
            The same model, to be trained.

        Raises:
            ValueError: no block to change, or parts that are reparameterised already.
        """
        blocks: list[Any] = [m for m in model.modules() if hasattr(m, "attn") and hasattr(m, "mlp")]
        if not blocks:
            raise ValueError(f"{type(model).__name__} has no blocks of attn and mlp; take a vision transformer of timm")
        done = self.attention and any(isinstance(b.attn, AddAttention) for b in blocks)
        if done or (self.mlp != "mult" and not all(isinstance(getattr(b.mlp, "fc1", 0), nn.Linear) for b in blocks)):
            raise ValueError("the model has no attention or MLP left to change; apply each part once")
        for block in blocks:
            if self.attention:
                block.attn = AddAttention(block.attn)
            if self.mlp == "moe":
                block.mlp = ShiftMixture(block.mlp, bits=self.bits, latencies=self.latencies)
            elif self.mlp == "shift":
                block.mlp = _shift_mlp(block.mlp, self.bits)
        return model


def _tiny(seed: int) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3)


METHOD = Method(
    id=53,
    name="ShiftAddViT",
    kind="transform",
    summary="A trained vision transformer computes with additions and shifts; a router gives some tokens products.",
    paper=Paper(
        "ShiftAddViT: Mixture of Multiplication Primitives Towards Efficient Vision Transformer",
        "H. You et al.",
        2023,
        "arXiv:2306.06446",
    ),
    cases={
        "vit": Transform(
            ShiftAddViT().apply,
            _tiny,
            lambda seed: torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed)),
            twice="apply each part once",
        )
    },
)
