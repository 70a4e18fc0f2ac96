"""Points of a network where values are rounded, and the statistics that give them their scales."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.shrink.quantize.codes import levels, round_to
from foveal.shrink.quantize.qdq import dequantize_linear, quantize_linear

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Point", "Watch", "watched"]


class Watch:
    """Statistics of a point during calibration.

    Args:
        percentile: share of a batch's absolute values, in (0, 1], whose largest is kept.
        gram: whether to sum the products of all pairs of channels.
    """

    def __init__(self, *, percentile: float = 1.0, gram: bool = False) -> None:
        self.percentile = percentile
        self.wants_gram = gram
        self.clips: list[Tensor] = []
        self.largest: Tensor | None = None
        self.gram: Tensor | None = None
        self.count = 0

    def update(self, x: Tensor) -> None:
        """Add a batch to the statistics.

        Args:
            x: values, (n, C).
        """
        size = x.abs()
        rank = min(size.numel(), max(1, round(self.percentile * size.numel())))
        self.clips.append(size.flatten().kthvalue(rank).values)
        largest = size.amax(0)
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)
        if self.wants_gram:
            gram = x.mT.double() @ x.double()
            self.gram = gram if self.gram is None else self.gram + gram
        self.count += len(x)

    def clip(self) -> Tensor:
        """The percentile, averaged over batches; at percentile 1, the maximum over all batches.

        Returns:
            Clipping value, ().
        """
        clips = torch.stack(self.clips)
        return clips.max() if self.percentile == 1 else clips.mean()


class Point(nn.Module):
    """Rounds its input once it has a scale; before that, passes it through.

    Args:
        axis: axis of the channels.
        bits: number of bits, b.
    """

    scale: Tensor | None

    def __init__(self, *, axis: int, bits: int = 8) -> None:
        super().__init__()
        self.axis, self.bits = axis, bits
        self.watch: Watch | None = None
        self.register_buffer("scale", None)

    def set(self, clip: Tensor) -> None:
        """Set the scale.

        Args:
            clip: largest value that is not clipped, () or one per channel, (C,).
        """
        scale = clip.float().clamp(min=1e-5) / levels(self.bits)
        self.scale = scale[:, None] if scale.ndim and self.axis == 1 else scale

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        # A point of an uncalibrated model has no scale to load into.
        self.scale = state_dict.get(f"{prefix}scale")
        if self.scale is not None:
            self.scale = self.scale.clone()
        super()._load_from_state_dict(state_dict, prefix, *others)

    def forward(self, x: Tensor) -> Tensor:
        if self.watch is not None:
            self.watch.update(x.detach().movedim(self.axis, -1).flatten(0, -2))
        if self.scale is None:
            return x
        if torch.onnx.is_in_onnx_export() and self.bits == 8:
            scale = self.scale.flatten() if self.scale.ndim else self.scale
            return dequantize_linear(quantize_linear(x, scale, axis=self.axis), scale, axis=self.axis)
        return round_to(x, self.scale.to(x), bits=self.bits) * self.scale.to(x)


def watched(model: nn.Module, calibration: Iterable[Tensor], watches: dict[Point, Watch]) -> dict[Point, Watch]:
    """Run batches through a model and collect the statistics of its points.

    Args:
        model: network that contains the points.
        calibration: batches of its inputs.
        watches: statistics to collect at each point.

    Returns:
        The same statistics, filled.

    Raises:
        ValueError: no batch.
    """

    def batches() -> Iterator[Tensor]:
        yield from (calibration.split(32) if isinstance(calibration, Tensor) else calibration)

    training = model.training
    model.eval()
    for point, watch in watches.items():
        point.watch = watch
    try:
        with torch.no_grad():
            for batch in batches():
                model(batch)
    finally:
        model.train(training)
        for point in watches:
            point.watch = None
    if any(not watch.count for watch in watches.values()):
        raise ValueError("calibration must give at least one batch that reaches every mixer, got none")
    return watches
