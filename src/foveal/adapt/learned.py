"""Learning from labelled pictures: what every method of that kind does besides the choice of what learns."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foveal.adapt.attach import attach_, difference, linear_layers
from foveal.adapt.delta import AdaptError
from foveal.adapt.tune import batches_of, classifier, tune, with_classes_

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from foveal.adapt.delta import Delta
    from foveal.adapt.methods import Pictures

__all__ = ["attached", "learned"]


def learned(
    model: nn.Module,
    pictures: Pictures,
    choose: Callable[[nn.Module], Iterable[nn.Parameter]],
    *,
    method: str,
    steps: int,
    lr: float,
    seed: int = 0,
    batch: int = 64,
    num_classes: int | None = None,
    statistics: bool = False,
) -> Delta:
    """Train some parameters, and the head, on labelled pictures.

    Args:
        model: classifier; it stays as it is.
        pictures: pictures with labels.
        choose: function from a copy of the model, which it may change, to what learns besides the head.
        method: name that the delta keeps.
        steps: number of steps.
        lr: peak learning rate.
        seed: seed of batches and new parameters.
        batch: B.
        num_classes: number of classes; None for the model's. Another number gives a new head.
        statistics: whether batch norms go on collecting their statistics.

    Returns:
        What would change.

    Raises:
        AdaptError: pictures without labels, or a label that is none of the classes.
    """
    if pictures.labels is None:
        raise AdaptError(f"{method} learns from labels, got pictures without; take statistics or rpl, or give labels")
    work = copy.deepcopy(model)
    count = classifier(work)[1].out_features if num_classes is None else num_classes
    if (most := int(pictures.labels.max())) >= count:
        raise AdaptError(f"labels must be below {count}, the number of classes, got {most}; give num_classes")
    with_classes_(work, count)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        learns = {id(p): p for p in [*choose(work), *classifier(work)[1].parameters()]}
        batches = batches_of(pictures.inputs, pictures.labels, batch=batch, flip=pictures.flip, seed=seed)
        tune(work, batches, learns.values(), steps=steps, lr=lr, statistics=statistics, seed=seed)
    return difference(model, work, method=method, steps=steps)


def attached(
    model: nn.Module,
    pictures: Pictures,
    make: Callable[[Tensor], nn.Module],
    *,
    method: str,
    steps: int,
    lr: float,
    seed: int = 0,
    batch: int = 64,
    num_classes: int | None = None,
    where: Callable[[str, nn.Module], bool] = linear_layers,
) -> Delta:
    """Train parts, and the head, on labelled pictures.

    Args:
        model: classifier; it stays as it is.
        pictures: pictures with labels.
        make: function from a weight to its part.
        method: name that the delta keeps.
        steps: number of steps.
        lr: peak learning rate.
        seed: seed of batches and new parameters.
        batch: B.
        num_classes: number of classes; None for the model's. Another number gives a new head.
        where: function from a layer's name and the layer to whether it gets a part; the head gets none.

    Returns:
        What would change.
    """

    def choose(work: nn.Module) -> Iterable[nn.Parameter]:
        head = classifier(work)[0]
        made = attach_(work, make, where=lambda name, module: name != head and where(name, module))
        return [p for part in made.values() for p in part.parameters()]

    return learned(
        model, pictures, choose, method=method, steps=steps, lr=lr, seed=seed, batch=batch, num_classes=num_classes
    )
