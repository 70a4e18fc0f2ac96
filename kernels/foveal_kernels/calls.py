"""Structures and prototypes of the functions in kernels/cpp, for ctypes.

Every function that computes returns 0, or 1 if memory ran out.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_int, c_int64, c_void_p

__all__ = [
    "Attention",
    "BlockSparse",
    "Convolution",
    "ConvolutionGradients",
    "Im2win",
    "ScanData",
    "ScanGradients",
    "ScanShape",
    "Signs",
    "XnorConv",
    "XnorMatmul",
    "declare",
]

_CONVOLUTION = ("batch", "height", "width", "in_channels", "out_channels")


def _fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class ScanShape(ctypes.Structure):
    """Sizes and strides of a selective scan, in elements."""

    _fields_ = _fields(
        c_int64,
        "batch channels states groups routes steps softplus b_constant c_constant "
        "u_batch u_channel u_place delta_batch delta_route delta_channel delta_place "
        "b_batch b_route b_group b_state b_place c_batch c_route c_group c_state c_place "
        "z_batch z_channel z_place out_batch out_channel out_place",
    )


class ScanData(ctypes.Structure):
    """Pointers of a selective scan."""

    _fields_ = _fields(c_void_p, "route u delta A B C D z bias start out last checkpoints")


class ScanGradients(ctypes.Structure):
    """Pointers of the gradients of a selective scan: the first three are inputs."""

    _fields_ = (
        *_fields(c_void_p, "out last checkpoints u z delta A D bias start B C"),
        *_fields(c_int64, "delta_batch delta_route delta_channel delta_place parts places"),
    )


class Attention(ctypes.Structure):
    """Linear attention with one decay per head."""

    _fields_ = (
        *_fields(c_int64, "batch length heads query_groups key_groups value_groups states channels backward"),
        *_fields(c_void_p, "q k v rates start out last"),
    )


class Convolution(ctypes.Structure):
    """A 3×3 convolution of a leaky activation, or the gradient of its input."""

    _fields_ = (
        *((name, c_int64) for name in _CONVOLUTION),
        *_fields(c_void_p, "x weight slope bias y gate gate_slope slope_gradient"),
    )


class ConvolutionGradients(ctypes.Structure):
    """The gradients of the convolution's weight and bias."""

    _fields_ = (
        *((name, c_int64) for name in _CONVOLUTION),
        *_fields(c_void_p, "x slope gradient weight bias"),
    )


class Signs(ctypes.Structure):
    """Packing of the signs of rows."""

    _fields_ = (*_fields(c_int64, "rows columns"), *_fields(c_void_p, "x words"))


class XnorMatmul(ctypes.Structure):
    """Products of the signs of rows with packed signs."""

    _fields_ = (*_fields(c_int64, "batch rows columns inner"), *_fields(c_void_p, "a b y"))


class XnorConv(ctypes.Structure):
    """A convolution of the signs of a picture with packed signs."""

    _fields_ = (
        *((name, c_int64) for name in _CONVOLUTION),
        *_fields(c_int64, "kernel_height kernel_width stride padding"),
        *_fields(c_void_p, "x weight y"),
    )


class BlockSparse(ctypes.Structure):
    """A linear layer whose weight is stored in blocks."""

    _fields_ = (
        *_fields(c_int64, "rows in_channels out_channels tall wide"),
        *_fields(c_void_p, "x values starts columns bias y"),
    )


class Im2win(ctypes.Structure):
    """A convolution of windows in order."""

    _fields_ = (
        *((name, c_int64) for name in _CONVOLUTION),
        *_fields(c_int64, "kernel_height kernel_width stride padding"),
        *_fields(c_void_p, "x weight bias y"),
    )


_BASE = (c_int64, c_int64, c_void_p)  # scale, side of the base, base
_BACK = (c_int64, c_void_p, c_void_p, c_void_p)  # side of the back-projection's kernels; small, reduce, enlarge
_COLOUR = (c_int64, c_void_p, c_void_p, c_void_p)  # side of the colour filter; filter, mix, colours
_ROWS = POINTER(c_void_p)  # one array per layer

PROTOTYPES: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "foveal_lanes": (c_int, ()),
    "foveal_steps": (c_int, ()),
    "foveal_has_dots": (c_int, ()),
    "foveal_scan_forward": (c_int, (POINTER(ScanShape), POINTER(ScanData), c_int)),
    "foveal_scan_backward": (c_int, (POINTER(ScanShape), POINTER(ScanData), POINTER(ScanGradients), c_int)),
    "foveal_decayed_attention": (c_int, (POINTER(Attention), c_int)),
    "foveal_conv3x3": (c_int, (POINTER(Convolution), c_int)),
    "foveal_conv3x3_weights": (c_int, (POINTER(ConvolutionGradients), c_int)),
    "foveal_signs": (c_int, (POINTER(Signs), c_int)),
    "foveal_xnor_matmul": (c_int, (POINTER(XnorMatmul), c_int)),
    "foveal_xnor_conv": (c_int, (POINTER(XnorConv), c_int)),
    "foveal_block_sparse": (c_int, (POINTER(BlockSparse), c_int)),
    "foveal_im2win": (c_int, (POINTER(Im2win), c_int)),
    # layers, widths, weights, biases, slopes
    "foveal_chain_build": (c_void_p, (c_int64, c_void_p, _ROWS, _ROWS, c_void_p, *_BASE, *_BACK, *_COLOUR)),
    # layers, widths, first weight, weights, scales, biases, slopes, steps, zeros
    "foveal_chain_build_int8": (
        c_void_p,
        (c_int64, c_void_p, c_void_p, _ROWS, _ROWS, _ROWS, c_void_p, c_void_p, _ROWS, *_BASE, *_BACK, *_COLOUR),
    ),
    # chain, picture, whether it is uint8, height, width, result, threads
    "foveal_chain_run": (c_int, (c_void_p, c_void_p, c_int, c_int64, c_int64, c_void_p, c_int)),
    "foveal_chain_free": (None, (c_void_p,)),
}


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Set the prototypes of a library's functions.

    Args:
        library: newly loaded library of this package.

    Returns:
        The same library.
    """
    for name, (result, arguments) in PROTOTYPES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
