import math

import pytest
import torch

from foveal.models.restore.sct_net import SCTNet, _Swin, channel_attention, frames, mu_law, mu_loss


def tiny(**words):
    torch.manual_seed(0)
    return SCTNet(dim=24, depths=(2,), num_heads=2, window=4, **words).eval()


def test_frames_hold_each_picture_and_its_light():
    pictures = torch.rand(2, 3, 3, 4, 5)
    times = torch.tensor([[1.0, 4.0, 16.0]]).expand(2, -1)
    x = frames(pictures, times)
    assert x.shape == (2, 18, 4, 5)
    torch.testing.assert_close(x[:, 6:9], pictures[:, 1])
    torch.testing.assert_close(x[:, 15:18], pictures[:, 2] ** 2.2 / 16)


def test_mu_law_by_hand():
    x = torch.tensor([0.0, 0.01, 1.0])
    torch.testing.assert_close(mu_law(x), torch.tensor([0.0, math.log(51) / math.log(5001), 1.0]))
    assert mu_loss(x, x.flip(0)) == pytest.approx(2 / 3)


def test_channel_attention_equals_plain_sums():
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(2, 6, 3, 5, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(3)]
    temperature = torch.tensor([0.7, 1.6], dtype=torch.float64).view(2, 1, 1)
    q, k, v = tensors
    wanted = torch.zeros_like(q)
    for b in range(2):
        for c in range(6):
            head = [3 * (c // 3) + i for i in range(3)]
            likeness = [
                (q[b, c] * k[b, i]).sum() / (q[b, c].norm() * k[b, i].norm()) * temperature[c // 3, 0, 0] for i in head
            ]
            weights = torch.stack(likeness).exp()
            wanted[b, c] = sum(w * v[b, i] for w, i in zip(weights / weights.sum(), head, strict=True))
    out = channel_attention(q, k, v, temperature)
    torch.testing.assert_close(out, wanted)
    up = torch.rand_like(out)
    ours, theirs = (torch.autograd.grad((x * up).sum(), tensors) for x in (out, wanted))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_channel_attention_does_not_mind_where_things_are():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 4, 6, 6) for _ in range(3))
    order = torch.randperm(36)
    mixed = [x.flatten(2)[..., order].view_as(x) for x in (q, k)]
    torch.testing.assert_close(channel_attention(*mixed, v, torch.ones(2, 1, 1)),
                               channel_attention(q, k, v, torch.ones(2, 1, 1)))  # fmt: skip


@pytest.mark.parametrize("shifted", [False, True])
def test_window_attention_equals_plain_sums(shifted):
    """Each place attends to the places of its window, and after a shift not across the picture's border."""
    torch.manual_seed(0)
    size, height, width = 4, 8, 12
    block = _Swin(6, 2, size, 2.0, shifted=shifted).double()
    x = torch.randn(1, height, width, 6, dtype=torch.float64)
    q, k, v = block.qkv(x).unflatten(-1, (3, 2, 3)).unbind(-3)
    shift = size // 2 if shifted else 0
    wanted = torch.zeros(1, height, width, 2, 3, dtype=torch.float64)
    places = [(i, j) for i in range(height) for j in range(width)]
    for i, j in places:
        window = ((i + size - shift) // size, (j + size - shift) // size)
        seen = [p for p in places if ((p[0] + size - shift) // size, (p[1] + size - shift) // size) == window]
        for head in range(2):
            scores = torch.stack(
                [
                    (q[0, i, j, head] * k[0, y, z, head]).sum() / 3**0.5
                    + block.bias[(i - y + size - 1) * (2 * size - 1) + j - z + size - 1, head]
                    for y, z in seen
                ]
            )
            wanted[0, i, j, head] = sum(w * v[0, y, z, head] for w, (y, z) in zip(scores.softmax(0), seen, strict=True))
    torch.testing.assert_close(block._attention(x), block.proj(wanted.flatten(3)))


@pytest.mark.parametrize("size", [(1, 1), (4, 8), (7, 13)])
def test_output_is_light_of_the_same_size(size):
    out = tiny()(torch.rand(2, 18, *size))
    assert out.shape == (2, 3, *size)
    assert out.min() > 0
    assert out.max() < 1


@pytest.mark.parametrize("across", [True, False])
def test_every_parameter_gets_a_gradient(across):
    network = tiny(across=across)
    network(torch.rand(1, 18, 8, 8)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_the_twin_differs_by_the_attention_across_frames_only():
    ours, twin = set(tiny().state_dict()), set(tiny(across=False).state_dict())
    assert twin < ours
    assert all(".before." in name or ".after." in name for name in ours - twin)


def test_a_width_that_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match="dim must be a multiple of 12 and of num_heads, 5, got 24; 60 is the paper's"):
        SCTNet(dim=24, num_heads=5)
    with pytest.raises(ValueError, match="got 20"):
        SCTNet(dim=20, num_heads=2)
