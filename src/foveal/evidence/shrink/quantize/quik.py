"""Evidence for QUIK: integers against fake quantisation, a small ViT with planted outliers against plain W4A4."""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached
from foveal.evidence.rivals.small import small_vit
from foveal.evidence.tasks import cifar10, digits
from foveal.evidence.trained_once import trained_once
from foveal.record import bound, equal, faster, kept
from foveal.shrink.quantize.quik import QUIK, QuikLinear, low_bit_share, quik_linear, quik_reference

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = 1500
PLANTED, TIMES = 4, 20.0  # channels of each normalised stream, and how many times larger they become
OURS = QUIK(outliers=6, eight=("fc2",))
PLAIN = QUIK(outliers=0, gptq=False)
vit = partial(small_vit, dim=64, depth=4, num_heads=4, img_size=16, in_chans=1)
DATA = f"a ViT on rendered digits, {STEPS} steps, {PLANTED} channels {TIMES:.0f} times larger; 1,000 test pictures"


@torch.no_grad()
def plant_(model: Any) -> nn.Module:
    """Make channels of every layer's input large, and the weights that read them as much smaller, in place.

    Args:
        model: vision transformer of timm.

    Returns:
        The same model, which computes what it did before.
    """
    draw = torch.Generator().manual_seed(0)
    for block in model.blocks:
        for norm, layer in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1)):
            chosen = torch.randperm(len(norm.weight), generator=draw)[:PLANTED]
            norm.weight[chosen] *= TIMES
            norm.bias[chosen] *= TIMES
            layer.weight[:, chosen] /= TIMES
    return model


@cached(maxsize=3)
def _float(seed: int) -> nn.Module:
    whole = trained_once(
        vit,
        lambda: cifar10.train_classifier(vit, steps=STEPS, seed=seed, data=digits.pictures("train"), flip=False),
        modules=[cifar10.__name__, digits.__name__, small_vit.__module__],
        key=f"small ViT 64 4 4 on digits steps {STEPS} seed {seed}",
    )
    return plant_(copy.deepcopy(whole))


@cached(maxsize=9)
def _accuracy(seed: int, step: QUIK | None) -> float:
    model = _float(seed)
    if step is not None:
        model = step.apply(copy.deepcopy(model), digits.pictures("train")[0][:256])
    return digits.score(model)


def _outputs(*, integer: bool) -> Tensor:
    """Outputs of all quantised layers of a ViT with planted outliers, by integers or by dequantised values."""
    torch.manual_seed(0)
    x = torch.randn(2, 1, 16, 16)
    model = OURS.apply(plant_(vit().eval()), x)
    found: list[Tensor] = []

    def hook(layer: QuikLinear, arguments: tuple[Tensor], output: Tensor) -> None:  # noqa: ARG001 - torch's signature
        function: Callable[..., Tensor] = quik_linear if integer else quik_reference
        found.append(function(arguments[0], **layer.parts()).flatten())

    for module in model.modules():
        if isinstance(module, QuikLinear):
            module.register_forward_hook(hook)
    with torch.inference_mode():
        logits = model(x)
    return torch.cat([*found, logits.flatten()])


def _share() -> float:
    torch.manual_seed(0)
    x = torch.randn(2, 1, 16, 16)
    return low_bit_share(OURS.apply(vit().eval(), x), x)


def _layer(*, quantized: bool) -> Callable[[], Tensor]:
    """A layer of 8,192 inputs and outputs on 2,048 tokens, on the GPU."""
    torch.manual_seed(0)
    x = torch.randn(2048, 8192, device="cuda", dtype=torch.float16)
    layer = nn.Linear(8192, 8192, device="cuda", dtype=torch.float16)
    module = QuikLinear(layer, x.abs().amax(0), None, outliers=256) if quantized else layer

    def run() -> Tensor:
        with torch.inference_mode():
            out = module(x)
        torch.cuda.synchronize()
        return out

    return run


CLAIMS = (
    equal(
        "In a ViT with planted outliers the integer path equals fake quantisation, in every layer.",
        ours=partial(_outputs, integer=True),
        theirs=partial(_outputs, integer=False),
        tolerance=1e-5,
        clause=1,
    ),
    kept(
        "A small trained ViT with planted outliers loses less than a point with QUIK.",
        paper="at most 0.5 of perplexity, LLaMA-2",
        quality=lambda seed: _accuracy(seed, OURS) - _accuracy(seed, None),
        at_least=-1.0,
        unit="points",
        data=DATA,
        needs=digits.NEEDS,
        clause=2,
    ),
    kept(
        "The same ViT loses more than a point with plain W4A4: nothing in floating point, rounded to nearest.",
        paper="fails",
        quality=lambda seed: _accuracy(seed, None) - _accuracy(seed, PLAIN),
        at_least=1.0,
        unit="points",
        data=DATA,
        needs=digits.NEEDS,
        clause=2,
    ),
    bound(
        "At least 60% of the multiply-adds of that ViT's linear layers have 4 bits.",
        paper="70% and more, LLaMA-2",
        value=_share,
        at_least=0.6,
        clause=3,
    ),
    faster(
        "On a GPU a layer of 8,192 inputs and outputs takes less time than in half precision, 2,048 tokens.",
        paper="2 to 4 times, RTX 3090",
        ours=partial(_layer, quantized=True),
        theirs=partial(_layer, quantized=False),
        needs=("gpu",),
        clause=4,
    ),
)
