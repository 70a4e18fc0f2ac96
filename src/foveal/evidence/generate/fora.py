"""Evidence for FORA: a plain loop, counted calls, and digits drawn by a small diffusion transformer.

The network is a DiT of four layers with adaptive norms and gates, conditioned on the class, on MNIST's digits halved to
14×14 pixels. DDIM draws from the same noise for all: the full run of 30 steps, the run in which blocks run every third
time, and the rival, a run of 10 steps, whose blocks run as often. diffusers is no dependency; a loop without hooks,
with the outputs of order 0 in a list, stands here for its TaylorSeer cache of order 0, which was run by hand.

Data: see `foveal.evidence.tasks.mnist`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import mnist
from foveal.generate.fora import fora
from foveal.nn.unet import sinusoids
from foveal.record import equal, faster, kept
from foveal.train.diffusion import cosine_schedule, denoising_loss, sample

if TYPE_CHECKING:
    from collections.abc import Callable

NEEDS = mnist.NEEDS
DIM, DEPTH, SIDE, PATCH = 64, 4, 14, 2
TRAINED, STEPS, EVERY, DRAWN = 500, 30, 3, 100
SCHEDULE = cosine_schedule()


class _Attention(nn.Module):
    """(B, N, C) to the same, four heads."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class _Layer(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.attn = _Attention(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU("tanh"), nn.Linear(4 * dim, dim))
        self.modulation = nn.Linear(dim, 6 * dim)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, embedded: Tensor, kept: list[Tensor] | None = None, *, full: bool = True) -> Tensor:
        """Tokens to the same; `kept` holds the blocks' outputs, appended where `full`, else read from its front."""
        a1, b1, g1, a2, b2, g2 = self.modulation(embedded)[:, None].chunk(6, -1)
        for block, a, b, g in ((self.attn, a1, b1, g1), (self.mlp, a2, b2, g2)):
            normal = self.norm(x) * (1 + a) + b
            out = block(normal) if full or kept is None else kept.pop(0)
            if kept is not None:
                kept.append(out)
            x = x + g * out
        return x


