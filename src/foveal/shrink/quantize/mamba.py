"""A Mamba mixer in simulated integer arithmetic: weights are stored as codes, values are rounded at named points.

A method decides where the scales come from, as `Quamba` and `Quamba2` do; this file contains what they share. With the
names of `foveal.nn.mamba.Mamba`, and the points in brackets:

    [tokens] → in_proj → [x], [z];  silu(conv1d(x)) → [u];  x_proj(u) → [step], [B], [C];  dt_proj(step) → [delta]
    scan of u with delta, A, B, C, D, gated by z, ways summed → [y] → out_proj

Each direction of a bidirectional mixer has its own points and weights; those of the backward direction end in `_b`.
A point rounds to `scale · {-2^(b-1) … 2^(b-1) - 1}`. Arithmetic between points is floating point, as in kernels that
read integers and keep the state in high precision. An exported file contains the integers: the codes of the
weights, and `QuantizeLinear` and `DequantizeLinear` at the points (`foveal.shrink.quantize.qdq`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.nn.mamba import Mamba
from foveal.ops import selective_scan
from foveal.shrink.quantize.codes import Codes
from foveal.shrink.quantize.points import Point

__all__ = ["IntegerMamba", "integers_"]


class _Plain(nn.Module):
    """A weight in floating point."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value.detach().clone())

    def forward(self) -> Tensor:
        return self.value


def _linear(x: Tensor, weight: Tensor, point: Point) -> Tensor:
    """(B, N, C), rounded at a point, to (B, N, E) by a weight, (E, C)."""
    one_scale = point.scale is not None and not point.scale.ndim
    if torch.onnx.is_in_onnx_export() and not one_scale:
        # Where x is not int8 with one scale, ONNX Runtime would round it for a product with integers on the right.
        return (weight @ x.mT).mT
    return F.linear(x, weight)


