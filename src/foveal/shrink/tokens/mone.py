"""MoNE: tokens of a vision transformer go to nested experts, which are its own weights cut to the first channels.

*Source*: G. Jain et al., "Mixture of Nested Experts: Adaptive Processing of Visual Tokens", NeurIPS 2024
(arXiv:2407.19985): nested models, expert preferred routing, and the distribution of capacities.

    r = softmax(W x + b)                              at the first block, (B, N, E)
    expert 1 takes the ⌊c₁N⌋ tokens of the largest r₁, expert 2 the ⌊c₂N⌋ of the largest r₂ among the rest, …,
    expert E those that are left
    z = x + proj[:m] attention(qkv[:, :m] norm(x[:m]))     a token of an expert of m channels; x[m:] stays as it is
    x ← z + (1 + α r) fc2[:m] gelu(fc1[:, :m] norm(z[:m]))
    c = argmax entropy(c)  with  Σ c = 1,  Σ c m / C = capacity

Queries, keys, values and the inside of the MLP have full width, so that tokens of all experts attend to each other and
the cost of the linear layers is proportional to m. α starts at 0 in each block: with all tokens at the largest expert a
fresh network is the vision transformer. The first expert has all channels; the router and α are the only new weights.

Shapes: B batch, N tokens, E experts, C channels, m channels of an expert.

*Differs from the paper*: three settings are this file's own: norms see the first m channels alone, tokens of the prefix
go to the first expert, and drop path drops the tokens of an expert together. The paper also prefers large experts by
powers of δ; for δ = 2 and halved widths that is constant at a given capacity, and is left out.
*Provenance*: written from the formulas above. Experts differ in shape and take equally many tokens of each picture, so
tokens are sorted by expert once and sliced in each block; `foveal.ops.experts` is for experts of one shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Transform
from foveal.nn.gather import take, top
from foveal.record import Method, Paper
from foveal.runtime.route import Route, recorded
from foveal.shrink.tokens.between import blocks_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foveal.shrink.step import Inputs

__all__ = ["MoNE", "NestedBlocks", "assign", "capacities", "set_capacity_", "token_shares"]

CHOICES = ("router", "random")
WIDTHS = (1.0, 0.5, 0.25, 0.125)


def capacities(capacity: float, widths: Sequence[float] = WIDTHS) -> tuple[float, ...]:
    """Shares of the tokens for each expert: of all that have the mean width asked for, those of the largest entropy.

    Args:
        capacity: mean width, between the smallest of the widths and 1.
        widths: widths of the experts as shares of the channels, descending from 1.

    Returns:
        Shares, which sum to 1.

    Raises:
        ValueError: a capacity outside its range.
    """
    least, count = widths[-1], len(widths)
    if not least <= capacity <= 1:
        raise ValueError(f"capacity must be in [{least:g}, 1] for these experts, got {capacity}; 0.4 suits most")
    if capacity in (least, 1):
        return tuple(float(i == (0 if capacity == 1 else count - 1)) for i in range(count))
    width, low, high = np.array(widths), -1e4, 1e4

    def shares(slope: float) -> Any:
        power = slope * width
        weight = np.exp(power - power.max())
        return weight / weight.sum()

    for _ in range(200):  # the mean width grows with the slope
        middle = (low + high) / 2
        low, high = (middle, high) if shares(middle) @ width < capacity else (low, middle)
    return tuple(float(share) for share in shares(low))


def token_shares(shares: Sequence[float], tokens: int, *, protect: int = 0) -> list[int]:
    """Number of tokens of each expert.

    Args:
        shares: shares of the tokens, which sum to 1.
        tokens: number of tokens, N.
        protect: number of tokens that go to the first expert in any case.

    Returns:
        Numbers, rounded down; the last expert has the rest.
    """
    counts: list[int] = []
    for share in shares[:-1]:
        count = math.floor(round(share * tokens, 6))
        counts.append(min(max(count, 0 if counts else protect), tokens - sum(counts)))
    return [*counts, tokens - sum(counts)]


def assign(score: Tensor, counts: Sequence[int], *, protect: int = 0) -> Tensor:
    """Expert preferred routing.

    Args:
        score: probability of each expert, (B, N, E).
        counts: number of tokens of each expert, (E,); they sum to N.
        protect: number of tokens at the start that go to the first expert.

    Returns:
        Numbers of the tokens, those of the first expert first, ascending within an expert, (B, N) int64.
    """
    gone = torch.zeros_like(score[..., 0], dtype=torch.bool)
    found = []
    for expert, count in enumerate(counts):
        if not count:
            continue
        wanted = score[..., expert].masked_fill(gone, -torch.inf)
        if not expert and protect:
            wanted = torch.cat((torch.full_like(wanted[:, :protect], torch.inf), wanted[:, protect:]), 1)
        index = top(wanted, count)
        gone = gone.scatter(1, index, torch.ones_like(index, dtype=torch.bool))
        found.append(index)
    return torch.cat(found, 1)


@dataclass(frozen=True)
class MoNE:
    """Step: nested experts in a timm vision transformer. Train the network afterwards.

    Args:
        capacity: mean width of the tokens' experts, between the smallest width and 1, or the share of the tokens that
            each expert takes, which sum to 1; with all tokens at the first expert it changes nothing.
        widths: widths of the experts as shares of the channels, descending from 1.
        by: "router", or "random" as a floor.
        seed: of the random choice outside of training, the same for every call.

    Raises:
        ValueError: widths that do not descend from 1, capacities outside their range, or an unknown `by`.
    """

    capacity: float | tuple[float, ...] = 0.5
    widths: tuple[float, ...] = WIDTHS
    by: str = "router"
    seed: int = 0

    def __post_init__(self) -> None:
        below = (*self.widths[1:], 0.0)
        if len(below) < 2 or self.widths[0] != 1 or any(a <= b for a, b in zip(self.widths, below, strict=True)):
            raise ValueError(f"widths must descend from 1 and stay above 0, got {self.widths}; take {WIDTHS}")
        self.shares(self.capacity)
        if self.by not in CHOICES:
            raise ValueError(f"by must be one of {', '.join(CHOICES)}, got {self.by!r}")

    def shares(self, capacity: float | Sequence[float]) -> tuple[float, ...]:
        """Share of the tokens that each expert takes.

        Args:
            capacity: mean width, or shares.

        Returns:
            Shares.

        Raises:
            ValueError: capacities outside their range.
        """
        if isinstance(capacity, int | float):
            return capacities(capacity, self.widths)
        if len(capacity) != len(self.widths) or min(capacity) < 0 or abs(sum(capacity) - 1) > 1e-6:
            raise ValueError(
                f"capacity must be a mean width or {len(self.widths)} shares that sum to 1, got {tuple(capacity)}"
            )
        return tuple(capacity)

    def apply(self, model: nn.Module, data: Inputs | None = None) -> nn.Module:  # noqa: ARG002 - nothing is calibrated
        """Insert the router, in place. Names of the network's own parameters stay.

        Args:
            model: vision transformer of timm.
            data: not used.

        Returns:
            The same network.

        Raises:
            TypeError: a network whose blocks are not timm's own.
            ValueError: a network that routes tokens already, or widths that are no whole numbers of channels.
        """
        from timm.layers import Mlp
        from timm.models.vision_transformer import Attention, Block

        if isinstance(getattr(model, "blocks", None), NestedBlocks):
            raise ValueError("model has nested experts already; change their capacity by set_capacity_")
        blocks = blocks_of(model, step="MoNE")
        for module in blocks:
            b: Any = module
            known = type(b) is Block and type(b.attn) is Attention and type(b.mlp) is Mlp
            if not known or b.attn.gate is not None or not isinstance(b.norm1, nn.LayerNorm):
                raise TypeError(f"blocks must be timm's Block with its Attention and Mlp, got {type(b).__name__}")
        dim = int(model.embed_dim)  # type: ignore[arg-type]
        if wrong := [width for width in self.widths if width * dim % 1]:
            raise ValueError(f"widths must give whole numbers of {dim} channels, got {wrong[0]:g}")
        like = next(blocks.parameters())
        nested = NestedBlocks(blocks, self, dim=dim, protect=int(getattr(model, "num_prefix_tokens", 0)))
        model.blocks = nested.to(like.device, like.dtype)
        return model


class NestedBlocks(nn.Module):
    """Blocks of a vision transformer with nested experts, (B, N, C) to the same.

    Names of the blocks' parameters are kept. Not iterable: one by one, blocks would use all channels.

    Args:
        blocks: blocks of timm's vision transformer; they are shared, not copied.
        config: how tokens are routed.
        dim: C.
        protect: number of tokens at the start that go to the first expert.
    """

    def __init__(self, blocks: nn.Module, config: MoNE, *, dim: int, protect: int) -> None:
        super().__init__()
        self.config, self.protect, self.depth = config, protect, 0
        self.shares = config.shares(config.capacity)
        self.channels = [round(width * dim) for width in config.widths]
        for name, block in blocks.named_children():
            self.add_module(name, block)
            self.depth += 1
        self.router = nn.Linear(dim, len(self.channels))
        self.alpha = nn.Parameter(torch.zeros(self.depth))
        self.train(blocks.training)

    def assigned(self, x: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Which tokens go where.

        Args:
            x: tokens, (B, N, C).
            counts: number of tokens of each expert, (E,).

        Returns:
            Numbers of the tokens, sorted by expert, (B, N) int64; in the same order, the probability that the router
            gives to each token's expert, (B, N, 1).
        """
        probability = self.router(x).softmax(-1)
        score = probability.detach()
        if self.config.by == "random":
            fixed = None if self.training else torch.Generator().manual_seed(self.config.seed)
            score = torch.rand(score.shape, generator=fixed).to(x)
        order = assign(score, counts, protect=self.protect)
        expert = torch.arange(len(counts), device=x.device).repeat_interleave(
            torch.tensor(counts, device=x.device), output_size=x.shape[1]
        )
        return order, take(probability, order).gather(2, expert.expand(x.shape[0], -1)[..., None])

    def forward(self, x: Tensor) -> Tensor:
        counts = token_shares(self.shares, x.shape[1], protect=self.protect)
        order, gates = self.assigned(x, counts)
        # for each expert its tokens, (B, n, C)
        parts = zip(self.channels, take(x, order).split(counts, 1), gates.split(counts, 1), strict=True)
        groups = [group for group in parts if group[1].shape[1]]
        seen = [part[..., :m] for m, part, _ in groups]
        for number in range(self.depth):
            scales = [1 + self.alpha[number] * gate for _, _, gate in groups]
            seen = _nested(self._modules[str(number)], seen, scales)
        whole = [torch.cat((y, part[..., m:]), 2) for y, (m, part, _) in zip(seen, groups, strict=True)]
        if (routes := recorded()) is not None:
            routes.append(self._route(order, counts))
        return take(torch.cat(whole, 1), order.argsort(1))

    def _route(self, order: Tensor, counts: Sequence[int]) -> Route:
        """Share of the linear layers' work that each patch got."""
        widths = torch.tensor(self.config.widths).repeat_interleave(torch.tensor(counts)).expand(order.shape[0], -1)
        work = torch.zeros(order.shape).scatter_(1, order.cpu(), widths)
        patches = work[:, self.protect :].numpy()
        side = round(patches.shape[1] ** 0.5)
        shape = (side, side) if side * side == patches.shape[1] else (1, patches.shape[1])
        spent = float(work[0].sum())
        return Route(patches.reshape(-1, *shape), (spent,) * self.depth, (float(order.shape[1]),) * self.depth)


