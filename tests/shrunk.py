"""A tiny classifier, its data, and a verb whose files and times are made up; for the tests of shrinking."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from foveal.measure.cost import Latency
from foveal.measure.paired import Ratio
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

    def write(self, model, folder, name, example):
        path = folder / f"{name}.onnx"
        path.write_bytes(b"x" * sum(p.numel() for p in model.parameters()))
        self.models[name] = model
        opened = {"onnxruntime fp32": self.time(model), "onnxruntime int8": self.time(model) / 2}
        return Written({"float": path}, tuple(example.shape), 1, 1, opened)

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
