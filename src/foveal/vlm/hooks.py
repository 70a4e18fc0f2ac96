"""Hooks that let an unmodified vision-language model of transformers drop visual tokens.

    before the language model    tokens do not enter the first layer
    inside it, at layer K        tokens end at the input of layer K
    in the cache                 the prefill runs whole, then its caches are shortened

Every token keeps its position (of one or of three axes), the caches of later layers are shorter in prefill and
decoding, and each layer's mask is cut to the tokens that the layer holds. The decoder's output has its full length
again, with zeros where tokens were dropped, so that logits and labels stay aligned.

Scores need queries and keys that fused attention does not give away: those of one layer are read where they enter it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet

import torch
from torch import Tensor, nn

from foveal.vlm.families import Family, Parts, find
from foveal.vlm.ledger import Ledger, assemble, follow, marked, shorten_layer, take, unpadded
from foveal.vlm.method import Cut, Reducer, Seen, VlmError, make
from foveal.vlm.route import Route
from foveal.vlm.tap import EnoughError, tapped

if TYPE_CHECKING:
    from collections.abc import Callable

    from foveal.vlm.tap import Tap

__all__ = ["Accelerated", "accelerate", "shortenable"]

_ACCELERATED: WeakSet[nn.Module] = WeakSet()


@dataclass
class _Pass:
    """One call of the decoder."""

    ledger: Ledger
    cache: Any  # None without one
    visual: Tensor  # (B, N)
    real: Tensor  # (B, N)
    width: Tensor  # (B, N)
    cuts: bool  # whether there is a visual token to drop
    taken: dict[int, tuple[Tensor, Tensor, float]] = field(default_factory=dict)  # queries and keys by layer


def _cached(kwargs: dict[str, Any]) -> Any:
    """The cache among a layer's arguments; its name changed in transformers 5.24."""
    return kwargs.get("cache", kwargs.get("past_key_values"))


def shortenable(cache: Any) -> None:
    """Refuse a cache whose layers cannot lose tokens.

    Args:
        cache: cache of transformers.

    Raises:
        VlmError: a quantised cache.
    """
    if any(hasattr(layer, "_quantized_keys") for layer in cache.layers):
        raise VlmError("a quantised cache cannot be shortened; use a dynamic or static one, or drop tokens at a layer")


