"""foveal's native kernels: one shared library per instruction set, selected at load time.

Nothing here imports torch; `foveal.ops` gets the library from `load` and calls it through ctypes.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from functools import lru_cache
from pathlib import Path

from foveal_kernels.calls import declare

__all__ = ["built", "instruction_sets", "load", "multiplies_bytes", "why_not"]

__version__ = "0.3.2"

HERE = Path(__file__).parent
SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
PREFERRED = ("avx512_vpopcntdq", "avx512_vnni", "avx512", "avx2", "plain")
_AVX512 = {"avx512f", "avx512dq", "avx512bw", "avx512vl", "fma"}
NEEDS = {
    "avx512_vpopcntdq": _AVX512 | {"avx512_vnni", "avx512_vpopcntdq"},
    "avx512_vnni": _AVX512 | {"avx512_vnni"},
    "avx512": _AVX512,
    "avx2": {"avx2", "fma"},
    "plain": set(),
}


def _path(name: str) -> Path:
    return HERE / f"libfoveal_{name}{SUFFIX}"


@lru_cache(maxsize=1)
def built() -> tuple[str, ...]:
    """Instruction sets this installation was compiled for.

    Returns:
        Names, widest registers first; empty if it was installed without a compiler.
    """
    return tuple(name for name in PREFERRED if _path(name).is_file())


@lru_cache(maxsize=1)
def _flags() -> set[str]:
    """CPU flags as reported by the Linux kernel; empty if the CPU is not x86 or they are not available."""
    if platform.machine().lower() not in {"x86_64", "amd64", "i686"}:
        return set()
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            return set(next(line for line in lines if line.startswith("flags")).partition(":")[2].split())
    except (OSError, StopIteration):
        return set()


def instruction_sets() -> list[str]:
    """Instruction sets that are compiled and supported by this CPU.

    Returns:
        Names, the default first.
    """
    return [name for name in built() if NEEDS[name] <= _flags()]


@lru_cache(maxsize=8)
def load(name: str | None = None) -> ctypes.CDLL:
    """Load the library of an instruction set.

    Args:
        name: one of `instruction_sets`; None takes the widest that runs here.

    Returns:
        The library, with the prototypes of `foveal_kernels.calls`.

    Raises:
        OSError: if there is none that runs here, with the reason.
    """
    reason = why_not(name)
    if reason is not None:
        raise OSError(reason)
    return declare(ctypes.CDLL(str(_path(name or instruction_sets()[0]))))


def multiplies_bytes(name: str | None = None) -> bool:
    """Whether a library computes int8 products in fewer instructions than float products.

    Args:
        name: instruction set, as for `load`.

    Returns:
        True with int8 dot products (AVX-512 VNNI).

    Raises:
        OSError: if there is none that runs here, with the reason.
    """
    return bool(load(name).foveal_has_dots())


def why_not(name: str | None = None) -> str | None:
    """Why a library cannot be used.

    Args:
        name: instruction set; None for any.

    Returns:
        None if it can, else the reason and what to do.
    """
    if not built():
        return (
            "foveal-kernels was installed without a C++ compiler; install one (Debian: apt install g++) and run "
            "`pip install --force-reinstall --no-deps ./kernels` in foveal's folder"
        )
    if name is not None and name not in built():
        return f"foveal-kernels holds no {name} library; it holds {', '.join(built())}"
    if name is not None and name not in instruction_sets():
        return f"this processor does not understand {name}; it runs {', '.join(instruction_sets())}"
    return None
