import pytest
import torch
import torch.nn.functional as F

from foveal.vlm.himtok import (
    Each,
    MaskTokenizer,
    attends,
    box_mask,
    coarse,
    extent,
    mask_loss,
    prefix,
    quantize,
    run_length_bits,
)
from foveal.vlm.method import VlmError


def model(**words):
    torch.manual_seed(0)
    return MaskTokenizer(
        12, **{"patch_size": 4, "queries": 5, "codebook": 16, "code": 4, "dim": 8, "depth": 2, "num_heads": 2} | words
    )


def masks(count=3):
    return (torch.rand(count, 12, 12, generator=torch.Generator().manual_seed(1)) > 0.5).float()


def test_patches_see_patches_and_queries_what_is_up_to_them():
    assert attends(2, 3).int().tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1],
    ]


def test_later_queries_change_nothing_before():
    net = model()
    before = net.latents(masks())
    net.query.data[3:] += torch.randn(2, 8)
    after = net.latents(masks())
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert (after[:, 3:] - before[:, 3:]).abs().amax() > 1e-3


def test_codes_by_hand():
    codebook = torch.tensor([[2.0, 0], [0, 5], [-1, -1]])
    z = torch.tensor([[[3.0, 1], [-0.1, 0.2], [-2, 0]]])
    codes, tokens, loss = quantize(z, codebook, commitment=0.5)
    assert tokens.tolist() == [[0, 1, 2]]
    torch.testing.assert_close(codes, torch.tensor([[[1.0, 0], [0, 1], [-(0.5**0.5), -(0.5**0.5)]]]))
    likeness = torch.tensor([3 / 10**0.5, 2 / 5**0.5, 0.5**0.5])  # |a − b|² = 2 − 2·a·b of unit vectors
    torch.testing.assert_close(loss, 1.5 * (2 - 2 * likeness).sum() / 6)