class _DiT(nn.Module):
    """Noisy pictures (B, 1, 14, 14), times (B,) and classes (B,) to a prediction like the pictures."""

    def __init__(self, dim: int = DIM) -> None:
        super().__init__()
        self.embed, self.dim = nn.Conv2d(1, dim, PATCH, PATCH), dim
        self.places = nn.Parameter(0.02 * torch.randn((SIDE // PATCH) ** 2, dim))
        self.time = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.classes = nn.Embedding(10, dim)
        self.layers = nn.ModuleList([_Layer(dim) for _ in range(DEPTH)])
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, PATCH**2)

    def forward(
        self, x: Tensor, t: Tensor, classes: Tensor, kept: list[Tensor] | None = None, *, full: bool = True
    ) -> Tensor:
        embedded = F.silu(self.time(sinusoids(t, self.dim)) + self.classes(classes))
        tokens = self.embed(x).flatten(2).mT + self.places
        for layer in self.layers:
            tokens = layer(tokens, embedded, kept, full=full)
        pixels = self.head(self.norm(tokens)).mT.unflatten(2, (SIDE // PATCH, -1))
        return torch.pixel_shuffle(pixels, PATCH)


class _Plainly(nn.Module):
    """A network whose blocks' outputs are handed around by hand: run every N-th step, taken from a list in between."""

    def __init__(self, network: _DiT, every: int) -> None:
        super().__init__()
        self.network, self.every, self.step = network, every, 0
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor, classes: Tensor) -> Tensor:
        full = self.step % self.every == 0
        if full:
            self.kept = []
        self.step += 1
        out: Tensor = self.network(x, t, classes, self.kept, full=full)
        return out


@cached(maxsize=1)
def _drawn() -> _DiT:
    """A network with drawn weights, also of modulation and gates."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _DiT()
        for layer in network.layers:
            nn.init.normal_(layer.modulation.weight, std=0.2)  # type: ignore[arg-type,union-attr]
    return network.eval()


@cached(maxsize=3)
def _trained(seed: int) -> _DiT:
    shown, labels = mnist.digits("train")
    x, y = torch.from_numpy(shown)[:, None].float() / 255, torch.from_numpy(labels)
    x = 2 * F.avg_pool2d(x, 2) - 1

    def batches(step: int) -> tuple[Tensor, Tensor]:  # noqa: ARG001 - drawn from torch's seeded generator
        rows = torch.randint(len(y), (64,))
        return x[rows], y[rows]

    def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return denoising_loss(network, batch[0], SCHEDULE, condition=batch[1], predicted="v", norm=F.mse_loss)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _DiT()
        short_run(network, batches, loss, steps=TRAINED, lr=2e-3, clip=1.0)
    return network


def _pictures(network: nn.Module, *, steps: int = STEPS, seed: int = 0, count: int = DRAWN) -> Tensor:
    """Digits of all classes, from the noise of a seed."""
    noise = torch.randn(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    return sample(network, noise, SCHEDULE, steps=steps, condition=torch.arange(count) % 10, predicted="v")


def _repeated(network: nn.Module, every: int, **words: int) -> Tensor:
    with fora(network, every):
        return _pictures(network, **words)


def _calls(steps: int, every: int) -> Tensor:
    """How often each of the eight blocks ran."""
    network = _drawn()
    with fora(network, every) as cache:
        _pictures(network, steps=steps, count=1)
    return torch.tensor(list(cache.calls.values()))


def _near(ours: Tensor, theirs: Tensor) -> float:
    """PSNR of pictures in [-1, 1], dB."""
    return float(-10 * ((ours - theirs) / 2).square().mean().log10())


def _deviation(seed: int) -> float:
    """PSNR of repeated blocks' pictures beside the full run's."""
    network = _trained(seed)
    return _near(_repeated(network, EVERY, seed=seed), _pictures(network, seed=seed))


def _nearer(seed: int) -> float:
    """That less the PSNR of a run with a third of the steps."""
    network = _trained(seed)
    few = _pictures(network, steps=2 if rehearsing() else STEPS // EVERY, seed=seed)
    return _deviation(seed) - _near(few, _pictures(network, seed=seed))


def _timed(every: int) -> Callable[[], Any]:
    return lambda: _repeated(_drawn(), every, count=16)


CASES = ((30, 3), (7, 3), (10, 4), (5, 1), (4, 9))
WORDS: dict[str, Any] = {
    "data": f"MNIST at 14×14, {TRAINED} steps of 64; {DRAWN} digits by {STEPS} steps of DDIM",
    "needs": NEEDS,
}
CLAIMS = (
    equal(
        "With N = 1 samples are those of the network, bit for bit.",
        ours=lambda: _repeated(_drawn(), 1, count=4),
        theirs=lambda: _pictures(_drawn(), count=4),
        tolerance=0.0,
        clause=1,
    ),
    equal(
        "Attention and MLP of each layer run ⌈T/N⌉ times, for T and N that divide each other or not.",
        ours=lambda: torch.stack([_calls(*case) for case in CASES]),
        theirs=lambda: torch.tensor([[-(-steps // every)] * 2 * DEPTH for steps, every in CASES]),
        tolerance=0.0,
        clause=2,
    ),
    equal(
        "With N = 3 samples are those of a plain loop of order 0, on the same schedule.",
        ours=lambda: _repeated(_drawn(), EVERY, count=4),
        theirs=lambda: _pictures(_Plainly(_drawn(), EVERY), count=4),
        tolerance=0.0,
        clause=3,
    ),
    faster(
        "Thirty steps for 16 digits take less time with N = 3.",
        paper="several times",
        ours=partial(_timed, EVERY),
        theirs=partial(_timed, 1),
        at_least=1.5,
        clause=4,
    ),
    kept(
        "Samples at N = 3 beside the full run's.",
        paper="small change of FID",
        quality=_deviation,
        at_least=15.0,
        clause=4,
        **WORDS,
    ),
    kept(
        "They are nearer to the full run's than those of a run with a third of the steps.",
        paper="small change of FID",
        quality=_nearer,
        at_least=0.0,
        clause=5,
        **WORDS,
    ),
)
