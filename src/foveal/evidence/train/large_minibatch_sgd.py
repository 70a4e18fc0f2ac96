"""Evidence for LargeMinibatchSGD: a small ResNet with batches of 16, and with 16 times as many at equal epochs.

All ways have the paper's rate of 0.1 for 256 pictures, Nesterov momentum, no decay of norms and zeros in the last
norms. Batch norms see 16 pictures in all of them. Only the batch, the rate and its warm-up differ.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import STEPS, cached, rehearsing
from foveal.evidence.tasks.cifar10 import NEEDS, accuracy, pictures
from foveal.record import bound, equal, kept
from foveal.train.large_minibatch_sgd import (
    accumulate,
    corrected_step,
    decay_groups,
    large_minibatch_rate,
    zero_last_norms_,
)

if TYPE_CHECKING:
    from collections.abc import Callable

PICTURES, EPOCHS, WARMUP = 4000, 28, 2
MILESTONES = (18, 24)
SMALL, TIMES = 16, 16
DATA = f"{EPOCHS} epochs of {PICTURES:,} pictures of CIFAR-10, the first 2,000 test pictures; paired"


class Block(nn.Module):
    """Two convolutions with batch norms and a shortcut: (B, C, H, W) to (B, C', H/2, W/2).

    Args:
        dim: C.
        out: C'.
    """

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(dim, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.shortcut = nn.Conv2d(dim, out, 1, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(self.shortcut(x) + y)


def network() -> nn.Module:
    """A small ResNet: (B, 3, 32, 32) to (B, 10).

    Returns:
        The network, with drawn weights.
    """
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return zero_last_norms_(nn.Sequential(stem, Block(16, 32), Block(32, 64), head))


def rate_of(way: str, epoch: float) -> float:
    """Learning rate of a way to train.

    Args:
        way: "small"; "large", with rate and warm-up of the paper; "unscaled", a large batch at the small one's rate.
        epoch: epochs done.

    Returns:
        The rate.
    """
    batch = SMALL * TIMES if way == "large" else SMALL
    warmup = WARMUP if way == "large" else 0
    return large_minibatch_rate(epoch, batch=batch, worker=SMALL, warmup=warmup, milestones=MILESTONES)


@cached(maxsize=16)
def _reached(way: str, seed: int) -> float:
    """Accuracy of the network trained in a way, percent."""
    x, labels = pictures("train", limit=PICTURES)
    batch = min(SMALL if way == "small" else SMALL * TIMES, len(x))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network().train()
        optimizer = torch.optim.SGD(decay_groups(model), 1.0, momentum=0.9, nesterov=True)
        each = len(x) // batch
        updates = STEPS if rehearsing() else EPOCHS * each
        for update in range(updates):
            if update % each == 0:
                order = torch.randperm(len(x))
            rows = order[update % each * batch :][:batch]
            flipped = torch.where(torch.rand(batch, 1, 1, 1) < 0.5, x[rows].flip(-1), x[rows])
            for group in optimizer.param_groups:
                group["lr"] = rate_of(way, update / each)
            optimizer.zero_grad()
            accumulate(model, F.cross_entropy, flipped, labels[rows], worker=SMALL)
            optimizer.step()
    return accuracy(model.eval())


def _above(way: str, rival: str, seed: int) -> float:
    return _reached(way, seed) - _reached(rival, seed)


def _gradients(name: str, learn: Callable[[nn.Module, Tensor, Tensor], object]) -> Tensor:
    """Gradients of a network without batch norms, each tensor's over its largest value in the whole batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        words: dict[str, Any] = {"img_size": 32, "patch_size": 8} if name.startswith("vit") else {}
        model = timm.create_model(name, num_classes=10, **words)
        x = torch.randn(13, 3, 32, 32)
    labels = torch.arange(13) % 10
    whole = torch.autograd.grad(F.cross_entropy(model(x), labels), list(model.parameters()))
    learn(model, x, labels)
    pairs = zip(model.parameters(), whole, strict=True)
    return torch.cat([p.grad.flatten() / g.abs().max() for p, g in pairs if p.grad is not None])


def _at_once(model: nn.Module, x: Tensor, labels: Tensor) -> None:
    F.cross_entropy(model(x), labels).backward()


def _in_parts(model: nn.Module, x: Tensor, labels: Tensor) -> None:
    accumulate(model, F.cross_entropy, x, labels, worker=4)


def _walked(*, corrected: bool) -> Tensor:
    """Weights after a warm-up of random gradients, by PyTorch's SGD or by the other form with its correction."""
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(30, 50, generator=generator, dtype=torch.float64)
    rates = [large_minibatch_rate(t / 5, batch=512) for t in range(len(gradients))]
    weight = nn.Parameter(torch.zeros(50, dtype=torch.float64))
    if not corrected:
        optimizer = torch.optim.SGD([weight], 1.0, momentum=0.9)
        for lr, weight.grad in zip(rates, gradients, strict=True):
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
        return weight.detach()
    w, velocity, before = weight.detach(), torch.zeros(50, dtype=torch.float64), rates[0]
    for lr, gradient in zip(rates, gradients, strict=True):
        w, velocity = corrected_step(w, gradient, velocity, lr=lr, before=before)
        before = lr
    return w


def _zeroed() -> float:
    """How many norms are zeroed other than those that timm zeroes in ResNet-50, or the reverse."""
    with torch.random.fork_rng(devices=[]):
        ours, theirs = (timm.create_model("resnet50", zero_init_last=zero) for zero in (False, True))
    zero_last_norms_(ours)
    found = [
        {n for n, p in model.named_parameters() if p.ndim == 1 and n.endswith("weight") and not p.any()}
        for model in (ours, theirs)
    ]
    return float(len(found[0] ^ found[1]) + (len(found[1]) != 16))


CLAIMS = (
    kept(
        f"Batches of {SMALL * TIMES} with linear scaling and warm-up stay within 1 point of batches of {SMALL}.",
        paper="no loss of accuracy up to 8192",
        quality=partial(_above, "large", "small"),
        at_least=-1.0,
        unit="points",
        data=DATA,
        needs=NEEDS,
        clause=1,
    ),
    kept(
        f"Without scaling, batches of {SMALL * TIMES} are worse than with it.",
        paper="linear scaling is needed",
        quality=partial(_above, "large", "unscaled"),
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=NEEDS,
        clause=2,
    ),
    *(
        equal(
            f"{said}: gradients of 13 pictures in parts of 4 are those of one batch.",
            paper="same gradient",
            ours=partial(_gradients, name, _in_parts),
            theirs=partial(_gradients, name, _at_once),
            tolerance=1e-5,
            clause=3,
        )
        for name, said in {"vit_tiny_patch16_224": "ViT-Ti", "convnext_atto": "ConvNeXt-Atto"}.items()
    ),
    equal(
        "Momentum that holds the rate, with its correction, gives the weights of PyTorch's SGD through a warm-up.",
        paper="equations 9 and 10",
        ours=partial(_walked, corrected=True),
        theirs=partial(_walked, corrected=False),
        tolerance=1e-12,
        beyond="correct momentum when the rate changes",
    ),
    bound(
        "ResNet-50: the norms that are zeroed are the 16 that timm zeroes.",
        paper="the last norm of each residual block",
        value=_zeroed,
        at_most=0,
        unit="others",
        beyond="zero-initialise the last BN gamma of residual blocks",
    ),
)
