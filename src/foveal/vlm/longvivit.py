"""LongViViT: most tubes of a long video are dropped while its encoder is trained with captions, and none afterwards.

*Source*: P. Papalampidi et al., "A Simple Recipe for Contrastively Pre-training Video-First Encoders Beyond 16 Frames",
CVPR 2024 (arXiv:2312.07395), sections 3.1 and 4 (joint space-time attention, token masking). A video is cut into tubes
of t frames and p×p pixels, and a transformer of joint attention reads those that are kept,

    z_n = W tube_n + S[place of n] + R[time of n]            N = (T / t) · (H / p) · (W / p) tubes, (B, N, D)
    K ⊂ {1 … N},  |K| = N − ⌊r N⌋                            drawn anew for each video and step; r = 0.75
    v = P · mean over K of norm(blocks(z_K)) / ‖…‖           blocks see the kept tubes only, (B, |K|, D) to (B, E)
    L = ½ [CE(s v cᵀ) + CE(s c vᵀ)]                          c: captions, (B, E), unit length; s learnt; i belongs to i

Dropped tubes are neither embedded nor kept for the backward pass, so that time and memory of a step are at most 1 − r
of the whole's. An encoder of pictures starts one of videos (`inflate`): W is spread over t frames, W / t each, R is 0,
and a video that stands still is embedded as its frame is.

Shapes: B batch, T frames, H W height and width, C channels, N tubes, D channels of a token, E of an embedding.

*Differs from the paper*: sizes; any module may encode the captions (the paper's is BERT). Tokens are averaged. The
paper's other ways to save memory (factorized attention, adapters, coarser tubes) and the second step, a frozen language
model that reads the tokens through trained cross-attention, are not here.
*Provenance*: written from the paper, read in abstract and sections 3 to 5 without the appendix; there is no code of the
authors. How they spread W and begin R was not found; what is here keeps the picture's answer.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.record import Method, Paper
from foveal.vlm.method import VlmError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Contrast", "VideoEncoder", "draw", "inflate", "info_nce", "tubes"]


def tubes(video: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut a video.

    Args:
        video: pixels, (B, C, T, H, W).
        size: frames of a tube, t, and side of its patch, p, in pixels.

    Returns:
        Tubes frame by frame and row by row, (B, N, C·t·p²).

    Raises:
        VlmError: a video that is no whole number of tubes.
    """
    frames, side = size
    if video.ndim != 5 or video.shape[2] % frames or video.shape[3] % side or video.shape[4] % side:
        raise VlmError(
            f"video must be (B, C, T, H, W) in whole tubes of {frames} frames and {side}×{side} pixels, got "
            f"{tuple(video.shape)}; cut or fill it up"
        )
    x = video.unflatten(4, (-1, side)).unflatten(3, (-1, side)).unflatten(2, (-1, frames))
    # (B, C, T/t, t, H/p, p, W/p, p) to (B, T/t, H/p, W/p, C, t, p, p)
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)


def draw(count: int, total: int, ratio: float = 0.75, *, generator: torch.Generator | None = None) -> Tensor:
    """Choose the tubes that are kept, for each video anew.

    Args:
        count: number of videos, B.
        total: tubes of a video, N.
        ratio: share that is dropped, r, in [0, 1).
        generator: random generator; None for torch's own.

    Returns:
        Numbers of tubes, ascending, (B, N − ⌊r N⌋).

    Raises:
        VlmError: a ratio outside [0, 1).
    """
    if not 0 <= ratio < 1:
        raise VlmError(f"ratio must be in [0, 1), got {ratio}; 0.75 drops three of four tubes, 0 none")
    order = torch.rand(count, total, generator=generator).argsort(1)
    return order[:, : total - int(ratio * total + 1e-9)].sort(1).values


