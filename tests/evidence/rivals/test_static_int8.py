import pytest
import torch

from foveal.evidence.rivals.static_int8 import static_int8
from foveal.models.restore.quicksrnet import QuickSRNet


@pytest.mark.slow
def test_eight_bits_are_near_and_not_equal():
    torch.manual_seed(0)
    model = QuickSRNet(2).eval()
    x = torch.rand(1, 3, 21, 34)
    eight = static_int8(model, torch.rand(4, 3, 32, 32))
    with torch.inference_mode():
        difference = (eight(x) - model(x)).abs()
    assert 0 < difference.mean() < 0.03
