"""A backbone of several resolutions behind timm's interface: stem, stages, norm, head.

A family's file makes the stem and the stages; everything that timm's tools ask of a backbone (features, intermediate
maps, a head that can be replaced) is here once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from foveal.nn.backbone import Backbone

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Pyramid"]


class Pyramid(Backbone):
    """Image classifier, (B, in_channels, H, W) to (B, num_classes), from stages that pass on (B, C, H', W') maps.

    Args:
        stem: picture to the first stage's input, (B, C_1, H', W').
        stages: one module a resolution, each (B, C_{i-1}, …) to (B, C_i, …); downsampling stands at its start.
        dims: C_i of each stage.
        reductions: picture pixels a side that one cell of a stage's map stands for.
        num_classes: of the head; 0 gives pooled features.
        in_channels: of the picture.
        norm: applied to the last map, (B, C, H', W'); None for none.
        drop_rate: dropout before the classifier, while training.

    Raises:
        ValueError: stages, dims and reductions of different number.
    """

    parts = "stages"
    stem_parts = ("stem",)

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        dims: Sequence[int],
        reductions: Sequence[int],
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        norm: nn.Module | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if not len(stages) == len(dims) == len(reductions):
            raise ValueError(
                f"stages, dims and reductions must be equally many, got {len(stages)}, {len(dims)}, {len(reductions)}"
            )
        self.in_channels = in_channels
        self.num_features = self.head_hidden_size = dims[-1]
        self.feature_info = [
            {"num_chs": dim, "reduction": reduction, "module": f"stages.{i}"}
            for i, (dim, reduction) in enumerate(zip(dims, reductions, strict=True))
        ]
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.norm = norm if norm is not None else nn.Identity()
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The maps after chosen stages.

        Args:
            x: pictures, (B, in_channels, H, W).
            indices: stages, negative from the end; an int takes the last so many; None takes all.
            norm: whether the last map is normalised.
            stop_early: whether to stop at the last chosen stage.
            output_fmt: "NCHW".
            intermediates_only: whether to leave out the last map.

        Returns:
            The list of maps, or (last map, list of maps).

        Raises:
            ValueError: an index or format that there is not.
        """
        taken = self.chosen(indices, output_fmt)
        maps = {}
        x = self.stem(x)
        for i, stage in enumerate(self.stages):
            if stop_early and i > max(taken):
                break
            x = self.through(stage, x)
            if i in taken:
                maps[i] = self.norm(x) if norm and i == len(self.stages) - 1 else x
        kept = [maps[i] for i in taken]
        return kept if intermediates_only else (self.norm(x), kept)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, normalised.

        Args:
            x: pictures, (B, in_channels, H, W).

        Returns:
            (B, C, H', W').
        """
        x = self.stem(x)
        for stage in self.stages:
            x = self.through(stage, x)
        return self.norm(x)

    def pool(self, x: Tensor) -> Tensor:
        """The mean of a map.

        Args:
            x: last map, (B, C, H', W').

        Returns:
            (B, C).
        """
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Any:
        return self.forward_head(self.forward_features(x))
