"""ZipVL: each layer attends among the tokens that carry most of its attention, and stores the others in fewer bits.

*Source*: Y. He et al., "ZipVL: Efficient Large Vision-Language Models with Dynamic Token Sparsification and KV Cache
Compression", 2024 (arXiv:2410.08584, version 1), section 4 and Algorithm 1. A few probe tokens, the last ones and
random ones, tell for each layer how much attention every token receives:

    A = mean over heads of softmax(Q_probes Kᵀ·scale), (P, N);   a_j = Σ_i A_ij;   ã_j = a_j / probes that see j
    p = the smallest number of tokens whose a_j, in falling order, add up to τ Σ_j a_j
    T = the p tokens of highest ã_j;  O[T] = attention of Q[T], K[T], V[T];  K, V: T in b_h bits, the others in b_l

    bytes of a layer's K and V = Σ over T and the others: 2 n G D b / 8, and the constants of the integers:
        a step and an offset for each channel of K, and for each token and head of V

Shapes: B batch, N tokens, P probes, H heads of queries, G heads of keys, D channels of a head. The cache is
`foveal.vlm.mixed_bits`.

*Differs from the paper*: only its abstract, Algorithm 1 and tables were read. Words are always among T, so that the
last token, which answers, attends in every layer. Tokens outside T get nothing from a layer's attention and go on. New
tokens stay in full precision, where the paper compresses them every hundred. With τ = 1 the cache is left alone too.
*Provenance*: written from the paper; the authors published no code.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F

from foveal.cases import Transform
from foveal.record import Method, Paper
from foveal.vlm.hooks import Accelerated
from foveal.vlm.method import Cut, Seen, VlmError, share
from foveal.vlm.mixed_bits import WHOLE, mixed_layer
from foveal.vlm.route import Route
from foveal.vlm.tiny import applied, question, reader

if TYPE_CHECKING:
    from torch import Tensor, nn

    from foveal.vlm.families import Parts

__all__ = ["ZipVL", "Zipped", "important", "received"]

_NAME = "foveal_zipvl"


def received(queries: Tensor, keys: Tensor, *, probes: Tensor, sees: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Attention that the tokens of one sequence receive from its probes.

    Args:
        queries: queries, (H, N, D).
        keys: keys, (G, N, D); each serves H / G queries.
        probes: places of the probes, (P,).
        sees: which tokens each probe may attend to, at least one, (P, N).
        scaling: factor on the products.

    Returns:
        Sums over the probes, a, and means over the probes that see a token, ã, (N,) each.
    """
    # (G, H / G, P, D) and (G, 1, D, N) to (H, P, N)
    asked = queries[:, probes].unflatten(0, (keys.shape[0], -1)).float()
    scores = (asked @ keys.float().mT[:, None] * scaling).flatten(0, 1)
    total = scores.masked_fill(~sees, -torch.inf).softmax(2).mean(0).sum(0)
    return total, total / sees.sum(0).clamp(min=1)


def important(total: Tensor, mean: Tensor, threshold: float) -> Tensor:
    """The tokens that are attended to.

    Args:
        total: attention that each token receives, a, (N,).
        mean: the same for each probe that sees it, ã, (N,).
        threshold: share of the attention that as many tokens must carry, τ in (0, 1].

    Returns:
        Mask, (N,).
    """
    if threshold >= 1:
        return torch.ones_like(total, dtype=torch.bool)
    carried = total.sort(descending=True).values.cumsum(0)
    number = int((carried < threshold * carried[-1]).sum()) + 1
    chosen = torch.zeros_like(total, dtype=torch.bool)
    chosen[mean.argsort(descending=True, stable=True)[:number]] = True
    return chosen


_HANDLES: WeakKeyDictionary[nn.Module, tuple[Zipped, int]] = WeakKeyDictionary()


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> Any:
    """Attention of one layer, as transformers calls it: (B, N, H, D), and no weights."""
    handle, number = _HANDLES[module]
    chosen = handle.choose(number, query, key, attention_mask, float(options.get("scaling") or query.shape[-1] ** -0.5))
    if chosen is None:
        return handle.dense(module, query, key, value, attention_mask, **options)
    batch, heads, length, _ = query.shape
    out = query.new_zeros(batch, length, heads, value.shape[3])
    for row, mask in enumerate(chosen):
        rows = mask.nonzero()[:, 0]
        seen = None
        if attention_mask is not None and attention_mask.dim() == 4:
            seen = attention_mask[row % len(attention_mask), :, rows][:, :, rows][None]
        q, k, v = (x[row : row + 1].index_select(2, rows) for x in (query, key, value))
        made = F.scaled_dot_product_attention(
            q, k, v, seen, is_causal=seen is None, scale=options.get("scaling"), enable_gqa=key.shape[1] != heads
        )
        out[row, rows] = made[0].transpose(0, 1)
    return out, None


