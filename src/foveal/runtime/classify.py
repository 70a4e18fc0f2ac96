"""Classifiers and dense models in the light install: a bundle and a picture in, an answer out.

Such a bundle's card has a key "answer" with the labels and how a picture becomes an input; see `Framing`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.runtime import engines
from foveal.runtime.bundle import Bundle
from foveal.runtime.card import BundleError
from foveal.runtime.machine import cores

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Answer", "Classifier", "Framing", "framed", "prepare"]


@dataclass(frozen=True)
class Framing:
    """How a picture becomes an input, and what the outputs are called: a card's "answer".

    Args:
        size: height and width of the input, in pixels.
        mean: mean of each colour that is taken off, for colours in [0, 1].
        std: deviation of each colour that is divided by.
        crop: share of the resized picture's shorter side that is kept, in (0, 1].
        labels: names of the classes; empty if there are none.
        engine: engine that was fastest where the bundle was made.
        file: file that it runs, "float" or "int8".
        exact: whether it computes in float32.

    Raises:
        BundleError: a value that cannot be.
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    crop: float = 1.0
    labels: tuple[str, ...] = ()
    engine: str = "onnxruntime"
    file: str = "float"
    exact: bool = True

    def __post_init__(self) -> None:
        for name in ("size", "mean", "std", "labels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.size) != 2 or not all(isinstance(side, int) and side >= 1 for side in self.size):
            raise BundleError(f"size must be two whole numbers of at least 1, got {self.size!r}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(value > 0 for value in self.std):
            raise BundleError(f"mean and std must be three numbers, std above 0, got {self.mean!r} and {self.std!r}")
        if not 0 < self.crop <= 1:
            raise BundleError(f"crop must be in (0, 1], got {self.crop!r}")
        if self.file not in ("float", "int8") or self.engine not in engines.ENGINES:
            raise BundleError(
                f"file must be float or int8 and engine one of {', '.join(engines.ENGINES)}, got {self.file!r} and "
                f"{self.engine!r}"
            )

    @classmethod
    def read(cls, bundle: Bundle) -> Framing:
        """The framing of a bundle.

        Args:
            bundle: bundle of a classifier or a dense model.

        Returns:
            What its card says.

        Raises:
            BundleError: a bundle for another purpose, or a card without a framing.
        """
        card = bundle.card
        if card.purpose not in ("classification", "dense"):
            raise BundleError(
                f"{card.name} is for {card.purpose}; run it with foveal upscale --model, or give a classifier's bundle"
            )
        given = json.loads((bundle.folder / "card.json").read_text(encoding="utf-8")).get("answer")
        if not isinstance(given, dict) or "size" not in given:
            raise BundleError(f"{bundle.folder}: the card does not say how a picture becomes an input (answer.size)")
        known = {key: value for key, value in given.items() if key in cls.__dataclass_fields__}
        try:
            return cls(**known)
        except TypeError as error:
            raise BundleError(f"{bundle.folder}: the card's answer cannot be read: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The framing as plain data.

        Returns:
            Its fields.
        """
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class Answer:
    """What a classifier says of a picture.

    Args:
        label: name of the most probable class.
        probability: its probability, in [0, 1].
        top: the five most probable classes, with their probabilities.
    """

    label: str
    probability: float
    top: tuple[tuple[str, float], ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The answer as plain data.

        Returns:
            Its fields.
        """
        return {"label": self.label, "probability": self.probability, "top": [list(pair) for pair in self.top]}


def _pixels(image: Any) -> NDArray[np.uint8]:
    """A picture as 8-bit RGB, (H, W, 3)."""
    if isinstance(image, str | Path):
        from foveal import images

        image = images.read(Path(image)).frame(0).pixels
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.dtype not in (np.uint8, np.uint16) or not 1 <= array.shape[2] <= 4:
        raise TypeError(
            f"a picture must be a path, a PIL image or an 8- or 16-bit array (H, W, C), got {array.dtype} {array.shape}"
        )
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    if array.shape[2] in (2, 4):
        array = array[..., :-1]
    return np.repeat(array, 3, 2) if array.shape[2] == 1 else array


def framed(image: Any, framing: Framing) -> NDArray[np.uint8]:
    """A picture resized so that its shorter side fits, and cropped at the centre.

    Args:
        image: path, PIL image or array, (H, W) or (H, W, C).
        framing: size.

    Returns:
        Pixels, (height, width, 3).
    """
    from PIL import Image

    pixels = _pixels(image)
    height, width = framing.size
    scale = max(height / pixels.shape[0], width / pixels.shape[1]) / framing.crop
    if scale != 1.0 or pixels.shape[:2] != framing.size:
        sides = [max(wanted, round(side * scale)) for wanted, side in zip(framing.size, pixels.shape, strict=False)]
        whole = Image.fromarray(np.ascontiguousarray(pixels)).resize((sides[1], sides[0]), Image.Resampling.BICUBIC)
        top, left = (sides[0] - height) // 2, (sides[1] - width) // 2
        pixels = np.asarray(whole)[top : top + height, left : left + width]
    return pixels


def prepare(image: Any, framing: Framing) -> NDArray[np.float32]:
    """A picture as a network's input: framed and normalised.

    Args:
        image: path, PIL image or array, (H, W) or (H, W, C).
        framing: size and colours.

    Returns:
        Input, (3, height, width).

    Raises:
        TypeError: something that is no picture.
    """
    x = framed(image, framing).astype(np.float32) / 255
    x = (x - np.asarray(framing.mean, np.float32)) / np.asarray(framing.std, np.float32)
    return np.ascontiguousarray(x.transpose(2, 0, 1))


class Classifier:
    """A bundle of a classifier or a dense model, ready to run.

    Args:
        bundle: folder of the bundle, or a `Bundle`.
        engine: engine; "auto" takes the one that was fastest where the bundle was made, or ONNX Runtime where that is
            not installed.
        threads: processor threads; None takes all.

    Raises:
        BundleError: no bundle, one for another purpose, or one that is damaged.
        EngineError: an engine that cannot run it.

    Example:
        >>> classify = Classifier("bundles/mine")  # doctest: +SKIP
        >>> classify("photo.jpg").label  # doctest: +SKIP
    """

    def __init__(self, bundle: str | Path | Bundle, *, engine: str = "auto", threads: int | None = None) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        self.framing = Framing.read(self.bundle)
        self.note = ""
        name, file, exact = self.framing.engine, self.framing.file, self.framing.exact
        if engine != "auto":
            name = engine
        elif reason := engines.why_not(name):
            self.note = f"{name}, which was fastest where this bundle was made, is missing: {reason}"
            name = "onnxruntime"
        kind: Any = file if file in self.bundle.card.files else "float"
        self.engine = engines.create(name, self.bundle.file(kind), threads or cores(), exact=exact)

    def outputs(self, image: Any) -> NDArray[np.float32]:
        """The network's outputs for one picture.

        Args:
            image: path, PIL image or array.

        Returns:
            Logits, (classes,), or a map for each channel, (channels, height, width).
        """
        return np.array(self.engine.run(prepare(image, self.framing)[None])[0], np.float32)

    def __call__(self, image: Any) -> Answer:
        """Classify a picture.

        Args:
            image: path, PIL image or array.

        Returns:
            The most probable class.

        Raises:
            BundleError: a dense model, whose answer is a map.
        """
        logits = self.outputs(image)
        if logits.ndim != 1:
            name = self.bundle.card.name
            raise BundleError(f"{name} answers with a map of shape {logits.shape}; call outputs(image)")
        odds = np.exp((logits - logits.max()).astype(np.float64))
        odds /= odds.sum()
        order = np.argsort(-odds, kind="stable")[:5]
        labels = self.framing.labels
        top = tuple((labels[i] if i < len(labels) else str(i), float(odds[i])) for i in order.tolist())
        return Answer(*top[0], top)
