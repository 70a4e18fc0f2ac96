import pytest
import torch

from foveal.models.backbone.a2mamba import METHOD, A2Mamba, a2mamba_n, a2mamba_s

TINY = {"dims": (8, 16), "depths": (1, 1), "num_heads": (2, 4)}


@pytest.mark.parametrize("kind", ["equal", "smaller"])
def test_claims_that_cost_nothing_hold(kind):
    # those with a dilation are tested in tests/nn/test_neighbourhood.py
    claims = [claim for claim in METHOD.claims if claim.kind == kind and "dilation" not in claim.says]
    assert claims
    for claim in claims:
        ours, theirs = claim.check["ours"](), claim.check["theirs"]()
        if kind == "equal":
            assert (ours - theirs).abs().max() <= claim.check["tolerance"] * theirs.abs().max(), claim.says
        else:
            assert theirs >= claim.check["at_least"] * ours, claim.says


@pytest.mark.parametrize("size", [(32, 32), (57, 41), (5, 70)])
def test_any_size(size):
    model = a2mamba_n(**TINY, num_classes=4).eval()
    maps = model.forward_intermediates(torch.rand(1, 3, *size), intermediates_only=True)
    assert [m.shape[1] for m in maps] == [8, 16]
    assert model(torch.rand(1, 3, *size)).shape == (1, 4)


def test_the_head_projects_before_it_pools():
    model = a2mamba_n(**TINY, num_classes=4).eval()
    x = model.forward_features(torch.rand(2, 3, 16, 16))
    assert model.forward_head(x, pre_logits=True).shape == (2, 1024)
    model.reset_classifier(0)
    assert model.forward_head(x).shape == (2, 1024)
    assert model.get_classifier() is model.head


def test_only_the_last_stage_attends_to_all():
    model = A2Mamba((8, 16), (2, 1), (2, 2))
    assert [any(hasattr(m, "bias_all") for m in stage.modules()) for stage in model.stages] == [False, True]
    model = A2Mamba((8, 16), (2, 1), (2, 2), attend_all=False)
    assert not any(hasattr(m, "bias_all") for m in model.modules())


def test_stages_scale_their_shortcut_or_their_branch():
    torch.manual_seed(0)
    model = a2mamba_s(dims=(8, 8, 8), depths=(1, 1, 1), num_heads=(2, 2, 2))
    assert [stage[-1].shortcut for stage in model.stages] == [False, False, True]
    block, x = model.stages[2][-1].eval(), torch.randn(1, 8, 3, 3)
    before = block(x)
    with torch.no_grad():
        block.scale2.weight.zero_()
    assert (block(x) - before).abs().max() > 0.1
    model = A2Mamba((8,), (1,), (2,), scaled=("branch",), scale_start=(0.0,))
    block = model.stages[0][-1].eval()
    with torch.no_grad():
        for conv in (block.local1, block.local2):
            conv.weight.zero_()
    assert torch.equal(block(x), x)
