"""Structural pruning: channels, attention heads and MLP widths that are physically removed.

Source: coupled layers are found by Torch-Pruning's dependency graph (G. Fang et al., "DepGraph: Towards Any Structural
Pruning", CVPR 2023, arXiv:2301.12900); Taylor scores after P. Molchanov et al., "Importance Estimation for Neural
Network Pruning", CVPR 2019, arXiv:1906.10771, equation 8.

Shapes: a layer's weight is read as a matrix (units, everything else); a scorer gives one number to each unit.

Differs from the paper: the score of a group is the mean over its layers, each divided by its own mean, and widths stay
multiples of `round_to`. Attention heads are removed here, not by the graph.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal._install import install_hint
from foveal.shrink.data import Data, calibration
from foveal.shrink.prune.heads import attentions, prune_heads_
from foveal.shrink.prune.leave import left_alone
from foveal.shrink.prune.score import SCORERS, Scorer, gradients
from foveal.shrink.step import ShrinkError, note

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from foveal.shrink.step import Inputs

__all__ = ["Prune", "prune", "widths"]


def _graph(model: nn.Module, inputs: Tensor) -> Any:
    try:
        from torch_pruning import DependencyGraph
    except ModuleNotFoundError as error:
        raise ShrinkError(f"Prune needs torch-pruning, which is not installed; {install_hint('shrink')}") from error
    with torch.enable_grad():
        return DependencyGraph().build_dependency(model, inputs[:1], verbose=False)


def _groups(model: nn.Module, inputs: Tensor, *, stream: bool) -> tuple[Any, dict[str, Any]]:
    """The dependency graph, and the groups that may be pruned by the name of their first layer."""
    reasons = left_alone(model, inputs)
    heads = attentions(model)
    readers = {id(model.get_submodule(f"{name}.qkv")) for name in heads}
    reasons = {**{f"{name}.qkv": "" for name in heads}, **reasons}
    graph = _graph(model, inputs)
    left = [model.get_submodule(name) for name in reasons]
    found = {}
    for group in graph.get_all_groups(ignored_layers=left):
        name = graph._module2name[group[0].dep.target.module]
        targets = [(dep.target, graph.is_out_channel_pruning_fn(dep.handler)) for dep, _ in group.items]
        if any(out and not target.outputs for target, out in targets):
            continue  # the network's own outputs
        grouped = [t.module for t, _ in targets if getattr(t.module, "groups", 1) not in (1, _width(t.module))]
        if grouped or any(isinstance(t.module, nn.GroupNorm) for t, _ in targets):
            reasons[name] = "its channels are tied in groups"
        elif not stream and any(not out and id(target.module) in readers for target, out in targets):
            note(f"prune: left the residual stream of {len(group[0].idxs)} channels; stream = true prunes it")
        else:
            found[name] = group
    for name, reason in reasons.items():
        if reason:
            note(f"prune: left {name}: {reason}")
    return graph, found


def _width(module: Any) -> int:
    return getattr(module, "out_channels", getattr(module, "out_features", 1))


def widths(model: nn.Module, inputs: Tensor, *, stream: bool = False) -> dict[str, int]:
    """Widths that can be pruned.

    Args:
        model: network in eval mode.
        inputs: inputs of the network, (n, …).
        stream: whether the residual stream of a transformer counts.

    Returns:
        Number of units by the name of the first layer that makes them; layers tied to it are pruned with it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, groups = _groups(model, inputs, stream=stream)
    return {name: len(group[0].idxs) for name, group in groups.items()}


def _score(graph: Any, group: Any, scorer: Scorer, gradient: Mapping[int, Tensor]) -> Tensor:
    """Score of each unit of a group: the mean over its layers."""
    total = torch.zeros(len(group[0].idxs))
    layers = 0
    for item in group.items:
        layer = item.dep.target.module
        weight = getattr(layer, "weight", None)
        if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear) or weight is None:
            continue
        out = graph.is_out_channel_pruning_fn(item.dep.handler)
        depthwise = getattr(layer, "groups", 1) > 1
        slope = gradient.get(id(weight))
        matrix, slope = (
            None if t is None else (t if out or depthwise else t.transpose(0, 1)).flatten(1).detach()
            for t in (weight, slope)
        )
        assert matrix is not None
        scores = scorer(matrix, slope).float().cpu()
        scores = scores[torch.as_tensor(item.idxs)] / scores.mean().clamp_min(1e-30)
        total.index_add_(0, torch.as_tensor(item.root_idxs), scores)
        layers += 1
    return total / max(layers, 1)


def _kept(width: int, keep: float, round_to: int) -> int:
    """Units that stay: the nearest multiple of `round_to`, at least one of them."""
    if width <= round_to:
        return width
    return min(width, max(round_to, round(keep * width / round_to) * round_to))


