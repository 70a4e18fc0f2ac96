"""Which tokens each layer's cache holds, and masks and positions cut to them.

A cache is divided into stages: layers before the first cut, between two cuts, after the last. The ledger of a cache
keeps, for every stage, the places of its tokens in the whole sequence. Rows of a padded batch may keep unequal numbers
of tokens; the shorter ones are filled with padding, or with dropped tokens that no other token sees.

To the model a cache looks as long as the whole sequence: its lengths are the ledger's. So masks and positions are made
for all tokens, and the hooks cut them for each layer.

Shapes: B batch, L tokens in a cache, N tokens of a call, M of them that stay.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.vlm.method import VlmError

__all__ = ["Ledger", "Stage", "assemble", "follow", "marked", "shorten_layer", "shortened", "take", "unpadded"]


def take(x: Tensor, rows: Tensor) -> Tensor:
    """Rows of each sequence; copying rows is faster than gathering elements.

    Args:
        x: sequences, (B, N, C).
        rows: indices, (B, M).

    Returns:
        (B, M, C).
    """
    above = torch.arange(x.shape[0], device=x.device)[:, None] * x.shape[1]
    return x.flatten(0, 1).index_select(0, (rows + above).flatten()).view(*rows.shape, x.shape[2])


def assemble(stays: Tensor, padding: Tensor) -> tuple[Tensor, Tensor | None]:
    """Bring rows that keep different numbers of tokens to one length.

    Args:
        stays: tokens that stay, (B, N).
        padding: tokens that are padding, (B, N); they fill short rows first.

    Returns:
        Indices, ascending, (B, M), with M the most that stay in a row, and which of them stay, (B, M); None for all.
    """
    number = int(stays.sum(1).max())
    order = (2 * stays.int() + padding.int()).argsort(dim=1, descending=True, stable=True)
    rows = order[:, :number].sort(1).values
    held = stays.gather(1, rows)
    return rows, None if bool(held.all()) else held


@dataclass
class Stage:
    """Tokens of the layers between two cuts.

    Args:
        slots: places of the cached tokens, (B, L); None for all.
        valid: which of them are no filling, (B, L); None for all.
        rows: tokens of the present call that stay, (B, M); None for all.
        held: which of them are no filling, (B, M); None for all.
    """

    slots: Tensor | None = None
    valid: Tensor | None = None
    rows: Tensor | None = None
    held: Tensor | None = None

    @property
    def whole(self) -> bool:
        """Whether the layers hold every token."""
        return self.slots is None and self.rows is None


@dataclass
class Ledger:
    """Places of the tokens that the layers of one cache hold.

    Args:
        stages: the stages, one more than there are cuts.
        seen: number of tokens of the whole sequence, with those of the present call.
        past: the same without those of the present call.
        owner: whose cuts these are.
        width: length that a static cache, and with it every mask, has from the start; 0 for one that grows.
    """

    stages: list[Stage]
    seen: int = 0
    past: int = 0
    owner: Any = None
    width: int = 0
    _memo: dict[Any, Any] = field(default_factory=dict)

    @property
    def live(self) -> bool:
        """Whether the hooks of its owner are still on."""
        return bool(getattr(self.owner, "active", True))

    def begin(self, length: int) -> None:
        """Start a call of the decoder.

        Args:
            length: number of tokens of the call, N.
        """
        self.past, self.seen = self.seen, self.seen + length
        self._memo.clear()

    def cut(self, number: int, rows: Tensor, held: Tensor | None) -> None:
        """Note what stays of the present call from one stage on.

        Args:
            number: number of the stage.
            rows: tokens that stay, among those of the call, (B, M).
            held: which of them are no filling, (B, M); None for all.
        """
        for stage in self.stages[number:]:
            stage.rows, stage.held = rows, held
        self._memo.clear()

    def end(self) -> None:
        """End a call: its tokens are cached now."""
        for number, stage in enumerate(self.stages):
            if not stage.whole:
                stage.slots, stage.valid = self.columns(number)
                stage.rows = stage.held = None
        self.past = self.seen
        self._memo.clear()

    def columns(self, number: int) -> tuple[Tensor, Tensor | None]:
        """Places of all tokens that a stage holds, those of the present call among them.

        Args:
            number: number of a stage that does not hold every token.

        Returns:
            Places, (B, L), and which of them are no filling, (B, L); None for all.
        """
        key = ("columns", number)
        if key not in self._memo:
            stage = self.stages[number]
            known = stage.rows if stage.rows is not None else stage.slots
            assert known is not None
            batch, device = known.shape[0], known.device

            def span(first: int, last: int) -> Tensor:
                return torch.arange(first, last, device=device).expand(batch, -1)

            before = stage.slots if stage.slots is not None else span(0, self.past)
            now = stage.rows + self.past if stage.rows is not None else span(self.past, self.seen)
            places, valid = torch.cat((before, now), 1), None
            if stage.valid is not None or stage.held is not None:
                one = stage.valid if stage.valid is not None else torch.ones_like(before, dtype=torch.bool)
                two = stage.held if stage.held is not None else torch.ones_like(now, dtype=torch.bool)
                valid = torch.cat((one, two), 1)
            self._memo[key] = places, valid
        return self._memo[key]

    def held_before(self, number: int) -> int:
        """Number of tokens that the caches of a stage held before the present call.

        Args:
            number: number of the stage.

        Returns:
            The number.
        """
        slots = self.stages[number].slots
        return self.past if slots is None else slots.shape[1]

    def mask(self, number: int, mask: Tensor | None, *, flash: bool = False) -> Tensor | None:
        """Cut the mask of the whole sequence to the tokens of a stage.

        Args:
            number: number of a stage that does not hold every token.
            mask: mask of the whole sequence, (B, L), (B, 1, N, L) or None for causal attention.
            flash: whether the attention takes masks of two dimensions.

        Returns:
            Mask of the stage, or None for causal attention.
        """
        key = ("mask", number, id(mask), flash)
        if key not in self._memo:
            # the mask itself is kept beside the result, so that no other can take its id
            self._memo[key] = mask, self._cut_mask(number, mask, flash)
        return self._memo[key][1]

    def _cut_mask(self, number: int, mask: Tensor | None, flash: bool) -> Tensor | None:
        stage = self.stages[number]
        places, valid = self.columns(number)
        if mask is None:
            if valid is None or flash:
                return valid
            rows = stage.rows
            if rows is None:
                rows = torch.arange(self.seen - self.past, device=places.device).expand(places.shape[0], -1)
            causal = ((places[:, None] <= rows[:, :, None] + self.past) & valid[:, None])[:, None]
            return F.pad(causal, (0, self.width - places.shape[1])) if self.width else causal
        if mask.dim() == 2:
            cut = mask.gather(1, places)
            return cut if valid is None else cut * valid.to(cut.dtype)
        batch = places.shape[0]
        found = []
        for row, whole in enumerate(mask.expand(batch, -1, -1, -1)):
            part = whole if stage.rows is None else whole.index_select(1, stage.rows[row])
            part = part.index_select(2, places[row])
            found.append(part)
        cut = torch.stack(found)
        hidden = False if cut.dtype == torch.bool else torch.finfo(cut.dtype).min
        if valid is not None:
            cut = cut.masked_fill(~valid[:, None, None], hidden)
        return F.pad(cut, (0, self.width - cut.shape[-1]), value=hidden) if self.width else cut

    def reorder(self, index: Tensor) -> None:
        """Take other rows of the batch, as beam search does.

        Args:
            index: row that each new row was.
        """
        for stage in self.stages:
            for name in ("slots", "valid"):
                values = getattr(stage, name)
                if values is not None:
                    setattr(stage, name, values.index_select(0, index.to(values.device)))
        self._memo.clear()

    def crop(self, number: int) -> None:
        """Forget the last tokens, none of which was dropped.

        Args:
            number: number of tokens.
        """
        if number:
            for stage in self.stages:
                stage.slots = None if stage.slots is None else stage.slots[:, :-number]
                stage.valid = None if stage.valid is None else stage.valid[:, :-number]
            self.seen -= number
            self.past = self.seen

    def check_crop(self, number: int) -> None:
        """Refuse to forget tokens that some layers no longer hold.

        Args:
            number: number of last tokens.

        Raises:
            VlmError: one of them was dropped.
        """
        last = torch.arange(self.seen - number, self.seen)
        for stage in self.stages:
            if stage.slots is not None and number:
                held = stage.slots if stage.valid is None else stage.slots.masked_fill(~stage.valid, -1)
                if not bool((held[:, -number:] == last.to(held.device)).all()):
                    raise VlmError(
                        f"the last {number} tokens cannot be taken back, as layers have dropped some of them; "
                        "write without guessed tokens, or keep all words"
                    )

    def clear(self) -> None:
        """Forget everything."""
        self.stages = [Stage() for _ in self.stages]
        self.seen = self.past = 0


def shorten_layer(layer: Any, index: Tensor) -> None:
    """Keep some tokens of one layer's cache.

    Args:
        layer: layer of a dynamic or static cache of transformers.
        index: tokens to keep, ascending, (B, M).
    """
    for name in ("keys", "values"):
        whole = getattr(layer, name)
        rows = index[:, None, :, None].expand(-1, whole.shape[1], -1, whole.shape[3])
        part = whole.gather(2, rows)
        if hasattr(layer, "max_cache_len"):
            whole[:, :, : index.shape[1]] = part
        else:
            setattr(layer, name, part)
    if hasattr(layer, "max_cache_len"):
        layer.cumulative_length.fill_(index.shape[1])


class _Shortened:
    """What a cache of transformers learns when its layers hold fewer tokens than it has seen."""

    ledger: Ledger

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.ledger.seen if self.ledger.live else super().get_seq_length(layer_idx)  # type: ignore[misc]

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        layers: Any = self.layers  # type: ignore[attr-defined]
        static = layer_idx < len(layers) and hasattr(layers[layer_idx], "max_cache_len")
        if static or not self.ledger.live:
            return super().get_mask_sizes(query_length, layer_idx)  # type: ignore[misc]
        return self.ledger.seen + query_length, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self.ledger.reorder(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self.ledger.reorder(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        known = next((stage.slots for stage in self.ledger.stages if stage.slots is not None), None)
        if known is not None:
            rows = torch.arange(known.shape[0], device=known.device)
            self.ledger.reorder(rows.repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        self.ledger.check_crop(abs(tokens_to_remove))
        super().crop(tokens_to_remove)  # type: ignore[misc]
        self.ledger.crop(abs(tokens_to_remove))

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self.ledger.clear()


@cache
def shortened(kind: type) -> type:
    """The class of a cache that has a ledger.

    Args:
        kind: class of a cache of transformers.

    Returns:
        A subclass.
    """
    return type(f"Shortened{kind.__name__}", (_Shortened, kind), {})


def follow(held: Any, cuts: int, owner: object) -> Ledger:
    """The ledger of a cache; one that has none gets its own.

    Args:
        held: cache of transformers, or None.
        cuts: number of cuts.
        owner: whose cuts these are.

    Returns:
        The ledger.
    """
    known = getattr(held, "ledger", None)
    if isinstance(known, Ledger) and (known.owner is owner or known.seen):
        return known
    ledger = Ledger([Stage() for _ in range(cuts + 1)], owner=owner)
    if held is not None:
        if known is None:
            # tokens that were cached before are held by all layers
            ledger.seen = ledger.past = int(held.get_seq_length())
            kind: Any = type(held)
            held.__class__ = shortened(kind)
        held.ledger = ledger
        if len(held.layers):
            ledger.width = getattr(held.layers[0], "max_cache_len", 0)
    return ledger


def unpadded(mask: Any, hidden: Tensor, past: int) -> Tensor:
    """Which tokens are no padding, from whichever mask the model was given.

    Args:
        mask: mask of two or four axes, masks by kind of layer, or something else for none.
        hidden: tokens, (B, N, C).
        past: number of tokens before them.

    Returns:
        Mask, (B, N).
    """
    batch, length = hidden.shape[:2]
    if isinstance(mask, dict):
        mask = mask.get("full_attention")
    if not isinstance(mask, Tensor):
        return torch.ones(batch, length, dtype=torch.bool, device=hidden.device)
    if mask.dim() == 2:
        return mask[:, past : past + length].to(hidden.device).bool()
    own = mask[:, 0].diagonal(past, 1, 2)[:, :length]  # whether a token sees itself
    return (own if own.dtype == torch.bool else own == 0).expand(batch, -1).to(hidden.device)


def marked(rows: Tensor | None, held: Tensor | None) -> Tensor | None:
    """Places of tokens with the filling of short rows marked.

    Args:
        rows: places, (B, M); None for all.
        held: which of them are tokens, (B, M); None for all.

    Returns:
        Places, −1 for filling, (B, M); None for all tokens.
    """
    return rows if rows is None or held is None else rows.masked_fill(~held, -1)
