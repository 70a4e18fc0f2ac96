"""The checks that every record must pass, whatever its method does.

`tests/test_methods.py` runs them over all records; `foveal claims` runs them too and records the result, because a row
of the catalogue works only when they pass. A record is excused from a check by `except_for`, with the reason.

Models are fed (B, C, H, W) = (2, in_channels, 16, 12): uneven, so that swapped axes show, and small. The scale, the
channels and the classes are read from the case, else from the defaults of the function that builds the model, else
from the model itself.
"""

from __future__ import annotations

import datetime
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from foveal.record import Method

__all__ = ["CHECKS", "CheckError", "pairs", "run"]

HEIGHT, WIDTH = 16, 12


class CheckError(AssertionError):
    """A record fails a common check; the text says where and by how much."""


def _fail(method: Method, case: str, text: str) -> CheckError:
    where = f"{method.name}, {case}" if case else method.name
    return CheckError(f"{where}: {text}")


def _stated(method: Method, case: str, model: nn.Module, word: str) -> Any:
    """Value of a shared argument: from the case, the builder's default, or the model; None when nobody states it."""
    if word in method.cases[case]:
        return method.cases[case][word]
    parameter = inspect.signature(method.models[case]).parameters.get(word)
    if parameter is not None and parameter.default is not inspect.Parameter.empty:
        return parameter.default
    return getattr(model, word, None)


def _build(method: Method, case: str, *, seed: int = 0) -> nn.Module:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return method.models[case](**method.cases[case])


def _input(method: Method, case: str, model: nn.Module, *, seed: int = 1) -> Tensor:
    """Values in [0, 1], (2, in_channels, 16, 12), or square when the model states an `img_size`."""
    import torch

    side = _stated(method, case, model, "img_size")
    size = (HEIGHT, WIDTH) if side is None else (side, side) if isinstance(side, int) else tuple(side)
    channels = _stated(method, case, model, "in_channels")
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3 if channels is None else channels, *size, generator=generator)


def fields(method: Method, case: str = "") -> None:
    """The record says what it must: a one-sentence summary, a paper, a claim, a tiny case for a model.

    Args:
        method: the record.
        case: not used; this check looks at the record as a whole.

    Raises:
        CheckError: something is missing or malformed.
    """
    paper = method.paper
    said = method.summary.strip()
    wrong = {
        "summary must be one sentence, with a capital letter and a full stop": not said.endswith(".")
        or ". " in said
        or said[:1].islower(),
        "paper needs a title, authors and an identifier": not all(
            text.strip() for text in (paper.title, paper.authors, paper.identifier)
        ),
        f"paper's year {paper.year} must be between 1950 and next year": not 1950
        <= paper.year
        <= datetime.datetime.now(datetime.UTC).year + 1,
        "at least one claim is needed": not method.claims,
        "every claim must say something": not all(claim.says.strip() for claim in method.claims),
        "a model needs at least one entry in `models` and a tiny one in `cases`": method.kind == "model"
        and not (method.models and method.cases),
        f"except_for names checks ({', '.join(CHECKS)}) and gives a reason for each": not all(
            name in CHECKS and reason.strip() for name, reason in method.except_for.items()
        ),
    }
    for text, is_wrong in wrong.items():
        if is_wrong:
            raise _fail(method, case, text)


def builds(method: Method, case: str) -> None:
    """The case builds a module with parameters.

    Args:
        method: the record.
        case: one of its cases.

    Raises:
        CheckError: it is no module, or has nothing to learn.
    """
    from torch import nn

    model = _build(method, case)
    if not isinstance(model, nn.Module):
        raise _fail(method, case, f"must build an nn.Module, got {type(model).__name__}")
    if not any(True for _ in model.parameters()):
        raise _fail(method, case, "the model has no parameters")


def shape(method: Method, case: str) -> None:
    """The output is `scale` times as large as the input, or (B, num_classes), and finite.

    Args:
        method: the record.
        case: one of its cases.

    Raises:
        CheckError: another shape, a value that is not finite, or nothing to compare with.
    """
    import torch

    model = _build(method, case).eval()
    x = _input(method, case, model)
    scale, classes = _stated(method, case, model, "scale"), _stated(method, case, model, "num_classes")
    want: tuple[int, ...]
    if scale is not None:
        channels = _stated(method, case, model, "out_channels") or x.shape[1]
        want = (x.shape[0], channels, x.shape[2] * scale, x.shape[3] * scale)
    elif classes is not None:
        want = (x.shape[0], classes)
    else:
        raise _fail(method, case, "states neither `scale` nor `num_classes`; state one or excuse it from `shape`")
    with torch.no_grad():
        out = model(x)
    if tuple(out.shape) != want:
        raise _fail(method, case, f"input {tuple(x.shape)} must give {want}, got {tuple(out.shape)}")
    if not out.isfinite().all():
        raise _fail(method, case, f"{int((~out.isfinite()).sum())} of {out.numel()} output values are not finite")


