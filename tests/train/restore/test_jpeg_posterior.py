import pytest
import torch
import torch.nn.functional as F

from foveal.nn.jpeg_bins import compressed
from foveal.train.restore.jpeg_posterior import Critic, JpegDecoder, PosteriorTraining, first_moment, samples


def file(batch=2, seed=0, step=30.0):
    x = torch.rand(batch, 1, 16, 24, generator=torch.Generator().manual_seed(seed))
    return x, compressed(x, torch.full((batch, 1, 8, 8), step))


def decoder(**kwargs):
    torch.manual_seed(0)
    network = JpegDecoder(4, 1, **{"noise": 2, **kwargs})
    torch.nn.init.normal_(network.tail.weight, std=0.1)
    return network


def test_every_sample_gives_the_same_file():
    _, bins = file()
    out = samples(decoder(), bins, 3, torch.Generator().manual_seed(0))
    assert out.shape == (3, 2, 1, 16, 24)
    assert all(torch.equal(bins.requantized(one), bins.indices) for one in out)
    assert (out.std(0) > 0).any()
    assert not torch.allclose(out[0], bins.decoded, atol=1e-2)


def test_a_seed_gives_the_same_samples():
    _, bins = file()
    first, again, other = (samples(decoder(), bins, 2, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_at_the_start_it_decodes_as_usual():
    _, bins = file()
    torch.testing.assert_close(JpegDecoder(4, 1, noise=0)(bins), bins.decoded)


def test_the_first_moment_by_hand():
    drawn = torch.tensor([[0.0, 1.0], [4.0, 1.0]]).view(2, 2, 1, 1, 1)
    wanted = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    assert first_moment(drawn, wanted) == pytest.approx((1 + 4) / 2)
    # variance alone costs nothing
    assert first_moment(torch.stack([wanted - 5, wanted + 5]), wanted) == 0


def test_the_loss_is_the_sum_of_its_parts():
    torch.manual_seed(0)
    x, bins = file()
    training = PosteriorTraining(decoder(), Critic(4), weight=0.5, count=3).eval()
    torch.manual_seed(1)
    loss = training.loss(bins, x)
    torch.manual_seed(1)
    drawn = samples(training.decoder, bins, 3)
    made = torch.cat([training.critic(one, bins.decoded) for one in drawn])
    true = training.critic(x, bins.decoded)
    wanted = (drawn.mean(0) - x).square().mean() + 0.5 * F.softplus(-made).mean()
    torch.testing.assert_close(loss, wanted + F.softplus(made).mean() + F.softplus(-true).mean())


def test_each_part_trains_its_own_network():
    torch.manual_seed(0)
    x, bins = file()
    training = PosteriorTraining(decoder(), Critic(4), weight=0.5).eval()
    torch.manual_seed(1)
    training.loss(bins, x).backward()
    torch.manual_seed(1)
    drawn = samples(training.decoder, bins, 2)
    flat, beside = drawn.flatten(0, 1), bins.decoded.repeat(2, 1, 1, 1)
    own = list(training.decoder.parameters())
    generator = first_moment(drawn, x) + 0.5 * F.softplus(-training.critic(flat, beside)).mean()
    for p, wanted in zip(own, torch.autograd.grad(generator, own, retain_graph=True), strict=True):
        torch.testing.assert_close(p.grad, wanted)
    critic = list(training.critic.parameters())
    told = F.softplus(training.critic(flat.detach(), beside)).mean()
    told = told + F.softplus(-training.critic(x, bins.decoded)).mean()
    for p, wanted in zip(critic, torch.autograd.grad(told, critic), strict=True):
        torch.testing.assert_close(p.grad, wanted)


@pytest.mark.parametrize(("noise", "count"), [(0, 2), (2, 1)])
def test_a_training_that_cannot_draw_is_refused(noise, count):
    with pytest.raises(ValueError, match=f"noise and at least 2 samples, got {noise} and {count}"):
        PosteriorTraining(JpegDecoder(4, 1, noise=noise), Critic(4), count=count)
