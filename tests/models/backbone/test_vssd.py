import pytest
import timm
import torch
from released import same_names_and_shapes, with_batch_norms

from foveal.measure.cost import count_macs
from foveal.models.backbone.vssd import VSSD, from_authors, vssd_micro
from foveal.nn.nc_ssd import NCSSD


def tiny(**arguments):
    torch.manual_seed(0)
    return VSSD(16, (1, 1, 1, 1), (2, 2, 4, 4), state=4, num_classes=5, **arguments).eval()


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


def test_no_pictures_give_no_logits():
    assert tiny()(torch.rand(0, 3, 32, 32)).shape == (0, 5)


def test_numbers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="depths and num_heads must have the same length, got 2 and 3"):
        VSSD(8, (1, 1), (2, 2, 2))
    with pytest.raises(ValueError, match="num_heads must divide the channels of their stage, got 3 for 8"):
        VSSD(8, (1, 1), (3, 2))


def authors(dim, depths, heads, state=64, classes=1000):
    """Names and shapes in YuHengsss/VSSD (commit 5141d97), `VMAMBA2`; a number stands for a batch norm of so many."""
    half, last = dim // 2, dim << (len(depths) - 1)
    found = {
        "patch_embed.conv1.conv.weight": (half, 3, 3, 3),
        "patch_embed.conv1.norm": half,
        "patch_embed.conv2.0.conv.weight": (half, half, 3, 3),
        "patch_embed.conv2.0.norm": half,
        "patch_embed.conv2.1.conv.weight": (half, half, 3, 3),
        "patch_embed.conv2.1.norm": half,
        "patch_embed.conv3.0.conv.weight": (4 * dim, half, 3, 3),
        "patch_embed.conv3.0.norm": 4 * dim,
        "patch_embed.conv3.1.conv.weight": (dim, 4 * dim, 1, 1),
        "patch_embed.conv3.1.norm": dim,
        "norm.weight": (last,),
        "norm.bias": (last,),
        "head.weight": (classes, last),
        "head.bias": (classes,),
    }
    for i, depth in enumerate(depths):
        width, inner, count = dim << i, 2 * (dim << i), heads[i]
        block = {"mlp.fc1.weight": (4 * width, width), "mlp.fc1.bias": (4 * width,)}
        block |= {"mlp.fc2.weight": (width, 4 * width), "mlp.fc2.bias": (width,)}
        for k in (1, 2):
            block |= {f"cpe{k}.weight": (width, 1, 3, 3), f"cpe{k}.bias": (width,)}
            block |= {f"norm{k}.weight": (width,), f"norm{k}.bias": (width,)}
        if i == len(depths) - 1:
            block |= {"attn.to_qkv.weight": (3 * width, width)}
            block |= {"attn.to_out.weight": (width, width), "attn.to_out.bias": (width,)}
        else:
            block |= {
                "attn.dt_bias": (count,),
                "attn.A_log": (count,),
                "attn.D": (count,),
                "attn.in_proj.weight": (2 * inner + 2 * state + count, width),
                "attn.conv2d.weight": (inner + 2 * state, 1, 3, 3),
                "attn.conv2d.bias": (inner + 2 * state,),
                "attn.norm.weight": (inner,),
                "attn.norm.bias": (inner,),
                "attn.out_proj.weight": (width, inner),
            }
            down, wide = f"layers.{i}.downsample.conv", 8 * width
            found |= {
                f"{down}.0.conv.weight": (wide, width, 1, 1),
                f"{down}.0.conv.bias": (wide,),
                f"{down}.1.conv.weight": (wide, 1, 3, 3),
                f"{down}.1.conv.bias": (wide,),
                f"{down}.2.conv.weight": (2 * width, wide, 1, 1),
                f"{down}.2.conv.bias": (2 * width,),
                f"{down}.2.norm": 2 * width,
            }
        found |= {f"layers.{i}.blocks.{j}.{name}": shape for j in range(depth) for name, shape in block.items()}
    return with_batch_norms(found)


def test_weights_of_the_authors_load():
    heads = (2, 4, 4)
    weights = {name: torch.rand(shape) for name, shape in authors(8, (1, 2, 1), heads, 3, 5).items()}
    model = VSSD(8, (1, 2, 1), heads, state=3, num_classes=5)
    model.load_state_dict(from_authors(weights))
    block, prefix = model.stages[1][2], "layers.1.blocks.1"
    assert torch.equal(block.mixer.norm.bias, weights[f"{prefix}.attn.norm.bias"])
    assert torch.equal(block.local2.bias, weights[f"{prefix}.cpe2.bias"])
    assert torch.equal(model.stages[2][1].mixer.out_proj.bias, weights["layers.2.blocks.0.attn.to_out.bias"])
    assert torch.equal(model.stages[2][0][2].bias, weights["layers.1.downsample.conv.1.conv.bias"])


def test_the_released_micro_has_the_same_names_and_shapes():
    same_names_and_shapes(vssd_micro, from_authors, authors(48, (2, 2, 8, 4), (2, 4, 8, 16), 48))