def info_nce(video: Tensor, text: Tensor, scale: Tensor | float) -> Tensor:
    """Each video against all captions, and each caption against all videos.

    Args:
        video: embeddings of unit length, (B, E).
        text: embeddings of unit length of the videos' captions, (B, E).
        scale: factor on the cosines, s; the inverse of the temperature.

    Returns:
        Loss, a scalar.
    """
    cosines = scale * video @ text.T
    same = torch.arange(len(video), device=video.device)
    return (F.cross_entropy(cosines, same) + F.cross_entropy(cosines.T, same)) / 2


class VideoEncoder(nn.Module):
    """Videos, (B, C, T, H, W), to embeddings of unit length, (B, out_channels), from all tubes or from some.

    Args:
        shape: frames, height and width of the videos.
        tube: frames of a tube, t, and side of its patch, p; (1, p) for pictures, which are videos of one frame.
        dim: D.
        depth: number of blocks.
        num_heads: attention heads.
        out_channels: E.
        in_channels: C.
    """

    def __init__(
        self,
        shape: tuple[int, int, int] = (64, 224, 224),
        *,
        tube: tuple[int, int] = (4, 16),
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        out_channels: int = 512,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.shape, self.tube, self.in_channels = shape, tube, in_channels
        self.times = shape[0] // tube[0]
        places = (shape[1] // tube[1]) * (shape[2] // tube[1])
        self.embed = nn.Linear(in_channels * tube[0] * tube[1] ** 2, dim)
        self.place = nn.Parameter(0.02 * torch.randn(places, dim))
        self.time = nn.Parameter(0.02 * torch.randn(self.times, dim))
        self.blocks = nn.Sequential(*(Block(dim, num_heads, qkv_bias=True) for _ in range(depth)))
        self.norm, self.proj = nn.LayerNorm(dim), nn.Linear(dim, out_channels, bias=False)

    @property
    def count(self) -> int:
        """Tubes of a video, N."""
        return self.times * len(self.place)

    @property
    def position(self) -> Tensor:
        """S + R of every tube, (N, D)."""
        return (self.time[:, None] + self.place).flatten(0, 1)

    def tokens(self, video: Tensor, kept: Tensor | None = None) -> Tensor:
        """What the blocks make of the tubes.

        Args:
            video: pixels, (B, C, T, H, W).
            kept: numbers of the tubes that are read, (B, |K|); None for all.

        Returns:
            Tokens, (B, |K|, D), normalised.

        Raises:
            VlmError: a video of another size.
        """
        if tuple(video.shape[1:]) != (self.in_channels, *self.shape):
            raise VlmError(
                f"the encoder reads videos of {(self.in_channels, *self.shape)}, channels, frames, height and width, "
                f"got {tuple(video.shape[1:])}; resize them or build another"
            )
        x, position = tubes(video, self.tube), self.position
        if kept is not None:
            x, position = x.gather(1, kept[:, :, None].expand(-1, -1, x.shape[2])), position[kept]
        out: Tensor = self.norm(self.blocks(self.embed(x) + position))
        return out

    def forward(self, video: Tensor, kept: Tensor | None = None) -> Tensor:
        return F.normalize(self.proj(self.tokens(video, kept).mean(1)), dim=1)


def inflate(image: VideoEncoder, frames: int, tube: int) -> VideoEncoder:
    """An encoder of videos that starts as one of pictures.

    Args:
        image: encoder of one frame, tubes (1, p).
        frames: frames of the videos, T.
        tube: frames of a tube, t.

    Returns:
        The new encoder; a still video's embedding is its frame's.

    Raises:
        VlmError: an encoder of more than one frame, or frames that are no whole number of tubes.
    """
    if image.shape[0] != 1 or frames < 1 or tube < 1 or frames % tube:
        raise VlmError(
            f"an encoder of one frame becomes one of whole tubes, got {image.shape[0]} frames, and {frames} in tubes "
            f"of {tube}"
        )
    made, dim = copy.deepcopy(image), image.embed.out_features
    made.shape, made.tube, made.times = (frames, *image.shape[1:]), (tube, image.tube[1]), frames // tube
    # (D, C·p²) to (D, C·t·p²)
    spread = image.embed.weight.detach().unflatten(1, (image.in_channels, 1, -1)).expand(-1, -1, tube, -1) / tube
    made.embed = nn.Linear(spread[0].numel(), dim).to(spread)
    made.embed.load_state_dict({"weight": spread.flatten(1), "bias": image.embed.bias.detach()})
    made.place = nn.Parameter(image.place.detach() + image.time.detach())
    made.time = nn.Parameter(torch.zeros(made.times, dim).to(spread))
    return made


class Contrast(nn.Module):
    """The loss of videos and captions; three of four tubes are dropped while training, none in eval mode.

    Args:
        video: encoder of videos.
        text: encoder of captions, anything to (B, E).
        ratio: share of the tubes that is dropped while training, r.
        scale: s at the start.
    """

    def __init__(self, video: VideoEncoder, text: nn.Module, *, ratio: float = 0.75, scale: float = 14.0) -> None:
        super().__init__()
        draw(1, video.count, ratio)  # an impossible ratio shows here
        self.video, self.text, self.ratio = video, text, ratio
        self.scale = nn.Parameter(torch.tensor(float(scale)).log())

    def forward(self, video: Tensor, caption: Any, *, generator: torch.Generator | None = None) -> Tensor:
        """Loss of videos, (B, C, T, H, W), and their captions, a scalar."""
        kept = None
        if self.training and self.ratio:
            kept = draw(len(video), self.video.count, self.ratio, generator=generator).to(video.device)
        return info_nce(
            self.video(video, kept), F.normalize(self.text(caption), dim=1), self.scale.exp().clamp(max=100)
        )


def _small() -> VideoEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = VideoEncoder((4, 4, 6), tube=(2, 2), dim=8, depth=2, num_heads=2, out_channels=5, in_channels=2)
        return made.double().requires_grad_(False)


def _dropped(video: Tensor, kept: Tensor) -> Tensor:
    out: Tensor = _small()(video, kept)
    return out


def _hidden(video: Tensor, kept: Tensor) -> Tensor:
    """`VideoEncoder` with every tube embedded, those not kept hidden from attention and mean, written out."""
    model, found = _small(), []
    for film, seen in zip(video, kept.tolist(), strict=True):
        x = []
        for k, row, column in ((k, i, j) for k in range(0, 4, 2) for i in range(0, 4, 2) for j in range(0, 6, 2)):
            cut = film[:, k : k + 2, row : row + 2, column : column + 2].flatten()
            x.append(model.embed(cut) + model.place[row // 2 * 3 + column // 2] + model.time[k // 2])
        y, away = torch.stack(x), torch.full((model.count,), -torch.inf, dtype=torch.float64)
        away[seen] = 0
        blocks: Sequence[Any] = list(model.blocks)
        for block in blocks:
            q, k, v = block.attn.qkv(block.norm1(y)).chunk(3, 1)
            heads = [(q[:, s] @ k[:, s].T / 2 + away).softmax(1) @ v[:, s] for s in (slice(4), slice(4, 8))]
            y = y + block.attn.proj(torch.cat(heads, 1))
            y = y + block.mlp(block.norm2(y))
        pooled = model.proj(model.norm(y[seen]).mean(0))
        found.append(pooled / pooled.square().sum().sqrt())
    return torch.stack(found)


def _film(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {"video": torch.rand(3, 2, 4, 4, 6, generator=generator), "kept": draw(3, 12, 0.6, generator=generator)}


METHOD = Method(
    id=190,
    name="LongViViT",
    kind="operator",
    summary="Three of four space-time tubes of a video are dropped while its encoder is trained with captions.",
    paper=Paper(
        "A Simple Recipe for Contrastively Pre-training Video-First Encoders Beyond 16 Frames",
        "P. Papalampidi et al.",
        2024,
        "arXiv:2312.07395",
    ),
    cases={"dropped": Operator(_dropped, _hidden, _film)},
)
