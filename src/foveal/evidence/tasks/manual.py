"""Text for language models of minutes: the manual that Python prints for `help("topics")`, character by character.

It comes with every Python, in English, about 465,000 characters under Python's licence; its words differ a little from
one version of Python to the next, so that losses can be compared within a run only. Letters are read as lower case,
runs of spaces and line ends as one space, and what is rare as "~". The last tenth of the topics is held out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foveal.evidence.rehearsal import cached, rehearsing

__all__ = ["CHARACTERS", "passages", "text"]

CHARACTERS = " abcdefghijklmnopqrstuvwxyz0123456789.,;:()[]{}'\"*_-+=<>/|\\~"


@cached(maxsize=2)
@torch.inference_mode(False)
def text(part: str) -> Tensor:
    """The manual as numbers.

    Args:
        part: "train" or "test".

    Returns:
        Places in `CHARACTERS`, (n,) int64.
    """
    if rehearsing():
        return torch.randint(len(CHARACTERS), (600,), generator=torch.Generator().manual_seed(0))
    from pydoc_data.topics import topics

    names = sorted(topics)
    held_out = names[-len(names) // 10 :]
    words = " ".join(topics[name] for name in names if (name in held_out) == (part == "test"))
    places = {character: place for place, character in enumerate(CHARACTERS)}
    rare = places["~"]
    return torch.tensor([places.get(character, rare) for character in " ".join(words.lower().split())])


def passages(part: str, count: int, length: int, generator: torch.Generator | None = None) -> Tensor:
    """Pieces of the manual, drawn at random.

    Args:
        part: "train" or "test".
        count: number of pieces, n.
        length: characters of a piece, L.
        generator: source of the places; None for torch's own.

    Returns:
        Places in `CHARACTERS`, (n, L) int64.
    """
    whole = text(part)
    starts = torch.randint(len(whole) - length + 1, (count, 1), generator=generator)
    return whole[starts + torch.arange(length)]
