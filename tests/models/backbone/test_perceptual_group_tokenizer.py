import itertools

import pytest
import torch

from foveal.measure.cost import count_macs
from foveal.models.backbone.perceptual_group_tokenizer import GroupingBlock, PerceptualGroupTokenizer, bind


def network(**words):
    torch.manual_seed(0)
    settings = {"dim": 8, "depth": 2, "num_heads": 2, "groups": 3, "rounds": 2, "patch_size": 4, "grid": (4, 4)}
    return PerceptualGroupTokenizer(**{**settings, "num_classes": 3, **words}).eval()


def test_a_block_equals_one_picture_head_and_group_at_a_time_with_gradients():
    torch.manual_seed(0)
    block = GroupingBlock(6, 2, groups=5, rounds=2).double().eval()
    tokens = torch.randn(2, 7, 6, dtype=torch.double, requires_grad=True)

    def plain(tokens):
        drawn = block.sample(2)
        keys, values = block.kv(block.norm(tokens)).chunk(2, 2)
        seen = []
        for picture in range(2):
            heads = []
            for head in range(2):
                part = slice(3 * head, 3 * head + 3)
                key, value = keys[picture, :, part], values[picture, :, part]
                groups = list(drawn[picture, head])
                for _ in range(2):
                    queries = [block.q(block.norm_query(group)) for group in groups]
                    scores = torch.stack([torch.stack([(q * k).sum() / 3**0.5 for k in key]) for q in queries])
                    shares = scores.exp() / scores.exp().sum(0)  # over groups
                    for m, share in enumerate(shares):
                        mean = (share[:, None] * value).sum(0) / (share.sum() + 1e-6)
                        group = block.gru(mean[None], groups[m][None])[0]
                        groups[m] = group + block.mlp_group(block.norm_group(group))
                heads.append(torch.stack([(share[:, None] * torch.stack(groups)).sum(0) for share in shares.T]))
            seen.append(torch.cat(heads, 1))
        tokens = tokens + block.proj(torch.stack(seen))
        return tokens + block.mlp(block.norm_mlp(tokens))

    ours, theirs = block(tokens, (1, 7)), plain(tokens)
    torch.testing.assert_close(ours, theirs)
    every = [tokens, *block.parameters()]
    toward = torch.randn_like(ours)
    for a, b in zip(*(torch.autograd.grad((y * toward).sum(), every) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b)


def test_one_group_takes_the_mean_of_all_patches():
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4), torch.randn(9, 4), torch.randn(9, 4)
    means, shares = bind(query, key, value)
    assert torch.equal(shares, torch.ones(1, 9))
    torch.testing.assert_close(means[0], value.mean(0), rtol=1e-5, atol=1e-6)


def test_a_group_that_nothing_chooses_stays_finite():
    query, key = torch.tensor([[1e4], [-1e4]]), torch.ones(3, 1)
    means, shares = bind(query, key, torch.ones(3, 1))
    assert shares[1].sum() == 0
    torch.testing.assert_close(means, torch.tensor([[1.0], [0.0]]), rtol=1e-5, atol=1e-6)


def test_patches_swapped_come_out_swapped():
    torch.manual_seed(0)
    block, tokens, order = (
        GroupingBlock(8, 2, groups=3).double().eval(),
        torch.randn(1, 11, 8).double(),
        torch.randperm(11),
    )
    torch.testing.assert_close(block(tokens, (1, 11))[:, order], block(tokens[:, order], (1, 11)))


def test_noise_is_fresh_in_training_and_fixed_otherwise():
    block = GroupingBlock(8, 2, groups=3)
    first, second = block.sample(2), block.sample(2)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    block.eval()
    assert torch.equal(block.sample(2)[1], block.sample(1)[0])
    few = block.sample(1)
    for more in (5, 64, 1001):
        block.groups = more
        assert torch.equal(block.sample(1)[:, :, :3], few)
    noise = block.sample(1) - block.mean
    assert noise.mean().abs() < 0.05
    assert abs(noise.std() - 1) < 0.05
    assert len({block.sample(1).sum().item() for block in network().blocks}) == 2


def test_products_between_tokens_are_patches_times_groups():
    dim, depth, rounds, patches = 8, 2, 2, 16
    found = []
    for groups in (1, 2, 3, 5):
        model = network()
        model.set_groups(groups)
        found.append(count_macs(model, (1, 3, 16, 16)))
    inner, heads = 4, 2
    each_token = inner * inner * (1 + 6 + 8)  # query, GRU and MLP of a group token
    step = depth * (rounds * (2 * patches * dim + heads * each_token) + patches * dim)
    assert [b - a for a, b in itertools.pairwise(found)] == [step, step, 2 * step]


def test_group_maps_are_shares():
    model, x = network(), torch.rand(2, 3, 13, 22)
    for block in (0, -1):
        maps = model.group_maps(x, block=block)
        assert maps.shape == (2, 2, 3, 4, 6)
        torch.testing.assert_close(maps.sum(2), torch.ones(2, 2, 4, 6))
    tokens, size = model.embed(x)
    torch.testing.assert_close(
        model.group_maps(x), model.blocks[1].group(model.blocks[0](tokens, size))[1].view(2, 2, 3, 4, 6)
    )


def test_any_number_of_groups_after_training():
    model, x = network(), torch.rand(1, 3, 16, 16)
    found = []
    for groups in (1, 2, 40):
        model.set_groups(groups)
        assert model.group_maps(x).shape[2] == groups
        found.append(model(x))
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


def test_wrong_sizes_raise():
    with pytest.raises(ValueError, match="dim must be a multiple of num_heads, got 8 and 3; change one of them"):
        network(num_heads=3)
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0; 3 suits most pictures"):
        network(rounds=0)
    with pytest.raises(ValueError, match="groups must be at least 1, got 0; the cost grows linearly with it"):
        network().set_groups(0)
