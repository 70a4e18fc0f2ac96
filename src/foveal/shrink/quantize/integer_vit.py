"""A vision transformer in integer arithmetic alone: int8 products, integer softmax, GELU and normalisation.

*Source*: D. Du et al., "Model Quantization and Hardware Acceleration for Vision Transformers: A Comprehensive Survey",
2024 (arXiv:2405.00314), sections 3 and 4: the survey's recipe of an integer-only ViT, with the polynomial operators of
I-BERT (`foveal.shrink.quantize.integer`). Its axes of quantisers are facets of the catalogue (`foveal catalogue
--facet levels=uniform`).

    weights            int8, one scale per output channel          W ≈ S_w[o] · W_q
    inputs of products int8, one scale per tensor, calibrated      x ≈ S_x · x_q
    product            int32                                       S_w[o] S_x · (W_q x_q)
    residual stream    16 bits, one scale per place
    softmax            logits in 16 bits, probabilities in 8 bits, unsigned
    GELU               inputs in 12 bits, so that its polynomial fits 32 bits

*Shapes*: pictures (B, 3, H, W) to logits (B, classes), both in floating point; the picture is quantised to int8 first.
Everything in between is int64 tensors that hold integers of the widths above.

*Differs from the paper*: the survey lists choices; these are ours. Gain and offset of a normalisation are folded into
the next linear layer. Products run in float64, which is exact for them, since torch has no fast integer product on
CPUs; speed is therefore not shown here.

*Provenance*: written from the papers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Transform
from foveal.record import Method, Paper
from foveal.shrink.data import Data, calibration
from foveal.shrink.quantize.integer import gelu, normalized, rescale, softmax

if TYPE_CHECKING:
    from foveal.shrink.step import Inputs

__all__ = ["IntegerLinear", "IntegerOnly", "IntegerViT", "tiny_vit"]

LOGIT_BITS, GELU_BITS, RESIDUAL_BITS = 16, 12, 16


def _most(bits: int) -> int:
    return 2 ** (bits - 1) - 1


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Product of integer matrices; exact in float64 below 2^53."""
    return (a.double() @ b.double()).long()


