"""VisualPrompting: a frame of learned pixels around every picture makes a frozen classifier solve another task.

*Source*: H. Bahng et al., "Exploring Visual Prompts for Adapting Large-Scale Models", 2022 (arXiv:2203.17274), section
3. One perturbation δ of the border, p pixels wide, is added to each picture x: (B, C, H, W), and trained by
backpropagation through the frozen model f; the classes of the new task are given to classes of the model by a fixed
assignment a, such as the first K:

    logits = f(x + δ)[:, a],  δ = 0 but on the border            2·C·p·(H + W - 2p) values

*Differs from the paper*: AdamW in place of SGD with a learning rate of 40, and δ = 0 at first in place of normal noise,
so that an untrained prompt changes nothing.

*Provenance*: written from the paper; the frame is laid out as in the authors' `PadPrompter`, which was read, not run.
"""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foveal.adapt.delta import AdaptError
from foveal.adapt.tune import batches_of, tune
from foveal.cases import Procedure
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from foveal.adapt.methods import Pictures

__all__ = ["BorderPrompt", "Prompted", "visual_prompting"]

_KEY = "foveal.prompt"


class BorderPrompt(nn.Module):
    """Add a frame of learned pixels to pictures.

    Args:
        img_size: side of the pictures in pixels, or height and width.
        padding: p, width of the frame in pixels, at least 1; twice as much must be below both sides.
        in_channels: C.

    Raises:
        ValueError: a frame without width, or one that leaves no picture inside.
    """

    def __init__(self, img_size: int | tuple[int, int] = 224, *, padding: int = 30, in_channels: int = 3) -> None:
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        if not 1 <= padding < min(height, width) / 2:
            raise ValueError(
                f"padding must be at least 1 and below half of the smaller side of {height}×{width}, got {padding}"
            )
        self.size, self.padding = (height, width), padding
        self.top, self.bottom = (nn.Parameter(torch.zeros(in_channels, padding, width)) for _ in range(2))
        self.left, self.right = (nn.Parameter(torch.zeros(in_channels, height - 2 * padding, padding)) for _ in "lr")

    def frame(self) -> Tensor:
        """The perturbation.

        Returns:
            δ, (C, H, W), 0 inside.
        """
        height, width = (side - 2 * self.padding for side in self.size)
        middle = torch.cat([self.left, self.left.new_zeros(len(self.left), height, width), self.right], 2)
        return torch.cat([self.top, middle, self.bottom], 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != self.size:
            raise ValueError(
                f"pictures must be {self.size[0]}×{self.size[1]}, as the prompt is, got {x.shape[-2]}×{x.shape[-1]}; "
                "resize them first"
            )
        return x + self.frame()

    def save(self, path: Path | str, *, classes: Sequence[int] | None = None) -> None:
        """Write the prompt to a file.

        Args:
            path: .safetensors file.
            classes: assignment to keep with it, see `Prompted`.
        """
        from safetensors.torch import save_file

        said = {"size": self.size, "padding": self.padding, "classes": None if classes is None else list(classes)}
        save_file(
            {name: x.detach().contiguous() for name, x in self.state_dict().items()}, path, {_KEY: json.dumps(said)}
        )

    @classmethod
    def load(cls, path: Path | str) -> tuple[BorderPrompt, tuple[int, ...] | None]:
        """Read a prompt.

        Args:
            path: file written by `save`.

        Returns:
            The prompt, and the assignment that was kept with it.

        Raises:
            AdaptError: no such file, or one that holds something else.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                text = (file.metadata() or {}).get(_KEY)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        except (OSError, SafetensorError) as error:
            raise AdaptError(f"{path}: cannot be read ({error}); give a file written by BorderPrompt.save") from error
        if text is None:
            raise AdaptError(f"{path}: holds no prompt; give a file written by BorderPrompt.save")
        said = json.loads(text)
        prompt = cls(tuple(said["size"]), padding=said["padding"], in_channels=len(tensors["top"]))
        prompt.load_state_dict(tensors)
        return prompt, None if said["classes"] is None else tuple(said["classes"])


class Prompted(nn.Module):
    """A classifier behind a prompt, (B, C, H, W) to (B, K).

    Args:
        prompt: what changes the pictures.
        model: frozen classifier.
        classes: a, class of the model for each of the K new classes; None for all of them as they are.
    """

    def __init__(self, prompt: nn.Module, model: nn.Module, *, classes: Sequence[int] | None = None) -> None:
        super().__init__()
        self.prompt, self.model = prompt, model
        self.classes = None if classes is None else list(classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(self.prompt(x))
        return logits if self.classes is None else logits[:, self.classes]


def visual_prompting(
    model: nn.Module,
    pictures: Pictures,
    *,
    padding: int = 30,
    classes: Sequence[int] | None = None,
    steps: int = 300,
    lr: float = 0.1,
    batch: int = 64,
    seed: int = 0,
) -> BorderPrompt:
    """Learn a prompt from labelled pictures.

    Args:
        model: classifier in eval mode; it stays as it is.
        pictures: pictures of the new task, with labels in 0…K-1.
        padding: p, width of the frame in pixels.
        classes: class of the model for each of the K new classes; None for those with the same numbers.
        steps: number of steps.
        lr: peak learning rate, in units of the model's input.
        batch: B.
        seed: seed of the batches.

    Returns:
        The prompt.

    Raises:
        AdaptError: pictures without labels, or labels that are not below K.
    """
    if pictures.labels is None:
        raise AdaptError("a prompt is learned from labels, got pictures without; give labels")
    if classes is not None and (most := int(pictures.labels.max())) >= len(classes):
        raise AdaptError(f"labels must be below {len(classes)}, the number of assigned classes, got {most}")
    height, width = pictures.inputs.shape[-2:]
    prompt = BorderPrompt((height, width), padding=padding, in_channels=pictures.inputs.shape[1])
    work = Prompted(prompt.to(pictures.inputs), copy.deepcopy(model), classes=classes)
    batches = batches_of(pictures.inputs, pictures.labels, batch=batch, flip=pictures.flip, seed=seed)
    tune(work, batches, prompt.parameters(), steps=steps, lr=lr, weight_decay=0.0, seed=seed)
    return prompt.requires_grad_(False)


def _learned(seed: int) -> Tensor:
    from foveal.adapt.methods import Pictures

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(25, 3)).eval()
        x = torch.randn(6, 1, 5, 5)
    return visual_prompting(model, Pictures(x, torch.arange(6) % 3), padding=1, steps=2, seed=seed).frame()


METHOD = Method(
    id=135,
    name="VisualPrompting",
    kind="procedure",
    summary="A frame of learned pixels around every picture makes a frozen classifier solve another task.",
    paper=Paper(
        "Exploring Visual Prompts for Adapting Large-Scale Models", "H. Bahng et al.", 2022, "arXiv:2203.17274"
    ),
    cases={"linear": Procedure(_learned)},
)
