"""Stages of a camera in torch, differentiable, each with its exact inverse where there is one.

*Source*: T. Brooks et al., "Unprocessing Images for Learned Raw Denoising", CVPR 2019 (arXiv:1811.11127), section 3,
for the chain and its inverse; demosaicing: H. Malvar, L. He, R. Cutler, "High-quality linear interpolation for
demosaicing of Bayer-patterned color images", ICASSP 2004, figure 2. For RAW y, (B, 1, H, W), and sRGB x, (B, 3, H, W),
both in [0, 1]:

    x = tone_map(gamma(M · (w ⊙ demosaic(y))))      y = mosaic(w⁻¹ ⊙ (M⁻¹ · degamma(inverse_tone_map(x))))
    noise:  y + n,  n ~ N(0, shot · y + read)       w gains of red, green, blue; M camera colours to linear sRGB

Parameters are those of all pictures, as w, (3,), or of each picture of a batch, (B, 3). Only curves clip, at the ends
of their range, so a chain can be undone.

*Differs from the paper*: a curve's gradient is 0 outside its range instead of infinite at the ends, and values there
are exact instead of floored at 1e-8.
*Provenance*: written from the papers; the noise levels' constants were looked up in Brooks' released code.
"""

from __future__ import annotations

from foveal.nn.isp.bayer import PATTERNS, demosaic, mosaic, pack, unpack
from foveal.nn.isp.colour import (
    colour_matrix,
    degamma,
    gain,
    gamma,
    inverse_gain,
    inverse_tone_map,
    srgb_decode,
    srgb_encode,
    tone_map,
)
from foveal.nn.isp.noise import noise_levels, shot_and_read_noise

__all__ = [
    "PATTERNS",
    "colour_matrix",
    "degamma",
    "demosaic",
    "gain",
    "gamma",
    "inverse_gain",
    "inverse_tone_map",
    "mosaic",
    "noise_levels",
    "pack",
    "shot_and_read_noise",
    "srgb_decode",
    "srgb_encode",
    "tone_map",
    "unpack",
]
