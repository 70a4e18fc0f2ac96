"""A Mamba mixer in simulated integer arithmetic: weights are stored as codes, values are rounded at named points.

A method decides where the scales come from, as `Quamba` and `Quamba2` do; this file contains what they share. With the
names of `foveal.nn.mamba.Mamba`, and the points in brackets:

    [tokens] → in_proj → [x], [z];  silu(conv1d(x)) → [u];  x_proj(u) → [step], [B], [C];  dt_proj(step) → [delta]
    scan of u with delta, A, B, C, D, gated by z, ways summed → [y] → out_proj

Each direction of a bidirectional mixer has its own points and weights; those of the backward direction end in `_b`.
A point rounds to `scale · {-2^(b-1) … 2^(b-1) - 1}`. Arithmetic between points is floating point, as in kernels that
read integers and keep the state in high precision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.nn.mamba import Mamba
from foveal.ops import selective_scan

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["Codes", "IntegerMamba", "Point", "Watch", "integers_", "levels", "per_tensor", "round_to", "watched"]

LINEAR = ("in_proj", "x_proj", "dt_proj", "out_proj")


def levels(bits: int) -> int:
    """Largest code of a signed integer.

    Args:
        bits: number of bits, b.

    Returns:
        2^(b-1) - 1.
    """
    return 2 ** (bits - 1) - 1


def round_to(x: Tensor, scale: Tensor, *, bits: int = 8) -> Tensor:
    """Round a tensor to codes.

    Args:
        x: tensor of any shape.
        scale: value of one code, broadcast over `x`.
        bits: number of bits, b.

    Returns:
        Integers in floating point, the shape of `x`.
    """
    return torch.round(x / scale).clamp(-levels(bits) - 1, levels(bits))


def per_tensor(weight: Tensor, *, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Round a weight with a single scale, given by its largest value.

    Args:
        weight: tensor of any shape.
        bits: number of bits, b.

    Returns:
        Codes, int8, the shape of `weight`; scale, ().
    """
    scale = weight.abs().max().clamp(min=1e-8) / levels(bits)
    return round_to(weight, scale, bits=bits).to(torch.int8), scale


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
        return x if self.scale is None else round_to(x, self.scale.to(x), bits=self.bits) * self.scale.to(x)


class Codes(nn.Module):
    """A weight stored as integers: one byte per 8-bit code, one byte per two 4-bit codes.

    Args:
        codes: int8 codes, (rows, columns) with an even number of columns for 4 bits, any shape for 8.
        scale: value of one code, () or (rows, groups) with equal groups of columns, of which the last may be shorter.
        bits: bits per code, 4 or 8.
        group_size: number of columns that share a scale; 0 for all.

    Raises:
        ValueError: an odd number of columns with 4 bits.
    """

    packed: Tensor
    scale: Tensor
    group: Tensor

    def __init__(self, codes: Tensor, scale: Tensor, *, bits: int = 8, group_size: int = 0) -> None:
        super().__init__()
        self.bits, self.group_size = bits, group_size
        if bits == 4:
            if codes.ndim != 2 or codes.shape[1] % 2:
                raise ValueError(f"codes of 4 bits need an even number of columns, got shape {tuple(codes.shape)}")
            halves = (codes + 8).to(torch.uint8)
            codes = halves[:, ::2] | halves[:, 1::2] << 4
        self.register_buffer("packed", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("group", torch.tensor(group_size))  # so that a loader can read it from the state

    @classmethod
    def stored(cls, state_dict: Mapping[str, Tensor], prefix: str) -> Codes:
        """Create codes from a stored state.

        Args:
            state_dict: state of a model.
            prefix: name of the codes in it, with a trailing dot.

        Returns:
            Codes with the stored shape, number of bits, groups and values.
        """
        packed, scale = state_dict[f"{prefix}packed"], state_dict[f"{prefix}scale"]
        found = cls(packed.clone(), scale.clone(), group_size=int(state_dict[f"{prefix}group"]))
        found.bits = 4 if packed.dtype == torch.uint8 else 8
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.packed.nbytes + self.scale.nbytes

    def codes(self) -> Tensor:
        """Unpack the codes.

        Returns:
            Codes, int8, the shape of the weight.
        """
        if self.bits == 8:
            return self.packed
        # (rows, columns / 2, 2) to (rows, columns)
        return torch.stack([self.packed & 15, self.packed >> 4], dim=-1).flatten(1).to(torch.int8) - 8

    def forward(self) -> Tensor:
        codes = self.codes()
        scale = self.scale.float()
        if self.group_size:
            scale = scale.repeat_interleave(self.group_size, dim=1)[:, : codes.shape[1]]
        return codes * scale


class _Plain(nn.Module):
    """A weight in floating point."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value.detach().clone())

    def forward(self) -> Tensor:
        return self.value


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
        step, weights_in, weights_out = F.linear(u.mT, self.weight(f"x_proj{way}")).split(self.split, dim=-1)
        delta = F.linear(self.point(f"step{way}")(step), self.weight(f"dt_proj{way}"))
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
        # two of (B, E, N)
        x, z = F.linear(self.point("tokens")(tokens), self.weight("in_proj")).mT.chunk(2, dim=1)
        x, z = self.point("x")(x), self.point("z")(z)
        y = self._scan(x, z, "")
        if len(self.ways) > 1:
            y = (y + self._scan(x.flip(-1), z.flip(-1), "_b").flip(-1)) / 2
        return F.linear(self.point("y")(self.rotation(y.mT)), self.weight("out_proj"))


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