def _norm(norm: Any, x: Tensor) -> Tensor:
    m = x.shape[-1]
    weight, bias = (None if value is None else value[:m] for value in (norm.weight, norm.bias))
    return F.layer_norm(x, (m,), weight, bias, norm.eps)


def _expand(linear: Any, x: Tensor) -> Tensor:
    """All outputs from the first channels."""
    return F.linear(x, linear.weight[:, : x.shape[-1]], linear.bias)


def _contract(linear: Any, x: Tensor, m: int) -> Tensor:
    """The first m outputs."""
    return F.linear(x, linear.weight[:m], None if linear.bias is None else linear.bias[:m])


def _scaled(scale: Any, x: Tensor) -> Tensor:
    return x * scale.gamma[: x.shape[-1]] if hasattr(scale, "gamma") else x


def _nested(b: Any, seen: Sequence[Tensor], scales: Sequence[Tensor]) -> list[Tensor]:
    """A block on the tokens of all experts, each (B, n, m); scales are those of the MLPs, (B, n, 1)."""
    a, counts = b.attn, [x.shape[1] for x in seen]
    qkv = torch.cat([_expand(a.qkv, _norm(b.norm1, x)) for x in seen], 1)
    # (B, N, 3·C) to (B, heads, N, C / heads)
    q, k, v = qkv.unflatten(2, (3, a.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    dropout = a.attn_drop.p if a.training else 0.0
    y = F.scaled_dot_product_attention(a.q_norm(q), a.k_norm(k), v, dropout_p=dropout).transpose(1, 2).flatten(2)
    out = []
    for x, part, scale in zip(seen, a.norm(y).split(counts, 1), scales, strict=True):
        m = x.shape[-1]
        # torch adds the bias inside the product of contiguous rows only
        z = x + b.drop_path1(_scaled(b.ls1, a.proj_drop(_contract(a.proj, part.contiguous(), m))))
        inside = b.mlp.norm(b.mlp.drop1(b.mlp.act(_expand(b.mlp.fc1, _norm(b.norm2, z)))))
        grown = _scaled(b.ls2, b.mlp.drop2(_contract(b.mlp.fc2, inside, m)))
        out.append(z + b.drop_path2(scale * grown))
    return out


def set_capacity_(model: nn.Module, capacity: float | Sequence[float]) -> nn.Module:
    """Change the capacities of the experts, in place.

    Args:
        model: network that `MoNE` was applied to.
        capacity: mean width, or the share of the tokens that each expert takes.

    Returns:
        The same network.

    Raises:
        ValueError: a network without nested experts.
    """
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, NestedBlocks):
        raise ValueError(f"{type(model).__name__} has no nested experts; apply MoNE to it first")
    blocks.shares = blocks.config.shares(capacity)
    return model


def _tiny(seed: int) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionTransformer(img_size=20, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=3)


METHOD = Method(
    id=29,
    name="MoNE",
    kind="transform",
    summary="Tokens of a vision transformer go to experts that are its own weights, cut to the first channels.",
    paper=Paper(
        "Mixture of Nested Experts: Adaptive Processing of Visual Tokens", "G. Jain et al.", 2024, "arXiv:2407.19985"
    ),
    cases={
        "vit": Transform(
            MoNE(0.5).apply,
            _tiny,
            lambda seed: torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(seed)),
            MoNE(1.0).apply,
            tolerance=1e-6,
            twice="model has nested experts already",
        )
    },
)
