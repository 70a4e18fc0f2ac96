"""Cases of the common suites for methods that are no networks: what `Method.cases` holds for them. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Objective", "Operator", "Procedure", "Transform"]


@dataclass(frozen=True)
class Operator:
    """A case of the common suite for operators: tensors in, tensors out, beside a plain reference.

    Args:
        fast: the function users call.
        reference: a slow, plain function of the same arguments.
        inputs: makes the keyword arguments from a seed; floating-point tensors among them get gradients.
        tolerance: largest difference over the reference's largest value, in float64.
    """

    fast: Callable[..., Any]
    reference: Callable[..., Any]
    inputs: Callable[[int], dict[str, Any]]
    tolerance: float = 1e-9


@dataclass(frozen=True)
class Transform:
    """A case of the common suite for transforms of a model.

    Args:
        apply: model → transformed model, in place or not.
        model: builds a small model, the same for the same seed.
        inputs: makes the model's input from a seed.
        identity: model → transformed model, configured so that outputs stay the same; None when there is no such
            configuration.
        tolerance: largest difference that `identity` may make, over the largest output.
        twice: the text of the error that a second `apply` raises, "" when it may be applied again.
    """

    apply: Callable[[Any], Any]
    model: Callable[[int], Any]
    inputs: Callable[[int], Any]
    identity: Callable[[Any], Any] | None = None
    tolerance: float = 1e-5
    twice: str = ""


@dataclass(frozen=True)
class Objective:
    """A case of the common suite for training objectives.

    Args:
        loss: keyword arguments → scalar tensor.
        inputs: makes the keyword arguments from a seed.
        learns: names of the arguments that gradients must reach; no gradient may reach the other tensors.
        best: makes keyword arguments for which the loss is least, such as equality; None when there are none.
    """

    loss: Callable[..., Any]
    inputs: Callable[[int], dict[str, Any]]
    learns: tuple[str, ...]
    best: Callable[[int], dict[str, Any]] | None = None


@dataclass(frozen=True)
class Procedure:
    """A case of the common suite for procedures: everything that is none of the other kinds.

    Args:
        run: seed → array, tensor or number; equal for equal seeds.
        empty: calls the procedure with nothing to work on; None when its input cannot be empty.
        refuses: text of the ValueError that `empty` must raise, "" when it must return without one.
    """

    run: Callable[[int], Any]
    empty: Callable[[], Any] | None = None
    refuses: str = ""
