import pytest
import timm
import torch

from foveal.measure.cost import count_macs
from foveal.models.backbone.vssd import METHOD, VSSD, vssd_micro, vssd_tiny
from foveal.nn.nc_ssd import NCSSD


def tiny(**arguments):
    torch.manual_seed(0)
    return VSSD(16, (1, 1, 1, 1), (2, 2, 4, 4), state=4, num_classes=5, **arguments).eval()


def test_parameters_are_those_of_the_authors_code():
    with torch.device("meta"):
        assert sum(p.numel() for p in vssd_micro().parameters()) == 13_512_964
        assert sum(p.numel() for p in vssd_tiny().parameters()) == 24_270_724


def test_the_last_stage_alone_has_attention():
    kinds = [{type(block.mixer).__name__ for block in stage if hasattr(block, "mixer")} for stage in tiny().stages]
    assert kinds == [{"NCSSD"}, {"NCSSD"}, {"NCSSD"}, {"Attention"}]


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (7, 90)])
def test_any_size_works(size):
    model = tiny()
    maps = model.forward_intermediates(torch.rand(2, 3, *size), intermediates_only=True)
    sides = [tuple(-(-s // (4 * 2**i)) for s in size) for i in range(4)]
    assert [tuple(m.shape) for m in maps] == [(2, 16 * 2**i, *side) for i, side in enumerate(sides)]
    assert model(torch.rand(2, 3, *size)).shape == (2, 5)


def test_a_causal_one_has_the_same_parameters_and_other_outputs():
    ours, causal = tiny(), tiny(causal=True)
    assert all(m.causal for m in causal.modules() if isinstance(m, NCSSD))
    causal.load_state_dict(ours.state_dict())
    x = torch.rand(2, 3, 32, 32)
    assert not torch.allclose(ours(x), causal(x))


def test_a_pixel_anywhere_reaches_every_cell():
    model, x = tiny().double(), torch.rand(1, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    model.stages[0](model.stem(x))[0, :, 0, 0].sum().backward()
    assert x.grad[0, :, -1, -1].abs().min() > 0


def test_drop_path_rises_to_the_last_block():
    model = tiny(drop_path=0.3)
    drops = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert drops == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_timm_builds_it_and_takes_its_maps():
    model = timm.create_model("vssd_micro", features_only=True, in_chans=1, dim=16, depths=(1, 1, 1, 1))
    assert model.feature_info.channels() == [16, 32, 64, 128]
    assert [m.shape[-1] for m in model(torch.rand(1, 1, 64, 64))] == [16, 8, 4, 2]


def test_multiply_adds_grow_with_the_tokens():
    model = tiny()
    model.stages[3] = torch.nn.Identity()  # attention, which grows with their square
    model.norm, model.head = torch.nn.Identity(), torch.nn.Identity()
    assert count_macs(model, (1, 3, 128, 64)) == 2 * count_macs(model, (1, 3, 64, 64))


def test_the_claims_would_notice_a_wrong_answer():
    claims = {c.says: c.check for c in METHOD.claims if c.kind == "equal"}
    outcomes = [(check["ours"](), check["theirs"]()) for check in claims.values()]
    assert len(outcomes) == 3
    for ours, theirs in outcomes:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(ours, theirs.flip(1), rtol=1e-2, atol=1e-2)


def test_numbers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="depths and num_heads must be equally many, got 2 and 3"):
        VSSD(8, (1, 1), (2, 2, 2))
    with pytest.raises(ValueError, match="num_heads must divide the channels of their stage, got 3 for 8"):
        VSSD(8, (1, 1), (3, 2))
