"""Evidence for VMamba: sizes and cost of its three networks."""

from __future__ import annotations

from foveal.models.backbone.vmamba import vmamba_base, vmamba_small, vmamba_tiny
from foveal.record import macs, params

CLAIMS = (
    params("VMamba-T.", paper="30 M", model=vmamba_tiny, expect="30 M", beyond="sizes that the paper prints"),
    params("VMamba-S.", paper="50 M", model=vmamba_small, expect="50 M", beyond="sizes that the paper prints"),
    params("VMamba-B.", paper="89 M", model=vmamba_base, expect="89 M", beyond="sizes that the paper prints"),
    macs(
        "VMamba-T.",
        paper="4.9 G",
        model=vmamba_tiny,
        shape=(1, 3, 224, 224),
        expect="4.9 G",
        tolerance=0.02,
        beyond="cost that the paper prints",
    ),
    macs(
        "VMamba-S.",
        paper="8.7 G",
        model=vmamba_small,
        shape=(1, 3, 224, 224),
        expect="8.7 G",
        tolerance=0.02,
        beyond="cost that the paper prints",
    ),
    macs(
        "VMamba-B.",
        paper="15.4 G",
        model=vmamba_base,
        shape=(1, 3, 224, 224),
        expect="15.4 G",
        tolerance=0.02,
        beyond="cost that the paper prints",
    ),
)
