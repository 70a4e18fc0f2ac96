import torch
import torch.nn.functional as F

from foveal.nn.patch_merging import PatchMerging
from foveal.nn.vmamba_names import as_convolutions, interleaved


def test_a_merging_of_maps_on_top_of_each_other():
    torch.manual_seed(0)
    x, norm, bias, weight = torch.randn(2, 3, 4, 6), torch.randn(12), torch.randn(12), torch.randn(5, 12)
    found = as_convolutions({"s.0.norm.weight": norm, "s.0.norm.bias": bias, "s.0.reduction.weight": weight})
    merging = PatchMerging(3, 5)
    merging.load_state_dict({name.removeprefix("s.0."): value for name, value in found.items()})
    last = x.permute(0, 2, 3, 1)
    # the rows of a column follow each other
    stacked = torch.cat([last[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
    want = F.linear(F.layer_norm(stacked, (12,), norm, bias), weight)
    torch.testing.assert_close(merging(x), want.permute(0, 3, 1, 2))
    assert sorted(interleaved(torch.arange(8)).tolist()) == list(range(8))


def test_shapes_of_what_stands_outside_a_merging():
    weights = {"a.dt_bias": torch.zeros(4, 3), "a.fc.weight": torch.zeros(5, 4), "a.A_log": torch.zeros(4, 2)}
    weights |= {
        "head.weight": torch.zeros(5, 4),
        "a.norm.weight": torch.zeros(8),
        "a.conv.weight": torch.zeros(4, 1, 3, 3),
    }
    shapes = {name: tuple(value.shape) for name, value in as_convolutions(weights).items()}
    assert shapes == {
        "a.dt_bias": (12,),
        "a.fc.weight": (5, 4, 1, 1),
        "a.A_log": (4, 2),
        "head.weight": (5, 4),
        "a.norm.weight": (8,),
        "a.conv.weight": (4, 1, 3, 3),
    }
