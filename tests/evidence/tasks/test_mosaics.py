import pytest
import torch

from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.tasks import mosaics
from foveal.vlm.random import Random

pytestmark = pytest.mark.dear("imports transformers and builds a tower")


@pytest.fixture
def small():
    with rehearsal():
        yield


def test_answers_are_what_the_mosaic_shows(small):
    asked = mosaics.mosaics("val", 6, asked=20, seed=1)
    labels = mosaics.features("val")[1]
    questions = torch.cat((asked["ids"][:, 65:], asked["answers"][:, -1:]), 1).unflatten(1, (20, 3))
    assert torch.equal(questions[..., 2], asked["answers"])
    seen = set()
    for row in range(6):
        shown = labels[asked["chosen"][row]].tolist()
        for kind, named, answer in questions[row].tolist():
            name = mosaics.KINDS[kind - mosaics.KIND]
            seen.add(name)
            if name == "what":
                assert answer - mosaics.CLASS == shown[named - mosaics.PLACE]
                continue
            place = named - mosaics.CLASS
            if name == "count":
                assert answer - mosaics.NUMBER == shown.count(place)
                continue
            assert shown.count(place) == 1
            if name == "where":
                assert shown[answer - mosaics.PLACE] == place
            else:
                assert shown.index(place) % 4 < 3
                assert shown[shown.index(place) + 1] == answer - mosaics.CLASS
    assert seen == set(mosaics.KINDS)


def test_the_tower_sees_cells_in_reading_order(small):
    cells, _ = mosaics.pictures("val")
    chosen = torch.arange(16)[None]
    canvas = cells[chosen[0]].unflatten(0, (4, 4)).permute(2, 0, 3, 1, 4).reshape(1, 3, 384, 384)
    tower = mosaics.Mosaic()
    tower.mean.fill_(0.1)
    tower.deviation.fill_(2.0)
    found = tower(canvas).hidden_states[0]
    assert found.shape == (1, 64, 320)
    seen = mosaics.features("val")[0]
    torch.testing.assert_close(tower(seen[chosen]).hidden_states[0], found, atol=1e-4, rtol=1e-3)
    # token 11: second row of the first cells, fourth column: cell 1, its lower right corner
    wanted = (seen[1, 1, 1] - 0.1) / 2 + tower.position[11]
    torch.testing.assert_close(found[0, 11], wanted, atol=1e-4, rtol=1e-3)


def test_a_model_is_trained_and_asked(small):
    model = mosaics.trained(0)
    assert not model.training
    for method in (None, Random(0.5)):
        assert 0 <= mosaics.accuracy(0, method) <= 100
    assert 0 <= mosaics.accuracy(0, kind="where", blind=True) <= 100
    assert not model.model._forward_pre_hooks
