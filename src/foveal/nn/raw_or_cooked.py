"""RawOrCooked: one trainable element-wise curve instead of a camera's processing, so that a network reads RAW.

*Source*: W. Ljungbergh, J. Johnander, C. Petersson, M. Felsberg, "Raw or Cooked? Object Detection on RAW Images", SCIA
2023 (arXiv:2301.08965), section 3; the curve is that of I. Yeo, R. Johnson, "A new family of power transformations to
improve normality or symmetry", Biometrika 87(4), 2000. RAW y, (B, 1, H, W), becomes colours of half the size, z,
(B, 3, H/2, W/2), whose green is the mean of the two greens. Then, with trainable λ, γ, or μ and σ,

    yeo_johnson  ((z + 1)^λ - 1) / λ for z ≥ 0, log(z + 1) at λ = 0;
                 -((1 - z)^(2 - λ) - 1) / (2 - λ) for z < 0, -log(1 - z) at λ = 2
    gamma        z^γ
    error        ½ (1 + erf((z - μ) / (√2 σ)))

*Differs from the paper*: where each curve starts is ours. Yeo–Johnson works on the sensor's counts and starts at λ = ½,
the square root that makes shot noise even; the others work on [0, 1] and start at γ = 1/2.2, μ = 0.1, σ = 0.2.
*Provenance*: written from the abstract, the authors' page and the definition of the curve; there is no authors' code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.nn.isp import degamma, pack
from foveal.record import Method, Paper

__all__ = ["RawOrCooked", "half_colours", "yeo_johnson"]

CURVES = ("yeo_johnson", "gamma", "error", "linear")
_SMALL = 1e-3  # below this power, times the logarithm of the value, a series is more exact than the quotient


def _power(u: Tensor, p: Tensor) -> Tensor:
    """(e^(p u) - 1) / p, which is u at p = 0, with exact gradients there."""
    t = p * u
    small = t.abs() < _SMALL
    series = u * (1 + t / 2 * (1 + t / 3 * (1 + t / 4 * (1 + t / 5))))
    quotient = torch.expm1(torch.where(small, 1.0, t)) / torch.where(small, 1.0, p)
    return torch.where(small, series, quotient)


def yeo_johnson(x: Tensor, power: Tensor) -> Tensor:
    """Yeo–Johnson transform.

    Args:
        x: values of any sign and shape.
        power: λ, (), or a shape that broadcasts with x.

    Returns:
        Transformed values, increasing in x; x itself at λ = 1.
    """
    u = torch.log1p(x.abs())
    return torch.where(x >= 0, _power(u, power), -_power(u, 2 - power))


def half_colours(raw: Tensor, pattern: str = "RGGB") -> Tensor:
    """Colours of a Bayer mosaic at half its size, the greens averaged.

    Args:
        raw: RAW, (B, 1, H, W), H and W even.
        pattern: one of `foveal.nn.isp.PATTERNS`.

    Returns:
        Red, green, blue, (B, 3, H/2, W/2).
    """
    red, green, other, blue = pack(raw, pattern).split(1, 1)
    return torch.cat([red, (green + other) / 2, blue], 1)


class RawOrCooked(nn.Module):
    """First layer of a network that reads RAW: (B, 1, H, W) in [0, 1] to (B, 3, H/2, W/2), not normalised.

    Args:
        curve: "yeo_johnson", the paper's proposal; "gamma" or "error", its comparisons; "linear", no curve.
        pattern: Bayer pattern, one of `foveal.nn.isp.PATTERNS`.
        white_level: counts of the sensor at 1, which Yeo–Johnson sees; 4095 for 12 bits.

    Raises:
        ValueError: an unknown curve.
    """

    power: Tensor
    gamma: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, curve: str = "yeo_johnson", *, pattern: str = "RGGB", white_level: float = 4095.0) -> None:
        super().__init__()
        if curve not in CURVES:
            raise ValueError(f"curve must be one of {', '.join(CURVES)}, got {curve!r}")
        self.curve, self.pattern, self.white_level = curve, pattern, white_level
        starts = {"yeo_johnson": {"power": 0.5}, "gamma": {"gamma": 1 / 2.2}, "error": {"mean": 0.1, "deviation": 0.2}}
        for name, start in starts.get(curve, {}).items():
            self.register_parameter(name, nn.Parameter(torch.tensor(start)))

    def extra_repr(self) -> str:
        return ", ".join([self.curve, *(f"{name}={value.item():.3g}" for name, value in self.named_parameters())])

    def forward(self, raw: Tensor) -> Tensor:
        # (B, 3, H/2, W/2)
        z = half_colours(raw, self.pattern)
        if self.curve == "yeo_johnson":
            return yeo_johnson(self.white_level * z, self.power)
        if self.curve == "gamma":
            return degamma(z, self.gamma)
        if self.curve == "error":
            return 0.5 * (1 + torch.erf((z - self.mean) / (math.sqrt(2) * self.deviation)))
        return z


def _plain(x: Tensor, power: Tensor) -> Tensor:
    """The definition, without its limits at λ = 0 and 2."""
    above = ((x.clamp(min=0) + 1) ** power - 1) / power
    below = -((1 - x.clamp(max=0)) ** (2 - power) - 1) / (2 - power)
    return torch.where(x >= 0, above, below)


def _inputs(power: float, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"x": 5 * torch.randn(3, 7, generator=generator), "power": torch.tensor(power)}


METHOD = Method(
    id=122,
    name="RawOrCooked",
    kind="operator",
    summary="A trainable Yeo–Johnson curve lets a network read RAW, in place of the camera's processing.",
    paper=Paper(
        "Raw or Cooked? Object Detection on RAW Images",
        "W. Ljungbergh et al.",
        2023,
        "arXiv:2301.08965",
    ),
    cases={
        "square_root": Operator(yeo_johnson, _plain, lambda seed: _inputs(0.5, seed)),
        "negative_power": Operator(yeo_johnson, _plain, lambda seed: _inputs(-1.3, seed)),
        "above_two": Operator(yeo_johnson, _plain, lambda seed: _inputs(2.7, seed)),
    },
)