def test_gradients_go_straight_through_and_codes_learn_from_the_loss_alone():
    z, codebook = torch.randn(2, 3, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    codes, _, loss = quantize(z, codebook)
    weight = torch.randn(2, 3, 4)
    (codes * weight).sum().backward(retain_graph=True)
    again = z.detach().requires_grad_()
    (F.normalize(again, dim=-1) * weight).sum().backward()
    torch.testing.assert_close(z.grad, again.grad)
    assert codebook.grad is None
    loss.backward()
    assert codebook.grad.any()


def test_latents_that_are_codes_stay_as_they_are():
    codebook = F.normalize(torch.randn(7, 4), dim=1)
    codes, tokens, loss = quantize(codebook[[3, 0, 6]], codebook)
    assert tokens.tolist() == [3, 0, 6]
    torch.testing.assert_close(codes, codebook[[3, 0, 6]])
    assert loss < 1e-12


def test_a_prefix_keeps_the_first():
    x = torch.ones(2, 3, 1)
    assert prefix(x, torch.tensor([1, 3]))[..., 0].tolist() == [[1, 0, 0], [1, 1, 1]]


def test_coarse_targets_are_blurred_by_the_formula():
    mask = torch.rand(2, 31, 17, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).round()
    length = torch.tensor([1, 9])
    found = coarse(mask, length)
    for row, count in enumerate(length.tolist()):
        sigma = (100 / (count + 2) - 2) * 31 / 256
        at = torch.arange(-40, 41, dtype=torch.float64)
        line = torch.exp(-(at**2) / (2 * sigma**2))
        kernel = line[:, None] * line / line.sum() ** 2
        plain = F.conv2d(mask[row][None, None], kernel[None, None], padding=40)[0, 0]
        torch.testing.assert_close(found[row], plain / plain.max())
    assert torch.equal(coarse(mask, torch.tensor([48, 60])), mask)


def test_the_loss_is_least_for_the_target_and_by_hand_for_nothing():
    mask, length = masks(), torch.full((3,), 48)
    assert mask_loss(40 * (2 * mask - 1), mask, length) < 1e-5
    share = float(mask.mean())  # a half everywhere: Dice is 2·share/2 over 1/2 + share
    expected = torch.tensor(2.0).log() + 0.25 * (1 - share / (0.5 + share))
    torch.testing.assert_close(mask_loss(torch.zeros_like(mask), mask, length), expected)


def test_boxes_become_masks_and_boxes_again():
    boxes = torch.tensor([[0, 0, 5, 7], [1, 2, 2, 3], [3, 1, 5, 6]])
    filled = box_mask(boxes, (5, 7))
    assert filled.sum((1, 2)).tolist() == [35, 1, 10]
    assert torch.equal(extent(filled > 0), boxes)
    assert extent(torch.zeros(1, 5, 7, dtype=torch.bool)).tolist() == [[0, 0, 0, 0]]


def test_strays_are_left_out_of_a_filled_box():
    mask = box_mask(torch.tensor([[1, 2, 4, 6]]), (8, 9)) > 0
    mask[0, 7, 0] = mask[0, 3, 8] = True
    assert extent(mask).tolist() == [[1, 0, 8, 9]]
    assert extent(mask, share=0.5).tolist() == [[1, 2, 4, 6]]


def test_run_length_bits_by_hand():
    mask = torch.tensor([[[0, 0, 0, 1], [1, 0, 0, 0]], [[1, 1, 1, 1], [1, 1, 1, 1]]]).bool()
    # rows: runs of 3, 2, 3; columns: 1, 1, 4, 1, 1
    assert run_length_bits(mask).tolist() == [2 + 3 + 3 + 3, 2 + 7]
    assert run_length_bits(mask.transpose(1, 2)).tolist() == run_length_bits(mask).tolist()


def test_a_prefix_of_tokens_decodes_as_cut_codes():
    net = model().eval()
    tokens = net.encode(masks())
    codes, _, _ = quantize(net.latents(masks()), net.codebook)
    for count in (1, 3, 5):
        torch.testing.assert_close(net.decode(tokens[:, :count]), net.draw(codes, torch.full((3,), count)))
    assert (net.decode(tokens[:, :3]) - net.decode(tokens)).abs().amax() > 1e-4


def test_sure_probabilities_are_tokens():
    net = model().eval()
    tokens = net.encode(masks())
    torch.testing.assert_close(net.draw(net.soft(F.one_hot(tokens, 16).float())), net.decode(tokens))


def test_patches_and_pixels_keep_their_places():
    net = model(depth=1)
    made = torch.zeros(1, 12, 12)
    made[0, 5, 10] = 1  # patch 5, pixel (1, 2)
    seen = []
    net.embed.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    net.latents(made)
    assert (seen[0] > 0).nonzero().tolist() == [[0, 5, 6]]
    net.pixels.register_forward_hook(lambda *_: seen[0])
    assert torch.equal(net.draw(torch.zeros(1, 5, 4)), 2 * made - 1)


def test_each_place_has_its_own_layer():
    net = Each(3, 4, 5)
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(net(x)[:, 1], x[:, 1] @ net.weight[1] + net.bias[1])


def test_every_parameter_learns():
    net = model()
    net(masks(), torch.tensor([1, 3, 5])).backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


def test_unused_codes_are_revived():
    net = model(codebook=64)
    used = net.encode(masks()).unique()
    before = net.codebook.clone()
    moved = net.revive_(masks())
    assert moved == 64 - len(used)
    torch.testing.assert_close(net.codebook[used], before[used])
    z = F.normalize(net.latents(masks()), dim=-1).flatten(0, 1)
    dead = torch.ones(64, dtype=torch.bool).index_fill(0, used, False)
    assert (net.codebook[dead][:, None] - z).norm(dim=-1).amin(1).amax() < 1e-5


def test_errors():
    with pytest.raises(VlmError, match="must be a multiple of patch_size and dim one of num_heads, got 12 and 5, 8 "):
        model(patch_size=5)
    with pytest.raises(VlmError, match=r"masks must be \(B, 12, 12\), got \(2, 11, 12\); resize or pad them"):
        model().encode(torch.zeros(2, 11, 12))
    with pytest.raises(VlmError, match="a mask has 1 to 5 tokens, got 6; cut the sequence"):
        model().decode(torch.zeros(1, 6, dtype=torch.int64))
