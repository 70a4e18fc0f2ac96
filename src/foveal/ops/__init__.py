"""Kernels, a folder each: a plain reference, vectorised torch, a native and a Triton path behind one function."""

# Bound when the package loads: a function has the name of its folder, and whoever came second would get the folder.
from foveal.ops.selective_scan import selective_scan

__all__ = ["selective_scan"]
