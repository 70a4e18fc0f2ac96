import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.ghostnet import GhostModuleV3
from torch import nn

from foveal.evidence.shrink.distill.ghostnetv3 import _mixed
from foveal.shrink.distill.distillation import Views, soft_targets
from foveal.shrink.distill.ghostnetv3 import STAGES, FoldBranches, _settled, ghostnet, taught


def small():
    torch.manual_seed(0)
    return _settled(ghostnet(0.25, stages=STAGES[1:4], stem_stride=1, num_classes=3), 0)


@pytest.mark.parametrize("name", ["ghostnetv3_130", "ghostnetv2_130"])
def test_the_table_builds_timms_networks(name):
    with torch.device("meta"):
        ours, theirs = ghostnet(1.3, branches="v3" in name), timm.create_model(name)
    assert {n: p.shape for n, p in ours.state_dict().items()} == {n: p.shape for n, p in theirs.state_dict().items()}


def test_folding_keeps_outputs_and_the_network_it_was_given():
    model = small()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    x = torch.randn(2, 3, 13, 9)
    folded = FoldBranches().apply(model)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)
    assert not folded.training
    assert all(torch.equal(model.state_dict()[name], x) for name, x in before.items())
    assert sum(p.numel() for p in folded.parameters()) < sum(p.numel() for p in model.parameters())


def test_a_folded_kernel_is_the_sum_of_its_branches():
    model = small()
    ghost = next(m for m in model.modules() if isinstance(m, GhostModuleV3))
    channels = ghost.cheap_rpr_skip.num_features
    kernel, bias = torch.zeros(channels, 1, 3, 3), torch.zeros(channels)
    one = torch.zeros(1, 1, 3, 3)
    one[..., 1, 1] = 1
    parts = [(branch.conv.weight, branch.bn1) for branch in ghost.cheap_rpr_conv]
    parts += [
        (F.pad(ghost.cheap_rpr_scale.conv.weight, [1] * 4), ghost.cheap_rpr_scale.bn1),
        (one, ghost.cheap_rpr_skip),
    ]
    for weight, norm in parts:
        slope = norm.weight / (norm.running_var + norm.eps).sqrt()
        kernel = kernel + slope.view(-1, 1, 1, 1) * weight
        bias = bias + norm.bias - slope * norm.running_mean
    folded = next(m for m in FoldBranches().apply(model).modules() if isinstance(m, GhostModuleV3))
    torch.testing.assert_close(folded.cheap_operation[0].weight, kernel)
    torch.testing.assert_close(folded.cheap_operation[0].bias, bias)


def test_the_loss_weighs_labels_and_teacher():
    s, t, y = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4), torch.arange(5) % 4
    views = Views(s, y, s, t)
    torch.testing.assert_close(taught(views, alpha=0.0), F.cross_entropy(s, y))
    torch.testing.assert_close(taught(views, alpha=1.0, temperature=2.0), soft_targets(s, t, temperature=2.0))
    torch.testing.assert_close(taught(views, alpha=0.3), 0.7 * F.cross_entropy(s, y) + 0.3 * soft_targets(s, t))


def test_mixing_keeps_the_share_it_states():
    x = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 16, 12)
    seen = set()
    for seed in range(8):
        mixed, first, second, share = _mixed(x, torch.arange(6), torch.Generator().manual_seed(seed))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), share * first + (1 - share) * second)
        seen.add(bool((mixed == mixed.round()).all()))
    assert seen == {True, False}


def test_what_cannot_be_folded_raises():
    with pytest.raises(TypeError, match="model must be a GhostNetV3, got Linear; build one with branches=True"):
        FoldBranches().apply(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="the branches are folded already; use the network as it is"):
        FoldBranches().apply(FoldBranches().apply(small()))
