"""Evidence for STree: trees against their paths one by one, and a pair of language models of characters.

Both models read Python's manual, two blocks of 64 channels and one of 32, trained alike. They continue passages of the
held-out topics. A tree has the authors' static shape, 17 drafted tokens in four levels, a chain four tokens; both take
five passes of the small model for each pass of the large one: one for each level, and one that reads what was accepted.
"""

from __future__ import annotations

from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import manual
from foveal.record import bound, equal, faster, kept
from foveal.vlm.stree import CHAIN, TREE, Decoded, StateSpaceLM, greedy, stree

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS, PROMPT, PROMPTS, COUNT, SEEDS = 600, 48, 4, 64, 3
NEEDS = ("minutes",)
DATA = (
    f"Python's manual, {STEPS} steps of 16 pieces of 128 characters; {PROMPTS} held-out passages, {COUNT} tokens each"
)
PARENTS = (-1, 0, 0, 1, 1, 2, 4, 4, 6, 8, 3)

large = partial(StateSpaceLM, len(manual.CHARACTERS), dim=64, depth=2, num_heads=4, state=16)
small = partial(StateSpaceLM, len(manual.CHARACTERS), dim=32, depth=1, num_heads=2, state=16)


def _path(node: int) -> list[int]:
    return [*(_path(PARENTS[node]) if PARENTS[node] >= 0 else []), node]


def _logits(*, together: bool) -> Tensor:
    """Logits of a random network after each node of a tree below a prompt, in one pass or path by path."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network, vocabulary = large(), len(manual.CHARACTERS)
        prompt, tokens = torch.randint(vocabulary, (37,)), torch.randint(vocabulary, (len(PARENTS),))
        if together:
            _, states = network.read(prompt, network.begin())
            return network.tree(tokens, states, torch.tensor(PARENTS))[0]
        paths = [torch.cat((prompt, tokens[_path(node)])) for node in range(len(PARENTS))]
        return torch.stack([network(path[None])[0, -1] for path in paths])


def _loss(model: nn.Module, tokens: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:])


@cached(maxsize=8)
def _trained(build: Callable[[], StateSpaceLM], seed: int) -> StateSpaceLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        short_run(model, lambda _: manual.passages("train", 16, 128), _loss, steps=STEPS, lr=4e-3, clip=1.0)
    return model


def _prompts(seed: int) -> Tensor:
    count = 1 if rehearsing() else PROMPTS
    return manual.passages("test", count, PROMPT, torch.Generator().manual_seed(100 + seed))


@cached(maxsize=8)
def _decoded(seed: int, *, tree: bool) -> tuple[Decoded, ...]:
    pair = _trained(large, seed), _trained(small, seed)
    count = 8 if rehearsing() else COUNT
    return tuple(stree(*pair, prompt, count, branches=TREE if tree else CHAIN) for prompt in _prompts(seed))


def _differing() -> float:
    """Tokens that differ from plain decoding, of trees and chains, over all seeds and passages."""
    found = 0
    for seed in range(1 if rehearsing() else SEEDS):
        for which in (False, True):
            for prompt, decoded in zip(_prompts(seed), _decoded(seed, tree=which), strict=True):
                plain = greedy(_trained(large, seed), prompt, len(decoded.tokens))
                found += int((plain != decoded.tokens).sum())
    return float(found)


def _accepted(seed: int, *, tree: bool) -> float:
    """Drafted tokens that a pass of the large model accepts, mean."""
    return fmean(number for decoded in _decoded(seed, tree=tree) for number in decoded.accepted)


def _passes(*, tree: bool) -> float:
    """Passes of the small model for each of the large one."""
    decoded = _decoded(0, tree=tree)
    return sum(one.drafts for one in decoded) / sum(one.checks for one in decoded)


def _timed(*, tree: bool) -> Callable[[], Decoded]:
    pair, prompt = (_trained(large, 0), _trained(small, 0)), _prompts(0)[0]
    return lambda: stree(*pair, prompt, COUNT, branches=TREE if tree else CHAIN)


CLAIMS = (
    equal(
        "Logits after the 11 nodes of a tree equal those of each path run by itself behind the prompt.",
        paper="exact",
        ours=partial(_logits, together=True),
        theirs=partial(_logits, together=False),
        tolerance=1e-4,
        clause=1,
    ),
    bound(
        "No token of trees or chains differs from plain greedy decoding by a trained pair, three seeds.",
        paper="lossless",
        value=_differing,
        at_most=0.0,
        unit="tokens",
        needs=NEEDS,
        clause=2,
    ),
    kept(
        "A pass of the large model accepts more drafted tokens of a tree than of a chain.",
        paper="outperforms vanilla speculative decoding",
        quality=lambda seed: _accepted(seed, tree=True) - _accepted(seed, tree=False),
        at_least=0.0,
        unit="tokens more",
        data=DATA,
        needs=NEEDS,
        clause=3,
    ),
    bound(
        "Trees take as many passes of the small model for each of the large one as chains do.",
        paper="equal draft calls",
        value=lambda: _passes(tree=True) - _passes(tree=False),
        at_least=0.0,
        at_most=0.0,
        unit="passes more",
        needs=NEEDS,
        clause=3,
    ),
    faster(
        f"Decoding {COUNT} tokens with trees takes less time than with chains.",
        paper="faster than vanilla speculative decoding",
        ours=partial(_timed, tree=True),
        theirs=partial(_timed, tree=False),
        needs=NEEDS,
        beyond="time of trees against chains",
    ),
)
