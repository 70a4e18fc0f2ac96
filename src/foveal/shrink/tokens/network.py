"""What a network must have for tokens to be dropped or merged on its way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Tokens"]


@runtime_checkable
class Tokens(Protocol):
    """A network that runs tokens through a list of blocks, such as `foveal.nn.isotropic.Isotropic`.

    Args:
        blocks: the blocks, each (B, N, C) to the same.
        num_prefix_tokens: tokens that are no patches, such as a class token.
        norm: applied to the last tokens.
    """

    blocks: nn.ModuleList
    num_prefix_tokens: int
    norm: nn.Module

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Pictures to the first block's tokens.

        Args:
            x: pictures, (B, in_channels, H, W).

        Returns:
            Tokens, (B, N, C), and the rows and columns of patches.
        """
        ...

    def forward_head(self, x: Tensor) -> Tensor:
        """Tokens to the result.

        Args:
            x: normalised tokens, (B, N, C).

        Returns:
            (B, num_classes).
        """
        ...
