"""Evidence of foveal.models.backbone.vmamba."""

from __future__ import annotations

from foveal.models.backbone.vmamba import vmamba_base, vmamba_small, vmamba_tiny
from foveal.record import macs, params

CLAIMS = (
    params("VMamba-T.", paper="30 M", model=vmamba_tiny, expect=30_249_064),
    params("VMamba-S.", paper="50 M", model=vmamba_small, expect=50_147_752),
    params("VMamba-B.", paper="89 M", model=vmamba_base, expect=88_557_800),
    macs("VMamba-T.", paper="4.9 G", model=vmamba_tiny, shape=(1, 3, 224, 224), expect=4.9e9, tolerance=0.02),
    macs("VMamba-S.", paper="8.7 G", model=vmamba_small, shape=(1, 3, 224, 224), expect=8.7e9, tolerance=0.02),
    macs("VMamba-B.", paper="15.4 G", model=vmamba_base, shape=(1, 3, 224, 224), expect=15.4e9, tolerance=0.02),
)
