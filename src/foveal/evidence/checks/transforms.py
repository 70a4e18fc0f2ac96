"""The suite of transforms of a model: kind "transform", cases `foveal.cases.Transform`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foveal.evidence.checks.common import difference, fail, outputs, relative, same

if TYPE_CHECKING:
    from collections.abc import Callable

    from foveal.cases import Transform
    from foveal.record import Method

__all__ = ["CHECKS"]


def _run(case: Transform, model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(case.inputs(1))


def _applied(case: Transform, seed: int) -> Any:
    model = case.model(seed).eval()
    changed = case.apply(model)
    return (model if changed is None else changed).eval()


def identity(method: Method, case: str) -> None:
    """Configured to change nothing, it changes nothing.

    Args:
        method: record to check.
        case: name of one of its cases.

    Raises:
        CheckError: outputs differ.
    """
    transform = method.cases[case]
    if transform.identity is None:
        return
    before = outputs(_run(transform, transform.model(0).eval()))
    model = transform.model(0).eval()
    changed = transform.identity(model)
    after = outputs(_run(transform, (model if changed is None else changed).eval()))
    for a, b in zip(after, before, strict=True):
        if a.shape != b.shape or not relative(a, b) <= transform.tolerance:
            raise fail(method, case, f"the identity configuration changes outputs: {difference(a, b)}")


def changes(method: Method, case: str) -> None:
    """It has an effect: outputs or state change, and outputs are finite.

    Args:
        method: record to check.
        case: name of one of its cases.

    Raises:
        CheckError: no change, or a value that is not finite.
    """
    transform = method.cases[case]
    before, model = transform.model(0).eval(), _applied(transform, 0)
    out = outputs(_run(transform, model))
    if not all(x.isfinite().all() for x in out):
        raise fail(method, case, "outputs of the transformed model are not finite")
    kept = before.state_dict().keys() == model.state_dict().keys()
    if kept and same(out, _run(transform, before)) and same(before.state_dict(), model.state_dict()):
        raise fail(method, case, "the transformed model computes and holds what it did before")


def state(method: Method, case: str) -> None:
    """The transformed model's state loads into another instance, which then computes the same.

    Args:
        method: record to check.
        case: name of one of its cases.

    Raises:
        CheckError: missing or unexpected keys, or different outputs.
    """
    transform = method.cases[case]
    first, second = (_applied(transform, seed) for seed in (0, 5))
    keys = second.load_state_dict(first.state_dict(), strict=False)
    if keys.missing_keys or keys.unexpected_keys:
        raise fail(method, case, f"state differs: missing {keys.missing_keys}, left over {keys.unexpected_keys}")
    ours, theirs = outputs(_run(transform, second)), outputs(_run(transform, first))
    if not same(ours, theirs):
        raise fail(method, case, f"after loading the state {difference(ours[0], theirs[0])}")


def twice(method: Method, case: str) -> None:
    """Applied again it raises the promised error, or works.

    Args:
        method: record to check.
        case: name of one of its cases.

    Raises:
        CheckError: another error, or none.
    """
    transform = method.cases[case]
    model = _applied(transform, 0)
    try:
        transform.apply(model)
    except (ValueError, TypeError) as error:
        if not transform.twice or transform.twice not in str(error):
            raise fail(
                method, case, f"applied twice it raises {error}, wanted {transform.twice or 'no error'!r}"
            ) from error
    else:
        if transform.twice:
            raise fail(method, case, f"applied twice it must raise {transform.twice!r}, and does not")


CHECKS: dict[str, Callable[[Method, str], None]] = {
    "identity": identity,
    "changes": changes,
    "state": state,
    "twice": twice,
}
