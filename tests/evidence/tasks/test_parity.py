import torch
import torch.nn.functional as F
from torch import nn

from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.tasks import parity


class Counting(nn.Module):
    """Right for every sequence."""

    def forward(self, x):
        return F.one_hot(x[..., 2].sum(1).long() % 2, 2).float()


def loss(model, pair):
    return F.cross_entropy(model(pair[0]), pair[1])


def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(parity.LENGTH * parity.SYMBOLS, 2))


def test_sequences_depend_on_the_seed_alone_and_labels_count_ones():
    (x, labels), (again, _), (others, _) = (parity.sequences(50, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(x, again)
    assert not torch.equal(x, others)
    assert x.shape == (50, 16, 3)
    assert torch.equal(x.sum(2), torch.ones(50, 16))
    assert labels.tolist() == [sum(symbol.argmax() == 2 for symbol in row).item() % 2 for row in x]


def test_accuracy_is_a_hundred_for_who_counts_and_chance_for_who_does_not():
    assert parity.accuracy(Counting()) == 100
    assert 45 < parity.accuracy(build()) < 55
    half = 100 * parity.sequences(2000, seed=parity.TEST)[1].float().mean()
    assert 48 < half < 52


def test_trainings_of_one_seed_are_shared_and_repeatable():
    with rehearsal():
        first = parity.trained(build, loss, steps=2, seed=0)
        assert parity.trained(build, loss, steps=2, seed=0) is first
        other = parity.trained(build, loss, steps=2, seed=1)
    with rehearsal():
        again = parity.trained(build, loss, steps=2, seed=0)
    assert again is not first
    assert torch.equal(again[1].weight, first[1].weight)
    assert not torch.equal(other[1].weight, first[1].weight)
