import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.shrink.distill.ctcl_seg import (
    CollaborativeLearning,
    directions,
    held_fixed,
    pixel_losses,
    pixel_transfer,
    region_losses,
    region_transfer,
)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Student(nn.Module):
    """Two stages, a decoder and a classifier; the second stage has running statistics and, if asked, halves the map."""

    def __init__(self, low, middle, last, stride=1):
        super().__init__()
        second = nn.Sequential(nn.Conv2d(low, middle, 1, stride), nn.BatchNorm2d(middle), nn.Tanh())
        self.stages = nn.ModuleList([nn.Conv2d(3, low, 2, 2), second])
        self.decoder = nn.Conv2d(middle, last, 1)
        self.classifier = nn.Conv2d(last, 4, 1)

    def forward(self, x):
        return self.classifier(self.decoder(self.stages[1](self.stages[0](x))))


def both(**words):
    torch.manual_seed(0)
    pair = [Student(3, 5, 6), Student(4, 7, 8)]
    return CollaborativeLearning(pair, low_dims=(3, 4), dims=(6, 8), grid=(2, 2), **words)


def batch():
    labels = torch.randint(0, 4, (2, 8, 12), generator=torch.Generator().manual_seed(1))
    labels[0, :4] = 255
    return drawn(2, 3, 8, 12), labels


def test_pixels_have_their_own_loss():
    logits, (_, labels) = drawn(2, 4, 8, 12), batch()
    losses = pixel_losses(logits, labels)
    assert losses[0, 0, 0] == 0
    wanted = -logits[1, :, 2, 3].log_softmax(0)[labels[1, 2, 3]]
    torch.testing.assert_close(losses[1, 2, 3], wanted)


@pytest.mark.parametrize("grid", [(2, 3), (4, 6), (1, 1)])
def test_regions_have_the_mean_of_pixels_that_count(grid):
    losses, counted = drawn(2, 4, 6).abs(), drawn(2, 4, 6, seed=1) > 0
    found = region_losses(losses, counted, grid=grid)
    down, across = 4 // grid[0], 6 // grid[1]
    for i in range(grid[0]):
        for j in range(grid[1]):
            place = (1, slice(down * i, down * i + down), slice(across * j, across * j + across))
            wanted = losses[place][counted[place]].mean()
            torch.testing.assert_close(found[1, i, j], wanted, equal_nan=True)


def test_directions_by_hand():
    first = torch.tensor([0.1, 0.7, 0.4, float("nan")])
    second = torch.tensor([0.2, 0.3, 0.4, float("nan")])
    ours, theirs = directions(first, second)
    assert ours.tolist() == [True, False, False, False]
    assert theirs.tolist() == [False, True, False, False]


def test_pixels_take_over_predictions_where_they_are_given():
    receiver, giver = drawn(2, 4, 3, 5).requires_grad_(), drawn(2, 4, 3, 5, seed=1).requires_grad_()
    given = drawn(2, 3, 5, seed=2) > 0
    loss = pixel_transfer(receiver, giver, given)
    rows = given.flatten()
    p, q = (x.permute(0, 2, 3, 1).flatten(0, 2)[rows].softmax(-1) for x in (giver, receiver))
    torch.testing.assert_close(loss, (p * (p / q).log()).sum() / given.numel())
    loss.backward()
    assert giver.grad is None
    moved = receiver.grad.abs().sum(1) > 0
    assert torch.equal(moved, given)
    assert pixel_transfer(receiver, receiver, given).item() == pytest.approx(0, abs=1e-6)


