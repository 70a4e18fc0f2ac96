"""Operators, one folder each: a plain reference, vectorised torch, native and Triton paths behind one function."""

# Imported with the package: a function has the name of its folder, and a later import of the submodule would shadow it.
from foveal.ops.backends import use_backend
from foveal.ops.long_conv import long_conv
from foveal.ops.scan2d import selective_scan2d
from foveal.ops.selective_scan import selective_scan
from foveal.ops.ssd import ssd, ssd_noncausal

__all__ = ["long_conv", "selective_scan", "selective_scan2d", "ssd", "ssd_noncausal", "use_backend"]
