"""Perceptual losses: pictures are compared by what a frozen classifier sees in them.

*Source*: J. Johnson, A. Alahi and L. Fei-Fei, "Perceptual Losses for Real-Time Style Transfer and Super-Resolution",
ECCV 2016 (arXiv:1603.08155), section 3. With φ_j(x), (C_j, H_j, W_j), what layer j of the classifier makes of x,

    content_j = mean (φ_j(x) - φ_j(y))²        (their squared norm over C_j H_j W_j)
    G_j = Φ Φᵀ / (C_j H_j W_j),  Φ = φ_j as (C_j, H_j · W_j);   style_j = ||G_j(x) - G_j(s)||²_F
    TV = mean of squared differences of neighbouring pixels

Super-resolution is trained by the content of one layer; style transfer by content of one layer + weighted styles of
several + weighted TV, which a feed-forward network (`TransformNet`) learns to lower in one pass for one style s.

*Differs from the paper*: the classifier is any with `features`: the claims take foveal's small `FeatureNet`, recipes by
default the paper's VGG-16 (`pretrained`). TV is a mean, not a sum, so that its weight does not depend on
the size. The absolute error of pixels can be added (`pixel_weight`), as recipes do, with weight 1. `TransformNet` is
smaller by its arguments, has instance normalisation and upsamples by nearest neighbours, as the authors' later models
do, where the first ones have batch normalisation and transposed convolutions.

*Provenance*: written from the paper; layer sizes from its supplement.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Objective
from foveal.errors import FovealError
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "FeatureNet",
    "FeaturesError",
    "PerceptualLoss",
    "Seeing",
    "TransformNet",
    "content_loss",
    "gram",
    "pretrained",
    "style_loss",
    "total_variation",
]


class FeaturesError(FovealError, ValueError):
    """Weights of a feature network that cannot be had."""


class Seeing(Protocol):
    """A network whose layers pictures are compared in."""

    def features(self, x: Tensor, /) -> Sequence[Tensor]:
        """What the layers make of pictures.

        Args:
            x: pictures, (B, 3, H, W) in [0, 1].

        Returns:
            Features, (B, C_j, H_j, W_j) each, shallow ones first.
        """
        ...


class FeatureNet(nn.Module):
    """A small VGG: stages of two 3×3 convolutions, halved between; (B, 3, H, W) in [0, 1] to (B, num_classes).

    Args:
        dims: channels of each stage.
        num_classes: number of classes.
    """

    def __init__(self, dims: Sequence[int] = (16, 32, 64), *, num_classes: int = 10) -> None:
        super().__init__()
        widths = [3, *dims]
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, dim, 3, padding=1), nn.ReLU(), nn.Conv2d(dim, dim, 3, padding=1), nn.ReLU())
            for before, dim in zip(widths[:-1], dims, strict=True)
        )
        self.classify = nn.Linear(widths[-1], num_classes)

    def features(self, x: Tensor) -> list[Tensor]:
        """What the last ReLU of each stage makes of pictures.

        Args:
            x: pictures, (B, 3, H, W) in [0, 1].

        Returns:
            Features, (B, C_j, H / 2^j, W / 2^j), j from 0.
        """
        y, found = (x - 0.5) * 4, list[Tensor]()
        for stage in self.stages:
            y = stage(F.max_pool2d(y, 2) if found else y)
            found.append(y)
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x)[-1].mean((2, 3)))


class _FromTimm(nn.Module):
    """A timm classifier's stages, for pictures in [0, 1]."""

    def __init__(self, name: str) -> None:
        super().__init__()
        import timm

        self.net = timm.create_model(name, pretrained=True, features_only=True)
        config: dict[str, Any] = self.net.pretrained_cfg  # type: ignore[assignment]
        for key, word in (("mean", "mean"), ("deviation", "std")):
            self.register_buffer(key, torch.tensor(config[word]).view(1, 3, 1, 1))

    def features(self, x: Tensor) -> list[Tensor]:
        found: list[Tensor] = self.net((x - self.mean) / self.deviation)  # type: ignore[operator]
        return found


