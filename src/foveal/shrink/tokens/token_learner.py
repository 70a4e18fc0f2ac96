"""TokenLearner: halfway through a vision transformer, eight weighted means of all patches take their place.

*Source*: M. Ryoo et al., "TokenLearner: What Can 8 Learned Tokens Do for Images and Videos?", NeurIPS 2021
(arXiv:2106.11297), sections 2.1 (TokenLearner) and 2.2 (TokenFuser).

    w = softmax over patches of MLP(norm(x))         maps, (B, N, S)
    z = wᵀ x                                         learned tokens, (B, S, C)
    y = norm(M norm(z))                              M mixes the S tokens of each channel, (S, S)
    x + sigmoid(MLP(norm(x))) y                      fused: the tokens put back at all patches, (B, N, C)

Without the fuser later blocks see S tokens and no patches. With it each of them learns tokens of its own, works on
these, and the map keeps its size, as dense outputs need.

Shapes: B batch, N patches, S learned tokens, C channels.

*Differs from the paper*: maps come from an MLP with a softmax, the authors' version 1.1, not from four convolutions
with a sigmoid; so the picture may have any shape. A class token passes by. M starts at zero, as in the authors' code: a
fresh fuser adds nothing.
*Provenance*: written from the paper; sizes and initial values were looked up in the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foveal.cases import Transform
from foveal.record import Method, Paper
from foveal.shrink.tokens.between import blocks_of, insert_

if TYPE_CHECKING:
    from foveal.shrink.step import Inputs

__all__ = ["Fuser", "Learner", "TokenLearner"]


def _mlp(dim: int, hidden: int, out: int) -> nn.Sequential:
    """Norm and two layers that start as the authors' do."""
    layers = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, out))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return layers


class Learner(nn.Module):
    """Weighted means of all patches, (B, N, C) to (B, S, C).

    Args:
        dim: C.
        tokens: S.
        hidden: channels inside the MLP of the maps.
    """

    def __init__(self, dim: int, tokens: int = 8, *, hidden: int = 64) -> None:
        super().__init__()
        self.maps = _mlp(dim, hidden, tokens)

    def weights(self, x: Tensor) -> Tensor:
        """Weight of each patch in each token.

        Args:
            x: patches, (B, N, C).

        Returns:
            Weights, (B, S, N), at least 0; they sum to 1 over the patches.
        """
        return self.maps(x).transpose(1, 2).softmax(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.weights(x) @ x


class Fuser(nn.Module):
    """Puts tokens back at all patches: (B, S, C) and (B, N, C) to (B, N, C).

    Args:
        dim: C.
        tokens: S.
        hidden: channels inside the MLP of the maps.
    """

    def __init__(self, dim: int, tokens: int = 8, *, hidden: int = 64) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mix = nn.Linear(tokens, tokens)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)
        self.maps = _mlp(dim, hidden, tokens)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        # (B, S, C), mixed over S
        y = self.after(self.mix(self.before(z).transpose(1, 2)).transpose(1, 2))
        return self.maps(x).sigmoid() @ y


@dataclass(frozen=True)
class TokenLearner:
    """Step: learned tokens in place of patches, in a vision transformer of timm. Train the network afterwards.

    Args:
        tokens: number of learned tokens, S, at least 1.
        after: number of blocks that still see patches, at least 0; None is half of them.
        hidden: channels inside the MLP of the maps, at least 1.
        fuse: whether tokens are put back at all patches after each later block.

    Raises:
        ValueError: a number outside its range.
    """

    tokens: int = 8
    after: int | None = None
    hidden: int = 64
    fuse: bool = False

    def __post_init__(self) -> None:
        if min(self.tokens, self.hidden) < 1:
            raise ValueError(f"tokens and hidden must be at least 1, got {self.tokens} and {self.hidden}")
        if self.after is not None and self.after < 0:
            raise ValueError(f"after must be at least 0, got {self.after}; None takes half of the blocks")

    def apply(self, model: nn.Module, data: Inputs | None = None) -> nn.Module:  # noqa: ARG002 - nothing is calibrated
        """Insert the modules, in place.

        Args:
            model: vision transformer of timm.
            data: not used.

        Returns:
            The same network.

        Raises:
            ValueError: too few blocks for `after`, or no fewer tokens than patches.
        """
        depth = len(blocks_of(model, step="TokenLearner"))
        after = depth // 2 if self.after is None else self.after
        if after >= depth:
            raise ValueError(f"after must be below the {depth} blocks of the network, got {after}")
        patches = getattr(getattr(model, "patch_embed", None), "num_patches", None)
        if patches is not None and self.tokens >= patches:
            raise ValueError(f"tokens must be fewer than the {patches} patches, got {self.tokens}; 8 suits most")
        dim = int(model.embed_dim)  # type: ignore[arg-type]
        numbers = range(after, depth) if self.fuse else (after,)
        learners = {number: Learner(dim, self.tokens, hidden=self.hidden) for number in numbers}
        fusers = {number: Fuser(dim, self.tokens, hidden=self.hidden) for number in numbers} if self.fuse else {}
        return insert_(model, learners, fusers, step="TokenLearner")


def _tiny(seed: int) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionTransformer(img_size=20, patch_size=4, embed_dim=12, depth=3, num_heads=2, num_classes=3)


def _picture(seed: int) -> Tensor:
    return torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(seed))


METHOD = Method(
    id=262,
    name="TokenLearner",
    kind="transform",
    summary="Halfway through a vision transformer a few weighted means of all patches take their place.",
    paper=Paper(
        "TokenLearner: What Can 8 Learned Tokens Do for Images and Videos?", "M. Ryoo et al.", 2021, "arXiv:2106.11297"
    ),
    cases={
        "learned": Transform(
            TokenLearner(3, hidden=5).apply, _tiny, _picture, twice="model makes tokens fewer already"
        ),
        "fused": Transform(
            TokenLearner(3, hidden=5, fuse=True).apply, _tiny, _picture, twice="model makes tokens fewer already"
        ),
    },
)