def gradients(method: Method, case: str) -> None:
    """Every parameter gets a finite gradient.

    Args:
        method: the record.
        case: one of its cases.

    Raises:
        CheckError: names the parameters that get none.
    """
    import torch

    model = _build(method, case).train()
    out = model(_input(method, case, model))
    target = torch.rand(out.shape, generator=torch.Generator().manual_seed(2))
    (out - target).square().mean().backward()
    wanted = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
    if none := [name for name, gradient in wanted.items() if gradient is None]:
        raise _fail(method, case, f"no gradient reaches {', '.join(none)}")
    if broken := [name for name, gradient in wanted.items() if gradient is not None and not gradient.isfinite().all()]:
        raise _fail(method, case, f"the gradient is not finite for {', '.join(broken)}")


def _difference(a: Tensor, b: Tensor) -> str:
    gap = (a - b).abs()
    at = tuple(int(i) for i in (gap == gap.max()).nonzero()[0])
    return f"the largest of {a.numel()} differences is {gap.max().item():.3g} at {at}"


def state(method: Method, case: str) -> None:
    """A second instance given the first one's state computes the same.

    Args:
        method: the record.
        case: one of its cases.

    Raises:
        CheckError: names the missing or left-over keys, or where outputs differ.
    """
    import torch

    first, second = _build(method, case, seed=0).eval(), _build(method, case, seed=1).eval()
    with torch.no_grad():
        # Moved away from the initial values: those may be the same in every instance.
        for value in first.parameters():
            value.add_(torch.rand(value.shape, generator=torch.Generator().manual_seed(3)).to(value) * 0.01)
        keys = second.load_state_dict(first.state_dict(), strict=False)
        if keys.missing_keys or keys.unexpected_keys:
            raise _fail(method, case, f"state differs: missing {keys.missing_keys}, left over {keys.unexpected_keys}")
        x = _input(method, case, first)
        ours, theirs = first(x), second(x)
    if not torch.equal(ours, theirs):
        raise _fail(method, case, f"after loading the state {_difference(ours, theirs)}")


def deterministic(method: Method, case: str) -> None:
    """Built twice with one seed and run twice, a model gives the same numbers.

    Args:
        method: the record.
        case: one of its cases.

    Raises:
        CheckError: says where two runs differ.
    """
    import torch

    models = [_build(method, case).eval() for _ in range(2)]
    x = _input(method, case, models[0])
    with torch.no_grad():
        first, second, again = models[0](x), models[1](x), models[0](x)
    for other, what in ((second, "built twice with one seed"), (again, "run twice")):
        if not torch.equal(first, other):
            raise _fail(method, case, f"{what}, {_difference(first, other)}")


def dtype(method: Method, case: str) -> None:
    """In float64 the model computes in float64.

    Args:
        method: the record.
        case: one of its cases.

    Raises:
        CheckError: the output has another type.
    """
    import torch

    model = _build(method, case).double().eval()
    with torch.no_grad():
        out = model(_input(method, case, model).double())
    if out.dtype != torch.float64:
        raise _fail(method, case, f"float64 input must give float64 output, got {out.dtype}")


CHECKS: dict[str, Callable[[Method, str], None]] = {
    "fields": fields,
    "builds": builds,
    "shape": shape,
    "gradients": gradients,
    "state": state,
    "deterministic": deterministic,
    "dtype": dtype,
}


def pairs(method: Method) -> list[tuple[str, str]]:
    """Checks that apply to a record, each with the case it is run on ("" for the record as a whole).

    Args:
        method: the record.

    Returns:
        Name of the check and name of the case; excused checks are left out.
    """
    cases = method.cases if method.kind == "model" else ()
    found = [("fields", ""), *((name, case) for case in cases for name in CHECKS if name != "fields")]
    return [(name, case) for name, case in found if name not in method.except_for]


def run(method: Method) -> dict[str, str]:
    """Run all checks of a record.

    Args:
        method: the record.

    Returns:
        Check → "passed", "excused: why" or "failed: what".
    """
    said = {name: f"excused: {reason}" for name, reason in method.except_for.items()}
    for name, case in pairs(method):
        if said.get(name, "passed") == "passed":
            said[name] = _outcome(method, name, case)
    return said


def _outcome(method: Method, name: str, case: str) -> str:
    try:
        CHECKS[name](method, case)
    except CheckError as error:
        return f"failed: {error}"
    except Exception as error:  # a model that raises fails the check; the others are still run
        return f"failed: {method.name}, {case}: {type(error).__name__}: {error}"
    return "passed"