def pretrained(name: str) -> nn.Module:
    """A frozen feature network.

    Args:
        name: safetensors file with the weights of a `FeatureNet`, or name of a timm classifier whose weights timm loads
            from its hub, such as "vgg16", the paper's.

    Returns:
        Network with `features`, in eval mode; no parameter learns.

    Raises:
        FeaturesError: no such file, weights of another network, or a network that timm does not know or cannot load.
    """
    model: nn.Module
    if name.endswith(".safetensors"):
        from safetensors.torch import load_file

        try:
            weights = load_file(Path(name))
            dims = [
                weights[f"stages.{j}.0.weight"].shape[0] for j in range(sum(k.endswith(".0.bias") for k in weights))
            ]
            model = FeatureNet(dims, num_classes=len(weights["classify.bias"]))
            model.load_state_dict(weights)
        except FileNotFoundError:
            raise FeaturesError(f"{name}: no such file; name the weights of a FeatureNet, or a timm network") from None
        except Exception as error:  # safetensors and torch raise many kinds
            raise FeaturesError(f"{name}: must hold the weights of a FeatureNet: {error}") from error
    else:
        try:
            model = _FromTimm(name)
        except Exception as error:  # what timm raises depends on its hub
            raise FeaturesError(
                f"features {name!r} cannot be loaded by timm ({error}); go online once, or name a safetensors file "
                "with the weights of a FeatureNet"
            ) from error
    return model.eval().requires_grad_(False)


