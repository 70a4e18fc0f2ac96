"""Evidence for Dynamic-LLaVA: a dense run under the same mask, counts, bytes, and a small LLaVA that reads mosaics.

A mosaic has 3×3 cells, two of which show pictures of Imagenette and the others nothing. The model writes 18 words,
for each cell its place and its class, which is neither learnt nor scored where there is no picture. Of 36 visual
tokens, four a cell, 8 belong to pictures and 7 stay from layer 1 of 4 on. The attention of layer 0 is switched off: a
decoder of four layers would look up everything there, before tokens go, which one of 32 layers does not. The model is
first trained on everything; then it goes on in three ways: as before, with predictors, and with random dropping at
the same rates. The score is the percentage of pictures that are named rightly, greedily written from a cache.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import STEPS, cached, rehearsing
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import mosaics
from foveal.evidence.trained_once import trained_once
from foveal.record import bound, equal, kept, smaller
from foveal.vlm.dynamic_llava import DynamicLLaVA, ImagePredictor, Predictors, temperature
from foveal.vlm.fastv import flops
from foveal.vlm.hooks import accelerate
from foveal.vlm.tiny import IMAGE, questions, tiny

KEEP, TEXT = 0.2, 0.5  # the paper's rates
VISUAL, PROMPT, DEPTH = 576, 40, 32  # visual tokens of LLaVA-1.5, words of a prompt, layers of its 7B model


def _predictors(dim: int = 32) -> Predictors:
    """Predictors with random weights as large as trained ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = Predictors(dim, hidden=16, num_heads=2).eval()
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 2 * parameter.shape[1] ** -0.5)
    return made


def _held(out: Any) -> dict[str, Any]:
    """A cache as an argument of the model that gave it."""
    name = "cache" if "cache" in out else "past_key_values"
    return {name: out[name]}


def _read(model: Any, inputs: dict[str, Any], words: Tensor) -> tuple[list[Tensor], Any]:
    """Logits of a prompt and of words that follow it one by one, and the cache."""
    mask, out = inputs["attention_mask"], model(**inputs, use_cache=True)
    found = [out.logits]
    for word in words.T:
        mask = torch.cat((mask, torch.ones_like(mask[:, :1])), 1)
        out = model(input_ids=word[:, None], attention_mask=mask, use_cache=True, **_held(out))
        found.append(out.logits)
    return found, next(iter(_held(out).values()))


