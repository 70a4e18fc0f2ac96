"""The one door to ONNX Runtime, which sends telemetry unless it is told not to before it is imported.

Its packages for Linux write a device id and a queue of events into the user's cache folder and try to deliver them;
`disable_telemetry_events()` after the import is too late. foveal promises that nothing leaves the machine, so the
variable that ONNX Runtime reads is set here first. A user who sets it to something else is obeyed.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["load_onnxruntime"]


def load_onnxruntime(module: str = "") -> ModuleType:
    """Import ONNX Runtime with its telemetry off.

    Args:
        module: submodule to import instead, "quantization" for example.

    Returns:
        The module.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return import_module(f"onnxruntime.{module}" if module else "onnxruntime")
