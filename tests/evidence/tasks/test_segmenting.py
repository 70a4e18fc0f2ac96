import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.tasks import segmenting
from foveal.evidence.tasks.segmenting import CLASSES, IGNORED, batches, confusion, cross_entropy, mean_iou, score
from foveal.measure import benchmarks


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def camvid(tmp_path, monkeypatch):
    """Two pictures a part: grey, the left half sky and the right half unlabelled, or all of class 10."""
    for part in ("train", "val", "test"):
        for folder in (part, f"{part}annot"):
            (tmp_path / "camvid" / folder).mkdir(parents=True)
        for name, labels in (("a.png", [0, 11]), ("b.png", [10, 10])):
            shade = np.full((36, 48, 3), 128, np.uint8)
            Image.fromarray(shade).save(tmp_path / "camvid" / part / name)
            Image.fromarray(np.repeat(np.array([labels], np.uint8), 24, 1).repeat(36, 0)).save(
                tmp_path / "camvid" / f"{part}annot" / name
            )
    monkeypatch.setenv("FOVEAL_DATA", str(tmp_path))
    return tmp_path / "camvid"


def test_pictures_are_read_and_reduced_with_their_labels(camvid):
    x, y = segmenting._read(benchmarks.find("camvid"), "test")
    assert benchmarks.find("camvid") == camvid
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((2, 3, 96, 128), torch.float32, (2, 96, 128), torch.int64)
    shade = (128 / 255 - torch.tensor(segmenting.MEAN)) / torch.tensor(segmenting.DEVIATION)
    torch.testing.assert_close(x[0, :, 5, 7], shade)
    assert (y[0, :, :64] == 0).all()
    assert (y[0, :, 64:] == IGNORED).all()
    assert (y[1] == 10).all()


def test_a_folder_without_pictures_raises(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(benchmarks.DataError, match=r"train holds no .png; copy CamVid of SegNet's tutorial there"):
        segmenting._read(tmp_path, "train")


def test_counts_and_mean_iou_by_hand():
    labels = torch.tensor([[0, 0, 1], [1, 2, IGNORED]])
    counts = confusion(torch.tensor([[0, 1, 1], [1, 1, 2]]), labels, classes=4)
    assert counts.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    # class 0: 1 of 2, class 1: 2 of 4, class 2: 0 of 1, class 3 is nowhere
    assert mean_iou(counts) == pytest.approx(100 * (1 / 2 + 2 / 4 + 0) / 3)
    assert mean_iou(confusion(labels, labels, classes=4)) == 100
    assert math.isnan(mean_iou(torch.zeros(2, 2)))


def test_the_loss_is_torchs_over_labelled_pixels():
    logits, labels = drawn(2, 11, 3, 5), torch.randint(0, 11, (2, 3, 5), generator=torch.Generator().manual_seed(1))
    labels[0, 1] = IGNORED
    counted = labels != IGNORED
    wanted = F.cross_entropy(logits.permute(0, 2, 3, 1)[counted], labels[counted])
    torch.testing.assert_close(cross_entropy(logits, labels), wanted)
    large = labels.repeat_interleave(4, 1).repeat_interleave(4, 2)
    enlarged = F.interpolate(logits, (12, 20), mode="bilinear")
    torch.testing.assert_close(cross_entropy(logits, large), F.cross_entropy(enlarged, large, ignore_index=IGNORED))


def test_batches_depend_on_step_and_seed_alone():
    data = drawn(5, 3, 4, 6), torch.arange(5 * 24).view(5, 4, 6)
    load = batches(3, batch=64, data=data)
    first = [t.clone() for t in load(0)]
    torch.randn(3)
    assert all(torch.equal(a, b) for a, b in zip(first, batches(3, batch=64, data=data)(0), strict=True))
    assert not torch.equal(first[1], load(1)[1])
    assert not torch.equal(first[1], batches(4, batch=64, data=data)(0)[1])
    mirrored = 0
    for x, y in zip(*first, strict=True):
        row = int(y.min()) // 24
        turned = bool(y[0, 0] > y[0, 1])
        mirrored += turned
        assert torch.equal(x, data[0][row].flip(-1) if turned else data[0][row])
        assert torch.equal(y, data[1][row].flip(-1) if turned else data[1][row])
    assert 10 < mirrored < 54


class Perfect(nn.Module):
    """Logits of the class that the first channel names, at a quarter of the size."""

    def forward(self, x):
        return F.one_hot(x[:, 0, ::4, ::4].long(), len(CLASSES)).permute(0, 3, 1, 2).float()


def test_the_score_sees_all_pictures_and_errors():
    labels = torch.arange(3).view(3, 1, 1).expand(3, 8, 8)
    x = labels[:, None].expand(3, 3, 8, 8).float()
    assert score(Perfect(), (x, labels), batch=2) == 100
    assert score(Perfect(), (x.roll(1, 0), labels)) == 0
    # the last picture is taken for class 0: IoU 1/2, 1 and 0
    assert score(Perfect(), (x * (x < 2), labels)) == pytest.approx(50)


def test_the_floor_is_the_most_frequent_class_of_each_place():
    with rehearsal():
        _, labels = segmenting.pictures("train")
        frequent = labels.mode(0).values.expand_as(labels)
        assert segmenting.floor("train") == pytest.approx(mean_iou(confusion(frequent, labels)))


def test_a_network_is_trained_and_kept():
    def build():
        return nn.Conv2d(3, len(CLASSES), 4, 4)

    with rehearsal():
        first = segmenting.trained(build, steps=2, seed=0)
        assert segmenting.trained(build, steps=2, seed=0) is first
        assert not first.training
        assert not torch.equal(segmenting.trained(build, steps=2, seed=1).weight, first.weight)


def test_a_claim_is_the_paired_difference():
    scores = {0: 50.0, 1: 60.0}
    claim = segmenting.better("Better.", lambda seed: scores[seed] + 2, than=scores.get, paper="2", clause=1)
    assert claim.check["quality"](1) == 2
    assert (claim.check["unit"], claim.check["at_least"], claim.needs) == ("points", 0.0, ("minutes", "camvid"))
