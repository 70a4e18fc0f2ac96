"""Fast compound scaling: a network s times as costly grows mainly in width, so that its activations grow as s^0.6.

*Source*: P. Dollár, M. Singh and R. Girshick, "Fast and Accurate Model Scaling", CVPR 2021 (arXiv:2103.06877), sections
3 and 5. Depth, width and resolution each take a share of the factor s, and the shares sum to 1:

    depth × s^e_d    width and group width × s^(e_w / 2)    resolution × s^(e_r / 2)    e_d + e_w + e_r = 1
    multiply-adds ~ d·w²·r² = s    parameters ~ d·w² = s^(e_d + e_w)    activations ~ d·w·r² = s^(1 - e_w / 2)

| strategy | (e_d, e_w, e_r) | activations |
|---|---|---|
| fast | ((1 - α)/2, α, (1 - α)/2), α = 0.8 | s^0.6 |
| uniform (dwr) | α = 1/3 | s^0.83 |
| width | α = 1 | s^0.5 |
| depth | (1, 0, 0) | s |

Activations, the outputs of all convolutions, tell time on devices that memory limits better than multiply-adds do.

*Differs from the paper*: the authors' code rounds each size to the nearest and misses s times the multiply-adds by up
to 18 %. `scale_stages` tries both neighbours of each size and takes what comes closest. Stem and head stay, as in their
code, so that activations of real networks grow a little slower than the rule says.

*Provenance*: written from the paper. Networks are timm's RegNets with other stages (`AnyNet`). For six RegNets, four
strategies and five factors, the depths, widths and groups of the authors' code are among `roundings`, and for their
networks `count` equals their activations, and their multiply-adds up to the biases they count.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import calculate_drop_path_rates
from timm.models.regnet import RegNet, RegNetCfg, adjust_widths_groups_comp, generate_regnet, model_cfgs

from foveal.cases import Procedure
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "DEPTH",
    "UNIFORM",
    "WIDTH",
    "AnyNet",
    "Counts",
    "Stages",
    "count",
    "fast",
    "multipliers",
    "roundings",
    "scale_stages",
    "scaled_regnet",
    "stages_of",
]

Shares = tuple[float, float, float]
TARGET = 0.05  # difference from s times the multiply-adds above which a network is not what was asked for
DEPTH: Shares = (1.0, 0.0, 0.0)
WIDTH: Shares = (0.0, 1.0, 0.0)
UNIFORM: Shares = (1 / 3, 1 / 3, 1 / 3)


def fast(alpha: float = 0.8) -> Shares:
    """Shares of depth, width and resolution in fast scaling.

    Args:
        alpha: share of width, in [0, 1]; the others halve the rest.

    Returns:
        (e_d, e_w, e_r).

    Raises:
        ValueError: an alpha outside [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}; 0.8 is fast, 1/3 uniform and 1 width only")
    return (1 - alpha) / 2, alpha, (1 - alpha) / 2


def multipliers(factor: float, shares: Shares) -> Shares:
    """What to multiply sizes by.

    Args:
        factor: s, above 0: multiply-adds wanted over those of the base.
        shares: (e_d, e_w, e_r), not negative, sum 1.

    Returns:
        Multipliers of depth, of width and group width, and of resolution.

    Raises:
        ValueError: a factor of 0 or less, or shares that do not sum to 1.
    """
    if factor <= 0:
        raise ValueError(f"factor must be above 0, got {factor}; 2 doubles the multiply-adds")
    if min(shares) < 0 or not math.isclose(sum(shares), 1):
        raise ValueError(f"shares of depth, width and resolution must sum to 1, none below 0, got {shares}")
    depth, width, resolution = shares
    return factor**depth, factor ** (width / 2), factor ** (resolution / 2)


