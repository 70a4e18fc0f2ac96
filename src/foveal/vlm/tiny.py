"""Tiny vision-language models with random weights, one of every family: for tests, and for the cases of records.

Token ids: 0 padding, 1 start, 2 end, 3 and 4 around a picture, 5 a visual token, 6 a token of a film, others text.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from foveal.vlm.method import Reducer

__all__ = ["FAMILIES", "Reader", "applied", "question", "questions", "reader", "tiny"]

WORDS, IMAGE, FILM = 64, 5, 6
SIDE, PATCH = 16, 4  # pixels


@dataclass(frozen=True)
class _Build:
    """How a family is built.

    Args:
        model: name of the class.
        config: name of its config.
        tokens: visual tokens of a picture.
        vision: fields of the vision config.
        text: fields of the text config, besides the common ones.
        whole: fields of the config.
    """

    model: str
    config: str
    tokens: int
    vision: dict[str, Any]
    text: dict[str, Any]
    whole: dict[str, Any]


_CLIP = {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
_CLIP |= {"num_attention_heads": 2, "image_size": SIDE, "patch_size": PATCH, "projection_dim": 16}
_SIGLIP = {"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
_SIGLIP |= {"num_attention_heads": 2, "image_size": SIDE, "patch_size": PATCH, "vision_use_head": False}
_INDEX = {"image_token_index": IMAGE}
_QWEN = {"image_token_id": IMAGE, "video_token_id": FILM, "vision_start_token_id": 3, "vision_end_token_id": 4}
_AXES = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
_GRID = {"image_grid_pinpoints": [[SIDE, SIDE]]}
_IDEFICS = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_IDEFICS |= {"image_size": SIDE, "patch_size": PATCH}

_BUILDS = {
    "fuyu": _Build(
        "FuyuForCausalLM",
        "FuyuConfig",
        9,
        {},
        {"model_type": "persimmon", "qk_layernorm": True},
        {"image_token_id": IMAGE, "patch_size": PATCH},
    ),
    "idefics3": _Build(
        "Idefics3ForConditionalGeneration",
        "Idefics3Config",
        4,
        _IDEFICS,
        {"model_type": "llama"},
        {"image_token_id": IMAGE, "scale_factor": 2},
    ),
    "internvl": _Build(
        "InternVLForConditionalGeneration",
        "InternVLConfig",
        4,
        {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": (SIDE, SIDE),
            "patch_size": (PATCH, PATCH),
        },
        {"model_type": "qwen2"},
        {"image_token_id": IMAGE, "downsample_ratio": 0.5},
    ),
    "llava": _Build("LlavaForConditionalGeneration", "LlavaConfig", 16, _CLIP, {"model_type": "llama"}, _INDEX),
    "llava_next": _Build(
        "LlavaNextForConditionalGeneration", "LlavaNextConfig", 36, _CLIP, {"model_type": "llama"}, _INDEX | _GRID
    ),
    "llava_onevision": _Build(
        "LlavaOnevisionForConditionalGeneration",
        "LlavaOnevisionConfig",
        36,
        _SIGLIP,
        {"model_type": "qwen2"},
        _INDEX | _GRID | {"video_token_index": FILM},
    ),
    "paligemma": _Build(
        "PaliGemmaForConditionalGeneration",
        "PaliGemmaConfig",
        16,
        _SIGLIP | {"projection_dim": 32},
        {"model_type": "gemma"},
        _INDEX | {"projection_dim": 32},
    ),
    "qwen2_5_vl": _Build(
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLConfig",
        6,
        {
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "patch_size": PATCH,
            "window_size": 16,
            "fullatt_block_indexes": [0],
            "out_hidden_size": 32,
        },
        _AXES,
        _QWEN,
    ),
    "qwen2_vl": _Build(
        "Qwen2VLForConditionalGeneration",
        "Qwen2VLConfig",
        6,
        {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 1, "patch_size": PATCH},
        _AXES,
        _QWEN,
    ),
    "qwen3_vl": _Build(
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLConfig",
        6,
        {
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "patch_size": PATCH,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
        },
        _AXES,
        _QWEN,
    ),
    "smolvlm": _Build(
        "SmolVLMForConditionalGeneration",
        "SmolVLMConfig",
        4,
        _IDEFICS,
        {"model_type": "llama"},
        {"image_token_id": IMAGE, "scale_factor": 2},
    ),
}

FAMILIES = tuple(sorted(_BUILDS))


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what transformers says about configs of unusual sizes."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def tiny(family: str, *, seed: int = 0, depth: int = 3, **fields: Any) -> Any:
    """A model of width 32 with random weights, in eval mode.

    Args:
        family: one of `FAMILIES`.
        seed: seed of the weights.
        depth: number of layers of the decoder.
        **fields: fields of the text config, such as `num_key_value_heads=1`.

    Returns:
        Model of transformers, with its language head.
    """
    import transformers

    build = _BUILDS[family]
    text: dict[str, Any] = {"vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": depth}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} | build.text | fields
    if build.model.startswith(("Fuyu", "Qwen2")):
        del text["head_dim"]
    if build.model.startswith("Fuyu"):
        del text["num_key_value_heads"]
    vision = {"vision_config": dict(build.vision)} if build.vision else {}
    with torch.random.fork_rng(devices=[]), _quietly():
        torch.manual_seed(seed)
        config = getattr(transformers, build.config)(text_config=text, **vision, **build.whole)
        model = getattr(transformers, build.model)(config)
        with torch.no_grad():
            for parameter in model.parameters():  # as large as trained ones, so that attention is uneven
                if parameter.dim() > 1:
                    parameter.normal_(0, 2 * parameter[0].numel() ** -0.5)
    model.generation_config.update(pad_token_id=0, bos_token_id=1, eos_token_id=None)
    return model.eval()


def questions(
    family: str, pictures: Sequence[int] = (1,), words: Sequence[int] | None = None, *, seed: int = 0, left: bool = True
) -> dict[str, Tensor]:
    """Prompts with random pictures and words, padded to one length.

    Args:
        family: one of `FAMILIES`.
        pictures: number of pictures of each row.
        words: number of words behind the pictures of each row; None for 3, 5, 7, …
        seed: seed; the first rows are the same for any number of rows.
        left: whether padding is on the left.

    Returns:
        Arguments of the model.
    """
    build = _BUILDS[family]
    generator = torch.Generator().manual_seed(seed)
    rows: list[list[int]] = []
    shown: list[Tensor] = []  # pixels of each picture
    owners: list[int] = []
    qwen = family.startswith("qwen")
    for row, number in enumerate(pictures):
        told = 3 + 2 * row if words is None else words[row]
        ids = [1, *torch.randint(7, WORDS, (2,), generator=generator).tolist()]
        for _ in range(number):
            ids += [3, *[IMAGE] * build.tokens, 4]
            shape: tuple[int, ...] = (3, SIDE, SIDE)
            if qwen:
                shape = (4 * build.tokens, 3 * 2 * PATCH**2)
            elif family == "fuyu":
                shape = (build.tokens, 3 * PATCH**2)
            elif build.tokens == 36:
                shape = (2, 3, SIDE, SIDE)
            shown.append(torch.randn(shape, generator=generator))
            owners.append(row)
        rows.append(ids + torch.randint(7, WORDS, (told,), generator=generator).tolist())
    length = max(map(len, rows))
    pads = [[0] * (length - len(ids)) for ids in rows]
    tokens = torch.tensor([pad + row if left else row + pad for pad, row in zip(pads, rows, strict=True)])
    inputs = {"input_ids": tokens, "attention_mask": (tokens != 0).long()}
    if not shown:
        return inputs
    if qwen:
        inputs["pixel_values"] = torch.cat(shown)
        inputs["image_grid_thw"] = torch.tensor([[1, 4, build.tokens]] * len(shown))
        inputs["mm_token_type_ids"] = (tokens == IMAGE).int()
    elif family in ("smolvlm", "idefics3"):
        most = max(pictures)
        pixels = torch.zeros(len(rows), most, *shown[0].shape)
        for row in range(len(rows)):
            for place, index in enumerate(i for i, owner in enumerate(owners) if owner == row):
                pixels[row, place] = shown[index]
        inputs["pixel_values"] = pixels
    else:
        inputs["pixel_values"] = torch.stack(shown)
    if build.tokens == 36:
        inputs["image_sizes"] = torch.tensor([[SIDE, SIDE]] * len(shown))
    if family == "paligemma":
        inputs["token_type_ids"] = torch.zeros_like(tokens)
    return inputs


class Reader(nn.Module):
    """A model that takes all its arguments as one mapping and returns logits, as the common suites call it.

    Args:
        model: model of transformers.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        logits: Tensor = self.model(**inputs).logits
        return logits


def reader(seed: int) -> Reader:
    """A tiny LLaVA.

    Args:
        seed: seed of the weights.

    Returns:
        The model.
    """
    return Reader(tiny("llava", seed=seed))


def question(seed: int) -> dict[str, Tensor]:
    """Two padded prompts for it, of one and of two pictures.

    Args:
        seed: seed.

    Returns:
        Arguments of the model.
    """
    return questions("llava", (1, 2), seed=seed)


def applied(method: Reducer) -> Callable[[Reader], None]:
    """A method as a transform of a `Reader`, in place.

    Args:
        method: method.

    Returns:
        Function that accelerates the model.
    """

    def apply(model: Reader) -> None:
        from foveal.vlm.hooks import accelerate

        accelerate(model.model, method)

    return apply
