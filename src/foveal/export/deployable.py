"""What a network declares about itself for export, and how it is measured where it declares nothing.

Only this file reads these members. A network has no base class: it defines the members that differ from the
defaults of `Deployable`, under these names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, runtime_checkable

import torch

from foveal.errors import FovealError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "LARGEST",
    "SHARE",
    "WIDEST",
    "Collapsible",
    "Deployable",
    "Deployed",
    "ExportError",
    "Foldable",
    "Plain",
    "Tiling",
    "deployed",
    "effective_radius",
    "receptive_radius",
]

Tiling = Literal["exact", "overlap"]
LARGEST = 128  # largest radius for which tiles are joined exactly, in input pixels
WIDEST = 64  # largest overlap that is taken from a measurement
SHARE = 0.999  # share of an output pixel's dependence that a measured overlap covers


class ExportError(FovealError, RuntimeError):
    """A network that cannot be exported, or whose exported form computes something else."""


@runtime_checkable
class Plain(Protocol):
    """A network with a form without padding, which is the one exported: its tiles join without a seam, at no cost."""

    def plain(self) -> nn.Module:
        """The network without padding.

        Returns:
            A module that takes a picture with `margin` pixels of context on each side and computes what the network
            computes for the picture away from its borders.
        """
        ...


@runtime_checkable
class Collapsible(Protocol):
    """A network that is wider in training than in use."""

    def collapse(self) -> nn.Module:
        """The network in the form in which it runs.

        Returns:
            A network with the same outputs.
        """
        ...


@runtime_checkable
class Foldable(Protocol):
    """A network with connections that can be folded into its weights."""

    def fold(self) -> nn.Module:
        """The network with these connections folded in.

        Returns:
            A network with the same outputs.
        """
        ...


class Deployable(Protocol):
    """Properties that go onto the card of a network's bundle; a member may be left out where its default is right.

    A network may offer one or more of the forms `Plain`, `Collapsible` and `Foldable`; the first takes precedence.

    Args:
        margin: radius of the receptive field in input pixels (`tiling` "exact"), or the overlap at which tile seams are
            invisible ("overlap"). None: measured.
        tiling: "exact" if tiles with a margin give the same result as the whole picture; "overlap" if every pixel
            depends on the whole picture, so that tiles only approximate it. None: "exact" where the field ends within
            `LARGEST`.
        multiple: number of pixels that the sides of the input must be a multiple of.
        minimum: smallest side of the input, in pixels, margins included.
        equivariant: whether a rotated or flipped input gives the rotated or flipped output.
        overshoot: share of the source's local range by which results may go beyond it; None for no limit.
        levels: whether `plain` takes a level of damage (`foveal.export.levels`).
        controls: names of the constants of the exported form that the network's `control` sets from a look at the
            whole picture, in the order of its numbers (`foveal.export.control`).
    """

    margin: int | None = None
    tiling: Tiling | None = None
    multiple: int = 1
    minimum: int = 1
    equivariant: bool = False
    overshoot: float | None = None
    levels: bool = False
    controls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Deployed:
    """The exported form of a network, with the properties for its card.

    Args:
        network: module to export, in eval mode.
        margin: radius of the receptive field, or the overlap, in input pixels.
        trims: whether the module trims that margin itself.
        tiling: "exact" or "overlap".
        multiple: number of pixels that the sides of the input must be a multiple of.
        minimum: smallest side of the input, margins included.
        equivariant: whether a rotated or flipped input gives the rotated or flipped output.
        within: estimated share of an output pixel's dependence that lies within a measured overlap; else 1.
        overshoot: share of the source's local range by which results may go beyond it; None for no limit.
        levels: whether the network's `plain` takes a level of damage.
        controls: names of constants that a look at the whole picture sets.
    """

    network: nn.Module
    margin: int
    trims: bool
    tiling: Tiling
    multiple: int = 1
    minimum: int = 1
    equivariant: bool = False
    within: float = 1.0
    overshoot: float | None = None
    levels: bool = False
    controls: tuple[str, ...] = ()


def _said(model: nn.Module) -> dict[str, Any]:
    """The members of `Deployable`, checked, with the protocol's defaults where a network has none."""
    said = {name: getattr(model, name, getattr(Deployable, name)) for name in Deployable.__annotations__}
    whole = {"margin": 0, "multiple": 1, "minimum": 1}
    for name, low in whole.items():
        value = said[name]
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < low):
            raise ExportError(
                f"{type(model).__name__}.{name} must be a whole number of at least {low}, got {value!r}; correct it in "
                "the network"
            )
    if said["tiling"] not in (None, *get_args(Tiling)):
        raise ExportError(
            f"{type(model).__name__}.tiling must be one of {', '.join(get_args(Tiling))}, got {said['tiling']!r}; "
            "correct it in the network"
        )
    return said


