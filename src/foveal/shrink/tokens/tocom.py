"""ToCom: a plug-in for queries and values lets a network merge more, or fewer, tokens than it was trained to.

*Source*: S. Jie et al., "Token Compensator: Altering Inference Cost of Vision Transformer without Re-Tuning", ECCV 2024
(arXiv:2408.06798), section 3.

    Δ(source, target) = s · U ((m_target − m_source) ⊙ D x)     added to q and to v of every block, (B, N, C)
    m_r = 1 on the last r of 16 groups of the rank, else 0      so Δ(a, b) = −Δ(b, a), Δ(a, b) + Δ(b, c) = Δ(a, c)
    loss = KL(network merging `source`, plain ‖ network merging `target`, with Δ),  source, target drawn from 0…16

r is the number of tokens that merge in each block, and x a block's normalised tokens. The plug-in is trained once, on
the pre-trained network, which stays as it is; it then serves every network fine-tuned from that one.

Shapes: B batch, N tokens, C channels, R rank.

*Differs from the paper*: for one pair (source, target) Δ can be folded into the weights (`fold_`), so it costs nothing.
s is 0.1 in training and use; the authors search it for each task. The backbone is in eval mode while the plug-in
learns.
*Provenance*: written from the paper; rank, groups, dropout, loss and starting values were looked up in the authors'
code. Run by hand on three merging blocks of width 768 with a random plug-in, that gives the same logits to 2e-6.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Transform
from foveal.record import Method, Paper
from foveal.shrink.distill.distillation import soft_targets
from foveal.shrink.tokens.blocks import ReducedBlocks
from foveal.shrink.tokens.merge import Merge
from foveal.train.loop import fit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from foveal.shrink.step import Inputs

__all__ = ["Compensated", "Delta", "ToCom", "fold_", "gate", "learn", "plug_", "plugged", "run_at_"]


def gate(source: int, target: int, *, rank: int = 32, groups: int = 16) -> Tensor:
    """Which channels of the plug-in work, and in which direction.

    Args:
        source: number of tokens that merged in each block while the network was trained, in 0…groups.
        target: number of tokens that merge now, in 0…groups.
        rank: R, a multiple of `groups`.
        groups: number of groups.

    Returns:
        m_target − m_source, (R,), of −1, 0 and 1.

    Raises:
        ValueError: a number outside its range, or a rank that the groups do not divide.
    """
    if rank % groups:
        raise ValueError(f"rank must be a multiple of groups, got {rank} and {groups}; 32 and 16 are the paper's")
    if wrong := [r for r in (source, target) if not 0 <= r <= groups]:
        raise ValueError(f"source and target must be in 0…{groups}, got {wrong[0]}; there is one group a merged token")
    place = torch.arange(rank)
    on = [(place >= rank - r * (rank // groups)).float() for r in (source, target)]
    return on[1] - on[0]


class Delta(nn.Module):
    """What is added to q or v before it is scaled, (B, N, C) to (B, N, C); a fresh one is zero.

    Args:
        dim: C.
        rank: R.
        dropout: probability of dropping an inner channel while training.
    """

    def __init__(self, dim: int, rank: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, rank, bias=False), nn.Linear(rank, dim, bias=False)
        nn.init.zeros_(self.up.weight)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        return self.up(gates * self.dropout(self.down(x)))


class Compensated(nn.Linear):
    """Layer of queries, keys and values with a plug-in, (B, N, C) to (B, N, 3·C).

    Args:
        layer: the plain layer; its parameters are shared and keep their names.
        config: sizes of the plug-in.
    """

    def __init__(self, layer: nn.Linear, config: ToCom) -> None:
        nn.Module.__init__(self)  # nn.Linear's would make weights of its own
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.scale, self.groups = config.scale, config.groups
        self.q, self.v = (Delta(layer.in_features, config.rank, dropout=config.dropout) for _ in range(2))
        gates = gate(config.source, config.target, rank=config.rank, groups=config.groups)
        self.register_buffer("gates", gates, persistent=False)
        self.gates: Tensor
        self.to(layer.weight.device, layer.weight.dtype).train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.weight, self.bias).chunk(3, -1)
        return torch.cat((q + self.scale * self.q(x, self.gates), k, v + self.scale * self.v(x, self.gates)), -1)


@dataclass(frozen=True)
class ToCom:
    """Step: merge tokens, and let a plug-in compensate for how the network was trained; see `learn` and `plug_`.

    Args:
        source: number of tokens that merged in each block while the network was trained, in 0…groups.
        target: number of tokens that merge in each block now, in 0…groups.
        rank: R, a multiple of `groups`.
        groups: number of groups, the largest `source` and `target`.
        scale: s.
        dropout: probability of dropping an inner channel while the plug-in is trained.
        multiple: number whose multiples the token counts are rounded to; the plug-in is made for 1.

    Raises:
        ValueError: a number outside its range.
    """

    source: int = 0
    target: int = 8
    rank: int = 32
    groups: int = 16
    scale: float = 0.1
    dropout: float = 0.1
    multiple: int = 1

    def __post_init__(self) -> None:
        gate(self.source, self.target, rank=self.rank, groups=self.groups)

    def apply(self, model: nn.Module, data: Inputs | None = None) -> nn.Module:
        """Merge tokens and insert a fresh plug-in, which is zero, in place.

        Args:
            model: vision transformer of timm with its plain blocks.
            data: not used.

        Returns:
            The same network.
        """
        model = Merge(r=self.target, multiple=self.multiple).apply(model, data)
        for block in model.blocks.children():  # type: ignore[union-attr]
            attention: Any = block.attn
            attention.qkv = Compensated(attention.qkv, self)
        return model


def _layers(model: nn.Module) -> Iterator[tuple[str, Compensated]]:
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, Compensated)]
    if not found or not isinstance(model.blocks, ReducedBlocks):
        raise ValueError(f"{type(model).__name__} has no plug-in; apply ToCom(source=…, target=…) first")
    return iter(found)


def run_at_(model: nn.Module, source: int, target: int) -> nn.Module:
    """Change how many tokens merge, and the plug-in with it, in place.

    Args:
        model: network with a plug-in, see `ToCom`.
        source: number of tokens that merged in each block while it was trained.
        target: number of tokens that merge in each block now.

    Returns:
        The same network.

    Raises:
        ValueError: a network without a plug-in, or a number outside its range.
    """
    blocks: Any = model.blocks
    for _, layer in _layers(model):
        layer.gates = gate(source, target, rank=layer.gates.numel(), groups=layer.groups).to(layer.gates)
    blocks.config = replace(blocks.config, r=target)
    return model


def plugged(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a plug-in.

    Args:
        model: network with a plug-in.

    Returns:
        Name → tensor, a copy.
    """
    return {
        f"{name}.{part}": value.detach().clone()
        for name, layer in _layers(model)
        for part, value in layer.state_dict().items()
        if part.startswith(("q.", "v."))
    }


