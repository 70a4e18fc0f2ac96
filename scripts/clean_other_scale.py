r"""Weights of LumaClean at another scale, the last layer solved for: how three bundles were made, half a minute each.

    python scripts/clean_other_scale.py data/mixed --quality balanced --scale 3 -o runs/clean_balanced_x3
    python scripts/clean_other_scale.py data/mixed --quality fast --scale 2 -o runs/clean_fast_x2
    foveal export runs/clean_fast_x2/model.safetensors -o bundles/clean_fast_x2 --quality fast --int8 data/mixed

Hidden layers find edges and tell them from damage, which does not depend on the scale. They are taken from the bundle
that was trained (clean_balanced_x2, clean_fast_x4); the upsampler begins as that of the network for clean pictures.
Then the last layer and the upsampler are the least-squares solution on damaged patches, each weighted by one over the
error of the upsampler alone, as the training loss weights them.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from foveal.models.restore.luma_clean import LumaClean, luma_clean_balanced, luma_clean_fast
from foveal.ops.conv3x3 import conv3x3
from foveal.runtime.bundle import SHIPPED
from foveal.train.restore.degradations import degrade
from foveal.train.restore.losses import LUMINANCE, luminance
from foveal.train.restore.pairs import Pairs
from foveal.train.restore.teacher import answers

PATCH, BORDER, CUT = 64, 16, 11
# Network, bundle that was trained, and what its card says of the network.
TRAINED: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "balanced": (luma_clean_balanced, "clean_balanced_x2", {"expand": 0, "equivariant": True}),
    "fast": (luma_clean_fast, "clean_fast_x4", {}),
}
BATCH, THINNED = 8, 3  # patches at a time; every so many pixels of them are used
TEACHER_SHARE, RIDGE = 0.5, 1e-5


def started(quality: str, scale: int) -> LumaClean:
    """The network with the hidden layers of the trained bundle, and no detail yet."""
    build, bundle, _ = TRAINED[quality]
    network: LumaClean = build(scale).eval()
    names = (bundle, f"{quality}_x{scale}")
    trained, clean = (load_file(SHIPPED / name / "model.safetensors") for name in names)
    known = network.state_dict()
    network.load_state_dict(
        {n: (trained if trained[n].shape == v.shape else clean)[n].float() for n, v in known.items()}
    )
    torch.nn.init.zeros_(network.tail.weight)
    return network


def batch(pairs: Pairs, scale: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Damaged patches (B, 3, p, p), their wanted luminance (B, 1, s·p, s·p) and levels (B, 3)."""
    rng = np.random.default_rng((scale, step))
    low, high, taught = pairs.batch(BATCH, rng)
    parts: list[list[np.ndarray]] = [[], [], [], []]
    for one, large, answer in zip(low, high, taught, strict=True):
        damaged = degrade(one, large, rng)
        y, x = (int(n) for n in rng.integers(0, BORDER + 1, 2))
        for part, (pixels, s) in zip(parts, ((damaged.pixels, 1), (large, scale), (answer, scale)), strict=False):
            part.append(pixels[y * s : (y + PATCH) * s, x * s : (x + PATCH) * s])
        parts[3].append(np.asarray(damaged.level, np.float32))
    given, wanted, told = (torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2) / 255 for part in parts[:3])
    return given, luminance(wanted).lerp_(luminance(told), TEACHER_SHARE), torch.from_numpy(np.stack(parts[3]))


def features(network: LumaClean, x: Tensor, level: Tensor) -> Tensor:
    """What the last layer reads, less what it reads in a flat picture, (B, C, H, W)."""
    slopes = network.slope.unbind()
    made, flat = x, x.new_zeros(len(x), 3)
    layers = zip(*network._kernels(), network.shifts(level), (None, *slopes[:-1]), slopes, strict=True)
    for weight, bias, shift, before, slope in layers:
        made = conv3x3(made, weight, bias, slope=before) + shift[..., None, None]
        flat = F.prelu(F.linear(flat, weight.sum((2, 3)), bias) + shift, slope.reshape(1))
    return F.prelu(made, slopes[-1].reshape(1)) - flat[..., None, None]


def rows(network: LumaClean, given: Tensor, wanted: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers that last layer and upsampler read, and what they lack, (n, N) and (s², N), weighted."""
    mixed = torch.einsum("bchw,c->bhw", given, LUMINANCE)[:, None]
    lacking = F.pixel_unshuffle(wanted, network.scale) - network._upsampled(mixed)
    read = F.unfold(features(network, given, level), 3, padding=1)
    around = F.unfold(mixed, 5, padding=2)
    around = torch.cat([around[:, :12], around[:, 13:]], 1) - around[:, 12:13]  # the kernel's sum stays 1
    inside = (..., slice(CUT, -CUT), slice(CUT, -CUT))
    a, y = (
        t.unflatten(2, (PATCH, PATCH))[inside].flatten(2) for t in (torch.cat([read, around], 1), lacking.flatten(2))
    )
    weight = (y.square().mean((1, 2), keepdim=True) + 1e-6) ** -0.25
    return tuple((weight * t)[..., ::THINNED].permute(1, 0, 2).flatten(1) for t in (a, y))  # type: ignore[return-value]


@torch.no_grad()
def main() -> None:
    """Solve and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="folder of training pictures")
    parser.add_argument("-o", dest="out", type=Path, required=True, help="folder for model.safetensors")
    parser.add_argument("--quality", choices=TRAINED, default="balanced")
    parser.add_argument("--scale", type=int, choices=(2, 3, 4), default=3)
    parser.add_argument("--batches", type=int, default=90)
    args = parser.parse_args()
    torch.manual_seed(0)
    network = started(args.quality, args.scale)
    # a fast network is taught by the balanced one, as its recipe says
    teach = partial(answers, teachers=[f"balanced_x{args.scale}"], say=print)
    pairs = Pairs.from_folder(args.pictures, args.scale, patch=PATCH + BORDER, fraction=1.0, teach=teach)
    square, product = torch.zeros((), dtype=torch.double), torch.zeros((), dtype=torch.double)
    for step in range(args.batches):
        a, y = rows(network, *batch(pairs, args.scale, step))
        square, product = square + (a @ a.T).double(), product + (a @ y.T).double()
    scale = square.diagonal()
    solved = torch.linalg.solve(square + torch.diag(RIDGE * scale + 1e-9 * scale.mean()), product).T.float()
    reads = network.tail.weight[0].numel()
    tail = solved[:, :reads].view_as(network.tail.weight) / LUMINANCE.sum()  # detail goes to all colours
    taps = solved[:, reads:]
    base = torch.cat([taps[:, :12], -taps.sum(1, keepdim=True), taps[:, 12:]], 1).view_as(network.base)
    network.tail.weight.copy_(network._tied("tail", tail))  # there was no detail yet
    network.base.copy_(network._phases() + network._tied("base", base))
    words = TRAINED[args.quality][2]
    described = {"model": f"luma_clean_{args.quality}", "scale": args.scale, "arguments": words}
    args.out.mkdir(parents=True, exist_ok=True)
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(state, args.out / "model.safetensors", metadata={"recipe": json.dumps(described)})


if __name__ == "__main__":
    main()
