import torch

from foveal.measure.live import live_bytes


def test_what_is_held_at_once_counts():
    x = torch.zeros(100)  # there before

    def work():
        a = x + 1
        b = a + 1
        del a
        return b, b.view(10, 10), b.add_(1), torch.cat([b, b]).sum()

    # two of 400 bytes; then one of 400 and one of 800, and the sum
    assert live_bytes(work) == 400 + 800 + 4


def test_nothing_made_is_nothing():
    x = torch.zeros(100)
    assert live_bytes(lambda: x.view(10, 10).mul_(2)) == 0
