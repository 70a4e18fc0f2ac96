"""SAM-ON: sharpness-aware minimisation that moves only the scales and shifts of normalisation layers uphill.

*Source*: M. Mueller, T. Vlaar, D. Rolnick, M. Hein, "Normalization Layers Are All That Sharpness-Aware Minimization
Needs", NeurIPS 2023 (arXiv:2306.04226), sections 2 and 3; SAM itself is of P. Foret et al., ICLR 2021
(arXiv:2010.01412). With the gradient g of the loss at w, both (P,) over the parameters that are moved, a step is

    ε = ρ T² g / ‖T g‖₂      for p = 2            T = 1              SAM
    ε = ρ T sign(g)          for p = ∞            T = |w| + η        elementwise, ASAM
    g' = gradient of all parameters at w + ε      T = ‖w_l‖₂ + η     layerwise, of the tensor l that holds w
    base optimiser's step at w with g'

SAM takes all parameters for w, SAM-ON those of batch, layer and other norms, about 0.1 % of them; norms are taken over
these alone. What is kept between the two passes are the moved parameters as they were.

*Differs from the paper*: layers are found by type instead of by name. T applies to shifts too, which the authors' code
has as an option. Fisher SAM is left out. Batch norms see both passes in their running statistics, as in that code.
*Provenance*: written from the paper. Weights after four steps equal those of the authors' optimisers bit for bit in
float64: SAM and ASAM, elementwise and layerwise (at η = 0), p = 2 and ∞, of norms alone and of all parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from foveal.cases import Procedure
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

__all__ = ["SAMON", "norm_parameters", "perturbations"]

NORMS: tuple[type[nn.Module], ...] = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
ADAPTIVE = (None, "elementwise", "layerwise")
TINY = 1e-16  # keeps a gradient of 0 from being divided by its norm


def norm_parameters(model: nn.Module, *, types: tuple[type[nn.Module], ...] = NORMS) -> list[nn.Parameter]:
    """Scales and shifts of normalisation layers that are trained, each once.

    Args:
        model: network.
        types: classes of layers; the batch, instance, layer, group and RMS norms of torch and what inherits from them.

    Returns:
        Parameters in the order of the modules.

    Raises:
        ValueError: there are none.
    """
    layers = [module for module in model.modules() if isinstance(module, types)]
    found = {p: None for layer in layers for p in layer.parameters(recurse=False) if p.requires_grad}
    if not found:
        raise ValueError(f"model must have norms with scales to train, got none in {type(model).__name__}; give types")
    return list(found)


def _stretch(weight: Tensor, adaptive: str | None, eta: float) -> Tensor | float:
    """T of one tensor."""
    if adaptive is None:
        return 1.0
    return weight.abs() + eta if adaptive == "elementwise" else weight.norm() + eta


def perturbations(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    *,
    rho: float,
    adaptive: str | None = None,
    infinite: bool = False,
    eta: float = 0.01,
) -> Iterator[Tensor]:
    """What is added to each tensor, one after the other.

    Args:
        weights: tensors w of any shapes; each may change once its ε is given.
        gradients: g, of their shapes.
        rho: ρ.
        adaptive: T: None, "elementwise" or "layerwise".
        infinite: whether the ball has p = ∞ instead of 2.
        eta: η.

    Yields:
        ε, of a tensor's shape.
    """
    pairs = list(zip(weights, gradients, strict=True))
    if infinite:
        yield from (rho * _stretch(w, adaptive, eta) * g.sign() for w, g in pairs)
        return
    norms = [(_stretch(w, adaptive, eta) * g).norm() for w, g in pairs]
    whole = torch.stack(norms).norm() + TINY if norms else 1.0
    for w, g in pairs:
        stretch = _stretch(w, adaptive, eta)
        yield rho / whole * (stretch * (stretch * g))


class SAMON(torch.optim.Optimizer):
    """Another optimiser's steps with the gradient of a point uphill; shares its groups and state.

    A step calls the closure twice, which zeroes gradients, computes the loss of one batch and goes backward.

    Args:
        base: optimiser of all parameters that are trained.
        perturbed: parameters that are moved: `norm_parameters(model)`, or all of them for SAM.
        rho: ρ, at least 0; 0 gives the base optimiser's steps. Larger than SAM's for norms alone.
        adaptive: None, "elementwise" (ASAM) or "layerwise".
        infinite: whether the ball has p = ∞ instead of 2.
        eta: η of the adaptive kinds, at least 0.

    Raises:
        ValueError: a number below 0, an unknown kind, or parameters that `base` does not train.
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        perturbed: Iterable[Tensor],
        *,
        rho: float = 0.5,
        adaptive: str | None = None,
        infinite: bool = False,
        eta: float = 0.01,
    ) -> None:
        for name, value in (("rho", rho), ("eta", eta)):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if adaptive not in ADAPTIVE:
            raise ValueError(f"adaptive must be None, 'elementwise' or 'layerwise', got {adaptive!r}")
        super().__init__(base.param_groups, base.defaults)
        self.base, self.perturbed = base, list(perturbed)
        self.rho, self.adaptive, self.infinite, self.eta = rho, adaptive, infinite, eta
        self._share()
        trained = {id(p) for group in base.param_groups for p in group["params"]}
        others = sum(id(p) not in trained for p in self.perturbed)
        if others or not self.perturbed:
            raise ValueError(
                f"perturbed must be parameters that base trains, got {len(self.perturbed)} of which {others} are not; "
                "norm_parameters(model) finds those of norms"
            )

    def _share(self) -> None:
        self.param_groups, self.state = self.base.param_groups, self.base.state

    def state_dict(self) -> dict[str, Any]:
        """State to save, which is the base optimiser's.

        Returns:
            Its state.
        """
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state back.

        Args:
            state_dict: what `state_dict` gave.
        """
        self.base.load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def ascend(self) -> list[tuple[Tensor, Tensor]]:
        """Move parameters uphill; those without a gradient stay.

        Returns:
            Pairs of a parameter and a copy of what it was: all that a step keeps.
        """
        moved = [(p, p.grad) for p in self.perturbed if p.grad is not None]
        words: dict[str, Any] = {"adaptive": self.adaptive, "infinite": self.infinite, "eta": self.eta}
        found = perturbations([p for p, _ in moved], [g for _, g in moved], rho=self.rho, **words)
        saved = []
        for (p, _), epsilon in zip(moved, found, strict=True):
            saved.append((p, p.clone()))
            p.add_(epsilon)
        return saved

    @torch.no_grad()
    def descend(self, saved: list[tuple[Tensor, Tensor]]) -> None:
        """Put parameters back, bit for bit.

        Args:
            saved: what `ascend` gave.
        """
        for p, before in saved:
            p.copy_(before)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: zeroes the gradients, computes the loss and its gradients, and returns the loss.

        Returns:
            The loss where the parameters were, before they moved uphill.

        Raises:
            TypeError: no closure.
        """
        if closure is None:
            raise TypeError("step needs a closure that zeroes gradients, goes backward and returns the loss, got None")
        with torch.enable_grad():
            loss = closure()
        saved = self.ascend()
        try:
            with torch.enable_grad():
                closure()
        finally:
            self.descend(saved)
        self.base.step()
        return loss


def _run(seed: int) -> Tensor:
    """Weights of a small network after two steps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, x = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)), torch.randn(5, 3)
    optimizer = SAMON(torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), norm_parameters(model))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


METHOD = Method(
    id=195,
    name="SAM-ON",
    kind="procedure",
    summary="Steps with the gradient of a point uphill, for which only scales and shifts of norms are moved.",
    paper=Paper(
        "Normalization Layers Are All That Sharpness-Aware Minimization Needs",
        "M. Mueller et al.",
        2023,
        "arXiv:2306.04226",
    ),
    cases={
        "layer_norm": Procedure(
            _run,
            empty=lambda: norm_parameters(nn.Linear(2, 2)),
            refuses="model must have norms with scales to train, got none in Linear",
        )
    },
)
