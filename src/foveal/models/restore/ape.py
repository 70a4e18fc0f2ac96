"""APE: patches of a photograph leave a super-resolution network at the depth where going on gains little.

*Source*: S. Wang et al., "Adaptive Patch Exiting for Scalable Single Image Super-Resolution", ECCV 2022
(arXiv:2203.11589), section 3. EDSR's residual blocks in E stages with an exit after each, and one tail for all exits.
With x, (B, C, H, W), the features of the picture and y_e those after stage e,

    out_e = tail(x + fuse(y_e)),   I_e = error of out_e − error of out_{e+1},   Î_e = w_e · mean(|y_e|) + b_e

the means being over a patch. A patch leaves at the first exit whose predicted incremental capacity Î_e is below a
threshold T. One set of weights serves every T: with None, or −∞, the network is whole. `loss` trains all exits;
`fit_regressors_` then solves for w and b by least squares on measured gains.

*Differs from the paper*: patches are parts of one feature map, not pictures of their own. One that has left stays there
as context of its neighbours, so nothing overlaps, there is no seam, and T = −∞ is the undivided network. A patch's
block reads two pixels around it and computes one of them again. The capacity is the fall of the squared error; the
paper's is tanh of the gain in dB, which is no larger where the picture gains most (`decibels=True`). It is what the
next stage will gain; in the authors' code, what the last one has gained. Each exit has a regressor of its own, over
absolute values, and the body is not trained by them. `fit_budget_` finds T for a share of the multiply-adds. The mean
of the colours is 0.5.

*Provenance*: written from the paper; the regressor and what it is trained on were looked up in the authors' code.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.nn.budget import affordable, threshold_for
from foveal.record import Method, Paper
from foveal.runtime.route import Route, recorded

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["APE", "capacity", "grid_of", "loss", "patch_means"]

HALO = 2  # pixels around a patch that a block reads: one for each of its convolutions
Grid = tuple[int, int, int, int]  # rows and columns of patches, height and width of a patch


def grid_of(height: int, width: int, patch_size: int) -> Grid:
    """Divide a picture evenly into patches; those at the lower and right border may be smaller.

    Args:
        height: H.
        width: W.
        patch_size: largest side of a patch.

    Returns:
        Rows and columns of patches, height and width of a patch.
    """
    rows, columns = math.ceil(height / patch_size), math.ceil(width / patch_size)
    return rows, columns, math.ceil(height / rows), math.ceil(width / columns)


def patch_means(x: Tensor, grid: Grid, *, scale: int = 1) -> Tensor:
    """Mean of each patch.

    Args:
        x: map, (B, C, s·H, s·W).
        grid: patches of the (H, W) picture, see `grid_of`.
        scale: s.

    Returns:
        Means, (B, rows, columns, C).
    """
    rows, columns, h, w = grid[0], grid[1], grid[2] * scale, grid[3] * scale
    border = (0, columns * w - x.shape[3], 0, rows * h - x.shape[2])
    inside = F.avg_pool2d(F.pad(x.new_ones(1, 1, *x.shape[2:]), border), (h, w))
    return (F.avg_pool2d(F.pad(x, border), (h, w)) / inside).movedim(1, -1)


def capacity(errors: Tensor, *, decibels: bool = False) -> Tensor:
    """Incremental capacity of every exit but the last: what the next stage gains.

    Args:
        errors: mean squared errors of the E exits, (E, …), of values in [0, 1].
        decibels: whether to measure it as the paper does, by tanh of the gain in PSNR.

    Returns:
        Falls of the squared error in levels² of 255, or tanh of gains in dB, (E − 1, …).
    """
    if decibels:
        return (-10 * errors.clamp_min(1e-10).log10()).diff(dim=0).tanh()
    return -(255**2) * errors.diff(dim=0)


def loss(network: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Loss of all exits.

    Args:
        network: `APE` in training.
        batch: low- and high-resolution patches, (B, C, h, w) and (B, C, s·h, s·w).

    Returns:
        Sum over the exits of the mean absolute error.
    """
    return torch.stack([F.l1_loss(out, batch[1]) for out, _ in network.exits(batch[0])]).sum()


