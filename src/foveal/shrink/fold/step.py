"""Folding what is linear in use into the layer before it: batch norms and re-parameterised branches.

Source: batch norm into a convolution as in `torch.nn.utils.fusion`; branches by the modules' own method (`fold` or
`collapse` of foveal's networks; `fuse`, `reparameterize` or `switch_to_deploy` of timm's).

Shapes: any network with one input and one output.

Differs from the paper: nothing to differ from; every fold is checked against the network before it.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from foveal.export.deployable import Collapsible, Foldable
from foveal.shrink.data import calibration
from foveal.shrink.step import ShrinkError, note

if TYPE_CHECKING:
    from foveal.shrink.data import Data
    from foveal.shrink.step import Inputs

__all__ = ["Fold", "batch_norms_after", "fold_batch_norms_", "fold_branches"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@torch.no_grad()
def batch_norms_after(model: nn.Module, inputs: Tensor) -> list[tuple[str, str]]:
    """Layers whose output is the input of a batch norm.

    Args:
        model: network in eval mode.
        inputs: a batch of inputs.

    Returns:
        Names of the layer and of the batch norm, in the order in which they run.
    """
    made: dict[int, str] = {}
    kept: list[Tensor] = []  # alive, so that no identity is used twice
    pairs: list[tuple[str, str]] = []
    runs: Counter[str] = Counter()
    handles = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Any, ...], out: Any) -> None:
            runs[name] += 1
            if isinstance(module, _LAYERS):
                made[id(out)] = name
                kept.append(out)
            elif given and id(given[0]) in made:
                pairs.append((made[id(given[0])], name))

        return hook

    for name, module in model.named_modules():
        if isinstance(module, _LAYERS + _NORMS):
            handles.append(module.register_forward_hook(watch(name)))
    try:
        model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [(layer, norm) for layer, norm in pairs if runs[layer] == runs[norm] == 1]


def _set(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def _rest(norm: nn.Module) -> nn.Module:
    """What a batch norm does besides normalising: timm's bring an activation with them."""
    extra = [module for _, module in norm.named_children() if not isinstance(module, nn.Identity)]
    if not extra:
        return nn.Identity()
    return extra[0] if len(extra) == 1 else nn.Sequential(*extra)


def _close(out: Tensor, wanted: Tensor, tolerance: float) -> bool:
    return bool((out - wanted).abs().max() <= tolerance * wanted.abs().max().clamp_min(1e-12))


@torch.no_grad()
def fold_batch_norms_(model: nn.Module, inputs: Tensor, *, tolerance: float = 1e-4) -> list[str]:
    """Fold batch norms into the convolution or linear layer before them, in place.

    A fold after which the outputs differ, as where the layer's output has a second reader, is taken back.

    Args:
        model: network in eval mode.
        inputs: inputs to compare the outputs on.
        tolerance: largest difference, relative to the largest output.

    Returns:
        Names of the batch norms that were folded.
    """
    wanted, folded = model(inputs), []
    for layer_name, norm_name in batch_norms_after(model, inputs):
        layer, norm = model.get_submodule(layer_name), model.get_submodule(norm_name)
        fuse: Any = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        try:
            fused = fuse(layer, norm)
        except (AssertionError, AttributeError, TypeError, RuntimeError) as error:
            note(f"fold: left {norm_name}: {error}")
            continue
        _set(model, layer_name, fused)
        _set(model, norm_name, _rest(norm))
        if _close(model(inputs), wanted, tolerance):
            folded.append(norm_name)
        else:
            _set(model, layer_name, layer)
            _set(model, norm_name, norm)
            note(f"fold: left {norm_name}: something else reads the output of {layer_name}")
    return folded


def fold_branches(model: nn.Module) -> nn.Module:
    """Fold the branches of modules that can do so themselves.

    Args:
        model: network in eval mode.

    Returns:
        The network; the same object unless it has a method `fold` or `collapse` itself.
    """
    if isinstance(model, Collapsible):
        model = model.collapse().eval()
    if isinstance(model, Foldable):
        model = model.fold().eval()
    for child in list(model.modules()):
        for name, module in list(child.named_children()):
            if callable(fuse := getattr(module, "fuse", None)):
                setattr(child, name, fuse())
            elif callable(again := getattr(module, "reparameterize", getattr(module, "switch_to_deploy", None))):
                again()
    return model


@dataclass(frozen=True)
class Fold:
    """Step: fold batch norms and branches into plain layers; the outputs stay the same.

    Args:
        tolerance: largest difference of an output, relative to the largest output.

    Raises:
        ValueError: a tolerance that is not above 0.
    """

    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        if not self.tolerance > 0:
            raise ValueError(f"tolerance must be above 0, got {self.tolerance}")

    @torch.no_grad()
    def apply(self, model: nn.Module, data: Inputs | Data | None = None) -> nn.Module:
        """Fold a copy of the model.

        Args:
            model: network in eval mode.
            data: inputs to compare the outputs on.

        Returns:
            A network with the same outputs.

        Raises:
            ShrinkError: outputs that differ after the branches were folded.
        """
        inputs = calibration(data, step="Fold", limit=4)
        model = model.eval()
        wanted = model(inputs)
        folded = fold_branches(copy.deepcopy(model))
        if not _close(folded(inputs), wanted, self.tolerance):
            difference = float((folded(inputs) - wanted).abs().max())
            raise ShrinkError(
                f"Fold: outputs differ by {difference:.1e} after the branches were folded; "
                "a module's own fold is wrong, leave the step out"
            )
        names = fold_batch_norms_(folded, inputs, tolerance=self.tolerance)
        note(f"fold: {len(names)} batch norms became part of the layer before them")
        return folded
