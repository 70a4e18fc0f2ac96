from functools import partial
from pathlib import Path

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from foveal.export.fixed import to_fixed_onnx
from foveal.measure.cost import count_macs
from foveal.shrink.step import Step
from foveal.shrink.tokens.blocks import ReducedBlocks, attend, token_counts
from foveal.shrink.tokens.merge import Merge, match

vit = partial(VisionTransformer, img_size=20, patch_size=4, embed_dim=12, depth=3, num_heads=2, num_classes=3)


def network(build=vit, **words):
    torch.manual_seed(0)
    return build(**words).eval()


def pictures(batch=2):
    return torch.rand(batch, 3, 20, 20, generator=torch.Generator().manual_seed(1))


def match_reference(keys, r, protect):
    """For one picture: the groups of tokens that become one, in the order of the merged tokens."""
    own = list(range(protect))
    first = [i for i in range(protect, len(keys)) if i % 2 == 0]
    second = [i for i in range(protect, len(keys)) if i % 2 == 1]
    unit = keys / keys.norm(dim=1, keepdim=True)
    best = {i: max((float(unit[i] @ unit[j]), j) for j in second) for i in first}
    leaving = sorted(first, key=lambda i: -best[i][0])[:r]
    groups = [[i] for i in own + [i for i in first if i not in leaving]]
    return groups + [[j] + [i for i in leaving if best[i][1] == j] for j in second]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("protect", [0, 1, 2])
@pytest.mark.parametrize(("length", "r"), [(9, 3), (16, 7), (7, 1)])
def test_merged_tokens_are_the_means_of_their_groups(batch, protect, length, r):
    torch.manual_seed(length + protect)
    keys, x = torch.randn(batch, length, 4).double(), torch.randn(batch, length, 5).double().requires_grad_()
    sizes = torch.randint(1, 5, (batch, length)).double()
    for given in (None, sizes):
        merge, unmerge = match(keys, r, protect=protect)
        found, counted = merge(x, given)
        weights = torch.ones_like(sizes) if given is None else given
        wanted, back = torch.zeros(batch, length - r, 5).double(), torch.zeros(batch, length, 5).double()
        for b in range(batch):
            groups = match_reference(keys[b], r, protect)
            assert [sum(weights[b, i] for i in group) for group in groups] == counted[b].tolist()
            for place, group in enumerate(groups):
                wanted[b, place] = (weights[b, group, None] * x[b, group]).sum(0) / weights[b, group].sum()
                back[b, group] = wanted[b, place]
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(unmerge(found), back)
        toward = torch.randn(found.shape).double()
        gradients = [torch.autograd.grad((y * toward).sum(), x)[0] for y in (found, wanted)]
        torch.testing.assert_close(*gradients)


def test_the_most_similar_pair_merges():
    # tokens 2 and 3 point the same way, whatever their lengths; token 0 is protected
    keys = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [3.0, -3.0], [1.0, -1.0], [-1.0, 0.0], [1.0, 0.5]]])
    merge, unmerge = match(keys, 1, protect=1)
    x = torch.arange(6.0)[None, :, None]
    merged, sizes = merge(x, None)
    assert merged.flatten().tolist() == [0, 4, 1, 2.5, 5]
    assert sizes.tolist() == [[1, 1, 1, 2, 1]]
    assert unmerge(merged).flatten().tolist() == [0, 1, 2.5, 2.5, 4, 5]


def test_merging_none_changes_nothing():
    x, keys = torch.randn(2, 7, 3), torch.randn(2, 7, 4)
    merge, unmerge = match(keys, 0)
    assert merge(x)[0] is x
    assert merge(x)[1].tolist() == [[1] * 7] * 2
    assert unmerge(x) is x


@pytest.mark.parametrize("words", [{}, {"global_pool": "avg"}, {"class_token": False, "global_pool": "avg"}])
def test_r_0_is_exact(words):
    x, plain = pictures(), network(**words)
    for step in (Merge(r=0), Merge(keep=1.0)):
        assert torch.equal(step.apply(network(**words))(x), plain(x))


def test_a_distillation_token_is_protected_too():
    x, plain = (
        pictures(),
        network(VisionTransformerDistilled, img_size=20, patch_size=4, embed_dim=12, depth=3, num_heads=2),
    )
    merged = network(VisionTransformerDistilled, img_size=20, patch_size=4, embed_dim=12, depth=3, num_heads=2)
    merged = Merge(r=4, multiple=1).apply(merged)
    assert merged.blocks.protect == 2
    assert merged.forward_features(x).shape[1] == 27 - 12
    assert merged(x).shape == plain(x).shape
    assert not torch.allclose(merged(x), plain(x))


