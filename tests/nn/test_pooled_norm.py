import pytest
import torch

from foveal.models.backbone.afc import AFC
from foveal.models.backbone.lsnet import LSNet
from foveal.models.backbone.unireplknet import UniRepLKNet


@pytest.mark.parametrize(
    ("build", "blocks"),
    [(AFC, {"depths": (1, 1)}), (LSNet, {"depths": (1, 1)}), (UniRepLKNet, {"kernel_sizes": ((3,), (3,))})],
)
def test_a_pyramid_without_its_last_stage_pools_what_is_left(build, blocks):
    model = build(dims=(8, 16), **blocks, num_classes=3).eval()
    x = torch.randn(2, 3, 64, 64)
    assert model(x).shape == (2, 3)
    pooled = model.pool(torch.randn(2, 16, 2, 2))
    assert pooled.shape == (2, 16)
    model.prune_intermediate_layers([0])
    assert model(x).shape == (2, 8)
