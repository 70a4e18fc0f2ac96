"""All backends of every operator in one run; for the selective scan, also mambapy's parallel scan.

    python bench/ops.py                       table on standard output
    python bench/ops.py --save results/ops    also results/ops.md and results/ops.json

Backends that disagree end the run. All backends are interleaved round by round on the same inputs; the median and the
quartiles of the rounds are printed, and each ratio is the median of the rounds' ratios. The bound is the best time this
machine could reach, the longest of: every input and output byte once at the measured copy speed, every exponential of
the recurrence at the measured speed of the kernel's own exponential with everything in cache, or every multiply-add at
the measured speed of a large matrix product (for the FFT, its 5/2 · n · log₂ n). Memory is the peak of a training step
above its inputs, each in a separate process. mambapy is included if it is installed (`pip install mambapy`).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from foveal.evidence.machine import describe
from foveal.measure.cost import high_water
from foveal.ops import selective_scan
from foveal.ops.conv3x3 import conv3x3
from foveal.ops.long_conv import long_conv
from foveal.ops.scan2d import routes, selective_scan2d
from foveal.ops.ssd import ssd, ssd_noncausal

if TYPE_CHECKING:
    from collections.abc import Callable

# batch, channels, length, states
SHAPES = [(1, 384, 196, 16), (1, 192, 3136, 16), (1, 192, 3136, 1), (4, 384, 784, 16)]
MEMORY = (1, 192, 3136, 16)


def inputs(shape: tuple[int, ...], *, grad: bool = False) -> list[torch.Tensor]:
    batch, dim, length, states = shape
    torch.manual_seed(0)
    tensors = [
        torch.randn(batch, dim, length),
        torch.randn(batch, dim, length) / 2,
        -torch.arange(1.0, states + 1).repeat(dim, 1),
        torch.randn(batch, states, length),
        torch.randn(batch, states, length),
        torch.randn(dim),
    ]
    return [t.requires_grad_(grad) for t in tensors]


def ours(backend: str) -> Callable[..., torch.Tensor]:
    def run(*given: torch.Tensor) -> torch.Tensor:
        return selective_scan(*given, delta_softplus=True, backend=backend)  # type: ignore[return-value]

    return run


def of_mambapy() -> Callable[..., torch.Tensor] | None:
    try:
        from mambapy.pscan import pscan
    except ImportError:
        return None

    def run(u: torch.Tensor, delta: torch.Tensor, A, B, C, D) -> torch.Tensor:  # noqa: N803
        x, step = u.transpose(1, 2), torch.nn.functional.softplus(delta.transpose(1, 2))
        decay = torch.exp(step[..., None] * A)
        states = pscan(decay, (step * x)[..., None] * B.transpose(1, 2)[:, :, None])
        return ((states @ C.transpose(1, 2)[..., None])[..., 0] + D * x).transpose(1, 2)

    return run


def paths() -> dict[str, Callable[..., torch.Tensor]]:
    found = {name: ours(name) for name in ("native", "eager", "reference")}
    parallel = of_mambapy()
    return {**found, "mambapy": parallel} if parallel is not None else found


def timed(run: Callable[..., torch.Tensor], given: list[torch.Tensor], *, backward: bool) -> float:
    begun = time.perf_counter()
    if backward:
        run(*given).sum().backward()
    else:
        with torch.no_grad():
            run(*given)
    return time.perf_counter() - begun


def agree(label: str, outputs: dict[str, torch.Tensor | tuple[torch.Tensor, ...]]) -> None:
    """End the run with a message if backends differ: wrong results are not worth timing."""
    first, wanted = next(iter(outputs.items()))
    for name, found in outputs.items():
        for a, b in zip(*((t,) if isinstance(t, torch.Tensor) else t for t in (found, wanted)), strict=True):
            off = (a - b).abs().max().item() / max(b.abs().max().item(), 1e-6)
            if not off < 1e-3:
                sys.exit(f"{label}: {name} differs from {first} by {off:.1e} of the largest value; no speed is printed")


def compare(shape: tuple[int, ...], rounds: int, *, backward: bool) -> dict[str, list[float]]:
    given = inputs(shape, grad=backward)
    if backward:
        given[5].requires_grad_(False)
    with torch.no_grad():
        agree(str(shape), {name: run(*given) for name, run in paths().items()})
    taken: dict[str, list[float]] = {name: [] for name in paths()}
    for round_ in range(-1, rounds):
        for name, run in paths().items():
            timed(run, given, backward=backward)  # warm-up: the previous backend has filled the caches and the heap
            seconds = timed(run, given, backward=backward)
            if round_ >= 0:
                taken[name].append(seconds)
        print(f"{shape} {'backward' if backward else 'forward'} {round_ + 1}/{rounds}", end="\r", file=sys.stderr)
    return taken


def peaks(threads: int) -> tuple[float, float]:
    """Bytes per second of a copy larger than any cache (reads and writes both count), and exponentials per second."""
    a, b = torch.rand(1 << 25), torch.empty(1 << 25)
    best = min(_seconds(lambda: b.copy_(a)) for _ in range(9))
    copied = 2 * a.numel() * 4 / best
    # One channel block per thread, everything in cache: exponentials dominate a scan with many states.
    few, many = (_seconds_of_states(states, threads) for states in (16, 64))
    return copied, 16 * threads * 4096 * 48 / (many - few)


def _seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def _seconds_of_states(states: int, threads: int) -> float:
    given = inputs((1, 16 * threads, 4096, states))
    with torch.no_grad():
        return min(_seconds(lambda: ours("native")(*given)) for _ in range(50))


def bound(shape: tuple[int, ...], copy: float, exponentials: float) -> tuple[float, str]:
    batch, dim, length, states = shape
    moved = 4 * batch * length * (3 * dim + 2 * states) / copy
    # softplus takes an exponential, and a logarithm of about the same cost
    raised = batch * dim * length * (states + 2) / exponentials
    return max((moved, "memory"), (raised, "exponentials"))


def products(threads: int) -> float:
    """Multiply-adds per second of a large matrix product."""
    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    return 2048**3 / min(_seconds(lambda: a @ b) for _ in range(5 * threads))


def others(copy: float, exponentials: float, macs: float) -> list[dict[str, Any]]:
    """The other operators at the size of a first stage, 56×56: calls by backend, and the bound of each."""
    torch.manual_seed(0)
    batch, dim, side = 1, 192, 56
    length = side * side
    found: list[dict[str, Any]] = []

    def add(label: str, run: Callable[..., Any], backends: tuple[str, ...], bounds: dict[str, float]) -> None:
        seconds, by = max((value, name) for name, value in bounds.items())
        calls = {name: (lambda name=name: run(backend=name)) for name in backends}
        found.append({"label": label, "calls": calls, "bound": seconds, "by": by})

    way = routes("cross", side, side)
    for states in (1, 16):
        u, delta = torch.randn(batch, dim, length), torch.randn(batch, 4, length, dim).mT / 2  # as the networks make it
        weights = torch.randn(2, batch, 4, states, length)
        rates = -torch.arange(1.0, states + 1).repeat(4 * dim, 1)
        add(
            f"selective_scan2d, cross (4 routes), {batch}×{dim}×{side}×{side}×{states}",
            lambda backend, g=(u, delta, rates, *weights): selective_scan2d(*g, routes=way, backend=backend),
            ("native", "eager", "reference"),
            {
                "memory": 4 * batch * length * (2 * dim + 4 * dim + 8 * states) / copy,
                "exponentials": batch * 4 * dim * length * (states + 2) / exponentials,
            },
        )
    heads, channels, states, chunk = 3, 64, 64, 64
    x, dt, decay = torch.randn(batch, length, heads, channels), torch.rand(batch, length, heads), -torch.rand(heads)
    ins, outs = torch.randn(2, batch, length, 1, states)
    moved = 4 * batch * length * (2 * heads * channels + heads + 2 * states) / copy
    size = f"{batch}×{length}×{heads}×{channels}×{states}"
    work = batch * length * (chunk * states + heads * channels * (chunk + 2 * states))
    add(
        f"ssd, batch×length×heads×channels×states {size}",
        lambda backend: ssd(x, dt, decay, ins, outs, backend=backend),
        ("native", "eager", "reference"),
        {"memory": moved, "products": work / macs},
    )
    add(
        f"ssd_noncausal, {size} (its reference takes {length}² pairs)",
        lambda backend: ssd_noncausal(x, dt, decay, ins, outs, backend=backend),
        ("eager",),
        {"memory": moved, "products": 2 * batch * length * heads * channels * states / macs},
    )
    u, kernel = torch.randn(batch, dim, length), torch.randn(dim, length)
    n = 2 * length
    add_convolutions(add, copy, macs)
    add(
        f"long_conv, {batch}×{dim}×{length}, kernel as long",
        lambda backend: long_conv(u, kernel, backend=backend),
        ("eager", "butterfly2", "reference"),
        {
            "memory": 4 * dim * length * (2 * batch + 1) / copy,
            "products": (2 * batch + 1) * dim * 2.5 * n * math.log2(n) / 2 / macs,
        },
    )
    return found


def add_convolutions(add: Callable[..., None], copy: float, macs: float) -> None:
    """A layer of the super-resolution networks, at the size of a training step; the bound is a direct convolution."""
    batch, channels, side = 8, 32, 48
    leaves = [torch.randn(batch, channels, side, side).contiguous(memory_format=torch.channels_last)]
    leaves += [torch.randn(channels, channels, 3, 3) / 17, torch.randn(channels), torch.tensor([0.1])]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    gradient = torch.randn_like(leaves[0])

    def forward(backend: str) -> torch.Tensor:
        x, weight, bias, slope = leaves
        return conv3x3(x, weight, bias, slope=slope, backend=backend)

    def step(backend: str) -> tuple[torch.Tensor, ...]:
        with torch.enable_grad():
            return torch.autograd.grad(forward(backend), leaves, gradient)

    size = leaves[0].numel()
    for label, run, passes in (("forward", forward, 1), ("forward and backward", step, 3)):
        add(
            f"conv3x3 of leaky(x), {batch}×{channels}×{side}×{side} to {channels} channels, {label}",
            run,
            ("native", "reference"),
            {
                "memory": 4 * size * (2 + 3 * (passes > 1)) / copy,
                "direct products": passes * 9 * channels * size / macs,
            },
        )


def compare_others(found: list[dict[str, Any]], rounds: int) -> None:
    for item in found:
        calls = item.pop("calls")
        item["seconds"] = {name: [] for name in calls}
        with torch.no_grad():
            agree(item["label"], {name: call() for name, call in calls.items()})
            for round_ in range(-1, rounds):
                for name, call in calls.items():
                    call()
                    taken = _seconds(call)
                    if round_ >= 0:
                        item["seconds"][name].append(taken)


def memory(name: str) -> int:
    """Peak memory of a training step above its inputs, in bytes, in a separate process."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import ops; print(ops.peak_of_step({name!r}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(out.stdout)


