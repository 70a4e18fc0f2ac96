"""SAT-HMR's tokens: small things are read finely, large ones coarsely, and the background is pooled.

*Source*: C. Su et al., "SAT-HMR: Real-Time Multi-Person 3D Mesh Estimation via Scale-Adaptive Tokens", CVPR 2025
(arXiv:2411.19824): the scale-adaptive tokens of its encoder. On a vision transformer for N fine patches:

    l = early blocks of their own(K coarse patches of the halved picture)        K = N/4
    (c, s) = sigmoid MLP(norm(l))                            for each coarse patch: something there, and its scale
    small: c > t_c and s < t_s      its four fine patches go through the first blocks by themselves and replace it
    large: c > t_c otherwise        its coarse token stays
    background: four neighbouring coarse tokens with c ≤ t_c become their largest values
    y = norm(remaining blocks(fine, coarse and pooled tokens together))
    loss = task + focal(c; there) + |s − scale| where there is something

Positions of coarse patches are those of the fine ones, resized. The output is put back on the fine patches, a coarse
token at four of them and a pooled one at sixteen, so that any head of the network reads it.

Shapes: B batch, N fine patches, K coarse patches, C channels.

*Differs from the paper*: the encoder's tokens alone; decoder and body model need licensed data. Class tokens go through
both early passes; the code keeps those of the coarse one, here they are mixed by the share of fine patches, so that all
fine is the plain network. Pictures of a batch are filled up to the longest, with nothing attending to what is filled.
*Provenance*: of the paper the abstract was read; thresholds, loss, pooling and the number of early blocks are those of
the authors' code, which pads groups of four and keeps tokens in z-order, without effect on what is computed.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Transform
from foveal.nn.gather import take
from foveal.record import Method, Paper
from foveal.runtime.route import Route, recorded
from foveal.shrink.tokens.blocks import attend

if TYPE_CHECKING:
    from foveal.shrink.step import Inputs

__all__ = ["SATHMR", "Levels", "ScaleAdaptive", "levels", "map_loss"]

CHOICES = ("scale", "high", "low")
LEAST = 1e-6  # weight in attention of what fills up the shorter pictures of a batch


class Levels(NamedTuple):
    """At which level each place is read.

    Args:
        fine: coarse patches that are replaced by their fine ones, (B, H′, W′) bool.
        pooled: groups of four coarse patches that become one token, (B, H′/2, W′/2) bool.
    """

    fine: Tensor
    pooled: Tensor


def levels(scales: Tensor, *, confidence: float, small: float) -> Levels:
    """Levels that a scale map asks for.

    Args:
        scales: for each coarse patch, whether something is there and its scale, (B, 2, H′, W′), in [0, 1].
        confidence: t_c, above which something is there.
        small: t_s, below which it is small.

    Returns:
        Levels; a group is pooled where none of its four patches has something.
    """
    there = scales[:, 0] > confidence
    return Levels(there & (scales[:, 1] < small), F.max_pool2d(there.float()[:, None], 2)[:, 0] == 0)


def map_loss(found: Tensor, wanted: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of what is there, and absolute error of its scale.

    Args:
        found: predicted map, (B, 2, H′, W′), in (0, 1).
        wanted: true map, first 0 or 1, then the scale where it is 1, (B, 2, H′, W′).
        alpha: weight of patches with something; 1 − alpha is that of the others.
        gamma: exponent that takes weight from what is predicted well.

    Returns:
        A scalar.
    """
    there = wanted[:, 0]
    right = torch.where(there > 0, found[:, 0], 1 - found[:, 0]).clamp_min(1e-6)
    focal = -torch.where(there > 0, alpha, 1 - alpha) * (1 - right) ** gamma * right.log()
    return focal.mean() + (there * (found[:, 1] - wanted[:, 1]).abs()).sum() / there.sum().clamp_min(1)


def _spread(values: Tensor, times: int) -> Tensor:
    """Each value at times² places, (B, H, W) to (B, H·times·W·times), row by row."""
    return values.repeat_interleave(times, 1).repeat_interleave(times, 2).flatten(1)


def _order(there: Tensor) -> tuple[Tensor, Tensor | None]:
    """Tokens that are there first, in their order, (B, most), and their weight in attention, None if all are alike."""
    lengths = there.sum(1)
    most = int(lengths.max())
    index = there.float().argsort(dim=1, descending=True, stable=True)[:, :most]
    return index, None if int(lengths.min()) == most else there.gather(1, index) + LEAST