class Zipped(Accelerated):
    """A model whose layers attend sparsely during a prefill and store it in few bits; made by `accelerate`."""

    method: ZipVL

    def _install(self) -> None:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        if _NAME not in ALL_ATTENTION_FUNCTIONS:
            ALL_ATTENTION_FUNCTIONS.register(_NAME, _attend)
        super()._install()
        self._chosen_by: dict[int, Tensor] = {}
        self._configs: list[tuple[Any, Any]] = []
        for number, attention in enumerate(self.parts.attentions):
            layer: Any = attention
            self._configs.append((layer, layer.config))
            layer.config = copy.copy(layer.config)  # layers share their config
            layer.config._attn_implementation = _NAME
            _HANDLES[attention] = self, number

    def restore(self) -> nn.Module:
        """Take everything off.

        Returns:
            The model as it was; a cache that was filled meanwhile still works.
        """
        for layer, config in self._configs:
            layer.config = config
            _HANDLES.pop(layer, None)
        self._configs.clear()
        return super().restore()

    def dense(self, module: nn.Module, *given: Any, **options: Any) -> Any:
        """Attention as the model has it.

        Args:
            module: attention of a layer.
            *given: queries, keys, values and mask.
            **options: what the kernel gets besides.

        Returns:
            What the kernel returns.
        """
        import sys

        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        config = self._configs[_HANDLES[module][1]][1]
        return ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager)(module, *given, **options)

    @torch.no_grad()
    def choose(self, number: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor | None:
        """Tokens among which a layer attends.

        Args:
            number: number of the layer.
            query: queries, (B, H, N, D).
            key: keys, (B, G, L, D).
            mask: mask of transformers, (B, 1, N, L), or None for causal attention.
            scaling: factor on the products.

        Returns:
            Mask, (B, N); None for dense attention, which every call but a first prefill with pictures gets.
        """
        run, method = self._run, self.method
        if run is None or not run.cuts or run.ledger.past or method.keep >= 1:
            return None
        length = query.shape[2]
        order = torch.arange(length, device=query.device)
        chosen = ~run.visual & run.real
        for row in range(query.shape[0]):
            probes = method.probe(run.real[row])
            if mask is not None and mask.dim() == 4:
                sees = mask[row % len(mask), 0, probes, :length]
                sees = sees if sees.dtype == torch.bool else sees == 0
            else:
                sees = order <= probes[:, None]
            total, mean = received(
                query[row], key[row, :, :length], probes=probes, sees=sees & run.real[row], scaling=scaling
            )
            chosen[row] |= important(total, mean, method.keep) & run.real[row]
        self._chosen_by[number] = chosen
        return chosen

    def _after_decoder(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        run, chosen, self._chosen_by = self._run, self._chosen_by, {}
        output = super()._after_decoder(module, args, output)
        if run is None or not chosen:
            return output
        layers: Any = getattr(run.cache, "layers", ())
        for number, mask in chosen.items():
            if number < len(layers) and type(layers[number]).__name__ == "DynamicLayer":
                held = layers[number]
                layers[number] = mixed_layer()(held.keys, held.values, mask, run.real, self.method.bits)
        masks = [chosen[number] for number in sorted(chosen)]
        tokens = tuple(int(mask.sum(1).max()) for mask in masks)
        visual = tuple(tuple((mask & run.visual).sum(1).tolist()) for mask in masks)
        self.route = Route(tokens, visual, (run.visual.shape[1],) * len(masks))
        return output


@dataclass(frozen=True)
class ZipVL:
    """ZipVL.

    Args:
        keep: share of each layer's attention that its important tokens carry, τ in (0, 1]; the paper takes 0.96 to
            0.975. 1 leaves the model as it is.
        bits: bits of the important tokens' keys and values, b_h, and of the others', b_l: 1, 2, 4 or 8; 16 stores them
            as they are.
        probes: number of last tokens, and of random ones, that tell what is important.
        seed: seed of the random ones.

    Raises:
        VlmError: a number outside its range.
    """

    keep: float = 0.975
    bits: tuple[int, int] = (4, 2)
    probes: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        share(self.keep)
        if len(self.bits) != 2 or not set(self.bits) <= {1, 2, 4, 8, WHOLE}:
            raise VlmError(f"bits must be two of 1, 2, 4, 8 and 16, got {self.bits}; the paper takes (4, 2)")
        if self.probes < 1:
            raise VlmError(f"probes must be at least 1, got {self.probes}; 64 are enough for thousands of tokens")

    def cuts(self, depth: int) -> tuple[Cut, ...]:  # noqa: ARG002 - the same for every depth
        """Where tokens go.

        Args:
            depth: number of layers of the decoder.

        Returns:
            Nowhere: every layer chooses for itself.
        """
        return ()

    def choose(self, seen: Seen, cut: int) -> Tensor:  # noqa: ARG002 - there is none
        """Which visual tokens stay.

        Args:
            seen: what there is to read.
            cut: number of the cut.

        Returns:
            All of them, (B, N).
        """
        return seen.visual

    def probe(self, real: Tensor) -> Tensor:
        """Places of the probes.

        Args:
            real: tokens that are no padding, (N,).

        Returns:
            Places, ascending, (P,): the last tokens and random ones among the others; all if there are few.
        """
        places = real.nonzero()[:, 0]
        before, last = places[: -self.probes], places[-self.probes :]
        order = torch.randperm(len(before), generator=torch.Generator().manual_seed(self.seed))[: self.probes]
        return torch.cat((before[order.sort().values.to(before.device)], last))

    def accelerated(self, model: nn.Module, parts: Parts) -> Zipped:
        """Hooks of a model.

        Args:
            model: model of transformers.
            parts: where its parts are.

        Returns:
            The handle.
        """
        return Zipped(model, self, parts)


METHOD = Method(
    id=118,
    name="ZipVL",
    kind="transform",
    summary="Each layer attends among the tokens that carry most of its attention; the cache holds others in few bits.",
    cases={
        "llava": Transform(
            applied(ZipVL(keep=0.8)),
            reader,
            question,
            applied(ZipVL(keep=1.0)),
            tolerance=0.0,
            twice="is accelerated already",
        )
    },
    paper=Paper(
        "ZipVL: Efficient Large Vision-Language Models with Dynamic Token Sparsification and KV Cache Compression",
        "Y. He et al.",
        2024,
        "arXiv:2410.08584",
    ),
)