def content_loss(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared difference of features.

    Args:
        x: features, (B, C, H, W).
        y: the wanted ones, of the same shape; they get no gradient.

    Returns:
        Scalar.
    """
    return F.mse_loss(x, y.detach())


def gram(x: Tensor) -> Tensor:
    """Gram matrix of features: how channels go together, anywhere in the picture.

    Args:
        x: features, (B, C, H, W).

    Returns:
        (B, C, C), divided by C·H·W.
    """
    flat = x.flatten(2)
    return flat @ flat.mT / flat[0].numel()


def style_loss(x: Tensor, style: Tensor) -> Tensor:
    """Squared Frobenius distance of Gram matrices, the mean over pictures.

    Args:
        x: features, (B, C, H, W).
        style: features of the style's picture, (1, C, H', W') or (B, C, H', W'), of any size; they get no gradient.

    Returns:
        Scalar.
    """
    return (gram(x) - gram(style.detach())).square().sum((1, 2)).mean()


def total_variation(x: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels, along rows plus along columns.

    Args:
        x: pictures, (B, C, H, W), H and W at least 2.

    Returns:
        Scalar.
    """
    return x.diff(dim=2).square().mean() + x.diff(dim=3).square().mean()


class PerceptualLoss(nn.Module):
    """Content of one layer, style of several, TV and pixels, each with its weight; those of weight 0 are left out.

    Args:
        network: network with `features` (`Seeing`), whose parameters are frozen.
        layer: index of the layer that content is compared in; the paper's relu2_2 is 1.
        style: picture of the style, (1, 3, H, W) in [0, 1]; None for super-resolution.
        style_weight: weight of the sum of styles over all layers.
        tv_weight: weight of TV.
        pixel_weight: weight of the absolute error of pixels, which the paper does without; small networks that make
            pictures for a small classifier lose their colours without it.

    Raises:
        TypeError: a network without `features`.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        layer: int = 1,
        style: Tensor | None = None,
        style_weight: float = 0.0,
        tv_weight: float = 0.0,
        pixel_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if not hasattr(network, "features"):
            raise TypeError(
                f"a feature network has a method `features` (FeatureNet has), got {type(network).__name__} without it"
            )
        self.network = network.requires_grad_(False)
        self.layer, self.style_weight = layer, style_weight
        self.tv_weight, self.pixel_weight = tv_weight, pixel_weight
        grams = [] if style is None else self._seen(style)
        self.grams = [gram(features).detach() for features in grams]

    def _seen(self, x: Tensor) -> Sequence[Tensor]:
        seen: Sequence[Tensor] = self.network.features(x)  # type: ignore[operator]
        return seen

    def forward(self, out: Tensor, target: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            out: pictures, (B, 3, H, W) in [0, 1].
            target: pictures whose content is wanted, of the same shape; they get no gradient.

        Returns:
            Scalar.
        """
        seen = self._seen(out)
        with torch.no_grad():
            wanted = self._seen(target)[self.layer]
        loss = content_loss(seen[self.layer], wanted)
        for features, wished in zip(seen, self.grams, strict=False):
            loss = loss + self.style_weight * (gram(features) - wished).square().sum((1, 2)).mean()
        if self.pixel_weight:
            loss = loss + self.pixel_weight * F.l1_loss(out, target.detach())
        return loss + self.tv_weight * total_variation(out) if self.tv_weight else loss


class _Residual(nn.Module):
    """x + norm(conv(relu(norm(conv(x)))))."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(*_layer(dim, dim, 3, 1), nn.ReLU(), *_layer(dim, dim, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.branch(x)
        return y


def _layer(dim: int, out: int, kernel_size: int, stride: int) -> tuple[nn.Module, nn.Module]:
    padding = kernel_size // 2
    convolution = nn.Conv2d(dim, out, kernel_size, stride, padding, padding_mode="reflect")
    return convolution, nn.InstanceNorm2d(out, affine=True)


class TransformNet(nn.Module):
    """The paper's feed-forward network for style transfer, (B, 3, H, W) to the same, values in [0, 1].

    A 9×9 convolution, two that halve, residual blocks, two that follow a doubling, a 9×9 convolution and a tanh.

    Args:
        dim: channels of the first layer, twice and four times as many behind the next two; 32 in the paper.
        depth: number of residual blocks; 5 in the paper.

    Raises:
        ValueError: from `forward`, sides that are no multiples of 4.
    """

    def __init__(self, dim: int = 32, depth: int = 5) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_layer(3, dim, 9, 1), nn.ReLU(),
            *_layer(dim, 2 * dim, 3, 2), nn.ReLU(),
            *_layer(2 * dim, 4 * dim, 3, 2), nn.ReLU(),
            *(_Residual(4 * dim) for _ in range(depth)),
            nn.Upsample(scale_factor=2), *_layer(4 * dim, 2 * dim, 3, 1), nn.ReLU(),
            nn.Upsample(scale_factor=2), *_layer(2 * dim, dim, 3, 1), nn.ReLU(),
            nn.Conv2d(dim, 3, 9, padding=4, padding_mode="reflect"),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 4 or x.shape[-2] % 4:
            raise ValueError(f"sides must be multiples of 4, got {x.shape[-1]}×{x.shape[-2]}; crop or pad the pictures")
        y: Tensor = torch.tanh(self.layers((x - 0.5) * 2)) / 2 + 0.5
        return y


def _inputs(seed: int, *, alike: bool = False) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.rand(2, 3, 6, 5, generator=generator) for _ in range(2))
    return {"x": x, "y": x.clone() if alike else y}


def _style(x: Tensor, y: Tensor) -> Tensor:
    return content_loss(x, y) + style_loss(x, y)


METHOD = Method(
    id=39,
    name="Perceptual losses",
    kind="objective",
    summary="Trains networks by what a frozen classifier sees in their pictures: content, style, or both.",
    paper=Paper(
        "Perceptual Losses for Real-Time Style Transfer and Super-Resolution",
        "J. Johnson, A. Alahi, L. Fei-Fei",
        2016,
        "arXiv:1603.08155",
    ),
    cases={"content_and_style": Objective(_style, _inputs, learns=("x",), best=lambda seed: _inputs(seed, alike=True))},
)