def plug_(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Give a network the weights of a plug-in, in place.

    Args:
        model: network with a plug-in, see `ToCom`, of the same widths and depth as the one that it was learnt on.
        weights: result of `learn` or `plugged`.

    Returns:
        The same network.

    Raises:
        ValueError: weights of another network's plug-in.
    """
    own = plugged(model)
    unlike = {name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape}
    if unlike := unlike | (own.keys() ^ weights.keys()):
        raise ValueError(
            f"the plug-in was learnt on another network: {min(unlike)} does not fit; learn one on this kind"
        )
    model.load_state_dict(dict(weights), strict=False)
    return model


def fold_(model: nn.Module) -> nn.Module:
    """Add the plug-in to the weights of q and v, in place; the layers become plain ones, for one source and target.

    Args:
        model: network with a plug-in.

    Returns:
        The same network, which still merges tokens.
    """
    for name, layer in list(_layers(model)):
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        # U diag(gates) D, (C, C) each
        with torch.no_grad():
            q, v = (layer.scale * (part.up.weight * layer.gates) @ part.down.weight for part in (layer.q, layer.v))
            plain.weight = nn.Parameter(layer.weight + torch.cat((q, torch.zeros_like(q), v)))
        plain.bias = layer.bias
        parent, _, word = name.rpartition(".")
        setattr(model.get_submodule(parent), word, plain)
    return model


class _Learning(nn.Module):
    """A frozen network whose plug-in learns: the backbone stays in eval mode."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        for _, layer in _layers(network):
            for part in (layer.q, layer.v):
                part.requires_grad_(True)

    def train(self, mode: bool = True) -> _Learning:
        super().train(mode)
        self.network.eval()
        for _, layer in _layers(self.network):
            layer.q.train(mode)
            layer.v.train(mode)
        return self

    def forward(self, batch: tuple[Tensor, int, int]) -> Tensor:
        x, source, target = batch
        with torch.no_grad():
            taught = run_at_(self.network, source, source)(x)
        return soft_targets(run_at_(self.network, source, target)(x), taught, temperature=1.0)


def learn(
    model: nn.Module,
    inputs: Callable[[int], Tensor],
    *,
    config: ToCom | None = None,
    steps: int = 500,
    lr: float = 1e-3,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Train a plug-in on a pre-trained network, which is not changed.

    Args:
        model: pre-trained vision transformer of timm with its plain blocks; its outputs are logits.
        inputs: function from a step, counted from 0, to a batch of its inputs; no labels are needed.
        config: sizes of the plug-in; None takes the paper's.
        steps: number of training steps, at least 1.
        lr: peak learning rate of AdamW, above 0.
        seed: seed of the pairs (source, target), the starting weights and the dropout.

    Returns:
        Weights for `plug_`.
    """
    config = config or ToCom()

    def batches(step: int) -> tuple[Tensor, int, int]:
        draw = torch.Generator().manual_seed(1_000_003 * seed + step)
        source, target = torch.randperm(config.groups + 1, generator=draw)[:2].tolist()
        return inputs(step), source, target

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        learning = _Learning(config.apply(copy.deepcopy(model)))
        optimizer = torch.optim.AdamW([p for p in learning.parameters() if p.requires_grad], lr=lr)
        fit(
            learning,
            lambda module, batch: module(batch),
            batches,
            [optimizer],
            steps=steps,
            warmup=min(20, steps),
            clip=1.0,
            seed=seed,
        )
    return plugged(learning.network)


def _tiny(seed: int) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionTransformer(img_size=20, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=3)


def _picture(seed: int) -> Tensor:
    return torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(seed))


METHOD = Method(
    id=13,
    name="ToCom",
    kind="transform",
    summary="A plug-in, trained once, lets networks merge more or fewer tokens than they were fine-tuned to.",
    paper=Paper(
        "Token Compensator: Altering Inference Cost of Vision Transformer without Re-Tuning",
        "S. Jie et al.",
        2024,
        "arXiv:2408.06798",
    ),
    cases={
        "plug-in": Transform(
            ToCom(target=3, rank=8, groups=4).apply,
            _tiny,
            _picture,
            ToCom(target=0, rank=8, groups=4).apply,
            twice="model reduces tokens already",
        )
    },
)
