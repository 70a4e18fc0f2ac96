"""Dynamic-LLaVA: behind layer 2 a learnt predictor drops visual tokens, another the written words that nobody needs.

*Source*: W. Huang et al., "Dynamic-LLaVA: Efficient Multimodal Large Language Models via Dynamic Vision-language
Context Sparsification", ICLR 2025 (arXiv:2412.00876), section 3. With x the tokens that enter layer K = 2,

    image:  z = blocks(GELU(Linear(LN(x))));  s = MLP([local half of z_i, mean of the other half]), (B, M, 2)
    text:   s = MLP(LN(x)), (B, N, 2)
    kept    prefill: the visual tokens with the `keep` highest log softmax(s)₀;  written words: those with s₀ > s₁

    training:  π = straight-through Gumbel(log softmax(s), τ)₀, τ = 1 · 0.1^(share of the training), π = 1 elsewhere
               attention of layers K and up = exp(a_ij) π_ij / Σ_j exp(a_ij) π_ij, where π_ij = π_j and π_ii = 1
               loss + 100 · (mean (keep − mean π_image)² + mean (text − mean π_text)²)

In the prefill, dropped visual tokens end at layer K. With a cache, a written word passes through all layers and sees
itself; if it is dropped, its keys and values leave the caches of layers K and up, which by then hold fewer words than
were written. Without a cache, dropped words end at layer K as visual tokens do, and the last word stays.

Shapes: B batch, N tokens, M visual ones, C channels.

*Differs from the paper*: exp(a) π is exp(a + log(π + 10⁻⁶)), a mask that any attention takes; its gradient is the same.
All visual tokens of a prompt are ranked together, where the authors have one picture; attention of the image predictor
leaves out padding. Rows of a batch decide for themselves. The predictor for instructions, off in the paper, is absent.
*Provenance*: written from the paper; sizes, rates, the schedule and what is kept when as in the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Transform
from foveal.record import Method, Paper
from foveal.vlm.hooks import Accelerated, shortenable
from foveal.vlm.ledger import assemble, shorten_layer, take
from foveal.vlm.method import Cut, Seen, VlmError, count, share, top
from foveal.vlm.tiny import applied, question, reader

if TYPE_CHECKING:
    from collections.abc import Callable

    from foveal.vlm.families import Parts
    from foveal.vlm.hooks import _Pass

__all__ = ["Dynamic", "DynamicLLaVA", "ImagePredictor", "Predictors", "rate_loss", "sampled", "temperature", "unseen"]


def temperature(done: float, *, first: float = 1.0, last: float = 0.1) -> float:
    """Temperature of the sampling, τ.

    Args:
        done: share of the training that is over, in [0, 1].
        first: τ at its start.
        last: τ at its end.

    Returns:
        τ, falling geometrically.
    """
    return float(first * (last / first) ** done)


def sampled(logits: Tensor, tau: float) -> Tensor:
    """Draw which tokens stay; gradients are those of the relaxed draw.

    Args:
        logits: for staying and for going, (B, N, 2).
        tau: temperature, above 0.

    Returns:
        1 for tokens that stay and 0 for others, (B, N).
    """
    return F.gumbel_softmax(logits.log_softmax(-1), tau=tau, hard=True)[..., 0]


def unseen(kept: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Mask that weighs each token's attention by whether it stays; every token sees itself.

    Args:
        kept: π, (B, N).
        eps: added to π, so that dropped tokens get gradients.

    Returns:
        What is added to query–key products, (B, N, N).
    """
    own = torch.eye(kept.shape[1], dtype=torch.bool, device=kept.device)
    return (kept + eps).log()[:, None].masked_fill(own, 0.0)


def rate_loss(kept: Tensor, among: Tensor, rate: float) -> Tensor:
    """Squared distance of the share that stays from what is wanted.

    Args:
        kept: π, (B, N).
        among: tokens that are counted, (B, N); rows without any are left out.
        rate: share that is wanted.

    Returns:
        Mean over rows, a scalar.
    """
    number = among.sum(1)
    shares = (kept * among).sum(1) / number.clamp(min=1)
    return ((rate - shares) ** 2 * (number > 0)).sum() / (number > 0).sum().clamp(min=1)