def test_sizes_sum_to_the_tokens_and_change_the_output(monkeypatch):
    seen = []
    model = Merge(r=6, multiple=1).apply(network())
    monkeypatch.setattr(
        "foveal.shrink.tokens.blocks.attend", lambda a, x, sizes: (seen.append(sizes), attend(a, x, sizes))[1]
    )
    model(pictures())
    assert seen[0] is None  # no mask where all sizes are 1
    for sizes, count in zip(seen[1:], (20, 14), strict=True):
        assert sizes.shape == (2, count)
        assert sizes.sum(1).tolist() == [26, 26]
        assert sizes[:, 0].tolist() == [1, 1]
        assert sizes.max() > 1
    seen.clear()
    alike = Merge(r=6, multiple=1, proportional=False).apply(network())
    assert not torch.allclose(model(pictures()), alike(pictures()), atol=1e-6)
    assert seen[-3:] == [None] * 3


def test_a_size_counts_like_copies_of_the_token():
    attention = network().blocks[0].attn
    x = torch.randn(1, 5, 12)
    copies = x[:, [0, 1, 1, 1, 2, 3, 3, 4]]
    found, seen = attend(attention, x, torch.tensor([[1.0, 3, 1, 2, 1]]))
    torch.testing.assert_close(found, attention(copies)[:, [0, 1, 4, 5, 7]])
    torch.testing.assert_close(seen.keys(), attention.qkv(x)[..., 12:24].unflatten(2, (2, 6)).sum(2))


def test_networks_that_average_get_all_tokens_back():
    model = Merge(r=5, multiple=1).apply(network(global_pool="avg"))
    tokens = model.forward_features(pictures())
    assert tokens.shape[1] == 26
    assert len(tokens[0].unique(dim=0)) == 11


def test_token_counts():
    assert Merge(r=13, multiple=1).counts(197, 12) == [197 - 13 * i for i in range(1, 13)]
    assert Merge(r=8).counts(197, 4) == [192, 176, 176, 160]
    assert token_counts([30, 10, 0], 50) == [30, 16, 9]  # at most half
    assert Merge(r=0).counts(37, 2) == Merge(keep=1.0).counts(37, 2) == [37, 37]
    assert Merge(keep=0.5, multiple=1).counts(200, 4) == [175, 150, 125, 100]
    assert all(n % 16 == 0 for n in Merge(r=13).counts(197, 12))


def test_multiply_adds_fall_as_the_counts_say():
    whole, fewer = (count_macs(m, (1, 3, 20, 20)) for m in (network(), Merge(r=6, multiple=1).apply(network())))
    assert fewer < 0.7 * whole


def test_it_learns_and_its_state_is_the_network_s():
    plain = network(drop_path_rate=0.1, init_values=0.1)
    merged = Merge(r=6).apply(network(drop_path_rate=0.1, init_values=0.1))
    merged.load_state_dict(plain.state_dict())
    merged.train()(pictures()).sum().backward()
    assert {name for name, p in merged.named_parameters() if p.grad is None} == set()
    assert isinstance(Merge(r=6), Step)


@pytest.mark.slow
def test_the_exported_file_merges_too(tmp_path: Path):
    model = Merge(r=6, multiple=1).apply(network(depth=2, global_pool="avg"))
    to_fixed_onnx(model, tmp_path / "merged.onnx", pictures())  # which compares the file with torch
    plain = network(depth=2, global_pool="avg")(pictures())
    assert not torch.allclose(model(pictures()), plain, atol=1e-4)


def test_wrong_numbers_raise():
    for words in ({}, {"r": 8, "keep": 0.5}):
        with pytest.raises(ValueError, match="give exactly one of r and keep, got r="):
            Merge(**words)
    with pytest.raises(ValueError, match="r must be at least 0, got -1"):
        Merge(r=-1)
    for keep in (0.0, 1.5):
        with pytest.raises(ValueError, match=rf"keep must be in \(0, 1\], got {keep}"):
            Merge(keep=keep)
    with pytest.raises(ValueError, match="multiple must be at least 1, got 0"):
        Merge(r=8, multiple=0)
    with pytest.raises(ValueError, match=r"r must be in 0…98 for 197 tokens of which 1 are protected, got 120"):
        Merge(r=120).counts(197, 12)
    with pytest.raises(ValueError, match=r"r must be in 0…2 for 6 tokens of which 1 are protected, got 3; a layer"):
        match(torch.randn(1, 6, 2), 3, protect=1)


def test_networks_that_cannot_merge_raise():
    with pytest.raises(TypeError, match="model must be a vision transformer of timm, got Linear"):
        Merge(r=2).apply(nn.Linear(2, 2))
    other = network()
    other.blocks = nn.Sequential(nn.Identity())
    with pytest.raises(TypeError, match="blocks must be timm's Block with its Attention, got Identity"):
        Merge(r=2).apply(other)
    merged = Merge(r=2).apply(network())
    assert isinstance(merged.blocks, ReducedBlocks)
    with pytest.raises(ValueError, match="model reduces tokens already, by Merge"):
        Merge(r=2).apply(merged)
