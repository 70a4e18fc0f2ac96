"""Make a ResNet and a vision transformer of CIFAR-10 four times as fast: prune, distil, int8.

python examples/shrink_cifar.py resnet -o bundles/cifar_resnet
python examples/shrink_cifar.py vit -o bundles/cifar_vit

The networks that are shrunk are trained first, about ten minutes of one core each, and kept in foveal's cache folder;
an interrupted training goes on where it stopped. The vision transformer learns from the ResNet too.
"""

import argparse
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from foveal.runtime.classify import Framing
from foveal.runtime.machine import cache_folder
from foveal.shrink import Data, Distil, Prune, Quantise, untouched
from foveal.shrink.bundle import save_bundle
from foveal.shrink.distill.distillation import soft_targets
from foveal.shrink.pictures import labelled, picture_data
from foveal.shrink.rebuild import origin_of
from foveal.shrink.recipe import shrink
from foveal.shrink.step import Step
from foveal.train.loop import fit

FRAMING = Framing((32, 32), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
STEPS = {"resnet": 800, "vit": 600}  # training steps of the networks that are shrunk
BATCH = {"resnet": 128, "vit": 64}


def build(name: str, drop: float = 0.0) -> nn.Module:
    """ResNet-10-T with four times the resolution of ImageNet's, or a ViT of 64 tokens."""
    if name == "resnet":
        model = timm.create_model("resnet10t", num_classes=10)
        model.maxpool = nn.Identity()
        return model
    sizes: Any = {"img_size": 32, "patch_size": 4, "embed_dim": 192, "depth": 6, "num_heads": 6}
    pool: Any = {"class_token": False, "global_pool": "avg"}
    return timm.create_model("vit_tiny_patch16_224", num_classes=10, patch_drop_rate=drop, **sizes, **pool)


def start(name: str, data: Data, place: Path, steps: int, stop_after: int | None = None) -> nn.Module:
    """The network to shrink, from the cache or trained now; from `stop_after` on at the next call."""
    kept, resume = place / f"cifar_{name}_{steps}.safetensors", place / f"cifar_{name}_{steps}.checkpoint"
    if kept.is_file():
        model = build(name)
        model.load_state_dict(load_file(kept))
        return model.eval()
    place.mkdir(parents=True, exist_ok=True)
    teacher = start("resnet", data, place, STEPS["resnet"]) if name == "vit" else None
    torch.manual_seed(0)
    assert data.batches is not None
    model = build(name, drop=0.5 if name == "vit" else 0.0).to(memory_format=torch.channels_last)

    def objective(network: nn.Module, batch: Any) -> torch.Tensor:
        out = network(batch[0].contiguous(memory_format=torch.channels_last)).float()
        value = F.cross_entropy(out, batch[1])
        if teacher is None:
            return value
        with torch.no_grad():
            taught = teacher(batch[0])
        return value + soft_targets(out, taught)

    fit(
        model,
        objective,
        data.batches,
        [torch.optim.AdamW(model.parameters(), lr=2e-3 if name == "resnet" else 1e-3, weight_decay=0.05)],
        steps=steps,
        warmup=min(100, steps),
        clip=1.0,
        precision="bf16" if name == "resnet" else "fp32",
        every=100,
        state=torch.load(resume, weights_only=True) if resume.is_file() else None,
        save=lambda state: torch.save(state, resume),
        report=lambda p: (
            print(f"step {p.step} of {p.steps}, loss {p.loss:.3f}, {p.left:.0f} s left", flush=True)
            if p.saved
            else None
        ),
        stop_after=stop_after,
    )
    if stop_after is not None and stop_after < steps:
        return model.eval()
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, kept)
    resume.unlink(missing_ok=True)
    return start(name, data, place, steps)


@cache
def cifar(name: str, limit: int = 2000) -> Data:
    """CIFAR-10, with accuracy on the first test pictures."""
    return picture_data(labelled("cifar10", FRAMING, limit=limit), FRAMING, outputs=10, batch=BATCH[name])


def recipe(name: str, steps: int) -> list[Step]:
    """Prune, distil from the network as it was, int8; the transformer's residual stream is pruned too."""
    prune = Prune(keep=0.5) if name == "resnet" else Prune(keep=0.5, stream=True)
    return [prune, Distil(untouched, steps=steps, lr=2e-3), Quantise(samples=256)]


def main() -> None:
    """Shrink it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("resnet", "vit"))
    parser.add_argument("--start", type=int, help="training steps of the network that is shrunk")
    parser.add_argument("--steps", type=int, default=600, help="training steps of the smaller one")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the bundle")
    given = parser.parse_args()
    data = cifar(given.model)
    model = start(given.model, data, cache_folder() / "shrink", given.start or STEPS[given.model])
    shrunk = shrink(model, recipe(given.model, given.steps), data, tell=print)
    save_bundle(shrunk, given.out, framing=FRAMING, origin=origin_of(build(given.model)), overwrite=True)
    print(f"{given.out}: {1 / shrunk.last.untouched.median:.2f} times as fast, {shrunk.lost:+.1f} points")


if __name__ == "__main__":
    main()