@cached(maxsize=1)
@torch.no_grad()
def _runs() -> dict[str, Tensor]:
    """Logits of three padded prompts and twelve words after each: sparse, and of a dense run under the same mask."""
    model, inputs = tiny("llava", depth=4), questions("llava", (1, 2, 0))
    words = torch.randint(7, 64, (3, 12), generator=torch.Generator().manual_seed(0))
    length, made, both = inputs["input_ids"].shape[1], _predictors(), dict(inputs)
    both["input_ids"] = torch.cat((inputs["input_ids"], words), 1)
    both["attention_mask"] = torch.cat((inputs["attention_mask"], torch.ones_like(words)), 1)
    _balanced(made, model, both, words.shape[1])
    with accelerate(model, DynamicLLaVA(0.4, made)) as fast:
        (prompt, *rest), _ = _read(model, inputs, words)
        stayed, places = fast.written, fast.places(2)  # type: ignore[attr-defined]
    sees = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    assert places is not None
    for row, columns in zip(sees, places, strict=True):
        row[columns[columns >= 0]] = True
    whole = torch.cat((sees, stayed), 1)
    order = torch.arange(whole.shape[1])
    causal, own = order[:, None] >= order, order[:, None] == order
    mask = (causal & (whole[:, None] | own))[:, None]

    def hide(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "attention_mask": kwargs["attention_mask"] & mask}

    layers: Any = model.model.language_model.layers
    hooks = [layer.register_forward_pre_hook(hide, with_kwargs=True) for layer in layers[2:]]
    dense = model(**both, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return {
        "prompt": prompt[sees],
        "dense prompt": dense[:, :length][sees],
        "words": torch.cat(rest, 1),
        "dense words": dense[:, length:],
        "stayed": stayed.float(),
    }


def _long(visual: int, written: int) -> tuple[Any, dict[str, Any]]:
    """A decoder of 32 narrow layers, and a prompt with so many visual tokens, and words that were written."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    model = tiny("llava", depth=DEPTH, max_position_embeddings=2048)
    words = torch.randint(7, 64, (1, PROMPT + written), generator=torch.Generator().manual_seed(0))
    ids = torch.cat((words[:, :1], torch.full((1, visual), IMAGE), words[:, 1:]), 1)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "logits_to_keep": 1}
    if visual:
        tokens: Any = [torch.randn(visual, 32, generator=torch.Generator().manual_seed(1))]
        inputs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=tokens)}
    return model, inputs


def _products(visual: int, *, sparse: bool, written: int = 0) -> int:
    """Multiply-adds of the decoder's matrices, counted; those of the predictors have biases and are other operators."""
    from torch.utils.flop_counter import FlopCounterMode

    model, inputs = _long(visual, written)
    made = _predictors()
    if written:  # half of the words stay
        _balanced(made, model, inputs, written)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), accelerate(model, DynamicLLaVA(KEEP, made)) if sparse else nullcontext() as fast:
        if fast is not None and written:
            fast.prompt = visual + PROMPT  # type: ignore[attr-defined]
        with counter:
            model(**inputs, use_cache=False)
    return int(counter.get_flop_counts()["Global"][torch.ops.aten.mm] // 2)


@torch.no_grad()
def _balanced(made: Predictors, model: Any, inputs: dict[str, Any], written: int) -> None:
    """Move the threshold of the text predictor so that half of the written words stay."""
    found: list[Tensor] = []

    def see(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])

    hook = model.model.language_model.layers[2].register_forward_pre_hook(see, with_kwargs=True)
    model(**inputs, use_cache=False)
    hook.remove()
    logits = made.of_text(found[0][:, -written:])
    last: Any = made.text[-1]
    last.bias[0] -= (logits[..., 0] - logits[..., 1]).quantile(0.5)


def _image_cost() -> float:
    """What visual tokens cost at keep 0.2 from layer 2 of 32, percent of what they cost otherwise."""
    words, whole = _products(0, sparse=False), _products(VISUAL, sparse=False)
    return 100 * (_products(VISUAL, sparse=True) - words) / (whole - words)


def _prefill_7b() -> float:
    """The same for LLaVA-1.5-7B in closed form, attention and predictor included, percent."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        ImagePredictor(4096)(torch.empty(1, VISUAL, 4096), torch.ones(1, VISUAL, dtype=torch.bool))
    layer = partial(flops, dim=4096, hidden=11008, matrices=3)
    sparse = 2 * layer(VISUAL) + (DEPTH - 2) * layer(round(KEEP * VISUAL)) + counter.get_total_flops() / 2
    return 100 * sparse / (DEPTH * layer(VISUAL))


def _recomputed() -> float:
    """Multiply-adds of writing the 400th word without a cache, percent of the dense decoder's."""
    return 100 * _products(VISUAL, sparse=True, written=400) / _products(VISUAL, sparse=False, written=400)


@torch.no_grad()
def _bytes(*, sparse: bool) -> int:
    """Bytes of the caches from layer 2 on, after a prompt of one word and a picture, and 160 words."""
    model, inputs = tiny("llava", depth=4), questions("llava", (1,), (0,))
    words = torch.randint(7, 64, (1, 160), generator=torch.Generator().manual_seed(0))
    made, whole = _predictors(), dict(inputs)
    whole["input_ids"] = torch.cat((inputs["input_ids"], words), 1)
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    _balanced(made, model, whole, words.shape[1])
    with accelerate(model, DynamicLLaVA(TEXT, made)) if sparse else nullcontext():
        _, held = _read(model, inputs, words)
    return sum(part.untyped_storage().nbytes() for layer in held.layers[2:] for part in (layer.keys, layer.values))


