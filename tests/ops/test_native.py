"""Without memory the compiled kernels give the code that they promise, whichever thread it is; and their prototypes."""

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from foveal.ops import native

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))
if native.why_not() is None:
    from kernel_calls import CALLS, HUGE
else:
    CALLS, HUGE = {"none": None}, 0


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", CALLS)
def test_no_memory_in_a_thread_is_the_promised_code(name, threads):
    import foveal_kernels

    for kind in foveal_kernels.instruction_sets():
        library = foveal_kernels.load(kind)
        assert CALLS[name](library, states=HUGE, threads=threads)[0] == 1
        code, out = CALLS[name](library, threads=threads)
        assert code == 0
        assert out.any()


def test_operators_raise_it(monkeypatch):
    import torch

    from foveal.ops import selective_scan, ssd
    from foveal.ops.conv3x3 import conv3x3

    class Starved:
        """A library whose every computation is out of memory."""

        foveal_lanes = foveal_steps = staticmethod(lambda: 16)
        foveal_scan_forward = foveal_decayed_attention = foveal_conv3x3 = staticmethod(lambda *_: 1)

    one = torch.ones(1, 4, 3)
    for path, message, call in (
        ("selective_scan", "out of memory in a selective scan; use a smaller batch or a shorter sequence",
         lambda: selective_scan(one, one, -torch.ones(4, 1), one[:, :1], one[:, :1])),
        ("ssd", "out of memory in ssd; use a smaller batch",
         lambda: ssd(one.mT[..., None], one.mT, -torch.ones(4), one.mT[:, :, None], one.mT[:, :, None])),
        ("conv3x3", "out of memory in a 3×3 convolution; use a smaller batch",
         lambda: conv3x3(torch.ones(1, 16, 4, 4), torch.ones(16, 16, 3, 3))),
    ):  # fmt: skip
        monkeypatch.setattr(sys.modules[f"foveal.ops.{path}.native"], "library", Starved)
        with pytest.raises(MemoryError, match=message):
            call()


def test_a_chain_without_memory_can_go_on_with_a_smaller_picture():
    import foveal_kernels

    rng = np.random.default_rng(0)
    for kind in foveal_kernels.instruction_sets():
        library = foveal_kernels.load(kind)
        numbers = rng.random(4096, np.float32)
        at = numbers.ctypes.data
        each = (ctypes.c_void_p * 2)(at, at)
        widths = np.array([3, 4, 1], np.int64)
        start = (2, widths.ctypes.data, each, each, at)
        chain = library.foveal_chain_build(*start, 1, 3, at, 0, at, at, at, 0, at, at, at)
        found = []
        for height in (HUGE, HUGE, 20):
            out = np.zeros((3, 16, 16), np.float32)
            found.append(library.foveal_chain_run(chain, at, 0, height, 20, out.ctypes.data, 2))
        library.foveal_chain_free(chain)
        assert found == [1, 1, 0]
        assert out.all()


def alone(code):
    """What a process without torch prints, whose threads are then the kernels' own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


def test_no_memory_in_a_thread_of_the_kernels_own():
    code = (
        "import foveal_kernels; from kernel_calls import CALLS, HUGE\n"
        "for call in CALLS.values(): print(*(call(foveal_kernels.load(), states=n, threads=3)[0] for n in (HUGE, 1)))"
    )
    assert alone(code) == ["1", "0"] * len(CALLS)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited by Linux's means")
def test_threads_that_cannot_be_started_are_done_without():
    code = """
import resource, foveal_kernels, numpy as np
from kernel_calls import scan
library = foveal_kernels.load()
_, wanted = scan(library, threads=1)
pages = int(open('/proc/self/statm').read().split()[0])
room = pages * resource.getpagesize() + (4 << 20)  # a thread's stack takes 8 MiB
resource.setrlimit(resource.RLIMIT_AS, (room, room))
code, out = scan(library, threads=8)
print(code, np.array_equal(out, wanted))
import threading
try:
    threading.Thread(target=print).start()
except RuntimeError:
    print('none can')
"""
    assert alone(code) == ["0", "True", "none", "can"]


def test_every_function_has_a_prototype():
    from foveal_kernels.calls import PROTOTYPES

    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "kernels/cpp").glob("*.cpp")]
    found = {name for text in sources for name in re.findall(r"^[\w:]+\*? (foveal_\w+)\(", text, re.MULTILINE)}
    assert found == set(PROTOTYPES)


def test_structures_have_the_fields_of_the_sources():
    from foveal_kernels import calls

    mirrored = {
        "ScanShape": "ScanShape", "ScanData": "ScanData", "ScanGradients": "ScanGradients", "Attention": "Attention",
        "Conv3x3": "Convolution", "Conv3x3Weights": "ConvolutionGradients", "Signs": "Signs",
        "XnorMatmul": "XnorMatmul", "XnorConv": "XnorConv", "BlockSparse": "BlockSparse",
    }  # fmt: skip
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "kernels/cpp").glob("*.cpp")))
    for theirs, ours in mirrored.items():
        body = re.search(rf"^struct {theirs} {{\n(.*?)^}};", text, re.DOTALL | re.MULTILINE).group(1)
        declarations = re.sub(r"//[^\n]*", "", body).replace("\n", " ").split(";")
        names = [
            (re.sub(r"\W", "", name.split()[-1]), "*" in declaration)
            for declaration in declarations
            if declaration.strip()
            for name in declaration.split(",")
        ]
        fields = getattr(calls, ours)._fields_
        fields = [(name.removesuffix("_channels"), kind is ctypes.c_void_p) for name, kind in fields]
        assert fields == names, ours


def test_a_wrong_argument_is_refused():
    import foveal_kernels

    with pytest.raises(ctypes.ArgumentError):
        foveal_kernels.load().foveal_scan_forward("shape", None, 1)
