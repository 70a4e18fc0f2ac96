"""Swapping: layers replaced by an operator of the same shapes, and left as they are where that is not faster.

    swapped = foveal.swap(model, "pconv", shape=(1, 3, 224, 224))
    print(swapped)  # a line per layer: its time, the operator's, how far their outputs are apart
    swapped.model

Each layer is timed beside its stand-in on the input that it gets inside the network. A stand-in may first be fitted to
the layer: a few steps of least squares between the outputs of both on the layer's own inputs. What it cannot start
from equal is learnt again afterwards, by the steps `tune` or `distil` of a recipe.
"""

from __future__ import annotations

import copy
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from foveal.measure.paired import Ratio, interleaved, ratio
from foveal.shrink.data import calibration
from foveal.shrink.step import ShrinkError, note
from foveal.shrink.swap.operators import LAYERS, OPERATORS, operator
from foveal.shrink.tokens.foveate import picture_shape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from foveal.shrink.data import Data
    from foveal.shrink.step import Inputs

__all__ = ["RULES", "OneInput", "Swap", "Swapped", "SwappedLayer", "swap", "try_all"]

RULES = ("faster", "always")


@dataclass(frozen=True)
class SwappedLayer:
    """One layer and its stand-in.

    Args:
        name: name of the layer in the network.
        shape: shape of its input, batch first.
        operator: name of the operator.
        kept: whether the stand-in is in the network.
        why: why it is not; "" if it is.
        milliseconds: time of the layer; None if it was not timed.
        ratio: time of the stand-in over the layer's; None if it was not timed.
        difference: root mean square of the difference of outputs, over that of the layer's output; None if refused.
    """

    name: str
    shape: tuple[int, ...]
    operator: str
    kept: bool
    why: str = ""
    milliseconds: float | None = None
    ratio: Ratio | None = None
    difference: float | None = None

    def __str__(self) -> str:
        size = "×".join(str(side) for side in self.shape[1:])
        if self.difference is None:
            return f"{self.name}  {size}  left: {self.why}"
        if self.ratio is None or self.milliseconds is None:
            return f"{self.name}  {size}  apart by {self.difference:.2g}  {self.operator}"
        spread = f"{self.ratio.median:.2f} of the time ({self.ratio.lower:.2f}–{self.ratio.upper:.2f})"
        verdict = f"{self.operator}" if self.kept else f"left: {self.why}"
        return f"{self.name}  {size}  {self.milliseconds:.3f} ms  {spread}  apart by {self.difference:.2g}  {verdict}"


@dataclass(frozen=True)
class Swapped:
    """A network with some layers replaced.

    Args:
        model: the network, in eval mode.
        layers: one line for each layer that was considered.
    """

    model: nn.Module = field(repr=False)
    layers: tuple[SwappedLayer, ...]

    @property
    def count(self) -> int:
        """Number of layers that were replaced."""
        return sum(layer.kept for layer in self.layers)

    def __str__(self) -> str:
        return "\n".join([*map(str, self.layers), f"{self.count} of {len(self.layers)} layers replaced"])


def _off(value: object) -> bool:
    return value is None or value is False


class OneInput(nn.Module):
    """A stand-in where the network passes more than the input: masks that are None, switches that are off.

    Args:
        stand_in: module of one input.
    """

    def __init__(self, stand_in: nn.Module) -> None:
        super().__init__()
        self.stand_in = stand_in

    def forward(self, x: Tensor, *others: object, **options: object) -> Any:
        if not all(map(_off, (*others, *options.values()))):
            raise ShrinkError("what stands in for this layer takes its input alone, got a mask or another argument too")
        return self.stand_in(x)


def _matches(where: str | Callable[[str, nn.Module], bool] | None, name: str, layer: nn.Module) -> bool:
    if where is None:
        return True
    return fnmatch(name, where) if isinstance(where, str) else bool(where(name, layer))


def _chosen(
    model: nn.Module, of: type[nn.Module] | str, where: str | Callable[[str, nn.Module], bool] | None
) -> list[str]:
    """Names of the layers of a kind, in the order in which the network holds them."""
    if isinstance(of, str) and of not in LAYERS:
        raise ShrinkError(f"of must be a class of layers or one of {', '.join(LAYERS)}, got {of!r}")
    is_one = LAYERS[of] if isinstance(of, str) else (lambda layer: isinstance(layer, of))
    return [name for name, layer in model.named_modules() if name and is_one(layer) and _matches(where, name, layer)]


