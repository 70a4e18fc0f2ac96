"""Degradations of the bank by their names, as the command line and recipes of experiments write them.

asked_damage("noise=25")            σ of 25 levels
asked_damage("noise=10,shot=0.5")   further strengths by name
asked_damage("rain")                strengths drawn for each picture
asked_damage("dark=0.1+jpeg=40")    one after the other
"""

from __future__ import annotations

import io
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from foveal.train.restore.bank import bank
from foveal.train.restore.bank.jpeg import Jpeg

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foveal.train.restore.bank import Damage

__all__ = ["AskedDamage", "asked_damage"]


@dataclass(frozen=True)
class AskedDamage:
    """Degradations that happen to pictures one after the other.

    Args:
        text: how they were asked for.
        steps: degradations, each with its strengths, or a class that draws them for each picture.
    """

    text: str
    steps: tuple[Damage | type[Damage], ...]

    def __call__(self, picture: NDArray, seed: int) -> NDArray | Image.Image:
        """Damage a picture.

        Args:
            picture: (H, W, 3), uint8.
            seed: of all chance, that of the strengths included.

        Returns:
            The same shape and dtype; where a JPEG comes last a PIL image that still knows its file's tables, as a
            picture that is opened does.
        """
        generator = torch.Generator().manual_seed(seed)
        made: NDArray | Image.Image = picture
        for place, step in enumerate(self.steps):
            damage = step.draw(generator) if isinstance(step, type) else step
            if isinstance(damage, Jpeg) and place == len(self.steps) - 1:
                file = io.BytesIO()
                Image.fromarray(made).save(file, "JPEG", quality=damage.quality, subsampling=damage.subsampling)
                made = Image.open(file)
                made.load()
            else:
                x = torch.tensor(made).permute(2, 0, 1)[None].float() / 255
                made = damage(x, generator)[0].mul(255).round().byte().permute(1, 2, 0).contiguous().numpy()
        return made


def asked_damage(text: str) -> AskedDamage:
    """Degradations that a text names.

    Args:
        text: `NAME`, `NAME=STRENGTH` or `NAME=STRENGTH,FIELD=STRENGTH…`, with "+" between degradations that follow one
            another. The first strength is the first field of the degradation.

    Returns:
        What damages pictures so.

    Raises:
        ValueError: no such degradation or field, no number, or a strength outside its range.
    """
    return AskedDamage(text, tuple(_step(part.strip()) for part in text.split("+")))


def _step(part: str) -> Any:
    name, given, strengths = part.partition("=")
    damage = bank(name)
    if not given:
        return damage
    defaults: dict[str, Any] = {field.name: field.default for field in fields(damage)}
    found: dict[str, Any] = {}
    for place, one in enumerate(strengths.split(",")):
        key, named, value = one.strip().partition("=")
        if not named and place == 0:
            key, value = next(iter(defaults)), key
        if key not in defaults or not value:
            raise ValueError(
                f"{name} takes {', '.join(defaults)}, got {one.strip()!r} in {part!r}; write {name}=STRENGTH, and "
                "after a comma FIELD=STRENGTH"
            )
        kind = type(defaults[key])
        try:
            found[key] = bool(float(value)) if kind is bool else kind(value)
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise ValueError(f"{key} of {name} must be {wanted}, got {value!r}; leave =… out to draw it") from None
    return damage(**found)
