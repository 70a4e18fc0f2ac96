"""Evidence for PanGu-π: how alike tokens become in a deep random transformer, and a shallower network on CIFAR-10.

The random transformer has 24 blocks of 128 channels; every layer is drawn so that it keeps the variance, with standard
deviation 1 / √inputs, and reads 49 tokens that are independent. The plain one is the same with the shortcuts left out.
How alike tokens are is their mean cosine over all pairs and blocks. With Xavier's initial values, which make the
shortcut small because its bottleneck is narrow, the difference over all blocks is within the noise.

On CIFAR-10 four blocks with both compensations are compared with six plain ones and, beyond the bar, with four plain
ones: what two blocks fewer cost without compensation. The bottleneck has 8 of 64 channels.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached
from foveal.evidence.tasks import cifar10
from foveal.evidence.timing import call
from foveal.nn.isotropic import Isotropic, PatchEmbed
from foveal.nn.pangu_pi import PanGuPiBlock, series_activation
from foveal.record import bound, equal, faster, kept

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS, DEEP, SHALLOW = 600, 6, 4
DATA = f"CIFAR-10, 16 patches, {STEPS} steps of 64 from scratch, the first 2,000 test pictures; paired"
RANDOM = "24 random blocks of 128 channels, 49 independent tokens"


class _Sized(nn.Module):
    """A block as `Isotropic` calls it: with the map's size, which it does not need."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:  # noqa: ARG002 - attention needs no size
        return self.block(tokens)


def _vit(depth: int, *, terms: int, shortcuts: int, dim: int = 64, patch: int = 8) -> nn.Module:
    blocks = [PanGuPiBlock(dim, 4, terms=terms, shortcuts=shortcuts, reduction=8) for _ in range(depth)]
    grid = (32 // patch, 32 // patch)
    embed, norm = PatchEmbed(dim, patch), nn.LayerNorm(dim)
    return Isotropic(embed, [_Sized(block) for block in blocks], dim, patch, grid=grid, num_classes=10, norm=norm)


deep, plain = (partial(_vit, depth, terms=0, shortcuts=0) for depth in (DEEP, SHALLOW))
augmented = partial(_vit, SHALLOW, terms=2, shortcuts=1)


def alike(tokens: Tensor) -> Tensor:
    """Mean cosine of all pairs of different tokens, (B, N, C) to (B,)."""
    unit, count = F.normalize(tokens, dim=-1), tokens.shape[1]
    # the sum over all pairs is the squared norm of the sum
    return (unit.sum(1).square().sum(-1) - count) / (count * (count - 1))


def _alike(seed: int, *, shortcuts: int, depth: int = 24, dim: int = 128) -> float:
    """How alike tokens are after each block of a random transformer, mean over the blocks."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        z, found = torch.randn(2, 49, dim), 0.0
        for _ in range(depth):
            block = PanGuPiBlock(dim, 4, terms=0, shortcuts=shortcuts)
            for layer in block.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)
            z = block(z)
            found += float(alike(z).mean()) / depth
    return found


@cached(maxsize=16)
def _accuracy(build: Callable[[], nn.Module], seed: int) -> float:
    return cifar10.accuracy(cifar10.train_classifier(build, steps=STEPS, seed=seed))


def _gain(seed: int, *, than: Callable[[], nn.Module]) -> float:
    return _accuracy(augmented, seed) - _accuracy(than, seed)


def _features(hidden: int = 63) -> Tensor:
    return 3 * torch.randn(7, hidden, generator=torch.Generator().manual_seed(0))


def _gelu_gap() -> float:
    """Largest difference between one term with a = 1 and b = 0 and GELU, over 441 features."""
    x = _features()
    one = series_activation(x, torch.ones(1, x.shape[1]), torch.zeros(1, x.shape[1]))
    return float((one - F.gelu(x)).abs().max())


CLAIMS = (
    bound(
        "One term with scale 1 and shift 0 is GELU to the last bit.",
        paper="degenerates to the plain activation",
        value=_gelu_gap,
        at_most=0.0,
        unit="largest difference",
        clause=1,
    ),
    equal(
        "Two such terms are twice GELU.",
        ours=lambda: series_activation(_features(), torch.ones(2, 63), torch.zeros(2, 63)),
        theirs=lambda: 2 * F.gelu(_features()),
        clause=1,
    ),
    kept(
        "Tokens of a deep random transformer are less alike with one augmented shortcut a block, mean over the blocks.",
        paper="alleviates feature collapse",
        quality=lambda seed: _alike(seed, shortcuts=0) - _alike(seed, shortcuts=1),
        at_least=0.0,
        unit="lower cosine",
        seeds=40,
        data=RANDOM,
        clause=2,
    ),
    kept(
        f"{SHALLOW} blocks with series activation and shortcut are within 1 point of {DEEP} plain blocks.",
        paper="29 layers as good as 32",
        quality=partial(_gain, than=deep),
        at_least=-1.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        clause=3,
    ),
    faster(
        f"{SHALLOW} such blocks take less time than {DEEP} plain ones, 64 pictures at once.",
        paper="about 10% faster, 7B parameters",
        ours=call(augmented, 64, 3, 32, 32),
        theirs=call(deep, 64, 3, 32, 32),
        clause=3,
    ),
    kept(
        f"They are more accurate than {SHALLOW} plain blocks.",
        paper="37.9 against 35.0 on C-Eval",
        quality=partial(_gain, than=plain),
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=cifar10.NEEDS,
        beyond="both modules improve the network they are added to",
    ),
)
