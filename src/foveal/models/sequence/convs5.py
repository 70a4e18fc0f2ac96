"""ConvS5: a linear state-space recurrence over the frames of a video, whose input and output maps are convolutions.

*Source*: J. Smith et al., "Convolutional State Space Models for Long-Range Spatiotemporal Modeling", NeurIPS 2023
(arXiv:2310.19694), sections 3 and 4. The state of each pixel is updated by a diagonal 1×1 convolution, so that the scan
is associative; P states are held as P/2 conjugate pairs, initialised as HiPPO-LegS:

    X_t = Λ̄ X_{t-1} + B̄ ∗ U_t,  Y_t = 2 Re (C ∗ X_t),  Λ̄ = exp(ΔΛ),  B̄ = Λ⁻¹ (Λ̄ - 1) B

Training computes all frames at once, by doubling: with a = Λ̄, X_t ← X_t + aˢ X_{t-s} for s = 1, 2, 4, …, after which
X_t covers the last 2s inputs. Generation runs frame by frame. A layer passes Y through a residual block of two 3×3
convolutions with group norm and GELU, which ends in GELU, adds its input and normalises over channels. The network
encodes frames with a strided convolution and decodes with a convolution and a pixel shuffle.

*Differs from the paper*: its encoder and decoder are small residual networks with more width; GELU is exact here, the
authors' code uses the tanh approximation.

*Provenance*: written from the paper; the residual block, the place of the norm and the initial values were looked up in
the authors' code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.models.sequence._layers import hippo, log_steps
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ConvS5", "ConvS5Layer", "ConvS5Video", "linear_scan"]


def linear_scan(x: Tensor, decay: Tensor, state: Tensor | None = None) -> Tensor:
    """X_t = a X_{t-1} + x_t for all t at once, in log₂ T steps.

    Args:
        x: inputs, (B, T, P, …).
        decay: a, (P,), real or complex like `x`.
        state: X before the first step, (B, P, …); None for zero.

    Returns:
        States, (B, T, P, …).
    """
    power = decay.view(-1, *[1] * (x.ndim - 3))
    if state is not None:
        x = torch.cat([x[:, :1] + (power * state)[:, None], x[:, 1:]], 1)
    reach = 1
    while reach < x.shape[1]:
        x = torch.cat([x[:, :reach], x[:, reach:] + power * x[:, :-reach]], 1)
        power, reach = power * power, 2 * reach
    return x


class ConvS5(nn.Module):
    """The recurrence, (B, T, C, H, W) to the same and the state after the last frame, (B, P/2, H, W) complex.

    Args:
        dim: C.
        states: P, even.
        kernel_size: kernel size of both convolutions, odd.
        step_range: smallest and largest Δ.

    Raises:
        ValueError: if `states` is odd or `kernel_size` even.
    """

    def __init__(
        self,
        dim: int,
        *,
        states: int = 256,
        kernel_size: int = 3,
        step_range: tuple[float, float] = (0.001, 0.1),
    ) -> None:
        super().__init__()
        if states < 2 or states % 2:
            raise ValueError(f"states must be even, they come in conjugate pairs, got {states}")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}; take {kernel_size + 1}")
        eigenvalues, _, _, vectors = hippo(states)
        self.log_step = nn.Parameter(log_steps(states // 2, *step_range))
        self.decay = nn.Parameter(eigenvalues.real.to(self.log_step.dtype))
        self.frequency = nn.Parameter(eigenvalues.imag.to(self.log_step.dtype))
        shape = (dim, kernel_size, kernel_size)
        entering = torch.randn(states, *shape, dtype=torch.float64) * (2 / (dim * kernel_size**2)) ** 0.5
        leaving = torch.randn(*shape, states, dtype=torch.float64) * (2 / (states * kernel_size**2)) ** 0.5
        # (P, C, k, k) and (C, P, k, k): real parts, then imaginary parts, in the eigenbasis
        entering = torch.einsum("np,n...->p...", vectors.conj(), entering.to(vectors.dtype))
        leaving = torch.einsum("...n,np->...p", leaving.to(vectors.dtype), vectors).permute(0, 3, 1, 2)
        self.entering = nn.Parameter(torch.cat([entering.real, entering.imag]).to(self.log_step.dtype))
        self.leaving = nn.Parameter(torch.cat([leaving.real, leaving.imag], 1).to(self.log_step.dtype))

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch, frames = x.shape[:2]
        pad, half = self.entering.shape[-1] // 2, self.log_step.shape[0]
        # At least a little decay: a growing state would overflow.
        eigenvalues = torch.complex(self.decay.clamp(max=-1e-4), self.frequency)
        decay = torch.exp(eigenvalues * self.log_step.exp())
        # (B·T, P, H, W), real parts first
        entered = F.conv2d(x.flatten(0, 1), self.entering, padding=pad).unflatten(0, (batch, frames))
        inputs = torch.complex(*entered.split(half, 2)) * ((decay - 1) / eigenvalues)[:, None, None]
        states = linear_scan(inputs, decay, state)
        # 2 Re (C X) = 2 (Re C · Re X - Im C · Im X)
        parts = torch.cat([2 * states.real, -2 * states.imag], 2).flatten(0, 1)
        return F.conv2d(parts, self.leaving, padding=pad).unflatten(0, (batch, frames)), states[:, -1]


class ConvS5Layer(nn.Module):
    """The recurrence, a residual block, the input added, a norm over channels; inputs and outputs as for `ConvS5`.

    Args:
        dim: C.
        states: P.
        kernel_size: kernel size of all convolutions.
    """

    def __init__(self, dim: int, *, states: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.ssm = ConvS5(dim, states=states, kernel_size=kernel_size)
        groups = max(n for n in range(1, 33) if dim % n == 0)
        layers: list[nn.Module] = []
        for _ in range(2):
            conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2)
            layers += [nn.GroupNorm(groups, dim), nn.GELU(), conv]
        self.block, self.activation = nn.Sequential(*layers), nn.GELU()
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, state = self.ssm(x, state)
        y = self.activation(y + self.block(y.flatten(0, 1)).view_as(y))
        return self.norm((x + y).movedim(2, -1)).movedim(-1, 2), state


class ConvS5Video(nn.Module):
    """Predicts each frame from those before it; (B, T, C, H, W) to the same, for T consecutive frames.

    Output t is the prediction of frame t + 1. An unbatched video, (T, C, H, W), is accepted too.

    Args:
        in_channels: C of a frame.
        dim: width.
        depth: number of layers.
        states: P of each layer.
        kernel_size: kernel size of the layers' convolutions.
        stride: stride of the encoder, in pixels.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        dim: int = 256,
        depth: int = 8,
        states: int = 256,
        kernel_size: int = 3,
        stride: int = 4,
    ) -> None:
        super().__init__()
        self.in_channels, self.stride = in_channels, stride
        self.encoder = nn.Sequential(
            nn.Conv2d(in_channels, dim, stride + 2 * (stride // 2), stride, stride // 2),
            nn.GELU(),
            nn.Conv2d(dim, dim, 3, padding=1),
        )
        self.layers = nn.ModuleList(ConvS5Layer(dim, states=states, kernel_size=kernel_size) for _ in range(depth))
        self.decoder = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(dim, in_channels * stride**2, 3, padding=1),
            nn.PixelShuffle(stride),
        )

    def predict(self, x: Tensor, states: Sequence[Tensor | None] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Process further frames of a video.

        Args:
            x: frames, (B, T, C, H, W).
            states: states returned by the call for the preceding frames; None at the start.

        Returns:
            Prediction of the frame after each, (B, T, C, H, W); states of the layers.
        """
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % self.stride, 0, -height % self.stride))
        y = self.encoder(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        after = []
        for layer, state in zip(self.layers, states or [None] * len(self.layers), strict=True):
            y, last = layer(y, state)
            after.append(last)
        out = self.decoder(y.flatten(0, 1)).unflatten(0, x.shape[:2])
        return out[..., :height, :width], after

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            return self.predict(x[None])[0][0]
        return self.predict(x)[0]

    def generate(self, x: Tensor, frames: int) -> Tensor:
        """Continue a video from the network's own predictions.

        Args:
            x: frames, (B, T, C, H, W).
            frames: number of frames to generate.

        Returns:
            (B, frames, C, H, W).
        """
        out, states = self.predict(x)
        made = [out[:, -1:]]
        while len(made) < frames:
            out, states = self.predict(made[-1], states)
            made.append(out)
        return torch.cat(made, 1)


METHOD = Method(
    id=288,
    name="ConvS5",
    kind="model",
    summary="Video prediction by a linear recurrence of each pixel, between convolutions, parallel over frames.",
    paper=Paper(
        "Convolutional State Space Models for Long-Range Spatiotemporal Modeling",
        "J. Smith et al.",
        2023,
        "arXiv:2310.19694",
    ),
    models={"convs5_video": ConvS5Video},  # the paper's sizes for Moving-MNIST
    cases={"convs5_video": {"in_channels": 3, "dim": 4, "depth": 1, "states": 4, "stride": 2}},
    except_for={
        "shape": "takes a film and predicts a frame for each of its frames, which is neither a scale nor classes"
    },
)
