"""Ask a vision-language model in a local folder about pictures, and say what reading and answering took.

Nothing is fetched: a model is a folder, weights are safetensors, and code that lies beside them is not run.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from foveal import images
from foveal.vlm.families import FAMILIES, find
from foveal.vlm.hooks import Accelerated, accelerate
from foveal.vlm.method import Reducer, VlmError, make
from foveal.vlm.route import Route

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from PIL.Image import Image

__all__ = ["FRAMES", "Answer", "Asker", "ask", "read_film", "read_picture", "read_pictures"]

FRAMES = 8  # of a film

_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}


@dataclass(frozen=True)
class Answer:
    """An answer and what it took.

    Args:
        text: the answer.
        method: name of the method, "full" for the untouched model.
        keep: share of the visual tokens that was left behind the last cut.
        route: tokens of each layer.
        prefill: seconds to the first word, with the pictures' features.
        decode: seconds of the other words.
        words: number of tokens of the answer.
        cache: bytes of keys and values in the end.
    """

    text: str
    method: str
    keep: float
    route: Route
    prefill: float
    decode: float
    words: int
    cache: int

    @property
    def read(self) -> float:
        """Tokens that a layer read, on average over the layers."""
        return sum(self.route.tokens) / max(1, len(self.route.tokens))

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON.

        Returns:
            A dictionary.
        """
        return asdict(self) | {"read": self.read}


@contextmanager
def _offline() -> Iterator[None]:
    """Tell the libraries to fetch and report nothing, and to print errors only."""
    before = {name: os.environ.get(name) for name in _OFFLINE}
    os.environ.update(_OFFLINE)
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def read_picture(source: Any) -> Image:
    """A picture as processors take it.

    Args:
        source: path, PIL image or array (H, W) or (H, W, C), of 8 or 16 bits.

    Returns:
        Picture in RGB, upright.
    """
    import numpy as np
    from PIL import Image, ImageOps

    if isinstance(source, Image.Image):
        return ImageOps.exif_transpose(source).convert("RGB")
    pixels = images.read(Path(source)).frame(0).pixels if isinstance(source, str | Path) else np.asarray(source)
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[2] in (1, 2):
        pixels = pixels[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(pixels[..., :3] if pixels.ndim == 3 else pixels)).convert("RGB")


