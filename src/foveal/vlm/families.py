"""Where the parts of a vision-language model of transformers are, family by family.

All families of transformers 5 share one build: a core that merges visual embeddings into those of the text at the
places of an image token, and a decoder that is a list of layers with an attention each. What differs is in `FAMILIES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from foveal.vlm.method import VlmError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["FAMILIES", "Family", "Parts", "find"]


@dataclass(frozen=True)
class Family:
    """Names of a family's parts, as attributes below the model.

    Args:
        decoder: language model, which holds `layers`.
        vision: what makes visual features.
        core: module that is called with token ids and merges visual embeddings into those of the text.
        attention: attention of a layer.
        tokens: fields of the config that hold the ids of visual tokens.
        deepstack: whether visual features are added after the first layers too.
        grids: argument of the model that holds the sizes of its grids, in patches.
    """

    decoder: str = "model.language_model"
    vision: str = "model.vision_tower"
    core: str = "model"
    attention: str = "self_attn"
    tokens: tuple[str, ...] = ("image_token_id",)
    deepstack: bool = False
    grids: str = ""


_QWEN = ("image_token_id", "video_token_id")
_IDEFICS = Family(decoder="model.text_model", vision="model.vision_model")

FAMILIES: dict[str, Family] = {
    "fuyu": Family(vision="model.vision_embed_tokens"),
    "idefics3": _IDEFICS,
    "internvl": Family(),
    "llava": Family(),
    "llava_next": Family(),
    "llava_onevision": Family(tokens=_QWEN),
    "paligemma": Family(),
    "qwen2_5_vl": Family(vision="model.visual", tokens=_QWEN, grids="image_grid_thw"),
    "qwen2_vl": Family(vision="model.visual", tokens=_QWEN, grids="image_grid_thw"),
    "qwen3_vl": Family(vision="model.visual", tokens=_QWEN, grids="image_grid_thw", deepstack=True),
    "smolvlm": _IDEFICS,
}


@dataclass(frozen=True)
class Parts:
    """The parts of one model.

    Args:
        family: where they were found.
        core: module that is called with token ids.
        decoder: language model.
        layers: its layers.
        attentions: attention of each layer.
        tokens: ids of visual tokens.
    """

    family: Family
    core: nn.Module
    decoder: nn.Module
    layers: tuple[nn.Module, ...]
    attentions: tuple[nn.Module, ...]
    tokens: tuple[int, ...]

    def width(self, visual: Tensor, grids: Tensor | None) -> Tensor:
        """Columns of the grid that each visual token is from.

        Args:
            visual: visual tokens, (B, N).
            grids: frames, rows and columns of each picture in patches, (pictures, 3); None if they are not given.

        Returns:
            Columns, in tokens, (B, N); 0 where they are not known.
        """
        config: Any = getattr(self.core, "config", None)
        merge = getattr(getattr(config, "vision_config", None), "spatial_merge_size", 1)
        starts = visual & ~F.pad(visual, (1, 0))[:, :-1]
        nothing = torch.zeros_like(visual, dtype=torch.long)
        if grids is None or int(starts.sum()) != len(grids):
            return nothing
        run = starts.flatten().cumsum(0).view_as(nothing) - 1  # rows of the batch one after the other, as pictures are
        widths = (grids[:, 2].to(visual.device) // merge)[run.clamp_min(0)]
        return torch.where(visual, widths, nothing)

    def visual(self, ids: Tensor) -> Tensor:
        """Which tokens are visual.

        Args:
            ids: token ids, (B, N).

        Returns:
            Mask, (B, N).
        """
        found = ids == self.tokens[0]
        for token in self.tokens[1:]:
            found = found | (ids == token)
        return found


def _part(model: nn.Module, path: str, kind: str) -> Any:
    try:
        return attrgetter(path)(model)
    except AttributeError:
        raise VlmError(
            f"{type(model).__name__} has no {path}, where models of type {kind!r} hold it; "
            "is it the model with its language head, such as LlavaForConditionalGeneration?"
        ) from None


def find(model: nn.Module, family: Family | None = None) -> Parts:
    """Find the parts of a model.

    Args:
        model: model of transformers, with its language head.
        family: where its parts are; None looks it up by the type that its config names.

    Returns:
        The parts.

    Raises:
        VlmError: a model of no known family, one that lacks a part, or one whose layers attend within a window.
    """
    config: Any = getattr(model, "config", None)
    kind = str(getattr(config, "model_type", ""))
    if family is None:
        if kind not in FAMILIES:
            what = f"a {kind!r}" if kind else f"a {type(model).__name__}"
            reads = getattr(config, "image_token_id", None) is not None
            lack = "a line in foveal.vlm.families, or family=Family(…)" if reads else "an image token in its config"
            raise VlmError(
                f"{what} model cannot be accelerated: it lacks {lack}; known are {', '.join(sorted(FAMILIES))}"
            )
        family = FAMILIES[kind]
    core, decoder = (_part(model, path, kind) for path in (family.core, family.decoder))
    layers = tuple(_part(decoder, "layers", kind))
    attentions = tuple(_part(layer, family.attention, kind) for layer in layers)
    tokens = tuple(int(value) for name in family.tokens if (value := getattr(config, name, None)) is not None)
    if not tokens:
        raise VlmError(
            f"the config of the {kind!r} model has no {' or '.join(family.tokens)}; visual tokens are unknown"
        )
    kinds = set(getattr(decoder.config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or (
        getattr(decoder.config, "layer_types", None) is None
        and getattr(decoder.config, "sliding_window", None) is not None
    ):
        raise VlmError(
            f"layers of the {kind!r} model attend within a window, which counts positions that dropping would move; "
            "set sliding_window to None in its text_config if prompts are shorter than the window"
        )
    return Parts(family, core, decoder, layers, attentions, tokens)
