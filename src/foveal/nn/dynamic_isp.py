"""DynamicISP: a small controller sets a camera's stages for the next frame from what the network saw in the last one.

*Source*: M. Yoshimura, J. Otsuka, A. Irie, T. Ohashi, "DynamicISP: Dynamically Controlled Image Signal Processor for
Image Recognition", ICCV 2023 (arXiv:2211.01146). Frame t, RAW, (B, 1, H, W), is demosaiced and goes through stages with
parameters p_t, (B, 13), then through the network, whose features f_t, (B, C, h, w), give the next parameters:

    denoise   x + a (blur(x) - x)                  a = sigmoid(p₀)
    gain      x ⊙ exp(p₁₋₃), clipped to [0, 1]
    colour    M x, rows of M sum to 1, p₄₋₉ its other entries
    gamma     x^(1/γ)                              γ = exp(p₁₀)
    contrast  x + c (tone_map(x) - x)              c = tanh(p₁₁)
    sharpen   x + s (x - blur(x))                  s = 2 sigmoid(p₁₂)

    p_{t+1} = base + controller(mean of f_t),  p_0 = base

Base values, controller and network are trained together by the network's own loss. The controller's last layer starts
at zero, so the first step is a fixed camera's. blur is a 5×5 Gaussian of σ = 1.

*Differs from the paper*: the stages are those that the paper names in the forms above, and the controller has one
hidden layer; we classify, the paper detects.
*Provenance*: written from the abstract and the catalogue's account of the mechanism; there is no authors' code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.cases import Procedure
from foveal.nn import isp
from foveal.record import Method, Paper

__all__ = ["PARAMETERS", "DynamicISP", "blur", "processed"]

PARAMETERS = 13
START = (-2.0, *[0.7] * 3, *[0.0] * 6, 0.8, 0.0, -2.0)  # little denoising, doubled, γ = 2.2, no contrast, little edge


def blur(x: Tensor) -> Tensor:
    """5×5 Gaussian of σ = 1; borders are mirrored.

    Args:
        x: picture, (B, C, H, W), H and W at least 3.

    Returns:
        Picture, (B, C, H, W).
    """
    line = torch.exp(-0.5 * torch.arange(-2, 3, device=x.device, dtype=x.dtype).square())
    line = (line / line.sum()).expand(x.shape[1], 1, 1, -1)
    x = F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), line, groups=x.shape[1])
    return F.conv2d(x, line.transpose(2, 3), groups=x.shape[1])


def processed(raw: Tensor, parameters: Tensor, *, pattern: str = "RGGB") -> Tensor:
    """Develop RAW by the stages above.

    Args:
        raw: RAW, (B, 1, H, W), in [0, 1].
        parameters: p, (B, 13).
        pattern: Bayer pattern, one of `foveal.nn.isp.PATTERNS`.

    Returns:
        Picture, (B, 3, H, W), about [0, 1]: sharpening may overshoot.
    """
    p = parameters[..., None, None, None].unbind(1)
    x = isp.demosaic(raw, pattern, method="bilinear")
    x = x + torch.sigmoid(p[0]) * (blur(x) - x)
    x = isp.gain(x, parameters[:, 1:4].exp()).clamp(0, 1)
    rest = parameters[:, 4:10].view(-1, 3, 2)
    matrix = torch.stack(
        [torch.cat([rest[:, i, :i], 1 - rest[:, i].sum(1, keepdim=True), rest[:, i, i:]], 1) for i in range(3)], 1
    )
    x = isp.gamma(isp.colour_matrix(x, matrix), parameters[:, 10].exp())
    x = x + torch.tanh(p[11]) * (isp.tone_map(x) - x)
    return x + 2 * torch.sigmoid(p[12]) * (x - blur(x))


class DynamicISP(nn.Module):
    """RAW frames, (T, B, 1, H, W), to the network's results, (T, B, …).

    Args:
        body: network up to its features, (B, 3, H, W) to (B, dim, h, w).
        head: features to the result, (B, dim, h, w) to (B, …).
        dim: channels of the features.
        hidden: width of the controller.
        controlled: whether the controller acts; False is a camera of fixed parameters, trained as well.
        pattern: Bayer pattern, one of `foveal.nn.isp.PATTERNS`.
    """

    def __init__(
        self,
        body: nn.Module,
        head: nn.Module,
        dim: int,
        *,
        hidden: int = 32,
        controlled: bool = True,
        pattern: str = "RGGB",
    ) -> None:
        super().__init__()
        self.body, self.head, self.pattern = body, head, pattern
        self.base = nn.Parameter(torch.tensor(START))
        self.controller: nn.Sequential | None = None
        if controlled:
            self.controller = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, PARAMETERS))
            for parameter in self.controller[2].parameters():
                nn.init.zeros_(parameter)

    def start(self, batch: int) -> Tensor:
        """Parameters for a first frame.

        Args:
            batch: number of streams, B.

        Returns:
            Parameters, (B, 13).
        """
        return self.base.expand(batch, -1)

    def step(self, raw: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """One frame.

        Args:
            raw: RAW, (B, 1, H, W), in [0, 1].
            parameters: parameters of this frame, (B, 13), from `start` or the step before.

        Returns:
            Result, (B, …), and the parameters of the next frame, (B, 13).
        """
        features = self.body(processed(raw, parameters, pattern=self.pattern))
        following = self.start(len(raw))
        if self.controller is not None:
            following = following + self.controller(features.mean((2, 3)))
        return self.head(features), following

    def forward(self, frames: Tensor) -> Tensor:
        if frames.ndim != 5 or not len(frames):
            raise ValueError(f"frames must be (T, B, 1, H, W), T at least 1, got {tuple(frames.shape)}")
        parameters, results = self.start(frames.shape[1]), []
        for raw in frames:
            result, parameters = self.step(raw, parameters)
            results.append(result)
        return torch.stack(results)


def _tiny(seed: int) -> DynamicISP:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DynamicISP(nn.Conv2d(3, 4, 3), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), 4, hidden=3)
        nn.init.normal_(model.controller[2].weight)  # type: ignore[index, arg-type]
    return model


def _run(seed: int) -> Tensor:
    frames = torch.rand(3, 2, 1, 6, 8, generator=torch.Generator().manual_seed(seed))
    return _tiny(seed)(frames).detach()


METHOD = Method(
    id=61,
    name="DynamicISP",
    kind="procedure",
    summary="What a network saw in the last frame sets the camera's gain, curves and filters for the next.",
    paper=Paper(
        "DynamicISP: Dynamically Controlled Image Signal Processor for Image Recognition",
        "M. Yoshimura et al.",
        2023,
        "arXiv:2211.01146",
    ),
    cases={
        "tiny": Procedure(
            _run,
            empty=lambda: _tiny(0)(torch.zeros(0, 2, 1, 6, 8)),
            refuses="frames must be (T, B, 1, H, W), T at least 1, got (0, 2, 1, 6, 8)",
        )
    },
)
