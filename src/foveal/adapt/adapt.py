"""`adapt`: from a model that fails on new pictures to a small delta that mends it, with what it is worth."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foveal.adapt.delta import AdaptError, Delta
from foveal.adapt.methods import Pictures, adapter
from foveal.adapt.tune import classifier

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Adapted", "Tried", "adapt", "score"]

AUTO = {True: ("head", "norm", "lora"), False: ("rpl",)}  # with labels and without


@dataclass(frozen=True)
class Tried:
    """One method that was tried.

    Args:
        method: its name; "none" for the model as it was.
        bytes: bytes of its delta.
        accuracy: percent of the held-out pictures that are classified correctly; None if that is not known.
        seconds: time of the adaptation.
        failed: reason why it cannot be used with this model; "" if it can.
    """

    method: str
    bytes: int
    accuracy: float | None
    seconds: float
    failed: str = ""

    def __str__(self) -> str:
        if self.failed:
            return f"{self.method}: {self.failed}"
        right = "" if self.accuracy is None else f", {self.accuracy:.1f} % right"
        return f"{self.method}: {self.bytes / 1000:,.1f} kB{right}, {self.seconds:.1f} s"


@dataclass(frozen=True)
class Adapted:
    """Result of `adapt`.

    Args:
        delta: what the chosen method changes; no change at all if nothing was better than the model as it was.
        method: name of the chosen method.
        tried: everything that was tried, the untouched model first.
    """

    delta: Delta
    method: str
    tried: tuple[Tried, ...]


@torch.inference_mode()
def score(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Share of inputs that a classifier gets right.

    Args:
        model: classifier in eval mode.
        inputs: (n, …).
        labels: (n,); classes that the model does not have count as wrong.

    Returns:
        Percent.
    """
    right = sum(
        int((model(x).argmax(-1) == y).sum()) for x, y in zip(inputs.split(256), labels.split(256), strict=True)
    )
    return 100 * right / len(labels)


def _halves(pictures: Pictures, seed: int) -> tuple[Pictures, tuple[Tensor, Tensor]]:
    """Four fifths to learn from, a fifth to choose by."""
    assert pictures.labels is not None
    order = torch.randperm(len(pictures.labels), generator=torch.Generator().manual_seed(seed))
    cut = max(1, len(order) // 5)
    held, rest = order[:cut], order[cut:]
    return (
        Pictures(pictures.inputs[rest], pictures.labels[rest], pictures.flip),
        (pictures.inputs[held], pictures.labels[held]),
    )


def adapt(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor | None = None,
    *,
    method: str = "auto",
    num_classes: int | None = None,
    steps: int = 200,
    held: tuple[Tensor, Tensor] | None = None,
    flip: bool = False,
    seed: int = 0,
    tell: Callable[[str], None] | None = None,
) -> Adapted:
    """Adapt a classifier to new pictures; the model itself stays as it is.

    `auto` tries several methods and keeps the one that is right most often on held-out pictures, the smallest of equal
    ones, or none. Without labels it cannot choose and learns from the model's own answers (`rpl`).

    Args:
        model: classifier, (n, …) to (n, classes).
        inputs: pictures as the model takes them, (n, …).
        labels: (n,); None if there are none.
        method: "auto" or a name of `foveal.adapt.table.METHODS`.
        num_classes: number of classes of the labels; None for the model's. Another number gives a new head.
        steps: number of training steps of each method.
        held: held-out inputs and labels; None sets a fifth of the labelled pictures aside.
        flip: whether a picture may be flipped left to right.
        seed: seed of the split, of batches and new parameters.
        tell: function that is told each method's result.

    Returns:
        The delta and what was tried.

    Raises:
        AdaptError: an unknown method, labels that are not as many as inputs, fewer than five labelled pictures, or a
            method that the model or the data do not suit.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import foveal
        >>> x = torch.randn(100, 4)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
        >>> found = foveal.adapt(model, x, (x[:, 0] > 0).long(), method="head", steps=5)
        >>> sorted(found.delta.changes)
        ['2.bias', '2.weight']
    """
    if method != "auto":
        adapter(method)  # an unknown name is refused before any work
    if labels is not None and len(labels) != len(inputs):
        raise AdaptError(f"labels must be as many as inputs, got {len(labels)} for {len(inputs)}")
    if not len(inputs):
        raise AdaptError("no pictures to adapt to; give at least one")
    pictures = Pictures(inputs, labels, flip)
    other = num_classes not in (None, classifier(model)[1].out_features)
    if other and labels is None:
        raise AdaptError(f"{num_classes} classes are new to the model and are learnt from labels; give labels")
    if labels is not None and held is None:
        if len(labels) < 5:
            raise AdaptError(f"a fifth of the pictures is held out, which takes at least 5, got {len(labels)}")
        pictures, held = _halves(pictures, seed)
    names = AUTO[labels is not None] if method == "auto" else (method,)
    model = copy.deepcopy(model).eval()
    tried: list[Tried] = []

    def note(found: Tried) -> None:
        tried.append(found)
        if tell is not None:
            tell(str(found))

    note(Tried("none", 0, None if held is None or other else score(model, *held), 0.0))
    deltas: dict[str, Delta] = {"none": Delta({})}
    for name in names:
        begun = time.perf_counter()
        try:
            delta = adapter(name, num_classes=num_classes)(model, pictures, steps=steps, seed=seed)
        except AdaptError as error:
            if method != "auto":
                raise
            note(Tried(name, 0, None, 0.0, str(error)))
            continue
        seconds = time.perf_counter() - begun
        undo = delta.fold_(model)
        try:
            right = None if held is None else score(model, *held)
        finally:
            undo()
        deltas[name] = delta
        note(Tried(name, delta.bytes, right, seconds))
    usable = [item for item in tried if not item.failed]
    if method != "auto" or held is None:
        best = usable[-1]
    else:
        best = max(usable, key=lambda item: (-1.0 if item.accuracy is None else item.accuracy, -item.bytes))
    return Adapted(deltas[best.method], best.method, tuple(tried))
