"""ActPrune: filters whose maps are hardly active go, round by round, until a target of accuracy, size or work is met.

*Source*: K. Zhao, A. Jain, M. Zhao, "Adaptive Activation-based Structured Pruning", arXiv:2201.10520, section 3 (later
"Automatic Attention Pruning", arXiv:2303.08595).

    a_f = mean over pictures and pixels of |map f|^p                     attention of a filter
    a filter of layer l goes if a_f ≤ T·c_l,  c_l = cost of layer l / cost of all

After each round the smaller network is trained again, and T grows by λ. A round that breaks the target is rolled back
and λ halved. Three policies:

    accuracy     remove as much as the loss of quality allows; c counts parameters
    parameters   remove a share of the parameters (memory)
    macs         remove a share of the multiply-adds (latency)

Filters are removed physically: with their channels in the batch norms and layers that follow.

Shapes: maps (B, C, H, W), read where the next layer reads them, after normalisation and ReLU.

*Differs from the paper*: only filters that a single layer produces are pruned, not those tied by an addition (the
inner ones of a residual block). Size and work are known before training: for these two policies a round that overshoots
is not rolled back but takes the largest T that does not, by bisection; training can move attention below an earlier T.
Training continues from the current weights; the paper may also rewind them. Each layer keeps a filter.
*Provenance*: written from the paper; that c is the layer's share of the cost is a detail of the authors' code
(kaiqi123/Automatic-Attention-Pruning). What is tied is found by Torch-Pruning's graph (arXiv:2301.12900).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Transform
from foveal.measure.cost import count_macs, count_parameters
from foveal.record import Method, Paper
from foveal.shrink.data import Data, calibration
from foveal.shrink.tune import Tune

if TYPE_CHECKING:
    from collections.abc import Mapping

    from foveal.shrink.step import Inputs

__all__ = ["ActPrune", "attention", "costs", "inactive", "observe", "prunable", "remove"]

POLICIES = ("accuracy", "parameters", "macs")
BISECTIONS = 8


def attention(maps: Tensor, *, power: int = 1) -> Tensor:
    """Attention of each filter.

    Args:
        maps: activations, (B, C, …).
        power: p, at least 1.

    Returns:
        Attention, (C,), at least 0.
    """
    return maps.abs().pow(power).transpose(0, 1).flatten(1).mean(1)


def _graph(model: nn.Module, inputs: Tensor) -> Any:
    try:
        import torch_pruning
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "ActPrune needs torch-pruning, which is not installed; pip install torch-pruning"
        ) from error
    with torch.enable_grad():
        return torch_pruning.DependencyGraph().build_dependency(model, example_inputs=inputs[:1], verbose=False)


def _group(graph: Any, layer: nn.Module, filters: list[int]) -> Any:
    from torch_pruning import prune_conv_out_channels

    return graph.get_pruning_group(layer, prune_conv_out_channels, idxs=filters)


def prunable(model: nn.Module, inputs: Tensor) -> dict[str, str]:
    """Convolutions whose filters can go, each with the layer that reads its maps.

    Args:
        model: network in eval mode.
        inputs: inputs of the network, (n, …).

    Returns:
        Name of the reading layer by name of the convolution, in order.
    """
    graph, names = _graph(model, inputs), {module: name for name, module in model.named_modules()}
    found = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Conv2d) or layer.groups > 1:
            continue
        makers: list[nn.Module] = []
        readers: list[nn.Module] = []
        for dependency, _ in _group(graph, layer, list(range(layer.out_channels))):
            module, out = dependency.target.module, "out" in dependency.handler.__name__
            if isinstance(module, nn.Conv2d | nn.Linear):
                (makers if out else readers).append(module)
            elif not out:
                readers.append(module)
        if makers == [layer] and len(readers) == 1 and isinstance(readers[0], nn.Conv2d):
            found[name] = names[readers[0]]
    return found


@torch.no_grad()
def observe(
    model: nn.Module, layers: Mapping[str, str], inputs: Tensor, *, power: int = 1
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Attention of the filters, and how often each filter is applied.

    Args:
        model: network in eval mode.
        layers: reading layer by convolution, see `prunable`.
        inputs: inputs of the network, (n, …).
        power: p.

    Returns:
        Attention by convolution, each (C,); places where a filter of it is applied to one picture.
    """
    found: dict[str, Tensor] = {}
    places: dict[str, int] = {}

    def read(name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:  # noqa: ARG001 - torch's signature
            found[name] = attention(given[0], power=power)

        return hook

    def made(name: str) -> Any:
        def hook(module: nn.Module, given: Any, out: Tensor) -> None:  # noqa: ARG001
            places[name] = out.shape[2:].numel()

        return hook

    handles = [model.get_submodule(reader).register_forward_pre_hook(read(name)) for name, reader in layers.items()]
    handles += [model.get_submodule(name).register_forward_hook(made(name)) for name in layers]
    try:
        model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found, places


def costs(model: nn.Module, layers: Mapping[str, str], places: Mapping[str, int] | None = None) -> dict[str, float]:
    """Share of each convolution in the cost of all that can be pruned, c.

    Args:
        model: network.
        layers: reading layer by convolution, see `prunable`.
        places: places where a filter is applied, to count multiply-adds; None counts parameters.

    Returns:
        Share by convolution; together 1.
    """
    count = {
        name: int(model.get_submodule(name).weight.numel()) * (1 if places is None else places[name])  # type: ignore[operator, union-attr]
        for name in layers
    }
    return {name: n / sum(count.values()) for name, n in count.items()}


def inactive(scores: Mapping[str, Tensor], cost: Mapping[str, float], threshold: float) -> dict[str, Tensor]:
    """Filters that go.

    Args:
        scores: attention by convolution, each (C,).
        cost: share of the cost by convolution.
        threshold: T.

    Returns:
        Indices by convolution, where there are any; the most active filter of each layer stays.
    """
    found = {}
    for name, score in scores.items():
        gone = score <= threshold * cost[name]
        gone[score.argmax()] = False
        if gone.any():
            found[name] = gone.nonzero().flatten()
    return found


def remove(model: nn.Module, filters: Mapping[str, Tensor], inputs: Tensor) -> nn.Module:
    """Remove filters physically, with the channels that depend on them.

    Args:
        model: network in eval mode.
        filters: indices of filters by convolution.
        inputs: inputs of the network, (n, …).

    Returns:
        A smaller copy.
    """
    smaller = copy.deepcopy(model)
    graph = _graph(smaller, inputs)
    for name, indices in filters.items():
        _group(graph, smaller.get_submodule(name), indices.tolist()).prune()
    return smaller.eval()


@dataclass(frozen=True)
class ActPrune:
    """Step: remove filters in rounds, training after each, until the target of the policy is met.

    Args:
        policy: "accuracy", "parameters" or "macs".
        target: for "accuracy" largest loss of quality, in the unit of the data, at least 0; else share of the
            parameters or multiply-adds that goes, in (0, 1).
        tolerance: how far above the target the share may end, relative, above 0; not for "accuracy".
        increment: λ of the first round, above 0.
        rounds: largest number of rounds, at least 1.
        power: p, at least 1.
        steps: number of training steps after a round, at least 1.
        lr: peak learning rate of AdamW.
        weight_decay: weight decay of parameters with two or more axes.

    Raises:
        ValueError: an unknown policy, or a number outside its range.
    """

    policy: str = "parameters"
    target: float = 0.5
    tolerance: float = 0.05
    increment: float = 1.0
    rounds: int = 50
    power: int = 1
    steps: int = 200
    lr: float = 1e-3
    weight_decay: float = 0.05

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {self.policy!r}")
        if self.policy == "accuracy" and self.target < 0:
            raise ValueError(f"target must be at least 0 for accuracy, got {self.target}; it is a loss of quality")
        if self.policy != "accuracy" and not 0 < self.target < 1:
            raise ValueError(
                f"target must be in (0, 1) for {self.policy}, got {self.target}; it is the share that goes"
            )
        if not self.tolerance > 0:
            raise ValueError(f"tolerance must be above 0, got {self.tolerance}")
        if not self.increment > 0:
            raise ValueError(f"increment must be above 0, got {self.increment}")
        if min(self.rounds, self.steps, self.power) < 1:
            given = (self.rounds, self.steps, self.power)
            raise ValueError(f"rounds, steps and power must be at least 1, got {given}")

    def _train(self, model: nn.Module, data: Data) -> nn.Module:
        return Tune(self.steps, lr=self.lr, weight_decay=self.weight_decay).apply(model, data)

    def _size(self, model: nn.Module, inputs: Tensor) -> int:
        return count_macs(model, (1, *inputs.shape[1:])) if self.policy == "macs" else count_parameters(model)

    def apply(self, model: nn.Module, data: Inputs | Data | None = None) -> nn.Module:
        """Prune a model.

        Args:
            model: trained network.
            data: `Data` with `batches` and `loss`; `quality` decides for the policy "accuracy" and should be measured
                on other data than the final result.

        Returns:
            A smaller network in eval mode; `model` itself is only set to eval mode.

        Raises:
            ValueError: data without labelled batches, or a target that cannot be reached.
        """
        if not isinstance(data, Data) or data.batches is None or data.loss is None:
            raise ValueError("ActPrune trains and needs Data with batches and loss; give both")
        inputs = calibration(data, step="ActPrune")
        model.eval()
        layers, whole = prunable(model, inputs), self._size(model, inputs)
        if not layers:
            raise ValueError(f"{type(model).__name__} has no convolution whose filters go to one layer alone")
        if self.policy == "accuracy":
            return self._within(model, layers, inputs, data)
        most = 1 - self._size(self._pruned(model, layers, inputs, float("inf"))[0], inputs) / whole
        if most < self.target:
            raise ValueError(
                f"filters that can go are {most:.0%} of the {self.policy}, the target is {self.target:.0%}"
            )
        most, threshold = self.target * (1 + self.tolerance), 0.0
        for _ in range(self.rounds):
            threshold += self.increment
            smaller, changed, share = self._share(model, layers, inputs, threshold, whole)
            if share > most:
                low, high = 0.0, threshold
                for _ in range(BISECTIONS):
                    threshold = (low + high) / 2
                    above = self._share(model, layers, inputs, threshold, whole)[2] > most
                    low, high = (low, threshold) if above else (threshold, high)
                threshold = low
                smaller, changed, share = self._share(model, layers, inputs, threshold, whole)
            if changed:
                model = self._train(smaller, data)
            if share >= self.target:
                return model
        raise ValueError(
            f"{self.rounds} rounds did not meet the target of {self.target:.0%}; give more, or a tolerance"
        )

    def _share(
        self, model: nn.Module, layers: dict[str, str], inputs: Tensor, threshold: float, whole: int
    ) -> tuple[nn.Module, bool, float]:
        """A round at a threshold, whether it removes anything, and the share of the whole network that is gone then."""
        smaller, changed = self._pruned(model, layers, inputs, threshold)
        return smaller, changed, 1 - self._size(smaller, inputs) / whole

    def _pruned(
        self, model: nn.Module, layers: dict[str, str], inputs: Tensor, threshold: float
    ) -> tuple[nn.Module, bool]:
        scores, places = observe(model, layers, inputs, power=self.power)
        filters = inactive(scores, costs(model, layers, places if self.policy == "macs" else None), threshold)
        return remove(model, filters, inputs), bool(filters)

    def _within(self, model: nn.Module, layers: dict[str, str], inputs: Tensor, data: Data) -> nn.Module:
        """The smallest network of the rounds whose quality stays within the target."""
        least = data.quality(model) - self.target
        threshold, increment = 0.0, self.increment
        for _ in range(self.rounds):
            smaller, changed = self._pruned(model, layers, inputs, threshold + increment)
            if changed:
                smaller = self._train(smaller, data)
                if data.quality(smaller) < least:
                    increment /= 2
                    continue
            model, threshold = smaller, threshold + increment
        return model


class _Tiny(nn.Module):
    """(B, 3, H, W) to (B, 3): a residual block between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3, 1, 1), nn.Conv2d(8, 6, 3, 1, 1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.second(F.relu(self.norm(self.first(x))))
        return self.head(x.mean((2, 3)))


def _tiny(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _Tiny()


def _inputs(seed: int) -> Tensor:
    return torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def _applied(model: nn.Module) -> nn.Module:
    labels = torch.arange(4) % 3
    data = Data(_inputs(0), lambda _: 0.0, batches=lambda step: (_inputs(step), labels), loss=F.cross_entropy)
    return ActPrune(target=0.4, tolerance=0.5, steps=2).apply(model, data)


METHOD = Method(
    id=170,
    name="ActPrune",
    kind="transform",
    summary="Filters whose maps are hardly active are removed in rounds until a target of accuracy or size is met.",
    paper=Paper("Adaptive Activation-based Structured Pruning", "K. Zhao, A. Jain, M. Zhao", 2022, "arXiv:2201.10520"),
    cases={"residual block": Transform(_applied, _tiny, _inputs)},
    except_for={"state": "which filters stay, and so the shapes, depends on the weights"},
)
