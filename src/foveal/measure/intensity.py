"""DI-Intensity: multiply-adds per value read or written, by layer and by network, with weights and activations weighed.

*Source*: N. K. Jha and S. Mittal, "Modeling Data Reuse in Deep Neural Networks by Taking Data-Types into Cognizance",
2020 (arXiv:2008.02565), read in abstract and introduction.

A layer of M multiply-adds with W weights and A activations, inputs and outputs together, reuses each value M / (W + A)
times on average. That is its arithmetic intensity. What is reused most is not what costs most, so the data types get
weights of their own:

    AI = M / (W + A)
    DI = M / (2 (α W + (1 − α) A)),  0 ≤ α ≤ 1;  α = 1/2 gives AI

A network's sums run over its layers. All counts are exact, from the shapes of one forward pass on the meta device, and
α is fitted to measured rates by `fit_share`.

*Differs from the paper*: the paper's own α, found for two GPUs, is in neither abstract nor introduction and is not
used; the factor 2, which changes no ranking, makes AI a special case. Fused attention reads queries, keys, values and
mask and writes its output; a product of two activations reads both.
*Provenance*: written from the paper's abstract and introduction.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from foveal.cases import Procedure
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike
    from torch import nn

__all__ = ["SHARES", "Counts", "by_kind", "counts", "fit_share", "rank_correlation", "table", "total"]

SHARES = tuple(i / 50 for i in range(51))  # values of α that are tried


@dataclass(frozen=True)
class Counts:
    """Multiply-adds of one layer, of several or of a network, and the values that they read and write.

    Args:
        name: dotted name of the module that the layer belongs to, or what is summed.
        kind: "convolution", "pointwise" (1×1), "grouped", "depthwise", "linear", "attention" (fused),
            "product" (of two activations), or what is summed.
        macs: multiply-adds, M.
        weights: elements of kernel and bias, W.
        inputs: elements of the input, or of both factors of a product.
        outputs: elements of the output.
    """

    name: str
    kind: str
    macs: int
    weights: int
    inputs: int
    outputs: int

    @property
    def activations(self) -> int:
        """Inputs and outputs, A."""
        return self.inputs + self.outputs

    @property
    def intensity(self) -> float:
        """Arithmetic intensity, M / (W + A)."""
        return self.weighted(0.5)

    def weighted(self, share: float) -> float:
        """Intensity that weighs the data types, DI.

        Args:
            share: α, the share of the weights, in [0, 1].

        Returns:
            Multiply-adds per weighted value; 0 if there are no multiply-adds.

        Raises:
            ValueError: a share out of range.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share must be in [0, 1], got {share}; 0.5 gives plain arithmetic intensity")
        moved = 2 * (share * self.weights + (1 - share) * self.activations)
        return self.macs / moved if moved else 0.0

    def to_json(self, share: float | None = None) -> dict[str, Any]:
        """The counts as plain data.

        Args:
            share: α of DI; None leaves it out.

        Returns:
            The fields, `intensity`, and `weighted` with a share.
        """
        found = {**asdict(self), "intensity": self.intensity}
        return found if share is None else {**found, "weighted": self.weighted(share)}


def _elements(*tensors: Tensor | None) -> int:
    return sum(t.numel() for t in tensors if t is not None)


