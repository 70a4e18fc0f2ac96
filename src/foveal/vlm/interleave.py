"""LLaVA-NeXT-Interleave: pictures, frames, views and patches anywhere in a text, read as one sequence.

*Source*: F. Li et al., "LLaVA-NeXT-Interleave: Tackling Multi-image, Video, and 3D in Large Multimodal Models", 2024
(arXiv:2407.07895), sections 3 and 4. A prompt x of |x| ids has n placeholders ⟨image⟩; picture i becomes t_i tokens of
C channels by encoder and projector, (t_i, C), and takes its placeholder's place:

    interleaved   w … ⟨image⟩ w … ⟨image⟩ w …              each placeholder where its picture is spoken of
    in front      ⟨image⟩ ⟨image⟩ w … mark w … mark w …     all of them first, a mark where they were
    length        |x| − n + Σ t_i,   n of them longer in front
    t             (⌊side / patch⌋ / pool)²: 729 of 384 pixels in patches of 14; frames of a film are pooled 2×2

A model for single pictures is tuned on both formats in turn, with single pictures among them.

*Differs from the paper*: tuning is the user's loop; here stand the formats, the counts and the merging. The mark is any
id that the user names. The claims' model is tuned on the interleaved format only; both take it longer than a claim may
take.
*Provenance*: written from the paper. The authors' code (LLaVA-VL/LLaVA-NeXT, `prepare_inputs_labels_for_multimodal`)
splits a prompt at its placeholders and joins the pieces with the pictures, as `splice_reference` does; for 16 prompts
of one to eight pictures in both formats `splice` equals it exactly. In transformers a placeholder stands t times in the
prompt, which `expanded` writes.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foveal.cases import Operator
from foveal.record import Method, Paper
from foveal.vlm.method import VlmError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["arranged", "expanded", "predicted_length", "splice", "splice_reference", "visual_tokens"]


def visual_tokens(side: int, patch: int, *, pool: int = 1) -> int:
    """Tokens of a picture, t.

    Args:
        side: side that the encoder sees, in pixels.
        patch: side of a patch, in pixels.
        pool: patches of a side that become one; 2 for frames of a film.

    Returns:
        Number of tokens.

    Raises:
        VlmError: a number below 1, or nothing left.
    """
    if min(side, patch, pool) < 1 or side // patch < pool:
        raise VlmError(
            f"side, patch and pool must be at least 1 and leave a token, got {side}, {patch} and {pool}; 384, 14 and 1 "
            "are the paper's"
        )
    return (side // patch // pool) ** 2


def _checked(ids: Sequence[int], pictures: int, image: int) -> None:
    if (found := sum(entry == image for entry in ids)) != pictures:
        raise VlmError(
            f"the prompt has {found} placeholders for {pictures} pictures; write one ({image}) for each of them"
        )


def arranged(ids: Sequence[int], *, image: int, mark: int, front: bool) -> list[int]:
    """A prompt in one of the two formats.

    Args:
        ids: interleaved prompt; its first id is the start.
        image: id of a placeholder.
        mark: id that stands in a placeholder's place if all are in front.
        front: whether they are.

    Returns:
        Prompt.

    Raises:
        VlmError: an empty prompt, one that begins with a placeholder, or a mark that is the placeholder.
    """
    if not ids or ids[0] == image or mark == image:
        raise VlmError(
            f"a prompt begins with its start and the mark is no placeholder, got {list(ids[:3])}… and mark {mark} with "
            f"placeholder {image}; write the start first"
        )
    if not front:
        return list(ids)
    count = sum(entry == image for entry in ids)
    return [ids[0], *[image] * count, *(mark if entry == image else entry for entry in ids[1:])]


def expanded(ids: Sequence[int], tokens: Sequence[int], *, image: int) -> list[int]:
    """A prompt as transformers takes it: each placeholder as often as its picture has tokens.

    Args:
        ids: prompt with one placeholder a picture.
        tokens: tokens of each picture, t_i, in the order of the placeholders.
        image: id of a placeholder.

    Returns:
        Prompt of `predicted_length` ids.

    Raises:
        VlmError: not as many placeholders as pictures.
    """
    _checked(ids, len(tokens), image)
    left = iter(tokens)
    return list(chain.from_iterable([entry] * (next(left) if entry == image else 1) for entry in ids))


def predicted_length(ids: Sequence[int], tokens: Sequence[int], *, image: int) -> int:
    """What the language model reads: |x| − n + Σ t_i.

    Args:
        ids: prompt with one placeholder a picture.
        tokens: tokens of each picture.
        image: id of a placeholder.

    Returns:
        Number of embeddings.

    Raises:
        VlmError: not as many placeholders as pictures.
    """
    _checked(ids, len(tokens), image)
    return len(ids) - len(tokens) + sum(tokens)


def splice(ids: Tensor, table: Tensor, pictures: Sequence[Tensor], *, image: int) -> Tensor:
    """Embeddings of a prompt with pictures in it.

    Args:
        ids: prompt with one placeholder a picture, (L,).
        table: embeddings of the words, (V, C).
        pictures: projected tokens of each picture, (t_i, C).
        image: id of a placeholder.

    Returns:
        Embeddings, (L − n + Σ t_i, C).

    Raises:
        VlmError: not as many placeholders as pictures.
    """
    _checked(ids.tolist(), len(pictures), image)
    if not pictures:
        return table[ids]
    times = torch.ones_like(ids)
    times[ids == image] = torch.tensor([len(picture) for picture in pictures], device=ids.device)
    wide = ids.repeat_interleave(times)
    shown = (wide == image)[:, None]
    # a placeholder's id may lie outside the table
    return table[wide.masked_fill(shown[:, 0], 0)].masked_scatter(shown, torch.cat(list(pictures)))


def splice_reference(ids: Tensor, table: Tensor, pictures: Sequence[Tensor], *, image: int) -> Tensor:
    """`splice`, one id after the other.

    Args:
        ids: prompt with one placeholder a picture, (L,).
        table: embeddings of the words, (V, C).
        pictures: projected tokens of each picture, (t_i, C).
        image: id of a placeholder.

    Returns:
        Embeddings, (L − n + Σ t_i, C).
    """
    left = iter(pictures)
    return torch.cat([next(left) if entry == image else table[entry][None] for entry in ids.tolist()])


def _fast(ids: Tensor, table: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return splice(ids, table, (first, second), image=7)


def _plain(ids: Tensor, table: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return splice_reference(ids, table, (first, second), image=7)


def _inputs(seed: int, *, ids: Sequence[int] = (1, 3, 7, 2, 7, 5)) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"table": (7, 4), "first": (3, 4), "second": (5, 4)}
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {"ids": torch.tensor(ids)} | drawn


METHOD = Method(
    id=160,
    name="LLaVA-NeXT-Interleave",
    kind="operator",
    summary="Pictures, frames, views and patches anywhere in a text are read as one sequence of a single template.",
    paper=Paper(
        "LLaVA-NeXT-Interleave: Tackling Multi-image, Video, and 3D in Large Multimodal Models",
        "F. Li et al.",
        2024,
        "arXiv:2407.07895",
    ),
    cases={
        "between": Operator(_fast, _plain, _inputs),
        "in_front": Operator(
            _fast, _plain, lambda seed: _inputs(seed, ids=arranged((1, 3, 7, 2, 7), image=7, mark=6, front=True))
        ),
    },
)
