"""Engines: what computes a network. Each is a name, a number of threads and `run(x) -> y`.

An engine runs one ONNX file; `ncnn` runs a `.param` with its `.bin` instead (`ncnn_engine.py`). It knows nothing of
tiles or pictures, and it imports its library only when it is opened, so a machine that has no OpenVINO or no torch
never notices. `native` runs plain super-resolution networks by foveal's own kernels (`native_engine.py`) and leaves
every other to the rest. `torch` runs the same ONNX graph (`foveal.export.torch_engine`); it is there to compare with
and is never chosen by `auto`.

Where a bundle has an int8 file, `native` and `openvino` are given that one for 8-bit pictures, if they multiply bytes
faster than floats here; `onnxruntime` and `torch` always compute in floats.
"""

from __future__ import annotations

import importlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, Protocol

from foveal._install import install_hint
from foveal.runtime import kernels
from foveal.runtime.errors import EngineError, EngineMemoryError, EngineUnsupportedError, failure
from foveal.runtime.machine import cpu_flags
from foveal.runtime.ort import load_onnxruntime

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = [
    "AUTO",
    "ENGINES",
    "Engine",
    "EngineError",
    "EngineKind",
    "EngineMemoryError",
    "EngineUnsupportedError",
    "FileKind",
    "PixelKind",
    "available",
    "create",
    "engine_kind",
    "file_kind",
    "library_version",
    "why_not",
]

# What a picture's pixels are to a network, and what a bundle's file computes in.
PixelKind = Literal["float", "uint8"]
FileKind = Literal["float", "uint8", "int8"]


