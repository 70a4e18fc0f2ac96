"""ViM2, the vision network of MambaMixer: selective scans along the tokens and selective scans along the channels.

*Source*: A. Behrouz, M. Santacatterina, R. Zabih, "MambaMixer: Efficient Selective State Space Models with Dual Token
and Channel Selection", 2024 (arXiv:2403.19888v1), sections 3.2 and 4.1, appendix A. A 4×4 patch convolution and four
stages. In a stage the input of each mixer is a sum of the stage's input and all previous mixers, with learned weights:

    x_j = Σ_{i < j} w_{j,i} y_i;  y_j = x_j + mixer_j(norm(x_j))                  y_0 the stage's input
    token mixer: SS2D over the map                                                (B, C, H, W) to the same
    channel mixer: Mamba, both ways, over the C channels as a sequence of maps    (B, C, H·W), H·W features, to the same

*Differs from the paper*, which has no code and whose text omits details needed to build it:

- A mixer over the transposed map has weights for each position, so their number depends on the image size, and with
  56×56 positions they would outnumber the rest of the network. Here a channel mixer sees windows of 7×7 positions with
  shared weights; in the last stage, at 224×224, that is the whole map as in the paper.
- It reads the channels in both directions (section 3.2), not four times with the positions in another order (section
  4.1): the projections are insensitive to the order of the positions.
- Two token mixers per channel mixer, state 16 and twice the channels in a token mixer follow the table of appendix A;
  shortcuts within mixers, norms, patch merging and the order of the mixers are guesses based on VMamba, to which the
  network reduces without channel mixers and earlier features according to section 4.2. The resulting networks are
  smaller than the paper's 20 M, 43 M and 74 M: Tiny by 3 %, Small by 21 % and Base by 22 %.
- The weight of the stage's input is learned once, not twice for the features of both mixers; initially the weights form
  a plain chain.

*Provenance*: written from the paper.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d
from torch import Tensor, nn

from foveal.models.backbone.vmamba import init_weights
from foveal.nn.isotropic import PatchEmbed
from foveal.nn.mamba import Mamba
from foveal.nn.patch_merging import PatchMerging
from foveal.nn.pyramid import Pyramid
from foveal.nn.ss2d import SS2D
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ChannelMixer", "MixerStage", "ViM2", "vim2_base", "vim2_small", "vim2_tiny"]


class ChannelMixer(nn.Module):
    """Selective scans along the channels, in both directions, (B, C, H, W) to the same, for any C.

    Args:
        window: side of the windows it is applied to; the last ones are padded with zeros.
        state: D, state size per feature.
        expand: ratio of scanned features to positions of a window.
    """

    def __init__(self, window: int = 7, *, state: int = 16, expand: float = 1.0) -> None:
        super().__init__()
        self.window = window
        self.mamba = Mamba(window**2, state=state, expand=expand, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        batch, dim, height, width = x.shape
        side = self.window
        wide = F.pad(x, (0, -width % side, 0, -height % side))
        rows, columns = wide.shape[2] // side, wide.shape[3] // side
        # (B, C, rows, w, columns, w) to (B·windows, C, w²): C tokens of w² features
        cut = wide.reshape(batch, dim, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5)
        mixed = self.mamba(cut.reshape(batch * rows * columns, dim, side**2))
        mixed = mixed.reshape(batch, rows, columns, dim, side, side).permute(0, 3, 1, 4, 2, 5)
        return mixed.reshape(wide.shape)[:, :, :height, :width]


class _Mixed(nn.Module):
    """A mixer with a norm before it and a shortcut, (B, C, H, W) to the same."""

    def __init__(self, dim: int, mixer: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.norm = LayerNorm2d(dim, eps=1e-5)
        self.mixer = mixer
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mixer(self.norm(x)))


class MixerStage(nn.Module):
    """Mixers, each applied to a weighted sum of all previous outputs, (B, C, H, W) to the same.

    Args:
        mixers: mixers, each (B, C, H, W) to the same.
    """

    def __init__(self, mixers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(mixers)
        # The last weight of each is initially 1, the others 0: a plain chain.
        self.weights = nn.ParameterList(torch.eye(i + 1)[-1].clone() for i in range(len(mixers)))

    def forward(self, x: Tensor) -> Tensor:
        outputs = [x]
        for mixer, weights in zip(self.mixers, self.weights, strict=True):
            mean = outputs[0] * weights[0]
            for i, output in enumerate(outputs[1:], 1):
                mean = mean + output * weights[i]
            outputs.append(mixer(mean))
        return outputs[-1]


class ViM2(Pyramid):
    """Image classifier, (B, in_channels, H, W) to (B, num_classes), any height and width.

    Args:
        dim: number of channels of the first stage; each further stage doubles it.
        depths: number of token mixers of each stage; a channel mixer follows every second one, and the last.
        state: D, state size of all scans.
        window: side of the channel mixers' windows.
        mix_channels: whether there are channel mixers.
        in_channels: number of channels of the image.
        num_classes: number of classes; 0 returns pooled features.
        drop_path: drop-path rate of the last token mixer; the rates rise linearly from 0.
    """

    def __init__(
        self,
        *,
        dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        state: int = 16,
        window: int = 7,
        mix_channels: bool = True,
        in_channels: int = 3,
        num_classes: int = 1000,
        drop_path: float = 0.0,
    ) -> None:
        dims = [dim * 2**i for i in range(len(depths))]
        drops = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        stages = []
        for i, (width, depth) in enumerate(zip(dims, depths, strict=True)):
            mixers: list[nn.Module] = []
            for j in range(depth):
                drop = next(drops)
                mixers.append(_Mixed(width, SS2D(width, state=state), drop))
                if mix_channels and (j % 2 or j == depth - 1):
                    mixers.append(_Mixed(width, ChannelMixer(window, state=state), drop))
            merging = [PatchMerging(dims[i - 1], width)] if i else []
            stages.append(nn.Sequential(*merging, MixerStage(mixers)))
        super().__init__(
            nn.Sequential(PatchEmbed(dim, 4, in_channels=in_channels), LayerNorm2d(dim, eps=1e-5)),
            stages,
            dims,
            [4 * 2**i for i in range(len(dims))],
            num_classes=num_classes,
            in_channels=in_channels,
            norm=LayerNorm2d(dims[-1], eps=1e-5),
        )
        for stage in self.stages:
            stage.apply(_init_weights)


def _init_weights(module: nn.Module) -> None:
    # Mamba's step-size projection has its own initialisation.
    if isinstance(module, Mamba):
        for layer in (module.in_proj, module.out_proj):
            init_weights(layer)
    elif isinstance(module, nn.Conv2d):
        init_weights(module)


vim2_tiny = ViM2  # ViM2-T, 19 M parameters
vim2_small = partial(ViM2, depths=(2, 2, 18, 2))  # ViM2-S, 34 M
vim2_base = partial(ViM2, dim=128, depths=(2, 2, 18, 2))  # ViM2-B, 58 M

_TINY = {"dim": 8, "depths": (2, 1), "state": 2, "window": 2, "num_classes": 5}

METHOD = Method(
    id=284,
    name="MambaMixer",
    kind="model",
    summary="Selective scans along tokens and along channels, each fed a learned sum of all outputs before it.",
    paper=Paper(
        "MambaMixer: Efficient Selective State Space Models with Dual Token and Channel Selection",
        "A. Behrouz et al.",
        2024,
        "arXiv:2403.19888",
    ),
    models={"vim2_tiny": vim2_tiny, "vim2_small": vim2_small, "vim2_base": vim2_base},
    cases={
        "vim2_tiny": {**_TINY, "in_channels": 1, "drop_path": 0.1},
        "vim2_small": _TINY,
        "vim2_base": _TINY,
    },
)
