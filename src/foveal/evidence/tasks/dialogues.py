"""Conversations in seconds: emotions that persist, heard in two noisy views; accuracy in percent of the utterances.

A conversation has 24 utterances. The emotion, one of four, stays the same with probability 0.8 and else is drawn anew.
Each view (8 and 12 features) gives the emotion's prototype plus noise; in two fifths of the utterances, drawn for each
view by itself, the noise is three times as strong. Which view to trust therefore changes from utterance to utterance,
and shows only in the size of the features. Chance is 25 %.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.short_run import short_run

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

__all__ = ["CLASSES", "NEEDS", "VIEWS", "conversations", "score", "trained"]

NEEDS = ("minutes",)
VIEWS, CLASSES, LENGTH = (8, 12), 4, 24
STAY, LOUD = 0.8, 0.4  # probabilities: the emotion stays, a view's noise is strong
COUNT = {"train": 200, "test": 1000}


@cached(maxsize=2)
def conversations(part: str) -> tuple[Tensor, Tensor]:
    """Features and emotions of conversations.

    Args:
        part: "train" (200) or "test" (1,000).

    Returns:
        Features, (n, 20, 24), the two views one after the other; emotions, (n, 24) int64.
    """
    draw = torch.Generator().manual_seed(13 if part == "train" else 14)
    count = 6 if rehearsing() else COUNT[part]
    fresh = torch.randint(CLASSES, (count, LENGTH), generator=draw)
    stays = torch.rand(count, LENGTH, generator=draw) < STAY
    emotions = [fresh[:, 0]]
    for t in range(1, LENGTH):
        emotions.append(torch.where(stays[:, t], emotions[-1], fresh[:, t]))
    labels = torch.stack(emotions, 1)
    prototypes = torch.randn(CLASSES, sum(VIEWS), generator=torch.Generator().manual_seed(15))
    loud = torch.rand(count, LENGTH, len(VIEWS), generator=draw) < LOUD
    strength = torch.where(loud, 3.0, 1.0).repeat_interleave(torch.tensor(VIEWS), 2)
    noise = torch.randn(count, LENGTH, sum(VIEWS), generator=draw) * strength
    return (prototypes[labels] + 1.5 * noise).transpose(1, 2).contiguous(), labels


def _loss(model: Any, pair: tuple[Tensor, Tensor]) -> Tensor:
    return model.loss(*pair)


@cached(maxsize=8)
def trained(build: Callable[[], nn.Module], *, steps: int, seed: int) -> nn.Module:
    """A network trained with its own `loss`; claims about one network share it.

    Args:
        build: builder of the network, (B, 20, 24) to (B, 4, 24), with `loss(features, emotions)`.
        steps: number of steps of 16 conversations.
        seed: seed of weights and batches.

    Returns:
        The network in eval mode; do not modify it.
    """
    features, labels = conversations("train")

    def batches(step: int) -> tuple[Tensor, Tensor]:  # noqa: ARG001 - drawn from torch's seeded generator
        rows = torch.randint(len(labels), (16,))
        return features[rows], labels[rows]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return short_run(build(), batches, _loss, steps=steps, lr=5e-3, clip=1.0)


def score(model: Callable[[Tensor], Tensor]) -> float:
    """Share of the test utterances whose emotion is named.

    Args:
        model: (B, 20, 24) to (B, 4, 24).

    Returns:
        Accuracy, percent.
    """
    features, labels = conversations("test")
    with torch.inference_mode():
        return 100 * float((model(features).argmax(1) == labels).float().mean())