class IntegerLinear(nn.Module):
    """A linear layer on int8 inputs: integers in, int32 sums out.

    Args:
        weight: weights, (out, in).
        bias: bias, (out,).
        scale: scale of the inputs.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, scale: float) -> None:
        super().__init__()
        weight, bias = weight.detach(), bias.detach()
        own = weight.abs().amax(1).clamp(min=1e-8) / _most(8)
        self.register_buffer("weight", (weight / own[:, None]).round().to(torch.int8))
        self.register_buffer("scale", (own * scale).double())  # of the sums, (out,)
        self.register_buffer("bias", (bias.double() / self.scale).round().long())

    def forward(self, q: Tensor) -> Tensor:
        """Multiply.

        Args:
            q: integers, (…, in).

        Returns:
            Sums, (…, out), of scale `self.scale`.
        """
        return _product(q, self.weight.T) + self.bias


class _Ranges:
    """Largest absolute value of each named tensor, over calibration data."""

    def __init__(self) -> None:
        self.most: dict[str, float] = {}

    def __call__(self, name: str, x: Tensor) -> Tensor:
        self.most[name] = max(self.most.get(name, 1e-8), float(x.abs().amax()))
        return x

    def scale(self, name: str, bits: int) -> float:
        return self.most[name] / _most(bits)


def _heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, N, 3·C) to three times (B, heads, N, C/heads)."""
    batch, tokens, dim = qkv.shape
    q, k, v = qkv.view(batch, tokens, 3, num_heads, dim // 3 // num_heads).permute(2, 0, 3, 1, 4)
    return q, k, v


def _checked(model: Any) -> None:
    """Refuse everything but plain vision transformers of timm."""
    plain = hasattr(model, "blocks") and hasattr(model, "patch_embed") and getattr(model, "pos_embed", None) is not None
    blocks = list(getattr(model, "blocks", []))
    plain = plain and all(isinstance(getattr(b.mlp, "act", None), nn.GELU) for b in blocks)
    plain = plain and all(isinstance(getattr(b.attn, "q_norm", None), nn.Identity) for b in blocks)
    if not plain or getattr(model, "cls_token", None) is not None or model.global_pool != "avg":
        raise ValueError(
            f"IntegerOnly takes a timm VisionTransformer with GELU, position embeddings, mean pooling and no class "
            f"token, got {type(model).__name__}; build it with class_token=False, global_pool='avg'"
        )


class IntegerViT(nn.Module):
    """Integer twin of a trained vision transformer.

    Args:
        model: timm `VisionTransformer` in eval mode, without class token, with mean pooling.
        inputs: calibration pictures, (n, 3, H, W).

    Raises:
        ValueError: another network.
    """

    position: Tensor
    ranges: Tensor

    def __init__(self, model: Any, inputs: Tensor) -> None:
        super().__init__()
        _checked(model)
        see = _Ranges()
        with torch.no_grad():
            _observe(model, inputs, see)
        self.depth = len(model.blocks)
        self.register_buffer("ranges", torch.tensor(list(see.most.values()), dtype=torch.float64))
        self._places = {name: i for i, name in enumerate(see.most)}
        self.num_heads = model.blocks[0].attn.num_heads
        self.patch = model.patch_embed.proj.kernel_size[0]
        embed = model.patch_embed.proj
        self.embed = IntegerLinear(embed.weight.flatten(1), _bias(embed), see.scale("picture", 8))
        position = model.pos_embed[0].double() / see.scale("x0", RESIDUAL_BITS)
        self.register_buffer("position", position.detach().round().long())
        layers = {}
        for i, block in enumerate(model.blocks):
            for name, norm, layer in (("qkv", block.norm1, block.attn.qkv), ("fc1", block.norm2, block.mlp.fc1)):
                layers[f"{name}{i}"] = IntegerLinear(*_folded(norm, layer), see.scale(f"{name}{i}", 8))
            for name, layer in (("proj", block.attn.proj), ("fc2", block.mlp.fc2)):
                layers[f"{name}{i}"] = IntegerLinear(layer.weight, _bias(layer), see.scale(f"{name}{i}", 8))
        norm = model.norm if not isinstance(model.norm, nn.Identity) else model.fc_norm
        self.after_pool = isinstance(model.norm, nn.Identity)
        layers["head"] = IntegerLinear(*_folded(norm, model.head), see.scale("head", 8))
        self.layers = nn.ModuleDict(layers)

    def _layer(self, name: str) -> IntegerLinear:
        layer = self.layers[name]
        assert isinstance(layer, IntegerLinear)
        return layer

    def _scale(self, name: str, bits: int) -> float:
        return float(self.ranges[self._places[name]]) / _most(bits)

    def _normalized(self, x: Tensor, name: str) -> Tensor:
        q, scale = normalized(x)
        return rescale(q, scale / self._scale(name, 8), bits=8)

    def _attend(self, q: Tensor, i: int) -> Tensor:
        """int8 (B, N, C) to int8 (B, N, C)."""
        qkv = self._layer(f"qkv{i}")
        found = [
            rescale(part, scale / self._scale(f"{name}{i}", 8), bits=8)
            for name, part, scale in zip("qkv", qkv(q).chunk(3, -1), qkv.scale.chunk(3), strict=True)
        ]
        queries, keys, values = _heads(torch.cat(found, -1), self.num_heads)
        scale = self._scale(f"q{i}", 8) * self._scale(f"k{i}", 8) / queries.shape[-1] ** 0.5
        logits = self._scale(f"logits{i}", LOGIT_BITS)
        shares, unit = softmax(rescale(_product(queries, keys.mT), scale / logits, bits=LOGIT_BITS), logits)
        mixed = _product(shares, values).transpose(1, 2).flatten(2)
        return rescale(mixed, unit * self._scale(f"v{i}", 8) / self._scale(f"proj{i}", 8), bits=8)

    def _mlp(self, q: Tensor, i: int) -> Tensor:
        """int8 (B, N, C) to int8 (B, N, hidden)."""
        fc1, hidden = self._layer(f"fc1{i}"), self._scale(f"gelu{i}", GELU_BITS)
        active, scale = gelu(rescale(fc1(q), fc1.scale / hidden, bits=GELU_BITS), hidden)
        return rescale(active, scale / self._scale(f"fc2{i}", 8), bits=8)

    def _add(self, x: Tensor, branch: Tensor, layer: str, old: str, new: str) -> Tensor:
        """Residual sum, from the scale of one place to that of the next."""
        to = self._scale(new, RESIDUAL_BITS)
        x = rescale(x, self._scale(old, RESIDUAL_BITS) / to, bits=RESIDUAL_BITS + 1)
        return rescale(branch, self._layer(layer).scale / to, bits=RESIDUAL_BITS + 1) + x

    def forward(self, x: Tensor) -> Tensor:
        """Classify.

        Args:
            x: pictures, (B, 3, H, W).

        Returns:
            Logits, (B, classes), float32.
        """
        most = _most(8)
        picture = (x / self._scale("picture", 8)).round().clamp(-most, most)
        patches = F.unfold(picture, self.patch, stride=self.patch).mT.long()  # (B, N, 3·p·p)
        stream = rescale(
            self.embed(patches), self.embed.scale / self._scale("x0", RESIDUAL_BITS), bits=RESIDUAL_BITS + 1
        )
        stream = stream + self.position
        place = "x0"
        for i in range(self.depth):
            branch = self._layer(f"proj{i}")(self._attend(self._normalized(stream, f"qkv{i}"), i))
            stream = self._add(stream, branch, f"proj{i}", place, f"mid{i}")
            branch = self._layer(f"fc2{i}")(self._mlp(self._normalized(stream, f"fc1{i}"), i))
            stream = self._add(stream, branch, f"fc2{i}", f"mid{i}", f"x{i + 1}")
            place = f"x{i + 1}"
        tokens = stream.shape[1]
        if self.after_pool:
            pooled = self._normalized(stream.sum(1), "head")
        else:
            q, scale = normalized(stream)
            pooled = rescale(q.sum(1), scale / tokens / self._scale("head", 8), bits=8)
        head = self._layer("head")
        return (head(pooled) * head.scale).float()


def _bias(layer: nn.Linear | nn.Conv2d) -> Tensor:
    return layer.bias if layer.bias is not None else layer.weight.new_zeros(len(layer.weight))


def _folded(norm: Any, layer: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer behind a normalisation without its gain and offset."""
    weight = layer.weight.detach()
    return weight * norm.weight.detach(), _bias(layer).detach() + weight @ norm.bias.detach()


def _observe(model: Any, x: Tensor, see: _Ranges) -> None:
    """Run the network in floating point and note the range of every tensor that the twin quantises."""

    def plain(norm: Any, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=norm.eps)

    see("picture", x)
    x = see("x0", model.patch_embed.proj(x).flatten(2).mT + model.pos_embed)
    for i, block in enumerate(model.blocks):
        attn = block.attn
        weight, bias = _folded(block.norm1, attn.qkv)
        qkv = F.linear(see(f"qkv{i}", plain(block.norm1, x)), weight, bias)
        for name, part in zip("qkv", qkv.chunk(3, -1), strict=True):
            see(f"{name}{i}", part)
        q, k, v = _heads(qkv, attn.num_heads)
        logits = see(f"logits{i}", q @ k.mT / q.shape[-1] ** 0.5)
        mixed = see(f"proj{i}", (logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
        x = see(f"mid{i}", x + attn.proj(mixed))
        weight, bias = _folded(block.norm2, block.mlp.fc1)
        hidden = see(f"gelu{i}", F.linear(see(f"fc1{i}", plain(block.norm2, x)), weight, bias))
        x = see(f"x{i + 1}", x + block.mlp.fc2(see(f"fc2{i}", F.gelu(hidden))))
    if isinstance(model.norm, nn.Identity):
        see("head", plain(model.fc_norm, x.mean(1)))
    else:
        see("head", plain(model.norm, x).mean(1))


@dataclass(frozen=True)
class IntegerOnly:
    """Step: the integer twin of a vision transformer.

    Args:
        limit: number of calibration inputs, at least 1.
    """

    limit: int = 256

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError(f"limit must be at least 1, got {self.limit}")

    def apply(self, model: nn.Module, data: Inputs | Data | None = None) -> nn.Module:
        """Make the twin.

        Args:
            model: timm `VisionTransformer` in eval mode, without class token, with mean pooling.
            data: calibration pictures.

        Returns:
            The twin; the model is unchanged.
        """
        return IntegerViT(model, calibration(data, step="IntegerOnly", limit=self.limit)).eval()


def tiny_vit(seed: int = 0) -> nn.Module:
    """A tiny transformer, for tests.

    Args:
        seed: seed of the weights.

    Returns:
        Network of two blocks, (B, 3, 8, 8) to (B, 5).
    """
    from timm.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionTransformer(
            img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=5, class_token=False,
            global_pool="avg",
        ).eval()  # fmt: skip


def _pictures(seed: int) -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


METHOD = Method(
    id=206,
    name="ViTQuantSurvey",
    kind="transform",
    summary="A vision transformer in integer arithmetic alone, and the axes of quantisers as facets of the catalogue.",
    paper=Paper(
        title="Model Quantization and Hardware Acceleration for Vision Transformers: A Comprehensive Survey",
        authors="D. Du et al.",
        year=2024,
        identifier="arXiv:2405.00314",
    ),
    cases={
        "vit": Transform(
            apply=lambda model: IntegerOnly().apply(model, _pictures(0)),
            model=tiny_vit,
            inputs=_pictures,
            twice="IntegerOnly takes a timm VisionTransformer",
        ),
    },
)
