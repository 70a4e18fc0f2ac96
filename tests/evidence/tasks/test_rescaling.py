import pytest
import torch

from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.tasks import rescaling
from foveal.nn.rescaling import resized, rounded


class Bicubic:
    """Learns nothing."""

    def down(self, x, size):
        return rounded(resized(x, size))

    def up(self, small, size):
        return resized(small, size)


class Worse(Bicubic):
    """Darkens what it makes small."""

    def down(self, x, size):
        return rounded(0.9 * resized(x, size))


def test_sizes_of_both_kinds_of_scales():
    assert rescaling.small_size((128, 90), 2.5) == (51, 36)
    assert rescaling.small_size((128, 90), (1.5, 3.5)) == (85, 26)
    assert rescaling.small_size((3, 3), 9.0) == (1, 1)


def test_a_pair_that_learns_nothing_is_the_rival_and_a_worse_one_is_behind():
    with rehearsal():
        assert rescaling.lead(Bicubic(), Bicubic(), 2.5) == 0
        assert rescaling.lead(Worse(), Bicubic(), 2.5) < -1
        assert rescaling.loss_of_cycles(Worse(), alone=False) > rescaling.loss_of_cycles(Bicubic(), alone=False) > 0
        assert rescaling.loss_of_cycles(Worse(), alone=True) == rescaling.loss_of_cycles(Bicubic(), alone=True)
        assert rescaling.closeness(Worse()) < 30 < rescaling.closeness(Bicubic())


def test_one_cycle_is_the_score():
    with rehearsal():
        once = rescaling.score(Bicubic(), 1.5, alone=False)
        assert rescaling.score(Bicubic(), 1.5, alone=False, cycles=2) < once
        x = rescaling.restoring.crops()
        small = rounded(resized(x, rescaling.small_size(x.shape[-2:], 1.5)))
        out = rounded(resized(small, x.shape[-2:]))
        assert once == pytest.approx(float(rescaling.restoring.psnr(out, x).mean()))


def test_the_rival_trains_the_enlarging_network_alone():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.small, self.large = (torch.nn.Parameter(torch.zeros(())) for _ in range(2))

        def down(self, x, size):
            return rounded(resized(x, size) + self.small)

        def up(self, small, size):
            return resized(small, size) + self.large

    def loss(model, x, size):
        return (model.up(model.down(x, size), x.shape[-2:]) - x - 0.1).square().mean()

    with rehearsal():
        pair, rival = (rescaling.trained(Net, loss, seed=0, alone=alone, steps=2, lr=1e-2) for alone in (False, True))
    assert pair.small != 0
    assert pair.large != 0
    assert rival.small == 0
    assert rival.large != 0