def peak_of_step(name: str) -> int:
    torch.set_num_threads(2)
    run = paths()[name]
    small = inputs((1, 16, 8, 16), grad=True)
    run(*small).sum().backward()
    given = inputs(MEMORY, grad=True)
    before = high_water()
    run(*given).sum().backward()
    return high_water() - before


def table(results: list[dict]) -> str:
    lines = []
    for result in results:
        seconds, ours = result["seconds"], next(iter(result["seconds"]))
        label = result.get("label") or f"{'×'.join(map(str, result['shape']))}, {result['direction']}"
        lines += [f"### {label}", "", f"| path | ms | quartiles | {ours} is faster by |", "|---|---|---|---|"]
        for name, taken in seconds.items():
            first, _, third = statistics.quantiles(taken, n=4)
            ratio = statistics.median(t / n for t, n in zip(taken, seconds[ours], strict=True))
            lines.append(
                f"| {name} | {1e3 * statistics.median(taken):.2f} | {1e3 * first:.2f}–{1e3 * third:.2f} | {ratio:.1f} |"
            )
        if "bound" in result:
            best = statistics.median(seconds[ours]) / result["bound"]
            lines += [
                "",
                f"Bound by {result['by']}: {1e3 * result['bound']:.2f} ms; {ours} takes {best:.1f} times that.",
            ]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--save", type=Path, help="path without suffix for .md and .json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    speeds = [peaks(arguments.threads)]
    results: list[dict[str, Any]] = []
    for shape in SHAPES:
        seconds = compare(shape, arguments.rounds, backward=False)
        results.append({"shape": shape, "direction": "forward", "seconds": seconds})
        speeds.append(peaks(arguments.threads))  # the machine's speed varies with the load of its neighbours
    copy, exponentials = (statistics.median(values) for values in zip(*speeds, strict=True))
    for result in results:
        result["bound"], result["by"] = bound(result["shape"], copy, exponentials)
    for shape in SHAPES[:2]:
        seconds = compare(shape, max(3, arguments.rounds // 3), backward=True)
        results.append({"shape": shape, "direction": "forward and backward", "seconds": seconds})
    macs = products(arguments.threads)
    rest = others(copy, exponentials, macs)
    compare_others(rest, arguments.rounds)
    peak = {name: memory(name) for name in paths()}

    machine = describe()
    heading = (
        f"{datetime.now(UTC).date().isoformat()} · {machine['processor']}, {machine['cores']} cores · "
        f"{arguments.threads} threads · copies {copy / 1e9:.1f} GB/s, {exponentials / 1e9:.2f} G exponentials/s, "
        f"{macs / 1e9:.0f} G multiply-adds/s\n\n"
        "Selective scan, batch×channels×length×states; then the other operators."
    )
    rows = "\n".join(f"| {name} | {bytes_ / 2**20:.0f} |" for name, bytes_ in peak.items())
    shape = "×".join(map(str, MEMORY))
    peaks_table = f"### {shape}, peak memory of a training step\n\n| path | MiB |\n|---|---|\n{rows}\n"
    text = f"{heading}\n\n{table(results)}\n{peaks_table}\n{table(rest)}"
    print(text)
    if arguments.save:
        arguments.save.parent.mkdir(parents=True, exist_ok=True)
        arguments.save.with_suffix(".md").write_text(text)
        speeds_of = {"copy": copy, "exponentials": exponentials, "products": macs}
        data = {"heading": heading, "results": results + rest, "memory": peak, "speeds": speeds_of}
        arguments.save.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
