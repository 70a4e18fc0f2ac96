"""PIIP: the largest of several vision transformers sees the smallest picture, the smallest one the largest.

*Source*: X. Zhu et al., "Parameter-Inverted Image Pyramid Networks", NeurIPS 2024 (arXiv:2406.04330). Branch i is a
vision transformer of C_i channels for a picture of its own size. After each of `interactions` equal parts of their
blocks, neighbouring branches exchange features, the pair of the two largest pictures first:

    a, b = tokens of the larger and of the smaller network, without class tokens
    a = inject(a, W_ba b),  b = inject(b, W_ab a)                      both from what they were before
    inject(q, f): q = q + γ deform(norm q, norm f),  q = q + δ MLP(norm q)      γ = δ = 0 to begin with
    deform(q, f)_n = W_out [Σ_p softmax_p(W_a q_n) · (W_v f)(n / size_q + (W_o q_n)_p / size_f)] over the heads

f(x, y) is bilinear and zero outside of the map; the MLP has a 3×3 depthwise convolution between its layers. At the end
either every branch has a classifier and the logits are averaged, or (`merge`) maps are projected to the channels of the
largest network, resized to the largest map and summed with learned weights, for one head or a dense task.

Shapes: B batch, N queries, M = H'·W' tokens of a map, C channels, D channels of a head, P points of a head.

*Differs from the paper*: of the paper the abstract and the tables were read, the rest is the authors' code. The
classifiers stand in one layer on the channels of all branches, which is the mean of theirs. They read the mean of
each branch's map: the exchange leaves class tokens out, so that its last round would go unread otherwise (the code
reads the first patch, behind a class token that it has taken off). No LayerScale in the blocks.
*Provenance*: written from the authors' code, whose merged network this equals to 3e-6, outputs and gradients.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from math import gcd, pi
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d, trunc_normal_
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from foveal.nn.pyramid import Pyramid
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PIIP", "DeformableAttention", "Interaction", "piip", "piip_sbl", "piip_tsb", "sample"]

VALUES, HIDDEN = 0.5, 0.25  # channels of the values of deformable attention, and of the MLPs behind it, over C
norm_layer = partial(nn.LayerNorm, eps=1e-6)


def sample(value: Tensor, places: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums of a map at points between its cells.

    Args:
        value: map of each head, (B, heads, D, H', W').
        places: points, x then y, 0 and 1 at the borders of the map, (B, heads, N, P, 2).
        weight: weights of the points, (B, heads, N, P).

    Returns:
        (B, N, heads·D).
    """
    batch, heads = value.shape[:2]
    # (B·heads, D, N, P)
    found = F.grid_sample(value.flatten(0, 1), 2 * places.flatten(0, 1) - 1, align_corners=False)
    summed = (found * weight.flatten(0, 1)[:, None]).sum(3)
    return summed.view(batch, heads * value.shape[2], weight.shape[2]).transpose(1, 2)


def _linear(dim: int, out: int) -> nn.Linear:
    found = nn.Linear(dim, out)
    trunc_normal_(found.weight, std=0.02)
    nn.init.zeros_(found.bias)
    return found