class _Counter(TorchDispatchMode):
    """Counts convolutions and products as torch executes them, whatever module or function called them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inside: list[str] = []  # names of the modules being called, the innermost last
        self.found: list[Counts] = []
        # Views of a parameter, such as a transposed weight, share its storage.
        self.parameters = {p.untyped_storage()._cdata for p in model.parameters()}

    def learnt(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self.parameters

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet not in flop_registry and func is not torch.ops.prim.device.default:
            with self:
                made = func.decompose(*args, **kwargs)  # counted where it has parts that are
            if made is not NotImplemented:
                return made
        out = func(*args, **kwargs)
        if packet in flop_registry:
            macs = flop_registry[packet](*args, **kwargs, out_val=out) // 2  # torch counts a multiply-add as two
            first = out[0] if isinstance(out, tuple) else out
            self.found.append(self.described(packet, [a for a in args if isinstance(a, Tensor)], args, first, macs))
        return out

    def merged(self, first: int, kind: str, weights: int, inputs: int, out: Tensor) -> None:
        """Put one layer in the place of the products that it consists of, from the `first` on."""
        parts, self.found[first:] = self.found[first:], []
        name = self.inside[-1] if self.inside else ""
        self.found.append(Counts(name, kind, sum(part.macs for part in parts), weights, inputs, _elements(out)))

    def described(self, packet: Any, tensors: list[Tensor], args: tuple[Any, ...], out: Tensor, macs: int) -> Counts:
        if packet is torch.ops.aten.convolution:
            x, weight, bias, groups = args[0], args[1], args[2], args[8]
            kind = "grouped" if groups > 1 else "convolution" if max(weight.shape[2:]) > 1 else "pointwise"
            kind = "depthwise" if groups > 1 and groups == x.shape[1] else kind
            ours, read = _elements(weight, bias), _elements(x)
        else:
            weights = [t for t in tensors if self.learnt(t)]
            ours, read = _elements(*weights), _elements(*(t for t in tensors if not self.learnt(t)))
            kind = "linear" if any(t.ndim > 1 for t in weights) else "product"
        name = self.inside[-1] if self.inside else ""
        return Counts(name, kind, macs, ours, read, _elements(out))


class _Whole(TorchFunctionMode):
    """Counts linear layers and fused attention as one layer each, whatever products torch makes of them."""

    def __init__(self, counter: _Counter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        first, kwargs = len(self.counter.found), kwargs or {}
        out = func(*args, **kwargs)
        given = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
        if func is F.linear:
            self.counter.merged(first, "linear", _elements(*given[1:]), _elements(given[0]), out)
        elif func is F.scaled_dot_product_attention:  # writes no map of attention
            self.counter.merged(first, "attention", 0, _elements(*given), out)
        return out


def counts(model: nn.Module, shape: tuple[int, ...]) -> tuple[Counts, ...]:
    """Counts of the layers of one forward pass in eval mode, in the order in which they run.

    Convolutions, linear layers, matrix products and attention are layers; a module that runs twice is counted twice. A
    copy of the model runs on the meta device, so that neither time nor memory depends on the shape.

    Args:
        model: network with one input.
        shape: shape of the input, (B, C, H, W) for pictures.

    Returns:
        One entry for each layer; their multiply-adds sum to `foveal.measure.cost.count_macs`.
    """
    ghost = copy.deepcopy(model).to("meta").eval()
    counter = _Counter(ghost)
    for name, module in ghost.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: counter.inside.append(name))
        module.register_forward_hook(lambda *_: counter.inside.pop() and None)
    with torch.no_grad(), counter, _Whole(counter):
        ghost(torch.empty(shape, device="meta"))
    return tuple(counter.found)


def total(layers: Sequence[Counts], kind: str = "total") -> Counts:
    """Sum of layers.

    Args:
        layers: layers, of `counts`.
        kind: name of the sum.

    Returns:
        Sums of all counts.
    """
    sums = (sum(getattr(layer, name) for layer in layers) for name in ("macs", "weights", "inputs", "outputs"))
    return Counts(kind, kind, *sums)


def by_kind(layers: Sequence[Counts]) -> tuple[Counts, ...]:
    """Sum of the layers of each kind.

    Args:
        layers: layers, of `counts`.

    Returns:
        One entry for each kind, the one with most multiply-adds first.
    """
    kinds = {layer.kind for layer in layers}
    sums = (total([layer for layer in layers if layer.kind == kind], kind) for kind in kinds)
    return tuple(sorted(sums, key=lambda item: (-item.macs, item.kind)))


def table(layers: Sequence[Counts], share: float | None = None) -> str:
    """The counts as text, by kind and in total.

    Args:
        layers: layers, of `counts`.
        share: α of another column, DI; None for no such column.

    Returns:
        One line for each kind, and one for the total.
    """
    heads = ["layers", "multiply-adds", "weights", "inputs", "outputs", "intensity", "weighted"]
    lines = [heads if share is not None else heads[:-1]]
    for item in (*by_kind(layers), total(layers)):
        numbers = [f"{n:,}" for n in (item.macs, item.weights, item.inputs, item.outputs)]
        reuse = [item.intensity] if share is None else [item.intensity, item.weighted(share)]
        lines.append([item.kind, *numbers, *(f"{value:.1f}" for value in reuse)])
    wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(wide[0]), *(text.rjust(n) for text, n in zip(line[1:], wide[1:], strict=True))])
        for line in lines
    )


def _ranks(values: ArrayLike) -> np.ndarray:
    """Ranks from 1, those of equal values averaged."""
    _, where, count = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[where]


def rank_correlation(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation.

    Args:
        x: values, (n,).
        y: values, (n,).

    Returns:
        Correlation, in [−1, 1]; 0 if all values of one are equal.

    Raises:
        ValueError: fewer than two values, or as many of one as not of the other.
    """
    a, b = _ranks(x), _ranks(y)
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"a rank correlation takes two lists of at least 2 values each, got {len(a)} and {len(b)}")
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / norm if norm else 0.0


def fit_share(
    networks: Sequence[Counts],
    rates: Sequence[float],
    *,
    shares: Sequence[float] = SHARES,
    correlation: Callable[[Sequence[float], Sequence[float]], float] = rank_correlation,
) -> float:
    """The share whose intensity orders networks most nearly as their measured rates do.

    Args:
        networks: totals of networks.
        rates: measured rate of each, such as multiply-adds per second or per joule.
        shares: values of α to try.
        correlation: agreement of two lists of numbers.

    Returns:
        α; the middle one if several are as good.
    """
    found = [correlation([network.weighted(share) for network in networks], rates) for share in shares]
    best = [share for share, value in zip(shares, found, strict=True) if value >= max(found) - 1e-12]
    return best[len(best) // 2]


def _case(seed: int) -> float:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(36, 2))
    return total(counts(layers, (1, 3, 5, 5))).weighted(0.3)


METHOD = Method(
    id=150,
    name="DI-Intensity",
    kind="study",
    summary="How often a network reuses its weights and activations, counted exactly and weighed by data type.",
    paper=Paper(
        "Modeling Data Reuse in Deep Neural Networks by Taking Data-Types into Cognizance",
        "N. K. Jha, S. Mittal",
        2020,
        "arXiv:2008.02565",
    ),
    cases={"network": Procedure(_case)},
)
