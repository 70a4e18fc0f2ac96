"""The ×4 network of `--perception 1`: balanced_x4, trained on for looks, against a critic.

    python recipes/vivid_x4.py --data data/mixed/whole --steps 2000 --out runs/vivid_x4
    foveal export runs/vivid_x4 -o bundles/vivid_x4

The critic is DeePSiM's (foveal.train.restore.deepsim), and sees luminance, its bicubic enlargement and the difference;
it and the network are trained in turns. The network's loss is PIXELS · |error of luminance| + the critic's softplus.
Patches come from where bicubic is most wrong. The weights are a running average. A checkpoint every 100 steps: the same
command goes on. No network trained on other data is in the loss.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import foveal
from foveal.runtime.bundle import Bundle
from foveal.train.restore.deepsim import Critic
from foveal.train.restore.losses import luminance
from foveal.train.restore.pairs import Pairs

PIXELS, RATE, CRITIC_RATE, AVERAGE = 20.0, 2e-4, 4e-4, 0.99
BATCH, PATCH, EVERY = 8, 48, 100


def main() -> None:
    """Train, or go on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("runs/vivid_x4"))
    parser.add_argument("--pixels", type=float, default=PIXELS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    start = Bundle.load("balanced_x4")
    words = {"scale": 4, **start.card.model["arguments"]}
    recipe = json.dumps({"model": start.card.model["name"], "scale": 4, "arguments": start.card.model["arguments"]})

    def build() -> Any:
        net: Any = foveal.create_model(start.card.model["name"], **words)
        net.load_state_dict(load_file(start.folder / "model.safetensors"))
        return net.to(memory_format=torch.channels_last)

    torch.manual_seed(0)
    net, mean, critic = build().train(), build().eval(), Critic(24)
    learn = torch.optim.Adam(net.parameters(), RATE, betas=(0.9, 0.99))
    judge = torch.optim.Adam(critic.parameters(), CRITIC_RATE, betas=(0.5, 0.99))
    parts = {"net": net, "mean": mean, "critic": critic, "learn": learn, "judge": judge}
    kept, begun = given.out / "checkpoint.pt", 0
    if kept.is_file():
        state = torch.load(kept, weights_only=True)
        begun = state.pop("step")
        for name, part in parts.items():
            part.load_state_dict(state[name])
    pairs = Pairs.from_folder(given.data, 4, patch=PATCH, fraction=0.5)
    fast = {"device_type": "cpu", "dtype": torch.bfloat16}
    clock = time.monotonic()
    for step in range(begun, given.steps):
        low, high, *_ = (
            torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255
            for x in pairs.batch(BATCH, np.random.default_rng((0, step)))
        )
        grey = luminance(high)
        base = luminance(F.interpolate(low, scale_factor=4, mode="bicubic"))

        def shown(y: Any, base: Any = base) -> Any:
            return torch.cat((y, base, (y - base) / 2 + 0.5), 1)

        with torch.autocast(**fast):
            made = luminance(net(low.contiguous(memory_format=torch.channels_last)).float())
            critic.requires_grad_(False)
            fooled = F.softplus(-critic(shown(made)).float()).mean()
        loss = given.pixels * (made - grey).abs().mean() + fooled
        learn.zero_grad()
        loss.backward()
        learn.step()
        critic.requires_grad_(True)
        with torch.autocast(**fast):
            told = [critic(shown(y)).float() for y in (made.detach(), grey)]
        wrong = F.softplus(told[0]).mean() + F.softplus(-told[1]).mean()
        judge.zero_grad()
        wrong.backward()
        judge.step()
        with torch.no_grad():
            for average, value in zip(mean.parameters(), net.parameters(), strict=True):
                average.lerp_(value, 1 - AVERAGE)
        if (step + 1) % EVERY == 0 or step + 1 == given.steps:
            torch.save({"step": step + 1, **{name: part.state_dict() for name, part in parts.items()}}, kept)
            weights = {name: value.contiguous() for name, value in mean.state_dict().items()}
            save_file(weights, given.out / "model.safetensors", metadata={"recipe": recipe})
            pace = (time.monotonic() - clock) / (step + 1 - begun)
            print(
                f"step {step + 1}: loss {loss.item():.4f}, critic {wrong.item():.3f}, {pace:.2f} s a step", flush=True
            )


if __name__ == "__main__":
    main()
