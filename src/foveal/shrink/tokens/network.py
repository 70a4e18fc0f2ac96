"""Protocol of networks whose tokens can be dropped or merged between blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Tokens"]


@runtime_checkable
class Tokens(Protocol):
    """A network that passes tokens through a list of blocks, such as `foveal.nn.isotropic.Isotropic`.

    Args:
        blocks: blocks, each (B, N, C) to the same.
        num_prefix_tokens: number of tokens that are not patches, such as a class token.
        norm: normalisation of the last tokens.
    """

    blocks: nn.ModuleList
    num_prefix_tokens: int
    norm: nn.Module

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Embed pictures as the tokens of the first block.

        Args:
            x: pictures, (B, in_channels, H, W).

        Returns:
            Tokens, (B, N, C), and the numbers of rows and columns of patches.
        """
        ...

    def forward_head(self, x: Tensor) -> Tensor:
        """Classify from the last tokens.

        Args:
            x: normalised tokens, (B, N, C).

        Returns:
            Logits, (B, num_classes).
        """
        ...
