import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.shrink.distill.distillation import Distillation, Views, soft_cross_entropy
from foveal.shrink.distill.ofa_kd import OFAKD, TokenExit, cnn_exit, cnn_exits, ofa


def logits(rows=7, classes=5):
    generator = torch.Generator().manual_seed(0)
    s, t = (2 * torch.randn(rows, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    return s.requires_grad_(), t, torch.arange(rows) % classes


@pytest.mark.parametrize("gamma", [1.0, 1.5])
@pytest.mark.parametrize(("rows", "classes"), [(7, 5), (1, 2), (3, 11)])
def test_the_loss_is_the_formula(gamma, rows, classes):
    s, t, y = logits(rows, classes)
    p, q = (s / 2).softmax(1), (t / 2).softmax(1)
    plain = torch.zeros((), dtype=torch.float64)
    for i in range(rows):
        for c in range(classes):
            wanted = (q[i, c] + 1) ** gamma - 1 if c == y[i] else q[i, c] ** gamma
            plain = plain - wanted * p[i, c].log() / rows
    value = ofa(s, t, y, gamma=gamma, temperature=2.0)
    torch.testing.assert_close(value, plain)
    torch.testing.assert_close(*(torch.autograd.grad(x, s)[0] for x in (value, plain)))


def test_gamma_one_is_soft_cross_entropy_and_more_enhances_the_true_class():
    s, t, y = logits()
    torch.testing.assert_close(ofa(s, t, y), soft_cross_entropy(s, t.softmax(1)))
    slopes = [torch.autograd.grad(ofa(s, t, y, gamma=gamma), s)[0].gather(1, y[:, None]) for gamma in (1.0, 1.5)]
    assert (slopes[1] < slopes[0]).all()


@pytest.mark.parametrize(("halvings", "size"), [(0, (3, 5)), (1, (5, 4)), (2, (7, 9))])
def test_exits_of_convolutions(halvings, size):
    leave = cnn_exit(4, halvings=halvings, features=6, num_classes=3)
    x = torch.randn(2, 4, *size, requires_grad=True)
    leave(x).sum().backward()
    assert leave(x).shape == (2, 3)
    assert all(p.grad is not None for p in leave.parameters())
    strides = [m.stride[0] for m in leave.modules() if isinstance(m, nn.Conv2d)]
    assert strides.count(2) == halvings
    assert leave[-1].in_features == 6


def test_one_exit_for_each_stage():
    exits = cnn_exits((4, 8, 16), features=10, num_classes=3)
    sizes = ((2, 4, 8, 8), (2, 8, 4, 4), (2, 16, 2, 2))
    assert [tuple(leave(torch.randn(size)).shape) for leave, size in zip(exits, sizes, strict=True)] == [(2, 3)] * 3


def test_exits_of_tokens_merge_neighbours():
    leave = TokenExit(3, merges=1, features=8, num_classes=5, num_heads=2)
    x = torch.randn(2, 16, 3)
    assert leave(x).shape == (2, 5)
    norm, reduce = leave.merges[0]
    four = torch.stack([x[0, [2, 6]], x[0, [3, 7]]]).transpose(0, 1)  # columns 2 and 3 of rows 0 and 1
    plain = reduce(norm(torch.cat([four[0, 0], four[1, 0], four[0, 1], four[1, 1]])))
    seen = {}
    leave.blocks.register_forward_hook(lambda module, inputs, output: seen.update(x=inputs[0]))
    leave(x)
    torch.testing.assert_close(seen["x"][0, 1], plain)
    assert TokenExit(8, merges=0, features=8, num_classes=5)(torch.randn(2, 7, 8)).shape == (2, 5)


def test_the_whole_loss_is_the_sum_of_its_parts():
    s, t, y = logits()
    taps = (torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 2, dtype=torch.float64))
    loss = OFAKD([nn.Linear(3, 5), nn.Linear(2, 5)], gamma=1.3, temperature=2.0, weight=0.5, final=3.0).double()
    plain = F.cross_entropy(s, y) + 3 * ofa(s, t, y, gamma=1.3, temperature=2.0)
    for leave, tap in zip(loss.exits, taps, strict=True):
        plain = plain + 0.5 * ofa(leave(tap), t, y, gamma=1.3, temperature=2.0)
    torch.testing.assert_close(loss(Views(s, y, s, t, taps)), plain)
    alone = OFAKD([], gamma=1.3)(Views(s, y, s, t))
    torch.testing.assert_close(alone, F.cross_entropy(s, y) + ofa(s, t, y, gamma=1.3))


def test_branches_learn_with_the_student_and_are_not_part_of_it():
    student = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 5))
    before = set(student.state_dict())
    loss = OFAKD(cnn_exits((4,), features=6, num_classes=5))
    distillation = Distillation(student, lambda x: x.mean((2, 3)) @ torch.ones(3, 5), loss, student_taps=["1"])
    distillation((torch.randn(3, 3, 8, 8), torch.tensor([0, 4, 2]))).backward()
    assert all(p.grad is not None for p in distillation.parameters())
    assert len(list(distillation.parameters())) > len(list(student.parameters()))
    assert set(student.state_dict()) == before


def test_what_does_not_fit_raises():
    s, t, y = logits()
    with pytest.raises(ValueError, match=r"gamma must be at least 1, got 0\.9"):
        OFAKD([], gamma=0.9)
    with pytest.raises(ValueError, match="1 exits need as many student_taps, got 0"):
        OFAKD([nn.Linear(3, 5)])(Views(s, y, s, t))
    with pytest.raises(ValueError, match="without merges the blocks keep the 3 channels, got features=8; give 3"):
        TokenExit(3, merges=0, features=8, num_classes=5)
    for tokens in (9, 10):
        with pytest.raises(ValueError, match=f"a square of tokens with even sides, got {tokens}; use fewer merges"):
            TokenExit(3, merges=1, features=8, num_classes=5)(torch.randn(2, tokens, 3))