@dataclass(frozen=True)
class Stages:
    """Stages of a RegNet-like network, the stem's width and the side of its pictures.

    Args:
        depths: blocks of each stage.
        widths: output channels of each.
        group_sizes: channels of a group in each.
        bottle_ratio: channels within a block over `widths`.
        stem_width: channels of the stem, which scaling keeps, as the authors do.
        img_size: side of the pictures.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    group_sizes: tuple[int, ...]
    bottle_ratio: float = 1.0
    stem_width: int = 32
    img_size: int = 224


@dataclass(frozen=True)
class Counts:
    """Counts of one forward pass.

    Args:
        macs: multiply-adds of convolutions and the classifier, without biases.
        activations: outputs of convolutions and of the classifier.
    """

    macs: int
    activations: int


def stages_of(cfg: RegNetCfg, img_size: int = 224) -> Stages:
    """Stages that timm builds from a configuration.

    Args:
        cfg: configuration, such as `timm.models.regnet.model_cfgs["regnety_004"]`.
        img_size: side of the pictures.

    Returns:
        The stages.
    """
    blocks, number, groups = generate_regnet(cfg.wa, cfg.w0, cfg.wm, cfg.depth, cfg.group_size)
    widths, depths = torch.unique(torch.tensor(blocks), return_counts=True)
    ratios = [cfg.bottle_ratio] * number
    adjusted, groups = adjust_widths_groups_comp(widths.tolist(), ratios, groups, cfg.group_min_ratio)
    return Stages(tuple(depths.tolist()), tuple(adjusted), tuple(groups), cfg.bottle_ratio, cfg.stem_width, img_size)


def count(cfg: RegNetCfg, stages: Stages, num_classes: int = 1000) -> Counts:
    """Multiply-adds and activations of `AnyNet`, by formula.

    Args:
        cfg: configuration, of which shortcut, squeeze-and-excitation and head count.
        stages: its stages.
        num_classes: outputs of the classifier.

    Returns:
        The counts of one picture.
    """
    side = -(-stages.img_size // 2)
    macs = activations = 0

    def convolution(inputs: int, outputs: int, pixels: int, taps: int = 1) -> None:
        nonlocal macs, activations
        macs, activations = macs + taps * inputs * outputs * pixels, activations + outputs * pixels

    convolution(3, stages.stem_width, side**2, 9)
    inputs = stages.stem_width
    for depth, width, group in zip(stages.depths, stages.widths, stages.group_sizes, strict=True):
        inner, before, side = round(width * stages.bottle_ratio), side, -(-side // 2)
        for block in range(depth):
            convolution(inputs, inner, before**2)
            convolution(group, inner, side**2, 9)
            if cfg.se_ratio:
                squeezed = round(inputs * cfg.se_ratio)
                convolution(inner, squeezed, 1)
                convolution(squeezed, inner, 1)
            convolution(inner, width, side**2)
            if block == 0 and cfg.downsample:
                convolution(inputs, width, side**2)
            inputs, before = width, side
    if cfg.num_features:
        convolution(inputs, cfg.num_features, side**2)
        inputs = cfg.num_features
    convolution(inputs, num_classes, 1)
    return Counts(macs, activations)


def _around(size: int, multiplier: float, step: int) -> list[int]:
    """The multiples of a step on both sides of a scaled size; the size itself if it does not change."""
    if multiplier == 1:
        return [size]
    down = max(1, math.floor(size * multiplier / step)) * step
    return [down, down + step] if size * multiplier > down else [down]


def _groups(size: int, multiplier: float) -> list[int]:
    """Group sizes on both sides of a scaled one: multiples of 8, or 1, 2 and 4 as in the authors' code."""
    scaled = size * multiplier
    if multiplier == 1:
        return [size]
    if scaled <= 5:
        return [4 if scaled > 2 else max(1, round(scaled))]
    return _around(size, multiplier, 8)


def _fitted(width: float, group: int, ratio: float) -> tuple[int, int]:
    """Width and group size near the given ones, so that groups divide the channels within a block."""
    rounded = max(1, round(width / 8)) * 8
    inner = max(1, int(rounded * ratio))
    group = min(group, inner)
    step = math.lcm(group, int(ratio)) if ratio > 1 else group
    return int(max(step, round(inner / step) * step) / ratio), group


def roundings(stages: Stages, factor: float, shares: Shares) -> Iterator[Stages]:
    """All ways to round what the rule gives: each depth, the group size and the resolution, down or up.

    Widths are rounded to the nearest multiple of 8 and then of the group size, the resolution to multiples of 16:
    between them the last stages, whose sides are whole numbers, cost the same. A size whose multiplier is 1 stays.

    Args:
        stages: the base.
        factor: s.
        shares: see `multipliers`.

    Yields:
        Stages.
    """
    deeper, wider, larger = multipliers(factor, shares)
    ratio, groups = stages.bottle_ratio, _groups(max(stages.group_sizes), wider)
    depths = itertools.product(*(_around(depth, deeper, 1) for depth in stages.depths))
    for some, group, size in itertools.product(depths, groups, _around(stages.img_size, larger, 16)):
        pairs = [_fitted(width * wider, group, ratio) for width in stages.widths]
        if wider == 1:
            pairs = list(zip(stages.widths, stages.group_sizes, strict=True))
        widths, group_sizes = zip(*pairs, strict=True)
        yield replace(stages, depths=some, widths=widths, group_sizes=group_sizes, img_size=size)


