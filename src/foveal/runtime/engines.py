"""Engines: what computes a network. Each is a name, a number of threads and `run(x) -> y`.

An engine runs one ONNX file. It knows nothing of tiles or pictures, and it imports its library only when it is opened,
so a machine that has no OpenVINO or no torch never notices. `native` runs plain super-resolution networks by foveal's
own kernels (`native_engine.py`) and leaves every other to the rest. `torch` runs the same ONNX graph
(`torch_engine.py`); it is there to compare with and is never chosen by `auto`.

Where a bundle has an int8 file, `native` and `openvino` are given that one for 8-bit pictures, if they multiply bytes
faster than floats here; `onnxruntime` and `torch` always compute in floats.
"""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from foveal.runtime import kernels
from foveal.runtime.errors import EngineError, EngineMemoryError, EngineUnsupportedError, failure

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from numpy.typing import NDArray

__all__ = [
    "AUTO",
    "ENGINES",
    "Engine",
    "EngineError",
    "EngineMemoryError",
    "EngineUnsupportedError",
    "available",
    "cpu_model",
    "create",
    "default_threads",
    "file_kind",
    "library_version",
    "why_not",
]


class Engine(Protocol):
    """What computes a network.

    Attributes:
        name: one of `ENGINES`.
        threads: processor threads it uses.
    """

    name: str
    threads: int

    def run(self, x: NDArray) -> NDArray:
        """Compute the network once.

        Args:
            x: input, C-contiguous; its layout is that of the file (see `pixels.py`).

        Returns:
            The output. It may be overwritten by the next call.
        """


class _OnnxRuntime:
    """ONNX Runtime on the CPU."""

    name = "onnxruntime"

    def __init__(self, path: Path, threads: int, exact: bool) -> None:  # noqa: ARG002 - it always computes in float32
        import onnxruntime

        self.threads = threads
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # warnings about the graph are for whoever exported it
        # Tiny activations below the normal range cost a hundred times as much as others and change no pixel.
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise failure(self.name, error) from error
        self._input = self._session.get_inputs()[0].name
        self._output = [self._session.get_outputs()[0].name]

    def run(self, x: NDArray) -> NDArray:
        try:
            return self._session.run(self._output, {self._input: x})[0]
        except Exception as error:
            raise failure(self.name, error) from error


class _OpenVino:
    """OpenVINO on the CPU."""

    name = "openvino"

    def __init__(self, path: Path, threads: int, exact: bool) -> None:
        self.threads = threads
        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        try:
            core = _openvino_core()
            model = core.read_model(str(path))
            # Without this, processors that have bfloat16 arithmetic use it: 8 bits, too few for 16-bit pixels. And
            # OpenVINO 2026.4 has no bfloat16 form of a convolution whose result is rounded to bytes: it crashes.
            if exact or any(one.get_element_type().get_type_name() == "u8" for one in model.outputs):
                options["INFERENCE_PRECISION_HINT"] = "f32"
            self._request = core.compile_model(model, "CPU", options).create_infer_request()
        except Exception as error:
            raise failure(self.name, error) from error

    def run(self, x: NDArray) -> NDArray:
        try:
            return self._request.infer({0: x}, share_inputs=True, share_outputs=True)[0]
        except Exception as error:
            raise failure(self.name, error) from error


@cache
def _openvino_core() -> Any:
    import openvino

    return openvino.Core()


def _open_native(path: Path, threads: int, exact: bool) -> Engine:  # noqa: ARG001 - the file says whether in floats
    try:
        from foveal.runtime.native_engine import NativeEngine

        return NativeEngine(path, threads)
    except EngineError:
        raise
    except Exception as error:
        raise failure("native", error) from error


def _open_torch(path: Path, threads: int, exact: bool) -> Engine:  # noqa: ARG001 - it always computes in float32
    from foveal.runtime.torch_engine import TorchEngine

    try:
        return TorchEngine(path, threads)
    except EngineError:
        raise
    except Exception as error:
        raise failure("torch", error) from error


_OPEN: dict[str, Callable[[Path, int, bool], Engine]] = {
    "native": _open_native,
    "onnxruntime": _OnnxRuntime,
    "openvino": _OpenVino,
    "torch": _open_torch,
}
_NEEDS = {
    "native": ("foveal_kernels", "onnx"),
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "torch": ("torch", "onnx"),
}
_EXTRA = {
    "native": "'foveal[native]'",
    "onnxruntime": "onnxruntime",
    "openvino": "'foveal[openvino]'",
    "torch": "'foveal[torch]'",
}

ENGINES = tuple(_OPEN)
AUTO = ("native", "onnxruntime", "openvino")  # those that `auto` chooses from


def why_not(name: str) -> str:
    """Why an engine cannot be used here.

    Args:
        name: one of `ENGINES`.

    Returns:
        What is missing and the command that installs it; "" if the engine can be used.

    Raises:
        ValueError: no such engine.
    """
    if name not in ENGINES:
        raise ValueError(f"engine must be auto or one of {', '.join(ENGINES)}, got {name!r}")
    missing = [module for module in _NEEDS[name] if find_spec(module) is None]
    if missing:
        return f"{' and '.join(missing)} not installed; pip install {_EXTRA[name]}"
    if name == "native":
        return kernels.why_not() or ""
    return ""


def file_kind(engine: str, kind: str, files: Collection[str]) -> str:
    """Which of a bundle's files an engine runs for pictures of a kind.

    Args:
        engine: one of `ENGINES`.
        kind: "float" or "uint8".
        files: kinds of files that the bundle has.

    Returns:
        "int8" for 8-bit pictures where there is such a file and the engine is faster with it here, else `kind`.
    """
    return "int8" if kind == "uint8" and "int8" in files and _multiplies_bytes(engine) else kind


def _multiplies_bytes(engine: str) -> bool:
    if engine == "native":
        import foveal_kernels

        return foveal_kernels.multiplies_bytes()
    # ONNX Runtime's rounding between layers takes longer than its int8 saves. Without dot products OpenVINO's sums of
    # two products would saturate at 16 bits.
    return engine == "openvino" and bool(_processor_flags() & {"avx512_vnni", "avx_vnni"})


@cache
def _processor_flags() -> set[str]:
    """What an x86 processor can do, in the kernel's words; empty where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return set(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


def available() -> list[str]:
    """Engines that can be used here.

    Returns:
        Their names.
    """
    return [name for name in ENGINES if not why_not(name)]


def create(name: str, path: Path, threads: int, *, exact: bool = False) -> Engine:
    """Load an ONNX file into an engine.

    Args:
        name: one of `ENGINES`.
        path: of the ONNX file.
        threads: processor threads, at least 1.
        exact: compute in float32 even where the processor has something faster.

    Returns:
        The engine, ready to run.

    Raises:
        EngineError: its library is missing, or cannot load the file.
        ValueError: no such engine, or fewer than one thread.
    """
    if reason := why_not(name):
        raise EngineError(f"engine {name}: {reason}")
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    return _OPEN[name](path, threads, exact)


@cache
def library_version(name: str) -> str:
    """Version of an engine's library.

    Args:
        name: one of `ENGINES`.

    Returns:
        As its package says; "?" if it does not.
    """
    try:
        return version("foveal-kernels" if name == "native" else name)
    except PackageNotFoundError:
        return "?"


@cache
def default_threads() -> int:
    """How many threads to use when nobody says.

    Returns:
        The processors this process may use: those it is bound to, fewer if a container grants it less time.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        count = min(count, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or quota "max"
        pass
    return count


@cache
def cpu_model() -> str:
    """Name of the processor.

    Returns:
        As the system prints it.
    """
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
