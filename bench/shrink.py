"""Five real models through `foveal shrink`, with the peers beside them on the same model and the same pictures.

    pip install '.[nncf]' torchao
    python bench/shrink.py --make lite0 resnet …       trains, quantises and scores; kept in the cache folder, goes on
    python bench/shrink.py --times                     times everything that is kept; needs a quiet machine, minutes
    python bench/shrink.py --times --save results/shrink    models that are not kept stay in the table as they were

Models: `lite0`, EfficientNet-Lite0 with Lite2 as teacher; `resnet` and `vit`, trained here on CIFAR-10; `detector`,
FastestDet on COCO; `upscaler`, the house's balanced_x4; `saliency`, a ViT-S. The examples build them and say where
their weights come from (--weights, one folder for all; the Coral MobileNets are those of google-coral/test_data).
Peers: static int8 by ONNX Runtime; NNCF's int8 in OpenVINO; torchao's pt2e; Torch-Pruning, tuned for as many steps as
ours, in floats and in int8; Google's int8 MobileNets beside Lite0.

Every file is scored in every engine when it is made. Times are taken in turn: all files of a model in all engines, one
call each, round and round. Savings are quoted against the untouched model in its fastest engine and in ONNX Runtime's
fp32.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import foveal
from foveal.measure.paired import interleaved, ratio
from foveal.runtime.engines import library_version
from foveal.runtime.machine import cache_folder, cpu_model
from foveal.shrink import LowRank, Prune, Quantise, Tune
from foveal.shrink.forms import Opened, forms
from foveal.shrink.measured import Answering, write
from foveal.shrink.steps import describe
from foveal.shrink.tokens.merge import Merge

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from foveal.shrink.data import Data
    from foveal.shrink.step import Step

PLACE = cache_folder() / "shrink"
ORT8, NNCF8 = "peer: ONNX Runtime static int8", "peer: NNCF int8"


@dataclass(frozen=True)
class Real:
    """A model, its data, and the recipes that are tried."""

    title: str
    model: Callable[[], nn.Module]
    data: Callable[[], Data]
    recipes: dict[str, list[Step]]
    also: tuple[str, Callable[[nn.Module], float]] | None = None  # a second quality
    others: dict[str, Callable[[Path], dict[str, Any] | None]] = field(default_factory=dict)  # peers that are no recipe


@dataclass(frozen=True)
class TorchPruning:
    """Torch-Pruning's magnitude pruner, with the settings of its documentation."""

    ratio: float
    left: tuple[str, ...]  # layers that it must not touch

    def apply(self, model: nn.Module, data: Any = None) -> nn.Module:
        import torch_pruning as tp

        pruner = tp.pruner.MagnitudePruner(
            model,
            data.inputs[:1],
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=self.ratio,
            ignored_layers=[model.get_submodule(name) for name in self.left],
            round_to=8,
        )
        pruner.step()
        return model


def slug(name: str) -> str:
    return re.sub(r"\W+", "_", name).strip("_").lower()


def scores(real: Real, data: Data, network: nn.Module) -> list[float]:
    """Both qualities of a network, which answers once."""
    known: dict[int, Any] = {}

    def answer(x: Any) -> Any:
        key = crc32(x.numpy().tobytes())
        if key not in known:
            known[key] = network(x)
        return known[key]

    with torch.inference_mode():
        return [float(data.quality(answer)), *([float(real.also[1](answer))] if real.also else [])]


def say(line: str) -> None:
    print("   ", line, flush=True)