def scale_stages(
    cfg: RegNetCfg, factor: float, *, shares: Shares | None = None, img_size: int = 224, tolerance: float = 0.02
) -> Stages:
    """Scale a network to `factor` times its multiply-adds.

    Stem, head and the blocks between stages do not grow with s. If no rounding for s comes close enough, the rule is
    followed for a little more or less than s, up to 1.4 times.

    Args:
        cfg: configuration of the base, such as `timm.models.regnet.model_cfgs["regnety_004"]`.
        factor: s, above 0.
        shares: of depth, width and resolution; None for those of `fast()`.
        img_size: side of the base's pictures.
        tolerance: difference from s times the multiply-adds that is close enough, relative.

    Returns:
        Stages for `AnyNet`.

    Raises:
        ValueError: see `multipliers`, or no rounding comes within 5 %.
    """
    base = stages_of(cfg, img_size)
    wanted = factor * count(cfg, base).macs

    def error(stages: Stages) -> float:
        return abs(count(cfg, stages).macs / wanted - 1)

    best: Stages | None = None
    for nudge in sorted((1.02**step for step in range(-17, 18)), key=lambda nudge: abs(math.log(nudge))):
        found = min(roundings(base, factor * nudge, fast() if shares is None else shares), key=error)
        best = found if best is None or error(found) < error(best) else best
        if error(best) <= tolerance:
            return best
    if best is None or error(best) > TARGET:
        raise ValueError(
            f"no rounding of this network comes within {TARGET:.0%} of {factor:g} times its multiply-adds; take "
            f"another factor, or shares of all three sizes, got {shares}"
        )
    return best


class AnyNet(RegNet):
    """timm's RegNet with any stages; (B, 3, H, W) to (B, num_classes).

    Args:
        cfg: configuration, of which shortcut, squeeze-and-excitation, head, activation and norm count.
        stages: its stages.
        num_classes: outputs of the classifier; 0 gives features.
        drop_path_rate: probability of dropping a block's branch while training, at the last block.
    """

    def __init__(self, cfg: RegNetCfg, stages: Stages, *, num_classes: int = 1000, drop_path_rate: float = 0.0) -> None:
        self._stages = stages  # before timm's constructor, which asks for them
        super().__init__(
            replace(cfg, stem_width=stages.stem_width), num_classes=num_classes, drop_path_rate=drop_path_rate
        )

    def _get_stage_args(
        self, cfg: RegNetCfg, default_stride: int = 2, output_stride: int = 32, drop_path_rate: float = 0.0
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        ours = self._stages
        rates = calculate_drop_path_rates(drop_path_rate, list(ours.depths), stagewise=True)
        words = ("depth", "out_chs", "group_size", "drop_path_rates")
        each = [
            {**dict(zip(words, one, strict=True)), "stride": 2, "dilation": 1, "bottle_ratio": ours.bottle_ratio}
            for one in zip(ours.depths, ours.widths, ours.group_sizes, rates, strict=True)
        ]
        return each, super()._get_stage_args(cfg, default_stride, output_stride, drop_path_rate)[1]


def scaled_regnet(
    name: str, factor: float, *, shares: Shares | None = None, img_size: int = 224, num_classes: int = 1000
) -> tuple[AnyNet, int]:
    """A RegNet of timm at `factor` times its multiply-adds, without weights.

    Args:
        name: timm's name, such as "regnety_004".
        factor: s, above 0.
        shares: of depth, width and resolution; None for those of `fast()`.
        img_size: side of the base's pictures.
        num_classes: outputs of the classifier.

    Returns:
        The network, and the side of the pictures it is meant for.

    Raises:
        ValueError: an unknown name, or see `scale_stages`.

    Example:
        >>> from foveal.models.fast_compound_scaling import scaled_regnet
        >>> model, side = scaled_regnet("regnety_002", 2)
        >>> side, model.s4.b1.conv2.conv.weight.shape
        (240, torch.Size([488, 8, 3, 3]))
    """
    if name not in model_cfgs:
        raise ValueError(
            f"name must be a RegNet of timm, such as regnety_004, got {name!r}; timm lists them as regnet*"
        )
    cfg = model_cfgs[name]
    stages = scale_stages(cfg, factor, shares=shares, img_size=img_size)
    return AnyNet(cfg, stages, num_classes=num_classes), stages.img_size


def _sizes(seed: int) -> torch.Tensor:
    stages = scale_stages(model_cfgs["regnetx_002"], 2 + seed)
    return torch.tensor([*stages.depths, *stages.widths, *stages.group_sizes, stages.img_size])


METHOD = Method(
    id=192,
    name="FastCompoundScaling",
    kind="procedure",
    summary="A network that may cost s times as much grows mainly in width, and its activations only as s^0.6.",
    paper=Paper("Fast and Accurate Model Scaling", "P. Dollár et al.", 2021, "arXiv:2103.06877"),
    cases={"regnet": Procedure(_sizes, lambda: multipliers(0, UNIFORM), "factor must be above 0, got 0")},
)