@dataclass(frozen=True)
class SATHMR:
    """Step: scale-adaptive tokens for a vision transformer. The result is trained further with `ScaleAdaptive.mapped`.

    Args:
        layers: number of early blocks, before the levels are mixed.
        confidence: t_c, above which something is there, in (0, 1).
        small: t_s, below which it is small, in (0, 1).
        by: "scale", as predicted; "high", all fine, the network as it was; "low", all coarse, none pooled.

    Raises:
        ValueError: a number outside its range, or an unknown `by`.
    """

    layers: int = 3
    confidence: float = 0.3
    small: float = 0.5
    by: str = "scale"

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError(f"layers must be at least 1, got {self.layers}; 3 suits a ViT-B")
        for name in ("confidence", "small"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be in (0, 1), got {getattr(self, name)}")
        if self.by not in CHOICES:
            raise ValueError(f"by must be one of {', '.join(CHOICES)}, got {self.by!r}")

    def apply(self, model: nn.Module, data: Inputs | None = None) -> ScaleAdaptive:  # noqa: ARG002 - nothing is calibrated
        """Let a network read small things finely and the rest coarsely.

        Args:
            model: vision transformer of timm whose map of patches has sides that are multiples of 4.
            data: not used.

        Returns:
            Network that shares the parameters of `model`.

        Raises:
            TypeError: a network that is no vision transformer of timm, or whose blocks are not timm's own.
            ValueError: a map of patches that cannot be halved twice, or too few blocks.
        """
        from timm.layers import PatchEmbed
        from timm.models.vision_transformer import Attention, Block, VisionTransformer

        embed: Any = getattr(model, "patch_embed", None)
        if not isinstance(model, VisionTransformer) or type(embed) is not PatchEmbed or model.dynamic_img_size:
            raise TypeError(f"model must be a vision transformer of timm, got {type(model).__name__}")
        if wrong := next((b for b in model.blocks if type(b) is not Block or not isinstance(b.attn, Attention)), None):
            raise TypeError(f"blocks must be timm's Block with its Attention, got {type(wrong).__name__}")
        rows, columns = embed.grid_size
        if rows % 4 or columns % 4:
            raise ValueError(f"the map of patches must have sides that are multiples of 4, got {rows}×{columns}")
        if self.layers >= len(model.blocks):
            raise ValueError(f"layers must be fewer than the {len(model.blocks)} blocks, got {self.layers}")
        return ScaleAdaptive(model, self)


class ScaleAdaptive(nn.Module):
    """A network with scale-adaptive tokens, (B, channels, H, W) to (B, classes), see `SATHMR.apply`.

    Args:
        model: vision transformer of timm; its parameters are shared, not copied.
        config: how levels are chosen.
    """

    def __init__(self, model: Any, config: SATHMR) -> None:
        super().__init__()
        self.model, self.config, dim = model, config, model.embed_dim
        self.grid = (model.patch_embed.grid_size[0] // 2, model.patch_embed.grid_size[1] // 2)
        # the coarse path begins as a copy of the fine one, as the authors' does
        self.embed, self.early = copy.deepcopy(model.patch_embed.proj), copy.deepcopy(model.blocks[: config.layers])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        sizes = (dim, dim, dim, dim)
        hidden = [layer for pair in ((nn.Linear(n, dim), nn.ReLU()) for n in sizes[:3]) for layer in pair]
        self.scale_head = nn.Sequential(*hidden, nn.Linear(dim, 2))
        self.train(model.training)

    @staticmethod
    def _run(blocks: Any, x: Tensor, weight: Tensor | None) -> Tensor:
        for b in blocks if x.shape[1] else ():  # nothing is fine, and there is no class token
            x = x + b.drop_path1(b.ls1(attend(b.attn, b.norm1(x), weight)[0]))
            x = x + b.drop_path2(b.ls2(b.mlp(b.norm2(x))))
        return x

    def _coarse(self, x: Tensor) -> Tensor:
        """Class tokens and coarse tokens after the early blocks, (B, own + K, C)."""
        model, own = self.model, self.model.num_prefix_tokens
        prefix = model._pos_embed(x.new_zeros(x.shape[0], 4 * self.grid[0] * self.grid[1], model.embed_dim))[:, :own]
        tokens = model.patch_embed.norm(self.embed(F.avg_pool2d(x, 2)).flatten(2).transpose(1, 2))
        if model.pos_embed is not None:
            places = model.pos_embed if model.no_embed_class else model.pos_embed[:, own:]
            # (1, N, C) to (1, C, 2 H′, 2 W′) to (1, K, C)
            plane = places.transpose(1, 2).unflatten(2, model.patch_embed.grid_size)
            resized = F.interpolate(plane, self.grid, mode="bicubic", align_corners=False)
            tokens = tokens + resized.flatten(2).transpose(1, 2)
        return self._run(self.early, model.norm_pre(torch.cat((prefix, model.pos_drop(tokens)), 1)), None)

    def _scales(self, tokens: Tensor) -> Tensor:
        """Scale map, (B, 2, H′, W′), of coarse tokens, (B, own + K, C)."""
        seen = self.scale_head(self.norm(tokens[:, self.model.num_prefix_tokens :])).sigmoid()
        return seen.transpose(1, 2).unflatten(2, self.grid)

    def _chosen(self, scales: Tensor) -> Levels:
        if self.config.by == "scale":
            return levels(scales, confidence=self.config.confidence, small=self.config.small)
        every = torch.full_like(scales[:, 0], float(self.config.by == "high")) > 0
        return Levels(every, torch.zeros_like(every[:, ::2, ::2]))

    def encode(self, x: Tensor, scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The last tokens, and the map that their levels were chosen by.

        Args:
            x: pictures, (B, channels, H, W).
            scales: map that levels are chosen by, (B, 2, H′, W′), such as the true one; None takes the predicted one.

        Returns:
            Normalised tokens at the fine patches, (B, own + N, C); the predicted map, (B, 2, H′, W′).
        """
        model, own, (rows, columns) = self.model, self.model.num_prefix_tokens, self.grid
        low = self._coarse(x)
        found = self._scales(low)
        fine, pooled = self._chosen(found if scales is None else scales)
        # fine patches by themselves
        at = _spread(fine, 2)
        index, weight = _order(torch.cat((at.new_ones(len(x), own), at), 1))
        high = model.norm_pre(model._pos_embed(model.patch_embed(x)))
        high = self._run(model.blocks[: self.config.layers], take(high, index), weight)
        # class tokens of both passes, then fine, coarse and pooled tokens
        share = fine.flatten(1).to(x).mean(1)[:, None, None]
        prefix, coarse = torch.lerp(low[:, :own], high[:, :own], share), low[:, own:]
        background = F.max_pool2d(coarse.transpose(1, 2).unflatten(2, self.grid), 2).flatten(2).transpose(1, 2)
        every = torch.cat((prefix, high[:, own:], coarse, background), 1)
        slots = torch.arange(high.shape[1] - own, device=x.device) < at.sum(1, keepdim=True)
        kept = ~fine & ~(_spread(pooled, 2).view_as(fine))
        there = torch.cat((at.new_ones(len(x), own), slots, kept.flatten(1), pooled.flatten(1)), 1)
        index, weight = _order(there)
        y = model.norm(self._run(model.blocks[self.config.layers :], take(every, index), weight))
        # where each fine patch's token stands among all, then among those that are there
        numbers = torch.arange(rows * columns, device=x.device).view(1, rows, columns) + high.shape[1]
        groups = torch.arange(pooled[0].numel(), device=x.device).view(1, *pooled.shape[1:])
        own_place = own + at.long().cumsum(1) - 1
        other = torch.where(
            _spread(pooled, 4), _spread(groups, 4) + high.shape[1] + rows * columns, _spread(numbers, 2)
        )
        places = there.long().cumsum(1).sub(1).gather(1, torch.where(at, own_place, other))
        first = torch.arange(own, device=x.device).expand(len(x), -1)
        if (routes := recorded()) is not None:
            routes.append(self._route(fine, pooled, there))
        return take(y, torch.cat((first, places), 1)), found

    def _route(self, fine: Tensor, pooled: Tensor, there: Tensor) -> Route:
        """Work of the mixed blocks by place; an early stage counts the tokens of both passes."""
        work = torch.where(_spread(fine, 2), 1.0, torch.where(_spread(pooled, 4), 1 / 16, 1 / 4))
        own, (rows, columns), early = self.model.num_prefix_tokens, self.grid, self.config.layers
        first = 2 * own + rows * columns + 4 * float(fine.flatten(1).float().sum(1).mean())
        counts = (first,) * early + (float(there.float().sum(1).mean()),) * (len(self.model.blocks) - early)
        whole = float(own + 4 * rows * columns)
        plane = work.view(-1, 2 * rows, 2 * columns).cpu().numpy().astype(np.float32)
        return Route(plane, counts, (whole,) * len(counts))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last tokens, as the plain network gives them.

        Args:
            x: pictures, (B, channels, H, W).

        Returns:
            (B, own + N, C).
        """
        return self.encode(x)[0]

    def mapped(self, x: Tensor, scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Output and scale map, for training with `map_loss`.

        Args:
            x: pictures, (B, channels, H, W).
            scales: map that levels are chosen by, (B, 2, H′, W′); None takes the predicted one.

        Returns:
            What the head of the network gives; the predicted map, (B, 2, H′, W′).
        """
        tokens, found = self.encode(x, scales)
        return self.model.forward_head(tokens), found

    def forward(self, x: Tensor) -> Tensor:
        return self.mapped(x)[0]


def _tiny(seed: int) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionTransformer((8, 16), 2, embed_dim=8, depth=3, num_heads=2, num_classes=3)


METHOD = Method(
    id=38,
    name="SAT-HMR",
    kind="transform",
    summary="A vision transformer reads small things finely and large ones coarsely, and pools the background.",
    cases={
        "vit": Transform(
            SATHMR(layers=1).apply,
            _tiny,
            lambda seed: torch.rand(2, 3, 8, 16, generator=torch.Generator().manual_seed(seed)),
            SATHMR(layers=1, by="high").apply,
            tolerance=1e-5,
            twice="model must be a vision transformer of timm, got ScaleAdaptive",
        )
    },
    paper=Paper(
        "SAT-HMR: Real-Time Multi-Person 3D Mesh Estimation via Scale-Adaptive Tokens",
        "C. Su et al.",
        2025,
        "arXiv:2411.19824",
    ),
)
