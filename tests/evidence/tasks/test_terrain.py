import pytest
import torch

from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.rivals.fusion import Concatenation
from foveal.evidence.run import run_one
from foveal.evidence.tasks import terrain


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(terrain, "COUNT", {"train": 60, "test": 60})


def test_classes_are_materials_and_heights_and_the_same_each_time(few):
    # Called past the cache, which other tests share.
    x, classes = terrain.maps.__wrapped__("train")
    assert x.shape == (60, 9, 16, 16)
    assert classes.shape == (60, 16, 16)
    assert torch.equal(terrain.maps.__wrapped__("train")[0], x)
    assert not torch.equal(terrain.maps.__wrapped__("test")[0], x)
    share = torch.bincount(classes.flatten(), minlength=6) / classes.numel()
    assert (share - 1 / 6).abs().max() < 0.05


def test_each_sensor_knows_one_half_only(few):
    """Means over all pixels of a class: bands depend on the material alone, the height on being raised alone."""
    x, classes = terrain.maps.__wrapped__("train")
    pixels, flat = x.permute(0, 2, 3, 1).flatten(0, 2), classes.flatten()
    means = torch.stack([pixels[flat == c].mean(0) for c in range(6)]).unflatten(0, (3, 2))
    bands, height = means[..., :8], means[..., 8]
    assert (bands[:, 0] - bands[:, 1]).abs().max() < 0.15
    assert (bands[0] - bands[1]).abs().max() > 0.3
    assert ((height[:, 1] - height[:, 0]) * 0.8 - 1).abs().max() < 0.3


def test_one_sensor_is_all_that_a_network_of_one_view_gets():
    torch.manual_seed(0)
    x = torch.randn(1, 9, 16, 16)
    other = x.clone()
    other[:, 8] += 1
    for view, same in (("spectrum", True), ("height", False), ("both", False)):
        model = terrain.TwoSensors(Concatenation, dim=4, view=view).eval()
        assert model(x).shape == (1, 6, 16, 16)
        assert torch.equal(model(x), model(other)) == same
    with pytest.raises(ValueError, match="view must be one of both, spectrum, height, got 'all'"):
        terrain.TwoSensors(Concatenation, view="all")


def test_the_score_counts_pixels_named_right():
    with rehearsal():
        classes = terrain.maps("test")[1]
        for named in (0, 5):
            found = terrain.score(lambda x, c=named: torch.eye(6)[c].view(1, 6, 1, 1).expand(len(x), -1, 16, 16))
            assert found == pytest.approx(100 * (classes == named).float().mean().item())


def test_claims_are_differences(monkeypatch):
    values = {"both": 70.0, "spectrum": 40.0, "height": 30.0}

    def trained(fusion, *, steps, seed, view="both"):
        return values[view] - (5 if fusion is None else 0)

    monkeypatch.setattr(terrain, "trained", trained)
    monkeypatch.setattr(terrain, "score", lambda value: value)
    words = {"steps": 5, "paper": "", "clause": 1}
    assert run_one(terrain.above_single(Concatenation, "Above.", **words)).value == 30
    assert run_one(terrain.better(Concatenation, "More.", than=None, **words)).value == 5
