"""Forms of an exported network: a file in an engine, in floats, half precision or int8. Does without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.measure.cost import peak_memory
from foveal.runtime import engines
from foveal.runtime.machine import cpu_flags

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FORMS", "Form", "Opened", "forms", "memory"]


@dataclass(frozen=True)
class Form:
    """One way to run a network.

    Args:
        name: name for reports, such as "openvino bf16".
        engine: engine, one of `foveal.runtime.engines.ENGINES`.
        file: kind of file: "float", "int8" by ONNX Runtime, or "nncf", int8 by NNCF.
        exact: whether floats stay float32.
    """

    name: str
    engine: str
    file: str
    exact: bool = True


FORMS = (
    Form("onnxruntime fp32", "onnxruntime", "float"),
    Form("openvino fp32", "openvino", "float"),
    Form("openvino bf16", "openvino", "float", exact=False),
    Form("onnxruntime int8", "onnxruntime", "int8"),
    Form("openvino int8", "openvino", "int8", exact=False),
    Form("onnxruntime int8 (NNCF)", "onnxruntime", "nncf"),
    Form("openvino int8 (NNCF)", "openvino", "nncf", exact=False),
)


def forms(*files: str) -> list[Form]:
    """Forms that can run here.

    Args:
        *files: kinds of files that there are, "float", "int8" and "nncf".

    Returns:
        The forms; bf16 only where the processor computes in it.
    """
    half = bool(cpu_flags() & {"avx512_bf16", "amx_bf16"})
    return [
        form
        for form in FORMS
        if form.file in files and not engines.why_not(form.engine) and (half or not form.name.endswith("bf16"))
    ]


class Opened:
    """A file in an engine, with an input to time it on.

    Args:
        form: engine and precision.
        path: the ONNX file.
        shape: shape of the input.
        threads: processor threads.
    """

    def __init__(self, form: Form, path: Path, shape: tuple[int, ...], threads: int) -> None:
        self.form, self.path, self.shape, self.threads = form, path, shape, threads
        self.engine = engines.create(form.engine, path, threads, exact=form.exact)
        self.input = np.random.default_rng(0).standard_normal(shape, np.float32)

    def __call__(self) -> Any:
        return self.engine.run(self.input)


class _Loading:
    """Opening a file and running it once, picklable; the engine's library is loaded before it is called."""

    def __init__(self, *opened: Any) -> None:
        self.opened = opened

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.opened[0].engine == "openvino":
            engines._openvino_core()
        else:
            engines.load_onnxruntime()

    def __call__(self) -> None:
        Opened(*self.opened)()


def memory(form: Form, path: Path, shape: tuple[int, ...], threads: int) -> int:
    """Peak memory of loading a file into an engine and running it once, in a process of its own.

    Args:
        form: engine and precision.
        path: the ONNX file.
        shape: shape of the input.
        threads: processor threads.

    Returns:
        Bytes above those of the engine's library.
    """
    return peak_memory(_Loading(form, path, shape, threads), threads=threads)