def test_regions_take_over_features_where_they_are_given():
    receiver, giver = drawn(1, 3, 4, 6).requires_grad_(), drawn(1, 3, 4, 6, seed=1).requires_grad_()
    given = torch.tensor([[[True, False], [False, True]]])
    loss = region_transfer(receiver, giver, given)
    wanted = sum(
        2 - 2 * F.cosine_similarity(receiver[0, :, i, j], giver[0, :, i, j], dim=0)
        for i in range(4)
        for j in range(6)
        if given[0, i // 2, j // 3]
    )
    torch.testing.assert_close(loss, wanted / 24)
    loss.backward()
    assert giver.grad is None
    assert receiver.grad[0, :, :2, :3].abs().sum(0).all()
    assert not receiver.grad[0, :, :2, 3:].any()
    assert region_transfer(receiver, 3 * receiver, given).item() == pytest.approx(0, abs=1e-6)


def test_a_stage_that_is_held_fixed_leaves_no_trace():
    stage, x = Student(3, 5, 6).stages[1], drawn(2, 3, 4, 4).requires_grad_()
    before = {name: b.clone() for name, b in stage.named_buffers()}
    y = held_fixed(stage, x)
    y.square().sum().backward()
    assert x.grad.any()
    assert all(p.grad is None for p in stage.parameters())
    assert all(torch.equal(b, before[name]) for name, b in stage.named_buffers())
    torch.testing.assert_close(y, stage(x))


def test_the_loss_is_the_weighted_sum_of_its_parts():
    module = both(weights=(0.2, 0.3, 0.4))
    parts = module.parts(*batch())
    wanted = parts["supervised"] + 0.2 * parts["features"] + 0.3 * parts["regions"] + 0.4 * parts["pixels"]
    torch.testing.assert_close(module(batch()), wanted)
    assert all(part > 0 for part in parts.values())


def test_supervision_is_the_cross_entropy_of_both():
    module, (x, labels) = both(weights=(0.0, 0.0, 0.0)).eval(), batch()
    wanted = sum(
        F.cross_entropy(F.interpolate(net(x), (8, 12), mode="bilinear"), labels, ignore_index=255)
        for net in module.students
    )
    torch.testing.assert_close(module((x, labels)), wanted)


def test_a_student_gives_only_where_it_is_right_and_less_wrong():
    module, (x, labels) = both().eval(), batch()
    logits = [F.interpolate(net(x), (8, 12), mode="bilinear") for net in module.students]
    losses = [pixel_losses(z, labels) for z in logits]
    total = 0
    for a, b in ((0, 1), (1, 0)):
        given = (losses[b] < losses[a]) & (logits[b].argmax(1) == labels)
        assert given.any()
        assert not given[0, :4].any()
        total = total + pixel_transfer(logits[a], logits[b], given)
    torch.testing.assert_close(module.parts(x, labels)["pixels"], total)


def test_a_student_gives_features_in_the_regions_in_which_it_is_less_wrong():
    module, (x, labels) = both().eval(), batch()
    losses, last = [], []
    for net in module.students:
        features = net.decoder(net.stages[1](net.stages[0](x)))
        logits = F.interpolate(net.classifier(features), (8, 12), mode="bilinear")
        losses.append(region_losses(pixel_losses(logits, labels), labels != 255, grid=(2, 2)))
        last.append(features)
    total, given = 0, losses[0] < losses[1]
    assert 0 < int(given.sum()) < 6  # of eight regions two have no label
    for a, where in ((0, losses[1] < losses[0]), (1, given)):
        total = total + region_transfer(module.project[a](last[a]), last[1 - a], where)
    torch.testing.assert_close(module.parts(x, labels)["regions"], total)


def test_low_features_learn_what_the_other_stage_wants():
    module, (x, labels) = both(), batch()
    module.parts(x, labels)["features"].backward()
    changed = {name for name, p in module.named_parameters() if p.grad is not None and p.grad.any()}
    assert {name.split(".")[0] for name in changed} == {"students", "enter"}
    assert {name for name in changed if name.startswith("students")} == {
        f"students.{n}.stages.0.{kind}" for n in range(2) for kind in ("weight", "bias")
    }


def test_every_parameter_learns_and_students_are_left_as_they_were_built():
    module = both()
    module(batch()).backward()
    assert [name for name, p in module.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert module.students[0].state_dict().keys() == Student(3, 5, 6).state_dict().keys()
    assert not module.students[0].stages[0]._forward_hooks


def test_what_does_not_fit_raises():
    with pytest.raises(ValueError, match="two students learn from each other, got 1; give two networks"):
        CollaborativeLearning([Student(3, 5, 6)], low_dims=(3, 3), dims=(6, 6))
    with pytest.raises(ValueError, match="Student has no module 'neck'"):
        CollaborativeLearning([Student(3, 5, 6)] * 2, low_dims=(3, 3), dims=(6, 6), last="neck")
