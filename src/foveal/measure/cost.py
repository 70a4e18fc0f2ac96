"""Cost of a model: parameters, multiply-adds, time and memory, each measured or counted, none estimated."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.runtime.ort import load_onnxruntime

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

__all__ = [
    "Cost",
    "Latency",
    "count_macs",
    "count_parameters",
    "high_water",
    "latency",
    "measure",
    "measure_onnx",
    "peak_memory",
]


@dataclass(frozen=True)
class Latency:
    """Time of one call, measured over several.

    Args:
        median: median, seconds.
        lower: first quartile, seconds.
        upper: third quartile, seconds.
        repeats: number of timed calls.
        threads: processor threads.
    """

    median: float
    lower: float
    upper: float
    repeats: int
    threads: int

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        return (self.upper - self.lower) / self.median if self.median else 0.0


@dataclass(frozen=True)
class Cost:
    """Cost of one forward pass.

    Args:
        name: name of the model.
        shape: shape of the input.
        parameters: number of parameters.
        macs: multiply-adds of convolutions and matrix products; None if not counted.
        latency: time of one call.
        peak_memory: bytes above the loaded model; None if not measured.
        versions: versions of Python and of the engine that ran it.
    """

    name: str
    shape: tuple[int, ...]
    parameters: int
    macs: int | None
    latency: Latency
    peak_memory: int | None
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The cost as plain data.

        Returns:
            The fields, times in seconds, memory in bytes.
        """
        data = asdict(self)
        data["latency"]["spread"] = self.latency.spread
        return data

    def table(self) -> str:
        """The cost as text.

        Returns:
            One quantity per line.
        """
        t = self.latency
        rows = {
            "model": self.name,
            "input": "×".join(map(str, self.shape)),
            "parameters": f"{self.parameters:,}",
            "multiply-adds": "not counted" if self.macs is None else f"{self.macs / 1e9:.3f} G",
            "latency": f"{1e3 * t.median:.2f} ms (quartiles {1e3 * t.lower:.2f} to {1e3 * t.upper:.2f}, "
            f"{t.repeats} calls, {t.threads} threads)",
            "peak memory": "not measured" if self.peak_memory is None else f"{self.peak_memory / 2**20:.1f} MiB",
        }
        return "\n".join(f"{name:14} {value}" for name, value in rows.items())


def count_parameters(model: nn.Module) -> int:
    """Number of parameters; a shared parameter counts once.

    Args:
        model: any module.

    Returns:
        Number of parameters.
    """
    return sum(p.numel() for p in model.parameters())


def count_macs(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-adds of one forward pass: convolutions, linear layers, matrix products and attention.

    Bias additions, activations, pooling and resizing are not counted, as in the literature. A copy of the model is run
    on torch's meta device, so the count takes neither time nor memory at any shape.

    Args:
        model: network with one input and one output.
        shape: shape of the input.

    Returns:
        Number of multiply-adds.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    ghost = copy.deepcopy(model).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        ghost(torch.empty(shape, device="meta"))
    return counter.get_total_flops() // 2  # torch counts a multiply-add as two


def latency(fn: Callable[[], Any], *, threads: int = 2, repeats: int = 15, warmup: int = 3) -> Latency:
    """Time a function.

    Args:
        fn: function to time; if it uses torch, torch is limited to `threads` threads while it runs.
        threads: processor threads; for other engines, the number they were created with.
        repeats: number of timed calls.
        warmup: number of untimed calls before them.

    Returns:
        Median and quartiles.

    Raises:
        ValueError: fewer than one thread or repeat, or a negative warm-up.
    """
    if threads < 1 or repeats < 1 or warmup < 0:
        raise ValueError(
            f"threads and repeats must be at least 1 and warmup at least 0, got {threads}, {repeats} and {warmup}"
        )
    torch = sys.modules.get("torch")  # code that has not loaded it does not use it
    before = torch.get_num_threads() if torch else threads
    if torch:
        torch.set_num_threads(threads)
    try:
        for _ in range(warmup):
            fn()
        taken = []
        for _ in range(repeats):
            begun = time.perf_counter()
            fn()
            taken.append(time.perf_counter() - begun)
    finally:
        if torch:
            torch.set_num_threads(before)
    lower, median, upper = np.percentile(taken, (25, 50, 75))
    return Latency(float(median), float(lower), float(upper), repeats, threads)


def high_water() -> int:
    """Peak memory of this process so far.

    Returns:
        Bytes.
    """
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux its maximum survives exec, so it starts at the parent process's peak.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _child() -> None:
    """Body of the process that `peak_memory` starts: reads a pickled function, calls it, answers with two numbers."""
    paths, threads, pickled = pickle.load(sys.stdin.buffer)  # noqa: S301 - written by our own parent process
    sys.path[:] = paths
    fn = pickle.loads(pickled)  # noqa: S301 - see above
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    before = high_water()
    fn()
    sys.stdout.write(f"\n{before} {high_water()}\n")


def peak_memory(fn: Callable[[], Any], *, threads: int = 2) -> int:
    """Peak memory of a call, measured in a separate process.

    The figure is how far the call raises the process's peak memory above the peak of loading the function. Memory that
    loading used and freed again hides as much of the call's, so the figure is a lower bound, close for calls that take
    a lot.

    Args:
        fn: picklable function: a module-level function or a `functools.partial` of one, no lambda.
        threads: processor threads for torch.

    Returns:
        Bytes.

    Raises:
        ValueError: the function cannot be pickled.
        RuntimeError: the function failed in the separate process.
    """
    try:
        pickled = pickle.dumps(fn)
    except Exception as error:
        raise ValueError(
            f"peak_memory needs a function that can be pickled, got {fn!r} ({error}); "
            "use a function of a module or a functools.partial of one"
        ) from error
    package = str(Path(__file__).parents[2])
    run = subprocess.run(
        [sys.executable, "-c", "from foveal.measure.cost import _child; _child()"],
        input=pickle.dumps(([package, *sys.path], threads, pickled)),
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])},
    )
    if run.returncode:
        last = (run.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"the function failed in the process that measures its memory: {last}")
    before, after = map(int, run.stdout.split()[-2:])
    return after - before


