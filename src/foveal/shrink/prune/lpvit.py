"""LPViT: blocks of a transformer's linear layers are removed after training, chosen by second-order distortion.

*Source*: K. Xu et al., "LPViT: Low-Power Semi-structured Pruning for Vision Transformers", ECCV 2024
(arXiv:2407.02068), section 3; the authors' code is at github.com/Akimoto-Cris/LPViT.

    minimise  Σ_l D_l(k_l) + β P_l(k_l)   under   Σ_l k_l · area ≤ keep · Σ_l |W_l|
    D_l(k) = E ‖f(x) − f̃(x)‖² ≈ E_{x,v} (Σ_{b removed} a_b)²,   a_b = Σ_{i in b} w_i g_i,   g = ∂(vᵀ f(x)) / ∂W_l
    P_l(k) = k · area · tokens                                        β = power · mean_l max D_l' / mean_l max P_l'
    W̃_S = W C_{:,S} (C_{S,S} + ε I)⁻¹,   C = E x xᵀ              what stays in a row of blocks, corrected

D is the second-order Taylor term with the Gauss-Newton matrix of the outputs f (B, classes): E_v (vᵀ J Δw)² = ‖J Δw‖²
for v ~ N(0, I), so one backward pass a picture gives it for all blocks. Blocks are removed in the order of E a_b², and
k_l, the blocks that stay, is chosen by `allocate`. S is the inputs of the blocks that stay in a row of blocks, all of
whose outputs share it.

*Differs from the paper*: D keeps the products of each picture, where the authors' code averages gradients of the mean
square output over all pictures first; `allocate` is exact on a grid of densities, where they search for one slope on
smoothed curves. The paper says that the weights are corrected by second-order information and the code fine-tunes; here
they are the least-squares solution given the layer's inputs, with its bias.
*Provenance*: written from the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Transform
from foveal.ops.block_sparse import Blocks, block_linear, pack_blocks
from foveal.record import Method, Paper
from foveal.shrink.allocate import allocate
from foveal.shrink.data import calibration
from foveal.shrink.prune.masks import is_blocks, mask_, masked

if TYPE_CHECKING:
    from foveal.shrink.data import Data
    from foveal.shrink.step import Inputs

__all__ = ["BlockLinear", "LPViT", "block_sums", "corrected", "distortion", "packed_"]

Block = tuple[int, int]
CHOICES = 20  # densities of a layer that are tried


def block_sums(products: Tensor, block: Block) -> Tensor:
    """Sums of a matrix over its blocks.

    Args:
        products: matrices, (…, N, K).
        block: rows and columns of a block.

    Returns:
        Sums, (…, N/rows · K/columns), along rows of blocks.
    """
    return products.unflatten(-2, (-1, block[0])).unflatten(-1, (-1, block[1])).sum((-3, -1)).flatten(-2)


def distortion(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Order in which blocks are removed, and the squared change of the output after each.

    Args:
        sums: a_b of each picture and block, (n, blocks).

    Returns:
        Blocks, the least important first, (blocks,); distortion after 0, 1, … of them, never falling, (blocks + 1,).
    """
    order = sums.square().mean(0).argsort()
    curve = sums[:, order].cumsum(1).square().mean(0)
    return order, F.pad(curve, (1, 0)).cummax(0).values


def corrected(weight: Tensor, mask: Tensor, moment: Tensor, block: Block, *, damping: float = 0.01) -> Tensor:
    """The weights that stay, fitted to what the whole layer makes of its inputs.

    Args:
        weight: weight, (N, K), or with the bias as its last column, (N, K + 1).
        mask: True where a weight stays, (N, K), whole blocks.
        moment: E x xᵀ of the inputs, (K, K), or with a last input of 1, (K + 1, K + 1).
        block: rows and columns of a block.
        damping: ε over the mean of the moment's diagonal.

    Returns:
        Weight of the same shape, zero where the mask is False; rows that lose nothing are not changed.
    """
    stays = F.pad(mask, (0, weight.shape[1] - mask.shape[1]), value=True)
    made = torch.where(stays, weight, 0.0)
    bound = damping * moment.diagonal().mean()
    for first in range(0, len(weight), block[0]):
        rows, kept = slice(first, first + block[0]), stays[first]
        if bool(kept.all()):
            continue
        square = moment[kept][:, kept] + bound * torch.eye(int(kept.sum()), dtype=moment.dtype)
        wanted = weight[rows].to(moment) @ moment[:, kept] + bound * weight[rows][:, kept].to(moment)
        made[rows, kept] = torch.linalg.solve(square, wanted.mT).mT.to(made)
    return made


