"""Evidence for WaveMix: the transform's inverse, counts, what training keeps in memory, and a ResNet on CIFAR-10.

Memory is what a network keeps of one picture for the backward pass, without weights: at its end that is the peak of
what a training step takes beside weights, gradients and the optimiser's state, which are as many as parameters. It is
counted on tensors without data, so it is exact and the same everywhere.

It depends on the patches. With those of 8 of the network for Places-365 the bar is met; the network for ImageNet has
patches of 4, a map of 56×56 pixels in all blocks, and keeps more than ResNet-50. A ViT is given the same patches; with
those of 16 it keeps less. Two claims say so.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.models.resnet import BasicBlock, Bottleneck, ResNet, downsample_conv
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from foveal.evidence.tasks.zoo import NEEDS, Zoo
from foveal.measure.cost import count_parameters
from foveal.models.backbone.wavemix import (
    WaveMix,
    haar,
    haar_reference,
    inverse_haar,
    wavemix_192_16,
    wavemix_256_12_places,
    wavemix_256_16,
    wavemix_lite_192_16,
)
from foveal.record import bound, equal, kept, params, smaller

if TYPE_CHECKING:
    from collections.abc import Callable

EQUAL = 0.02  # relative difference of two numbers of parameters that are called equal


def _pyramid(x: Tensor, levels: int) -> Tensor:
    """The map after `levels` transforms and their inverses."""
    low, details = haar(x)
    return inverse_haar(low if levels == 1 else _pyramid(low, levels - 1), details)


def _lost() -> float:
    """Largest difference of a picture in bytes from itself after three levels and back."""
    x = torch.randint(256, (2, 3, 64, 40), generator=torch.Generator().manual_seed(0)).float()
    return float((_pyramid(x, 3) - x).abs().max())


def _normal(*, there_and_back: bool) -> Tensor:
    x = torch.randn(2, 5, 24, 40, generator=torch.Generator().manual_seed(0))
    return _pyramid(x, 3) if there_and_back else x


def _bands(transform: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    low, details = transform(_normal(there_and_back=False))
    return torch.cat([low[:, :, None], details], 2)


def _resnet(side: int = 224) -> nn.Module:  # noqa: ARG001 - all builders take the side
    """ResNet-50 with bottlenecks widened by 70 / 64."""
    return ResNet(Bottleneck, (3, 4, 6, 3), base_width=70)  # type: ignore[arg-type]


def _vit(side: int = 224, *, patch_size: int = 8) -> nn.Module:
    """A ViT of nine heads that materialises its attention matrices, as was usual when the paper was written."""
    network: Any = VisionTransformer(img_size=side, patch_size=patch_size, embed_dim=576, depth=7, num_heads=9)
    for block in network.blocks:
        block.attn.fused_attn = False
    built: nn.Module = network
    return built


def _places(side: int = 224) -> nn.Module:  # noqa: ARG001 - all builders take the side
    return wavemix_256_12_places()


def _imagenet(side: int = 224) -> nn.Module:  # noqa: ARG001 - all builders take the side
    return wavemix_192_16()


def _resnet50(side: int = 224) -> nn.Module:  # noqa: ARG001 - all builders take the side
    return timm.create_model("resnet50")


def _share(build: Callable[[], nn.Module], than: Callable[[], nn.Module]) -> float:
    with torch.device("meta"):
        return count_parameters(build()) / count_parameters(than())


def _kept_bytes(build: Callable[[int], nn.Module], side: int) -> float:
    """Bytes, without weights, that a network saves for the backward pass on one picture of side×side pixels."""
    with torch.device("meta"):
        network, x = build(side).train(), torch.zeros(1, 3, side, side)
    weights = {id(parameter) for parameter in network.parameters()}
    found: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        origin = tensor if tensor._base is None else tensor._base
        if id(origin) not in weights:
            found[id(origin)] = origin
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(x)
    return float(sum(tensor.untyped_storage().nbytes() for tensor in found.values()))


def _excess(build: Callable[[int], nn.Module], than: Callable[[int], nn.Module]) -> float:
    return _kept_bytes(build, 224) / _kept_bytes(than, 224)


def _small_resnet(dim: int = 29) -> nn.Module:
    """Two residual blocks at each of 16×16, 8×8 and 4×4 pixels, (B, 3, 32, 32) to (B, 10)."""
    layers: list[nn.Module] = [nn.Conv2d(3, dim, 3, 2, 1, bias=False), nn.BatchNorm2d(dim), nn.ReLU()]
    for i in range(3):
        out = dim * 2**i
        if i:
            layers.append(BasicBlock(out // 2, out, 2, downsample_conv(out // 2, out, 1, 2)))
        else:
            layers.append(BasicBlock(out, out))
        layers.append(BasicBlock(out, out))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * dim, 10))


_small = partial(WaveMix, 64, 4, levels=2, strided=True, num_classes=10, dropout=0.0)
TRIAL = Zoo(_small, (_small_resnet,), "a ResNet of as many parameters", minutes=1.25, matched=False)

CLAIMS = (
    bound(
        "Pictures of bytes come back from three levels without any difference.",
        paper="lossless",
        value=_lost,
        at_most=0.0,
        unit="largest difference",
        clause=1,
    ),
    equal(
        "So does any map, up to rounding.",
        ours=partial(_normal, there_and_back=True),
        theirs=partial(_normal, there_and_back=False),
        tolerance=1e-6,
        clause=1,
    ),
    equal(
        "A level is four filters of 2×2, orthonormal and without a parameter.",
        ours=partial(_bands, haar),
        theirs=partial(_bands, haar_reference),
        tolerance=1e-6,
        beyond="the transform is parameter-free",
    ),
    params("WaveMix-192/16.", paper="28 M", model=wavemix_192_16, expect=27_857_608, beyond="the authors' network"),
    params("WaveMix-256/16.", paper="authors' code", model=wavemix_256_16, expect=49_416_808, beyond="a larger one"),
    params("WaveMix-Lite-192/16.", paper="12 M", model=wavemix_lite_192_16, expect=12_494_536, beyond="one level"),
    params(
        "WaveMix-256/12 with 365 classes, of Places-365.",
        paper="28 M",
        model=partial(wavemix_256_12_places, num_classes=365),
        expect="28 M",
        tolerance=0.02,
        beyond="the size of that network",
    ),
    *(
        bound(
            f"{name} has as many parameters as WaveMix-256/12, within {EQUAL:.0%}.",
            paper="same parameters",
            value=partial(_share, rival, _places),
            at_least=1 - EQUAL,
            at_most=1 + EQUAL,
            beyond="the rivals' size",
        )
        for name, rival in (("A widened ResNet-50", _resnet), ("A ViT of seven blocks", _vit))
    ),
    *(
        smaller(
            f"Of a picture of {side}×{side} it keeps less for training than {name}.",
            paper="less GPU RAM",
            ours=partial(_kept_bytes, _places, side),
            theirs=partial(_kept_bytes, rival, side),
            clause=2,
        )
        for side in (64, 224)
        for name, rival in (("that ResNet", _resnet), ("that ViT, both with patches of 8", _vit))
    ),
    bound(
        "With patches of 4, as on ImageNet, WaveMix-192/16 keeps two to three times what ResNet-50 does.",
        paper="less GPU RAM",
        value=partial(_excess, _imagenet, _resnet50),
        at_least=2.0,
        at_most=3.0,
        beyond="memory of the network for ImageNet",
    ),
    bound(
        "With patches of 16 that ViT keeps less than WaveMix-256/12.",
        paper="less GPU RAM",
        value=partial(_excess, partial(_vit, patch_size=16), _places),
        at_most=1.0,
        beyond="memory beside coarse patches",
    ),
    bound(
        "The ResNet of the comparison below has as many parameters as the small WaveMix, within 5 %.",
        paper="same parameters",
        value=partial(_share, _small_resnet, _small),
        at_least=0.95,
        at_most=1.05,
        beyond="the rival's size on CIFAR-10",
    ),
    kept(
        f"After equal minutes a small one is not below {TRIAL.name}.",
        paper="better at equal parameters",
        quality=TRIAL.difference,
        at_least=0.0,
        unit="points",
        data=f"{TRIAL.minutes:g} processor minutes each on CIFAR-10, the first 2,000 test pictures",
        needs=NEEDS,
        clause=3,
    ),
)
