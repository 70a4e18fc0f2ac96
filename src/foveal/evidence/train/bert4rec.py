"""Evidence for BERT4Rec: sequences of a known Markov chain, beside popularity, the chain itself and a causal twin.

Each of 200 items is followed by one of five others in most cases, else by any, drawn by a popularity that falls as
1 / rank. The chain's own probabilities are the best that anyone can know; popularity counts the training sequences.
The last item of each of 2,000 further sequences is asked for, ranked among all 200.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foveal.evidence.rehearsal import cached
from foveal.evidence.short_run import short_run
from foveal.record import equal, kept
from foveal.train.bert4rec import BERT4Rec, cloze_loss, masked, ndcg, ranks

if TYPE_CHECKING:
    from foveal.record import Claim

ITEMS, LENGTH, FOLLOWERS, FAITHFUL = 200, 20, 5, 0.8
TRAIN, TEST, STEPS, BATCH, MASKED = 20_000, 2_000, 3000, 128, 0.3
DATA = f"{TRAIN} sequences of {LENGTH} of {ITEMS} items of a Markov chain, {STEPS} steps of {BATCH}; NDCG@10 of {TEST}"
NEEDS = ("minutes",)


@cached(maxsize=3)
def chain(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Transitions of a chain, and sequences.

    Args:
        seed: seed of the chain and what is drawn from it.

    Returns:
        Probabilities, (V, V); sequences to train on, (n, N), and to test, (m, N).
    """
    generator = torch.Generator().manual_seed(seed)
    popularity = 1 / torch.arange(1.0, ITEMS + 1)
    popularity /= popularity.sum()
    followers = torch.rand(ITEMS, ITEMS, generator=generator).argsort(1)[:, :FOLLOWERS]
    weights = torch.rand(ITEMS, FOLLOWERS, generator=generator) + 0.1
    weights /= weights.sum(1, keepdim=True)
    table = (1 - FAITHFUL) * popularity.expand(ITEMS, -1)
    table = table.scatter_add(1, followers, FAITHFUL * weights)
    state = torch.multinomial(popularity, TRAIN + TEST, replacement=True, generator=generator)
    places = [state]
    for _ in range(LENGTH - 1):
        state = torch.multinomial(table[state], 1, generator=generator)[:, 0]
        places.append(state)
    sequences = torch.stack(places, 1)
    return table, sequences[:TRAIN], sequences[TRAIN:]


@cached(maxsize=6)
def trained(seed: int, *, causal: bool) -> BERT4Rec:
    """A model after its steps.

    Args:
        seed: seed of chain, weights and batches.
        causal: whether it is the causal twin.

    Returns:
        The model in eval mode.
    """
    _, sequences, _ = chain(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BERT4Rec(ITEMS, LENGTH, causal=causal)

        def batches(step: int) -> Tensor:  # noqa: ARG001 - drawn from torch's seeded generator
            return sequences[torch.randint(TRAIN, (BATCH,))]

        def loss(network: nn.Module, batch: Tensor) -> Tensor:
            assert isinstance(network, BERT4Rec)
            return cloze_loss(network, batch, share=MASKED)

        short_run(model, batches, loss, steps=STEPS, lr=2e-3, weight_decay=0.01)
    return model


def scored(seed: int, by: str) -> float:
    """NDCG@10 of the last items, percent.

    Args:
        seed: seed of the chain and of the training.
        by: "masks", "causal", "popularity" or "chain".

    Returns:
        Percent.
    """
    table, train, test = chain(seed)
    before, wanted = test[:, :-1], test[:, -1]
    if by == "popularity":
        scores = torch.bincount(train.flatten(), minlength=ITEMS).float().expand(len(test), -1)
    elif by == "chain":
        scores = table[before[:, -1]]
    else:
        model = trained(seed, causal=by == "causal")
        with torch.inference_mode():
            scores = model.next_scores(before)
    return 100 * ndcg(ranks(scores, wanted))


def _over(seed: int, *, by: str, times: float) -> float:
    return scored(seed, "masks") - times * scored(seed, by)


def _claim(says: str, by: str, times: float, **words: object) -> Claim:
    return kept(
        says,
        paper="better than the rivals on four sets",
        quality=lambda seed: _over(seed, by=by, times=times),
        at_least=0.0,
        unit="points",
        data=DATA,
        needs=NEEDS,
        **words,  # type: ignore[arg-type]
    )


def _shares(*, by_hand: bool) -> Tensor:
    """Logarithms of the probabilities at masked places, as the loss means them or one by one."""
    torch.manual_seed(0)
    model, sequence = BERT4Rec(7, 6, dim=16).eval().double(), torch.arange(12).remainder(7).view(2, 6)
    if not by_hand:
        return cloze_loss(model, sequence, share=0.5, generator=torch.Generator().manual_seed(0)).detach()[None]
    shown, hidden = masked(sequence, 7, share=0.5, generator=torch.Generator().manual_seed(0))
    scores, values = model(shown).softmax(2), []
    for i in range(2):
        values += [-scores[i, t, sequence[i, t]].log() for t in range(6) if hidden[i, t]]
    return torch.stack(values).mean().detach()[None]


CLAIMS = (
    _claim("Its NDCG@10 is above twice that of a ranking by popularity.", "popularity", 2.0, clause=1),
    _claim("It reaches nine tenths of what the chain's own probabilities reach.", "chain", 0.9, clause=2),
    _claim(
        "It is above the same transformer trained to predict the next item.", "causal", 1.0, beyond="both directions"
    ),
    equal(
        "The loss is the mean over masked places, item by item.",
        ours=lambda: _shares(by_hand=False),
        theirs=lambda: _shares(by_hand=True),
        tolerance=1e-10,
        beyond="the loss",
    ),
)