def prune(
    model: nn.Module,
    inputs: Tensor,
    keep: float | Mapping[str, float],
    *,
    scorer: Scorer,
    heads: float | None = None,
    round_to: int = 8,
    stream: bool = False,
    gradient: Mapping[str, Tensor] | None = None,
    without: Collection[str] = (),
) -> nn.Module:
    """Remove units from a copy of a network.

    Args:
        model: network in eval mode.
        inputs: inputs of the network, (n, …).
        keep: share of the units that stays, or shares by the names that `widths` gives (1 for others).
        scorer: function from a weight, (units, …), and its gradient or None to one score for each unit.
        heads: share of the attention heads that stays; None is `keep`, or all if that is by name.
        round_to: widths stay multiples of this.
        stream: whether the residual stream of a transformer is pruned too.
        gradient: gradients by the name of the parameter, for scorers that use them.
        without: names of layers to leave alone.

    Returns:
        The smaller network.

    Raises:
        ShrinkError: a network that the graph does not understand, or that does not run afterwards.
    """
    pruned = copy.deepcopy(model).eval()
    wanted = model(inputs[:1]).shape
    slopes = {id(p): gradient[n] for n, p in pruned.named_parameters() if gradient is not None and n in gradient}
    for parameter in pruned.parameters():
        parameter.requires_grad_(True)
    share = heads if heads is not None else keep if isinstance(keep, float | int) else 1.0
    with torch.no_grad():
        for name in attentions(pruned):
            prune_heads_(pruned, name, share, inputs[:1], scorer=scorer, gradient=slopes)
    for parameter in pruned.parameters():  # new ones are leaves; the graph follows gradients
        parameter.requires_grad_(True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            graph, groups = _groups(pruned, inputs, stream=stream)
        except ShrinkError:
            raise
        except Exception as error:
            raise ShrinkError(f"Prune: cannot follow {type(model).__name__}: {error}; leave the step out") from error
        plans = []
        for name, group in groups.items():
            share = keep if isinstance(keep, float | int) else keep.get(name, 1.0)
            width = len(group[0].idxs)
            left = width if name in without else _kept(width, share, round_to)
            if left < width:
                try:
                    order = _score(graph, group, scorer, slopes).argsort(stable=True)
                except IndexError:  # the graph lost count, as in channels that are shuffled
                    note(f"prune: left {name}: its channels are split in a way that cannot be followed")
                    continue
                plans.append((group[0].dep.target.module, group[0].dep.handler, sorted(order[: width - left].tolist())))
        for module, handler, units in plans:
            smaller = graph.get_pruning_group(module, handler, units)
            if graph.check_pruning_group(smaller):
                smaller.prune()
    try:
        with torch.no_grad():
            got = pruned(inputs[:1]).shape
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ShrinkError(f"Prune: {type(model).__name__} does not run afterwards: {error}") from error
    if got != wanted:
        raise ShrinkError(f"Prune: the output of {type(model).__name__} became {tuple(got)}, was {tuple(wanted)}")
    return pruned


@dataclass(frozen=True)
class Prune:
    """Step: remove the least important channels, attention heads and MLP units; tune or distil afterwards.

    Args:
        keep: share of each width that stays, in (0, 1].
        heads: share of the attention heads that stays; None is `keep`.
        scorer: "magnitude", "taylor" (needs labelled batches) or "random", the floor; or a function from a weight,
            (units, …), and its gradient to one score for each unit.
        round_to: widths stay multiples of this.
        stream: whether the residual stream of a transformer is pruned too.
        without: names of layers to leave alone.

    Raises:
        ValueError: a share outside its range, or an unknown scorer.

    Example:
        >>> from foveal.shrink.prune.structure import Prune
        >>> Prune(keep=0.5, scorer="taylor").heads is None
        True
    """

    keep: float
    heads: float | None = None
    scorer: str | Scorer = "magnitude"
    round_to: int = 8
    stream: bool = False
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, share in (("keep", self.keep), ("heads", self.heads)):
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {share}; it is the share that stays")
        if isinstance(self.scorer, str) and self.scorer not in SCORERS:
            raise ValueError(f"scorer must be a function or one of {', '.join(SCORERS)}, got {self.scorer!r}")
        if self.round_to < 1:
            raise ValueError(f"round_to must be at least 1, got {self.round_to}")

    def apply(self, model: nn.Module, data: Inputs | Data | None = None) -> nn.Module:
        """Remove units from a copy of the model.

        Args:
            model: network in eval mode.
            data: inputs; `Data` with batches and loss for Taylor scores.

        Returns:
            The smaller network.
        """
        inputs = calibration(data, step="Prune", limit=2)
        scorer = SCORERS[self.scorer] if isinstance(self.scorer, str) else self.scorer
        options: dict[str, Any] = {
            "scorer": scorer,
            "heads": self.heads,
            "round_to": self.round_to,
            "stream": self.stream,
            "gradient": gradients(model, data) if self.scorer == "taylor" else None,
        }
        try:
            return prune(model, inputs, self.keep, without=self.without, **options)
        except ShrinkError:
            # Find the layers that break it, one at a time, and leave those alone.
            guilty = []
            for name, width in widths(model, inputs, stream=self.stream).items():
                try:
                    prune(model, inputs, {name: _kept(width, self.keep, self.round_to) / width}, **options)
                except ShrinkError as error:
                    guilty.append(name)
                    note(f"prune: left {name}: {error}")
            return prune(model, inputs, self.keep, without=(*self.without, *guilty), **options)
