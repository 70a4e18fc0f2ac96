import torch

from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.tasks import transfers
from foveal.evidence.tasks.corruptions import CORRUPTIONS, corrupt


def test_shots_are_as_many_of_each_class_and_depend_on_the_seed():
    with rehearsal():
        x, labels = transfers.shots("cells", 4)
        assert x.shape == (12, 3, 16, 16)
        assert labels.bincount().tolist() == [4, 4, 4]
        assert torch.equal(transfers.shots("cells", 4)[0], x)
        assert not torch.equal(transfers.shots("cells", 4, seed=1)[0], x)
        assert len(transfers.held("digits")[1]) == 40


def test_damage_grows_with_its_degree_and_is_drawn_from_a_seed():
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for kind in CORRUPTIONS:
        light, heavy = (corrupt(x, kind, degree=degree) for degree in (1, 5))
        assert light.shape == x.shape
        assert 0 < (light - x).abs().mean() < (heavy - x).abs().mean()
        assert torch.equal(corrupt(x, kind, degree=5), heavy)