def _observe(
    model: nn.Module, layers: dict[str, nn.Linear], x: Tensor, block: Block, seed: int, batch: int = 16
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, int]]:
    """For each layer a_b of each input, the second moments of its inputs with a last input of 1, and its tokens."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:  # noqa: ARG001 - torch's signature
            seen[name] = inputs[0].detach(), output

        return hook

    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    draw, sums = torch.Generator().manual_seed(seed), {name: list[Tensor]() for name in layers}
    moments, tokens = dict.fromkeys(layers, torch.zeros(())), dict.fromkeys(layers, 0)
    try:
        for part in x.split(batch):
            with torch.enable_grad():
                y = model(part)
                probe = torch.randn(y.shape, generator=draw)
                outputs = [seen[name][1] for name in layers]
                gradients = torch.autograd.grad((y * probe).sum(), outputs)
            for (name, layer), gradient in zip(layers.items(), gradients, strict=True):
                # (n, T, K), (n, T, N) to (n, N, K)
                given = seen[name][0].reshape(len(part), -1, layer.in_features)
                outgoing = gradient.reshape(len(part), -1, layer.out_features)
                sums[name].append(block_sums(layer.weight.detach() * (outgoing.mT @ given), block))
                rows = F.pad(given.flatten(0, 1), (0, 1), value=1.0).double()
                moments[name] = moments[name] + rows.mT @ rows
                tokens[name] = given.shape[1]
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(found) for name, found in sums.items()}, moments, tokens


class BlockLinear(nn.Module):
    """A linear layer that stores and computes only the blocks of its weight that are not zero.

    Args:
        layer: linear layer whose weight has zero blocks.
        block: rows and columns of a block.
    """

    values: Tensor
    starts: Tensor
    columns: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear, block: Block) -> None:
        super().__init__()
        for name, value in pack_blocks(layer.weight.detach(), block)._asdict().items():
            self.register_buffer(name, value)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: inputs, (…, K).

        Returns:
            Outputs, (…, N).
        """
        return block_linear(x, Blocks(self.values, self.starts, self.columns), self.bias)


def packed_(model: nn.Module, block: Block) -> nn.Module:
    """Replace the pruned linear layers by layers without the zero blocks, in place, for inference.

    Args:
        model: network that `LPViT` pruned.
        block: rows and columns of a block, as it was pruned with.

    Returns:
        The same model in eval mode.

    Raises:
        ValueError: no pruned layer, or one whose mask is not of such blocks.
    """
    masks = masked(model)
    if not masks:
        raise ValueError(f"{type(model).__name__} has no pruned layer; apply LPViT first")
    for name, mask in masks.items():
        if not is_blocks(mask, block):
            raise ValueError(
                f"layer {name!r} is not pruned in blocks of {block}; give the block that it was pruned with"
            )
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, BlockLinear(model.get_submodule(name), block))  # type: ignore[arg-type]
    return model.eval()