class DeformableAttention(nn.Module):
    """Each query reads a map at few points that it chooses, (B, N, C) and (B, M, C) to (B, N, C).

    Args:
        dim: C.
        num_heads: number of heads.
        points: P, number of points of a head.

    Raises:
        ValueError: channels of the values that the heads do not divide.
    """

    def __init__(self, dim: int, num_heads: int, points: int = 4) -> None:
        super().__init__()
        inner = int(dim * VALUES)
        if not inner or inner % num_heads:
            raise ValueError(
                f"num_heads must divide the {inner} channels of the values, half of {dim}, got {num_heads}"
            )
        self.num_heads, self.points = num_heads, points
        self.offsets, self.weights = nn.Linear(dim, num_heads * points * 2), nn.Linear(dim, num_heads * points)
        self.value, self.proj = nn.Linear(dim, inner), nn.Linear(inner, dim)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Begin with the points of a head in a row, 1, 2, … cells away in its own direction, all of equal weight."""
        angle = torch.arange(self.num_heads) * (2 * pi / self.num_heads)
        direction = torch.stack((angle.cos(), angle.sin()), 1)
        direction = direction / direction.abs().amax(1, keepdim=True)
        steps = torch.arange(1, self.points + 1)
        self.offsets.bias.copy_((direction[:, None] * steps[:, None]).flatten())
        for zero in (self.offsets.weight, self.weights.weight, self.weights.bias, self.value.bias, self.proj.bias):
            zero.zero_()
        for weight in (self.value.weight, self.proj.weight):
            nn.init.xavier_uniform_(weight)

    def forward(self, query: Tensor, feature: Tensor, at: tuple[int, int], size: tuple[int, int]) -> Tensor:
        # (B, N, heads·P·2) to (B, heads, N, P, 2)
        offsets = self.offsets(query).unflatten(2, (self.num_heads, self.points, 2)).transpose(1, 2)
        weight = self.weights(query).unflatten(2, (self.num_heads, self.points)).transpose(1, 2).softmax(3)
        rows, columns = ((torch.arange(n, device=query.device, dtype=query.dtype) + 0.5) / n for n in at)
        # (N, 1, 2), x first
        own = torch.stack((columns.expand(at), rows[:, None].expand(at)), 2).view(-1, 1, 2)
        places = own + offsets / torch.tensor(size[::-1], device=query.device, dtype=query.dtype)
        # (B, M, heads·D) to (B, heads, D, H', W')
        value = self.value(feature).transpose(1, 2).unflatten(2, size).unflatten(1, (self.num_heads, -1))
        return self.proj(sample(value, places, weight))


class _Injection(nn.Module):
    """Tokens take in features of another map, (B, N, C) and (B, M, C) to (B, N, C); the identity to begin with."""

    def __init__(self, dim: int, num_heads: int, points: int, drop_path: float) -> None:
        super().__init__()
        hidden = int(dim * HIDDEN)
        self.norm_query, self.norm_feature, self.norm_mlp = norm_layer(dim), norm_layer(dim), norm_layer(dim)
        self.attn = DeformableAttention(dim, num_heads, points)
        self.fc1, self.fc2 = _linear(dim, hidden), _linear(hidden, dim)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.gamma, self.delta = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.drop_path = DropPath(drop_path)

    def forward(self, query: Tensor, feature: Tensor, at: tuple[int, int], size: tuple[int, int]) -> Tensor:
        query = query + self.gamma * self.attn(self.norm_query(query), self.norm_feature(feature), at, size)
        plane = self.fc1(self.norm_mlp(query)).transpose(1, 2).unflatten(2, at)
        inner = F.gelu(self.dwconv(plane)).flatten(2).transpose(1, 2)
        return query + self.delta * self.drop_path(self.fc2(inner))


class Interaction(nn.Module):
    """Two neighbouring branches exchange features, (B, N, C_a) and (B, M, C_b) to the same.

    Args:
        dims: C_a of the larger network, C_b of the smaller one.
        num_heads: heads of the attention.
        points: P.
        drop_path: drop-path rate of the MLPs.
    """

    def __init__(self, dims: tuple[int, int], num_heads: int, points: int = 4, drop_path: float = 0.0) -> None:
        super().__init__()
        self.to_first, self.to_second = _linear(dims[1], dims[0]), _linear(dims[0], dims[1])
        self.first, self.second = (_Injection(dim, num_heads, points, drop_path) for dim in dims)

    def forward(self, a: Tensor, b: Tensor, sizes: tuple[tuple[int, int], tuple[int, int]]) -> tuple[Tensor, Tensor]:
        first = self.first(a, self.to_first(b), sizes[0], sizes[1])
        return first, self.second(b, self.to_second(a), sizes[1], sizes[0])


class _Stage(nn.Module):
    """The same share of every branch's blocks, and the exchange behind them: tokens of all branches to the same."""

    def __init__(
        self, blocks: list[nn.Sequential], units: list[Interaction], sizes: list[tuple[int, int]], prefix: list[int]
    ) -> None:
        super().__init__()
        self.blocks, self.units = nn.ModuleList(blocks), nn.ModuleList(units)
        self.sizes, self.prefix = sizes, prefix

    def forward(self, tokens: list[Tensor]) -> list[Tensor]:
        through = [blocks(x) for blocks, x in zip(self.blocks, tokens, strict=True)]
        own, patches = zip(*(x.tensor_split((n,), 1) for x, n in zip(through, self.prefix, strict=True)), strict=True)
        found = list(patches)
        for i in reversed(range(len(self.units))):
            found[i : i + 2] = self.units[i](found[i], found[i + 1], self.sizes[i : i + 2])
        return [torch.cat(pair, 1) for pair in zip(own, found, strict=True)]


