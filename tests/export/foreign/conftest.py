"""Tiny models of each kind, which resemble their pictures as trained ones do."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FOVEAL_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def quick(monkeypatch):
    """Fields are measured on pictures as small as tiny models need."""
    from foveal.export.foreign import field

    monkeypatch.setattr(field, "_NEAR", 12)
    monkeypatch.setattr(field, "_HEIGHT", 12)
    # Threads that wait for one another cost more than tiny models do.
    for module in ("foveal.runtime.machine", "foveal.runtime.upscaler", "foveal.export.foreign"):
        monkeypatch.setattr(f"{module}.cores", lambda: 1)


def blur_kernel(scale: int, channels: int = 3, seed: int = 0):
    """(s²·C, C, 3, 3): mostly the pixel itself, a little of its neighbours."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(0, 0.02, (channels * scale**2, channels, 3, 3)).astype(np.float32)
    for channel in range(channels):
        weight[channel * scale**2 : (channel + 1) * scale**2, channel, 1, 1] += 1
    weight /= weight.sum((1, 2, 3), keepdims=True)
    return weight


def write_onnx(path: Path, *, scale=2, white=1.0, low=0.0, swap=False, half=False, last=False, fixed=False, **changes):
    """Conv and DepthToSpace of pictures in [low, white], rounded to 64 steps, so that it notices any other range."""
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    dtype = np.float16 if half else np.float32
    weight = blur_kernel(scale)
    weights = {"w": weight.astype(dtype), "low": dtype(low), "white": dtype(white), "step": dtype((white - low) / 64)}
    names = {"in": "image", "out": "made"}
    nodes = []
    if last:
        nodes.append(helper.make_node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2]))
        names["in"] = "planes"
    nodes += [
        helper.make_node("Clip", [names["in"], "low", "white"], ["c"]),
        helper.make_node("Div", ["c", "step"], ["steps"]),
        helper.make_node("Round", ["steps"], ["rounded"]),
        helper.make_node("Mul", ["rounded", "step"], ["r"]),
        helper.make_node("Conv", ["r", "w"], ["d"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("DepthToSpace", ["d"], ["e"], blocksize=scale, mode="CRD"),
    ]
    out = "e"
    if swap:  # takes RGB and gives BGR
        weights["order"] = np.array([2, 1, 0])
        nodes.append(helper.make_node("Gather", ["e", "order"], ["f"], axis=1))
        out = "f"
    if last:
        nodes.append(helper.make_node("Transpose", [out], ["g"], perm=[0, 2, 3, 1]))
        out = "g"
    nodes.append(helper.make_node("Identity", [out], ["upscaled"]))
    nodes += changes.get("more", [])
    side = 16 if fixed else "h"
    shape = ["n", side, side, 3] if last else [1 if fixed else "n", 3, side, side]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", kind, changes.get("shape", shape)), *changes.get("inputs", [])],
        [helper.make_tensor_value_info("upscaled", kind, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(d, 1) for d in changes.get("domains", ()))]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 8
    onnx.save(model, path)
    return path


@pytest.fixture
def tiny_onnx(tmp_path, quick):
    return lambda name="tiny.onnx", **options: write_onnx(tmp_path / name, **options)


def write_ncnn(folder: Path, *, scale=2, name="tiny", channels=3) -> Path:
    """A convolution and PixelShuffle, as ncnn's text and its float32 weights."""
    weight = blur_kernel(scale, channels)
    lines = [
        "7767517",
        "3 3",
        "Input in 0 1 data",
        f"Convolution conv 1 1 data blocks 0={len(weight)} 1=3 4=1 5=0 6={weight.size}",
        f"PixelShuffle up 1 1 blocks output 0={scale}",
    ]
    (folder / f"{name}.param").write_text("\n".join(lines) + "\n")
    # The first four bytes say that what follows is float32.
    (folder / f"{name}.bin").write_bytes(bytes(4) + weight.tobytes())
    return folder / f"{name}.param"


@pytest.fixture
def tiny_ncnn(tmp_path, quick):
    pytest.importorskip("ncnn", reason="ncnn is not installed")
    return lambda **options: write_ncnn(tmp_path, **options)