@dataclass(frozen=True)
class LPViT:
    """Step: prune the linear layers of a transformer in blocks, after training; the last layer stays whole.

    Args:
        keep: share of the weights that stays at most, in (0, 1].
        block: rows and columns of a block; layers that it does not divide stay whole.
        power: weight of the power term relative to the paper's β, at least 0. Power is proportional to the work, so
            more of it prunes layers with many tokens, and altogether, harder.
        correct: whether the weights that stay are corrected.
        seed: seed of the probes v.

    Raises:
        ValueError: a share or weight outside its range, or an empty block.
    """

    keep: float = 0.5
    block: Block = (16, 16)
    power: float = 0.0
    correct: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep must be in (0, 1], got {self.keep}; it is the share that stays")
        if self.power < 0 or min(self.block) < 1:
            raise ValueError(f"power must be at least 0 and block at least 1×1, got {self.power} and {self.block}")

    def _layers(self, model: nn.Module) -> dict[str, nn.Linear]:
        found = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
        tall, wide = self.block
        fit = {
            name: m for name, m in list(found.items())[:-1] if m.out_features % tall == 0 and m.in_features % wide == 0
        }
        if not fit:
            raise ValueError(f"{type(model).__name__} has no linear layer that blocks of {self.block} divide")
        return fit

    def _counts(self, curves: dict[str, Tensor], tokens: dict[str, int]) -> dict[str, int]:
        """Blocks that stay in each layer."""
        # One row a layer: the numbers of blocks that may stay, at least one, and all of them last.
        shares = np.arange(1, CHOICES + 1) / CHOICES
        left = np.array([np.maximum(1, ((len(c) - 1) * shares).astype(int)) for c in curves.values()])
        harm = np.array([c.flip(0).numpy()[row] for c, row in zip(curves.values(), left, strict=True)], np.float64)
        work = left * np.array(list(tokens.values()))[:, None]
        # β: the steepest slope of each layer's distortion over that of its work, both by the share that stays
        beta = -np.diff(harm, axis=1).min(1).mean() / max(1, np.diff(work, axis=1).max(1).mean())
        budget = max(len(left), int(self.keep * left[:, -1].sum()))
        chosen = allocate(harm + self.power * beta * work, left, budget, resolution=budget)
        return {name: int(row[i]) for name, row, i in zip(curves, left, chosen, strict=True)}

    def apply(self, model: nn.Module, data: Inputs | Data | None = None) -> nn.Module:
        """Prune, in place; masks stay on the layers, so that the model can be trained further.

        Args:
            model: trained network, (B, …) to (B, classes).
            data: calibration inputs.

        Returns:
            The same model in eval mode.

        Raises:
            ValueError: a model that is pruned already or has no layer to prune, or no data.
        """
        if masked(model):
            raise ValueError("the model is pruned already; prune the original")
        x, layers = calibration(data, step="LPViT"), self._layers(model.eval())
        sums, moments, tokens = _observe(model, layers, x, self.block, self.seed)
        found = {name: distortion(a) for name, a in sums.items()}
        counts = self._counts({name: curve for name, (_, curve) in found.items()}, tokens)
        masks = {}
        for name, layer in layers.items():
            order = found[name][0]
            kept = torch.zeros(len(order), dtype=torch.bool)
            kept[order[len(order) - counts[name] :]] = True
            tall, wide = self.block
            grid = kept.view(layer.out_features // tall, -1)
            masks[name] = mask = grid.repeat_interleave(tall, 0).repeat_interleave(wide, 1)
            if self.correct and not bool(mask.all()):
                _correct_(layer, mask, moments[name] / (len(x) * tokens[name]), self.block)
        return mask_(model, masks)


@torch.no_grad()
def _correct_(layer: nn.Linear, mask: Tensor, moment: Tensor, block: Block) -> None:
    if layer.bias is None:
        layer.weight.copy_(corrected(layer.weight, mask, moment[:-1, :-1], block))
        return
    made = corrected(torch.cat([layer.weight, layer.bias[:, None]], 1), mask, moment, block)
    layer.weight.copy_(made[:, :-1])
    layer.bias.copy_(made[:, -1])


def _tiny(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 4), nn.Flatten(), nn.Linear(12, 5))


def _tokens(seed: int) -> Tensor:
    return torch.randn(6, 3, 8, generator=torch.Generator().manual_seed(seed))


METHOD = Method(
    id=66,
    name="LPViT",
    kind="transform",
    summary="Blocks of linear layers are removed where a second-order estimate says that the output changes least.",
    paper=Paper(
        "LPViT: Low-Power Semi-structured Pruning for Vision Transformers", "K. Xu et al.", 2024, "arXiv:2407.02068"
    ),
    cases={
        "linear": Transform(
            lambda model: LPViT(block=(4, 4)).apply(model, _tokens(9)),
            _tiny,
            _tokens,
            lambda model: LPViT(keep=1.0, block=(4, 4)).apply(model, _tokens(9)),
            twice="the model is pruned already",
        )
    },
)
