"""SmartTrim: an encoder of words and pictures drops tokens and heads in each layer, as many as an input can spare.

*Source*: Z. Wang et al., "SmartTrim: Adaptive Tokens and Attention Pruning for Efficient Vision-Language Models",
LREC-COLING 2024 (arXiv:2305.15033), section 3. Before each layer, for the tokens x of one modality with the first
tokens c, its own, and ĉ, the other modality's:

    token trimmer   s_i = (MLP(z_i) + ⟨z_i / |z_i|, G [c, ĉ] / |G [c, ĉ]|⟩ · w) / 2,  z = Linear(LN(x)), s (B, N, 2)
    head trimmer    s = MLP(LN([c, ĉ])), (B, 2 H, 2), for the H heads of self- and of cross-attention
    kept            s₀ > s₁; a token that went stays away; the first one always stays

    training   π = straight-through Gumbel(log softmax(s))₀; tokens weigh exp(a) π in attention, heads' outputs π
               loss = task(trimmed) + task(full) + KL(full ‖ trimmed) + β ((γ − π̄_tokens)² + (γ − π̄_heads)²)
               γ falls from 1 to the budget in the first part of the training

π̄ is a mean over a batch and all layers, so that hard inputs may keep more and easy ones less. A batch is computed in
groups of inputs that keep about as many tokens, each as long as its longest and without the heads that none of it uses.

Shapes: B batch, N tokens of a modality, C channels, H heads, D channels of a head.

*Differs from the paper*: only its abstract and descriptions of it could be read, and the authors' repository cannot be
had, so that the form of the scores, of the ramp of γ and of the loss's weights is foveal's own. The encoder is small
and foveal's own too: two streams, each layer self-attention, attention to the other stream, MLP.
*Provenance*: written from the abstract and summaries of the paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Transform
from foveal.record import Method, Paper
from foveal.vlm.dynamic_llava import sampled
from foveal.vlm.ledger import assemble, take
from foveal.vlm.method import VlmError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CrossEncoder", "HeadTrimmer", "TokenTrimmer", "Trimmed", "budget", "loss", "smart_trim"]


def budget(done: float, target: float, *, ramp: float = 0.5) -> float:
    """Share that is aimed at, γ.

    Args:
        done: share of the training that is over, in [0, 1].
        target: γ in the end.
        ramp: share of the training in which γ falls.

    Returns:
        γ, falling linearly from 1.
    """
    return 1 - (1 - target) * min(1.0, done / ramp)


class _Attention(nn.Module):
    """Attention of tokens (B, N, C) to others (B, M, C), whose keys (B, M) and heads (B, H) may have weights.

    With boolean heads, the weights of those that no row uses are left out of the computation.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, others: Tensor, keys: Tensor | None = None, heads: Tensor | None = None) -> Tensor:
        number, size = self.num_heads, x.shape[2] // self.num_heads
        q: tuple[Tensor, Tensor] = self.q.weight, self.q.bias
        kv: tuple[Tensor, Tensor] = self.kv.weight, self.kv.bias
        mixed: Tensor = self.proj.weight
        if heads is not None and heads.dtype == torch.bool:
            used = heads.any(0)
            chosen, heads = used.nonzero()[:, 0], None if bool((heads == used).all()) else heads[:, used]
            number = len(chosen)
            if not number:
                return self.proj.bias.expand_as(x)
            if number < self.num_heads:
                rows = (chosen[:, None] * size + torch.arange(size, device=x.device)).flatten()
                both = torch.cat((rows, rows + x.shape[2]))
                q, kv, mixed = (q[0][rows], q[1][rows]), (kv[0][both], kv[1][both]), mixed[:, rows]
        # (B, H, N, D)
        queries = F.linear(x, *q).unflatten(2, (number, size)).transpose(1, 2)
        k, v = (part.unflatten(2, (number, size)).transpose(1, 2) for part in F.linear(others, *kv).chunk(2, 2))
        mask = None
        if keys is not None:
            mask = (keys if keys.dtype == torch.bool else (keys + 1e-6).log())[:, None, None]
        out = F.scaled_dot_product_attention(queries, k, v, mask).transpose(1, 2)
        if heads is not None:
            out = out * heads[:, None, :, None]
        return F.linear(out.flatten(2), mixed, self.proj.bias)


