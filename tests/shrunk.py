"""A tiny classifier, its data, and a verb whose files and times are made up; for the tests of shrinking."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import nn

from foveal.measure.cost import Latency
from foveal.measure.paired import Ratio
from foveal.shrink import recipe
from foveal.shrink.data import Data
from foveal.shrink.measured import FormTime, Measured, Written


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 2),
    ).eval()


def batches(step):
    generator = torch.Generator().manual_seed(step)
    y = torch.randint(2, (16,), generator=generator)
    x = torch.randn(16, 3, 12, 12, generator=generator)
    return x + y.view(-1, 1, 1, 1), y


def toy_data():
    x, y = batches(10**6)
    score = lambda model: 100 * float((model(x).argmax(1) == y).float().mean())  # noqa: E731
    return Data(x, score, name="toys", batches=batches, loss=F.cross_entropy)


class Pretend:
    """Files and times that cost nothing: milliseconds and quality by a function of the network."""

    def __init__(self):
        self.times, self.score, self.models = lambda model: 10.0, lambda model: 90.0, {}

    def patch(self, monkeypatch):
        """Let the verb use them."""
        monkeypatch.setattr(recipe, "write", self.write)
        monkeypatch.setattr(recipe, "measure_files", self.measure)
        monkeypatch.setattr(recipe, "paired", lambda a, b, **_: ([a] * 5, [b] * 5))
        monkeypatch.setattr(recipe, "quantise_files", self.quantise)

    def write(self, model, folder, name, example):
        path = folder / f"{name}.onnx"
        path.write_bytes(b"x" * sum(p.numel() for p in model.parameters()))
        self.models[name] = model
        opened = {"onnxruntime fp32": self.time(model), "onnxruntime int8": self.time(model) / 2}
        return Written({"float": path}, tuple(example.shape), 1, 1, opened)

    def quantise(self, source, stem, inputs, step):
        path = source.with_name(f"{stem}_int8.onnx")
        path.write_bytes(b"8")
        return {"int8": path}

    def time(self, model):
        return self.times(model)

    def measure(self, written, data, *, untouched=None, best="", previous=None, kinds=(), **_):
        name = "onnxruntime int8" if "int8" in kinds else "onnxruntime fp32"
        now = self.time(self.models[written.files["float"].stem]) / (2 if "int8" in kinds else 1)
        written.opened[name] = now
        first = untouched.opened["onnxruntime fp32"] if untouched else now
        ratio = lambda value: Ratio(value, value, value, 15)  # noqa: E731
        return Measured(
            name,
            Latency(now / 1e3, now / 1e3, now / 1e3, 15, 2),
            ratio(now / first),
            None if previous is None else ratio(now / previous),
            (FormTime(name, Latency(now / 1e3, now / 1e3, now / 1e3, 15, 2), ratio(now / first)),),
            2**20,
            written.files["float"].stat().st_size,
            1,
            1,
            self.score(self.models[written.files["float"].stem]),
        )


def classifier_bundle(folder, *, labels=(), dense=False, **answer):
    """A bundle whose two outputs are the mean red and the mean blue, or whose map is the picture's red."""
    folder.mkdir(parents=True)
    weights = np.array([[8, 0, 0], [0, 0, 8]], np.float32)[..., None, None]
    kernel = onnx.numpy_helper.from_array(weights[:1] if dense else weights, "w")
    nodes = [onnx.helper.make_node("Conv", ["image", "w"], ["c"])]
    if not dense:
        nodes += [
            onnx.helper.make_node("GlobalAveragePool", ["c"], ["p"]),
            onnx.helper.make_node("Flatten", ["p"], ["o"]),
        ]
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("image", kind, [1, 3, 8, 8])],
        [onnx.helper.make_tensor_value_info("c" if dense else "o", kind, [1, 1, 8, 8] if dense else [1, 2])],
        [kernel],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    card = {
        "name": folder.name,
        "scale": 1,
        "margin": 0,
        "trims": False,
        "files": {"float": "model.onnx"},
        "sha256": {"model.onnx": hashlib.sha256(model.SerializeToString()).hexdigest()},
        "purpose": "dense" if dense else "classification",
        "answer": {"size": [8, 8], "labels": list(labels), **answer},
    }
    (folder / "card.json").write_text(json.dumps(card))
