"""Machine and software of a measurement: processor, cores, system, versions and commit."""

from __future__ import annotations

import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from typing import Any

import foveal
from foveal._install import checkout
from foveal.runtime.machine import cores, cpu_model

__all__ = ["checkout", "commit", "cores", "describe", "versions"]

CODE = ("src", "kernels", "pyproject.toml", "constraints.txt")
PACKAGES = ("numpy", "torch", "timm", "onnxruntime", "openvino")


@cache
def describe() -> dict[str, Any]:
    """Describe the machine.

    Returns:
        `processor`, `cores` and `system`.
    """
    return {"processor": cpu_model(), "cores": cores(), "system": f"{platform.system()} {platform.machine()}"}


def versions() -> dict[str, str]:
    """Versions of Python, of foveal, and of the relevant packages that are loaded.

    Returns:
        Version by name.
    """
    loaded = {name: metadata.version(name) for name in PACKAGES if name in sys.modules}
    return {"python": platform.python_version(), "foveal": str(foveal.__version__), **loaded}


def commit() -> str:
    """The commit of the checkout.

    Returns:
        Its short hash, with "+" if code, kernels or dependencies differ from it; "" outside a checkout or without git.
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
