"""MSViT: a small gate looks at each coarse patch of a picture and has it read as one token or as four finer ones.

*Source*: J. Havtorn et al., "MSViT: Dynamic Mixed-Scale Tokenization for Vision Transformers", ICCV Workshops 2023
(arXiv:2307.02321), sections 3.1 to 3.3; the loss also from the authors' example of it, "Generalized Batch-Shaping".

    g = gate(coarse patch), an MLP of four layers                    logit, (B, K)
    m = 1[g + ε > 0], ε logistic noise;  ∂m := ∂ sigmoid(g + ε)      straight-through Gumbel-sigmoid; ε = 0 in use
    m = 1: four fine tokens,  m = 0: one coarse token;  positions of coarse tokens are means of the four fine ones
    loss = task + λ [mean_k mean_i (F(p_ki; μ_k, τ) − i/(B + 1))² + mean_k (Φ((μ_k − t) / σ) − k/(K + 1))²]

p_ki are the sorted probabilities sigmoid(g) of region k in the batch, μ_k sorted too. F is the distribution function of
a relaxed Bernoulli of mean μ_k, which is learned for each region and drawn towards the target t by the Gaussian Φ. So
gates become sure, and different places get different shares.

Shapes: B batch, K coarse patches, N = 4K fine patches, C channels, p side of a fine patch.

*Differs from the paper*: which the text leaves open, coarse tokens are the fine patch embedding of the halved picture,
and τ is fixed. While training all N + K tokens are there and attention counts one as often as its m says, so that the
gate also learns from what it left out. A head that averages patches counts a coarse token four times.
*Provenance*: written from the paper; the distribution matching as the authors' example does it.
"""

from __future__ import annotations

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

__all__ = ["MSViT", "Mixed", "MixedScale", "batch_shaping", "gumbel_sigmoid", "hyperprior", "make_gate"]

CHOICES = ("gate", "random", "fine", "coarse")
LEAST = 1e-6  # weight in attention of a token that is not there, while training


def gumbel_sigmoid(logits: Tensor) -> Tensor:
    """Draw binary choices whose gradient is that of the relaxed ones.

    Args:
        logits: log-odds, of any shape.

    Returns:
        0 or 1, of the same shape.
    """
    uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
    noisy = logits + uniform.logit()
    soft = noisy.sigmoid()
    return (noisy > 0).to(soft) + (soft - soft.detach())


def _ranks(count: int, like: Tensor) -> Tensor:
    """Empirical distribution function at sorted values, (count,)."""
    return torch.arange(1, count + 1, device=like.device, dtype=like.dtype) / (count + 1)


def batch_shaping(probability: Tensor, mean: Tensor, *, temperature: float = 0.3) -> Tensor:
    """Distance of each region's probabilities from a relaxed Bernoulli distribution.

    Args:
        probability: of the fine scale, (B, K) in [0, 1].
        mean: mean of each region's distribution, (K,) in (0, 1).
        temperature: τ, above 0; the smaller, the closer to 0 and 1 the probabilities are drawn.

    Returns:
        Mean squared difference of the distribution functions, a scalar.
    """
    ordered = probability.sort(0).values.clamp(1e-3, 1 - 1e-3)
    expected = (temperature * ordered.logit() - mean.logit()).sigmoid()
    return (expected - _ranks(len(ordered), ordered)[:, None]).square().mean()


def hyperprior(mean: Tensor, *, target: float, spread: float) -> Tensor:
    """Distance of the regions' means from a Gaussian distribution.

    Args:
        mean: mean of each region's distribution, (K,) in (0, 1).
        target: mean of the Gaussian, t.
        spread: its standard deviation, σ.

    Returns:
        Mean squared difference of the distribution functions, a scalar.
    """
    expected = torch.special.ndtr((mean.sort().values - target) / spread)
    return (expected - _ranks(len(mean), mean)).square().mean()


def make_gate(channels: int, side: int, hidden: int, share: float) -> nn.Sequential:
    """Four layers that see one coarse patch each, (B, channels, H, W) to (B, 1, H/side, W/side).

    Args:
        channels: of the picture.
        side: side of a coarse patch.
        hidden: width of the layers.
        share: probability of the fine scale to begin with, in (0, 1).

    Returns:
        The gate.
    """
    gate = nn.Sequential(
        nn.Conv2d(channels, hidden, side, side),
        nn.GELU(),
        nn.Conv2d(hidden, hidden, 1),
        nn.GELU(),
        nn.Conv2d(hidden, hidden, 1),
        nn.GELU(),
        nn.Conv2d(hidden, 1, 1),
    )
    nn.init.constant_(gate[-1].bias, float(np.log(share / (1 - share))))  # type: ignore[arg-type]
    return gate


class Mixed(NamedTuple):
    """Output of a network with its choices.

    Args:
        out: logits, (B, classes).
        probability: of the fine scale, (B, K); None without a gate.
        fine: choices, (B, K), 0 or 1; while training with the gradient of the gate.
    """

    out: Tensor
    probability: Tensor | None
    fine: Tensor