def deployed(model: nn.Module, *, channels: int = 3) -> Deployed:
    """The exported form of a network: plain, collapsed or folded if the network offers that.

    Args:
        model: network, (B, C, H, W) to (B, C', s·H, s·W); set to eval mode.
        channels: C.

    Returns:
        The form, with its margin: as the network declares it, else measured.

    Raises:
        ExportError: a member of `Deployable` with an invalid value, a plain form without a margin or with overlapping
            tiles, or a receptive field larger than the network's tiling allows.
    """
    said = _said(model.eval())
    multiple = said["multiple"]
    facts: dict[str, Any] = {
        "multiple": multiple,
        "minimum": said["minimum"],
        "equivariant": bool(said["equivariant"]),
        "overshoot": said["overshoot"],
        "levels": bool(said["levels"]),
        "controls": tuple(said["controls"]),
    }
    network: Any = model
    if isinstance(network, Plain):
        if said["margin"] is None:
            raise ExportError(f"{type(model).__name__} has a plain form and no margin; add what it trims as `margin`")
        if said["tiling"] == "overlap":
            raise ExportError(
                f"{type(model).__name__} has a plain form, whose tiles meet exactly, and says that they overlap; leave "
                "out `plain` or `tiling`"
            )
        return Deployed(network.plain().eval(), said["margin"], True, "exact", **facts)
    if isinstance(network, Collapsible):
        network = network.collapse().eval()
    if isinstance(network, Foldable):
        network = network.fold().eval()
    margin, tiling, within = said["margin"], said["tiling"], 1.0
    if margin is None:
        measure = {"channels": channels, "multiple": multiple}
        if tiling is None:
            rings = _rings(network, largest=LARGEST, **measure)
            margin, tiling = _reach(rings), "exact"
            if margin >= LARGEST:
                (margin, within), tiling = _effective(rings, SHARE), "overlap"
        elif tiling == "exact":
            margin = receptive_radius(network, **measure)
        else:
            margin, within = effective_radius(network, **measure)
    return Deployed(network, margin, False, tiling or "exact", within=within, **facts)


@torch.enable_grad()
def _rings(model: nn.Module, *, channels: int, largest: int, multiple: int, places: int | None = None) -> Tensor:
    """Weight of input pixels by their distance from an output pixel, (positions, largest + 1).

    The absolute gradient of one output pixel at each position within a multiple (or at `places` of them, evenly
    spaced), summed over the input pixels at each distance (the larger of rows and columns); pixels beyond `largest`
    count at `largest`.
    """
    side = (2 * largest + 1 + multiple - 1) // multiple * multiple
    x = torch.rand(1, channels, side, side, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = model(x)
    scale = out.shape[-1] // side
    offsets = range(0, multiple, max(1, multiple // (places or multiple)))
    rings = torch.zeros(len(offsets), largest + 1, dtype=torch.float64)
    for ring, offset in zip(rings, offsets, strict=True):
        centre = side // 2 + offset
        block = out[..., centre * scale : (centre + 1) * scale, centre * scale : (centre + 1) * scale]
        (gradient,) = torch.autograd.grad(block.sum(), x, retain_graph=offset != offsets[-1])
        away = (torch.arange(side) - centre).abs()
        distance = torch.maximum(away[:, None], away[None]).clamp(max=largest)
        ring.index_add_(0, distance.flatten(), gradient.abs().sum((0, 1)).flatten().double())
    return rings


def _reach(rings: Tensor) -> int:
    found = rings.any(0).nonzero()
    return int(found.max()) if len(found) else 0


def _effective(rings: Tensor, share: float) -> tuple[int, float]:
    """The distance, at most `WIDEST`, within which `share` of the weight lies, and how much does lie within it."""
    within = rings.cumsum(1) / rings.sum(1, keepdim=True)
    radius = min(max(1, int((within < share).sum(1).max())), WIDEST)
    return radius, float(within[:, min(radius, within.shape[1] - 1)].min())


def receptive_radius(model: nn.Module, *, channels: int = 3, largest: int = LARGEST, multiple: int = 1) -> int:
    """Radius of the receptive field, measured by the gradient of one output pixel.

    Args:
        model: network without global dependence, (B, C, H, W) to (B, C', s·H, s·W).
        channels: C.
        largest: radius at which the search gives up, in input pixels.
        multiple: number of pixels that the sides of the input must be a multiple of; every position within it is tried.

    Returns:
        Radius in input pixels.

    Raises:
        ExportError: the field is larger than `largest`, so tiles of this network cannot be joined exactly.
    """
    radius = _reach(_rings(model, channels=channels, largest=largest, multiple=multiple))
    if radius >= largest:
        raise ExportError(
            f"receptive field reaches {radius} pixels or more; foveal joins tiles exactly up to {largest}; for a "
            'global field, let the network say tiling = "overlap"'
        )
    return radius


def effective_radius(
    model: nn.Module, *, share: float = SHARE, channels: int = 3, largest: int = WIDEST, multiple: int = 1
) -> tuple[int, float]:
    """Radius that holds most of an output pixel's dependence, measured by its gradient; an overlap for tiles.

    A network that scans or averages the whole picture has no receptive radius, but its output depends mostly on nearby
    pixels. The radius is measured with the network's weights on a noise picture of 2·largest + 1 pixels a side, so it
    is an estimate.

    Args:
        model: network, (B, C, H, W) to (B, C', s·H, s·W).
        share: share of the gradient's weight that should lie within the radius, in (0, 1].
        channels: C.
        largest: largest radius that is searched, in input pixels.
        multiple: number of pixels that the sides of the input must be a multiple of; up to four positions within it are
            tried.

    Returns:
        Radius in input pixels, from 1 to `WIDEST`; share of the weight that lies within it, which is less than `share`
        where far pixels count nearly as much as near ones.

    Raises:
        ValueError: a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    return _effective(_rings(model, channels=channels, largest=largest, multiple=multiple, places=4), share)
