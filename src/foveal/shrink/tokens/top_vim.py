"""ToP-ViM: drop tokens of a state-space network between blocks, and let the state decay as if they were still there.

*Source*: Z. Zhan et al., "Exploring Token Pruning in Vision State Space Models", NeurIPS 2024 (arXiv:2409.18962):
importance from the scan's output, and pruning-aware hidden-state alignment.

    score_p = mean over channels of max(0, y_p)                      y: the scan's output, (B, E, N)
    kept = positions of the highest scores, in the order of the route
    h_t = exp((delta_t + s_t) A) h_{t-1} + delta_t B_t u_t,  y_t = C_tᵀ h_t + D u_t

s_t is the sum of the steps of the positions dropped between a kept token and the previous kept one on the route. They
contribute no input, but the state decays as it would have, so the distance between tokens is preserved. Naive pruning
has s = 0 and closes the gaps. An aligned scan of M kept tokens is an ordinary scan of M steps delta + s with inputs
u · delta / (delta + s).

*Differs from the paper*: a dropped position takes the step of a zero input, softplus(bias), so the scan equals the one
over all positions with the inputs of the dropped ones masked. Vim's convolution along the route closes the gaps: zeros
in them cost a small Vim at 60% of its tokens two points more. PlainMamba's convolution, over the map, sees zeros. Until
tokens go, blocks run as they are, so that keep = 1 is exact.
*Provenance*: written from the paper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Transform
from foveal.models.backbone.plainmamba import PlainMambaMixer
from foveal.nn.gather import put, routed, take, top
from foveal.nn.isotropic import Isotropic
from foveal.nn.mamba import Mamba
from foveal.nn.snake import moves
from foveal.ops import selective_scan
from foveal.ops.scan2d import routes
from foveal.record import Method, Paper
from foveal.runtime.route import Route, recorded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from foveal.shrink.step import Inputs

__all__ = ["PrunedTokens", "ToPViM", "aligned_scan", "mix", "score_tokens"]


def score_tokens(y: Tensor) -> Tensor:
    """Importance of each token.

    Args:
        y: output of the scan, (B, E, N).

    Returns:
        Scores, (B, N), at least 0.
    """
    return y.clamp_min(0).mean(1)


def aligned_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,  # noqa: N803 - the paper's letters
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor,  # noqa: N803
    *,
    times: Tensor,
    idle: Tensor | None,
) -> Tensor:
    """Selective scan of kept tokens, with the state decaying over the tokens dropped between them.

    Args:
        u: input at the kept tokens, (B, E, M).
        delta: step sizes, after softplus, (B, E, M).
        A: decay of each state, (E, D), negative.
        B: input weights, (B, D, M).
        C: output weights, (B, D, M).
        D: skip weights, (E,).
        times: step of the full scan at which it reaches each token, ascending, (B, M).
        idle: step size of a dropped position, (E,); None closes the gaps.

    Returns:
        Output, (B, E, M).
    """
    pace, brought = delta, u
    if idle is not None:
        # the tiny number is for steps that softplus has rounded to zero
        gaps = F.pad(times.diff(dim=1) - 1, (1, 0)).to(delta.dtype) + torch.finfo(delta.dtype).tiny
        pace = torch.addcmul(delta, gaps[:, None], idle[:, None])
        brought = u * delta / pace
    y = selective_scan(brought, pace, A, B, C)
    assert isinstance(y, Tensor)
    return torch.addcmul(y, u, D[:, None])


def _along_tokens(mixer: Mamba, x: Tensor, places: Tensor, length: int, align: bool) -> Tensor:
    """The scans of a Mamba mixer at kept tokens, before its gate; (B, M, E) to the same."""
    found: list[Tensor] = []
    for back in (False, True) if mixer.bidirectional else (False,):
        conv1d, _, dt_proj, decay, skip = mixer.parts(back=back)
        way, times = (x.flip(1), length - 1 - places.flip(1)) if back else (x, places)
        u = F.silu(conv1d(way.transpose(1, 2))[..., : way.shape[1]])
        delta, weights_in, weights_out = mixer.project(u, back=back)
        idle = F.softplus(dt_proj.bias) if align else None  # type: ignore[arg-type]
        matrices = -decay.exp(), weights_in, weights_out, skip
        y = aligned_scan(u, F.softplus(delta), *matrices, times=times, idle=idle).transpose(1, 2)
        found.append(y.flip(1) if back else y)
    return (found[0] + found[1]) / 2 if mixer.bidirectional else found[0]


def _over_map(mixer: PlainMambaMixer, x: Tensor, places: Tensor, size: tuple[int, int], align: bool) -> Tensor:
    """The scans of a PlainMamba mixer at kept tokens, before its gate; (B, M, E) to the same."""
    scan, length = mixer.scan, size[0] * size[1]
    plane = put(x.new_zeros(x.shape[0], length, x.shape[2]), places, x).unflatten(1, size).permute(0, 3, 1, 2)
    u = F.silu(take(mixer.conv2d(plane).flatten(2).transpose(1, 2), places))
    delta, weights_in, weights_out = (t.transpose(1, 2) for t in scan.project(u.transpose(1, 2)))
    route = routes("snake", *size, device=x.device)
    count = route.shape[0]
    # (K, L): step at which route k reaches position p
    comes = torch.zeros_like(route).scatter(1, route, torch.arange(length, device=x.device).expand_as(route))
    # (B, K, M) to (B·K, M): steps of the kept tokens, and their order; from here each route is a sequence
    times, order = comes[:, places].transpose(0, 1).flatten(0, 1).sort(-1)
    theta = scan.directions[moves(route, size[1])[:, places]].transpose(0, 1).flatten(0, 1)

    def ordered(values: Tensor) -> Tensor:
        """(B, M, …) or (B·K, M, …) to (B·K, …, M)."""
        every = values if values.shape[0] == order.shape[0] else values.repeat_interleave(count, 0)
        return take(every, order).transpose(1, 2)

    delta, weights_in = F.softplus(delta), weights_in.repeat_interleave(count, 0) + theta
    idle = F.softplus(scan.dt_proj.bias) if align else None
    matrices = -scan.A_log.exp(), ordered(weights_in), ordered(weights_out), scan.D
    y = aligned_scan(ordered(u), ordered(delta), *matrices, times=times, idle=idle)
    return take(y.transpose(1, 2), order.argsort(-1)).unflatten(0, (-1, count)).sum(1)


def mix(
    mixer: Mamba | PlainMambaMixer, tokens: Tensor, places: Tensor, size: tuple[int, int], length: int, align: bool
) -> tuple[Tensor, Tensor]:
    """Apply a mixer to kept tokens.

    Args:
        mixer: mixer of a block.
        tokens: kept tokens, (B, M, C).
        places: positions of the kept tokens among all, ascending, (B, M).
        size: numbers of rows and columns of patches.
        length: number of all tokens, N.
        align: whether the state decays over dropped tokens.

    Returns:
        Output of the mixer, (B, M, C), and output of the scan, (B, E, M).
    """
    x, z = mixer.in_proj(tokens).chunk(2, dim=2)
    if isinstance(mixer, Mamba):
        y = _along_tokens(mixer, x, places, length, align)
    else:
        y = _over_map(mixer, x, places, size, align)
    return mixer.out_proj(y * F.silu(z)), y.transpose(1, 2)


@dataclass(frozen=True)
class ToPViM:
    """Token pruning: after which blocks tokens are dropped, and how many are kept.

    Args:
        after: numbers of the blocks after which tokens are dropped, from 1, ascending.
        keep: share of the patches that is kept each time, in (0, 1].
        align: whether the state decays over dropped tokens; False is naive pruning.

    Raises:
        ValueError: block numbers that are not ascending from 1, or a share outside (0, 1].
    """

    after: tuple[int, ...] = (6, 12, 18)
    keep: float = 0.7
    align: bool = True

    def __post_init__(self) -> None:
        if not self.after or list(self.after) != sorted(set(self.after)) or self.after[0] < 1:
            raise ValueError(f"after must be rising numbers of blocks from 1 on, got {self.after}")
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep must be in (0, 1], got {self.keep}; 0.7 keeps 70% of the patches each time")

    def apply(self, model: nn.Module, data: Inputs | None = None) -> nn.Module:  # noqa: ARG002 - nothing is calibrated
        """Let a network drop tokens between its blocks, in place. It can be trained further, as in the paper.

        Args:
            model: network, one of `vim_*` or `plainmamba_*`.
            data: not used.

        Returns:
            The same network.

        Raises:
            TypeError: a network that is neither a Vim nor a PlainMamba.
            ValueError: a network that drops tokens already, too few blocks for `after`, or blocks that cannot run on a
                part of the map.
        """
        blocks: Any = getattr(model, "blocks", None)
        if isinstance(blocks, PrunedTokens):
            raise ValueError(f"model drops tokens already, by {blocks.config}; apply ToPViM to a fresh network")
        if not isinstance(model, Isotropic):
            raise TypeError(_misses(model, "the patches, blocks and head of foveal.nn.isotropic.Isotropic"))
        for number, block in enumerate(blocks, 1):
            mixer = getattr(block, "mixer", None)
            if not isinstance(mixer, Mamba | PlainMambaMixer):
                raise TypeError(
                    _misses(model, f"a Mamba or PlainMamba mixer in block {number}, a {type(block).__name__}")
                )
            if isinstance(mixer, PlainMambaMixer) and mixer.scan.released:
                raise ValueError("pruning needs scans that follow the routes; build the network with released=False")
            if number >= self.after[0] and getattr(block, "convolve", None) is not None:
                raise ValueError(f"block {number} convolves the whole map; prune after {number + 1} or later")
        if self.after[-1] >= len(blocks):
            raise ValueError(
                f"after must stay below the {len(blocks)} blocks, got {self.after}; the last has no use of it"
            )
        model.blocks = PrunedTokens(blocks, self, class_token=model.cls_token is not None)  # type: ignore[assignment]
        return model


def _misses(model: nn.Module, part: str) -> str:
    return f"model must be a Vim or a PlainMamba, got {type(model).__name__} without {part}; build one by its name"


def _class_token_in_the_middle(own: Tensor) -> Tensor:
    """Order of tokens, (B, M), that puts the one that `own`, (B, M), marks where the head looks for it."""
    at, rows = own.int().argmax(1, keepdim=True), torch.arange(own.shape[1], device=own.device)
    half = (own.shape[1] - 1) // 2
    patch = rows - (rows > half).int()
    return torch.where(rows == half, at, patch + (patch >= at))


class PrunedTokens(nn.Module):
    """The blocks of a Vim or PlainMamba as one module that makes tokens fewer, (B, N, C) to (B, M, C).

    Names of parameters are those of the blocks, so state dicts fit. A network that goes through it as through a list
    finds it alone in there: one by one, blocks drop nothing.

    Args:
        blocks: blocks of the network; they are shared, not copied.
        config: after which blocks tokens are dropped, and how many.
        class_token: whether a class token stands in the middle of the patches.
    """

    def __init__(self, blocks: nn.Module, config: ToPViM, *, class_token: bool) -> None:
        super().__init__()
        self.config, self.own = config, int(class_token)
        for name, block in blocks.named_children():
            self.add_module(name, block)
        self.train(blocks.training)

    def __iter__(self) -> Iterator[nn.Module]:
        yield self

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        batch, length = tokens.shape[:2]
        middle, routes = (length - self.own) // 2, recorded()
        places = torch.arange(length, device=tokens.device).expand(batch, -1)
        gone, blocks_on, counts = False, torch.zeros(batch, length, device=tokens.device), []
        for number, module in enumerate(self._modules.values(), 1):
            block: Any = module
            count = places.shape[1]
            if routes is not None:
                counts.append(float(count))
                blocks_on = routed(lambda blocks: blocks + 1, blocks_on, places)
            drops = self.config.keep < 1 and number in self.config.after
            if not (drops or gone):
                tokens = block(tokens, size)
                continue
            out, y = mix(block.mixer, block.norm(tokens), places, size, length, self.config.align)
            tokens = tokens + block.drop_path(out)
            if drops:
                score = score_tokens(y)
                if self.own:
                    score = score.masked_fill(places == middle, torch.inf)
                # `gather.kept` in what ONNX has for free sizes; less a little, because 0.07 · 100 is above 7
                chosen = top(score, self.own + math.ceil(self.config.keep * (count - self.own) - 1e-6))
                places, tokens, gone = places.gather(1, chosen), take(tokens, chosen), True
        if routes is not None:
            work = blocks_on[:, torch.arange(length) != middle] if self.own else blocks_on
            work = work.view(batch, *size).cpu() / len(counts)
            routes.append(Route(work.numpy(), tuple(counts), (float(length),) * len(counts)))
        if self.own and gone:
            tokens = take(tokens, _class_token_in_the_middle(places == middle))
        return tokens


def _tiny(seed: int) -> nn.Module:
    from foveal.models.backbone.vim import vim

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return vim(8, 3, 2, 4, num_classes=3)


METHOD = Method(
    id=279,
    name="ToP-ViM",
    kind="transform",
    summary="Tokens of a state-space network are dropped on its way and its state decays as if they were still there.",
    cases={
        "vim": Transform(
            ToPViM(after=(1, 2), keep=0.6).apply,
            _tiny,
            lambda seed: torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(seed)),
            ToPViM(after=(1, 2), keep=1.0).apply,
            tolerance=0.0,
            twice="model drops tokens already",
        )
    },
    paper=Paper("Exploring Token Pruning in Vision State Space Models", "Z. Zhan et al.", 2024, "arXiv:2409.18962"),
)
