import torch
from torch import nn

from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.tasks import pixel_sequences


def test_a_pixel_is_the_mean_of_four():
    pictures = torch.zeros(1, 28, 28, dtype=torch.uint8)
    pictures[0, 2:4, 4] = 255
    small = pixel_sequences.halved(pictures)
    assert small.shape == (1, 1, 14, 14)
    torch.testing.assert_close(small[0, 0, 1, 2], torch.tensor((0.5 - 0.13) / 0.27))
    torch.testing.assert_close(small.flatten()[0], torch.tensor(-0.13 / 0.27))


def test_rows_follow_each_other():
    with rehearsal():
        found, labels = pixel_sequences.sequences("train")
        assert found.shape == (20, 1, pixel_sequences.LENGTH)
        assert labels.tolist() == [*range(10)] * 2


def test_the_network_mixes_places_by_its_mixer_only():
    torch.manual_seed(0)
    alone = pixel_sequences.SequenceNet(lambda _: nn.Identity(), 4, depth=2).eval()
    x = torch.randn(2, 1, 9)
    torch.testing.assert_close(alone(x.flip(2)), alone(x))
    mixed = pixel_sequences.SequenceNet(lambda dim: nn.Conv1d(dim, dim, 3, padding=1), 4, depth=2).eval()
    assert (mixed(x.flip(2)) - mixed(x)).abs().max() > 1e-3


def test_accuracy_is_of_the_seed():
    def build():
        return pixel_sequences.SequenceNet(lambda _: nn.Identity(), 4, depth=1)

    with rehearsal():
        found = [pixel_sequences.accuracy(build, steps=3, seed=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1]
    assert 0 <= min(found) <= max(found) <= 100
