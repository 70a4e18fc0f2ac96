import pytest
import torch
import torch.nn.functional as F
from timm.layers import resample_patch_embed
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from foveal.shrink.tokens.flexivit import (
    FlexiPatchEmbed,
    FlexiViT,
    fixed,
    pi_matrix,
    pi_resize,
    resize_matrix,
    set_patch_size,
)


def vit(patch=4, side=12, **words):
    torch.manual_seed(0)
    return VisionTransformer(side, patch, embed_dim=8, depth=2, num_heads=2, num_classes=3, **words).eval()


def test_a_matrix_cached_in_inference_serves_training():
    pi_matrix.cache_clear()
    weight = torch.randn(2, 3, 4, 4)
    with torch.inference_mode():
        pi_resize(weight, 6)
    pi_resize(weight.requires_grad_(), 6).sum().backward()
    assert weight.grad.count_nonzero() > 0


@pytest.mark.parametrize(("old", "new"), [(5, 9), (9, 5), (4, 4)])
def test_the_matrix_resizes(old, new):
    x = torch.randn(1, 1, 1, old, dtype=torch.float64)
    resized = F.interpolate(x, (1, new), mode="bilinear", antialias=True)
    torch.testing.assert_close(resize_matrix(old, new) @ x[0, 0, 0], resized[0, 0, 0])


@pytest.mark.parametrize("size", [2, 5, 9])
def test_sides_one_by_one_equal_the_whole_matrix_with_gradients(size):
    weight, back = torch.randn(3, 2, 5, 5, dtype=torch.float64, requires_grad=True), torch.randn(3, 2, size, size)
    rows = torch.kron(resize_matrix(5, size), resize_matrix(5, size))  # (p², k²)
    plain = (weight.flatten(2) @ torch.linalg.pinv(rows.T).T).view(3, 2, size, size)
    ours = pi_resize(weight, size)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-5)
    first, second = (torch.autograd.grad((kernel * back).sum(), weight)[0] for kernel in (ours, plain))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5)
    timm = resample_patch_embed(weight.detach().float(), [size, size], interpolation="bilinear")
    torch.testing.assert_close(ours.detach().float(), timm, rtol=0, atol=1e-5)


def test_enlarged_patches_keep_their_tokens():
    x, weight = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 5, 5)
    wide = F.interpolate(x, (7, 7), mode="bilinear")
    torch.testing.assert_close(F.conv2d(wide, pi_resize(weight, 7)), F.conv2d(x, weight), rtol=0, atol=1e-4)
    # a kernel resized as a picture does not
    resized = F.interpolate(weight, (7, 7), mode="bilinear")
    assert (F.conv2d(wide, resized) - F.conv2d(x, weight)).abs().max() > 1


def test_a_kernel_of_its_own_size_is_not_copied():
    weight = torch.randn(4, 3, 5, 5)
    assert pi_resize(weight, 5) is weight
    assert pi_matrix(5, 7) is pi_matrix(5, 7)


@pytest.mark.parametrize("words", [{}, {"class_token": False, "global_pool": "avg"}, {"no_embed_class": True}])
def test_its_own_size_changes_nothing_and_others_equal_a_stock_network(words):
    x = torch.rand(2, 3, 12, 12)
    with torch.no_grad():
        before = vit(**words)(x)
        model = FlexiViT(sizes=(3, 4, 6)).apply(vit(**words))
        assert torch.equal(model(x), before)
        for size in (2, 3, 6):
            stock = fixed(model, size, img_size=12)
            assert type(stock.patch_embed).__module__.startswith("timm")
            torch.testing.assert_close(stock(x), set_patch_size(model, size)(x), rtol=0, atol=1e-6)
            assert model.forward_intermediates(x, intermediates_only=True)[0].shape[2:] == (12 // size, 12 // size)


def test_training_draws_every_size_and_no_other():
    torch.manual_seed(1)
    model = FlexiViT(sizes=(3, 6), patch_size=2).apply(vit()).train()
    seen = {model.patch_embed(torch.rand(1, 3, 12, 12)).shape[1] for _ in range(20)}
    assert seen == {4, 2}
    assert model.eval().patch_embed(torch.rand(1, 3, 12, 12)).shape == (1, 6, 6, 8)


def test_every_parameter_learns_at_every_size():
    for size in (3, 4, 6):
        model = FlexiViT(sizes=(size,)).apply(vit().train())
        model(torch.rand(2, 3, 12, 12)).sum().backward()
        assert {name for name, value in model.named_parameters() if value.grad is None} == set()


def test_a_fixed_copy_leaves_the_flexible_network_alone():
    model = FlexiViT(sizes=(3, 6)).apply(vit())
    stock = fixed(model, 3, img_size=24)
    assert stock(torch.rand(1, 3, 24, 24)).shape == (1, 3)
    assert isinstance(model.patch_embed, FlexiPatchEmbed)
    assert model.pos_embed.shape[1] == 10
    assert model.patch_embed.patch_size == (4, 4)


def test_wrong_sizes_raise():
    for sizes in ((), (4, 0)):
        with pytest.raises(ValueError, match="sizes must be one or more numbers from 1 on, got"):
            FlexiViT(sizes=sizes)
    with pytest.raises(ValueError, match="patch_size must be at least 1, got 0"):
        FlexiViT(patch_size=0)
    model = FlexiViT(sizes=(3, 4)).apply(vit())
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        set_patch_size(model, 0)
    with pytest.raises(ValueError, match="multiples of the patch size 5, got 12×12; resize them, or leave 5 out"):
        set_patch_size(model, 5)(torch.rand(1, 3, 12, 12))
    with pytest.raises(ValueError, match="img_size must be a multiple of the patch size 5, got 12"):
        fixed(model, 5, img_size=12)


def test_networks_that_cannot_be_flexible_raise():
    with pytest.raises(TypeError, match="model must be a vision transformer of timm, got Linear"):
        FlexiViT().apply(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"VisionTransformer has one patch size; apply FlexiViT\(sizes=…\)"):
        set_patch_size(vit(), 4)
    with pytest.raises(ValueError, match="patches must be square, got 4×6"):
        FlexiViT().apply(vit((4, 6)))
    with pytest.raises(ValueError, match=r"model takes the patch sizes \(3, 4\) already; apply FlexiViT to a fresh"):
        FlexiViT().apply(FlexiViT(sizes=(3, 4)).apply(vit()))
