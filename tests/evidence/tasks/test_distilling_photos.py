from functools import partial

import torch
from torch import nn

from foveal.evidence.rehearsal import rehearsal
from foveal.evidence.rivals.edsr import EDSR
from foveal.evidence.run import run_one
from foveal.evidence.tasks import distilling_photos, photos
from foveal.evidence.tasks.distilling_photos import better, logits, pictures_alone, student
from foveal.shrink.distill.distillation import Views

tiny = partial(EDSR, dim=2, depth=1)


class Beside(nn.Module):
    """A loss with a parameter of its own that draws random numbers."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(()))

    def forward(self, views):
        torch.rand(5)
        return pictures_alone(views) + 0 * self.scale


def test_losses_are_what_they_say():
    made, target, taught = torch.rand(3, 2, 3, 4, 4).unbind(0)
    views = Views(made, target, made, taught)
    assert torch.equal(pictures_alone(views), (made - target).abs().mean())
    torch.testing.assert_close(logits(views), (made - target).abs().mean() + (made - taught).abs().mean())


def test_students_of_two_losses_start_and_see_the_same():
    words = {"seed": 3, "build": tiny, "taught_by": tiny}
    with rehearsal():
        alone = student(lambda *_: pictures_alone, **words)
        beside = student(lambda *_: Beside(), **words)
        other = student(lambda *_: pictures_alone, **words | {"seed": 4})
    assert not alone.training
    for a, b, c in zip(alone.parameters(), beside.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_the_teacher_is_trained_when_rehearsed():
    with rehearsal():
        assert isinstance(distilling_photos.teacher(2, dim=2, depth=1), EDSR)


def test_the_claim_turns_against_a_worse_student(monkeypatch):
    monkeypatch.setattr(photos, "gain", lambda value, _: value)
    verdicts = [
        run_one(better("Better.", ours, than=theirs, paper="", by=0.5)).verdict
        for ours, theirs in ((lambda _: 2.0, lambda _: 1.0), (lambda _: 1.0, lambda _: 2.0))
    ]
    assert verdicts == ["holds", "does not hold"]