@dataclass(frozen=True)
class MSViT:
    """Step: tokens of two scales for a vision transformer. The result is trained further with `MixedScale.gated`.

    Args:
        target: share of the coarse patches that are read finely, in (0, 1); 1/3 leaves half of the tokens.
        by: "gate"; "random" as a floor; "fine", the network as it was; "coarse".
        hidden: width of the gate.
        temperature: τ of the batch-shaping loss.
        spread: σ of its targets over the picture.
        seed: of the random choice outside of training, the same for every call.

    Raises:
        ValueError: a number outside its range, or an unknown `by`.
    """

    target: float = 1 / 3
    by: str = "gate"
    hidden: int = 64
    temperature: float = 0.3
    spread: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.target < 1:
            raise ValueError(f"target must be in (0, 1), got {self.target}; 0.33 leaves half of the tokens")
        if self.by not in CHOICES:
            raise ValueError(f"by must be one of {', '.join(CHOICES)}, got {self.by!r}")
        for name in ("hidden", "temperature", "spread"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")

    def apply(self, model: nn.Module, data: Inputs | None = None) -> MixedScale:  # noqa: ARG002 - nothing is calibrated
        """Let a network read pictures at two scales.

        Args:
            model: vision transformer of timm whose map of patches has even sides.
            data: not used.

        Returns:
            Network that shares the parameters of `model`.

        Raises:
            TypeError: a network that is no vision transformer of timm, or whose blocks are not timm's own.
            ValueError: a map of patches that cannot be halved.
        """
        from timm.layers import PatchEmbed
        from timm.models.vision_transformer import Attention, Block, VisionTransformer

        embed: Any = getattr(model, "patch_embed", None)
        if not isinstance(model, VisionTransformer) or type(embed) is not PatchEmbed or model.dynamic_img_size:
            raise TypeError(f"model must be a vision transformer of timm, got {type(model).__name__}")
        if wrong := next((b for b in model.blocks if type(b) is not Block or not isinstance(b.attn, Attention)), None):
            raise TypeError(f"blocks must be timm's Block with its Attention, got {type(wrong).__name__}")
        rows, columns = embed.grid_size
        if rows % 2 or columns % 2:
            raise ValueError(f"the map of patches must have even sides, got {rows}×{columns}; four make a coarse one")
        return MixedScale(model, self)


class MixedScale(nn.Module):
    """A network that reads pictures at two scales, (B, channels, H, W) to (B, classes), see `MSViT.apply`.

    Args:
        model: vision transformer of timm; its parameters are shared, not copied.
        config: how the scale is chosen.
    """

    def __init__(self, model: Any, config: MSViT) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.grid = (model.patch_embed.grid_size[0] // 2, model.patch_embed.grid_size[1] // 2)
        self.gate, self.prior = None, None
        if config.by == "gate":
            side = 2 * model.patch_embed.patch_size[0]
            self.gate = make_gate(model.patch_embed.proj.in_channels, side, config.hidden, config.target)
            start = float(np.log(config.target / (1 - config.target)))
            self.prior = nn.Parameter(torch.full((self.grid[0] * self.grid[1],), start))
        self.train(model.training)

    def shaping(self, probability: Tensor) -> Tensor:
        """Batch-shaping loss of the gate, to be added to the task's.

        Args:
            probability: of the fine scale, (B, K), from `gated`.

        Returns:
            A scalar.

        Raises:
            ValueError: a network without a gate.
        """
        if self.prior is None:
            raise ValueError(f"scales are chosen by {self.config.by!r}, which has no gate to shape; take by='gate'")
        means = self.prior.sigmoid()
        shaped = batch_shaping(probability, means, temperature=self.config.temperature)
        return shaped + hyperprior(means, target=self.config.target, spread=self.config.spread)

    def choose(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        """Which coarse patches are read finely.

        Args:
            x: pictures, (B, channels, H, W).

        Returns:
            Probabilities, (B, K), None without a gate; choices, (B, K), 0 or 1.
        """
        shape = (x.shape[0], self.grid[0] * self.grid[1])
        if self.gate is not None:
            logits = self.gate(x).flatten(1)
            return logits.sigmoid(), gumbel_sigmoid(logits) if self.training else (logits > 0).to(x)
        if self.config.by != "random":
            return None, torch.full(shape, float(self.config.by == "fine"), device=x.device, dtype=x.dtype)
        if self.training:
            drawn = torch.rand(shape, device=x.device)
        else:
            drawn = torch.rand(shape, generator=torch.Generator().manual_seed(self.config.seed)).to(x.device)
        return None, (drawn < self.config.target).to(x)

    def _embed(self, x: Tensor) -> Tensor:
        """Tokens of both scales: class tokens, N fine ones, K coarse ones."""
        model = self.model
        fine = model._pos_embed(model.patch_embed(x))
        embed, own = model.patch_embed, model.num_prefix_tokens
        coarse = embed.norm(embed.proj(F.avg_pool2d(x, 2)).flatten(2).transpose(1, 2))
        if model.pos_embed is not None:
            places = model.pos_embed if model.no_embed_class else model.pos_embed[:, own:]
            # (1, N, C) to (1, C, H', W') to (1, K, C)
            plane = places.transpose(1, 2).unflatten(2, embed.grid_size)
            coarse = coarse + F.avg_pool2d(plane, 2).flatten(2).transpose(1, 2)
        return model.norm_pre(torch.cat((fine, model.pos_drop(coarse)), 1))

    def _blocks(self, x: Tensor, weight: Tensor | None) -> Tensor:
        for b in self.model.blocks:
            x = x + b.drop_path1(b.ls1(attend(b.attn, b.norm1(x), weight)[0]))
            x = x + b.drop_path2(b.ls2(b.mlp(b.norm2(x))))
        return self.model.norm(x)

    def _spread(self, values: Tensor) -> Tensor:
        """Values of coarse patches at their fine ones, (B, K, …) to (B, N, …)."""
        rows = values.unflatten(1, self.grid).repeat_interleave(2, 1).repeat_interleave(2, 2)
        return rows.flatten(1, 2)

    def gated(self, x: Tensor) -> Mixed:
        """Output, and what the gate chose.

        Args:
            x: pictures, (B, channels, H, W).

        Returns:
            Output and choices.
        """
        probability, fine = self.choose(x)
        if self.training:
            return Mixed(self._masked(x, fine), probability, fine)
        lengths = self.model.num_prefix_tokens + 4 * fine.sum(1).int() + (1 - fine).sum(1).int()
        if (routes := recorded()) is not None:
            work = (0.25 + 0.75 * fine).unflatten(1, self.grid).cpu().numpy().astype(np.float32)
            depth, whole = len(self.model.blocks), float(self.model.num_prefix_tokens + 4 * fine.shape[1])
            routes.append(Route(work, (float(lengths.float().mean()),) * depth, (whole,) * depth))
        out = self.model(x) if bool(fine.all()) else self._gathered(x, fine, lengths)
        return Mixed(out, probability, fine)

    def _there(self, fine: Tensor) -> tuple[Tensor, Tensor]:
        """Choices at fine patches, (B, N), and whether each token of `_embed` is there, (B, own + N + K)."""
        at, own = self._spread(fine), torch.ones_like(fine[:, :1]).expand(-1, self.model.num_prefix_tokens)
        return at, torch.cat((own, at, 1 - fine), 1)

    def _masked(self, x: Tensor, fine: Tensor) -> Tensor:
        """Output while training: all tokens are there, and attention leaves out those not chosen."""
        own, count = self.model.num_prefix_tokens, 4 * fine.shape[1]
        at, there = self._there(fine)
        first, fines, coarse = self._blocks(self._embed(x), there + LEAST).tensor_split((own, own + count), dim=1)
        patches = at[..., None] * fines + (1 - at)[..., None] * self._spread(coarse)
        return self.model.forward_head(torch.cat((first, patches), 1))

    def _gathered(self, x: Tensor, fine: Tensor, lengths: Tensor) -> Tensor:
        """Output of the chosen tokens alone; pictures of one batch are filled up to the longest of them."""
        own, count, most = self.model.num_prefix_tokens, 4 * fine.shape[1], int(lengths.max())
        at, there = self._there(fine)
        # those that are there first, in their order; nothing attends to the others
        index = there.argsort(dim=1, descending=True, stable=True)[:, :most]
        weight = None if int(lengths.min()) == most else there.gather(1, index)
        y = self._blocks(take(self._embed(x), index), weight)
        rank = there.cumsum(1).long() - 1
        places = torch.where(at > 0, rank[:, own : own + count], self._spread(rank[:, own + count :]))
        first = torch.arange(own, device=x.device).expand(x.shape[0], -1)
        return self.model.forward_head(take(y, torch.cat((first, places), 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.gated(x).out


def _tiny(seed: int) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionTransformer((8, 12), 2, embed_dim=8, depth=2, num_heads=2, num_classes=3)


METHOD = Method(
    id=222,
    name="MSViT",
    kind="transform",
    summary="A gate reads each coarse patch and has a vision transformer see it as one token or as four.",
    cases={
        "vit": Transform(
            MSViT(target=0.5, hidden=4).apply,
            _tiny,
            lambda seed: torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(seed)),
            MSViT(by="fine").apply,
            tolerance=0.0,
            twice="model must be a vision transformer of timm, got MixedScale",
        )
    },
    paper=Paper(
        "MSViT: Dynamic Mixed-Scale Tokenization for Vision Transformers", "J. Havtorn et al.", 2023, "arXiv:2307.02321"
    ),
)