def _mlp(*dims: int) -> nn.Sequential:
    """Linear layers with GELU between them."""
    layers: list[nn.Module] = []
    for ins, outs in pairwise(dims):
        layers += [nn.Linear(ins, outs), nn.GELU()]
    return nn.Sequential(*layers[:-1])


class _Block(nn.Module):
    """Attention and MLP, each behind a LayerNorm, (B, M, C) to the same; `real`, (B, M), is seen."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj, self.mlp = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), _mlp(dim, 4 * dim, dim)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        # (3, B, heads, M, D)
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        own = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)  # so that padding sees something
        seen = F.scaled_dot_product_attention(q, k, v, (real[:, None] | own)[:, None])
        x = x + self.proj(seen.transpose(1, 2).flatten(2))
        grown: Tensor = x + self.mlp(self.norm2(x))
        return grown


class ImagePredictor(nn.Module):
    """Says of each visual token whether it stays: (B, M, C) to logits for staying and for going, (B, M, 2).

    Args:
        dim: C, of the language model.
        hidden: channels of the predictor, a multiple of 4 and of `num_heads`.
        num_heads: attention heads.
        depth: number of blocks.
    """

    def __init__(self, dim: int, *, hidden: int = 512, num_heads: int = 8, depth: int = 2) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU())
        self.blocks = nn.ModuleList(_Block(hidden, num_heads) for _ in range(depth))
        self.leave = _mlp(hidden, hidden // 2, hidden // 4, 2)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x, real)
        own, others = x.chunk(2, 2)
        mean = (others * real[..., None]).sum(1, keepdim=True) / real.sum(1)[:, None, None].clamp(min=1)
        logits: Tensor = self.leave(torch.cat((own, mean.expand_as(own)), 2))
        return logits


class Predictors(nn.Module):
    """What is learnt: `image`, an `ImagePredictor`, and `text`, an MLP that says of each word whether it stays.

    Args:
        dim: C, of the language model: 4,096 for LLaVA-1.5-7B.
        hidden: channels of the predictors.
        num_heads: attention heads of the image predictor.
    """

    def __init__(self, dim: int, *, hidden: int = 512, num_heads: int = 8) -> None:
        super().__init__()
        self.image = ImagePredictor(dim, hidden=hidden, num_heads=num_heads)
        self.text = nn.Sequential(nn.LayerNorm(dim), *_mlp(dim, hidden, hidden // 2, hidden // 4, 2))

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def of_image(self, hidden: Tensor, visual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the visual tokens.

        Args:
            hidden: tokens, (B, N, C).
            visual: which of them are visual, (B, N).

        Returns:
            Logits, (B, M, 2), with M the most visual tokens of a row; places of the tokens, (B, M); which of these are
            visual, and not the filling of short rows, (B, M).
        """
        rows, held = assemble(visual, ~visual)
        held = torch.ones_like(rows, dtype=torch.bool) if held is None else held
        return self.image(take(hidden, rows).to(self._dtype), held), rows, held

    def of_text(self, hidden: Tensor) -> Tensor:
        """Logits of words.

        Args:
            hidden: tokens, (B, N, C).

        Returns:
            (B, N, 2).
        """
        logits: Tensor = self.text(hidden.to(self._dtype))
        return logits


