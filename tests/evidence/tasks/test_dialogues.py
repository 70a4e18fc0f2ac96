import pytest
import torch

from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.tasks import dialogues


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(dialogues, "COUNT", {"train": 200, "test": 60})


def test_emotions_persist_and_are_the_same_each_time(few):
    # Called past the cache, which other tests share.
    features, labels = dialogues.conversations.__wrapped__("train")
    assert features.shape == (200, 20, 24)
    assert torch.equal(dialogues.conversations.__wrapped__("train")[0], features)
    assert not torch.equal(dialogues.conversations.__wrapped__("test")[0], features[:60])
    assert (torch.bincount(labels.flatten()) / labels.numel() - 0.25).abs().max() < 0.05
    # stays, or drawn anew and the same by chance
    same = (labels[:, 1:] == labels[:, :-1]).float().mean()
    assert same == pytest.approx(dialogues.STAY + (1 - dialogues.STAY) / 4, abs=0.02)


def test_each_view_is_loud_by_itself(few):
    features, labels = dialogues.conversations.__wrapped__("train")
    prototypes = torch.randn(4, 20, generator=torch.Generator().manual_seed(15))
    noise = (features.transpose(1, 2) - prototypes[labels]) / 1.5
    spread = torch.stack([view.square().mean(-1).sqrt() for view in noise.split(dialogues.VIEWS, -1)])
    loud = spread > 1.8
    assert (loud.float().mean((1, 2)) - dialogues.LOUD).abs().max() < 0.05
    assert (loud[0] != loud[1]).float().mean() > 0.4


def test_the_score_counts_utterances_named_right():
    with rehearsal():
        labels = dialogues.conversations("test")[1]
        for named in (0, 3):
            found = dialogues.score(lambda x, c=named: torch.eye(4)[c].view(1, 4, 1).expand(len(x), -1, 24))
            assert found == pytest.approx(100 * (labels == named).float().mean().item())
