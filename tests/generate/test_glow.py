import pytest
import torch

from foveal.generate.glow import ActNorm, Conv1x1, Coupling, Flow


def moved(layer):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return layer.double().eval()


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("build", [ActNorm, Conv1x1, lambda dim: Coupling(dim, width=5)])
def test_layers_invert_and_say_their_determinant(build):
    torch.manual_seed(0)
    layer, x = moved(build(4)), normal(2, 4, 3, 2)
    y, log_det = layer(x)
    assert (y - x).abs().max() > 0.01
    torch.testing.assert_close(layer.inverse(y), x)
    for picture, said in zip(x, log_det.expand(2), strict=True):
        matrix = torch.autograd.functional.jacobian(
            lambda v: layer(v.view(1, 4, 3, 2))[0].flatten(),
            picture.flatten(),
        )
        torch.testing.assert_close(said, matrix.slogdet()[1])


def test_a_flow_inverts_and_says_its_determinant():
    torch.manual_seed(0)
    flow = moved(Flow(in_channels=2, levels=2, depth=1, width=4))
    x = normal(1, 2, 4, 8)
    latents, log_det = flow(x)
    assert [tuple(z.shape) for z in latents] == [(1, 4, 2, 4), (1, 16, 1, 2)]
    torch.testing.assert_close(flow.inverse(latents), x)
    matrix = torch.autograd.functional.jacobian(
        lambda v: torch.cat([z.flatten() for z in flow(v.view(1, 2, 4, 8))[0]]), x.flatten()
    )
    torch.testing.assert_close(log_det[0], matrix.slogdet()[1])


def test_the_first_batch_sets_actnorm_once():
    layer, x = ActNorm(3).train(), 5 + 2 * normal(4, 3, 5, 5).float()
    y, _ = layer(x)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(y.std((0, 2, 3), correction=0), torch.ones(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(layer(x + 1)[0], y + layer.log_scale.exp())
    fresh = ActNorm(3).eval()
    assert torch.equal(fresh(x)[0], x)


def test_bits_of_uniform_pixels_by_hand():
    flow = Flow(levels=1, depth=1, width=2).eval()
    with torch.no_grad():
        flow.levels[0][0].log_scale.fill_(torch.tensor(2.0).log())  # a density of 2·N(2x)
    pixels, noise = torch.full((1, 1, 2, 2), 128, dtype=torch.uint8), torch.zeros(1, 1, 2, 2)
    expected = 8 + 0.5 * torch.tensor(2 * torch.pi).log2() - 1  # at 0
    torch.testing.assert_close(flow.bits(pixels, noise), expected.view(1))
    assert flow.bits(pixels, noise + 0.9) > expected


def test_samples_depend_on_the_seed_and_the_temperature():
    flow = Flow(levels=2, depth=1, width=2).eval()
    one, again, other = (flow.sample(2, side=8, seed=seed) for seed in (0, 0, 1))
    assert one.shape == (2, 1, 8, 8)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(flow.sample(1, side=8, temperature=0.0), torch.full((1, 1, 8, 8), 0.5))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: Flow(levels=0), "levels and depth must be at least 1, got 0 and 4"),
        (lambda: Flow(depth=1, width=2)(torch.zeros(1, 1, 6, 8)), r"multiples of 4, got \(6, 8\); crop or pad"),
    ],
)
def test_what_it_refuses(call, text):
    with pytest.raises(ValueError, match=text):
        call()
