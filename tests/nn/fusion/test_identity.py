"""Every block of the package keeps the interface: shapes, the identity at zero, gradients, errors."""

import pytest
import torch

from foveal.nn.fusion import fusion_blocks, map_of, tokens_of
from foveal.ops.backends import ShapeError

BLOCKS = fusion_blocks()
each = pytest.mark.parametrize("name", BLOCKS)


def streams(*, height=5, width=3):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 8, height, width, generator=generator) for _ in range(2)]


@each
def test_at_zero_it_is_the_identity_and_can_leave_it(name):
    torch.manual_seed(0)
    block, (x, y) = BLOCKS[name](8, zero_init=True), streams()
    out = block(x, y)
    assert torch.equal(out[0], x)
    assert torch.equal(out[1], y)
    for stream in out:
        block.zero_grad()
        stream.square().sum().backward(retain_graph=True)
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in block.parameters())


@each
@pytest.mark.parametrize("size", [(5, 3), (1, 1), (2, 7)])
def test_each_stream_hears_the_other(name, size):
    torch.manual_seed(0)
    block, (x, y) = BLOCKS[name](8), streams(height=size[0], width=size[1])
    x.requires_grad_()
    y.requires_grad_()
    out = block(x, y)
    assert [stream.shape for stream in out] == [x.shape, y.shape]
    assert not torch.allclose(out[0], x)
    for stream in out:
        given = torch.autograd.grad(stream.square().sum(), (x, y), retain_graph=True)
        assert all(gradient.abs().max() > 0 for gradient in given)


@each
def test_every_parameter_learns(name):
    torch.manual_seed(0)
    block = BLOCKS[name](8)
    sum(stream.square().sum() for stream in block(*streams())).backward()
    assert {n for n, p in block.named_parameters() if p.grad is None or not p.grad.isfinite().all()} == set()


@each
def test_streams_that_do_not_fit_raise(name):
    block, (x, y) = BLOCKS[name](8), streams()
    with pytest.raises(ShapeError, match=r"got \(2, 8, 5, 3\) and \(2, 8, 5, 2\); resize one to the other"):
        block(x, y[..., :2])
    with pytest.raises(ShapeError, match=r"streams must be \(batch, 8, height, width\), got \(2, 7, 5, 3\)"):
        block(x[:, :7], y[:, :7])


def test_tokens_are_in_raster_order_and_come_back():
    (x, _) = streams()
    tokens = tokens_of(x)
    assert torch.equal(tokens[1, 3 * 2 + 1], x[1, :, 2, 1])
    assert torch.equal(map_of(tokens, 5, 3), x)