SIDE, SHOWN, PARTS = 3, 2, 4  # cells of a side of a mosaic, pictures among them, visual tokens of a cell
DIM, HIDDEN, LAYERS = 64, 128, 4  # of the small LLaVA
START, HOLE, ASK, CLASS, PLACE = 1, 2, 3, 4, 14  # token ids; HOLE stands for a visual token
CELLS = SIDE**2
BASE, MORE, ROWS = 200, 300, 16  # steps on everything, and then in each way; mosaics of a step
TESTED, WEIGHT = 500, 10.0  # mosaics; factor on the rates, smaller than with 576 tokens, whose shares vary less
DATA = f"{TESTED} mosaics of {SHOWN} test pictures of Imagenette, 7 empty cells; {BASE} + {MORE} steps of {ROWS} each"


class _Tower(nn.Module):
    """What Lite0 saw in the cells, (B, 9, 4, 320), to (B, 36, 320), each channel of zero mean and unit deviation."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(mosaics.CHANNELS))
        self.register_buffer("deviation", torch.ones(mosaics.CHANNELS))

    def forward(self, pixel_values: Tensor, **_: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        tokens = ((pixel_values - self.mean) / self.deviation).flatten(1, 2)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, hidden_states=(tokens,))


class _Projector(nn.Module):
    """Two layers, (B, 36, 320) to (B, 36, C), and the word for the place of each cell added."""

    def __init__(self, words: nn.Module) -> None:
        super().__init__()
        self.words = words
        self.mlp = nn.Sequential(nn.Linear(mosaics.CHANNELS, DIM), nn.GELU(), nn.Linear(DIM, DIM))

    def forward(self, x: Tensor) -> Tensor:
        cell = torch.arange(CELLS).repeat_interleave(PARTS)
        placed: Tensor = self.mlp(x) + self.words(PLACE + cell)
        return placed


class _Chance(nn.Module):
    """In place of predictors: each token stays with the probability of its rate; a prefill keeps as many as ever."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rates", torch.tensor([KEEP, TEXT]))

    def _logits(self, x: Tensor, rate: Tensor) -> Tensor:
        odds = rate.logit().expand(x.shape[:2])
        if not self.training:
            odds = odds + torch.rand(x.shape[:2]).clamp(1e-6, 1 - 1e-6).logit()
        return torch.stack((odds, torch.zeros_like(odds)), 2)

    def of_image(self, _: Tensor, visual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = visual.int().argsort(dim=1, descending=True, stable=True)[:, : int(visual.sum(1).max())]
        held = visual.gather(1, rows)
        return self._logits(rows, self.rates[0]), rows, held  # type: ignore[index]

    def of_text(self, hidden: Tensor) -> Tensor:
        return self._logits(hidden[..., 0], self.rates[1])  # type: ignore[index]


class _Learner(nn.Module):
    """The small LLaVA and what drops its tokens, trained together.

    Args:
        how: "full", "learnt" or "random".
    """

    def __init__(self, how: str) -> None:
        import transformers

        super().__init__()
        vision = {"model_type": "clip_vision_model", "hidden_size": mosaics.CHANNELS, "intermediate_size": 8}
        vision |= {"num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 96, "patch_size": 48}
        text = {"model_type": "llama", "vocab_size": PLACE + CELLS, "hidden_size": DIM, "intermediate_size": HIDDEN}
        text |= {"num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 4}
        config = transformers.LlavaConfig(
            vision_config=vision,
            text_config=text | {"initializer_range": 0.1},
            image_token_index=HOLE,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )
        self.model: Any = transformers.LlavaForConditionalGeneration(config)
        self.model.model.vision_tower = _Tower()
        self.model.model.multi_modal_projector = _Projector(self.model.get_input_embeddings())
        self.model.generation_config.update(pad_token_id=0, bos_token_id=1, eos_token_id=None)
        layers = self.model.model.language_model.layers
        layers[0].self_attn.o_proj.weight.requires_grad_(False).zero_()
        for layer in layers:  # what is equal attends to each other from the start
            layer.self_attn.k_proj.load_state_dict(layer.self_attn.q_proj.state_dict())
        build: Any = {"learnt": partial(Predictors, DIM, hidden=DIM, num_heads=4), "random": _Chance}.get(how)
        self.made = None if build is None else build()
        self.method = (
            None if self.made is None else DynamicLLaVA(KEEP, self.made, text=TEXT, layer=1, shortest=1, weight=WEIGHT)
        )

    def hooked(self) -> Any:
        """Hooks, or nothing."""
        return nullcontext() if self.method is None else accelerate(self.model, self.method)


def _asked(part: str, count: int, seed: int) -> dict[str, Tensor]:
    """Mosaics, what is to be written, (B, 18), and which of these words name a picture."""
    features, labels = mosaics.features(part)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(labels), (count, CELLS), generator=generator)
    shown = torch.rand(count, CELLS, generator=generator).argsort(1) < SHOWN
    pixels = torch.where(shown[..., None, None], features[chosen].flatten(2, 3), _average())
    head = torch.tensor([START, *[HOLE] * (CELLS * PARTS), ASK]).expand(count, -1)
    cell = torch.arange(CELLS).expand(count, -1)
    words = torch.stack((PLACE + cell, CLASS + labels[chosen]), 2).flatten(1)
    names = torch.stack((torch.zeros_like(shown), shown), 2).flatten(1)
    return {"head": head, "pixels": pixels, "words": words, "names": names}


@cached(maxsize=1)
@torch.inference_mode(False)
def _average() -> Tensor:
    """What an empty cell looks like, (320,)."""
    return mosaics.features("train")[0].flatten(0, 2).mean(0).clone()


@cached(maxsize=12)
@torch.inference_mode(False)
def _trained(seed: int, how: str) -> _Learner:
    """The small LLaVA: "base", on everything, or from there in one of three ways."""
    import transformers

    steps = BASE if how == "base" else MORE

    def train() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            learner = _Learner("full" if how == "base" else how)
            model = learner.model
            if how == "base":
                model.lm_head.weight.data.normal_(0, 0.05)
                model.get_input_embeddings().weight.data.normal_(0, 0.5)
                known, tower = mosaics.features("train")[0].flatten(0, 2), model.model.vision_tower
                tower.mean.copy_(known.mean(0))
                tower.deviation.copy_(known.std(0).clamp(min=1e-6))
            else:
                model.load_state_dict(_trained(seed, "base").model.state_dict())
            with learner.hooked() as fast:

                def loss(net: Any, step: int) -> Tensor:
                    asked = _asked("train", 2 if rehearsing() else ROWS, 100_000 * seed + step + (how != "base") * BASE)
                    ids = torch.cat((asked["head"], asked["words"]), 1)
                    labels = ids.clone()
                    labels[:, : asked["head"].shape[1]] = -100
                    if fast is not None:
                        fast.tau = temperature(step / (STEPS if rehearsing() else steps))
                    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": asked["pixels"]}
                    logits = net.model(**given, labels=labels, use_cache=False).logits
                    said = logits[:, asked["head"].shape[1] - 1 : -1]
                    names, places = asked["names"], asked["words"] >= PLACE
                    value = F.cross_entropy(said[names], asked["words"][names])
                    value = value + F.cross_entropy(said[places], asked["words"][places])
                    return value if fast is None else value + fast.penalty

                short_run(
                    learner,
                    lambda step: step,
                    loss,
                    steps=steps,
                    lr=4e-3,
                    weight_decay=0.01,
                    clip=1.0,
                )
        return learner

    key = f"reading aloud: {how}, {BASE} + {MORE} steps of {ROWS}, seed {seed}, transformers {transformers.__version__}"
    modules = ["foveal.evidence.vlm.dynamic_llava"]
    learner: Any = trained_once(partial(_Learner, "full" if how == "base" else how), train, modules=modules, key=key)
    return learner


@cached(maxsize=12)
@torch.no_grad()
def _score(seed: int, how: str) -> tuple[float, float]:
    """Pictures that are named rightly, and written words that stayed, percent."""
    learner, right, stayed = _trained(seed, how), [], []
    with torch.random.fork_rng(devices=[]), learner.hooked() as fast:
        torch.manual_seed(seed)
        for part in range(1 if rehearsing() else TESTED // 250):
            asked = _asked("val", 4 if rehearsing() else 250, 10**9 + part)
            head = asked["head"]
            given = {"input_ids": head, "attention_mask": torch.ones_like(head), "pixel_values": asked["pixels"]}
            said = learner.model.generate(**given, max_new_tokens=2 * CELLS, do_sample=False)[:, head.shape[1] :]
            right.append((said == asked["words"])[asked["names"]].double())
            stayed.append(torch.ones(1) if fast is None else fast.written.double().flatten())
    return 100 * float(torch.cat(right).mean()), 100 * float(torch.cat(stayed).mean())


def _lost(seed: int, how: str) -> float:
    return _score(seed, "full")[0] - _score(seed, how)[0]


WORDS: dict[str, Any] = {"data": DATA, "needs": mosaics.NEEDS, "clause": 4}
CLAIMS = (
    equal(
        "A sparse prefill of padded prompts gives the logits of a dense run under the same mask, to 1e-4.",
        ours=lambda: _runs()["prompt"],
        theirs=lambda: _runs()["dense prompt"],
        tolerance=1e-4,
        clause=1,
    ),
    equal(
        "So do twelve words read from the cache, whose rows drop different ones.",
        ours=lambda: _runs()["words"],
        theirs=lambda: _runs()["dense words"],
        tolerance=1e-4,
        clause=1,
    ),
    bound(
        "Between a fifth and four fifths of these words stayed, so that there was something to hide.",
        paper="",
        value=lambda: 100 * float(_runs()["stayed"].mean()),
        at_least=20.0,
        at_most=80.0,
        unit="%",
        clause=1,
    ),
    bound(
        "At keep 0.2 from layer 2 of 32, visual tokens cost 25 % of the multiply-adds, counted, to 0.1 points.",
        paper="25 %",
        value=_image_cost,
        at_least=24.9,
        at_most=25.1,
        unit="%",
        clause=2,
    ),
    bound(
        "So it is for LLaVA-1.5-7B with attention and the predictor, within a point.",
        paper="~75 % less",
        value=_prefill_7b,
        at_least=24.0,
        at_most=26.0,
        unit="%",
        beyond="prefill computation: ~75% less",
    ),
    bound(
        "Writing the 400th word without a cache takes at most half of the dense decoder's multiply-adds.",
        paper="~50 % less",
        value=_recomputed,
        at_most=50.0,
        unit="%",
        beyond="decode computation without cache: ~50% less",
    ),
    smaller(
        "With half of the tokens kept, caches from layer 2 on take half of the bytes, but for the prompt's few words.",
        paper="~50 % less",
        ours=lambda: _bytes(sparse=True),
        theirs=lambda: _bytes(sparse=False),
        at_least=1.9,
        clause=3,
    ),
    kept(
        "A small LLaVA that writes 18 words names pictures rightly as often as with full context, within one point.",
        paper="negligible degradation",
        quality=lambda seed: -_lost(seed, "learnt"),
        at_least=-1.0,
        unit="points",
        **WORDS,
    ),
    kept(
        "Its twin trained with random dropping at these rates loses more than twice as much, and more than two points.",
        paper="",
        quality=lambda seed: _lost(seed, "random") - 2 * max(1.0, _lost(seed, "learnt")),
        at_least=0.0,
        unit="points",
        **WORDS,
    ),
    kept(
        "At least two fifths of the words that it reads again leave the caches.",
        paper="50 %",
        quality=lambda seed: 100 - _score(seed, "learnt")[1],
        at_least=40.0,
        unit="%",
        **WORDS,
    ),
    kept(
        "With full context it names half of the pictures, five times as many as by chance.",
        paper="",
        quality=lambda seed: _score(seed, "full")[0],
        at_least=50.0,
        unit="%",
        **WORDS,
    ),
)