class Accelerated:
    """A model whose hooks drop visual tokens; made by `accelerate`.

    Use it as a context manager, or call `restore`, to get the untouched model back.

    Args:
        model: model of transformers, with its language head.
        method: method.
        parts: where the model's parts are.

    Raises:
        VlmError: a cut behind the last layer, or cuts that cannot be combined.
    """

    def __init__(self, model: nn.Module, method: Reducer, parts: Parts) -> None:
        self.model, self.method, self.parts = model, method, parts
        self.route = Route()
        depth = len(parts.layers)
        self.cuts: tuple[Cut, ...] = tuple(method.cuts(depth))
        for cut in self.cuts:
            if max(cut.layer, cut.scored or 0) >= depth:
                raise VlmError(
                    f"{method!r} drops tokens at layer {max(cut.layer, cut.scored or 0)}, and the decoder has {depth}; "
                    "name an earlier one"
                )
        if list(self.cuts) != sorted(self.cuts, key=lambda cut: cut.layer):
            raise VlmError(f"cuts must come by ascending layer, got {self.cuts}; sort them")
        if len(self.cuts) > 1 and any(cut.cache for cut in self.cuts):
            raise VlmError(f"a cut of the cache must be the only one, got {self.cuts}; leave the others out")
        for number in {cut.scored for cut in self.cuts if cut.scored is not None}:
            if len({cut.rotated for cut in self.cuts if cut.scored == number}) > 1:
                raise VlmError(f"layer {number} is read with and without rotary positions; read another layer")
        # stage of each layer: number of cuts at or below it
        self.stages = tuple(sum(cut.layer <= layer for cut in self.cuts) for layer in range(depth))
        # of the call in progress: visual tokens, mask, grids of pictures
        self._read: tuple[Tensor | None, Any, Tensor | None] = None, None, None
        self._run: _Pass | None = None
        self._layer = 0
        self._places: list[Tensor | None] = [None] * len(self.cuts)
        self._handles: list[Any] = []
        self._install()

    def _install(self) -> None:
        add, parts = self._handles.append, self.parts
        add(parts.core.register_forward_pre_hook(self._before_core, with_kwargs=True))
        add(parts.decoder.register_forward_hook(self._after_decoder))
        for number, layer in enumerate(parts.layers):
            add(layer.register_forward_pre_hook(self._before_layer(number), with_kwargs=True))
        for number in sorted({cut.scored for cut in self.cuts if cut.scored is not None}):
            before, after = self._around_attention(number)
            add(parts.attentions[number].register_forward_pre_hook(before, with_kwargs=True))
            add(parts.attentions[number].register_forward_hook(after, always_call=True))
        if parts.family.deepstack:
            decoder: Any = parts.decoder
            decoder._deepstack_process = self._deepstack(decoder._deepstack_process)
        _ACCELERATED.add(self.model)

    def restore(self) -> nn.Module:
        """Take the hooks off.

        Returns:
            The model as it was.
        """
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.parts.decoder.__dict__.pop("_deepstack_process", None)
        _ACCELERATED.discard(self.model)
        return self.model

    @property
    def active(self) -> bool:
        """Whether the hooks are on."""
        return bool(self._handles)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def __repr__(self) -> str:
        return f"Accelerated({type(self.model).__name__}, {self.method!r})"

    def places(self, layer: int) -> Tensor | None:
        """Which tokens of the last prompt a layer still had.

        Args:
            layer: number of the layer.

        Returns:
            Their places in the prompt, ascending, (B, M), −1 for the filling of short rows; None for all of them.
        """
        stage = self.stages[layer]
        return self._places[stage - 1] if stage else None

    # Hooks, in the order in which a call meets them.

    def _before_core(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        visual = None
        if isinstance(ids, Tensor):
            visual = self.parts.visual(ids)
        elif isinstance(embeds := kwargs.get("inputs_embeds"), Tensor):
            # as transformers does: embeddings that are still those of the image token
            tokens = torch.tensor(self.parts.tokens, device=embeds.device)
            rows: Any = self.model.get_input_embeddings()  # type: ignore[operator]
            tokens = tokens[tokens < rows.weight.shape[0]]
            visual = (embeds[:, :, None] == rows(tokens)).all(-1).any(-1)
        self._read = visual, kwargs.get("attention_mask"), kwargs.get(self.parts.family.grids)

    def _begin(self, hidden: Tensor, kwargs: dict[str, Any]) -> _Pass:
        cache = _cached(kwargs)
        if self.parts.decoder.training and getattr(self.parts.decoder, "gradient_checkpointing", False):
            raise VlmError(
                "gradient checkpointing runs layers twice, and tokens are dropped once; turn it off to train"
            )
        ledger = follow(cache, len(self.cuts), self)
        if ledger.owner is not self:
            raise VlmError("the cache was filled under other hooks; start with a new one after restore()")
        length = hidden.shape[1]
        ledger.begin(length)
        visual, mask, grids = self._read
        if length == 1 or visual is None or visual.shape != hidden.shape[:2]:
            nothing = torch.zeros(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
            return _Pass(ledger, cache, nothing, ~nothing, nothing.long(), cuts=False)
        visual = visual.to(hidden.device)
        real, width = unpadded(mask, hidden, ledger.past), self.parts.width(visual, grids)
        return _Pass(ledger, cache, visual, real, width, cuts=bool(visual.any()))

    def _before_layer(self, number: int) -> Callable[..., Any]:
        stage = self.stages[number]
        here = [index for index, cut in enumerate(self.cuts) if cut.layer == number and not cut.cache]

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden: Tensor = args[0] if args else kwargs["hidden_states"]
            if number == 0:
                self._run = self._begin(hidden, kwargs)
            run, self._layer = self._run, number
            if run is None:
                return None
            if run.cuts:
                for index in here:
                    hidden = self._drop(run, index, hidden)
            held = run.ledger.stages[stage]
            if held.whole:
                return None
            changed = dict(kwargs)
            flash = "flash" in str(self.parts.decoder.config._attn_implementation)  # type: ignore[union-attr]
            changed["attention_mask"] = run.ledger.mask(stage, kwargs.get("attention_mask"), flash=flash)
            if (rows := held.rows) is not None:
                embeddings = kwargs.get("position_embeddings")
                if embeddings is not None:
                    changed["position_embeddings"] = tuple(
                        torch.take_along_dim(part, rows[..., None], part.dim() - 2) for part in embeddings
                    )
                if (positions := kwargs.get("position_ids")) is not None:
                    changed["position_ids"] = torch.take_along_dim(positions, rows, positions.dim() - 1)
            if args:
                return (hidden, *args[1:]), changed
            return args, {**changed, "hidden_states": hidden}

        return hook

    def _seen(self, run: _Pass, index: int, hidden: Tensor) -> Seen:
        """What the method reads at a cut."""
        stage = run.ledger.stages[index]
        batch, length = run.visual.shape
        visual, real, width = run.visual, run.real, run.width
        places = torch.arange(length, device=hidden.device).expand(batch, -1)
        if stage.rows is not None:
            places = stage.rows
            visual, real, width = (part.gather(1, places) for part in (visual, real, width))
            if stage.held is not None:
                visual, real = visual & stage.held, real & stage.held
        scored = self.cuts[index].scored
        queries, keys, scaling = (None, None, 1.0) if scored is None else run.taken[scored]
        if queries is not None and queries.shape[2] != places.shape[1]:
            raise VlmError(
                f"cut {index} of {self.method!r} reads layer {scored}, before tokens went at an earlier cut; "
                "read a layer behind that"
            )
        return Seen(hidden, visual & real, real, places, run.visual.sum(1), width, queries, keys, scaling)

    def _chosen(self, run: _Pass, index: int, hidden: Tensor) -> tuple[Seen, Tensor]:
        seen = self._seen(run, index, hidden)
        return seen, self.method.choose(seen, index).to(hidden.device) & seen.visual

    def _drop(self, run: _Pass, index: int, hidden: Tensor) -> Tensor:
        """Tokens that go on after a cut."""
        seen, chosen = self._chosen(run, index, hidden)
        if torch.equal(chosen, seen.visual):
            return hidden
        rows, held = assemble((~seen.visual | chosen) & seen.real, ~seen.real)
        run.ledger.cut(index + 1, seen.places.gather(1, rows), held)
        return take(hidden, rows)

    def _around_attention(self, number: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Read the queries and keys of a layer: as they enter its kernel, or once more without rotary positions."""
        rotated = any(cut.scored == number and cut.rotated for cut in self.cuts)
        attention: Any = self.parts.attentions[number]
        undo: list[Callable[[], Tap]] = []

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            run = self._run
            if run is None or not run.cuts:
                return
            if rotated:
                undo.append(tapped(attention, stop=False))
                return
            plain = {name: value for name, value in kwargs.items() if name not in ("cache", "past_key_values")}
            cosine, sine = kwargs["position_embeddings"]
            plain["position_embeddings"] = torch.ones_like(cosine), torch.zeros_like(sine)
            restore = tapped(attention, stop=True)
            try:
                attention.forward(*args, **plain)
            except EnoughError:
                pass
            finally:
                tap = restore()
            assert tap.found is not None
            run.taken[number] = tap.found

        def after(*_: Any) -> None:
            if not undo:
                return
            tap, run = undo.pop()(), self._run
            if run is not None and tap.found is not None:
                queries, keys, scaling = tap.found
                first = run.ledger.held_before(self.stages[number])
                run.taken[number] = queries, keys[:, :, first : first + queries.shape[2]], scaling

        return before, after

    def _deepstack(self, process: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Features that are added after the first layers, for the tokens that are left."""

        def chosen(hidden: Tensor, visual: Tensor, features: Tensor) -> Tensor:
            stage = self._run.ledger.stages[self.stages[self._layer]] if self._run is not None else None
            if stage is None or stage.rows is None:
                return process(hidden, visual, features)
            rows = stage.rows.to(visual.device)
            left = visual.gather(1, rows)
            if stage.held is not None:
                left = left & stage.held.to(visual.device)
            number = visual.flatten().cumsum(0).view_as(visual) - 1
            return process(hidden, left, features[number.gather(1, rows)[left].to(features.device)])

        return chosen

    def _after_decoder(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        run, self._run, self._read = self._run, None, (None, None, None)
        if run is None:
            return output
        ledger, batch, length = run.ledger, *run.visual.shape
        hidden: Tensor = output[0]
        entered = [ledger.stages[stage] for stage in self.stages]
        tokens = [length if stage.rows is None else stage.rows.shape[1] for stage in entered]
        if run.cuts:
            visual = tuple(self._left(run, stage) for stage in entered)
        last = ledger.stages[-1] if not any(cut.cache for cut in self.cuts) else None
        if last is not None and last.rows is not None:
            whole = hidden.new_zeros(batch, length, hidden.shape[2])
            rows = last.rows[..., None].expand_as(hidden)
            filled = hidden if last.held is None else hidden * last.held[..., None]
            whole = whole.scatter(1, rows, filled)
            if isinstance(output, tuple):
                output = (whole, *output[1:])
            else:
                output.last_hidden_state = whole
        if run.cuts and self.cuts and self.cuts[0].cache:
            self._shorten(run, hidden)
        if run.cuts:
            self._places = [marked(stage.rows, stage.held) for stage in ledger.stages[1:]]
            cached = [length if stage.rows is None else stage.rows.shape[1] for stage in entered]
            self.route = Route(tuple(tokens), visual, tuple(cached))
        ledger.end()
        return output

    @staticmethod
    def _left(run: _Pass, stage: Any) -> tuple[int, ...]:
        """Visual tokens of each row that are left in a stage."""
        visual = run.visual & run.real
        if stage.rows is not None:
            visual = visual.gather(1, stage.rows)
            visual = visual if stage.held is None else visual & stage.held
        return tuple(visual.sum(1).tolist())

    def _shorten(self, run: _Pass, hidden: Tensor) -> None:
        """Drop tokens from the caches after a prefill."""
        if run.cache is None:
            return
        shortenable(run.cache)
        seen, chosen = self._chosen(run, 0, hidden)
        if torch.equal(chosen, seen.visual):
            return
        rows, held = assemble((~seen.visual | chosen) & seen.real, ~seen.real)
        first = run.ledger.held_before(1)
        before = torch.arange(first, device=rows.device).expand(rows.shape[0], -1)
        index = torch.cat((before, first + rows), 1)
        for number, stage in enumerate(self.stages):
            if stage:
                shorten_layer(run.cache.layers[number], index)
        run.ledger.cut(1, rows, held)


def accelerate(
    model: nn.Module,
    method: str | Reducer = "fastv",
    keep: float | None = None,
    *,
    family: Family | None = None,
    **options: Any,
) -> Accelerated:
    """Let a vision-language model read fewer visual tokens, in place, by hooks.

    `generate`, beam search, padded batches, several pictures, static and dynamic caches work as before. With `keep=1`
    logits and generated tokens are those of the untouched model, bit for bit.

    Args:
        model: model of transformers with its language head, such as `LlavaForConditionalGeneration`.
        method: name of a method, see `list_methods`, or a method of your own, see `Reducer`.
        keep: share of all visual tokens that is left behind the last cut, in (0, 1]; None for the method's own.
        family: where the model's parts are, for one that foveal does not know.
        **options: fields of the method, such as `layer=2`.

    Returns:
        Handle with `restore()`, and `route`, the tokens of each layer in the last prefill.

    Raises:
        VlmError: a model that is accelerated already or cannot be, an unknown method, or a field out of range.

    Example:
        >>> fast = foveal.vlm.accelerate(model, "fastv", keep=0.25)  # doctest: +SKIP
        >>> answer = model.generate(**inputs)  # doctest: +SKIP
        >>> print(fast.route)  # doctest: +SKIP
        layers 0 to 1: 623 tokens, 576 visual; layers 2 to 31: 191 tokens, 144 visual
        >>> fast.restore()  # doctest: +SKIP
    """
    if model in _ACCELERATED:
        raise VlmError(f"{type(model).__name__} is accelerated already; call restore() on its handle first")
    parts = find(model, family)
    made: Any = make(method, keep, **options)
    # a method that does more than drop tokens brings its own hooks
    build = getattr(made, "accelerated", None)
    return build(model, parts) if build is not None else Accelerated(model, made, parts)
