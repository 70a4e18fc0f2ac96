"""OtterHD: no vision encoder; raw patches of a picture of any size enter the decoder, and a line break ends each row.

*Source*: B. Li et al., "OtterHD: A High-Resolution Multi-modality Model", 2023 (arXiv:2311.04219), sections 2 and 3;
the decoder is Fuyu's (R. Bavishi et al., "Fuyu-8B: A Multimodal Architecture for AI Agents", 2023). A picture of H×W
pixels, first reduced to a limit (h, w) if it is larger, is padded at the right and below to whole patches of p pixels:

    H', W' = ⌊s·H⌋, ⌊s·W⌋,   s = min(h / H, w / W, 1)
    rows, columns = ⌈H' / p⌉, ⌈W' / p⌉
    x = W·patch + b                       (p²·C → D), in place of a vision encoder
    tokens = rows · (columns + 1)         a line break behind each row; p = 30 and (h, w) = (1080, 1920) in Fuyu

No size is built in: instruction tuning draws the side of each batch from a few (`SIDES`), and a picture may be asked
about at any side afterwards. MagnifierBench, the paper's test, asks about things that fill about a hundredth of a large
scene, each question with four options; `magnified` makes such scenes of any picture, `options` such questions.

*Differs from the paper*: the scenes are made, by pasting small things into real pictures; the paper's are frames of
videos with questions written by people. The free-form questions, which GPT-4 marks, are left out.
*Provenance*: written from the paper; sides and the reduction of the shorter side are those of the authors' code
(Luodian/Otter, `prepare_fuyu` and `OtterHD.generate`), padding and the order of a patch's values those of transformers'
`FuyuImageProcessor`, whose patches these equal to 1e-6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.cases import Operator
from foveal.record import Method, Paper
from foveal.vlm.method import VlmError

__all__ = ["PAD", "SIDES", "Layout", "drawn_side", "layout", "magnified", "options", "patches", "prompt", "shorter"]

SIDES = (448, 512, 768)  # pixels of the square pictures of instruction tuning
PAD = 1 / 127.5 - 1  # transformers pads with 1 of 255, then scales to [-1, 1]


@dataclass(frozen=True)
class Layout:
    """Tokens of a picture.

    Args:
        size: height and width after the reduction, in pixels.
        rows: rows of patches.
        columns: patches of a row.
    """

    size: tuple[int, int]
    rows: int
    columns: int

    @property
    def patches(self) -> int:
        """Visual tokens."""
        return self.rows * self.columns

    @property
    def tokens(self) -> int:
        """Visual tokens and line breaks."""
        return self.rows * (self.columns + 1)

    def ids(self, image: int, newline: int) -> Tensor:
        """Token ids of the picture, (tokens,): patches in reading order, each row ended by a line break."""
        found = torch.full((self.rows, self.columns + 1), image)
        found[:, -1] = newline
        return found.flatten()


def layout(size: tuple[int, int], *, patch: int = 30, limit: tuple[int, int] | None = (1080, 1920)) -> Layout:
    """How many tokens a picture becomes.

    Args:
        size: height and width of the picture, in pixels.
        patch: side of a patch, p.
        limit: height and width to which a larger picture is reduced, multiples of a patch; None for none.

    Returns:
        The layout.

    Raises:
        VlmError: a size or a patch below 1, or a limit that is not made of whole patches.
    """
    if min(*size, patch) < 1:
        raise VlmError(f"a picture and a patch need at least one pixel, got {size} and patches of {patch}")
    if limit is not None:
        if min(limit) < patch or limit[0] % patch or limit[1] % patch:
            raise VlmError(f"the limit must be whole patches of {patch} pixels, got {limit}; take multiples of {patch}")
        if size[0] > limit[0] or size[1] > limit[1]:
            scale = min(limit[0] / size[0], limit[1] / size[1])
            size = (max(1, int(size[0] * scale)), max(1, int(size[1] * scale)))
    return Layout(size, -(-size[0] // patch), -(-size[1] // patch))


def shorter(size: tuple[int, int], side: int) -> tuple[int, int]:
    """The size at which a picture is asked about.

    Args:
        size: height and width, in pixels.
        side: pixels that its shorter side gets.

    Returns:
        Height and width, of the same shape, rounded up.
    """
    return math.ceil(size[0] * side / min(size)), math.ceil(size[1] * side / min(size))


def drawn_side(step: int, *, seed: int, sides: tuple[int, ...] = SIDES) -> int:
    """The side of a training batch, uniform among a few.

    Args:
        step: number of the batch.
        seed: seed.
        sides: the sides, in pixels.

    Returns:
        The side; it depends on step and seed only.

    Raises:
        VlmError: no sides.
    """
    if not sides:
        raise VlmError("sides must hold at least one side in pixels, got none; (448, 512, 768) are the paper's")
    generator = torch.Generator().manual_seed(1_000_003 * seed + step)
    return sides[int(torch.randint(len(sides), (), generator=generator))]


def patches(picture: Tensor, *, patch: int = 30, pad: float = PAD) -> Tensor:
    """Raw patches of pictures of any size.

    Args:
        picture: pixels, (B, C, H, W).
        patch: p.
        pad: value of the pixels that fill the last row and column of patches.

    Returns:
        (B, rows · columns, p² · C) in reading order; in a patch, row by row, the channels of a pixel side by side.
    """
    height, width = picture.shape[-2:]
    whole = F.pad(picture, (0, -width % patch, 0, -height % patch), value=pad)
    # (B, C, rows, p, columns, p) to (B, rows, columns, p, p, C)
    cut = whole.unflatten(2, (-1, patch)).unflatten(4, (-1, patch)).permute(0, 2, 4, 3, 5, 1)
    return cut.flatten(3).flatten(1, 2)


def prompt(
    picture: Tensor,
    words: Tensor,
    *,
    image: int,
    newline: int,
    side: int | None = None,
    patch: int = 30,
    limit: tuple[int, int] | None = None,
) -> dict[str, Tensor]:
    """Arguments of transformers' Fuyu for pictures followed by words.

    Args:
        picture: pixels in [-1, 1], (B, C, H, W).
        words: token ids behind the picture, (B, L).
        image: id of a visual token.
        newline: id of the line break.
        side: pixels that the shorter side gets before; None for the pictures as they are.
        patch: p.
        limit: height and width to which larger pictures are reduced.

    Returns:
        "input_ids", (B, tokens + L), and "pixel_values", (B, patches, p² · C).

    Raises:
        VlmError: words for another number of pictures.
    """
    if len(words) != len(picture):
        raise VlmError(f"every picture needs its words, got {len(picture)} pictures and {len(words)} rows of words")
    size = (picture.shape[-2], picture.shape[-1])
    made = layout(size if side is None else shorter(size, side), patch=patch, limit=limit)
    if made.size != size:
        picture = F.interpolate(picture, made.size, mode="bilinear", antialias=True, align_corners=False)
    head = made.ids(image, newline).to(words).expand(len(words), -1)
    return {"input_ids": torch.cat((head, words), 1), "pixel_values": patches(picture, patch=patch)}


def magnified(scene: Tensor, things: Tensor, cover: Tensor, places: Tensor) -> Tensor:
    """Scenes with small things in them.

    Args:
        scene: pictures, (B, C, H, W).
        things: what is pasted, (B, K, C, h, w).
        cover: where a thing hides the scene, in [0, 1], (B, K, 1, h, w).
        places: top and left of each, (B, K, 2).

    Returns:
        Scenes, (B, C, H, W); of things at one place the last is seen.

    Raises:
        VlmError: a thing that leaves its scene.
    """
    found, (height, width) = scene.clone(), things.shape[-2:]
    room = torch.tensor([scene.shape[-2] - height, scene.shape[-1] - width])
    if places.numel() and (bool((places < 0).any()) or bool((places.cpu() > room).any())):
        raise VlmError(
            f"things of {height}×{width} must lie inside scenes of {scene.shape[-2]}×{scene.shape[-1]}, got places "
            f"from {places.min()} to {places.max()}; places may be 0 to {room.tolist()}"
        )
    for row, each in enumerate(places.tolist()):
        for k, (top, left) in enumerate(each):
            under = found[row, :, top : top + height, left : left + width]
            under.copy_(under + cover[row, k] * (things[row, k] - under))
    return found


def options(answers: Tensor, *, classes: int, seed: int, number: int = 4) -> Tensor:
    """Options of multiple-choice questions: the answer and others, in random order.

    Args:
        answers: right answers, (Q,), in 0 … classes − 1.
        classes: number of possible answers.
        seed: seed.
        number: options of a question.

    Returns:
        (Q, number), all different.

    Raises:
        VlmError: more options than answers.
    """
    if number > classes:
        raise VlmError(f"there are {classes} answers, which cannot fill {number} options; take at most {classes}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(len(answers), classes, generator=generator)
    order[torch.arange(len(answers)), answers] = 2.0  # the answer is always among the highest
    chosen = order.topk(number, 1).indices
    return chosen.gather(1, torch.rand(chosen.shape, generator=generator).argsort(1))


def _one_by_one(picture: Tensor, *, patch: int = 30, pad: float = PAD) -> Tensor:
    """`patches`, value by value."""
    made = layout((picture.shape[2], picture.shape[3]), patch=patch, limit=None)
    rows = []
    for x in picture:
        for r in range(made.rows):
            for c in range(made.columns):
                values = [
                    x[:, i, j] if i < x.shape[1] and j < x.shape[2] else torch.full_like(x[:, 0, 0], pad)
                    for i in range(r * patch, (r + 1) * patch)
                    for j in range(c * patch, (c + 1) * patch)
                ]
                rows.append(torch.cat(values))
    return torch.stack(rows).unflatten(0, (len(picture), -1))


def _picture(seed: int) -> dict[str, Any]:
    return {"picture": torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(seed)), "patch": 3}


METHOD = Method(
    id=188,
    name="OtterHD",
    kind="operator",
    summary="Raw patches of a picture of any size enter the decoder, asked about things of a hundredth of the scene.",
    paper=Paper("OtterHD: A High-Resolution Multi-modality Model", "B. Li et al.", 2023, "arXiv:2311.04219"),
    cases={"patches": Operator(patches, _one_by_one, _picture)},
)
