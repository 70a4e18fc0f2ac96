"""What a result was measured on: processor, cores, system, versions and commit."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import foveal

__all__ = ["checkout", "commit", "cores", "describe", "versions"]

CODE = ("src", "kernels", "pyproject.toml", "constraints.txt")
PACKAGES = ("numpy", "torch", "timm", "onnxruntime", "openvino")


def cores() -> int:
    """Processor cores this process may use.

    Returns:
        At least 1.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def describe() -> dict[str, Any]:
    """The machine.

    Returns:
        `processor`, `cores` and `system`.
    """
    return {"processor": _processor(), "cores": cores(), "system": f"{platform.system()} {platform.machine()}"}


def versions() -> dict[str, str]:
    """Of Python, of foveal, and of those measured packages that have been loaded.

    Returns:
        Name → version.
    """
    loaded = {name: metadata.version(name) for name in PACKAGES if name in sys.modules}
    return {"python": platform.python_version(), "foveal": str(foveal.__version__), **loaded}


def checkout() -> Path | None:
    """The repository this package runs from.

    Returns:
        Its root, or None for an installed package.
    """
    root = Path(__file__).resolve().parents[3]
    return root if (root / "pyproject.toml").is_file() and (root / "src" / "foveal").is_dir() else None


def commit() -> str:
    """The commit of the checkout.

    Returns:
        Its short name, with "+" when code, kernels or dependencies differ from it; "" outside a checkout or without
        git.
    """
    root = checkout()
    if root is None:
        return ""
    try:
        name, changed = (
            subprocess.run(
                ["git", *words], cwd=root, capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "--", *CODE))
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return name + ("+" if changed else "")
