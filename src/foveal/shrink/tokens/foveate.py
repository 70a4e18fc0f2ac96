"""One knob from 0 to 1: a network that spends a share of its multiply-adds, and shows where.

    model = foveal.foveate(model, budget=0.5)         # exact at 1
    route = foveal.shrink.tokens.foveate.look(model, pictures)
    print(route); route.draw(picture)

The setting of a method, the share of tokens that it keeps, is searched so that the counted multiply-adds of one picture
are as many as the budget allows, and no more.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from foveal.measure.cost import count_macs
from foveal.runtime.route import Route, recording
from foveal.shrink.step import ShrinkError, note

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from foveal.shrink.step import Inputs

__all__ = ["METHODS", "Foveate", "foveate", "look"]

# Each takes `keep`, a share in (0, 1] that is exact at 1.
METHODS = {
    "merge": "foveal.shrink.tokens.merge:Merge",
    "drop": "foveal.shrink.tokens.drop:Drop",
    "turbo": "foveal.shrink.tokens.turbo:Turbo",
    "topvim": "foveal.shrink.tokens.top_vim:ToPViM",
    "sparsevit": "foveal.shrink.tokens.sparsevit:SparseViT",
}
STEPS_OF_KEEP = 64  # keep is a multiple of its inverse


def _method(name: str) -> Any:
    if name not in METHODS:
        close = get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ShrinkError(f"no method is called {name!r}; {hint}methods are {', '.join(METHODS)}")
    module, _, word = METHODS[name].partition(":")
    return getattr(import_module(module), word)


def picture_shape(model: nn.Module) -> tuple[int, int, int, int]:
    """Shape of one picture of a network that says it as timm's do.

    Args:
        model: network.

    Returns:
        (1, channels, H, W).

    Raises:
        ShrinkError: a network that does not say it.
    """
    said: Any = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    embed: Any = getattr(model, "patch_embed", None)
    channels = int(getattr(getattr(embed, "proj", None), "in_channels", 3))
    side, grid = getattr(embed, "img_size", None), getattr(model, "grid", None)
    if side is None and grid is not None:  # foveal's own backbones
        channels = int(getattr(model, "in_channels", channels))
        side = tuple(n * getattr(model, "feature_info")[0]["reduction"] for n in grid)  # noqa: B009 - mypy
    if side is not None:
        return (1, channels, *side) if isinstance(side, tuple) else (1, channels, side, side)
    if (size := said.get("input_size")) is None:
        raise ShrinkError(f"{type(model).__name__} does not say the size of its pictures; give shape=(1, 3, H, W)")
    return (1, *size)


@dataclass(frozen=True)
class Foveate:
    """Step: make a network spend a share of its multiply-adds, in place.

    Args:
        budget: share of the multiply-adds of one picture, in (0, 1]; 1 changes nothing.
        method: one of `METHODS`.
        shape: shape of the picture that is counted, (1, C, H, W); None takes the network's own.
        options: further arguments of the method's step.

    Raises:
        ValueError: a budget outside its range.
        ShrinkError: an unknown method.
    """

    budget: float = 0.5
    method: str = "merge"
    shape: tuple[int, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.budget <= 1:
            raise ValueError(f"budget must be in (0, 1], got {self.budget}; 0.5 is half of the multiply-adds")
        _method(self.method)

    def apply(self, model: nn.Module, data: Inputs | None = None) -> nn.Module:
        """Apply the method at the largest `keep` that stays within the budget.

        Args:
            model: network that the method knows, such as timm's vision transformers.
            data: inputs for methods that calibrate.

        Returns:
            The same network.

        Raises:
            ShrinkError: a budget that the method cannot meet; the nearest that it can is named.
        """
        step = _method(self.method)
        if self.budget == 1:
            return step(keep=1.0, **self.options).apply(model, data)
        shape = self.shape or picture_shape(model)
        whole = count_macs(model, shape)

        def share(number: int) -> float:
            fewer = step(keep=number / STEPS_OF_KEEP, **self.options).apply(copy.deepcopy(model), data)
            return count_macs(fewer, shape) / whole

        low, high = 1, STEPS_OF_KEEP
        if (least := share(low)) > self.budget:
            raise ShrinkError(
                f"budget {self.budget:g} cannot be met by {self.method}: the least that it can is {least:.3f}"
            )
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if share(middle) <= self.budget else (low, middle)
        note(f"{self.method} keeps {low / STEPS_OF_KEEP:.3f}: {share(low):.3f} of the multiply-adds")
        return step(keep=low / STEPS_OF_KEEP, **self.options).apply(model, data)


def foveate(
    model: nn.Module,
    budget: float = 0.5,
    *,
    method: str = "merge",
    shape: tuple[int, ...] | None = None,
    **options: Any,
) -> nn.Module:
    """Make a network spend a share of its multiply-adds, in place; exact at 1.

    Args:
        model: network that the method knows, such as timm's vision transformers.
        budget: share of the multiply-adds of one picture, in (0, 1].
        method: one of `METHODS`.
        shape: shape of the picture that is counted, (1, C, H, W); None takes the network's own.
        **options: further arguments of the method's step.

    Returns:
        The same network.
    """
    return Foveate(budget, method, shape, options).apply(model)


def look(model: nn.Module, x: Tensor) -> Route:
    """Run a network once and tell where its work went.

    Args:
        model: routed network, see `foveate`.
        x: pictures, (B, C, H, W).

    Returns:
        Work by place and by stage.

    Raises:
        ShrinkError: a network that routes nothing.
    """
    with recording() as routes, torch.inference_mode():
        model(x)
    if not routes:
        raise ShrinkError(f"{type(model).__name__} routes nothing; apply foveal.foveate(model, budget=…) first")
    return routes[-1]
