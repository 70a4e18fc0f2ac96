"""PBaSR: two copies of a network learn from blurred and from general pictures; the mean of their weights is used.

*Source*: R. Qin et al., "A New Dataset and Framework for Real-World Blurred Images Super-Resolution", ECCV 2024
(arXiv:2407.14880), section 4. Pictures with intentional blur (defocus, motion), which is to be kept, ask for the
opposite of what other pictures ask for. *Cross disentanglement* gives each kind its own copy of one network, θ_g
and θ_b, and after each step lets a little of each into the other, by how unlike they are,

    δ = δ₀ + (1 - δ₀) · mean over tensors of cos(θ_g, θ_b)
    θ_g, θ_b ← δ θ_g + (1 - δ) θ_b, δ θ_b + (1 - δ) θ_g         (their mean stays as it is)

*Cross fusion* takes θ = (θ_g + θ_b) / 2 at the end: one network of the original size, at the original cost.

*Differs from the paper*: any loss of pictures in place of its adversarial and perceptual ones; the paper's data set,
ReBlurSR, is not here.

*Provenance*: written from the paper; δ₀ = 0.995, the cosine and the mean of weights from the authors' code
(Imalne/PBaSR), which holds them and no training.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Objective
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Branches", "alike", "cross_", "fuse", "two_streams"]

DECAY = 0.995


def _paired(first: nn.Module, second: nn.Module) -> list[tuple[Tensor, Tensor]]:
    ours, theirs = dict(first.named_parameters()), dict(second.named_parameters())
    if {name: x.shape for name, x in ours.items()} != {name: x.shape for name, x in theirs.items()}:
        unlike = sorted(
            name for name in ours.keys() | theirs.keys() if getattr(ours.get(name), "shape", None)
            != getattr(theirs.get(name), "shape", None)
        )  # fmt: skip
        raise ValueError(f"both branches must be the same network, got parameters that differ, such as {unlike[0]!r}")
    return [(x, theirs[name]) for name, x in ours.items()]


@torch.no_grad()
def alike(first: nn.Module, second: nn.Module) -> float:
    """Mean cosine of the parameters of two copies of a network.

    Args:
        first: one.
        second: the other.

    Returns:
        1 for equal ones.
    """
    pairs = _paired(first, second)
    return float(torch.stack([F.cosine_similarity(x.flatten(), y.flatten(), dim=0) for x, y in pairs]).mean())


@torch.no_grad()
def cross_(first: nn.Module, second: nn.Module, *, decay: float = DECAY) -> float:
    """Let a little of each copy's weights into the other, in place: more, the less alike they are.

    Args:
        first: one.
        second: the other.
        decay: δ₀, in [0.5, 1]; 1 keeps them apart.

    Returns:
        δ, the share of its own that each keeps.

    Raises:
        ValueError: δ₀ out of range, or networks of different parameters.
    """
    if not 0.5 <= decay <= 1:
        raise ValueError(f"decay must be in [0.5, 1], got {decay}; 0.995 is the paper's")
    kept = decay + (1 - decay) * alike(first, second)
    for x, y in _paired(first, second):
        before = x.clone()
        x.lerp_(y, 1 - kept)
        y.lerp_(before, 1 - kept)
    return kept


@torch.no_grad()
def fuse(first: nn.Module, second: nn.Module, *, share: float = 0.5) -> nn.Module:
    """One network from two copies: the weighted mean of their parameters and of their buffers.

    Args:
        first: one.
        second: the other.
        share: weight of the second, in [0, 1].

    Returns:
        A new network, in eval mode.

    Raises:
        ValueError: a share out of range, or networks of different parameters.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share}; 0.5 is the paper's")
    _paired(first, second)
    fused, other = copy.deepcopy(first), second.state_dict()
    for name, x in fused.state_dict().items():
        if x.is_floating_point():
            x.lerp_(other[name], share)
    return fused.eval()


def two_streams(general: Tensor, sharp: Tensor, blurred: Tensor, soft: Tensor) -> Tensor:
    """The loss of both branches: absolute error on each one's own pictures.

    Args:
        general: what the general branch makes, (B, C, H, W).
        sharp: what its pictures should be; they get no gradient.
        blurred: what the branch of blurred pictures makes, (B', C, H', W').
        soft: what its pictures should be, with their blur; they get no gradient.

    Returns:
        Scalar.
    """
    return F.l1_loss(general, sharp.detach()) + F.l1_loss(blurred, soft.detach())


class Branches(nn.Module):
    """Two copies of a network in training; as a module, it gives the loss of a batch of both streams.

    Weights cross before each training step's loss, which is after the step before.

    Args:
        net: the network both begin as, best one that was trained on both kinds; it is copied.
        decay: δ₀.
    """

    def __init__(self, net: nn.Module, *, decay: float = DECAY) -> None:
        super().__init__()
        self.general, self.blurred, self.decay = copy.deepcopy(net), copy.deepcopy(net), decay

    def forward(
        self,
        general: tuple[Tensor, Tensor],
        blurred: tuple[Tensor, Tensor],
        loss: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = two_streams,
    ) -> Tensor:
        """The loss of a batch.

        Args:
            general: low and high resolution of general pictures.
            blurred: those of blurred ones.
            loss: function of what the general branch makes, its target, what the other makes, and its target.

        Returns:
            Scalar.
        """
        if self.training:
            cross_(self.general, self.blurred, decay=self.decay)
        return loss(self.general(general[0]), general[1], self.blurred(blurred[0]), blurred[1])

    def fused(self) -> nn.Module:
        """Both branches as one network.

        Returns:
            A new network, in eval mode.
        """
        return fuse(self.general, self.blurred)


def _inputs(seed: int, *, alike: bool = False) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    made, wanted, blurred, soft = torch.rand(4, 2, 3, 5, 4, generator=generator)
    return {
        "general": wanted.clone() if alike else made,
        "sharp": wanted,
        "blurred": soft.clone() if alike else blurred,
        "soft": soft,
    }


METHOD = Method(
    id=151,
    name="PBaSR",
    kind="objective",
    summary="Two copies of a network learn from blurred and from general pictures, and their mean is one network.",
    paper=Paper(
        "A New Dataset and Framework for Real-World Blurred Images Super-Resolution",
        "R. Qin et al.",
        2024,
        "arXiv:2407.14880",
    ),
    cases={
        "two_streams": Objective(
            two_streams, _inputs, learns=("general", "blurred"), best=lambda seed: _inputs(seed, alike=True)
        )
    },
)
