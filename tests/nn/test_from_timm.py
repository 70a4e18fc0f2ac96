import pytest
import timm
import torch

from foveal.nn.from_timm import from_timm

SMALL = {"dims": (8, 16), "depths": (1, 2)}


def test_the_shared_words_are_timms():
    model = from_timm("mambaout_femto", in_channels=1, num_classes=5, drop_path=0.3, **SMALL)
    assert type(model) is type(timm.create_model("mambaout_femto", **SMALL))
    assert model(torch.rand(2, 1, 32, 24)).shape == (2, 5)
    # from 0 to the last block's, one value a stage
    assert model.stages[1].blocks[1].drop_path.drop_prob == pytest.approx(0.3)


def test_a_word_that_timm_does_not_know_is_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'dim'"):
        from_timm("mambaout_femto", dim=8)
