"""Evidence for FastV: the untouched model at R = 0, the paper's count of operations, and the clock."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foveal.evidence.tasks import mosaics
from foveal.record import bound, equal, faster, kept
from foveal.vlm.fastv import FastV, flops
from foveal.vlm.hooks import accelerate
from foveal.vlm.random import Random
from foveal.vlm.tiny import IMAGE, questions, tiny

if TYPE_CHECKING:
    from collections.abc import Callable

DIM, HIDDEN, DEPTH = 512, 1376, 12  # of the decoder that is timed; LLaMA's proportions
SIDE, TEXT = 24, 64  # 576 visual tokens, as in LLaVA-1.5, and words around them


def _logits(family: str, *, pruned: bool) -> Tensor:
    """Logits of a padded batch, by the untouched model or with R = 0."""
    model = tiny(family)
    with torch.no_grad(), ExitStack() as stack:
        if pruned:
            stack.enter_context(accelerate(model, FastV(keep=1.0, layer=1)))
        logits: Tensor = model(**questions(family, (1, 2, 0))).logits
    return logits


def _saving(tokens: int, visual: int, *, dim: int, hidden: int, depth: int, matrices: int = 2) -> tuple[float, float]:
    """Operations in closed form: of all layers on all tokens, and with K = 2 and R = 50%."""
    whole, half = (flops(n, dim=dim, hidden=hidden, matrices=matrices) for n in (tokens, tokens - visual // 2))
    return depth * whole, 2 * whole + (depth - 2) * half


def _reduction() -> float:
    """Percent of the operations saved in LLaVA-1.5-13B."""
    whole, pruned = _saving(SIDE**2 + TEXT, SIDE**2, dim=5120, hidden=13824, depth=40)
    return 100 * (1 - pruned / whole)


def _llava(*, dim: int, hidden: int, depth: int) -> tuple[Any, dict[str, Tensor]]:
    """A LLaVA with random weights around a decoder, and a question about one picture; its vision tower is small."""
    import transformers

    vision = {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 1, "image_size": 4 * SIDE, "patch_size": 4, "projection_dim": 16}
    text = {"model_type": "llama", "vocab_size": 64, "hidden_size": dim, "intermediate_size": hidden}
    text |= {"num_hidden_layers": depth, "num_attention_heads": dim // 64, "num_key_value_heads": dim // 64}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.LlavaConfig(
            vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-1
        )
        model = transformers.LlavaForConditionalGeneration(config).eval()
        words = torch.randint(7, 64, (TEXT,))
        ids = torch.cat((words[:32], torch.full((SIDE**2,), IMAGE), words[32:]))[None]
        pixels = torch.randn(1, 3, 4 * SIDE, 4 * SIDE)
    return model, {"input_ids": ids, "pixel_values": pixels, "attention_mask": torch.ones_like(ids)}


def _prefill(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(**inputs, logits_to_keep=1).logits
    return logits


def _saved(*, counted: bool) -> Tensor:
    """Multiply-adds saved in a decoder of four layers, counted or in closed form."""
    from torch.utils.flop_counter import FlopCounterMode

    depth = 4
    if not counted:
        shape = {"dim": DIM, "hidden": HIDDEN, "depth": depth, "matrices": 3}
        whole, pruned = _saving(SIDE**2 + TEXT, SIDE**2, **shape)
        return torch.tensor(float(whole - pruned))
    model, inputs = _llava(dim=DIM, hidden=HIDDEN, depth=depth)
    with FlopCounterMode(display=False) as whole:
        _prefill(model, inputs)
    with accelerate(model, FastV(keep=0.5)), FlopCounterMode(display=False) as pruned:
        _prefill(model, inputs)
    return torch.tensor((whole.get_total_flops() - pruned.get_total_flops()) / 2)


def _timed(keep: float) -> Callable[[], Any]:
    """A prefill of the larger decoder; untouched with keep = 1."""
    model, inputs = _llava(dim=DIM, hidden=HIDDEN, depth=DEPTH)
    if keep < 1:
        accelerate(model, FastV(keep=keep))
    return partial(_prefill, model, inputs)


def _speed() -> float:
    """Speed-up in closed form."""
    whole, pruned = _saving(SIDE**2 + TEXT, SIDE**2, dim=DIM, hidden=HIDDEN, depth=DEPTH, matrices=3)
    return whole / pruned


CLAIMS = (
    equal(
        "With R = 0 a LLaVA gives the untouched model's logits, bit for bit.",
        ours=partial(_logits, "llava", pruned=True),
        theirs=partial(_logits, "llava", pruned=False),
        tolerance=0.0,
        clause=1,
    ),
    equal(
        "With R = 0 a Qwen2.5-VL, whose positions have three axes, gives the untouched model's logits, bit for bit.",
        ours=partial(_logits, "qwen2_5_vl", pruned=True),
        theirs=partial(_logits, "qwen2_5_vl", pruned=False),
        tolerance=0.0,
        clause=1,
    ),
    equal(
        "Multiply-adds saved with K = 2 and R = 50% are those of the closed form, to 1%.",
        paper="4nd² + 2n²d + 2ndm a layer",
        ours=partial(_saved, counted=True),
        theirs=partial(_saved, counted=False),
        tolerance=0.01,
        clause=2,
    ),
    bound(
        "K = 2 and R = 50% save 45% of the operations of LLaVA-1.5-13B, within three points.",
        paper="45%",
        value=_reduction,
        at_least=42.0,
        at_most=48.0,
        unit="%",
        clause=2,
    ),
    faster(
        "The prefill of a decoder of twelve layers is faster by at least 90% of what the closed form says.",
        paper="latency falls accordingly",
        ours=partial(_timed, 0.5),
        theirs=partial(_timed, 1.0),
        at_least=0.9 * _speed(),
        clause=3,
    ),
    kept(
        "A small LLaVA that answers about mosaics loses less by it than by random dropping, with a quarter left.",
        paper="no loss at 50%",
        quality=lambda seed: (
            mosaics.accuracy(seed, FastV(keep=0.25)) - mosaics.accuracy(seed, Random(keep=0.25, layer=2))
        ),
        at_least=0.0,
        unit="points",
        data=mosaics.DATA,
        needs=mosaics.NEEDS,
        clause=4,
    ),
    mosaics.seeing(clause=4),
)
