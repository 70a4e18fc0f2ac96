import timm
import torch
from torch import nn

from foveal.measure.cost import count_parameters
from foveal.models.backbone.vcmamba import ConvBlock, MambaBlock, VCMamba, vcmamba_m, vcmamba_s

TINY = {"dims": (4, 4, 8, 8), "depths": (1, 1, 1, 2)}


def test_parameters_are_those_of_the_authors():
    """Blocks of one stage are alike, so a few of them say how many parameters all have."""
    depths, fewest = (4, 4, 12, 8), [1, 1, 1, 5]
    found = least = count_parameters(vcmamba_s(depths=fewest))
    for i, depth in enumerate(depths):
        one_more = [blocks + (j == i) for j, blocks in enumerate(fewest)]
        found += (depth - fewest[i]) * (count_parameters(vcmamba_s(depths=one_more)) - least)
    assert found == 10_478_720


def test_scans_end_the_last_stage():
    model = VCMamba((4, 4, 8, 8), (1, 1, 1, 3), scanning=2, state=2)
    kinds = [type(layer) for layer in model.stages[3] if isinstance(layer, ConvBlock | MambaBlock)]
    assert kinds == [ConvBlock, MambaBlock, MambaBlock]
    assert not any(isinstance(m, MambaBlock) for stage in model.stages[:3] for m in stage.modules())


def test_features_for_timm():
    model = timm.create_model("vcmamba_m", features_only=True, **TINY).eval()
    maps = model(torch.rand(1, 3, 70, 37))
    assert [tuple(found.shape) for found in maps] == [(1, 4, 18, 10), (1, 4, 9, 5), (1, 8, 5, 3), (1, 8, 3, 2)]


def test_logits_are_the_mean_of_two_classifiers():
    torch.manual_seed(0)
    model = vcmamba_m(num_classes=3, **TINY).eval()
    x = torch.rand(2, 3, 32, 32)
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    assert pooled.shape == (2, 8)
    torch.testing.assert_close(model(x), (model.head(pooled) + model.head_dist(pooled)) / 2)
    model.reset_classifier(0)
    assert model.head_dist is None
    assert isinstance(model.get_classifier(), nn.Identity)
    torch.testing.assert_close(model(x), pooled)


def test_one_classifier_on_demand():
    torch.manual_seed(0)
    model = vcmamba_m(num_classes=3, distilled=False, **TINY).eval()
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model(x), model.head(model.forward_features(x).mean((2, 3))))


def test_positions_are_resized():
    torch.manual_seed(0)
    model = vcmamba_s(num_classes=3, **TINY).eval()
    place = next(layer for layer in model.stages[3] if type(layer).__name__ == "_Positions")
    x = torch.rand(1, 8, 7, 7)
    torch.testing.assert_close(place(x), x + place.embed)
    assert place(torch.rand(1, 8, 3, 5)).shape == (1, 8, 3, 5)
