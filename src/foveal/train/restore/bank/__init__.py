"""The bank of degradations: what happens to people's pictures, as formulas with units, ranges and seeds.

One file a degradation. Each is a frozen dataclass whose fields are its strengths; called on pictures (B, 3, H, W) in
[0, 1] it returns damaged pictures of the same shape, range and dtype. All chance comes from the generator that is
given, so a seed gives one damage; `draw` chooses the strengths themselves. Where a file says so, gradients pass
through to the picture. Training, tests and evidence share this bank; `bank("rain")` finds a degradation by its name.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Generator, Tensor

__all__ = ["NAMES", "Damage", "bank", "damaged"]

# Name in recipes, in the docs and on the command line → file and class.
_PLACES = {
    "noise": ("noise", "Noise"),
    "jpeg": ("jpeg", "Jpeg"),
    "dark": ("exposure", "Dark"),
    "exposure": ("exposure", "Exposure"),
    "haze": ("haze", "Haze"),
    "rain": ("rain", "Rain"),
    "snow": ("snow", "Snow"),
    "blur": ("blur", "Blur"),
    "motion": ("blur", "MotionBlur"),
    "lens": ("lens", "Lens"),
    "holes": ("holes", "Holes"),
    "shutter": ("shutter", "RollingShutter"),
}
NAMES = tuple(_PLACES)


@runtime_checkable
class Damage(Protocol):
    """What every degradation of the bank can do."""

    @classmethod
    def draw(cls, generator: Generator) -> Damage:
        """Strengths as people's pictures have them.

        Args:
            generator: source of the choice.

        Returns:
            A degradation.
        """
        ...

    def __call__(self, pictures: Tensor, generator: Generator) -> Tensor:
        """Damage pictures.

        Args:
            pictures: (B, 3, H, W) in [0, 1].
            generator: source of all chance, on the CPU.

        Returns:
            The same shape, in [0, 1].
        """
        ...


def bank(name: str) -> Any:
    """A degradation of the bank.

    Args:
        name: one of `NAMES`.

    Returns:
        Its class, a frozen dataclass.

    Raises:
        ValueError: no such degradation.
    """
    if name not in _PLACES:
        raise ValueError(f"no degradation is called {name!r}; choose one of {', '.join(NAMES)}")
    file, cls = _PLACES[name]
    return getattr(import_module(f"{__name__}.{file}"), cls)


def damaged(pictures: Tensor, names: tuple[str, ...], generator: Generator) -> Tensor:
    """Pictures with degradations of drawn strengths, each picture with its own, one after the other.

    Args:
        pictures: (B, 3, H, W) in [0, 1].
        names: degradations in the order in which they happen.
        generator: source of all chance.

    Returns:
        The same shape, in [0, 1].
    """
    import torch

    made = []
    for one in pictures.split(1):
        seen = one
        for name in names:
            seen = bank(name).draw(generator)(seen, generator)
        made.append(seen)
    return torch.cat(made)
