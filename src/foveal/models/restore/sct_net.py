"""SCTNet: three exposures of a moving scene made one HDR picture, without aligning them.

*Source*: S. Tel, Z. Wu, Y. Zhang, B. Heyrman, C. Demonceaux, R. Timofte and D. Ginhac, "Alignment-free HDR Deghosting
with Semantics Consistent Transformer", ICCV 2023 (arXiv:2305.18135), section 3. A frame is the picture as taken and the
same in linear light over its exposure time t (`frames`); its features are fₖ = conv3(frameₖ), (B, C / 3, H, W), and

    e = LN[f₁, f₂, f₃],  x = MLP(e)
    a layer:  x = x + conv3(Swin blocks(x));  yₖ = eₖ + xₖ;  x = MLP[SCAB(y₂, y₁), y₂, SCAB(y₂, y₃)]
    HDR = σ(conv3(conv3(LN x) + conv3 f₂))                         (B, 3, H, W), linear light in [0, 1]

xₖ and eₖ are thirds of the channels. Swin blocks attend within windows, every second one shifted by half a window.
SCAB(y, z) (`channel_attention`) attends from the channels of the reference frame to those of another frame over all
places, so that what it takes over depends on what the frames show, not where; an MLP follows.

*Differs from the paper*: no stochastic depth; a picture smaller than the window is padded by repeating its edge.

*Provenance*: sizes, normalisations and initialisation from the authors' code (Zongwei97/SCTNet), whose default is
`SCTNet()`: its count of parameters, and with shared weights its output to 3e-7.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.record import Method, Paper

__all__ = ["SCTNet", "channel_attention", "frames", "mu_law", "mu_loss"]

GAMMA, MU = 2.2, 5000.0
FRAMES = 3


def frames(pictures: Tensor, times: Tensor) -> Tensor:
    """The network's input: each picture and its linear light over its exposure time.

    Args:
        pictures: shortest exposure first, the reference in the middle, (B, 3, 3, H, W) in [0, 1].
        times: exposure times relative to that for which white is 1, (B, 3).

    Returns:
        (B, 18, H, W): of each frame three channels as taken and three of linear light.
    """
    light = pictures**GAMMA / times[:, :, None, None, None]
    return torch.cat([pictures, light], 2).flatten(1, 2)


def mu_law(x: Tensor) -> Tensor:
    """Tone mapping by the μ-law, log(1 + μx) / log(1 + μ) with μ = 5000.

    Args:
        x: linear light in [0, 1].

    Returns:
        The same shape, in [0, 1].
    """
    return torch.log1p(MU * x) / torch.log1p(torch.tensor(MU)).to(x)


def mu_loss(out: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute error after tone mapping.

    Args:
        out: linear light, (B, 3, H, W) in [0, 1].
        wanted: the same.

    Returns:
        A scalar.
    """
    return F.l1_loss(mu_law(out), mu_law(wanted))


def channel_attention(query: Tensor, key: Tensor, value: Tensor, temperature: Tensor) -> Tensor:
    """Attention between channels: softmax(τ q̂ k̂ᵀ) v, with q̂ and k̂ of length 1 over all places.

    Args:
        query: (B, C, H, W).
        key: the same.
        value: the same.
        temperature: τ of each head, (heads, 1, 1); C is a multiple of the heads.

    Returns:
        (B, C, H, W).
    """
    q, k, v = (x.flatten(2).unflatten(1, (len(temperature), -1)) for x in (query, key, value))
    weights = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * temperature
    return (weights.softmax(-1) @ v).view_as(query)


def _mlp(dim: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))


class SCAB(nn.Module):
    """Semantics consistent attention of the reference to another frame, (B, H, W, C) each to the same.

    Args:
        dim: C.
        heads: number of heads, a divisor of C.
        ratio: hidden width of the MLP over C.
    """

    def __init__(self, dim: int, heads: int = 4, ratio: int = 4) -> None:
        super().__init__()
        self.norm_reference, self.norm_other, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.mlp = _mlp(dim, ratio * dim)

    def forward(self, reference: Tensor, other: Tensor) -> Tensor:
        a, b = self.norm_reference(reference), self.norm_other(other)
        q, k, v = (x.permute(0, 3, 1, 2) for x in (self.q(a), self.k(b), self.v(b)))
        x = reference + self.out(channel_attention(q, k, v, self.temperature).permute(0, 2, 3, 1))
        return x + self.mlp(self.norm(x))