def make(key: str, real: Real, only: list[str] | None) -> None:
    """Make the rows of a model that are not kept yet."""
    place = PLACE / key
    place.mkdir(parents=True, exist_ok=True)
    wanted = {"untouched": [], ORT8: [Quantise(samples=256, by="onnxruntime")]}
    wanted |= {NNCF8: [Quantise(samples=256, by="nncf")], **real.recipes}
    wanted = {n: s for n, s in wanted.items() if only is None or any(word in n for word in only)}
    todo = {name: steps for name, steps in wanted.items() if not (place / slug(name) / "row.json").is_file()}
    others = {name: f for name, f in real.others.items() if only is None or any(word in name for word in only)}
    others = {name: f for name, f in others.items() if not (place / slug(name) / "row.json").is_file()}
    data, model = (real.data(), real.model()) if todo or others else (None, None)
    for name, steps in todo.items():
        assert data is not None
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as made:
            options: Any = {"insist": True, "memory": False, "seconds": 0.5, "folder": Path(made), "tell": say}
            shrunk = foveal.shrink(model, steps, replace(data, quality=lambda _: 0.0), **options)  # scored below
            folder = place / slug(name)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for kind, path in shrunk.written.files.items():
                shutil.copyfile(path, folder / f"{kind}.onnx")
            found = {n: scores(real, data, Answering(o)) for n, o in shrunk.written.open(2).items()}
        row = {
            "name": name,
            "steps": ", ".join(map(describe, steps)),
            "files": {kind: f"{kind}.onnx" for kind in shrunk.written.files},
            "shape": shrunk.written.shape,
            "macs": shrunk.written.macs,
            "parameters": shrunk.written.parameters,
            "quality": found,
            "seconds": time.perf_counter() - begun,
            "notes": [note for stage in shrunk.stages for note in stage.notes],
            "unit": data.unit,
            "data": data.name,
            "also": real.also[0] if real.also else "",
            "title": real.title,
        }
        (folder / "row.json").write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
        print(f"{key}, {name}: {json.dumps(found)}", flush=True)
    for name, function in others.items():
        (place / slug(name)).mkdir(exist_ok=True)
        if (row := function(place / slug(name))) is not None:
            (place / slug(name) / "row.json").write_text(json.dumps({"name": name, **row}, indent=1) + "\n", "utf-8")
            print(f"{key}, {name}: {json.dumps(row['quality'])}", flush=True)


def lite0(given: argparse.Namespace) -> Real:
    import shrink_lite0 as example

    folder, steps = given.weights, given.steps or 400
    teacher: list[Any] = []

    def taught(x: Any) -> Any:
        teacher[:] = teacher or [example.remembering(example.lite(2, folder))]
        return teacher[0](x)

    rows = {f"ours: {keep:g} kept, distilled": example.recipe(taught, keep, steps) for keep in (0.6, 0.5)}
    pruned = [TorchPruning(0.4, ("classifier",)), Tune(steps=steps, lr=1e-3), Quantise(samples=256)]
    files = {
        "peer: Coral MobileNet v2, trained for int8": "mobilenet_v2_1.0_224_quant",
        "peer: Coral MobileNet v2, int8 afterwards": "tf2_mobilenet_v2_1.0_224_ptq",
        "peer: Coral MobileNet v1 0.75, 192 pixels": "mobilenet_v1_0.75_192_quant",
        "peer: Coral MobileNet v1 0.25, 128 pixels": "mobilenet_v1_0.25_128_quant",
    }
    others = {name: coral(folder / f"{file}.tflite") for name, file in files.items()}
    others |= {"peer: torchao pt2e int8": pt2e(lambda: lite0(given))}

    return Real(
        "EfficientNet-Lite0, Imagenette",
        lambda: example.lite(0, folder),
        lambda: example.imagenette(given.limit or 1000),
        rows | {"peer: Torch-Pruning, 0.6 kept, tuned": pruned},
        _ten(lambda: example.imagenette(given.limit or 1000)),
        others,
    )


def _cifar(given: argparse.Namespace, name: str) -> Real:
    import shrink_cifar as example

    steps = given.steps or 600
    tuned = [Tune(steps=steps, lr=2e-3), Quantise(samples=256)]
    last = {"resnet": ("fc",), "vit": ("head",)}[name]
    rows: dict[str, list[Step]] = {"ours: pruned, distilled": example.recipe(name, steps)}
    if name == "resnet":
        rows["peer: Torch-Pruning, 0.5 kept, tuned"] = [TorchPruning(0.5, last), *tuned]
    prune, *rest = example.recipe(name, steps)
    if name == "resnet":
        rows["ours: pruned less, low rank, distilled"] = [Prune(keep=0.625), LowRank(keep=0.7), *rest]
    else:
        rows["ours: pruned, tokens merged, distilled"] = [prune, Merge(keep=0.6, multiple=4), *rest]
    rows["ours: pruned, tuned without a teacher"] = [prune, *tuned]
    rows["control: whole, tuned as long"] = tuned  # what training for longer gives by itself
    title = {"resnet": "ResNet-10-T", "vit": "ViT of 64 tokens"}[name]

    def data() -> Data:
        return example.cifar(name, given.limit or 2000)

    return Real(
        f"{title}, CIFAR-10",
        lambda: example.start(name, data(), PLACE, example.STEPS[name]),
        data,
        rows,
        others={"peer: torchao pt2e int8": pt2e(lambda: _cifar(given, name))},
    )


def detector(given: argparse.Namespace) -> Real:
    import shrink_detector as example

    steps = given.steps or 600
    rows = {f"ours: {keep:g} kept, distilled": example.recipe(keep, steps) for keep in (0.75, 0.5)}
    weights = given.weights / "fastestdet.pth"
    return Real("FastestDet, COCO", lambda: example.detector(weights), example.coco, rows)


