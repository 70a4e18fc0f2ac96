"""Evidence of foveal.shrink.tokens.top_vim."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.models.backbone.plainmamba import PlainMambaMixer
from foveal.nn.mamba import Mamba
from foveal.record import equal, faster, kept, smaller
from foveal.shrink.tokens.top_vim import ToPViM, _mix, keep_tokens, prune_tokens

if TYPE_CHECKING:
    from collections.abc import Callable


def _pruned_mixer(kind: str, *, masked: bool) -> Tensor:
    """A mixer at 60% of the tokens; or over all of them, with the input of the others set to zero."""
    torch.manual_seed(0)
    size, length = (5, 7), 35
    places = keep_tokens(torch.rand(2, length), 21)
    mixer: Mamba | PlainMambaMixer
    mixer = Mamba(12, state=4, bidirectional=True) if kind == "vim" else PlainMambaMixer(12, state=4)
    tokens = torch.randn(2, length, 12)
    at = places[..., None].expand(-1, -1, 12)
    with torch.no_grad():
        if not masked:
            return _mix(mixer, tokens.gather(1, at), places, size, length, align=True)[0]
        mask = torch.zeros(2, 1, length).scatter(2, places[:, None], 1.0)
        x, z = mixer.in_proj(tokens).transpose(1, 2).chunk(2, dim=1)
        if isinstance(mixer, Mamba):
            y = (_masked(mixer, x, mask) + _masked(mixer, x.flip(-1), mask.flip(-1), back=True).flip(-1)) / 2
        else:
            y = mixer.scan(F.silu(mixer.conv2d((x * mask).unflatten(2, size))) * mask.unflatten(2, size)).flatten(2)
        return mixer.out_proj((y * F.silu(z)).transpose(1, 2)).gather(1, at)


def _masked(mixer: Mamba, x: Tensor, mask: Tensor, *, back: bool = False) -> Tensor:
    from foveal.ops.selective_scan.reference import selective_scan_reference

    conv1d, _, _, decay, skip = mixer.parts(back=back)
    where = mask.expand_as(x) > 0
    near = x[where].view(*x.shape[:2], -1)  # kept ones alone, (B, E, M)
    u = torch.zeros_like(x).masked_scatter(where, F.silu(conv1d(near)[..., : near.shape[2]]))
    delta, weights_in, weights_out = mixer.project(u, back=back)
    ins, outs = weights_in[:, None], weights_out[:, None]
    return selective_scan_reference(u, delta, -decay.exp(), ins, outs, skip, delta_softplus=True)[0]


_QUARTERS = ToPViM(after=(9, 18, 27), keep=0.57)


def _macs(*, pruned: bool) -> float:
    from foveal.measure.cost import count_macs
    from foveal.models.backbone.plainmamba import plainmamba_l3

    model = plainmamba_l3()
    return float(count_macs(prune_tokens(model, _QUARTERS) if pruned else model, (1, 3, 224, 224)))


def _timed(*, pruned: bool) -> Callable[[], Any]:
    from foveal.models.backbone.vim import vim

    model, x = vim(192, 6).eval(), torch.rand(1, 3, 512, 512)
    network = prune_tokens(model, ToPViM(after=(1,), keep=0.5)) if pruned else model

    def call() -> Tensor:
        with torch.inference_mode():
            return network(x)

    return call


def _advantage(seed: int) -> float:
    """Accuracy with the state aligned, less that of naive pruning, same network and same share kept."""
    from foveal.evidence.tasks.cifar10 import accuracy, train_classifier
    from foveal.models.backbone.vim import vim

    build = partial(vim, 48, 4, 8, 4, 3, 10, grid=(8, 8))
    model = train_classifier(build, steps=400, seed=seed)
    aligned, naive = (prune_tokens(model, ToPViM(after=(1,), keep=0.6, align=align)) for align in (True, False))
    return accuracy(aligned) - accuracy(naive)


CLAIMS = (
    *(
        equal(
            f"A {name} mixer at 60% of the tokens equals the dense one with the others masked.",
            ours=partial(_pruned_mixer, kind, masked=False),
            theirs=partial(_pruned_mixer, kind, masked=True),
            tolerance=1e-4,
        )
        for kind, name in (("vim", "Vim"), ("plain", "PlainMamba"))
    ),
    smaller(
        "PlainMamba-L3 that keeps 57% of its tokens after each quarter takes 41.6% fewer multiply-adds.",
        paper="41.6% fewer",
        ours=partial(_macs, pruned=True),
        theirs=partial(_macs, pruned=False),
        at_least=1 / (1 - 0.416),
    ),
    faster(
        "Half of the tokens after the first of six blocks of Vim-Ti, 512×512.",
        paper="",
        ours=partial(_timed, pruned=True),
        theirs=partial(_timed, pruned=False),
        at_least=1.25,
    ),
    kept(
        "A small Vim, trained whole, is more accurate at 60% of its tokens with the state aligned than without.",
        paper="naive pruning fails",
        quality=_advantage,
        at_least=0.0,
        unit="points",
        seeds=3,
        data="CIFAR-10, 400 steps of 64",
        needs=("minutes", "cifar10_train", "cifar10_test"),
    ),
)
