"""Evidence for ToP-ViM: against the dense recurrence with masked inputs, and against pruning without alignment."""

from __future__ import annotations

import copy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import cifar10
from foveal.evidence.timing import call, seconds
from foveal.measure.cost import count_macs
from foveal.models.backbone.plainmamba import PlainMambaMixer, plainmamba_l3
from foveal.models.backbone.vim import vim
from foveal.nn.gather import top
from foveal.nn.mamba import Mamba
from foveal.ops.selective_scan.reference import selective_scan_reference
from foveal.record import equal, grows, kept, smaller
from foveal.shrink.tokens.top_vim import ToPViM, mix

STEPS, FURTHER = 400, 200  # training of the full network, then of each pruned one, as in the paper


def _pruned_mixer(kind: str, *, masked: bool) -> Tensor:
    """A mixer on 60% of the tokens, or on all of them with the input of the others set to zero."""
    torch.manual_seed(0)
    size, length = (5, 7), 35
    places = top(torch.rand(2, length), 21)
    mixer: Mamba | PlainMambaMixer
    mixer = Mamba(12, state=4, bidirectional=True) if kind == "vim" else PlainMambaMixer(12, state=4)
    tokens = torch.randn(2, length, 12)
    at = places[..., None].expand(-1, -1, 12)
    with torch.no_grad():
        if not masked:
            return mix(mixer, tokens.gather(1, at), places, size, length, align=True)[0]
        mask = torch.zeros(2, 1, length).scatter(2, places[:, None], 1.0)
        x, z = mixer.in_proj(tokens).transpose(1, 2).chunk(2, dim=1)
        if isinstance(mixer, Mamba):
            y = (_masked(mixer, x, mask) + _masked(mixer, x.flip(-1), mask.flip(-1), back=True).flip(-1)) / 2
        else:
            y = mixer.scan(F.silu(mixer.conv2d((x * mask).unflatten(2, size))) * mask.unflatten(2, size)).flatten(2)
        return mixer.out_proj((y * F.silu(z)).transpose(1, 2)).gather(1, at)


def _masked(mixer: Mamba, x: Tensor, mask: Tensor, *, back: bool = False) -> Tensor:
    conv1d, _, _, decay, skip = mixer.parts(back=back)
    where = mask.expand_as(x) > 0
    near = x[where].view(*x.shape[:2], -1)  # kept tokens only, (B, E, M)
    u = torch.zeros_like(x).masked_scatter(where, F.silu(conv1d(near)[..., : near.shape[2]]))
    delta, weights_in, weights_out = mixer.project(u, back=back)
    ins, outs = weights_in[:, None], weights_out[:, None]
    return selective_scan_reference(u, delta, -decay.exp(), ins, outs, skip, delta_softplus=True)[0]


def _macs(*, pruned: bool) -> float:
    model = plainmamba_l3()
    step = ToPViM(after=(9, 18, 27), keep=0.57)
    return float(count_macs(step.apply(model) if pruned else model, (1, 3, 224, 224)))


def _timed(keep: float) -> float:
    """Seconds of twelve blocks of Vim-Ti at 512×512, with a share of the patches kept after the first block."""
    step = ToPViM(after=(1,), keep=keep)
    return seconds(call(lambda: step.apply(vim(192, 12)), 1, 3, 512, 512), repeats=2)


def _tokens(keep: float) -> float:
    """Number of tokens over the twelve blocks: 1,025 in the first, the kept ones in the others."""
    return 1025 + 11 * (1 + 1024 * keep)


@cached(maxsize=8)
def _accuracy(seed: int, *, align: bool) -> float:
    """Accuracy at 60% of the tokens, of a network trained in full and then further while pruned."""
    whole = cifar10.trained(partial(vim, 48, 4, 8, 4, 3, 10, grid=(8, 8)), steps=STEPS, seed=seed)
    pruned = ToPViM(after=(1,), keep=0.6, align=align).apply(copy.deepcopy(whole))
    inputs, labels = cifar10.pictures("train")

    def batches(step: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(labels), (64,), generator=torch.Generator().manual_seed(1000 * seed + step))
        return inputs[rows], labels[rows]

    def loss(model: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(pair[0]), pair[1])

    return cifar10.accuracy(short_run(pruned, batches, loss, steps=FURTHER, lr=5e-4, weight_decay=0.05, clip=1.0))


CLAIMS = (
    equal(
        "A Vim mixer at 60% of the tokens equals the dense one with the others masked.",
        ours=partial(_pruned_mixer, "vim", masked=False),
        theirs=partial(_pruned_mixer, "vim", masked=True),
        tolerance=1e-4,
        clause=1,
    ),
    equal(
        "A PlainMamba mixer at 60% of the tokens equals the dense one with the others masked.",
        ours=partial(_pruned_mixer, "plain", masked=False),
        theirs=partial(_pruned_mixer, "plain", masked=True),
        tolerance=1e-4,
        clause=1,
    ),
    grows(
        "The time of twelve blocks of Vim-Ti at 512×512 is proportional to the tokens that pass through them.",
        paper="41.6% fewer FLOPs at 57% kept three times",
        cost=_timed,
        sizes=(0.25, 0.5, 0.75, 1.0),
        of=_tokens,
        rounds=5,
        clause=2,
    ),
    smaller(
        "PlainMamba-L3 that keeps 57% of its tokens after each quarter takes 41.6% fewer multiply-adds.",
        paper="41.6% fewer",
        ours=partial(_macs, pruned=True),
        theirs=partial(_macs, pruned=False),
        at_least=1 / (1 - 0.416),
        beyond="FLOPs of PlainMamba-L3",
    ),
    kept(
        "A small Vim, trained further at 60% of its tokens, is more accurate with the state aligned than without.",
        paper="naive pruning fails",
        quality=lambda seed: _accuracy(seed, align=True) - _accuracy(seed, align=False),
        at_least=0.0,
        unit="points",
        data=f"CIFAR-10, {STEPS} steps of 64 whole, then {FURTHER} pruned",
        needs=cifar10.NEEDS,
        clause=3,
    ),
)
