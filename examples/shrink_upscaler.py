"""Shrink foveal's own `balanced_x4`: fewer channels, taught by the untouched network.

FOVEAL_DATA=data python examples/shrink_upscaler.py -o bundles/upscaler

It learns on the pictures of BSDS400 and is scored on crops of BSD100, in dB of luminance. What is shrunk and timed is
the network of one tile, 80×80 pixels with the surroundings that it reads.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import foveal
from foveal.measure.benchmarks import find
from foveal.measure.quality import psnr
from foveal.models import create_model
from foveal.runtime.classify import Framing
from foveal.shrink import Data, Distil, Prune, Quantise, untouched
from foveal.shrink.bundle import save_bundle
from foveal.shrink.distill.distillation import Views
from foveal.shrink.recipe import shrink
from foveal.shrink.step import Step

TILE, SCALE, PATCH = 80, 4, 44


def upscaler(name: str = "balanced_x4") -> Any:
    """A bundle's network as plain convolutions without padding."""
    folder = Path(foveal.__file__).parent / "bundles" / name
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    model: Any = create_model(card["model"]["name"], scale=SCALE, **card["model"]["arguments"])
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.plain()


def read(path: Path) -> Tensor:
    """A picture, (3, H, W) uint8."""
    with Image.open(path) as opened:
        return torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)


@cache
def photographs() -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
    """Pictures to learn from, and pairs of tiles held out, (3, 80, 80) and (3, 320, 320) uint8."""
    train = [read(path) for path in sorted(find("bsds400").rglob("*")) if path.suffix in (".jpg", ".png")]
    held = []
    for path in sorted((find("BSD100") / "x4").glob("*_LR.png")):
        small, large = read(path), read(path.with_name(path.name.replace("_LR", "_HR")))
        top, left = ((side - TILE) // 2 for side in small.shape[1:])
        there = (slice(SCALE * at, SCALE * (at + TILE)) for at in (top, left))
        held.append((small[:, top : top + TILE, left : left + TILE], large[(slice(None), *there)]))
    return train, held


def pictures(margin: int, batch: int = 8) -> Data:
    """Photographs reduced four times, and PSNR of the tiles held out."""
    train, held = photographs()
    border = SCALE * margin

    def batches(step: int) -> tuple[Tensor, Tensor]:
        draw = np.random.default_rng(step)
        shown = []
        for i in draw.integers(len(train), size=batch):
            side = SCALE * PATCH
            top, left = (int(draw.integers(length - side + 1)) for length in train[i].shape[1:])
            patch = train[i][:, top : top + side, left : left + side].float() / 255
            shown.append(patch.flip(2) if draw.random() < 0.5 else patch)
        large = torch.stack(shown)
        small = F.interpolate(large, PATCH, mode="bicubic", antialias=True).clamp(0, 1)
        small = (255 * small).round() / 255
        return small, large[..., border:-border, border:-border]

    def quality(model: nn.Module) -> float:
        found = []
        for small, large in held:
            with torch.inference_mode():
                made = (255 * model(small[None].float() / 255)[0].clamp(0, 1)).round().byte()
            true = large[:, border:-border, border:-border]
            a, b = (x.permute(1, 2, 0).numpy() for x in (made, true))
            found.append(psnr(a, b, shave=0))
        return float(np.mean(found))

    seen = torch.stack([x[:, : SCALE * TILE, : SCALE * TILE] for x in train[:64]]).float() / 255
    return Data(
        F.interpolate(seen, TILE, mode="bicubic", antialias=True).clamp(0, 1),
        quality,
        "dB",
        f"{len(held)} tiles of BSD100",
        batches,
        F.l1_loss,
    )


@dataclass(frozen=True)
class InLayers:
    """A step for the convolutions alone; colour and back-projection, which have nothing to prune, stay."""

    step: Step

    def apply(self, model: Any, data: Any = None) -> nn.Module:
        model.layers = self.step.apply(model.layers, data.inputs)
        return model


def photograph_and_teacher() -> Callable[[Views], Tensor]:
    """Distance from the photograph, and from what the teacher makes."""
    return lambda views: F.l1_loss(views.student, views.targets) + F.l1_loss(views.student, views.teacher)


def recipe(keep: float, steps: int) -> list[Step]:
    """Prune, distil, int8."""
    taught = Distil(untouched, loss=photograph_and_teacher, steps=steps, lr=1e-3, weight_decay=0.0)
    return [InLayers(Prune(keep=keep, round_to=16)), taught, Quantise(samples=32)]


def main() -> None:
    """Shrink it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=float, default=0.5, help="share of the channels that stays")
    parser.add_argument("--steps", type=int, default=1500, help="training steps")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the bundle")
    given = parser.parse_args()
    model = upscaler()
    shrunk = shrink(model, recipe(given.keep, given.steps), pictures(int(model.margin)), tell=print)
    framing = Framing((TILE, TILE))
    save_bundle(shrunk, given.out, framing=framing, purpose="dense", licence="Apache-2.0", overwrite=True)
    print(f"{given.out}: {1 / shrunk.last.untouched.median:.2f} times as fast, {shrunk.lost:+.2f} dB")


if __name__ == "__main__":
    main()
