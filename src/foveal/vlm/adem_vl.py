"""ADEM-VL: a language model reads a picture through cross-attention without weights, beside each feed-forward part.

*Source*: Z. Hao et al., "ADEM-VL: Adaptive and Embedded Fusion for Efficient Vision-Language Tuning", IJCV 2025
(arXiv:2410.17779), section 3. Patches of one encoder pass are pooled to several scales, S×S for S in `scales`, and
projected once, to K = ΣS² features that all layers share. They never enter the sequence of N text tokens; only the
encoder's class token does, projected by a second projector.

    v = β·P(pooled patches)                    (B, K, C)      P: linear, SiLU, linear
    s = SiLU(x)·SiLU(v + e₁)ᵀ                  (B, N, K)      x: what the feed-forward part reads, (B, N, C)
    s = 0 where s < s₍ₘ₎, m = ⌊drop·K⌋                        s₍ₘ₎: the score of a text token that m others are below
    h ← h + FFN(x) + α·s·(v + e₂)              (B, N, C)      e₁, e₂: a learnt embedding of each feature, (K, C)

No softmax and no scaling; without dropping, the order of the two products does not matter: s·V = SiLU(x)·(Sᵀ·V).

*Differs from the paper*: nothing in the fusion. The adapters in the vision encoder are left out: the encoder is the
caller's. A model that is shown nothing fuses nothing; the authors' code then fuses the embeddings alone, which is what
features of zeros give here. The threshold is selected, not sorted for.
*Provenance*: written from the paper; α, β, `drop` and the initial values are those of the authors' code
(Hao840/ADEM-VL), which pooling, projector and fusion equal exactly, outputs and gradients, with 0, 10 and 30 % dropped.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.record import Method, Paper
from foveal.vlm.method import VlmError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["AdemVL", "Fused", "fuse", "pooled"]

_FUSED: WeakSet[nn.Module] = WeakSet()


def fuse(x: Tensor, keys: Tensor, values: Tensor, *, drop: float = 0.1) -> Tensor:
    """What text tokens read from visual features.

    Args:
        x: text tokens, (B, N, C).
        keys: features with the first embedding, v + e₁, (B, K, C).
        values: features with the second embedding, v + e₂, (B, K, C).
        drop: share of the features that each text token ignores, those of the lowest scores, in [0, 1).

    Returns:
        (B, N, C), to be scaled by α.

    Raises:
        VlmError: a share outside [0, 1).
    """
    if not 0 <= drop < 1:
        raise VlmError(f"drop must be in [0, 1), got {drop}; 0.1 ignores the lowest tenth of the features, 0 none")
    # (B, N, K)
    scores = F.silu(x) @ F.silu(keys).transpose(1, 2)
    if lowest := int(drop * keys.shape[1]):
        threshold = scores.detach().kthvalue(lowest + 1, dim=2, keepdim=True).values
        scores = scores.masked_fill(scores < threshold, 0)
    return scores @ values


def pooled(patches: Tensor, scales: tuple[int, ...] = (16, 8)) -> Tensor:
    """Patches of one encoder pass at several scales.

    Args:
        patches: patches of a square picture in reading order, without the class token, (B, side², C).
        scales: sides S.

    Returns:
        Averages, one scale after the other, (B, ΣS², C).

    Raises:
        VlmError: patches of a picture that is not square.
    """
    side = math.isqrt(patches.shape[1])
    if side**2 != patches.shape[1]:
        raise VlmError(f"patches must be side² of a square picture, got {patches.shape[1]}; leave the class token out")
    # (B, C, side, side)
    grid = patches.transpose(1, 2).unflatten(2, (side, side))
    return torch.cat([F.adaptive_avg_pool2d(grid, scale).flatten(2) for scale in scales], 2).transpose(1, 2)


def _projector(in_features: int, hidden: int, out_features: int) -> nn.Sequential:
    layers = nn.Linear(in_features, hidden), nn.Linear(hidden, out_features)
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.SiLU(), layers[1])


class AdemVL(nn.Module):
    """All that is learnt: two projectors and two embeddings, for a decoder of any depth.

    Args:
        in_channels: channels of the vision encoder.
        dim: width of the decoder, C.
        hidden: width inside a projector.
        scales: sides S of the pooled patches.
        alpha: α, scale of what is read.
        beta: β, scale of the features.
        drop: share of the features that each text token ignores, in [0, 1).
    """

    def __init__(
        self,
        in_channels: int,
        dim: int,
        *,
        hidden: int = 128,
        scales: tuple[int, ...] = (16, 8),
        alpha: float = 0.1,
        beta: float = 0.01,
        drop: float = 0.1,
    ) -> None:
        super().__init__()
        self.scales, self.alpha, self.beta, self.drop = scales, alpha, beta, drop
        features = sum(scale**2 for scale in scales)
        self.project = _projector(in_channels, hidden, dim)
        self.project_class = _projector(in_channels, hidden, dim)
        self.keys = nn.Parameter(0.02 * torch.randn(features, dim))  # e₁
        self.values = nn.Parameter(torch.zeros(features, dim))  # e₂

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Patches, (B, side², in_channels), to keys v + e₁ and values v + e₂, (B, K, C) each."""
        v = self.beta * self.project(pooled(patches, self.scales))
        return v + self.keys, v + self.values

    def insert(self, embeddings: Tensor, token: Tensor, *, at: int = 1) -> Tensor:
        """Put the class token among the text.

        Args:
            embeddings: embeddings of the text, (B, N, C).
            token: class token of the encoder, (B, in_channels).
            at: number of text tokens before it; the start token is the first.

        Returns:
            Embeddings, (B, N + 1, C).
        """
        shown = self.project_class(token)[:, None].to(embeddings.dtype)
        return torch.cat((embeddings[:, :at], shown, embeddings[:, at:]), 1)


