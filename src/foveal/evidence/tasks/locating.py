"""Find a digit: a picture of 8×8 cells shows six digits, a question names one, and the answer is its cell.

The model is a LLaVA of 64 visual tokens, one a cell, with a decoder of four layers, trained in minutes on all six
questions of each picture at once. Accuracy, in percent, is of one question on each of 500 pictures with digits that
were not trained on. The floor is chance, 1.6 %, or a sixth for a model that finds digits and cannot read them.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import digits
from foveal.evidence.trained_once import trained_once
from foveal.record import kept
from foveal.vlm.hooks import accelerate

if TYPE_CHECKING:
    from torch import Tensor, nn

    from foveal.record import Claim
    from foveal.vlm.method import Reducer

__all__ = ["CELLS", "DATA", "DEPTH", "DIM", "HIDDEN", "NEEDS", "accuracy", "batch", "build", "learnt", "trained"]

NEEDS = ("minutes",)
SIDE, CELL, SHOWN = 8, 16, 6  # cells of a side, pixels of a cell, digits of a picture
CELLS = SIDE**2
DEPTH, DIM, HIDDEN = 4, 64, 128  # of the decoder
STEPS, ROWS, TESTED = 1500, 32, 500
START, IMAGE, DIGIT, ANSWER = 1, 5, 7, 17  # first token ids: of a prompt, a cell's picture, digits, cells
DATA = f"{TESTED} pictures of rendered digits, {STEPS} steps of {ROWS}"


def batch(part: str, count: int, *, asked: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Pictures and questions about them.

    Args:
        part: whose digits are shown, "train" or "test".
        count: number of pictures, B.
        asked: number of questions about each, each followed by its answer but the last; at most six.
        seed: seed.

    Returns:
        Arguments of the model, and the answers as token ids, (B, asked).
    """
    glyphs, labels = digits.pictures(part)
    generator = torch.Generator().manual_seed(seed)
    named = torch.rand(count, 10, generator=generator).argsort(1)[:, :SHOWN]
    cells = torch.rand(count, CELLS, generator=generator).argsort(1)[:, :SHOWN]
    # a random picture of each digit: the highest of random numbers among those of its label
    drawn = torch.rand(count, SHOWN, len(labels), generator=generator)
    chosen = drawn.masked_fill(named[..., None] != labels, -1).argmax(2)
    grid = torch.randn(count, CELLS, CELL, CELL, generator=generator) / 3 - 2 / 3  # as bright as a digit's background
    grid[torch.arange(count)[:, None], cells] = glyphs[chosen, 0]
    # (B, SIDE, SIDE, CELL, CELL) to (B, 1, pixels, pixels)
    canvas = grid.unflatten(1, (SIDE, SIDE)).transpose(2, 3).reshape(count, 1, SIDE * CELL, SIDE * CELL)
    pairs = torch.stack((named + DIGIT, cells + ANSWER), 2)[:, :asked].flatten(1)
    head = torch.tensor([START, *[IMAGE] * CELLS]).expand(count, -1)
    ids = torch.cat((head, pairs[:, :-1]), 1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": canvas}
    return inputs, cells[:, :asked] + ANSWER


def build() -> nn.Module:
    """The model, untrained.

    Returns:
        LLaVA of transformers.
    """
    import transformers

    vision = {"model_type": "clip_vision_model", "hidden_size": DIM, "intermediate_size": HIDDEN, "num_channels": 1}
    vision |= {"num_hidden_layers": 2, "num_attention_heads": 4, "image_size": SIDE * CELL, "patch_size": CELL}
    text = {"model_type": "llama", "vocab_size": ANSWER + CELLS, "hidden_size": DIM, "intermediate_size": HIDDEN}
    text |= {"num_hidden_layers": DEPTH, "num_attention_heads": 4, "num_key_value_heads": 4}
    text |= {"initializer_range": 0.1}
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-1
    )
    model: nn.Module = transformers.LlavaForConditionalGeneration(config)
    return model


@cached(maxsize=4)
def trained(seed: int) -> nn.Module:
    """The model, trained; claims share it.

    Args:
        seed: seed of weights and batches.

    Returns:
        The model in eval mode; restore what accelerates it.
    """
    import transformers

    def loss(model: Any, given: tuple[dict[str, Tensor], Tensor]) -> Tensor:
        inputs, answers = given
        logits = model(**inputs, use_cache=False).logits[:, 1 + CELLS :: 2]  # behind each digit
        return F.cross_entropy(logits.flatten(0, 1), answers.flatten())

    def train() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build()
        rows = 2 if rehearsing() else ROWS
        return short_run(
            model,
            lambda step: batch("train", rows, asked=SHOWN, seed=100_000 * seed + step),
            loss,
            steps=STEPS,
            lr=2e-3,
            weight_decay=0.01,
            clip=1.0,
        )

    key = f"locating {STEPS} steps of {ROWS}, seed {seed}, transformers {transformers.__version__}"
    return trained_once(build, train, modules=["foveal.evidence.tasks.locating"], key=key)


@cached(maxsize=32)
def accuracy(seed: int, method: Reducer | None) -> float:
    """Share of the questions that the trained model answers with the right cell.

    Args:
        seed: seed of the model; the questions are the same for every seed.
        method: method by which tokens are dropped; None for the untouched model.

    Returns:
        Accuracy, percent.
    """
    model: Any = trained(seed)
    inputs, answers = batch("test", 4 if rehearsing() else TESTED, asked=1, seed=10**9)
    with torch.no_grad(), nullcontext() if method is None else accelerate(model, method):
        said = model(**inputs, use_cache=False).logits[:, -1].argmax(1)
    return 100 * float((said == answers[:, 0]).double().mean())


def learnt(*, clause: int) -> Claim:
    """`kept`: the untouched model finds most digits, without which nothing that drops tokens can be compared on it.

    Args:
        clause: clause of the method's bar that the comparison answers.

    Returns:
        The claim.
    """
    return kept(
        "The small LLaVA itself, untouched, finds at least half of the digits: else no method can be compared on it.",
        paper="",
        quality=lambda seed: accuracy(seed, None),
        at_least=50.0,
        unit="%",
        data=DATA,
        needs=NEEDS,
        clause=clause,
    )
