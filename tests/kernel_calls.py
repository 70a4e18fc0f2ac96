"""Calls of the compiled kernels without torch, for processes whose threads are the kernels' own."""

import ctypes

import numpy as np
from foveal_kernels.calls import Attention, ScanData, ScanShape

HUGE = 1 << 46  # more numbers than a process can address


def scan(library, *, states=1, threads=2):
    """A scan of four channels and two steps for eight pictures: its code and its output."""
    ones, rates, out = np.ones((8, 4, 2), np.float32), -np.ones((4, 1), np.float32), np.zeros((8, 4, 2), np.float32)
    strides = (8, 2, 1, 8, 8, 2, 1, 8, 8, 8, 2, 1, 8, 8, 8, 2, 1, 0, 0, 0, 8, 2, 1)
    shape = ScanShape(8, 4, states, 1, 1, 2, 0, 0, 0, *strides)
    at = ones.ctypes.data
    data = ScanData(None, at, at, rates.ctypes.data, at, at, None, None, None, None, out.ctypes.data, None, None)
    return library.foveal_scan_forward(ctypes.byref(shape), ctypes.byref(data), threads), out


def attention(library, *, states=1, threads=2):
    """Two steps of two sequences: the code and the output."""
    ones, out, last = np.ones(64, np.float32), np.zeros(8, np.float32), np.zeros(8, np.float32)
    at = ones.ctypes.data
    call = Attention(2, 2, 1, 1, 1, 1, states, 2, 0, at, at, at, at, None, out.ctypes.data, last.ctypes.data)
    return library.foveal_decayed_attention(ctypes.byref(call), threads), out


CALLS = {"scan": scan, "attention": attention}