class Fused:
    """An unmodified decoder of transformers whose layers read what it is shown; by hooks on their feed-forward parts.

    Use it as a context manager, or call `restore`, to get the untouched model back. Prefill, decoding with a cache,
    beams and training work as before.

    Args:
        model: model of transformers whose layers have a part called `mlp`, such as `LlamaForCausalLM`.
        fusion: what is learnt.

    Raises:
        VlmError: a model whose layers are not known, of another width, or one that is fused already.

    Example:
        >>> fused = Fused(model, fusion)  # doctest: +SKIP
        >>> fused.show(patches)  # doctest: +SKIP
        >>> prompt = fusion.insert(model.get_input_embeddings()(ids), token)  # doctest: +SKIP
        >>> answer = model.generate(inputs_embeds=prompt)  # doctest: +SKIP
    """

    def __init__(self, model: nn.Module, fusion: AdemVL) -> None:
        if model in _FUSED:
            raise VlmError(f"{type(model).__name__} is fused already; call restore() on its handle first")
        decoder: Any = getattr(model, "get_decoder", lambda: model)()
        parts = [getattr(layer, "mlp", None) for layer in getattr(decoder, "layers", ())]
        if not parts or None in parts:
            raise VlmError(f"{type(model).__name__} has no layers with an mlp; take a decoder such as LlamaForCausalLM")
        if (width := int(decoder.config.hidden_size)) != fusion.keys.shape[1]:
            raise VlmError(
                f"the decoder is {width} wide, and features {fusion.keys.shape[1]}; build AdemVL(dim={width})"
            )
        self.model, self.fusion = model, fusion
        self.features: tuple[Tensor, Tensor] | None = None
        self._handles = [part.register_forward_hook(self._after) for part in parts if part is not None]
        _FUSED.add(model)

    def show(self, patches: Tensor | None) -> None:
        """Say what the following calls see.

        Args:
            patches: patches of the encoder without its class token, (B, side², in_channels); None for nothing.
        """
        self.features = None if patches is None else self.fusion(patches)

    def _after(self, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self.features is None:
            return output
        x = args[0]
        times, rest = divmod(len(x), len(self.features[0]))
        if rest:
            raise VlmError(f"{len(self.features[0])} pictures are shown, and there are {len(x)} rows; show one a row")
        # beams of a row follow each other
        keys, values = (part.to(x.dtype).repeat_interleave(times, 0) for part in self.features)
        return output + self.fusion.alpha * fuse(x, keys, values, drop=self.fusion.drop)

    def restore(self) -> nn.Module:
        """Take the hooks off.

        Returns:
            The model as it was.
        """
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.features = None
        _FUSED.discard(self.model)
        return self.model

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()


def looped(x: Tensor, keys: Tensor, values: Tensor, *, drop: float = 0.1) -> Tensor:
    """`fuse`, one text token and one feature at a time.

    Args:
        x: as of `fuse`.
        keys: as of `fuse`.
        values: as of `fuse`.
        drop: as of `fuse`.

    Returns:
        As of `fuse`.
    """
    rows = []
    for row, features, contents in zip(x, keys, values, strict=True):
        for token in row:
            scores = [(F.silu(token) * F.silu(feature)).sum() for feature in features]
            threshold = sorted(score.item() for score in scores)[int(drop * len(scores))]
            total = torch.zeros_like(token)
            for score, content in zip(scores, contents, strict=True):
                if score.item() >= threshold:
                    total = total + score * content
            rows.append(total)
    return torch.stack(rows).view(len(x), -1, values.shape[2])


def _inputs(features: int) -> Callable[[int], dict[str, Any]]:
    def made(seed: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        shapes = {"x": (2, 3, 5), "keys": (2, features, 5), "values": (2, features, 5)}
        return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}

    return made


METHOD = Method(
    id=11,
    name="ADEM-VL",
    kind="operator",
    summary="Each layer of a language model reads pooled patches through cross-attention without weights.",
    paper=Paper(
        "ADEM-VL: Adaptive and Embedded Fusion for Efficient Vision-Language Tuning",
        "Z. Hao et al.",
        2024,
        "arXiv:2410.17779",
    ),
    cases={"drop 1 of 17": Operator(fuse, looped, _inputs(17)), "drop none of 7": Operator(fuse, looped, _inputs(7))},
)
