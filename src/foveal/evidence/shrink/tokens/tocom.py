"""Evidence for ToCom: its algebra and size, and one plug-in on two networks fine-tuned for other tasks.

A small ViT of four blocks is pre-trained on CIFAR-10; with 64 patches r = 16 leaves it next to none, as it leaves a
DeiT-B. For each seed one plug-in is trained on it, and two copies are fine-tuned without merging: to tell by how many
quarter turns a photograph of CIFAR-10 is rotated, and to read digits. The bar is 30% of the points that merging costs.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.rivals import small
from foveal.evidence.rivals.small import small_vit
from foveal.evidence.tasks import cifar10, digits
from foveal.evidence.trained_once import trained_once
from foveal.record import equal, kept, params
from foveal.shrink.tokens.tocom import Compensated, Delta, ToCom, gate, learn, plug_, run_at_

STEPS, TUNING, LEARNING = 1500, 300, 500  # steps of pre-training, of each fine-tuning and of each plug-in
build = partial(small_vit, dim=64, depth=4, num_heads=4, class_token=True, global_pool="token")
TASKS = {"rotations": "how far photographs are turned", "digits": "digits"}


@cached(maxsize=1)
def _pretrained() -> nn.Module:
    return trained_once(
        build,
        lambda: cifar10.train_classifier(build, steps=STEPS, seed=0),
        modules=[cifar10.__name__, small.__name__],
        key=f"small_vit dim 64 depth 4 heads 4 class token, steps {STEPS} seed 0",
    )


@cached(maxsize=4)
def _task(name: str, part: str) -> tuple[Tensor, Tensor]:
    if name == "digits":
        inputs, labels = digits.pictures(part, side=32)
        return inputs.expand(-1, 3, -1, -1), labels
    inputs, _ = cifar10.pictures(part, limit=20_000 if part == "train" else 4_000)
    turns = torch.arange(len(inputs)) % 4
    return torch.stack([x.rot90(int(k), (1, 2)) for x, k in zip(inputs, turns, strict=True)]), turns


def _start(name: str) -> nn.Module:
    """The pre-trained network with a fresh classifier."""
    model = copy.deepcopy(_pretrained())
    model.reset_classifier(4 if name == "rotations" else 10)  # type: ignore[operator]
    return model


@cached(maxsize=2)
def _tuned(seed: int, name: str) -> nn.Module:
    return cifar10.train_classifier(
        partial(_start, name), steps=TUNING, seed=seed, data=_task(name, "train"), lr=5e-4, flip=False
    )


@cached(maxsize=3)
def _plugin(seed: int) -> dict[str, Tensor]:
    inputs, _ = cifar10.pictures("train")

    def batch(step: int) -> Tensor:
        draw = torch.Generator().manual_seed(100_003 * seed + step)
        return inputs[torch.randint(len(inputs), (64,), generator=draw)]

    return learn(_pretrained(), batch, steps=2 if rehearsing() else LEARNING, seed=seed)


@cached(maxsize=64)
def _accuracy(seed: int, name: str, r: int, *, plug: bool) -> float:
    model = ToCom().apply(copy.deepcopy(_tuned(seed, name)))
    if plug:
        plug_(model, _plugin(seed))
    return cifar10.accuracy(run_at_(model, 0, r), _task(name, "test"))


def _recovered(seed: int, *, name: str, r: int) -> float:
    """Points recovered beyond 30% of the points lost."""
    whole = _accuracy(seed, name, 0, plug=False)
    without, with_plugin = (_accuracy(seed, name, r, plug=plug) for plug in (False, True))
    return with_plugin - without - 0.3 * (whole - without)


def _delta(*pairs: tuple[int, int], sign: float = 1.0) -> Tensor:
    """Sum of what a plug-in with random weights adds to a block's queries for these (source, target)."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        delta, x = Delta(48, 32).eval(), torch.randn(2, 17, 48)
        nn.init.normal_(delta.up.weight)
        return sign * torch.stack([delta(x, gate(*pair)) for pair in pairs]).sum(0)


def _deit_b() -> nn.Module:
    """The plug-in of a DeiT-B alone."""
    import timm

    model = ToCom().apply(timm.create_model("deit_base_patch16_224"))
    layers = [m for m in model.modules() if isinstance(m, Compensated)]
    return nn.ModuleList([part for layer in layers for part in (layer.q, layer.v)])


CLAIMS = (
    *(
        kept(
            f"At r = {r} one plug-in recovers 30% of the accuracy lost on {what}: points beyond that.",
            paper="up to 2.3 points on CIFAR-100",
            quality=partial(_recovered, name=name, r=r),
            at_least=0.0,
            unit="points",
            data=f"CIFAR-10, small ViT of {STEPS} steps, plug-in of {LEARNING}; {name}, {TUNING} steps; test pictures",
            needs=cifar10.NEEDS,
            clause=1,
        )
        for name, what in TASKS.items()
        for r in (8, 12, 16)
    ),
    equal(
        "Deltas are antisymmetric: from 3 to 11 is the negative of from 11 to 3.",
        ours=partial(_delta, (3, 11)),
        theirs=partial(_delta, (11, 3), sign=-1.0),
        tolerance=1e-6,
        clause=2,
    ),
    equal(
        "Deltas add up: from 3 to 11 and from 11 to 16 are from 3 to 16.",
        ours=partial(_delta, (3, 11), (11, 16)),
        theirs=partial(_delta, (3, 16)),
        tolerance=1e-6,
        clause=2,
    ),
    params("The plug-in of a DeiT-B has 1,179,648 weights.", paper="1.2 M", model=_deit_b, expect=1_179_648, clause=3),
)
