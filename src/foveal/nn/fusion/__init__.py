"""Blocks that fuse two streams of features, such as visible and infrared, on one interface.

A block takes two maps of one shape, (B, C, H, W), and returns both with what each gets from the other, in the same
shape. What is added passes through one last layer or gain for each stream. With `zero_init` those start at zero: the
block is then the identity on both streams, so it can be put into a trained network and learns from there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from foveal.ops.backends import ShapeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

__all__ = ["Fusion", "check_pair", "fusion_blocks", "map_of", "tokens_of", "zero_"]


class Fusion(Protocol):
    """A block that fuses two streams."""

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse two streams.

        Args:
            x: features of one stream, (B, C, H, W).
            y: features of the other, (B, C, H, W).

        Returns:
            Both streams, each with what the other one adds to it, (B, C, H, W) each.
        """
        ...


def fusion_blocks() -> dict[str, Callable[..., nn.Module]]:
    """All blocks of this package.

    Returns:
        Name → class; each is built by `cls(dim, zero_init=…)` and is a `Fusion`.
    """
    from foveal.nn.fusion.csf_mamba import CSFMamba
    from foveal.nn.fusion.fusion_mamba import FusionMamba
    from foveal.nn.fusion.gemini import GeminiFusion

    return {"gemini": GeminiFusion, "fusion_mamba": FusionMamba, "csf_mamba": CSFMamba}


def check_pair(x: Tensor, y: Tensor, dim: int) -> None:
    """Check that two streams can be fused.

    Args:
        x: features of one stream.
        y: features of the other.
        dim: number of channels that the block was built for.

    Raises:
        ShapeError: the streams differ in shape or are not (B, dim, H, W).
    """
    if x.shape != y.shape:
        raise ShapeError(
            f"both streams must have one shape, got {tuple(x.shape)} and {tuple(y.shape)}; resize one to the other"
        )
    if x.ndim != 4 or x.shape[1] != dim:
        raise ShapeError(f"streams must be (batch, {dim}, height, width), got {tuple(x.shape)}")


def tokens_of(x: Tensor) -> Tensor:
    """A map as tokens in raster order.

    Args:
        x: features, (B, C, H, W).

    Returns:
        Tokens, (B, H·W, C).
    """
    return x.flatten(2).transpose(1, 2)


def map_of(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `tokens_of`.

    Args:
        tokens: tokens in raster order, (B, H·W, C).
        height: H.
        width: W.

    Returns:
        Features, (B, C, H, W).
    """
    return tokens.transpose(1, 2).unflatten(2, (height, width))


def zero_(*layers: nn.Module) -> None:
    """Set all parameters of layers to zero, in place.

    Args:
        *layers: last layers of a block, whose outputs are added to the streams.
    """
    for layer in layers:
        for parameter in layer.parameters():
            parameter.detach().zero_()