def upscaler(given: argparse.Namespace) -> Real:
    import shrink_upscaler as example

    steps, model = given.steps or 1500, example.upscaler()
    rows = {f"ours: {keep:g} kept, distilled": example.recipe(keep, steps) for keep in (0.5, 0.75)}
    return Real(
        "balanced_x4, a tile of 80×80",
        lambda: model,
        lambda: example.pictures(int(model.margin)),
        rows,
        others={"house: fast_x4": _fast},
    )


def _fast(folder: Path) -> dict[str, Any]:
    """The house's smaller network on the same tiles: its own margin makes a larger result, which is cropped."""
    import shrink_upscaler as example

    small, large = example.upscaler("fast_x4"), example.upscaler()
    data, cut = example.pictures(int(large.margin)), 4 * int(large.margin - small.margin)

    class Cropped(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return small(x)[..., cut:-cut, cut:-cut]

    written = write(Cropped().eval(), folder, "float", data.inputs[:1])
    real = Real("", lambda: small, lambda: data, {})
    return {
        "steps": "",
        "files": {"float": "float.onnx"},
        "shape": written.shape,
        "macs": written.macs,
        "parameters": written.parameters,
        "quality": {n: scores(real, data, Answering(o)) for n, o in written.open(2).items()},
        "seconds": 0.0,
        "notes": [],
    }


def saliency(given: argparse.Namespace) -> Real:
    import shrink_saliency as example

    rows = {f"ours: {keep:g} of the tokens": example.recipe(keep) for keep in (0.75, 0.6, 0.4)}
    before: list[Any] = []

    def like_the_map(network: Any) -> float:
        """Correlation with the untouched network's map, percent."""
        held, _ = example.held_out()
        if not before:
            model = example.saliency(given.weights)
            before.append(torch.cat([model(part) for part in held.split(10)]).flatten(1))
        maps = torch.cat([network(part) for part in held.split(10)]).flatten(1)
        return 100 * float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(maps, before[0], strict=True)]))

    also = ("correlation with the untouched map", like_the_map)
    return Real("Saliency ViT-S/14, COCO", lambda: example.saliency(given.weights), example.coco, rows, also)


REAL = {
    "lite0": lite0,
    "resnet": lambda given: _cifar(given, "resnet"),
    "vit": lambda given: _cifar(given, "vit"),
    "detector": detector,
    "upscaler": upscaler,
    "saliency": saliency,
}


class Tflite:
    """A file of TensorFlow Lite in OpenVINO, which takes bytes, (1, H, W, 3)."""

    def __init__(self, path: Path, threads: int) -> None:
        import openvino

        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        core = openvino.Core()
        self.model = core.compile_model(core.read_model(path), "CPU", options)
        self.request = self.model.create_infer_request()
        entry = self.model.input(0)
        self.shape, self.floats = tuple(entry.shape), "f" in entry.element_type.get_type_name()
        self.input = np.random.default_rng(0).integers(0, 256, self.shape, np.uint8)
        if self.floats:
            self.input = self.input.astype(np.float32) / 127.5 - 1

    def __call__(self) -> Any:
        return self.request.infer({0: self.input}, share_inputs=True, share_outputs=True)[0]

    def answer(self, x: Any) -> Any:
        """Outputs for pictures as Lite0 takes them, (n, 3, 224, 224) in [-1, 1], of the 1,000 classes."""
        found = []
        for one in torch.nn.functional.interpolate(x, self.shape[1], mode="bicubic", antialias=True):
            values = one.permute(1, 2, 0)[None].clamp(-1, 1)
            pixels = values if self.floats else ((values + 1) * 127.5).round().byte()
            made = self.request.infer({0: np.ascontiguousarray(pixels.numpy())})[0]
            found.append(torch.from_numpy(np.array(made)).float()[0, -1000:])
        return torch.stack(found)


def coral(path: Path) -> Callable[[Path], dict[str, Any] | None]:
    def make(folder: Path) -> dict[str, Any] | None:
        import shrink_lite0 as example

        if not path.is_file():
            print(f"{path} is not there: left out")
            return None
        shutil.copyfile(path, folder / "model.tflite")
        opened, data = Tflite(path, 2), example.imagenette()
        found = {
            "openvino int8 (tflite)": scores(Real("", None, None, {}, _ten(example.imagenette)), data, opened.answer)
        }
        return {
            "steps": "",
            "files": {"tflite": "model.tflite"},
            "shape": opened.shape,
            "macs": None,
            "parameters": None,
            "quality": found,
            "seconds": 0.0,
            "notes": [],
        }

    return make


