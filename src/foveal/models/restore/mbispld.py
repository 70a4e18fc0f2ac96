"""MBISPLD: a camera's processing that runs both ways, its gains and colour matrix mixed from learned dictionaries.

*Source*: M. V. Conde, S. McDonagh, M. Maggioni, A. Leonardis, E. Pérez-Pellitero, "Model-Based Image Signal Processors
via Learnable Dictionaries", AAAI 2022 (arXiv:2201.03210), figure 2. For RAW y, (B, 1, H, W), and RGB x, (B, 3, H, W),
both in [0, 1], with gains g, (B, 3), colour matrix M, (B, 3, 3), and one exponent γ:

    x = tone_map(gamma(M · (g ⊙ demosaic(y))))      y = mosaic(M⁻¹ · degamma(inverse_tone_map(x)) ⊘ g)
    M = Σᵢ uᵢ Mᵢ, u = softmax(encoder(picture))     (d, r, b) = Σⱼ wⱼ (dⱼ, rⱼ, bⱼ), g = d · (r, 1, b)

Each weight vector comes from a small encoder of the picture as it is at that stage; there are two encoders for each
direction. Dictionaries and exponent are shared by both directions and learned from pairs, by

    |y - ŷ| + |x - x̂| + s · (H(u) + H(w)),  H entropy: few atoms make each picture

*Differs from the paper*: tone mapping is the smoothstep with its exact inverse, where the paper learns a small network
for each direction, so what is inverted is inverted exactly; lens shading is left out; sparsity is an entropy.
*Provenance*: written from the abstract and the authors' figure (github.com/mv-lab/AISP, which holds no code of it); the
number of atoms, the encoders and s are ours.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.nn import isp
from foveal.record import Method, Paper

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MBISPLD", "mbispld", "reconstruction_loss", "to_raw", "to_rgb"]


def to_rgb(raw: Tensor, gains: Tensor, matrix: Tensor, exponent: Tensor | float, *, pattern: str = "RGGB") -> Tensor:
    """Develop RAW.

    Args:
        raw: RAW, (B, 1, H, W), in [0, 1].
        gains: gains of red, green, blue, (B, 3).
        matrix: camera colours to linear sRGB, (B, 3, 3).
        exponent: γ.
        pattern: Bayer pattern, one of `foveal.nn.isp.PATTERNS`.

    Returns:
        RGB, (B, 3, H, W), in [0, 1].
    """
    linear = isp.colour_matrix(isp.gain(isp.demosaic(raw, pattern), gains), matrix)
    return isp.tone_map(isp.gamma(linear, exponent))


def to_raw(rgb: Tensor, gains: Tensor, matrix: Tensor, exponent: Tensor | float, *, pattern: str = "RGGB") -> Tensor:
    """Undo `to_rgb`, exactly where nothing was clipped.

    Args:
        rgb: RGB, (B, 3, H, W), in [0, 1].
        gains: gains of red, green, blue, (B, 3).
        matrix: camera colours to linear sRGB, (B, 3, 3).
        exponent: γ.
        pattern: Bayer pattern, one of `foveal.nn.isp.PATTERNS`.

    Returns:
        RAW, (B, 1, H, W).
    """
    linear = isp.degamma(isp.inverse_tone_map(rgb), exponent)
    return isp.mosaic(isp.inverse_gain(isp.colour_matrix(linear, torch.linalg.inv(matrix)), gains), pattern)


class Encoder(nn.Sequential):
    """Weights of the atoms of a dictionary, (B, 3, H, W) to (B, atoms), positive, with sum 1.

    Args:
        atoms: number of atoms.
        dim: channels.
    """

    def __init__(self, atoms: int, dim: int) -> None:
        super().__init__(
            nn.Conv2d(3, dim, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(dim, dim, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(dim, dim, 3, 2, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(dim, atoms),
            nn.Softmax(1),
        )


class MBISPLD(nn.Module):
    """RGB to RAW, (B, 3, H, W) to (B, 1, H, W); `develop` is the other direction. H and W at least 3.

    Args:
        gain_atoms: atoms of the dictionary of gains.
        matrix_atoms: atoms of the dictionary of colour matrices.
        dim: channels of the encoders.
        pattern: Bayer pattern, one of `foveal.nn.isp.PATTERNS`.

    Raises:
        ValueError: a dictionary without atoms.
    """

    scale, in_channels, out_channels = 1, 3, 1

    def __init__(self, *, gain_atoms: int = 8, matrix_atoms: int = 8, dim: int = 16, pattern: str = "RGGB") -> None:
        super().__init__()
        if min(gain_atoms, matrix_atoms) < 1:
            raise ValueError(
                f"a dictionary needs at least 1 atom, got {gain_atoms} of gains, {matrix_atoms} of matrices"
            )
        self.pattern = pattern
        # Gain, red, blue in log units: a digital gain of 0.5 to 8, red and blue 1.2 to 2.9, as cameras have them.
        ends = torch.tensor([[0.5, 1.2, 1.2], [8.0, 2.9, 2.9]]).log()
        spread = torch.rand(gain_atoms, 3) if gain_atoms > 1 else torch.full((1, 3), 0.5)
        self.gains = nn.Parameter(ends[0] + (ends[1] - ends[0]) * spread)
        typical = torch.tensor([[1.6, -0.4, -0.2], [-0.2, 1.5, -0.3], [0.0, -0.5, 1.5]])
        self.matrices = nn.Parameter(typical + 0.1 * torch.randn(matrix_atoms, 3, 3) * (matrix_atoms > 1))
        self.exponent = nn.Parameter(torch.tensor(2.2))
        self.reverse_gains, self.forward_gains = (Encoder(gain_atoms, dim) for _ in range(2))
        self.reverse_matrix, self.forward_matrix = (Encoder(matrix_atoms, dim) for _ in range(2))

    def mixed_gains(self, weights: Tensor) -> Tensor:
        """Gains of a mixture of atoms.

        Args:
            weights: weights, (B, atoms), with sum 1.

        Returns:
            Gains of red, green, blue, (B, 3).
        """
        digital, red, blue = (weights @ self.gains.exp()).unbind(1)
        return torch.stack([digital * red, digital, digital * blue], 1)

    def mixed_matrix(self, weights: Tensor) -> Tensor:
        """Colour matrix of a mixture of atoms, whose rows sum to 1.

        Args:
            weights: weights, (B, atoms), with sum 1.

        Returns:
            Matrices, (B, 3, 3).
        """
        grey = self.matrices + (1 - self.matrices.sum(2, keepdim=True)) / 3
        return torch.einsum("bn,nij->bij", weights, grey)

    def undevelop(self, rgb: Tensor) -> tuple[Tensor, list[Tensor]]:
        """RGB to RAW.

        Args:
            rgb: RGB, (B, 3, H, W), in [0, 1].

        Returns:
            RAW, (B, 1, H, W), and the weights of matrices and gains, (B, atoms) each.
        """
        linear = isp.degamma(isp.inverse_tone_map(rgb), self.exponent)
        matrix_weights = self.reverse_matrix(linear)
        colours = isp.colour_matrix(linear, torch.linalg.inv(self.mixed_matrix(matrix_weights)))
        gain_weights = self.reverse_gains(colours)
        raw = isp.mosaic(isp.inverse_gain(colours, self.mixed_gains(gain_weights)), self.pattern)
        return raw, [matrix_weights, gain_weights]

    def develop(self, raw: Tensor) -> tuple[Tensor, list[Tensor]]:
        """RAW to RGB.

        Args:
            raw: RAW, (B, 1, H, W), in [0, 1].

        Returns:
            RGB, (B, 3, H, W), in [0, 1], and the weights of gains and matrices, (B, atoms) each.
        """
        colours = isp.demosaic(raw, self.pattern)
        gain_weights = self.forward_gains(colours)
        colours = isp.gain(colours, self.mixed_gains(gain_weights))
        matrix_weights = self.forward_matrix(colours)
        linear = isp.colour_matrix(colours, self.mixed_matrix(matrix_weights))
        return isp.tone_map(isp.gamma(linear, self.exponent)), [gain_weights, matrix_weights]

    def forward(self, rgb: Tensor) -> Tensor:
        return self.undevelop(rgb)[0]

    def augment(self, rgb: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """RAW of RGB by cameras that do not exist: random mixtures of atoms, uniform over all mixtures.

        Args:
            rgb: RGB, (B, 3, H, W), in [0, 1].
            generator: source of the mixtures; None takes torch's.

        Returns:
            RAW, (B, 1, H, W).
        """
        mixed = []
        for atoms in (len(self.gains), len(self.matrices)):
            draw = torch.rand(len(rgb), atoms, generator=generator).clamp(min=1e-9)
            mixed.append(F.normalize(-draw.log(), p=1, dim=1).to(rgb))
        return to_raw(rgb, self.mixed_gains(mixed[0]), self.mixed_matrix(mixed[1]), self.exponent, pattern=self.pattern)


def _entropy(weights: Sequence[Tensor]) -> Tensor:
    return -sum((w * w.clamp(min=1e-9).log()).sum(1).mean() for w in weights)  # type: ignore[return-value]


def reconstruction_loss(model: MBISPLD, raw: Tensor, rgb: Tensor, *, sparsity: float = 1e-4) -> Tensor:
    """Both directions' absolute errors and the entropy of the weights.

    Args:
        model: model to train.
        raw: RAW, (B, 1, H, W), in [0, 1].
        rgb: what the camera made of it, (B, 3, H, W), in [0, 1].
        sparsity: weight s of the entropy.

    Returns:
        Scalar.
    """
    (ours, back), (shown, there) = model.undevelop(rgb), model.develop(raw)
    return F.l1_loss(ours, raw) + F.l1_loss(shown, rgb) + sparsity * _entropy([*back, *there])


mbispld = partial(MBISPLD)

METHOD = Method(
    id=245,
    name="MBISPLD",
    kind="model",
    summary="RGB to RAW and back through a camera's stages, with gains and colour matrices from learned dictionaries.",
    paper=Paper(
        "Model-Based Image Signal Processors via Learnable Dictionaries", "M. V. Conde et al.", 2022, "arXiv:2201.03210"
    ),
    models={"mbispld": mbispld},
    cases={"mbispld": {"gain_atoms": 2, "matrix_atoms": 3, "dim": 4}},
    except_for={"gradients": "forward is RGB to RAW; the other direction's encoders learn from `reconstruction_loss`"},
)
