"""SparseViT: in each stage of a Swin, attention and MLP work on the windows of the largest norm, and skip the others.

*Source*: X. Chen et al., "SparseViT: Revisiting Activation Sparsity for Efficient High-Resolution Vision Transformer",
CVPR 2023 (arXiv:2303.17605), section 3: window activation pruning, sparsity-aware adaptation, evolutionary search.

    a_w = ‖x_w‖₂                                  score of window w, x at the stage's input; (B, windows)
    S = the ⌈keep · windows⌉ windows of the largest a
    y_w = z_w + MLP(norm(z_w)),  z_w = x_w + attention(norm(x_w))    for w in S
    y_w = x_w                                     for the others

Scores are those of the stage's input for all of its blocks; shifted blocks have windows of their own, scored by the
same tokens. Adaptation trains with shares drawn anew for each step (`draw_keep`, `set_keep_`), so that `search_keep`
may compare shares without training.

Shapes: B batch, K chosen windows, N tokens of a window, H W height and width of a stage's map, C channels.

*Differs from the paper*: one share for each stage; the authors' six-block stage has three that never rise. The number
of windows is rounded up, so that a stage keeps at least one. The budget of the search is of multiply-adds, not of
milliseconds, and its population smaller than the authors' 100; the shares that are drawn, 20 % to 100 % in tenths, and
the mutation are theirs. Their code scores a token by the mean magnitude of its channels, not by their norm.
*Provenance*: written from the formulas above; numbers of the search were looked up in the authors' code, whose stages,
given their score, this equals bit for bit.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Transform
from foveal.measure.cost import count_macs
from foveal.nn.gather import kept, top
from foveal.record import Method, Paper
from foveal.runtime.route import Route, recorded
from foveal.shrink.tokens.swin_windows import on_windows, places, window_norms

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from foveal.shrink.step import Inputs

__all__ = ["SparseBlocks", "SparseViT", "draw_keep", "search_keep", "set_keep_"]

CHOICES = ("norm", "random")
SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class SparseViT:
    """Step: a timm Swin works on some of its windows. Adapt it by training with drawn shares afterwards.

    Args:
        keep: share of the windows that is worked on, in (0, 1], or one for each stage; 1 changes nothing.
        by: "norm", or "random" as a floor.
        seed: of the random choice outside of training, the same for every call.

    Raises:
        ValueError: a share outside its range, or an unknown `by`.
    """

    keep: float | tuple[float, ...] = 0.5
    by: str = "norm"
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.keep)
        if self.by not in CHOICES:
            raise ValueError(f"by must be one of {', '.join(CHOICES)}, got {self.by!r}")

    def apply(self, model: nn.Module, data: Inputs | None = None) -> nn.Module:  # noqa: ARG002 - nothing is calibrated
        """Let a network skip windows, in place. Names of its parameters stay.

        Args:
            model: Swin transformer of timm.
            data: not used.

        Returns:
            The same network.

        Raises:
            TypeError: a network that is no Swin transformer of timm.
            ValueError: a network that skips windows already, or a number of shares that is not that of the stages.
        """
        from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock

        if not isinstance(model, SwinTransformer):
            raise TypeError(f"model must be a Swin transformer of timm, got {type(model).__name__}")
        stages: list[Any] = list(model.layers)
        if any(isinstance(stage.blocks, SparseBlocks) for stage in stages):
            raise ValueError("model skips windows already; change its shares by set_keep_, or apply to a fresh network")
        if wrong := next((b for stage in stages for b in stage.blocks if type(b) is not SwinTransformerBlock), None):
            raise TypeError(f"blocks must be timm's SwinTransformerBlock, got {type(wrong).__name__}")
        shares = _each(self.keep, len(stages))
        for number, (stage, share) in enumerate(zip(stages, shares, strict=True)):
            stage.blocks = SparseBlocks(stage.blocks, self, number=number, keep=share)
        return model


def _check(keep: float | Sequence[float]) -> None:
    for share in (keep,) if isinstance(keep, int | float) else keep:
        if not 0 < share <= 1:
            raise ValueError(f"keep must be in (0, 1], got {share}; 0.4 skips 60 % of the windows")


def _each(keep: float | Sequence[float], stages: int) -> tuple[float, ...]:
    shares = (keep,) * stages if isinstance(keep, int | float) else tuple(keep)
    if len(shares) != stages:
        raise ValueError(f"keep must be one share or one for each of {stages} stages, got {len(shares)}")
    return shares


class SparseBlocks(nn.Module):
    """The blocks of a Swin's stage on some of its windows, (B, H, W, C) to the same.

    Not iterable: one by one, blocks would work on all windows.

    Args:
        blocks: blocks of a stage of timm's Swin; they are shared, not copied.
        config: how windows are chosen.
        number: number of the stage, from 0.
        keep: share of the windows.
    """

    def __init__(self, blocks: nn.Module, config: SparseViT, *, number: int, keep: float) -> None:
        super().__init__()
        self.config, self.number, self.keep = config, number, keep
        for name, block in blocks.named_children():
            self.add_module(name, block)
        self.train(blocks.training)

    @torch.no_grad()
    def choose(self, x: Tensor, numbers: Tensor, draw: int) -> Tensor:
        """Windows that are worked on.

        Args:
            x: tokens of the stage's input, (B, H·W, C).
            numbers: result of `places`, (windows, N).
            draw: number of the choice within the stage.

        Returns:
            Numbers of the windows, ascending, (B, K) int64.
        """
        count = kept(len(numbers), self.keep)
        if self.config.by == "norm" or count == len(numbers):
            return top(window_norms(x, numbers), count)
        shape = (x.shape[0], len(numbers))
        if self.training:
            return top(torch.rand(shape, device=x.device), count)
        fixed = torch.Generator().manual_seed(self.config.seed + 2 * self.number + draw)
        return top(torch.rand(shape, generator=fixed).to(x.device), count)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        first, routes = x.flatten(1, 2), recorded()
        chosen: dict[Any, tuple[Tensor, Tensor]] = {}
        done, counts, of = torch.zeros(first.shape[:2]), [], []
        for module in self._modules.values():
            block: Any = module
            kind = (block.window_size, block.shift_size)
            if kind not in chosen:
                numbers = places(height, width, *kind, device=x.device)
                chosen[kind] = numbers, self.choose(first, numbers, len(chosen))
            numbers, index = chosen[kind]
            x = block(x) if index.shape[1] == len(numbers) else on_windows(block, x, numbers, index)
            counts.append(float(index.shape[1]))
            of.append(float(len(numbers)))
            if routes is not None:
                at = F.pad(torch.zeros_like(done), (0, numbers.numel() - done.shape[1]))
                done += at.scatter_(1, numbers[index].flatten(1).cpu(), 1.0)[:, : done.shape[1]]
        if routes is not None:
            self._record(routes, done.view(-1, height, width).numpy(), counts, of)
        return x

    def _record(self, routes: list[Route], done: Any, counts: list[float], of: list[float]) -> None:
        """Append the route of the first stage; later stages take the place of what those before them appended."""
        if not self.number:
            routes.append(Route((done / len(counts)).astype(np.float32), tuple(counts), tuple(of), "windows"))
            return
        before = routes.pop()
        rows, columns = before.work.shape[1:]
        # (B, H / 2^number, …) to (B, H, …)
        done = done.repeat(2**self.number, 1).repeat(2**self.number, 2)[:, :rows, :columns]
        blocks = len(before.counts) + len(counts)
        work = ((before.work * len(before.counts) + done) / blocks).astype(np.float32)
        routes.append(Route(work, (*before.counts, *counts), (*before.of, *of), "windows"))


def _stages(model: nn.Module) -> list[SparseBlocks]:
    stages = [module for module in model.modules() if isinstance(module, SparseBlocks)]
    if not stages:
        raise ValueError(f"{type(model).__name__} skips no windows; apply SparseViT to it first")
    return stages


def set_keep_(model: nn.Module, keep: float | Sequence[float]) -> nn.Module:
    """Change the shares of the windows that are worked on, in place.

    Args:
        model: network that `SparseViT` was applied to.
        keep: share, in (0, 1], or one for each stage.

    Returns:
        The same network.
    """
    _check(keep)
    stages = _stages(model)
    for stage, share in zip(stages, _each(keep, len(stages)), strict=True):
        stage.keep = share
    return model


def draw_keep(stages: int, *, seed: int, shares: Sequence[float] = SHARES) -> tuple[float, ...]:
    """Draw shares for a step of the adaptation.

    Args:
        stages: number of stages.
        seed: seed of the draw.
        shares: shares to draw from.

    Returns:
        One share for each stage.
    """
    return tuple(random.Random(seed).choices(shares, k=stages))


def search_keep(
    model: nn.Module,
    quality: Callable[[nn.Module], float],
    *,
    budget: float,
    shape: tuple[int, ...],
    shares: Sequence[float] = SHARES,
    population: int = 20,
    parents: int = 5,
    generations: int = 4,
    mutation: float = 0.1,
    seed: int = 0,
) -> tuple[float, ...]:
    """Search the shares of all stages by evolution: half of the children mutate a parent, half mix two.

    Args:
        model: adapted network; its shares are the same afterwards as before.
        quality: function from the network to a number, the higher the better, such as accuracy on held-out pictures.
        budget: share of the multiply-adds of the whole network, in (0, 1].
        shape: shape of the picture that is counted, (1, C, H, W).
        shares: shares to choose from.
        population: number of candidates in a generation.
        parents: number of them that have children.
        generations: number of generations.
        mutation: probability that a stage of a child is drawn anew.
        seed: of the draws.

    Returns:
        The best shares found, one for each stage.

    Raises:
        ValueError: a budget outside its range, or one that no shares meet.
    """
    if not 0 < budget <= 1:
        raise ValueError(f"budget must be in (0, 1], got {budget}; 0.5 is half of the multiply-adds")
    stages, draw = _stages(model), random.Random(seed)
    before, count = tuple(stage.keep for stage in stages), len(stages)
    try:
        whole = count_macs(set_keep_(model, 1.0), shape)

        def saved(stage: int, share: float) -> int:
            alone = [share if i == stage else 1.0 for i in range(count)]
            return whole - count_macs(set_keep_(model, alone), shape) if share < 1 else 0

        table = [{share: saved(stage, share) for share in shares} for stage in range(count)]

        def affords(keep: Sequence[float]) -> bool:
            return whole - sum(table[i][share] for i, share in enumerate(keep)) <= budget * whole

        if not affords(least := (min(shares),) * count):
            lowest = 1 - sum(table[i][least[i]] for i in range(count)) / whole
            raise ValueError(f"budget {budget:g} cannot be met: the least that these shares cost is {lowest:.3f}")

        def within(child: Callable[[], tuple[float, ...]]) -> tuple[float, ...]:
            return next((keep for keep in (child() for _ in range(200)) if affords(keep)), least)

        def mutated(best: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
            return tuple(draw.choice(shares) if draw.random() < mutation else share for share in draw.choice(best))

        def mixed(best: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
            return tuple(draw.choice(pair) for pair in zip(draw.choice(best), draw.choice(best), strict=True))

        found: dict[tuple[float, ...], float] = {}
        pool = [within(lambda: tuple(draw.choices(shares, k=count))) for _ in range(population)]
        for generation in range(generations):
            for keep in pool:
                if keep not in found:
                    found[keep] = quality(set_keep_(model, keep))
            best = sorted(found, key=lambda keep: found[keep], reverse=True)[:parents]
            if generation < generations - 1:
                ways = [mutated] * (population // 2) + [mixed] * (population - population // 2)
                pool = [within(partial(way, best)) for way in ways]
        return best[0]
    finally:
        set_keep_(model, before)


def _tiny(seed: int) -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SwinTransformer(
            (16, 24), 2, embed_dim=8, depths=(2, 2), num_heads=(2, 2), window_size=2, num_classes=3, drop_path_rate=0.0
        )


METHOD = Method(
    id=36,
    name="SparseViT",
    kind="transform",
    summary="A Swin transformer works on the windows of the largest norm in each stage and copies the others.",
    paper=Paper(
        "SparseViT: Revisiting Activation Sparsity for Efficient High-Resolution Vision Transformer",
        "X. Chen et al.",
        2023,
        "arXiv:2303.17605",
    ),
    cases={
        "swin": Transform(
            SparseViT(0.4).apply,
            _tiny,
            lambda seed: torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(seed)),
            SparseViT(1.0).apply,
            tolerance=0.0,
            twice="model skips windows already",
        )
    },
)
