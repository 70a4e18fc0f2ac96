"""This machine: its processor, how many of its cores this process may use, and where foveal keeps its cache."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

__all__ = ["cache_folder", "cores", "cpu_flags", "cpu_model"]

_CPUINFO = Path("/proc/cpuinfo")
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


@cache
def cores() -> int:
    """How many processor cores this process may use.

    Returns:
        The cores it is bound to, or fewer if its container's quota grants less time; at least 1.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CPU_MAX.read_text(encoding="ascii").split()
        count = min(count, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or quota "max"
        pass
    return count


@cache
def _cpuinfo() -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo; empty on other systems than Linux."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def cpu_model() -> str:
    """Name of the processor.

    Returns:
        The name as the system prints it.
    """
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Instruction sets of the processor.

    Returns:
        The kernel's names ("avx2", "avx512_vnni", "asimd", …); empty where the system does not list them.
    """
    found = _cpuinfo()
    return frozenset(found.get("flags", found.get("Features", "")).split())


def cache_folder() -> Path:
    """Folder for what foveal measured and may delete.

    Returns:
        `$FOVEAL_CACHE`, else `$XDG_CACHE_HOME/foveal`, else `~/.cache/foveal`. It need not exist.
    """
    if own := os.environ.get("FOVEAL_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "foveal"
