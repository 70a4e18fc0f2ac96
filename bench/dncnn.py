"""The bar of `repair_clean`: noise and JPEG at scale 1 on BSD100's full pictures, beside a DnCNN trained as long.

    python bench/dncnn.py --count                                 multiplications a pixel of both, exactly
    python bench/dncnn.py --data data/mixed --minutes 120 --out runs/dncnn    train the rival, or go on with it
    python bench/dncnn.py --out runs/dncnn --score --limit 100 --save results/dncnn    score and time both

The rival is the paper's: 17 convolutions of 64 channels, blind. It sees the batches of recipes/repair_clean.toml, drawn
by the same seed, and the same loss, for as many steps as fit into the minutes at the pace of its first ones; Adam at
1e-3 as in the paper. A checkpoint every 200 steps, so that the same command goes on after a stop. Both are timed by
onnxruntime with the same threads, in turns, repair_clean as `foveal restore` runs it.

Bar: within 0.3 dB of the rival in every row, at a tenth of its multiplications and at least 5 times its speed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from restoring import cases, psnr

from foveal.evidence.rivals.dncnn import DnCNN
from foveal.measure.benchmarks import find
from foveal.measure.cost import count_macs
from foveal.measure.quality import benchmark_pairs
from foveal.models.restore.repair_net import repair_clean
from foveal.runtime.restorer import Restorer
from foveal.train.restore.fit import fit
from foveal.train.restore.recipe import Recipe

RECIPE = Path(__file__).parents[1] / "recipes" / "repair_clean.toml"
SIDE = 64
PACED = 12  # steps by whose pace the schedule is set


class Told(torch.nn.Module):
    """repair_clean at one level, as a bundle computes it.

    Args:
        model: the network.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x, x.new_zeros(len(x), 3))  # type: ignore[no-any-return]


def count() -> tuple[float, float]:
    """Multiplications a pixel.

    Returns:
        Of repair_clean, whose shifts by the level are folded into biases in a bundle, and of DnCNN.
    """
    shape = (1, 3, SIDE, SIDE)
    with torch.inference_mode():
        told = repair_clean().eval()
        ours = count_macs(Told(told), shape) - sum(
            layer.weight.numel() for layer in told.tell if isinstance(layer, torch.nn.Linear)
        )
        return ours / SIDE**2, count_macs(DnCNN().eval(), shape) / SIDE**2


def train(data: Path, out: Path, minutes: float) -> None:
    """Train the rival, or go on.

    Args:
        data: folder of training pictures.
        out: folder of checkpoints.
        minutes: that the training may take.
    """
    torch.manual_seed(0)
    recipe = replace(Recipe.read(RECIPE), data=str(data), optimizer="adam", lr=1e-3, every=200)
    out.mkdir(parents=True, exist_ok=True)
    plan = out / "plan.json"
    if not plan.exists():
        begun = time.perf_counter()
        fit(DnCNN(), replace(recipe, steps=PACED), out / "pace", stop_after=PACED)
        pace = (time.perf_counter() - begun) / PACED
        plan.write_text(json.dumps({"minutes": minutes, "steps": max(PACED, round(60 * minutes / pace)), "pace": pace}))
    told = json.loads(plan.read_text())
    if told["minutes"] != minutes:
        sys.exit(
            f"bench/dncnn.py: {out} was begun for {told['minutes']:g} minutes, got {minutes:g}; give that, or another"
            " --out"
        )
    print(f"{told['steps']} steps, {told['pace']:.2f} s each as the first ones went", flush=True)
    fit(DnCNN(), replace(recipe, steps=told["steps"]), out, report=lambda p: print(p, flush=True) if p.saved else None)


def score(out: Path, limit: int, threads: int | None, save: Path | None) -> None:
    """Score and time both.

    Args:
        out: folder of the trained rival.
        limit: number of pictures.
        threads: processor threads.
        save: name of the Markdown and JSON to write.
    """
    import onnxruntime
    from safetensors.torch import load_file

    rival = DnCNN().eval()
    rival.load_state_dict(load_file(out / "model.safetensors"))
    example = torch.zeros(1, 3, SIDE, SIDE)
    sizes = {"x": {2: torch.export.Dim("h"), 3: torch.export.Dim("w")}}
    torch.onnx.export(rival, (example,), out / "dncnn.onnx", dynamo=True, dynamic_shapes=sizes, external_data=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(out / "dncnn.onnx", options, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()

    def by_rival(picture: np.ndarray) -> np.ndarray:
        x = picture.transpose(2, 0, 1)[None].astype(np.float32) / 255
        made = session.run(None, {entry.name: x})[0][0].transpose(1, 2, 0)
        return np.clip(np.rint(made * 255), 0, 255).astype(np.uint8)

    pictures = [high for _, _, high in benchmark_pairs(find("BSD100"), 4, limit=limit)]
    rows = []
    for name, fix, damage in cases():
        if fix not in ("noise", "jpeg"):
            continue
        restore = Restorer(fix, engine="onnxruntime", threads=threads)
        found: dict[str, list[float]] = {"ours": [], "rival": [], "ours_s": [], "rival_s": []}
        for seed, picture in enumerate(pictures):
            given = damage(picture, seed)
            pixels = np.asarray(given)
            (finding, *_) = [*restore.look(given), None]
            for who in ("rival", "ours") if seed % 2 else ("ours", "rival"):
                begun = time.perf_counter()
                if who == "rival":
                    made = by_rival(pixels)
                else:
                    made = pixels if finding is None else finding.way.picture(pixels, False, None, print)
                found[f"{who}_s"].append((time.perf_counter() - begun) / (picture.shape[0] * picture.shape[1] / 1e6))
                found[who].append(psnr(made, picture))
        rows.append(
            {
                "damage": name,
                **{key: float(np.median(v) if key.endswith("_s") else np.mean(v)) for key, v in found.items()},
            }
        )
        print(rows[-1], flush=True)
    ours, theirs = count()
    lines = ["| damage | repair_clean, dB | DnCNN, dB | difference | times its speed |", "|---|---|---|---|---|"]
    lines += [
        f"| {r['damage']} | {r['ours']:.2f} | {r['rival']:.2f} | {r['ours'] - r['rival']:+.2f} "
        f"| {r['rival_s'] / r['ours_s']:.1f} |"
        for r in rows
    ]
    text = (
        "\n".join(lines) + f"\n\n{ours:,.0f} multiplications a pixel, DnCNN {theirs:,.0f}: {theirs / ours:.1f} times.\n"
    )
    print(text)
    if save:
        save.with_suffix(".md").write_text(text, encoding="utf-8")
        save.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Count, train or score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", action="store_true")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--minutes", type=float, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/dncnn"))
    parser.add_argument("--score", action="store_true")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    if options.count:
        ours, theirs = count()
        print(
            f"multiplications a pixel: repair_clean {ours:,.0f}, DnCNN {theirs:,.0f}, {theirs / ours:.2f} times as many"
        )
    if options.minutes:
        if options.data is None:
            sys.exit("bench/dncnn.py: --minutes trains and wants pictures; add --data FOLDER")
        train(options.data, options.out, options.minutes)
    if options.score:
        score(options.out, options.limit, options.threads, options.save)


if __name__ == "__main__":
    main()