def _ten(read: Callable[[], Data]) -> tuple[str, Callable[[Any], float]]:
    """Accuracy among Imagenette's own ten classes."""

    def quality(network: Any) -> float:
        data = read()
        ten = torch.cat([data.batches(step)[1] for step in range(4)]).unique()
        others = torch.ones(1000, dtype=torch.bool).index_fill(0, ten, False)
        return data.quality(lambda x: network(x).masked_fill(others, -1e9))

    return "of 10 classes", quality


def pt2e(real: Callable[[], Real]) -> Callable[[Path], dict[str, Any] | None]:
    """torchao's int8 of the exported graph, compiled ahead of time into a package."""

    def make(folder: Path) -> dict[str, Any] | None:
        try:
            import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        except ImportError as error:
            print(f"torchao: {error}: left out")
            return None
        one = real()
        model, data = one.model(), one.data()
        example = data.inputs[:1].contiguous()  # the package takes these strides for granted
        torch.set_num_threads(2)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = torch.export.export(model, (example,)).module()
            quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
            prepared = prepare_pt2e(graph, quantizer)
            for x in data.inputs[:128].split(1):
                prepared(x)
            converted = convert_pt2e(prepared)
            again = torch.export.export(converted, (example,))
            options = {"freezing": True}
            package = folder / "model.pt2"
            torch._inductor.aoti_compile_and_package(again, package_path=str(package), inductor_configs=options)
            opened = Package(package, tuple(example.shape))
            found = {"torch int8 (pt2e)": scores(one, data, opened.answer)}
        return {
            "steps": "",
            "files": {"pt2": "model.pt2"},
            "shape": tuple(example.shape),
            "macs": None,
            "parameters": None,
            "quality": found,
            "seconds": 0.0,
            "notes": [],
        }

    return make


class Package:
    """A network that torch compiled ahead of time."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.run = torch._inductor.aoti_load_package(str(path))
        self.input = torch.from_numpy(np.random.default_rng(0).standard_normal(shape, np.float32))

    def __call__(self) -> Any:
        with torch.inference_mode():
            return self.run(self.input)

    def answer(self, x: Any) -> Any:
        return torch.cat([self.run(one.contiguous()) for one in x.split(1)])


def opened(folder: Path, row: dict[str, Any], threads: int) -> dict[str, Callable[[], Any]]:
    """A row's files in every engine that is installed."""
    files = {kind: folder / name for kind, name in row["files"].items()}
    if "tflite" in files:
        return {next(iter(row["quality"])): Tflite(files["tflite"], threads)}
    if "pt2" in files:
        return {next(iter(row["quality"])): Package(files["pt2"], tuple(row["shape"]))}
    return {f.name: Opened(f, files[f.file], tuple(row["shape"]), threads) for f in forms(*files)}


def allowed(name: str, form: str) -> bool:
    """Whether a form counts for a row: a peer's own is the engine that it is made for."""
    if name == ORT8:
        return form == "onnxruntime int8"
    return form == "openvino int8 (NNCF)" if name == NNCF8 else True


def times(key: str, threads: int, seconds: float) -> dict[str, Any] | None:
    """Time every row of a model that is kept, in turn."""
    place = PLACE / key
    found = [(path.parent, json.loads(path.read_text(encoding="utf-8"))) for path in place.glob("*/row.json")]
    order = {"unto": 0, "cont": 1, "peer": 2, "hous": 3, "ours": 4}
    rows = sorted(
        found, key=lambda pair: (order.get(pair[1]["name"][:4], order.get(pair[1]["name"], 0)), pair[1]["name"])
    )
    if not rows or rows[0][1]["name"] != "untouched":
        return None
    functions: dict[tuple[str, str], Callable[[], Any]] = {}
    for folder, row in rows:
        every = opened(folder, row, threads)
        new = {form: f for form, f in every.items() if row["name"] == "untouched" or form in row["quality"]}
        functions |= {(row["name"], form): f for form, f in new.items() if allowed(row["name"], form)}
    taken = dict(zip(functions, interleaved([*functions.values()], warm_up=5, settle=3, most=seconds), strict=True))
    median = {name: float(np.median(t)) for name, t in taken.items()}
    first = min((n for n in functions if n[0] == "untouched"), key=lambda n: median[n])
    lines = []
    for _, row in rows:
        mine = [n for n in functions if n[0] == row["name"]]
        # Floats of an untouched file are no result of a peer or a recipe: the fastest of its own forms.
        best = min(mine, key=lambda n: median[n])
        for name in [best, *(n for n in mine if n != best and row["name"] == "untouched")]:
            lower, upper = np.percentile(taken[name], (25, 75))
            against = {"best": first, "ort": ("untouched", "onnxruntime fp32")}
            lines.append(
                {
                    "name": row["name"],
                    "steps": row["steps"],
                    "form": name[1],
                    "ms": 1e3 * median[name],
                    "ms_lower": 1e3 * float(lower),
                    "ms_upper": 1e3 * float(upper),
                    "pairs": len(taken[name]),
                    **{f"faster_than_{w}": 1 / ratio(taken[name], taken[n]).median for w, n in against.items()},
                    "quality": row["quality"].get(name[1]),
                    "macs": row["macs"],
                    "parameters": row["parameters"],
                    "every_form": {n[1]: [1e3 * median[n], row["quality"].get(n[1])] for n in mine},
                    "notes": row["notes"],
                }
            )
    head = rows[0][1]
    return {"key": key, **{word: head[word] for word in ("title", "unit", "data", "also", "shape")}, "lines": lines}