class _Forward:
    """One forward pass, picklable."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        import torch

        self.model, self.x = model, torch.rand(shape)

    def __call__(self) -> Any:
        import torch

        with torch.inference_mode():
            return self.model(self.x)


class _Session:
    """One run of an ONNX file by ONNX Runtime, picklable."""

    def __init__(self, path: Path, shape: tuple[int, ...], threads: int) -> None:
        self.path, self.shape, self.threads = path, shape, threads
        self._open()

    def _open(self) -> None:
        onnxruntime = load_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        self.session = onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        entry = self.session.get_inputs()[0]
        rng = np.random.default_rng(0)
        values = rng.integers(0, 256, self.shape) if entry.type == "tensor(uint8)" else rng.random(self.shape)
        self.feed = {entry.name: values.astype(np.uint8 if entry.type == "tensor(uint8)" else np.float32)}

    def __getstate__(self) -> tuple[Path, tuple[int, ...], int]:
        return self.path, self.shape, self.threads

    def __setstate__(self, state: tuple[Path, tuple[int, ...], int]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def __call__(self) -> Any:
        return self.session.run(None, self.feed)


def measure(
    model: nn.Module,
    shape: tuple[int, ...],
    *,
    threads: int = 2,
    repeats: int = 15,
    warmup: int = 3,
    name: str = "",
    memory: bool = True,
) -> Cost:
    """Count and time one forward pass of a network in eval mode.

    Args:
        model: network with one input and one output; its mode is restored afterwards.
        shape: shape of the input, (B, C, H, W) for pictures.
        threads: processor threads.
        repeats: number of timed calls.
        warmup: number of untimed calls before them.
        name: name for the report; "" takes the class's.
        memory: whether to measure peak memory too, which starts another process.

    Returns:
        The cost.
    """
    import torch

    training = model.training
    model.eval()
    try:
        forward = _Forward(model, shape)
        peak = peak_memory(forward, threads=threads) if memory else None
        taken = latency(forward, threads=threads, repeats=repeats, warmup=warmup)
        macs = count_macs(model, shape)
    finally:
        model.train(training)
    versions = {"python": sys.version.split()[0], "torch": torch.__version__}
    return Cost(name or type(model).__name__, shape, count_parameters(model), macs, taken, peak, versions)


def measure_onnx(
    path: Path,
    shape: tuple[int, ...],
    *,
    parameters: int,
    threads: int = 2,
    repeats: int = 15,
    warmup: int = 3,
    name: str = "",
    memory: bool = True,
) -> Cost:
    """Time an exported network in ONNX Runtime; needs no torch.

    Args:
        path: ONNX file with one input.
        shape: shape of the input.
        parameters: number of its parameters, from its card.
        threads: processor threads.
        repeats: number of timed calls.
        warmup: number of untimed calls before them.
        name: name for the report; "" takes the file's.
        memory: whether to measure peak memory too, which starts another process.

    Returns:
        The cost, without multiply-adds.
    """
    run = _Session(path, shape, threads)
    peak = peak_memory(run, threads=threads) if memory else None
    taken = latency(run, threads=threads, repeats=repeats, warmup=warmup)
    versions = {"python": sys.version.split()[0], "onnxruntime": load_onnxruntime().__version__}
    return Cost(name or path.name, shape, parameters, None, taken, peak, versions)