def read_film(path: str | Path, count: int = FRAMES) -> list[Image]:
    """Frames spread evenly over a film, as processors take them.

    Args:
        path: file.
        count: number of frames.

    Returns:
        One to `count` pictures in RGB, in their order, turned as players turn them.

    Raises:
        VlmError: a count below 1.
        FilmError: a film that cannot be read.
    """
    import numpy as np

    from foveal.runtime.film.source import header, rgb, spread

    if count < 1:
        raise VlmError(f"frames must be at least 1, got {count}; {FRAMES} are usual")
    film = header(Path(path))
    return [read_picture(np.rot90(rgb(shot, film), film.rotation // 90)) for shot in spread(Path(path), film, count)]


def read_pictures(sources: Sequence[Any], frames: int = FRAMES) -> list[Image]:
    """Pictures, and the frames of films.

    Args:
        sources: paths of pictures or films, PIL images or arrays (H, W) or (H, W, C).
        frames: number of frames of a film.

    Returns:
        Pictures in RGB, in the order given.
    """
    from foveal.runtime.film.film import is_film

    found: list[Image] = []
    for source in sources:
        if isinstance(source, str | Path) and is_film(Path(source)):
            found += read_film(source, frames)
        else:
            found.append(read_picture(source))
    return found


def _kind(folder: Path) -> str:
    """Type of the model in a folder, if it reads pictures and foveal knows it."""
    if not folder.is_dir():
        raise VlmError(
            f"{folder} is no folder; models are read from local folders only, so name one that holds a model"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = str(config["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        raise VlmError(
            f"{folder} holds no model of transformers, whose config.json names a model_type; "
            "name a folder that save_pretrained has written"
        ) from None
    if kind not in FAMILIES:
        reads = any(name in config for name in ("vision_config", "image_token_id", "image_token_index"))
        why = "is not among those known" if reads else "reads text only"
        raise VlmError(f"{folder} holds a model of type {kind!r}, which {why}; known are {', '.join(sorted(FAMILIES))}")
    return kind


def _stored(layer: Any) -> int:
    """Bytes of a layer's cache; one that stores integers counts them itself."""
    size: int | None = getattr(layer, "nbytes", None)
    return sum(x.numel() * x.element_size() for x in (layer.keys, layer.values)) if size is None else size


class Asker:
    """A model that is loaded once and asked often.

    Args:
        folder: folder of a model of transformers, with its processor.

    Raises:
        VlmError: a folder that holds no such model, or one of no known family.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.kind = _kind(self.folder)
        with _offline():
            from transformers import AutoModelForImageTextToText, AutoProcessor

            try:
                self.processor: Any = AutoProcessor.from_pretrained(self.folder, local_files_only=True)
                self.model: Any = AutoModelForImageTextToText.from_pretrained(
                    self.folder, local_files_only=True, use_safetensors=True, dtype="auto"
                ).eval()
            except (OSError, ValueError, KeyError) as error:
                said = " ".join(str(error).split())[:300]
                raise VlmError(
                    f"{self.folder} cannot be loaded ({said}); it must hold config.json, weights as .safetensors, "
                    "a tokenizer and the processor's configuration"
                ) from error

    def inputs(self, pictures: Sequence[Any], question: str, *, frames: int = FRAMES) -> dict[str, Any]:
        """What the model reads.

        Args:
            pictures: paths of pictures or films, PIL images or arrays (H, W) or (H, W, C).
            question: the question.
            frames: number of frames of a film, each of which the model reads as a picture.

        Returns:
            Arguments of the model.

        Raises:
            VlmError: no picture, or no question.
        """
        if not pictures:
            raise VlmError("no picture; name at least one before the question")
        if not question.strip():
            raise VlmError("the question is empty; ask something, such as 'What is this?'")
        shown: Any = read_pictures(pictures, frames)
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"} for _ in shown] + [{"type": "text", "text": question}]
            messages = [{"role": "user", "content": content}]
            text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        elif self.kind == "fuyu":
            text = f"{question}\n"
        else:
            text = str(getattr(self.processor, "image_token", "<image>")) * len(shown) + f"\n{question}"
        if self.kind == "paligemma":
            shown = [shown]
        read: Any = self.processor(images=shown, text=text, return_tensors="pt")
        dtype = self.model.dtype
        return {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in read.items()
            if isinstance(value, torch.Tensor)
        }

    def __call__(
        self,
        pictures: Sequence[Any],
        question: str,
        method: str | Reducer = "fastv",
        keep: float | None = None,
        *,
        words: int = 64,
        frames: int = FRAMES,
        **options: Any,
    ) -> Answer:
        """Ask.

        Args:
            pictures: paths of pictures or films, PIL images or arrays (H, W) or (H, W, C).
            question: the question.
            method: "full" for the untouched model, the name of a method, or a method.
            keep: share of the visual tokens that is left behind the last cut; None for the method's own.
            words: most tokens of the answer.
            frames: number of frames of a film.
            **options: fields of the method.

        Returns:
            The answer.
        """
        full = method == "full"
        reducer = None if full else make(method, keep, **options)
        inputs = self.inputs(pictures, question, frames=frames)
        with nullcontext() if reducer is None else accelerate(self.model, reducer) as fast:
            return self._answer(inputs, fast, method if isinstance(method, str) else repr(method), words)

    def _answer(self, inputs: dict[str, Any], fast: Accelerated | None, name: str, words: int) -> Answer:
        from transformers import StoppingCriteriaList

        marks: list[float] = []

        def mark(ids: torch.Tensor, _: Any, **__: Any) -> torch.Tensor:
            marks.append(time.perf_counter())
            return torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)

        with torch.inference_mode(), _offline():
            begun = time.perf_counter()
            made: Any = self.model.generate(
                **inputs,
                max_new_tokens=words,
                do_sample=False,
                stopping_criteria=StoppingCriteriaList([mark]),  # type: ignore[list-item]
                return_dict_in_generate=True,
            )
        length = inputs["input_ids"].shape[1]
        answered = made.sequences[0, length:]
        cache = made["cache"] if "cache" in made else made["past_key_values"]
        if fast is None:
            visual = int(find(self.model).visual(inputs["input_ids"]).sum())
            layers = len(cache.layers)
            route = Route((length,) * layers, ((visual,),) * layers, (length,) * layers)
        else:
            route = fast.route
        size = sum(_stored(layer) for layer in cache.layers)
        return Answer(
            text=self.processor.decode(answered, skip_special_tokens=True).strip(),
            method=name,
            keep=1.0 if fast is None else fast.method.keep,
            route=route,
            prefill=marks[0] - begun,
            decode=marks[-1] - marks[0],
            words=len(answered),
            cache=size,
        )


def ask(
    pictures: Sequence[Any],
    question: str,
    model: str | Path,
    method: str | Reducer = "fastv",
    keep: float | None = None,
    *,
    words: int = 64,
    frames: int = FRAMES,
    **options: Any,
) -> Answer:
    """Ask a model about pictures or films; `Asker` loads it once for several questions.

    Args:
        pictures: paths of pictures or films, PIL images or arrays (H, W) or (H, W, C).
        question: the question.
        model: folder of a model of transformers, with its processor.
        method: "full" for the untouched model, the name of a method, or a method.
        keep: share of the visual tokens that is left behind the last cut; None for the method's own.
        words: most tokens of the answer.
        frames: number of frames of a film.
        **options: fields of the method.

    Returns:
        The answer.
    """
    return Asker(model)(pictures, question, method, keep, words=words, frames=frames, **options)
