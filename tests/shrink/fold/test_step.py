import pytest
import timm
import torch
from torch import nn

from foveal.shrink.fold.step import Fold
from foveal.shrink.step import ShrinkError, noted


def warm(model):
    """Statistics and affine parts that are not those of a fresh batch norm."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            for tensor in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return model.eval()


def norms(model):
    return sum(isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) for module in model.modules())


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_byobnet"])
def test_timm_networks_keep_their_outputs_and_lose_their_batch_norms(name):
    torch.manual_seed(0)
    model, x = warm(timm.create_model(name, num_classes=7)), torch.randn(2, 3, 35, 33)
    folded = Fold().apply(model, x)
    assert norms(model) > 3  # the model given is left alone
    assert norms(folded) == 0
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_linear_layer_takes_its_batch_norm_in():
    model = warm(nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3)))
    x = torch.randn(6, 5)
    folded = Fold().apply(model, x)
    assert isinstance(folded[1], nn.Identity)
    torch.testing.assert_close(folded(x), model(x))


class TwoReaders(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.conv(x)
        return x + self.norm(x)


def test_a_layer_with_a_second_reader_is_left_with_the_reason():
    model, x = warm(TwoReaders()), torch.randn(2, 3, 9, 9)
    with noted() as notes:
        folded = Fold().apply(model, x)
    assert norms(folded) == 1
    assert any("something else reads the output of conv" in line for line in notes)
    torch.testing.assert_close(folded(x), model(x))


class Branches(nn.Module):
    """Two kernels that become one, rightly or not."""

    def __init__(self, right):
        super().__init__()
        self.a, self.b, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), right

    def forward(self, x):
        return self.a(x) + self.b(x)

    def fuse(self):
        one = nn.Conv2d(3, 4, 1)
        one.weight.data = self.a.weight.data + self.b.weight.data
        one.bias.data = self.a.bias.data + (self.b.bias.data if self.right else 1)
        return one


def test_branches_fold_by_their_own_method():
    model, x = nn.Sequential(Branches(True), nn.ReLU()).eval(), torch.randn(2, 3, 5, 5)
    folded = Fold().apply(model, x)
    assert isinstance(folded[0], nn.Conv2d)
    torch.testing.assert_close(folded(x), model(x))


def test_a_wrong_fold_is_refused():
    model = nn.Sequential(Branches(False), nn.ReLU()).eval()
    with pytest.raises(ShrinkError, match=r"outputs differ by .* leave the step out"):
        Fold().apply(model, torch.randn(2, 3, 5, 5))


def test_a_tolerance_is_above_zero():
    with pytest.raises(ValueError, match="tolerance must be above 0"):
        Fold(tolerance=0)
