"""What a method of dropping visual tokens is: where it cuts, and which tokens stay; and the list of methods by name.

A method is a frozen dataclass with the field `keep`. `cuts` says at which layers tokens go, `choose` which ones stay;
everything else (masks, positions, caches, padded batches) is the hooks' work, see `foveal.vlm.hooks`.

Shapes: B batch, N tokens, C channels, H heads of queries, G heads of keys, D channels of a head.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch

from foveal.errors import FovealError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Cut", "Reducer", "Seen", "VlmError", "count", "list_methods", "make", "share", "top"]

# Name that users type → module and class. A method is imported when it is first used.
METHODS = {
    "dynamic_llava": ("foveal.vlm.dynamic_llava", "DynamicLLaVA"),
    "fastv": ("foveal.vlm.fastv", "FastV"),
    "feather": ("foveal.vlm.feather", "Feather"),
    "random": ("foveal.vlm.random", "Random"),
    "zipvl": ("foveal.vlm.zipvl", "ZipVL"),
}


class VlmError(FovealError, ValueError):
    """A model, a method or a question that cannot be used as asked."""


@dataclass(frozen=True)
class Cut:
    """A place where visual tokens go.

    Args:
        layer: first decoder layer that does without them; 0 drops them before the language model.
        scored: layer whose queries and keys the method reads, below `layer`; None for none.
        rotated: whether these queries and keys carry rotary positions.
        cache: whether the prefill runs whole and tokens go afterwards, from the caches of `layer` and all above.

    Raises:
        ValueError: a negative layer, or a scored layer that comes too late.
    """

    layer: int
    scored: int | None = None
    rotated: bool = True
    cache: bool = False

    def __post_init__(self) -> None:
        if self.layer < 0:
            raise ValueError(f"layer must be at least 0, got {self.layer}; 0 drops tokens before the language model")
        if self.scored is not None and not (self.scored >= 0 and (self.cache or self.scored < self.layer)):
            raise ValueError(
                f"scored must be a layer below {self.layer}, where the tokens go, got {self.scored}; drop them later"
            )


@dataclass(frozen=True)
class Seen:
    """What a method may read when it chooses.

    Args:
        hidden: tokens as they enter the layer, (B, N, C); before the language model, the merged embeddings.
        visual: whether a token is visual, (B, N).
        real: whether a token is no padding, (B, N).
        places: position of each token among those of the prompt, ascending, (B, N).
        total: number of visual tokens of the prompt, before any cut, (B,).
        width: columns of the grid that each visual token is from, (B, N); 0 where it is not known.
        queries: queries of the scored layer, (B, H, N, D); None without one.
        keys: keys of the scored layer, (B, G, N, D); None without one.
        scaling: factor on query–key products.
    """

    hidden: Tensor
    visual: Tensor
    real: Tensor
    places: Tensor
    total: Tensor
    width: Tensor
    queries: Tensor | None = None
    keys: Tensor | None = None
    scaling: float = 1.0

    @property
    def last(self) -> Tensor:
        """Index of the last token that is no padding, (B,)."""
        order = torch.arange(self.real.shape[1], device=self.real.device)
        return (order * self.real).argmax(1)


@runtime_checkable
class Reducer(Protocol):
    """A method: a frozen dataclass with at least `keep`, the share of the visual tokens that is left in the end."""

    @property
    def keep(self) -> float: ...

    def cuts(self, depth: int) -> tuple[Cut, ...]:
        """Where tokens go.

        Args:
            depth: number of layers of the decoder.

        Returns:
            Cuts, by ascending layer.
        """
        ...

    def choose(self, seen: Seen, cut: int) -> Tensor:
        """Which visual tokens stay.

        Args:
            seen: what there is to read.
            cut: number of the cut, from 0.

        Returns:
            Mask, (B, N); what it says of other than visual tokens is ignored.
        """
        ...


def share(keep: float) -> float:
    """Check a share of the visual tokens.

    Args:
        keep: the share.

    Returns:
        The share.

    Raises:
        VlmError: a share outside (0, 1].
    """
    if not 0 < keep <= 1:
        raise VlmError(f"keep must be in (0, 1], got {keep}; 0.25 keeps a quarter of the visual tokens, 1 all of them")
    return keep


def count(total: Tensor, keep: float) -> Tensor:
    """Number of tokens that a share stands for: rounded, but at least one of any.

    Args:
        total: numbers of tokens, (B,).
        keep: share, in (0, 1].

    Returns:
        Numbers, (B,).
    """
    return torch.minimum((total * keep + 0.5).floor().long().clamp_min(1), total)


def top(score: Tensor, among: Tensor, number: Tensor) -> Tensor:
    """The tokens of the highest scores.

    Args:
        score: scores, (B, N).
        among: tokens to choose from, (B, N).
        number: how many to choose, (B,).

    Returns:
        Mask with at most `number` tokens of each row, (B, N). Of equal scores the earlier token is chosen.
    """
    order = score.float().masked_fill(~among, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return (rank < number[:, None]) & among


def list_methods() -> list[str]:
    """Names of the methods.

    Returns:
        Names that `accelerate` and `foveal ask --method` take, sorted.
    """
    return sorted(METHODS)


def make(method: str | Reducer, keep: float | None = None, **options: object) -> Reducer:
    """A method by its name.

    Args:
        method: name, or the method itself.
        keep: share of the visual tokens that stays.
        **options: fields of the method's dataclass.

    Returns:
        The method.

    Raises:
        VlmError: an unknown name or option, or options beside a method that has its own.
    """
    if not isinstance(method, str):
        if options or keep is not None:
            raise VlmError(f"{method!r} has its own fields; give keep and options there, or the method by its name")
        return method
    if method not in METHODS:
        near = get_close_matches(method, METHODS, n=1)
        advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(list_methods())}"
        raise VlmError(f"no method is called {method!r}; {advice}")
    module, name = METHODS[method]
    built = getattr(import_module(module), name)
    known = [field for field in inspect.signature(built).parameters if field != "keep"]
    if wrong := sorted(set(options) - set(known)):
        raise VlmError(f"{method} has no option {wrong[0]!r}; it has keep{''.join(f', {field}' for field in known)}")
    made: Reducer = built(**({} if keep is None else {"keep": keep}), **options)
    return made