def _windows(x: Tensor, size: int) -> Tensor:
    """(B, H, W, C) to (B, windows, size², C)."""
    b, h, w, c = x.shape
    x = x.view(b, h // size, size, w // size, size, c).transpose(2, 3)
    return x.reshape(b, -1, size * size, c)


def _joined(x: Tensor, size: int, height: int, width: int) -> Tensor:
    """Inverse of `_windows`."""
    x = x.view(len(x), height // size, width // size, size, size, -1).transpose(2, 3)
    return x.reshape(len(x), height, width, -1)


class _Swin(nn.Module):
    """A transformer block with attention inside windows, (B, H, W, C) to the same; sides are multiples of a window."""

    offset: Tensor

    def __init__(self, dim: int, heads: int, window: int, ratio: float, *, shifted: bool) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, window // 2 if shifted else 0
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = _mlp(dim, int(dim * ratio))
        self.bias = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.bias, std=0.02)
        place = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        offset = place[:, None] - place[None] + window - 1
        self.register_buffer("offset", offset[..., 0] * (2 * window - 1) + offset[..., 1], persistent=False)

    def _mask(self, height: int, width: int, like: Tensor) -> Tensor:
        """0 within what was one piece before the shift, -100 across, (windows, 1, N, N)."""
        rows, columns = (
            (torch.arange(n, device=like.device) >= n - self.window).long()
            + (torch.arange(n, device=like.device) >= n - self.shift).long()
            for n in (height, width)
        )
        piece = _windows((3 * rows[:, None] + columns)[None, ..., None], self.window)[0, ..., 0]
        return -100.0 * (piece[:, None] != piece[..., None]).to(like)[:, None]

    def _attention(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        x = x.roll((-self.shift, -self.shift), (1, 2))
        # (B, windows, heads, N, C / heads) each
        q, k, v = self.qkv(_windows(x, self.window)).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        bias = self.bias[self.offset].permute(2, 0, 1)[None, None]
        if self.shift:
            bias = bias + self._mask(height, width, x)[None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q))
        x = _joined(self.proj(out.transpose(2, 3).flatten(3)), self.window, height, width)
        return x.roll((self.shift, self.shift), (1, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class _Layer(nn.Module):
    """Spatial attention within all frames together, then channel attention of the reference to the others."""

    def __init__(self, dim: int, depth: int, heads: int, window: int, ratio: float, *, across: bool) -> None:
        super().__init__()
        self.spatial = nn.Sequential(*(_Swin(dim, heads, window, ratio, shifted=i % 2 == 1) for i in range(depth)))
        self.conv = _conv(dim, dim)
        self.before, self.after = (SCAB(dim // FRAMES) if across else None for _ in range(2))
        self.mlp = _mlp(dim, dim)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        x = x + self.conv(self.spatial(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        before, reference, after = (x + embedded).chunk(FRAMES, -1)
        if self.before is not None and self.after is not None:
            before, after = self.before(reference, before), self.after(reference, after)
        out: Tensor = self.mlp(torch.cat([before, reference, after], -1))
        return out


class SCTNet(nn.Module):
    """HDR deghosting network, (B, 18, H, W), see `frames`, to linear light, (B, 3, H, W) in [0, 1].

    Args:
        dim: C, a multiple of 12; the authors' is 60.
        depths: Swin blocks of each layer.
        num_heads: heads of window attention, a divisor of C.
        window: side of a window, in pixels.
        ratio: hidden width of a Swin block's MLP over C.
        across: whether the reference attends to the other frames; False for the spatial-only ablation.

    Raises:
        ValueError: a width that three frames with four heads each, or the heads of window attention, cannot share.
    """

    in_channels, out_channels, scale = 18, 3, 1

    def __init__(
        self,
        *,
        dim: int = 60,
        depths: tuple[int, ...] = (6, 6, 6, 6),
        num_heads: int = 6,
        window: int = 8,
        ratio: float = 2.0,
        across: bool = True,
    ) -> None:
        super().__init__()
        if dim % (4 * FRAMES) or dim % num_heads:
            raise ValueError(
                f"dim must be a multiple of 12 and of num_heads, {num_heads}, got {dim}; 60 is the paper's"
            )
        self.window = window
        self.frames = nn.ModuleList(_conv(6, dim // FRAMES) for _ in range(FRAMES))
        self.embed, self.first = nn.LayerNorm(dim), _mlp(dim, dim)
        self.layers = nn.ModuleList(_Layer(dim, d, num_heads, window, ratio, across=across) for d in depths)
        self.norm, self.body, self.skip, self.last = (
            nn.LayerNorm(dim), _conv(dim, dim), _conv(dim // FRAMES, dim), _conv(dim, 3),
        )  # fmt: skip
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        down, right = -height % self.window, -width % self.window
        mode = "reflect" if down < height and right < width else "replicate"
        x = F.pad(x, (0, right, 0, down), mode=mode)
        features = [conv(frame) for conv, frame in zip(self.frames, x.chunk(FRAMES, 1), strict=True)]
        embedded = self.embed(torch.cat(features, 1).permute(0, 2, 3, 1))
        x = self.first(embedded)
        for layer in self.layers:
            x = layer(x, embedded)
        x = self.body(self.norm(x).permute(0, 3, 1, 2)) + self.skip(features[1])
        return torch.sigmoid(self.last(x))[..., :height, :width]


METHOD = Method(
    id=211,
    name="SCTNet",
    kind="model",
    summary="Merges three exposures of a moving scene by attention in windows and between the frames' channels.",
    paper=Paper(
        "Alignment-free HDR Deghosting with Semantics Consistent Transformer",
        "S. Tel et al.",
        2023,
        "arXiv:2305.18135",
    ),
    models={"sct_net": SCTNet},
    cases={"sct_net": {"dim": 24, "depths": (2,), "num_heads": 2, "window": 4}},
)
