"""Layers that structural changes must leave as they are, with the reason."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["left_alone"]

_BUILT_IN = re.compile(r"(Backward\d+|AccumulateGrad)$")


def _custom(out: object, seen: set[object]) -> str:
    """First operator below an output that is not torch's own, of those not seen before."""
    found = ""
    waiting: list[Any] = [out.grad_fn] if isinstance(out, Tensor) and out.grad_fn is not None else []
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if not _BUILT_IN.search(node.name()):
            found = found or node.name()
        waiting += [following for following, _ in node.next_functions]
    return found


def left_alone(model: nn.Module, inputs: Tensor) -> dict[str, str]:
    """Layers that must keep their shapes.

    Args:
        model: network in eval mode.
        inputs: inputs of the network, (n, …).

    Returns:
        Reasons by the name of the layer: tied weights, a layer called more than once, a weight that is computed, a
        layer beside an operator that is not torch's own.
    """
    modules = {name: m for name, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))}
    owners = Counter(id(p) for m in modules.values() for p in m.parameters(recurse=False))
    reasons = {n: "tied weights" for n, m in modules.items() if any(owners[id(p)] > 1 for p in m.parameters(False))}
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            reasons[name] = "its weight is computed by a parametrisation; make it permanent first"

    calls: Counter[str] = Counter()
    custom: dict[str, str] = {}
    seen: set[object] = set()
    running = [""]

    # An operator belongs to the module that runs when its result is first seen: as the input of a module inside it, or
    # as its own output.
    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any) -> None:  # noqa: ARG001 - torch's signature
            for x in given:
                if found := _custom(x, seen):
                    custom[running[-1]] = found
            running.append(name)

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, out: Any) -> None:  # noqa: ARG001 - torch's signature
            calls[name] += 1
            if found := _custom(out, seen):
                custom[name] = found
            running.pop()

        return hook

    handles: list[Any] = []
    for name, module in model.named_modules():
        handles += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave(name))]
    try:
        with torch.enable_grad():
            model(inputs[:1].detach())
    finally:
        for handle in handles:
            handle.remove()
    reasons |= {name: "called more than once" for name in modules if calls[name] > 1}
    for name, operator in custom.items():
        inner = model.get_submodule(name) if name else model
        for below, module in inner.named_modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
                why = "written in place" if operator.endswith("CopySlices") else f"custom operator {operator}"
                reasons.setdefault(".".join(filter(None, (name, below))), why)
    return reasons