class _Block(nn.Module):
    """x + conv(relu(conv(x))), (B, C, H, W) to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(dim, dim, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))

    def inner(self, x: Tensor, inside: Tensor) -> Tensor:
        """The same on patches with a halo; `inside` is 1 on the picture and 0 beyond it, as zero padding is.

        x: (K, C, h + 4, w + 4), inside: (K, 1, h + 2, w + 2), result: (K, C, h, w).
        """
        hidden = F.relu(F.conv2d(x, self.conv1.weight, self.conv1.bias)) * inside
        y = F.conv2d(hidden, self.conv2.weight, self.conv2.bias)
        return (x[..., HALO:-HALO, HALO:-HALO] + y) * inside[..., 1:-1, 1:-1]


class _Sheet:
    """A feature map divided into patches, with zeros around it.

    Args:
        features: map, (B, C, H, W).
        grid: patches, see `grid_of`.
    """

    def __init__(self, features: Tensor, grid: Grid) -> None:
        self.height, self.width = features.shape[2:]
        rows, columns, h, w = grid
        border = (HALO, columns * w - self.width + HALO, HALO, rows * h - self.height + HALO)
        padded = F.pad(features, border)
        inside = F.pad(features.new_ones(1, 1, self.height, self.width), border)[..., 1:-1, 1:-1]
        # (B, rows, columns, C, h + 4, w + 4), overlapping; the same without a halo; (rows, columns, 1, h + 2, w + 2)
        self._wide = self._cut(padded, h, w, HALO)
        self._tight = self._cut(padded[..., HALO:-HALO, HALO:-HALO], h, w, 0)
        self._inside = self._cut(inside, h, w, HALO - 1)[0]
        self._padded = padded

    @staticmethod
    def _cut(x: Tensor, h: int, w: int, halo: int) -> Tensor:
        return x.unfold(2, h + 2 * halo, h).unfold(3, w + 2 * halo, w).permute(0, 2, 3, 1, 4, 5)

    def update(self, block: _Block, places: tuple[Tensor, ...]) -> None:
        """Apply a block to the patches at some places: picture, row and column, (K,) each."""
        self._tight[places] = block.inner(self._wide[places], self._inside[places[1:]])

    def whole(self) -> Tensor:
        return self._padded[..., HALO : HALO + self.height, HALO : HALO + self.width]


class APE(nn.Module):
    """Super-resolution network with exits, (B, C, H, W) to (B, C, s·H, s·W); values in [0, 1].

    `threshold` may be set at any time: patches leave where the next stage is predicted to lower the squared error by
    less, in levels² of 255. None is the whole network, which is also what is trained and exported.

    Args:
        scale: s: 2, 3 or 4.
        dim: width.
        depth: number of residual blocks.
        interval: number of blocks between exits, a divisor of `depth`.
        patch_size: largest side of a patch, in pixels of the input.
        in_channels: C.

    Raises:
        ValueError: another scale, an interval that does not divide the depth, or patches below the halo.
    """

    threshold: float | None = None

    def __init__(
        self,
        scale: int = 2,
        *,
        dim: int = 64,
        depth: int = 16,
        interval: int = 2,
        patch_size: int = 32,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if scale not in (2, 3, 4):
            raise ValueError(f"scale must be 2, 3 or 4, got {scale}")
        if interval < 1 or depth % interval:
            raise ValueError(f"interval must divide the depth of {depth}, got {interval}; 1 always does")
        if patch_size < HALO:
            raise ValueError(f"patch_size must be at least {HALO}, got {patch_size}; 32 is a good size")
        self.scale, self.interval, self.patch_size = scale, interval, patch_size
        self.head = nn.Conv2d(in_channels, dim, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(*(_Block(dim) for _ in range(interval))) for _ in range(depth // interval)
        )
        self.fuse = nn.Conv2d(dim, dim, 3, padding=1)
        self.up = nn.Sequential()
        for factor in (2, 2) if scale == 4 else (scale,):
            self.up.extend([nn.Conv2d(dim, dim * factor**2, 3, padding=1), nn.PixelShuffle(factor)])
        self.tail = nn.Conv2d(dim, in_channels, 3, padding=1)
        self.regressors: Tensor  # w and b of every exit but the last
        self.register_buffer("regressors", torch.zeros(len(self.body) - 1, dim + 1))

    def _stages(self) -> list[list[_Block]]:
        return [[block for block in stage.children() if isinstance(block, _Block)] for stage in self.body]

    def _picture(self, first: Tensor, features: Tensor) -> Tensor:
        return self.tail(self.up(first + self.fuse(features))) + 0.5

    def predicted(self, exit_: int, features: Tensor, grid: Grid) -> Tensor:
        """Predicted capacity of an exit.

        Args:
            exit_: number of the exit, from 0.
            features: features behind its stage, (B, C, H, W).
            grid: patches, see `grid_of`.

        Returns:
            Capacity of each patch, (B, rows, columns).
        """
        weight = self.regressors[exit_]
        return patch_means(features.abs(), grid) @ weight[:-1] + weight[-1]

    def exits(self, x: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        """Pictures of all exits.

        Args:
            x: low-resolution pictures, (B, C, H, W).

        Yields:
            Picture, (B, C, s·H, s·W), and features, (B, dim, H, W), of each exit.
        """
        first = features = self.head(x - 0.5)
        for stage in self.body:
            features = stage(features)
            yield self._picture(first, features), features

    @torch.no_grad()
    def fit_regressors_(
        self, batches: Iterable[tuple[Tensor, Tensor]], *, decibels: bool = False, ridge: float = 1e-6
    ) -> None:
        """Solve for the regressors by least squares on measured gains.

        Args:
            batches: low- and high-resolution pictures, (B, C, H, W) and (B, C, s·H, s·W).
            decibels: what capacity is, see `capacity`.
            ridge: weight of the squared regressors beside the mean squared residual.

        Raises:
            ValueError: no batches.
        """
        width = self.regressors.shape[1]
        normal = torch.zeros(len(self.regressors), width, width, dtype=torch.float64)
        right, count = normal.new_zeros(len(self.regressors), width, 1), 0
        for low, high in batches:
            grid = grid_of(low.shape[2], low.shape[3], self.patch_size)
            found = [
                (
                    patch_means((out - high).square().mean(1, keepdim=True), grid, scale=self.scale),
                    patch_means(y.abs(), grid),
                )
                for out, y in self.exits(low)
            ]
            errors, pooled = (torch.stack(part).double().flatten(1, 3) for part in zip(*found, strict=True))
            # (E − 1, patches, C + 1)
            pooled = F.pad(pooled[:-1], (0, 1), value=1)
            normal += pooled.mT @ pooled
            right += pooled.mT @ capacity(errors[..., 0], decibels=decibels)[..., None]
            count += pooled.shape[1]
        if not count:
            raise ValueError("regressors are solved for on pictures, got none; give batches of low and high resolution")
        eye = ridge * count * torch.eye(width, dtype=torch.float64)
        self.regressors.copy_(torch.linalg.solve(normal + eye, right)[..., 0])

    def costs(self) -> tuple[float, float]:
        """Multiply-adds as shares of the whole network's.

        Returns:
            Of what every pixel gets outside of the body, and of one stage.
        """
        dim, channels = self.head.out_channels, self.head.in_channels
        stage = 18 * dim**2 * self.interval
        up = sum(sum(p.numel() for p in conv.parameters() if p.ndim == 4) * 4**i for i, conv in enumerate(self.up[::2]))
        fixed = up + 9 * (channels * dim + dim**2 + self.scale**2 * dim * channels)
        whole = fixed + stage * len(self.body)
        return fixed / whole, stage / whole

    @torch.no_grad()
    def fit_budget_(self, budget: float, pictures: Sequence[Tensor] = ()) -> None:
        """Set the threshold at which some pictures take a share of the multiply-adds of the whole network.

        Args:
            budget: share, in (0, 1]; 1 is the whole network.
            pictures: low-resolution pictures to find it on, (B, C, H, W) each; none are needed for 1.

        Raises:
            ValueError: a budget outside (0, 1], one that the first exit exceeds, or no pictures.
        """
        fixed, stage = self.costs()
        again = ((1 + HALO / self.patch_size) ** 2 + 1) / 2  # pixels of the halo are computed once more
        share = affordable(budget, least=fixed + stage, each=again * stage * (len(self.body) - 1))
        self.threshold = None
        lowest = []
        for x in pictures if share < 1 else ():
            features, grid = self.head(x - 0.5), grid_of(x.shape[2], x.shape[3], self.patch_size)
            least = features.new_tensor(math.inf)
            for i, part in enumerate(self.body[:-1]):
                features = part(features)
                least = torch.minimum(least, self.predicted(i, features, grid))  # a patch stays while this is enough
                lowest.append(least)
        self.threshold = threshold_for(share, lowest)

    def forward(self, x: Tensor) -> Tensor:
        first = features = self.head(x - 0.5)
        grid = grid_of(x.shape[2], x.shape[3], self.patch_size)
        stays = torch.ones(len(x), *grid[:2], dtype=torch.bool, device=x.device)
        stages, sheet = [], None
        for i, stage in enumerate(self._stages()):
            if sheet is None:
                features = self.body[i](features)
            elif stays.any():
                places = torch.where(stays)
                for block in stage:
                    sheet.update(block, places)
                features = sheet.whole()
            stages.append(stays)
            if self.threshold is not None and i < len(self.body) - 1:
                stays = stays & (self.predicted(i, features, grid) >= self.threshold)
                if sheet is None and not stays.all():
                    sheet = _Sheet(features, grid)
        self._record(stages)
        return self._picture(first, features)

    def _record(self, stages: list[Tensor]) -> None:
        if (routes := recorded()) is None:
            return
        fixed, stage = self.costs()
        worked = torch.stack(stages).float().cpu()
        counts = worked.sum((2, 3)).mean(1).tolist()
        work = (fixed + stage * worked.sum(0)).clamp(max=1)
        routes.append(Route(work.numpy(), tuple(counts), (float(worked[0, 0].numel()),) * len(counts), unit="patches"))


METHOD = Method(
    id=27,
    name="APE",
    kind="model",
    summary="Patches of a photograph leave the network at the exit where the next stage would gain little.",
    paper=Paper(
        "Adaptive Patch Exiting for Scalable Single Image Super-Resolution", "S. Wang et al.", 2022, "arXiv:2203.11589"
    ),
    models={"ape": APE},
    cases={"ape": {"scale": 2, "dim": 4, "depth": 2, "interval": 1, "patch_size": 5}},
)
