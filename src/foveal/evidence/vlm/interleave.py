"""Evidence for LLaVA-NeXT-Interleave: one to eight pictures counted, and a small LLaVA that compares pictures.

The tower is EfficientNet-Lite0 as in `foveal.evidence.tasks.mosaics`, a picture of Imagenette one visual token, the
mean of its four. A LLaVA of three layers learns to say what a single picture shows; then it goes on with single
pictures alone (the twin), or with sets of two to four among them, for as many steps. "Which picture shows X" is asked
of a set of different classes, "at which picture does it change" of a set whose class changes once or never. Every
picture is named by a word behind it. Answers are chosen among those that are possible: a picture's name, or a class.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import mosaics
from foveal.record import equal, kept
from foveal.vlm.interleave import arranged, expanded, predicted_length, splice, visual_tokens
from foveal.vlm.tiny import IMAGE, PATCH, SIDE, WORDS, tiny

START, SHOWN, WHAT, WHICH, CHANGED, NAME = range(6)
NEVER, CLASS = NAME + 4, NAME + 5
DIM, DEPTH, SINGLE, STEPS, ROWS, TESTED = 64, 3, 60, 1400, 64, 500
MOST = 4  # pictures of a set
DATA = (
    f"{TESTED} sets of test pictures of Imagenette for each size and question; {SINGLE} + {STEPS} steps of {ROWS} sets"
)


class _Tower(nn.Module):
    """What Lite0 saw of pictures, (n, 1, 320), as an encoder gives it."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        known = mosaics.features("train")[0].mean((1, 2))
        self.register_buffer("mean", known.mean(0))
        self.register_buffer("deviation", known.std(0).clamp(min=1e-6))

    def forward(self, pixel_values: Tensor, **_: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        x = (pixel_values - self.mean) / self.deviation
        return BaseModelOutputWithPooling(last_hidden_state=x, hidden_states=(x,))


def _built(seed: int) -> Any:
    import transformers

    vision = {"model_type": "clip_vision_model", "hidden_size": mosaics.CHANNELS, "intermediate_size": 8}
    vision |= {"num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 4, "patch_size": 2}
    text = {"model_type": "llama", "vocab_size": CLASS + 10, "hidden_size": DIM, "intermediate_size": 2 * DIM}
    text |= {"num_hidden_layers": DEPTH, "num_attention_heads": 4, "num_key_value_heads": 4, "initializer_range": 0.05}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = transformers.LlavaConfig(
            vision_config=vision,
            text_config=text | {"tie_word_embeddings": True},
            image_token_index=SHOWN,
            tie_word_embeddings=True,  # what a class looks like and its word have one embedding
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )
        model: Any = transformers.LlavaForConditionalGeneration(config)
        model.get_input_embeddings().weight.data.normal_(0, 0.15)
    model.model.vision_tower = _Tower()
    return model


def _drawn(labels: Tensor, classes: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers of pictures of these classes."""
    found = torch.empty_like(classes)
    for number in range(10):
        among, wanted = (labels == number).nonzero().flatten(), classes == number
        found[wanted] = among[torch.randint(len(among), (int(wanted.sum()),), generator=generator)]
    return found


def _asked(part: str, kind: int, rows: int, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Sets of `count` pictures and questions about them.

    "pixel_values": what the tower saw; "input_ids": (rows, L); "answers": (rows, questions), the first at place "at",
    the next each three places on.
    """
    if kind == WHICH:
        classes = torch.rand(rows, 10, generator=generator).argsort(1)[:, :count]
        which = torch.rand(rows, count, generator=generator).argsort(1)
        blocks = torch.stack((torch.full_like(which, WHICH), CLASS + classes.gather(1, which), NAME + which), 2)
    elif kind == CHANGED:
        first = torch.randint(10, (rows, 1), generator=generator)
        other = (first + torch.randint(1, 10, (rows, 1), generator=generator)) % 10
        change = torch.randint(1, count + 1, (rows, 1), generator=generator)  # `count`: never
        classes = torch.where(torch.arange(count) < change, first, other)
        answer = torch.where(change < count, NAME + change, NEVER)
        blocks = torch.stack((torch.full_like(answer, CHANGED), torch.full_like(answer, CHANGED), answer), 2)
    else:
        classes = torch.randint(10, (rows, 1), generator=generator)
        blocks = torch.stack((torch.full_like(classes, WHAT), torch.full_like(classes, WHAT), CLASS + classes), 2)
    features, labels = mosaics.features(part)
    shown = features[_drawn(labels, classes, generator)].mean((2, 3)).flatten(0, 1)[:, None]  # (rows · count, 1, 320)
    said = [entry for number in range(classes.shape[1]) for entry in (SHOWN, NAME + number)]
    prompt = [START, *said]
    ids = torch.cat((torch.tensor(prompt).expand(rows, -1), blocks.flatten(1)[:, :-1]), 1)
    return {"pixel_values": shown, "input_ids": ids, "answers": blocks[..., 2], "at": torch.tensor(len(prompt) + 1)}


def _logits(model: Any, given: dict[str, Tensor]) -> Tensor:
    """Logits at the places of the answers, (rows, questions, words)."""
    ids = given["input_ids"]
    said = model(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=given["pixel_values"], use_cache=False
    ).logits
    found: Tensor = said[:, int(given["at"]) :: 3]
    return found


def _loss(model: Any, given: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(_logits(model, given).flatten(0, 1), given["answers"].flatten())


def _batch(step: int, *, seed: int, many: bool) -> dict[str, Tensor]:
    """A batch: one in five is of single pictures; sets begin with two pictures and grow to four."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + step)
    rows = 4 if rehearsing() else ROWS
    if not many or step % 5 == 0:
        return _asked("train", WHAT, rows, 1, generator)
    count = 2 + step % (1 + (step > STEPS // 5) + (step > 2 * STEPS // 5))
    if step % 5 in (1, 3):
        return _asked("train", WHICH, rows, count, generator)
    return _asked("train", CHANGED, 2 * rows, count, generator)


@cached(maxsize=8)
def _trained(seed: int, *, many: bool) -> Any:
    """The model; with `many` tuned on sets, else on single pictures only."""
    model = _built(seed)
    short_run(model, partial(_batch, seed=seed + 100, many=False), _loss, steps=SINGLE, lr=4e-3, clip=1.0)
    return short_run(model, partial(_batch, seed=seed, many=many), _loss, steps=STEPS, lr=4e-3, clip=1.0)


@cached(maxsize=64)
def _accuracy(seed: int, kind: int, count: int, *, many: bool) -> float:
    """Questions of a kind about sets of `count` pictures that are answered rightly, percent."""
    generator = torch.Generator().manual_seed(10**9 + 10 * kind + count)
    options = {
        WHAT: list(range(CLASS, CLASS + 10)),
        WHICH: list(range(NAME, NAME + count)),
        CHANGED: [*range(NAME + 1, NAME + count), NEVER],
    }[kind]
    rows = 8 if rehearsing() else TESTED * (4 if kind == WHAT else 1)
    model, given = _trained(seed, many=many), _asked("val", kind, rows, count, generator)
    with torch.no_grad():
        chosen = _logits(model, given)[:, 0, options].argmax(1)
    return 100 * float((torch.tensor(options)[chosen] == given["answers"][:, 0]).double().mean())


def _sets(seed: int, *, many: bool) -> float:
    """Mean over both questions and sets of two to four pictures, percent."""
    found = [_accuracy(seed, kind, n, many=many) for kind in (WHICH, CHANGED) for n in range(2, MOST + 1)]
    return sum(found) / len(found)


CHANCE = 100 * sum(1 / n for n in range(2, MOST + 1)) / (MOST - 1)  # of both questions


def _prompts() -> list[tuple[list[int], int]]:
    """Prompts of one to eight pictures, in both formats, with words between them."""
    generator, found = torch.Generator().manual_seed(0), []
    for count in range(1, 9):
        ids = [1]
        for number in range(count):
            ids += [*torch.randint(7, WORDS, (number % 3,), generator=generator).tolist(), IMAGE]
        ids += torch.randint(7, WORDS, (3,), generator=generator).tolist()
        found += [(arranged(ids, image=IMAGE, mark=6, front=front), count) for front in (False, True)]
    return found


def _embedded(ids: list[int], count: int) -> tuple[Tensor, Tensor]:
    """What the decoder of a small LLaVA is given for a prompt, and what `splice` makes of its parts."""
    model, seen = tiny("llava"), []
    each = visual_tokens(SIDE, PATCH)
    pixels = torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(count))
    wide = torch.tensor([expanded(ids, [each] * count, image=IMAGE)])
    handle = model.model.language_model.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        model(input_ids=wide, attention_mask=torch.ones_like(wide), pixel_values=pixels)
        parts = list(
            torch.cat(list(model.model.get_image_features(pixels, return_dict=True).pooler_output)).split(each)
        )
        ours = splice(torch.tensor(ids), model.get_input_embeddings().weight, parts, image=IMAGE)
    handle.remove()
    return seen[0][0], ours


def _lengths(*, counted: bool) -> Tensor:
    each = visual_tokens(SIDE, PATCH)
    if not counted:
        return torch.tensor([predicted_length(ids, [each] * count, image=IMAGE) for ids, count in _prompts()])
    return torch.tensor([len(_embedded(ids, count)[0]) for ids, count in _prompts()])


def _spliced(*, ours: bool) -> Tensor:
    return torch.cat([_embedded(ids, count)[ours] for ids, count in _prompts()[::3]])


WORDS_OF: dict[str, Any] = {"data": DATA, "needs": mosaics.NEEDS}
CLAIMS = (
    kept(
        "Tuned on sets too, it says which of two to four pictures shows a class, and at which the class changes.",
        paper="leading multi-image results",
        quality=partial(_sets, many=True),
        at_least=85.0,
        unit="%",
        clause=1,
        **WORDS_OF,
    ),
    kept(
        "Its twin, tuned on single pictures for as many steps, is within 10 points of chance on the same questions.",
        paper="",
        quality=lambda seed: -abs(_sets(seed, many=False) - CHANCE),
        at_least=-10.0,
        unit="points",
        clause=1,
        **WORDS_OF,
    ),
    kept(
        "It says what a single picture shows as often as the twin, to 1 point.",
        paper="single-image kept",
        quality=lambda seed: _accuracy(seed, WHAT, 1, many=True) - _accuracy(seed, WHAT, 1, many=False),
        at_least=-1.0,
        unit="points",
        clause=2,
        **WORDS_OF,
    ),
    equal(
        "For one to eight pictures, in both formats, the decoder of transformers' LLaVA is given as many embeddings as "
        "predicted.",
        paper="one template",
        ours=partial(_lengths, counted=True),
        theirs=partial(_lengths, counted=False),
        tolerance=0.0,
        clause=3,
    ),
    equal(
        "They are the embeddings that `splice` makes of words and pictures.",
        ours=partial(_spliced, ours=True),
        theirs=partial(_spliced, ours=False),
        clause=3,
    ),
)