@torch.no_grad()
def _inputs_of(model: nn.Module, names: Sequence[str], x: Tensor) -> tuple[dict[str, Tensor], dict[str, str], set[str]]:
    """Input of each layer inside the network, why others cannot be replaced, and which are passed more arguments."""
    seen: dict[str, Tensor] = {}
    odd: dict[str, str] = {}
    more: set[str] = set()
    runs: Counter[str] = Counter()

    def watch(name: str) -> Any:
        def hook(_: nn.Module, given: tuple[Any, ...], options: dict[str, Any], out: Any) -> None:
            runs[name] += 1
            others = (*given[1:], *options.values())
            alone = bool(given) and isinstance(given[0], Tensor) and isinstance(out, Tensor) and all(map(_off, others))
            if others:
                more.add(name)
            if runs[name] > 1:
                odd[name] = "it runs more than once"
            elif not alone:
                odd[name] = "it takes or gives more than one tensor"
            else:
                seen[name] = given[0].detach()

        return hook

    handles = [model.get_submodule(name).register_forward_hook(watch(name), with_kwargs=True) for name in names]
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    odd |= {name: "it does not run" for name in names if not runs[name]}
    return seen, odd, more


def _fit(stand_in: nn.Module, x: Tensor, wanted: Tensor, *, steps: int, seed: int) -> None:
    """Least squares between the outputs of the stand-in and of the layer, by Adam."""
    learnt = [p for p in stand_in.parameters() if p.requires_grad]
    if not learnt:
        return
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        optimizer = torch.optim.Adam(learnt, lr=3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        stand_in.train()
        for _ in range(steps):
            rows = torch.randint(len(x), (min(len(x), 8),))
            loss = (stand_in(x[rows]) - wanted[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    stand_in.eval()


def _apart(out: Tensor, wanted: Tensor) -> float:
    return float((out - wanted).square().mean().sqrt() / wanted.square().mean().sqrt().clamp_min(1e-12))


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def swap(
    model: nn.Module,
    to: str | Callable[[nn.Module, tuple[int, ...]], nn.Module],
    *,
    of: type[nn.Module] | str | None = None,
    where: str | Callable[[str, nn.Module], bool] | None = None,
    keep_if: str = "faster",
    shape: tuple[int, ...] | None = None,
    data: Inputs | Data | None = None,
    fit: int = 0,
    seed: int = 0,
    threads: int | None = None,
) -> Swapped:
    """Replace layers of a copy of a network by an operator, where that is faster.

    Args:
        model: network with one input.
        to: name of an operator, one of `foveal.shrink.swap.operators.OPERATORS`, or a function from a layer and the
            shape of its input to a module that takes and gives the same shapes.
        of: class of the layers, or one of "conv", "depthwise" and "attention"; None takes those of the operator.
        where: pattern of the layers' names, such as "stages.3.*", or a function of name and layer; None takes all.
        keep_if: "faster" leaves a layer whose stand-in is not faster, by more than the spread explains; "always" times
            none.
        shape: shape of an input of the network, batch first; None takes the data's, or one picture of the network's
            own size.
        data: inputs that layers are compared and fitted on; None draws normal numbers.
        fit: steps of least squares that fit each stand-in to its layer.
        seed: seed of the stand-ins' weights and of the fit.
        threads: processor threads of the timing; None leaves torch's.

    Returns:
        The network and a line for each layer.

    Raises:
        ShrinkError: an unknown operator, kind or rule, a network without such layers, or a stand-in of other shapes.
        ValueError: fewer than no steps.

    Example:
        >>> import foveal
        >>> swapped = foveal.swap(model, "pconv", where="layer3.*")  # doctest: +SKIP
    """
    if keep_if not in RULES:
        raise ShrinkError(f"keep_if must be one of {', '.join(RULES)}, got {keep_if!r}")
    if fit < 0:
        raise ValueError(f"fit must be at least 0 steps, got {fit}")
    if not isinstance(model, nn.Module):
        raise ShrinkError(f"swap takes an nn.Module, got {type(model).__name__}")
    build: Callable[[nn.Module, tuple[int, ...]], nn.Module]
    if isinstance(to, str):
        build, word, kind = operator(to).stand_in, to, of or operator(to).of
    elif of is None:
        raise ShrinkError("a function as `to` needs `of`, the class of the layers that it replaces")
    else:
        build, word, kind = to, getattr(to, "__name__", type(to).__name__), of
    network = copy.deepcopy(model).eval()
    names = _chosen(network, kind, where)
    if not names:
        what = kind if isinstance(kind, str) else kind.__name__
        at = f" where {where!r}" if isinstance(where, str) else ""
        raise ShrinkError(f"{type(model).__name__} has no layer of kind {what}{at}; nothing to replace")
    if data is None:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(shape or picture_shape(network), generator=generator)
    else:
        x = calibration(data, step="swap", limit=32 if fit else 4)
    seen, odd, more = _inputs_of(network, names, x)
    layers = []
    for name in names:
        if name in odd:
            layers.append(SwappedLayer(name, (), word, kept=False, why=odd[name]))
            continue
        given = seen.pop(name)
        layer = network.get_submodule(name)
        with _threads(threads):
            line, stand_in = _swapped(name, layer, given, build, word, keep_if=keep_if, fit=fit, seed=seed)
        if line.kept and stand_in is not None:
            network.set_submodule(name, OneInput(stand_in) if name in more else stand_in)
        layers.append(line)
    return Swapped(network, tuple(layers))


@torch.no_grad()
def _swapped(
    name: str,
    layer: nn.Module,
    x: Tensor,
    build: Callable[[nn.Module, tuple[int, ...]], nn.Module],
    word: str,
    *,
    keep_if: str,
    fit: int,
    seed: int,
) -> tuple[SwappedLayer, nn.Module | None]:
    """Build, fit, compare and time the stand-in of one layer."""
    shape = (1, *x.shape[1:])
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            stand_in = build(layer, shape).eval()
    except ValueError as error:
        return SwappedLayer(name, shape, word, kept=False, why=str(error)), None
    wanted = layer(x)
    out = stand_in(x)
    if out.shape != wanted.shape:
        raise ShrinkError(
            f"{name}: {word} must give {tuple(wanted.shape)} for {tuple(x.shape)}, got {tuple(out.shape)}; "
            "a stand-in keeps the layer's shapes"
        )
    if fit:
        _fit(stand_in, x, wanted, steps=fit, seed=seed)
        out = stand_in(x)
    if keep_if == "always":
        return SwappedLayer(name, shape, word, kept=True, difference=_apart(out, wanted)), stand_in
    one = x[:1]
    theirs, ours = interleaved([lambda: layer(one), lambda: stand_in(one)], most=2.0, settle=1)
    found = ratio(ours, theirs)
    kept = found.faster
    line = SwappedLayer(
        name,
        shape,
        word,
        kept=kept,
        why="" if kept else "not faster",
        milliseconds=1000 * float(np.median(theirs)),
        ratio=found,
        difference=_apart(out, wanted),
    )
    return line, stand_in


def try_all(
    model: nn.Module,
    *,
    names: Sequence[str] = (),
    where: str | None = None,
    shape: tuple[int, ...] | None = None,
    data: Inputs | Data | None = None,
    threads: int | None = None,
) -> dict[str, Swapped]:
    """Time every operator in every layer that it can stand in for.

    Args:
        model: network with one input.
        names: operators to try; all if empty.
        where: pattern of the layers' names; None takes all.
        shape: shape of an input of the network.
        data: inputs that layers are compared on.
        threads: processor threads of the timing.

    Returns:
        What `swap` gives for each operator; operators without a layer are left out.

    Raises:
        ShrinkError: an unknown operator, or no layer for any of them.
    """
    found = {}
    for name in names or OPERATORS:
        if _chosen(model, operator(name).of, where):
            found[name] = swap(model, name, where=where, shape=shape, data=data, threads=threads)
    if not found:
        raise ShrinkError(f"{type(model).__name__} has no layer that an operator can stand in for")
    return found


@dataclass(frozen=True)
class Swap:
    """Step: replace layers by an operator where that is faster.

    Args:
        to: name of the operator, one of `foveal.shrink.swap.operators.OPERATORS`.
        of: kind of layer, one of "conv", "depthwise" and "attention"; None takes the operator's.
        where: pattern of the layers' names; None takes all.
        keep_if: "faster" or "always".
        fit: steps of least squares that fit each stand-in to its layer.
        seed: seed of the stand-ins' weights and of the fit.

    Raises:
        ValueError: an unknown operator, kind or rule, or fewer than no steps.
    """

    to: str
    of: str | None = None
    where: str | None = None
    keep_if: str = "faster"
    fit: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        operator(self.to)
        if self.of is not None and self.of not in LAYERS:
            raise ShrinkError(f"of must be one of {', '.join(LAYERS)}, got {self.of!r}")
        if self.keep_if not in RULES:
            raise ShrinkError(f"keep_if must be one of {', '.join(RULES)}, got {self.keep_if!r}")
        if self.fit < 0:
            raise ValueError(f"fit must be at least 0 steps, got {self.fit}")

    def apply(self, model: nn.Module, data: Inputs | Data | None = None) -> nn.Module:
        """Replace layers of a copy of the model.

        Args:
            model: network in eval mode.
            data: inputs that layers are compared and fitted on.

        Returns:
            The network.
        """
        inputs = calibration(data, step="Swap", limit=32)
        swapped = swap(
            model,
            self.to,
            of=self.of,
            where=self.where,
            keep_if=self.keep_if,
            data=inputs,
            fit=self.fit,
            seed=self.seed,
        )
        note(f"swap: {self.to} replaced {swapped.count} of {len(swapped.layers)} layers")
        for reason, count in Counter(layer.why for layer in swapped.layers if not layer.kept).items():
            note(f"swap: left {count}: {reason}")
        return swapped.model
