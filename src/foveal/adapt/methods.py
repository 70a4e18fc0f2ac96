"""Methods of `adapt` by name: each takes a model and pictures and returns what it would change.

Labelled: `head`, `norm` (scales and shifts of norms), `bias` (all shifts), `lora`, `full`; each trains the head too.
Without labels: `statistics` (batch norms see the new pictures), `rpl` (norms learn from the model's own answers).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from foveal.adapt.attach import LowRankPart, difference, linear_layers
from foveal.adapt.delta import AdaptError
from foveal.adapt.learned import attached, learned
from foveal.adapt.tune import classifier, norm_layers, renew_statistics_

if TYPE_CHECKING:
    from foveal.adapt.delta import Delta

__all__ = ["Adapter", "Pictures", "adapter", "labelled", "statistics"]


@dataclass(frozen=True)
class Pictures:
    """Pictures of the new kind.

    Args:
        inputs: as the model takes them, (n, C, H, W).
        labels: (n,); None if there are none.
        flip: whether a picture may be flipped left to right.
    """

    inputs: Tensor
    labels: Tensor | None = None
    flip: bool = False


class Adapter(Protocol):
    """A method: model and pictures in, delta out; the model stays as it is."""

    def __call__(self, model: nn.Module, pictures: Pictures, /, *, steps: int, seed: int) -> Delta:
        """Adapt.

        Args:
            model: classifier in eval mode.
            pictures: pictures of the new kind.
            steps: number of training steps.
            seed: seed of batches and new parameters.

        Returns:
            What would change.
        """
        ...


def _chosen(what: str, work: nn.Module) -> list[nn.Parameter]:
    """Parameters that learn, besides the head's."""
    if what == "norm":
        return [p for module in norm_layers(work).values() for p in module.parameters()]
    if what == "bias":
        return [p for name, p in work.named_parameters() if name.endswith("bias")]
    return list(work.parameters()) if what == "full" else []


def labelled(
    model: nn.Module,
    pictures: Pictures,
    *,
    what: str,
    lr: float,
    steps: int,
    seed: int = 0,
    rank: int = 4,
    num_classes: int | None = None,
) -> Delta:
    """Train one group of parameters, and the head, on labelled pictures.

    Args:
        model: classifier.
        pictures: pictures with labels.
        what: "head", "norm", "bias", "lora" or "full".
        lr: peak learning rate.
        steps: number of steps.
        seed: seed of batches and new parameters.
        rank: rank of "lora".
        num_classes: number of classes; None for the model's. Another number gives a new head.

    Returns:
        What would change.
    """
    settings: dict[str, Any] = {"method": what, "lr": lr, "steps": steps, "seed": seed, "num_classes": num_classes}
    if what != "lora":
        return learned(model, pictures, partial(_chosen, what), statistics=what == "full", **settings)
    head = classifier(model)[0]
    linear = any(name != head and linear_layers(name, module) for name, module in model.named_modules())

    def where(name: str, module: nn.Module) -> bool:
        return linear_layers(name, module) if linear else isinstance(module, nn.Conv2d) and module.groups == 1

    def make(weight: Tensor) -> LowRankPart:
        return LowRankPart(weight, rank=min(rank, weight.shape[0], weight[0].numel()))

    return attached(model, pictures, make, where=where, **settings)


def statistics(model: nn.Module, pictures: Pictures, *, steps: int = 0, seed: int = 0) -> Delta:  # noqa: ARG001
    """Batch norms take mean and variance from the new pictures; nothing is trained.

    Source: S. Schneider et al., arXiv:2006.16971, with as many new pictures as old ones are forgotten.

    Args:
        model: classifier with batch norms.
        pictures: pictures; labels are not used.
        steps: not used.
        seed: not used.

    Returns:
        What would change: running means and variances.

    Raises:
        AdaptError: a model without batch norms.
    """
    work = copy.deepcopy(model)
    if not renew_statistics_(work, pictures.inputs):
        raise AdaptError(f"{type(model).__name__} has no batch norm, so no statistics to renew; take another method")
    return difference(model, work, method="statistics")


def adapter(name: str, *, num_classes: int | None = None) -> Adapter:
    """A method by its name.

    Args:
        name: a key of `foveal.adapt.table.METHODS`.
        num_classes: number of classes; None for the model's. Methods without labels keep those of the model.

    Returns:
        The method.

    Raises:
        AdaptError: no such method.
    """
    methods = import_module("foveal.adapt.table").METHODS
    if name not in methods:
        raise AdaptError(f"method must be auto or one of {', '.join(methods)}, got {name!r}")
    learns, where, arguments = methods[name]
    if learns:
        arguments = {**arguments, "num_classes": num_classes}
    home, _, word = where.partition(":")
    return partial(getattr(import_module(home), word), **arguments)
