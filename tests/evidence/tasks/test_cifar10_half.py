"""The half-size pictures average four pixels, and teachers of a rehearsal are trained on them."""

import torch
import torch.nn.functional as F

from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.tasks import cifar10, cifar10_half


def test_pictures_are_those_of_cifar10_at_half_their_size():
    with rehearsal():
        (whole, labels), (half, same) = cifar10.pictures("test"), cifar10_half.pictures("test")
        assert half.shape == (20, 3, 16, 16)
        torch.testing.assert_close(half, F.interpolate(whole, scale_factor=0.5, mode="area"))
        assert torch.equal(labels, same)
        assert 0 <= cifar10_half.accuracy(cifar10_half.teacher()) <= 100