class _Layer(nn.Module):
    """One layer of one stream: attention to itself and to the other stream, and an MLP, each behind a LayerNorm."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(4))
        self.own, self.cross = _Attention(dim, num_heads), _Attention(dim, num_heads)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.GELU(), nn.Linear(mlp_ratio * dim, dim))

    def forward(
        self, x: Tensor, other: Tensor, keys: Tensor | None, others: Tensor | None, heads: Tensor | None
    ) -> Tensor:
        first, second = (None, None) if heads is None else heads.chunk(2, 1)
        normed = self.norms[0](x)
        x = x + self.own(normed, normed, keys, first)
        x = x + self.cross(self.norms[1](x), self.norms[2](other), others, second)
        grown: Tensor = x + self.mlp(self.norms[3](x))
        return grown


class CrossEncoder(nn.Module):
    """Answers questions about pictures: embedded words (B, T, C) and patches (B, N, C), to logits (B, num_classes).

    Args:
        words: module from questions to embedded words, without the first token.
        picture: module from pictures to embedded patches, likewise.
        dim: C.
        depth: number of layers.
        num_heads: H.
        num_classes: number of answers.
        mlp_ratio: width of the MLPs over C.
    """

    def __init__(
        self,
        words: nn.Module,
        picture: nn.Module,
        *,
        dim: int,
        depth: int,
        num_heads: int,
        num_classes: int,
        mlp_ratio: int = 4,
    ) -> None:
        super().__init__()
        self.embeds = nn.ModuleList((words, picture))
        self.firsts = nn.ParameterList(nn.Parameter(0.02 * torch.randn(1, 1, dim)) for _ in range(2))
        self.layers = nn.ModuleList(
            nn.ModuleList(_Layer(dim, num_heads, mlp_ratio) for _ in range(2)) for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(2 * dim), nn.Linear(2 * dim, num_classes)
        self.dim, self.num_heads = dim, num_heads

    def embed(self, given: tuple[Tensor, Tensor]) -> list[Tensor]:
        """Tokens of both modalities, each behind a first token of its own.

        Args:
            given: questions and pictures.

        Returns:
            (B, T + 1, C) and (B, N + 1, C).
        """
        made = [embed(part) for embed, part in zip(self.embeds, given, strict=True)]
        return [torch.cat((c.expand(len(x), -1, -1), x), 1) for c, x in zip(self.firsts, made, strict=True)]

    def answer(self, streams: list[Tensor]) -> Tensor:
        """Logits from the first tokens of both streams.

        Args:
            streams: tokens behind the last layer.

        Returns:
            (B, num_classes).
        """
        logits: Tensor = self.head(self.norm(torch.cat([x[:, 0] for x in streams], 1)))
        return logits

    def forward(self, given: tuple[Tensor, Tensor]) -> Tensor:
        streams = self.embed(given)
        layers: Any = self.layers
        for layer in layers:
            streams = [layer[i](streams[i], streams[1 - i], None, None, None) for i in range(2)]
        return self.answer(streams)


class TokenTrimmer(nn.Module):
    """Logits for keeping and for dropping each token, (B, N, C) and both first tokens to (B, N, 2).

    Args:
        dim: C.
        hidden: channels in which tokens are compared.
    """

    def __init__(self, dim: int, *, hidden: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden))
        self.local = nn.Sequential(nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 2))
        self.guide = nn.Sequential(nn.LayerNorm(2 * dim), nn.Linear(2 * dim, hidden))
        self.weight = nn.Parameter(torch.tensor([1.0, -1.0]))

    def forward(self, x: Tensor, both: Tensor) -> Tensor:
        z = self.enter(x)
        near = F.cosine_similarity(z, self.guide(both)[:, None], dim=2)
        logits: Tensor = (self.local(z) + near[..., None] * self.weight) / 2
        return logits


class HeadTrimmer(nn.Module):
    """Logits for keeping and for dropping each head, from both first tokens, (B, 2 C), to (B, 2 H, 2).

    Args:
        dim: C.
        num_heads: H, of self-attention and of cross-attention each.
        hidden: channels in between.
    """

    def __init__(self, dim: int, num_heads: int, *, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.LayerNorm(2 * dim), nn.Linear(2 * dim, hidden), nn.GELU(), nn.Linear(hidden, 4 * num_heads)
        )

    def forward(self, both: Tensor) -> Tensor:
        logits: Tensor = self.mlp(both).unflatten(1, (-1, 2))
        return logits


class Trimmed(nn.Module):
    """An encoder with trimmers; made by `smart_trim`.

    In training mode `forward` draws what stays, computes everything under masks and leaves the shares in `shares`; in
    eval mode dropped tokens are not computed, nor are heads that no input of a group uses. A group holds `group` inputs
    that keep about as many tokens before the first layer. `full` is the encoder as it was.

    Args:
        encoder: encoder, which is trained along.
        hidden: channels of the trimmers.
        bias: of the logits for keeping; trimmers keep nearly everything at first.
    """

    tau: float = 1.0
    group: int = 32

    def __init__(self, encoder: CrossEncoder, *, hidden: int, bias: float) -> None:
        super().__init__()
        self.encoder = encoder
        depth, dim, heads = len(encoder.layers), encoder.dim, encoder.num_heads
        self.tokens = nn.ModuleList(
            nn.ModuleList(TokenTrimmer(dim, hidden=hidden) for _ in range(2)) for _ in range(depth)
        )
        self.heads = nn.ModuleList(
            nn.ModuleList(HeadTrimmer(dim, heads, hidden=hidden) for _ in range(2)) for _ in range(depth)
        )
        with torch.no_grad():
            for part in self.tokens.modules():
                if isinstance(part, TokenTrimmer):
                    part.local[-1].bias.copy_(torch.tensor([2 * bias, 0.0]))  # type: ignore[operator,union-attr]
            for part in self.heads.modules():
                if isinstance(part, HeadTrimmer):
                    part.mlp[-1].bias.copy_(torch.tensor([bias, 0.0]).repeat(2 * heads))  # type: ignore[operator,union-attr]
        self.shares: tuple[Tensor, Tensor] = torch.ones(1), torch.ones(1)  # tokens and heads, (B,) each

    def full(self, given: tuple[Tensor, Tensor]) -> Tensor:
        """Logits of the whole encoder.

        Args:
            given: questions and pictures.

        Returns:
            (B, num_classes).
        """
        logits: Tensor = self.encoder(given)
        return logits

    def masked(self, given: tuple[Tensor, Tensor], draw: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits from all tokens under masks: what training computes, and the reference of what eval mode computes.

        Args:
            given: questions and pictures.
            draw: from logits (B, n, 2) to what stays, (B, n), numbers or booleans.

        Returns:
            (B, num_classes); `shares` is set.
        """
        streams = self.encoder.embed(given)
        kept: list[Any] = [torch.ones_like(x[..., 0]) for x in streams]
        tokens, heads = [], []
        for layer, trim, behead in zip(self.encoder.layers, self.tokens, self.heads, strict=True):
            firsts = [x[:, 0] for x in streams]
            both = [torch.cat((firsts[i], firsts[1 - i]), 1) for i in range(2)]
            new = [draw(trim[i](streams[i], both[i])) for i in range(2)]  # type: ignore[index]
            kept = [torch.cat((old[:, :1], old[:, 1:] * now[:, 1:]), 1) for old, now in zip(kept, new, strict=True)]
            if new[0].dtype == torch.bool:
                kept = [part.bool() for part in kept]
            whose = [draw(behead[i](both[i])).to(firsts[0].dtype) for i in range(2)]  # type: ignore[index]
            streams = [layer[i](streams[i], streams[1 - i], kept[i], kept[1 - i], whose[i]) for i in range(2)]  # type: ignore[index]
            tokens.append(torch.cat(kept, 1).float())
            heads.append(torch.cat(whose, 1).float())
        self.shares = torch.stack(tokens).mean((0, 2)), torch.stack(heads).mean((0, 2))
        return self.encoder.answer(streams)

    def forward(self, given: tuple[Tensor, Tensor]) -> Tensor:
        if self.training:
            return self.masked(given, lambda logits: sampled(logits, self.tau))
        streams = self.encoder.embed(given)
        both = torch.cat((streams[1][:, 0], streams[0][:, 0]), 1)
        order = _hard(self.tokens[0][1](streams[1], both)).sum(1).argsort(stable=True)  # type: ignore[index]
        parts = [self._short([x[rows] for x in streams]) for rows in order.split(self.group)]
        logits, tokens, heads = (torch.cat(part)[order.argsort()] for part in zip(*parts, strict=True))
        self.shares = tokens, heads
        return logits

    def _short(self, streams: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits and shares from embedded tokens; what is dropped is not computed."""
        real: list[Tensor | None] = [None, None]  # rows keep unequal numbers of tokens
        whole = sum(x.shape[1] for x in streams)
        tokens, heads = streams[0].new_zeros(len(streams[0])), streams[0].new_zeros(len(streams[0]))
        for layer, trim, behead in zip(self.encoder.layers, self.tokens, self.heads, strict=True):
            firsts = [x[:, 0] for x in streams]
            both = [torch.cat((firsts[i], firsts[1 - i]), 1) for i in range(2)]
            for i in range(2):
                stays = _hard(trim[i](streams[i], both[i]))  # type: ignore[index]
                stays[:, 0] = True
                held = real[i]
                stays = stays if held is None else stays & held
                tokens += stays.sum(1)
                rows, real[i] = assemble(stays, ~stays)
                if rows.shape[1] < stays.shape[1]:
                    streams[i] = take(streams[i], rows)
            whose = [_hard(behead[i](both[i])) for i in range(2)]  # type: ignore[index]
            heads += torch.cat(whose, 1).sum(1)
            streams = [layer[i](streams[i], streams[1 - i], real[i], real[1 - i], whose[i]) for i in range(2)]  # type: ignore[index]
        depth = len(self.tokens)
        return self.encoder.answer(streams), tokens / (depth * whole), heads / (depth * 4 * self.encoder.num_heads)


def _hard(logits: Tensor) -> Tensor:
    """What stays when nothing is drawn, (B, n, 2) to (B, n)."""
    return logits[..., 0] > logits[..., 1]


def smart_trim(encoder: CrossEncoder, *, hidden: int = 32, bias: float = 3.0) -> Trimmed:
    """Give an encoder trimmers, which then have to be trained with `loss`.

    Args:
        encoder: encoder.
        hidden: channels of the trimmers.
        bias: of the logits for keeping at first.

    Returns:
        The encoder with trimmers.

    Raises:
        VlmError: something else than a `CrossEncoder`.
    """
    if not isinstance(encoder, CrossEncoder):
        raise VlmError(
            f"SmartTrim needs a CrossEncoder, whose layers it reaches into, got {type(encoder).__name__}; for models "
            "of transformers take accelerate"
        )
    return Trimmed(encoder, hidden=hidden, bias=bias)


def loss(
    model: Trimmed,
    given: tuple[Tensor, Tensor],
    answers: Tensor,
    *,
    share: float,
    weight: float = 10.0,
    distil: float = 1.0,
) -> Tensor:
    """Training loss of a batch.

    Args:
        model: model in training mode.
        given: questions and pictures.
        answers: right answers, (B,).
        share: γ, of tokens and of heads, see `budget`.
        weight: factor on the distance from it, β.
        distil: factor on the divergence from the whole encoder's answers; 0 leaves distillation out.

    Returns:
        A scalar.
    """
    whole, trimmed = model.full(given), model(given)
    made = F.cross_entropy(trimmed, answers) + F.cross_entropy(whole, answers)
    if distil:
        made = made + distil * F.kl_div(
            trimmed.log_softmax(1), whole.detach().log_softmax(1), reduction="batchmean", log_target=True
        )
    for part in model.shares:
        made = made + weight * (share - part.mean()) ** 2
    return made


def _tiny(seed: int) -> CrossEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        words, picture = nn.Embedding(9, 8), nn.Linear(6, 8)
        return CrossEncoder(words, picture, dim=8, depth=3, num_heads=2, num_classes=4)


def _apply(encoder: CrossEncoder, bias: float = 0.0) -> Trimmed:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return smart_trim(encoder, hidden=4, bias=bias)


def _given(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(9, (2, 5), generator=generator), torch.randn(2, 11, 6, generator=generator)


METHOD = Method(
    id=196,
    name="SmartTrim",
    kind="transform",
    summary="An encoder of words and pictures drops tokens and heads in each layer, as many as an input can spare.",
    cases={"cross_encoder": Transform(_apply, _tiny, _given, lambda model: _apply(model, 1e4), twice="needs a Cross")},
    paper=Paper(
        "SmartTrim: Adaptive Tokens and Attention Pruning for Efficient Vision-Language Models",
        "Z. Wang et al.",
        2024,
        "arXiv:2305.15033",
    ),
)
