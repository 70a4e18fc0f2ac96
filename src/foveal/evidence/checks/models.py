"""Checks of networks: kind "model".

Models are given (B, C, H, W) = (2, in_channels, 16, 12): unequal sides, so that swapped axes show, and small. The
scale, the channels and the classes are read from the case, else from the builder's defaults, else from the model
itself.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from foveal.evidence.checks.common import difference, fail

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from foveal.record import Method

__all__ = ["CHECKS"]

HEIGHT, WIDTH = 16, 12


def _stated(method: Method, case: str, model: nn.Module, word: str) -> Any:
    """Value of a shared argument: from the case, the builder, or the model; None if none of them states it."""
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
    """Values in [0, 1], (2, in_channels, 16, 12), or square if the model states an `img_size`."""
    import torch

    side = _stated(method, case, model, "img_size")
    size = (HEIGHT, WIDTH) if side is None else (side, side) if isinstance(side, int) else tuple(side)
    channels = _stated(method, case, model, "in_channels")
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3 if channels is None else channels, *size, generator=generator)


def builds(method: Method, case: str) -> None:
    """The case builds a module with parameters, and so does the registered size, on the meta device.

    Args:
        method: record to check.
        case: name of one of its cases.

    Raises:
        CheckError: the result is not a module, or has no parameters.
    """
    from torch import nn

    from foveal.measure.meta import without_storage

    with without_storage():
        built = (method.models[case](**method.cases[case]), method.models[case]())
    for model in built:
        if not isinstance(model, nn.Module):
            raise fail(method, case, f"must build an nn.Module, got {type(model).__name__}")
        if not any(True for _ in model.parameters()):
            raise fail(method, case, "the model has no parameters")


def shape(method: Method, case: str) -> None:
    """The output is `scale` times as large as the input, or (B, num_classes), and finite.

    Args:
        method: record to check.
        case: name of one of its cases.

    Raises:
        CheckError: a wrong shape, a value that is not finite, or neither `scale` nor `num_classes` to compare with.
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
        raise fail(method, case, "states neither `scale` nor `num_classes`; state one or excuse it from `shape`")
    with torch.no_grad():
        out = model(x)
    if tuple(out.shape) != want:
        raise fail(method, case, f"input {tuple(x.shape)} must give {want}, got {tuple(out.shape)}")
    if not out.isfinite().all():
        raise fail(method, case, f"{int((~out.isfinite()).sum())} of {out.numel()} output values are not finite")


def gradients(method: Method, case: str) -> None:
    """Every parameter gets a finite gradient.

    Args:
        method: record to check.
        case: name of one of its cases.

    Raises:
        CheckError: a parameter without a finite gradient; the text names it.
    """
    import torch

    model = _build(method, case).train()
    out = model(_input(method, case, model))
    target = torch.rand(out.shape, generator=torch.Generator().manual_seed(2))
    (out - target).square().mean().backward()
    wanted = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
    if none := [name for name, gradient in wanted.items() if gradient is None]:
        raise fail(method, case, f"no gradient reaches {', '.join(none)}")
    if broken := [name for name, gradient in wanted.items() if gradient is not None and not gradient.isfinite().all()]:
        raise fail(method, case, f"the gradient is not finite for {', '.join(broken)}")


def state(method: Method, case: str) -> None:
    """A second instance with the first one's state computes the same.

    Args:
        method: record to check.
        case: name of one of its cases.

    Raises:
        CheckError: missing or unexpected keys, or different outputs.
    """
    import torch

    first, second = _build(method, case, seed=0).eval(), _build(method, case, seed=1).eval()
    with torch.no_grad():
        # Changed from the initial values, which may be the same in every instance.
        for value in first.parameters():
            value.add_(torch.rand(value.shape, generator=torch.Generator().manual_seed(3)).to(value) * 0.01)
        keys = second.load_state_dict(first.state_dict(), strict=False)
        if keys.missing_keys or keys.unexpected_keys:
            raise fail(method, case, f"state differs: missing {keys.missing_keys}, left over {keys.unexpected_keys}")
        x = _input(method, case, first)
        ours, theirs = first(x), second(x)
    if not torch.equal(ours, theirs):
        raise fail(method, case, f"after loading the state {difference(ours, theirs)}")


def deterministic(method: Method, case: str) -> None:
    """Built twice with one seed and run twice, a model gives identical results.

    Args:
        method: record to check.
        case: name of one of its cases.

    Raises:
        CheckError: two runs differ.
    """
    import torch

    models = [_build(method, case).eval() for _ in range(2)]
    x = _input(method, case, models[0])
    with torch.no_grad():
        first, second, again = models[0](x), models[1](x), models[0](x)
    for other, what in ((second, "built twice with one seed"), (again, "run twice")):
        if not torch.equal(first, other):
            raise fail(method, case, f"{what}, {difference(first, other)}")


def dtype(method: Method, case: str) -> None:
    """In float64 the model computes in float64.

    Args:
        method: record to check.
        case: name of one of its cases.

    Raises:
        CheckError: the output has another dtype.
    """
    import torch

    model = _build(method, case).double().eval()
    with torch.no_grad():
        out = model(_input(method, case, model).double())
    if out.dtype != torch.float64:
        raise fail(method, case, f"float64 input must give float64 output, got {out.dtype}")


CHECKS: dict[str, Callable[[Method, str], None]] = {
    "builds": builds,
    "shape": shape,
    "gradients": gradients,
    "state": state,
    "deterministic": deterministic,
    "dtype": dtype,
}
# Checks of code, not of sizes: run on the first case of each class; other sizes are only built, without storage.
ONCE = ("shape", "gradients", "state", "deterministic", "dtype")


def cases(method: Method, check: str) -> list[str]:
    """The cases that a check runs on: all of them, or the first one of each network class.

    Args:
        method: record to check.
        check: name of a check.

    Returns:
        Names of cases.
    """
    if check not in ONCE:
        return list(method.cases)
    firsts: dict[object, str] = {}
    for case in method.cases:
        build = method.models[case]
        firsts.setdefault(getattr(build, "func", build), case)
    return list(firsts.values())
