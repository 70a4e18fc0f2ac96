import copy

import pytest
import torch
from torch import nn

from foveal.nn.mamba import Mamba
from foveal.shrink.quantize.mamba import IntegerMamba, integers_


def stack(*, bidirectional=True):
    torch.manual_seed(0)
    return nn.Sequential(Mamba(8, state=4, bidirectional=bidirectional), nn.LayerNorm(8), Mamba(8, state=4))


def tokens(count=5, *, batch=3):
    return torch.randn(batch, count, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_taken_apart_it_computes_the_same(bidirectional):
    model = stack(bidirectional=bidirectional)
    whole = copy.deepcopy(model)
    mixers = integers_(model)
    assert [type(m) for m in model] == [IntegerMamba, nn.LayerNorm, IntegerMamba]
    assert mixers == [model[0], model[2]]
    torch.testing.assert_close(model(tokens()), whole(tokens()))
    assert integers_(model) == mixers


def test_a_model_without_mixers_is_refused():
    with pytest.raises(ValueError, match=r"model must hold a mixer of foveal.nn.mamba, got Linear without one; wrap"):
        integers_(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="got Mamba without one"):
        integers_(Mamba(8, state=2))
