from functools import partial

import pytest
import timm
import torch
from released import same_names_and_shapes

from foveal.measure.cost import count_macs
from foveal.models.backbone.vim import VimBlock, from_authors, vim, vim_tiny


def test_macs_grow_as_the_tokens_do():
    model = vim_tiny(num_classes=0, depth=2, dim=16)
    small, large = (count_macs(model, (1, 3, side, side)) for side in (160, 320))
    assert large / small == pytest.approx(4, rel=0.01)


def test_features_for_timm():
    arguments = {"dim": 8, "depth": 3, "state": 2, "patch_size": 8}
    model = timm.create_model("vim_small", features_only=True, out_indices=(0, 2), **arguments)
    maps = model(torch.rand(1, 3, 20, 33))
    assert [tuple(found.shape) for found in maps] == [(1, 8, 3, 5)] * 2
    assert model.feature_info.channels() == [8, 8]
    assert model.feature_info.reduction() == [8, 8]


def test_every_patch_reaches_the_class_token():
    torch.manual_seed(0)
    model = vim(8, 2, 2, 4, num_classes=3).double()
    x = torch.rand(1, 3, 12, 20, dtype=torch.float64, requires_grad=True)
    model(x).sum().backward()
    patches = x.grad.unfold(2, 4, 4).unfold(3, 4, 4).abs().amax((1, 4, 5))
    assert patches.shape == (1, 3, 5)
    assert patches.min() > 0


def test_a_block_can_be_dropped():
    torch.manual_seed(0)
    block, tokens = VimBlock(8, state=2, drop_path=0.999999), torch.rand(2, 5, 8)
    assert torch.equal(block(tokens), tokens)
    assert not torch.equal(block.eval()(tokens), tokens)


def test_later_blocks_are_dropped_more():
    model = vim_tiny(dim=8, depth=3, state=2, drop_path=0.2)
    assert [block.drop_path.drop_prob for block in model.blocks] == pytest.approx([0, 0.1, 0.2])


def authors(dim, depth, state=16, patch_size=16, classes=1000):
    """Names and shapes in hustvl/Vim (commit 095ecd3), networks "bimambav2 … abs_pos_embed_with_midclstok_div2"."""
    inner, rank = 2 * dim, -(-dim // 16)
    found = {
        "pos_embed": (1, 197, dim),
        "cls_token": (1, 1, dim),
        "patch_embed.proj.weight": (dim, 3, patch_size, patch_size),
        "patch_embed.proj.bias": (dim,),
        "norm_f.weight": (dim,),
        "head.weight": (classes, dim),
        "head.bias": (classes,),
    }
    for i in range(depth):
        mixer = {"in_proj.weight": (2 * inner, dim), "out_proj.weight": (dim, inner), "A_b_log": (inner, state)}
        mixer |= {"A_log": (inner, state)}
        for way in ("", "_b"):
            mixer |= {
                f"D{way}": (inner,),
                f"conv1d{way}.weight": (inner, 1, 4),
                f"conv1d{way}.bias": (inner,),
                f"x_proj{way}.weight": (rank + 2 * state, inner),
                f"dt_proj{way}.weight": (inner, rank),
                f"dt_proj{way}.bias": (inner,),
            }
        found |= {f"layers.{i}.mixer.{name}": shape for name, shape in mixer.items()}
        found[f"layers.{i}.norm.weight"] = (dim,)
    return found


def test_weights_of_the_authors_load():
    weights = {name: torch.rand(shape) for name, shape in authors(8, 2, 2, 4, 3).items()}
    model = vim(8, 2, 2, 4, num_classes=3)
    model.load_state_dict(from_authors(weights))
    assert torch.equal(model.blocks[1].mixer.D_b, weights["layers.1.mixer.D_b"])
    assert torch.equal(model.norm.weight, weights["norm_f.weight"])


def test_the_released_tiny_has_the_same_names_and_shapes():
    assert len(authors(192, 24)) == 415
    same_names_and_shapes(partial(vim_tiny, depth=2), from_authors, authors(192, 2))