class Engine(Protocol):
    """What computes a network.

    Attributes:
        name: name of the engine, one of `ENGINES`.
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
        onnxruntime = load_onnxruntime()
        self.threads = threads
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # warnings about the graph are for whoever exported it
        # Tiny activations below the normal range cost a hundred times as much as others and change no pixel.
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        try:
            # The first session of a process flushes them for good in the thread that opens it, not in its own alone:
            # a thread that ends leaves the caller's arithmetic as it was.
            with ThreadPoolExecutor(1) as opener:
                self._session = opener.submit(
                    onnxruntime.InferenceSession, str(path), options, providers=["CPUExecutionProvider"]
                ).result()
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
    # By name: it stands above this folder, which does without torch.
    TorchEngine = importlib.import_module("foveal.export.torch_engine").TorchEngine  # noqa: N806 - a class

    try:
        return TorchEngine(path, threads)
    except EngineError:
        raise
    except Exception as error:
        raise failure("torch", error) from error


def _open_ncnn(path: Path, threads: int, exact: bool) -> Engine:
    try:
        from foveal.runtime.ncnn_engine import NcnnEngine

        return NcnnEngine(path, threads, exact)
    except EngineError:
        raise
    except Exception as error:
        raise failure("ncnn", error) from error


def _native_multiplies_bytes() -> bool:
    import foveal_kernels

    return foveal_kernels.multiplies_bytes()


def _openvino_multiplies_bytes() -> bool:
    # Without dot products OpenVINO's sums of two products would saturate at 16 bits.
    return bool(cpu_flags() & {"avx512_vnni", "avx_vnni"})


CHAIN = (0, 3, 2)  # first version of the kernels whose chain of convolutions is called as here


def _native_why_not() -> str | None:
    """Why the kernels cannot run a network."""
    if reason := kernels.why_not():
        return reason
    import foveal_kernels

    found = foveal_kernels.__version__
    if tuple(map(int, found.split("."))) < CHAIN:
        wanted = ".".join(map(str, CHAIN))
        return (
            f"foveal-kernels {found} is installed, this engine calls {wanted}; run `pip install --force-reinstall "
            "--no-deps ./kernels` in foveal's folder"
        )
    return None


@dataclass(frozen=True)
class EngineKind:
    """One engine: what it needs and what it is good for.

    Args:
        name: name that the user types.
        open: function from an ONNX file, the number of threads and whether to compute in float32 to the engine.
        needs: modules that must be installed.
        install: command that installs them.
        distribution: distribution whose version the results depend on.
        auto: whether `auto` chooses among engines with this one.
        process_bytes: memory of a process with the engine loaded and nothing to do.
        multiplies_bytes: function that says whether an int8 file is faster than an 8-bit one here.
        why_not: function that says why the engine cannot be used although its modules are installed; None if it can.
        reads: suffix of the files that it runs.
    """

    name: str
    open: Callable[[Path, int, bool], Engine]
    needs: tuple[str, ...]
    install: str
    distribution: str
    auto: bool
    process_bytes: int
    multiplies_bytes: Callable[[], bool] = lambda: False
    why_not: Callable[[], str | None] = lambda: None
    reads: str = ".onnx"


_KINDS = {
    kind.name: kind
    for kind in (
        EngineKind(
            name="native",
            open=_open_native,
            needs=("foveal_kernels", "onnx"),
            install=install_hint("native"),
            distribution="foveal-kernels",
            auto=True,
            process_bytes=60 << 20,
            multiplies_bytes=_native_multiplies_bytes,
            why_not=_native_why_not,
        ),
        EngineKind(
            # Its rounding between layers takes longer than its int8 saves.
            name="onnxruntime",
            open=_OnnxRuntime,
            needs=("onnxruntime",),
            install="pip install onnxruntime",
            distribution="onnxruntime",
            auto=True,
            process_bytes=130 << 20,
        ),
        EngineKind(
            name="openvino",
            open=_OpenVino,
            needs=("openvino",),
            install=install_hint("openvino"),
            distribution="openvino",
            auto=True,
            process_bytes=260 << 20,
            multiplies_bytes=_openvino_multiplies_bytes,
        ),
        EngineKind(
            name="torch",
            open=_open_torch,
            needs=("torch", "onnx"),
            install=install_hint("torch"),
            distribution="torch",
            auto=False,
            process_bytes=450 << 20,
        ),
        EngineKind(
            name="ncnn",
            open=_open_ncnn,
            needs=("ncnn",),
            install=install_hint("ncnn"),
            distribution="ncnn",
            auto=True,
            process_bytes=90 << 20,
            reads=".param",
        ),
    )
}

ENGINES = tuple(_KINDS)
AUTO = tuple(name for name, kind in _KINDS.items() if kind.auto)


def engine_kind(name: str) -> EngineKind:
    """What is known of an engine.

    Args:
        name: one of `ENGINES`.

    Returns:
        The record.

    Raises:
        ValueError: no such engine.
    """
    if name not in _KINDS:
        raise ValueError(f"engine must be auto or one of {', '.join(ENGINES)}, got {name!r}")
    return _KINDS[name]


def why_not(name: str) -> str:
    """Why an engine cannot be used here.

    Args:
        name: one of `ENGINES`.

    Returns:
        What is missing and the command that installs it; "" if the engine can be used.

    Raises:
        ValueError: no such engine.
    """
    kind = engine_kind(name)
    if missing := [module for module in kind.needs if find_spec(module) is None]:
        return f"{' and '.join(missing)} not installed; {kind.install}"
    return kind.why_not() or ""


def file_kind(engine: str, kind: PixelKind, files: Collection[str]) -> FileKind:
    """Which of a bundle's files an engine runs for pixels of a kind.

    Args:
        engine: one of `ENGINES`.
        kind: kind of the pixels.
        files: kinds of files that the bundle has.

    Returns:
        "int8" for 8-bit pictures where there is such a file and the engine is faster with it here, else `kind`.
    """
    return "int8" if kind == "uint8" and "int8" in files and engine_kind(engine).multiplies_bytes() else kind


def available(reads: str = ".onnx") -> list[str]:
    """Engines that can be used here.

    Args:
        reads: suffix of the files that they run.

    Returns:
        Their names.
    """
    return [name for name in ENGINES if engine_kind(name).reads == reads and not why_not(name)]


def create(name: str, path: Path, threads: int, *, exact: bool = False) -> Engine:
    """Load a bundle's file into an engine.

    Args:
        name: one of `ENGINES`.
        path: the ONNX file, or the `.param` of ncnn.
        threads: processor threads, at least 1.
        exact: compute in float32 even where the processor has something faster.

    Returns:
        The engine, ready to run.

    Raises:
        EngineError: its library is missing, or cannot load the file.
        EngineUnsupportedError: the file is of a kind that another engine runs.
        ValueError: no such engine, or fewer than one thread.
    """
    if (reads := engine_kind(name).reads) != path.suffix:
        others = [kind.name for kind in _KINDS.values() if kind.reads == path.suffix]
        raise EngineUnsupportedError(
            f"engine {name} runs {reads} files, got {path.name}; take {' or '.join(others) or 'another file'}"
        )
    if reason := why_not(name):
        raise EngineError(f"engine {name}: {reason}")
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    return engine_kind(name).open(path, threads, exact)


@cache
def library_version(name: str) -> str:
    """Version of an engine's library.

    Args:
        name: one of `ENGINES`.

    Returns:
        The version that its distribution states; "?" if it states none.
    """
    try:
        return version(engine_kind(name).distribution)
    except PackageNotFoundError:
        return "?"