class Dynamic(Accelerated):
    """A model that drops visual tokens and written words as predictors say; made by `accelerate`.

    While the model is in training mode it reads everything under the mask of what was drawn, and needs `labels` to know
    which words it is to write, those that are not −100. Set `tau` before each step, and add `penalty` to the loss.
    """

    method: DynamicLLaVA
    tau: float = 1.0
    penalty: Tensor  # of the last training pass, a scalar
    prompt: int | None = None  # tokens of the prompt, set by who writes without a cache; what follows may be dropped

    def _install(self) -> None:
        if self.method.predictors is None:
            raise VlmError(
                "Dynamic-LLaVA needs predictors that were trained with the model, got none; give predictors=Predictors"
                f"({self.parts.decoder.config.hidden_size}) with their weights, or take fastv, which needs no training"  # type: ignore[union-attr]
            )
        super()._install()
        self._handles.append(self.model.register_forward_pre_hook(self._before_model, with_kwargs=True))
        self._labels: Tensor | None = None
        self._mask: Tensor | None = None  # of a training pass, (B, 1, N, N)
        self._decided: Tensor | None = None  # of the word that is read, (B, 1)
        self._stayed: list[Tensor] = []

    @property
    def written(self) -> Tensor:
        """Which of the words read from a cache since the last prompt stayed, (B, words)."""
        return torch.cat(self._stayed, 1) if self._stayed else torch.zeros(0, 0, dtype=torch.bool)

    def _before_model(self, _: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._labels = kwargs.get("labels")

    def _begin(self, hidden: Tensor, kwargs: dict[str, Any]) -> _Pass:
        run = super()._begin(hidden, kwargs)
        self._mask = self._decided = None
        if hidden.shape[1] > 1:
            self._stayed.clear()
            run.cuts = run.cuts or self.parts.decoder.training or (run.cache is None and self.prompt is not None)
        return run

    def _before_layer(self, number: int) -> Callable[..., Any]:
        cut, method = super()._before_layer(number), self.method

        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            changed, run = cut(layer, args, kwargs), self._run
            if run is None or number < method.layer:
                return changed
            if self._mask is not None:
                return args, {**kwargs, "attention_mask": _added(kwargs.get("attention_mask"), self._mask)}
            hidden: Tensor = args[0] if args else kwargs["hidden_states"]
            writes = hidden.shape[1] == 1 and run.cache is not None and run.ledger.past > 0
            if number == method.layer and writes and method.text < 1 and not self.parts.decoder.training:
                assert method.predictors is not None
                self._decided = method.predictors.of_text(hidden).argmax(2) == 0
            return changed

        return hook

    def _drop(self, run: _Pass, index: int, hidden: Tensor) -> Tensor:
        """Tokens that go on after the cut: all of them in training, under a mask."""
        if self.parts.decoder.training:
            self._mask = self._weighed(run, hidden)[:, None].to(hidden.dtype)
            return hidden
        seen, chosen = self._chosen(run, index, hidden)
        stays = (~seen.visual | chosen) & seen.real
        if run.cache is None and self.prompt is not None and self.method.text < 1:
            assert self.method.predictors is not None
            told = self.method.predictors.of_text(hidden).argmax(2) == 0
            told[:, : self.prompt] = told[:, -1] = True
            stays = stays & (told | seen.visual)
        if torch.equal(stays, seen.real):
            return hidden
        rows, held = assemble(stays, ~seen.real)
        run.ledger.cut(index + 1, seen.places.gather(1, rows), held)
        return take(hidden, rows)

    def _weighed(self, run: _Pass, hidden: Tensor) -> Tensor:
        """Mask of what is drawn in a training pass, (B, N, N), and its penalty."""
        method, visual = self.method, run.visual & run.real
        assert method.predictors is not None
        kept = torch.ones_like(visual, dtype=torch.float32)
        if visual.any():
            logits, rows, held = method.predictors.of_image(hidden, visual)
            drawn = sampled(logits.float(), self.tau)
            kept = kept.scatter(1, rows, torch.where(held, drawn, 1.0))
        told = torch.zeros_like(visual)
        if self._labels is not None and method.text < 1:
            told = (self._labels != -100) & run.real & ~visual
            told = told & (told.sum(1, keepdim=True) >= method.shortest)
            kept = torch.where(told, sampled(method.predictors.of_text(hidden).float(), self.tau), kept)
        self.penalty = method.weight * (rate_loss(kept, visual, method.keep) + rate_loss(kept, told, method.text))
        return unseen(kept)

    def _after_decoder(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        run, decided = self._run, self._decided
        output = super()._after_decoder(module, args, output)
        self._mask = self._decided = None
        if run is not None and decided is not None:
            self._forget(run, decided)
        return output

    def _forget(self, run: _Pass, decided: Tensor) -> None:
        """Take a word that was read, and is dropped, from the caches of layers K and up."""
        self._stayed.append(decided)
        ledger, stage = run.ledger, run.ledger.stages[-1]
        slots = stage.slots
        if slots is None:
            slots = torch.arange(ledger.seen, device=decided.device).expand(decided.shape[0], -1)
        stays = torch.ones_like(slots, dtype=torch.bool) if stage.valid is None else stage.valid.clone()
        stays[:, -1:] &= decided.to(stays.device)
        if bool(stays.all()):
            return
        shortenable(run.cache)
        rows, held = assemble(stays, ~stays)
        stage.slots, stage.valid = slots.gather(1, rows), held
        if rows.shape[1] < slots.shape[1]:
            for number, layer in enumerate(self.stages):
                if layer:
                    shorten_layer(run.cache.layers[number], rows)


def _added(mask: Tensor | None, more: Tensor) -> Tensor:
    """Causal mask of transformers, (B, 1, N, N), boolean, added or None, with something added."""
    if mask is None:
        mask = torch.ones(more.shape[-2:], dtype=torch.bool, device=more.device).tril()[None, None]
    if mask.dim() != 4:
        raise VlmError("Dynamic-LLaVA trains with masks of four axes, as sdpa and eager attention take them; set sdpa")
    if mask.dtype == torch.bool:
        return more.masked_fill(~mask, torch.finfo(more.dtype).min)
    return more + mask


@dataclass(frozen=True)
class DynamicLLaVA:
    """Dynamic-LLaVA.

    Args:
        keep: share of the visual tokens that stays, in (0, 1].
        predictors: what was trained with the model; None is refused when a model is accelerated.
        text: share of the written words that training aims at, in (0, 1]; 1 keeps them all.
        layer: number of layers that read everything, K, at least 1.
        shortest: number of words from which an answer's words are dropped in training.
        weight: factor on the distances of both shares.

    Raises:
        VlmError: a number outside its range.
    """

    keep: float = 0.2
    predictors: Predictors | None = field(default=None, repr=False)
    text: float = 0.5
    layer: int = 2
    shortest: int = 50
    weight: float = 100.0

    def __post_init__(self) -> None:
        share(self.keep)
        if not 0 < self.text <= 1:
            raise VlmError(f"text must be in (0, 1], got {self.text}; 0.5 drops half of the written words, 1 none")
        if self.layer < 1:
            raise VlmError(
                f"layer must be at least 1, got {self.layer}; the predictors read what layers made of tokens"
            )

    def cuts(self, depth: int) -> tuple[Cut, ...]:  # noqa: ARG002 - the same for every depth
        """Where tokens go.

        Args:
            depth: number of layers of the decoder.

        Returns:
            One cut, after K layers.
        """
        return (Cut(self.layer),)

    def choose(self, seen: Seen, cut: int) -> Tensor:  # noqa: ARG002 - there is one
        """Which visual tokens stay.

        Args:
            seen: what there is to read.
            cut: number of the cut.

        Returns:
            Mask, (B, N).
        """
        assert self.predictors is not None
        if self.keep >= 1 or not seen.visual.any():
            return seen.visual
        logits, rows, held = self.predictors.of_image(seen.hidden, seen.visual)
        score = logits.float().log_softmax(2)[..., 0].masked_fill(~held, -torch.inf)
        whole = score.new_full(seen.visual.shape, -torch.inf).scatter(1, rows, score)
        return top(whole, seen.visual, count(seen.total, self.keep))

    def accelerated(self, model: nn.Module, parts: Parts) -> Dynamic:
        """Hooks of a model.

        Args:
            model: model of transformers.
            parts: where its parts are.

        Returns:
            The handle.
        """
        return Dynamic(model, self, parts)


def _untrained(dim: int = 32) -> Predictors:
    """Predictors of random weights, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Predictors(dim, hidden=16, num_heads=2).eval()


METHOD = Method(
    id=2,
    name="Dynamic-LLaVA",
    kind="transform",
    summary="Learnt predictors drop visual tokens behind the second layer, and written words from its caches.",
    cases={
        "llava": Transform(
            applied(DynamicLLaVA(predictors=_untrained(), layer=1)),
            reader,
            question,
            applied(DynamicLLaVA(1.0, _untrained(), text=1.0, layer=1)),
            tolerance=0.0,
            twice="is accelerated already",
        )
    },
    paper=Paper(
        "Dynamic-LLaVA: Efficient Multimodal Large Language Models via Dynamic Vision-language Context Sparsification",
        "W. Huang et al.",
        2024,
        "arXiv:2412.00876",
    ),
)
