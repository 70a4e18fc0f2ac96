import pytest
import torch
from torch import nn

from foveal.evidence.rehearsal import STEPS, cached, rehearsal, rehearsing
from foveal.evidence.short_run import short_run


def test_a_rehearsal_ends_with_its_context():
    assert not rehearsing()
    with pytest.raises(ZeroDivisionError), rehearsal():
        assert 1 / (not rehearsing())
    assert not rehearsing()


def test_training_takes_two_steps():
    seen = []

    def batches(step):
        seen.append(step)
        return torch.ones(2, 3)

    with rehearsal():
        short_run(nn.Linear(3, 1), batches, lambda model, x: model(x).mean(), steps=50)
        short_run(nn.Linear(3, 1), batches, lambda model, x: model(x).mean(), seconds=1e9)
    assert seen == [*range(STEPS)] * 2


def test_nothing_of_a_rehearsal_outlives_it():
    calls = []

    @cached()
    def measured(x):
        calls.append(x)
        return len(calls)

    with rehearsal():
        assert (measured(1), measured(1)) == (1, 1)
    assert (measured(1), measured(1)) == (2, 2)
    with rehearsal():
        assert measured(1) == 3
    assert measured(1) == 2