class _Stem(nn.Module):
    """Tokens of each branch before any block, (B, in_channels, H, W) to (B, prefix + M_i, C_i) each."""

    def __init__(self, branches: Sequence[VisionTransformer]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        for branch in branches:  # what is left of it embeds
            branch.blocks, branch.norm, branch.fc_norm, branch.head = nn.Sequential(), *(nn.Identity(),) * 3
        self.img_sizes: list[tuple[int, int]] = [branch.patch_embed.img_size for branch in branches]  # type: ignore[misc]

    def forward(self, x: Tensor) -> list[Tensor]:
        pictures = (
            x if size == self.img_sizes[-1] else F.interpolate(x, size, mode="bilinear", align_corners=False)
            for size in self.img_sizes
        )
        return [branch.forward_features(y) for branch, y in zip(self.branches, pictures, strict=True)]  # type: ignore[operator]


class _Join(nn.Module):
    """Tokens of all branches as one map of the size of the last one's, normalised, one behind the other or merged."""

    def __init__(self, dims: list[int], sizes: list[tuple[int, int]], prefix: list[int], *, merge: bool) -> None:
        super().__init__()
        self.sizes, self.prefix = sizes, prefix
        group = partial(nn.GroupNorm, gcd(32, dims[0]), dims[0])
        self.norms = nn.ModuleList(nn.GroupNorm(gcd(32, dim), dim) if merge else LayerNorm2d(dim) for dim in dims)
        self.projs = nn.ModuleList(_linear(dim, dims[0]) for dim in dims[1:] if merge)
        self.projected = nn.ModuleList(group() for _ in self.projs)
        self.weight = nn.Parameter(torch.ones(len(dims))) if merge else None
        self.norm = LayerNorm2d(dims[0]) if merge else nn.Identity()

    def forward(self, tokens: list[Tensor]) -> Tensor:
        of_all = zip(self.norms, tokens, self.prefix, self.sizes, strict=True)
        # (B, prefix + M, C) to (B, C, H', W')
        maps = [norm(x[:, own:].transpose(1, 2).unflatten(2, size)) for norm, x, own, size in of_all]
        for i, (proj, norm) in enumerate(zip(self.projs, self.projected, strict=True), 1):
            maps[i] = norm(proj(maps[i].movedim(1, 3)).movedim(3, 1))
        resized = [F.interpolate(x, self.sizes[-1], mode="bilinear", align_corners=False) for x in maps]
        if self.weight is None:
            return torch.cat(resized, 1)
        return self.norm(torch.stack(resized, 4) @ self.weight)


class PIIP(Pyramid):
    """Image classifier, (B, in_channels, H, W) to (B, num_classes), H and W those of the last branch.

    Args:
        branches: vision transformers of timm, from the smallest picture to the largest; they are taken apart, and
            their norms and heads are not used.
        interactions: number of exchanges, which divides the depth of each branch.
        num_heads: heads of the deformable attention.
        points: P, points of a head.
        merge: whether maps are merged, instead of averaging the logits of the branches.
        num_classes: number of classes; 0 returns features.
        drop_path: drop-path rate of the MLPs between branches.

    Raises:
        ValueError: a single branch, pictures that become smaller, or depths that cannot be divided.
    """

    def __init__(
        self,
        branches: Sequence[VisionTransformer],
        *,
        interactions: int = 12,
        num_heads: int = 16,
        points: int = 4,
        merge: bool = False,
        num_classes: int = 1000,
        drop_path: float = 0.0,
    ) -> None:
        embeds: list[Any] = [branch.patch_embed for branch in branches]
        areas = [embed.img_size[0] * embed.img_size[1] for embed in embeds]
        if len(branches) < 2 or areas != sorted(areas):
            raise ValueError(
                f"branches must be two or more, from the smallest picture on, got pictures of {areas} pixels; sort them"
            )
        depths = [len(branch.blocks) for branch in branches]
        if interactions < 1 or any(depth % interactions for depth in depths):
            raise ValueError(f"interactions must divide the depths {depths}, got {interactions}; their gcd does")
        dims = [branch.embed_dim for branch in branches]
        sizes, prefix = [embed.grid_size for embed in embeds], [branch.num_prefix_tokens for branch in branches]
        stages = []
        for i in range(interactions):
            parts = [
                nn.Sequential(*branch.blocks[i * depth // interactions : (i + 1) * depth // interactions])
                for branch, depth in zip(branches, depths, strict=True)
            ]
            units = [Interaction(pair, num_heads, points, drop_path) for pair in pairwise(dims)]
            stages.append(_Stage(parts, units, sizes, prefix))
        super().__init__(
            _Stem(branches),
            stages,
            [dims[0] if merge else sum(dims)] * interactions,
            [embeds[-1].patch_size[0]] * interactions,
            num_classes=num_classes,
            in_channels=embeds[0].proj.in_channels,
        )
        self.img_size, self.join = embeds[-1].img_size, _Join(dims, sizes, prefix, merge=merge)

    def forward_intermediates(self, x: Tensor, *args: Any, **words: Any) -> Any:
        """The maps of all branches after chosen exchanges, joined and normalised.

        Args:
            x: pictures, (B, in_channels, H, W).
            *args: as for `Pyramid.forward_intermediates`.
            **words: likewise.

        Returns:
            The list of maps, (B, num_features, H', W'), or (what `forward_features` gives, list of maps).
        """
        found = super().forward_intermediates(x, *args, **words)
        if isinstance(found, tuple):
            return self.join(found[0]), [self.join(tokens) for tokens in found[1]]
        return [self.join(tokens) for tokens in found]

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map of all branches, normalised: merged, or one behind the other.

        Args:
            x: pictures, (B, in_channels, H, W).

        Returns:
            (B, num_features, H', W').
        """
        return self.join(super().forward_features(x))


def piip(
    dims: Sequence[int] = (768, 384, 192),
    depths: Sequence[int] = (12, 12, 12),
    heads: Sequence[int] = (12, 6, 3),
    img_sizes: Sequence[int | tuple[int, int]] = (128, 192, 368),
    patch_size: int = 16,
    in_channels: int = 3,
    num_classes: int = 1000,
    drop_path: float = 0.0,
    *,
    interactions: int = 12,
    num_heads: int = 16,
    points: int = 4,
    class_token: bool = True,
    merge: bool = False,
) -> PIIP:
    """PIIP of any sizes, each branch given by one number of each list, from the smallest picture to the largest.

    Args:
        dims: C_i.
        depths: numbers of blocks.
        heads: numbers of heads of the branches' own attention.
        img_sizes: sides of the pictures.
        patch_size: side of a patch in pixels.
        in_channels: number of channels of the picture.
        num_classes: number of classes; 0 returns features.
        drop_path: drop-path rate of each branch's last block, the rates rise from 0, and of the MLPs between branches.
        interactions: number of exchanges, which divides each depth.
        num_heads: heads of the deformable attention.
        points: P, points of a head.
        class_token: whether each branch has a class token.
        merge: whether maps are merged, instead of averaging the logits of the branches.

    Returns:
        The network, (B, in_channels, H, W) to (B, num_classes), H and W the last of `img_sizes`.
    """
    tokens: Any = {"class_token": class_token, "no_embed_class": True, "drop_path_rate": drop_path}
    branches = [
        VisionTransformer(size, patch_size, in_channels, 0, "", dim, depth, count, **tokens)
        for dim, depth, count, size in zip(dims, depths, heads, img_sizes, strict=True)
    ]
    words: Any = {"interactions": interactions, "num_heads": num_heads, "points": points, "merge": merge}
    return PIIP(branches, num_classes=num_classes, drop_path=drop_path, **words)


piip_tsb = piip
piip_sbl = partial(piip, dims=(1024, 768, 384), depths=(24, 12, 12), heads=(16, 12, 6), img_sizes=(96, 160, 320))

_TINY = {
    "dims": (16, 8),
    "depths": (4, 2),
    "heads": (2, 2),
    "img_sizes": (16, 32),
    "patch_size": 8,
    "interactions": 2,
    "num_heads": 2,
    "points": 2,
    "num_classes": 5,
}

METHOD = Method(
    id=252,
    name="PIIP",
    kind="model",
    summary="Larger vision transformers see smaller pictures, and neighbours exchange what they find.",
    paper=Paper("Parameter-Inverted Image Pyramid Networks", "X. Zhu et al.", 2024, "arXiv:2406.04330"),
    models={"piip_sbl": piip_sbl, "piip_tsb": piip_tsb},
    cases={"piip_sbl": {**_TINY, "in_channels": 1}, "piip_tsb": {**_TINY, "merge": True}},
)