class IntegerMamba(nn.Module):
    """`foveal.nn.mamba.Mamba` with separate steps, (B, N, dim) to (B, N, dim); not trainable.

    A stored state can be loaded into any mixer of the same sizes: it takes over the codes, scales and rotation of the
    state, so `integers_(fresh)` and `load_state_dict` restore a quantised model.

    Args:
        mixer: mixer whose weights are copied.
    """

    rotated: Tensor

    def __init__(self, mixer: Mamba) -> None:
        super().__init__()
        self.split = mixer.split
        self.ways = ("", "_b") if mixer.bidirectional else ("",)
        self.rotation: nn.Module = nn.Identity()
        self.register_buffer("rotated", torch.tensor(False))
        weights = {"in_proj": mixer.in_proj.weight, "out_proj": mixer.out_proj.weight}
        axes = {"tokens": -1, "x": 1, "z": 1, "y": -1}
        for way in self.ways:
            conv1d, x_proj, dt_proj, decay, skip = mixer.parts(back=way == "_b")
            weights |= {
                f"conv1d{way}": conv1d.weight,  # type: ignore[dict-item]
                f"x_proj{way}": x_proj.weight,  # type: ignore[dict-item]
                f"dt_proj{way}": dt_proj.weight,  # type: ignore[dict-item]
                f"dt_bias{way}": dt_proj.bias,  # type: ignore[dict-item]
                f"conv_bias{way}": conv1d.bias,  # type: ignore[dict-item]
                f"A_log{way}": decay,
                f"D{way}": skip,
            }
            axes |= {f"u{way}": 1, f"step{way}": -1, f"B{way}": 1, f"C{way}": 1, f"delta{way}": -1}
        self.weights = nn.ModuleDict({name: _Plain(value) for name, value in weights.items()})
        self.points = nn.ModuleDict({name: Point(axis=axis) for name, axis in axes.items()})

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self.rotated.fill_(not isinstance(self.rotation, nn.Identity))
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        for name in self.weights:
            at = f"{prefix}weights.{name}."
            if f"{at}packed" in state_dict:
                self.weights[name] = Codes.stored(state_dict, at)
            elif f"{at}value" in state_dict:
                self.weights[name] = _Plain(state_dict[f"{at}value"])
        super()._load_from_state_dict(state_dict, prefix, *others)
        if self.rotated != (not isinstance(self.rotation, nn.Identity)):
            from foveal.shrink.quantize.quamba import Rotation

            self.rotation = Rotation() if self.rotated else nn.Identity()

    def weight(self, name: str) -> Tensor:
        """A weight, dequantised if it is stored as codes.

        Args:
            name: "in_proj", "conv1d", "x_proj", "dt_proj", "dt_bias", "conv_bias", "A_log", "D" or "out_proj", with
                "_b" for the backward direction.

        Returns:
            The weight in floating point.
        """
        return self.weights[name]()

    def put(self, name: str, value: Tensor | Codes) -> None:
        """Replace a weight.

        Args:
            name: name of the weight, see `weight`.
            value: tensor, or codes of the same shape.
        """
        self.weights[name] = value if isinstance(value, Codes) else _Plain(value)

    def point(self, name: str) -> Point:
        """The point of a name.

        Args:
            name: name in brackets in the head of this file, with "_b" for the backward direction.

        Returns:
            The point.
        """
        point = self.points[name]
        assert isinstance(point, Point)
        return point

    def _scan(self, x: Tensor, z: Tensor, way: str) -> Tensor:
        kernel = self.weight(f"conv1d{way}")
        u = F.conv1d(x, kernel, self.weight(f"conv_bias{way}"), padding=kernel.shape[-1] - 1, groups=kernel.shape[0])[
            ..., : x.shape[-1]
        ]
        u = self.point(f"u{way}")(F.silu(u))
        # (B, N, R + 2·D)
        parts = _linear(u.mT, self.weight(f"x_proj{way}"), self.point(f"u{way}"))
        step, weights_in, weights_out = parts.split(self.split, dim=-1)
        rounded = self.point(f"step{way}")
        delta = _linear(rounded(step), self.weight(f"dt_proj{way}"), rounded)
        y = selective_scan(
            u,
            self.point(f"delta{way}")(delta).mT,
            -self.weight(f"A_log{way}").exp(),
            self.point(f"B{way}")(weights_in.mT),
            self.point(f"C{way}")(weights_out.mT),
            self.weight(f"D{way}"),
            z,
            self.weight(f"dt_bias{way}"),
            delta_softplus=True,
        )
        assert isinstance(y, Tensor)
        return y

    def forward(self, tokens: Tensor) -> Tensor:
        first, last = self.point("tokens"), self.point("y")
        # two of (B, E, N)
        x, z = _linear(first(tokens), self.weight("in_proj"), first).mT.chunk(2, dim=1)
        x, z = self.point("x")(x), self.point("z")(z)
        y = self._scan(x, z, "")
        if len(self.ways) > 1:
            y = (y + self._scan(x.flip(-1), z.flip(-1), "_b").flip(-1)) / 2
        return _linear(last(self.rotation(y.mT)), self.weight("out_proj"), last)


def integers_(model: nn.Module) -> list[IntegerMamba]:
    """Replace every Mamba mixer of a model by `IntegerMamba`, in place; outputs stay the same.

    Args:
        model: network that contains mixers of `foveal.nn.mamba`, not a bare mixer.

    Returns:
        Its mixers, in order, including those that were replaced before.

    Raises:
        ValueError: a model without mixers, or a bare mixer.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Mamba):
                setattr(parent, name, IntegerMamba(child))
    found = [module for module in model.modules() if isinstance(module, IntegerMamba)]
    if not found:
        raise ValueError(
            f"model must hold a mixer of foveal.nn.mamba, got {type(model).__name__} without one; "
            "wrap a bare mixer in nn.Sequential"
        )
    return found