def to_markdown(found: dict[str, Any]) -> str:
    text = ["# Real models, shrunk", "", found["about"]]
    for model in found["models"]:
        first = model["lines"][0]["quality"]
        also = f" {model['also']} |" if model["also"] else ""
        text += ["", f"## {model['title']}", "", model["where"], ""]
        text += [f"| | form | ms | spread | × best engine | × ORT fp32 | {model['unit']} | change |{also} MACs |"]
        text += ["|" + "---|" * (9 + bool(also))]
        for line in model["lines"]:
            q = line["quality"]
            second = f" {q[1]:.2f} |" if also and len(q) > 1 else " – |" if also else ""
            macs = "–" if line["macs"] is None else f"{line['macs'] / 1e6:.4g} M"
            spread = f"{line['ms_lower']:.3g}–{line['ms_upper']:.3g}"
            text.append(
                f"| {line['name']} | {line['form']} | {line['ms']:.3g} | {spread} | {line['faster_than_best']:.2f} "
                f"| {line['faster_than_ort']:.2f} | {q[0]:.2f} | {q[0] - first[0]:+.2f} |{second} {macs} |"
            )
        text += ["", f"{model['unit']} on {model['data']}, of the file in the engine named."]
        text += [f"- {line['name']}: {line['steps']}" for line in model["lines"] if line["steps"]]
    return "\n".join(text) + "\n"


def table(given: argparse.Namespace) -> None:
    torch.set_num_threads(given.threads)
    made = []
    for key in REAL:
        if (model := times(key, given.threads, given.seconds)) is None:
            print(f"{key}: nothing is kept; --make {key} first", file=sys.stderr)
            continue
        made.append(model)
    engines = {engine: library_version(engine) for engine in ("onnxruntime", "openvino")}
    libraries = ", ".join(f"{name} {number}" for name, number in {"torch": torch.__version__, **engines}.items())
    where = f"{datetime.now(UTC).date()}, {cpu_model()}, {given.threads} threads, one input a call; {libraries}."
    made = [{**model, "where": where} for model in made]
    if given.save and (kept := given.save.with_suffix(".json")).is_file():
        now = {model["key"] for model in made}
        made += [m for m in json.loads(kept.read_text(encoding="utf-8"))["models"] if m["key"] not in now]
        made.sort(key=lambda model: list(REAL).index(model["key"]))
    about = (
        "Median and quartiles; all files of a model are timed in turn in every engine installed, and the fastest form "
        "of each row is shown. × best engine: against the untouched model in its fastest engine, the first line."
    )
    found = {"about": about, "models": made}
    print(text := to_markdown(found))
    if given.save:
        given.save.parent.mkdir(parents=True, exist_ok=True)
        given.save.with_suffix(".md").write_text(text, encoding="utf-8")
        given.save.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--make", nargs="*", metavar="MODEL", help=f"any of {', '.join(REAL)}; all without names")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="rows whose name holds one of these words")
    parser.add_argument("--times", action="store_true", help="time what is kept, and print the tables")
    parser.add_argument("--weights", type=Path, default=Path("weights"), help="folder of downloaded weights")
    parser.add_argument("--steps", type=int, help="training steps of a row, instead of its own")
    parser.add_argument("--limit", type=int, help="held-out pictures, instead of all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", type=Path, help="path without suffix for .md and .json")
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds that the timing of one model should take")
    given = parser.parse_args()
    if given.make is not None:
        for key in given.make or REAL:
            make(key, REAL[key](given), given.only)
    if given.times:
        table(given)


if __name__ == "__main__":
    main()
