"""Tiny bundles of every kind a card allows, and a calibration that takes no time."""

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from foveal.runtime import throughput
from foveal.runtime.bundle import Bundle
from foveal.runtime.card import Card


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test reads or changes the cache of whoever runs it, and none measures for long."""
    monkeypatch.setenv("FOVEAL_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(throughput, "_TRIED", (32,))


def _weights(rng, *shape):
    return (rng.standard_normal(shape) * 0.2).astype(np.float32)


def write_graph(path: Path, nodes, weights, kind, *shapes, opset=17):
    shape_in, shape_out = shapes
    inputs = [helper.make_tensor_value_info("image", kind, shape_in)]
    outputs = [helper.make_tensor_value_info("upscaled", kind, shape_out)]
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def make_bundle(folder: Path, *, scale=2, trims=True, multiple=1, with_uint8=True, seed=0, name="tiny") -> Bundle:
    """A network of two convolutions; with `multiple` 2 it works on blocks of 2×2, so its phase matters."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    block, features = multiple, 8
    depth = 3 * (scale * block) ** 2
    pad = [0, 0, 0, 0] if trims else [1, 1, 1, 1]
    weights = {
        "w1": _weights(rng, features, 3, block, block),
        "w2": _weights(rng, depth, features, 3, 3),
        "b": np.full(depth, 0.4, np.float32),
    }
    core = [
        helper.make_node("Conv", ["x", "w1"], ["a"], kernel_shape=[block, block], strides=[block, block]),
        helper.make_node("LeakyRelu", ["a"], ["r"], alpha=0.1),
        helper.make_node("Conv", ["r", "w2", "b"], ["c"], kernel_shape=[3, 3], pads=pad),
    ]
    shuffle = helper.make_node("DepthToSpace", ["c"], ["upscaled"], blocksize=scale * block, mode="CRD")
    free = [helper.make_node("Identity", ["image"], ["x"]), *core, shuffle]
    write_graph(folder / "model.onnx", free, weights, TensorProto.FLOAT, ["n", 3, "h", "w"], ["n", 3, "hh", "ww"])
    files = {"float": "model.onnx"}
    if with_uint8 and multiple == 1:
        # Channels come as (colour, row, column); the uint8 file orders them (row, column, colour).
        order = np.arange(depth).reshape(3, scale * scale).T.ravel()
        weights = {
            "w1": weights["w1"],
            "w2": weights["w2"][order],
            "b": weights["b"][order],
            "s": np.float32(1 / 255),
            "z": np.uint8(0),
        }
        nodes = [
            helper.make_node("DequantizeLinear", ["image", "s", "z"], ["f"]),
            helper.make_node("Transpose", ["f"], ["x"], perm=[0, 3, 1, 2]),
            *core,
            helper.make_node("Transpose", ["c"], ["t"], perm=[0, 2, 3, 1]),
            helper.make_node("QuantizeLinear", ["t", "s", "z"], ["upscaled"]),
        ]
        write_graph(
            folder / "model_u8.onnx", nodes, weights, TensorProto.UINT8, ["n", "h", "w", 3], ["n", "hh", "ww", depth]
        )
        files["uint8"] = "model_u8.onnx"
    # A block sees its neighbours; from a pixel of it that is at most 2·block − 1 pixels away.
    margin = block if trims else 2 * block - 1
    card = Card(
        name=name,
        scale=scale,
        margin=margin,
        trims=trims,
        multiple=multiple,
        files=files,
        sha256={file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in files.values()},
        parameters=sum(w.size for w in weights.values()),
    )
    (folder / "card.json").write_text(card.to_json())
    return Bundle(folder, card)


def make_global(folder: Path, *, scale=1, share=0.5, margin=4, multiple=1, minimum=1, **card) -> Bundle:
    """y = (1 - share)·x + share·mean(x), each pixel repeated: what a tile becomes depends on all of it."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {"own": np.float32(1 - share), "share": np.float32(share), "scales": np.float32([1, 1, scale, scale])}
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Mul", ["mean", "share"], ["all"]),
        helper.make_node("Mul", ["image", "own"], ["one"]),
        helper.make_node("Add", ["one", "all"], ["both"]),
        helper.make_node(
            "Resize",
            ["both", "", "scales"],
            ["upscaled"],
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        ),
    ]
    write_graph(folder / "model.onnx", nodes, weights, TensorProto.FLOAT, ["n", 3, "h", "w"], ["n", 3, "hh", "ww"])
    made = Card(
        name="global",
        scale=scale,
        margin=margin,
        trims=False,
        files={"float": "model.onnx"},
        multiple=multiple,
        minimum=minimum,
        **{"tiling": "overlap", "purpose": "restoration" if scale == 1 else "super-resolution", **card},
    )
    (folder / "card.json").write_text(made.to_json())
    return Bundle(folder, made)


@pytest.fixture
def whole_picture(tmp_path):
    """Function that makes a bundle of a global network."""

    def make(**options):
        return make_global(tmp_path / "-".join(f"{key}{value}" for key, value in options.items()), **options)

    return make


@pytest.fixture
def save_graph():
    """Function that writes nodes and weights as an ONNX file."""
    return write_graph


@pytest.fixture(scope="session")
def bundles(tmp_path_factory):
    """Bundle by its kind: trims, x1, x3, same, blocks (trims, multiple 2), same_blocks, float (no uint8 file)."""
    folder = tmp_path_factory.mktemp("bundles")
    return {
        "trims": make_bundle(folder / "trims", scale=2),
        "x1": make_bundle(folder / "x1", scale=1),
        "x3": make_bundle(folder / "x3", scale=3),
        "same": make_bundle(folder / "same", scale=2, trims=False),
        "blocks": make_bundle(folder / "blocks", scale=2, multiple=2),
        "same_blocks": make_bundle(folder / "same_blocks", scale=2, trims=False, multiple=2),
        "float": make_bundle(folder / "float", scale=2, with_uint8=False),
    }


@pytest.fixture
def natural():
    """A picture with edges and gradients, (H, W, 3) bytes, made of smooth waves and hard rectangles."""

    def make(height, width, seed=0):
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[:height, :width]
        image = np.stack(
            [
                128 + 60 * np.sin(y / rng.uniform(3, 30) + x / rng.uniform(3, 30)) + rng.normal(0, 6, (height, width))
                for _ in range(3)
            ],
            axis=-1,
        )
        for _ in range(6):
            top, left = rng.integers(0, height), rng.integers(0, width)
            image[top : top + height // 4 + 1, left : left + width // 4 + 1] = rng.integers(20, 236, 3)
        return np.clip(image, 0, 255).astype(np.uint8)

    return make
