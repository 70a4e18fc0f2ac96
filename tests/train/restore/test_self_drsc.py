import pytest
import torch
import torch.nn.functional as F

from foveal.nn.motion import row_map, warped
from foveal.train.restore.self_drsc import Corrector, SelfDistillation, agreement, cycle_loss, reread, roughness

V = torch.tensor([4.0, 0.0])


def seen(times, side=24, seed=0):
    """A smooth scene that moves by V in the time of a reading, by a wide picture read at shifted places."""
    coarse = torch.rand(1, 3, 5, 9, generator=torch.Generator().manual_seed(seed))
    wide = F.interpolate(coarse, (side, 2 * side), mode="bicubic", align_corners=True)
    columns = torch.arange(side) + side / 2 - V[0] * torch.as_tensor(times).expand(side, 1)
    rows = torch.arange(side)[:, None].expand(side, side)
    grid = torch.stack([2 * columns / (2 * side - 1) - 1, 2 * rows / (side - 1) - 1], -1)
    return F.grid_sample(wide, grid[None], align_corners=True)


@pytest.fixture
def pair():
    down = row_map(24)
    return seen(down), seen(down.flip(0))


def rows(side=24):
    return row_map(side), row_map(side, reverse=True)


def moved(side=24):
    return V.view(1, 2, 1, 1).expand(1, 2, side, side)


@pytest.mark.parametrize("time", [0.0, 0.3, 1.0])
def test_a_frame_read_again_is_the_rolling_shutter(pair, time):
    for given, when in zip(pair, rows(), strict=True):
        made, mask = reread(seen(time), moved(), time, when)
        assert 0 < mask.mean() <= 1
        assert ((made - given) * mask).abs().max() < 0.03


def test_truth_has_the_least_cycle_loss(pair):
    def loss(velocity, times=(0.0, 0.5, 1.0)):
        return float(cycle_loss([seen(t) for t in times], velocity, pair, times=times, rows=rows()))

    assert loss(moved()) < 0.1 * loss(torch.zeros(1, 2, 24, 24))
    assert loss(moved()) < 0.2 * loss(moved() * 0.5)
    assert loss(moved()) < 0.1 * loss(-moved())


def test_only_the_true_motion_brings_the_inputs_together(pair):
    def loss(velocity):
        return float(agreement(pair, velocity, times=(0.0, 0.5, 1.0), rows=rows()))

    assert loss(moved()) < 0.1 * loss(torch.zeros(1, 2, 24, 24))
    assert loss(moved()) < 0.2 * loss(moved() * 0.7)
    x = pair[0]
    assert float(agreement((x, x), torch.zeros(1, 2, 24, 24), times=(0.2,), rows=rows())) < 1e-6


def test_cycle_loss_is_the_mean_of_what_is_read_inside_with_gradients():
    generator = torch.Generator().manual_seed(1)
    frame, one, two = (torch.rand(2, 3, 5, 7, generator=generator, dtype=torch.float64) for _ in range(3))
    velocity = torch.randn(2, 2, 5, 7, generator=generator, dtype=torch.float64) * 3
    leaves = frame.requires_grad_(), velocity.requires_grad_()
    down = row_map(5).double()
    terms, count = [], 0
    for given, when in ((one, down), (two, down.flip(0))):
        flow = velocity * (0.25 - when)
        x, y = torch.arange(7) + flow[:, 0], torch.arange(5)[:, None] + flow[:, 1]
        read = (x >= 0) & (x <= 6) & (y >= 0) & (y <= 4)
        terms.append((warped(frame, flow) - given).abs().permute(0, 2, 3, 1)[read].sum())
        count += 3 * int(read.sum())
    expected = sum(terms) / count
    loss = cycle_loss([frame], velocity, (one, two), times=(0.25,), rows=(down, down.flip(0)))
    torch.testing.assert_close(loss, expected)
    for a, b in zip(*(torch.autograd.grad(value, leaves) for value in (loss, expected)), strict=True):
        torch.testing.assert_close(a, b)


def test_an_untrained_network_sees_the_motion_and_corrects(pair):
    torch.manual_seed(0)
    network = Corrector(dim=4).eval()
    with torch.no_grad():
        frames, velocity = network(pair, (0.0, 0.5, 1.0))
    assert (velocity.mean((0, 2, 3)) - V).abs().max() < 1.0
    for frame, time in zip(frames, (0.0, 0.5, 1.0), strict=True):
        wanted, inner = seen(time), (..., slice(None), slice(5, -5))
        for given in pair:
            assert (frame - wanted)[inner].abs().mean() < 0.7 * (given - wanted)[inner].abs().mean()


def test_a_resting_scene_stays():
    torch.manual_seed(0)
    x = seen(0.0)
    frames, velocity = Corrector(dim=4)((x, x), (0.2, 0.9))
    torch.testing.assert_close(velocity, torch.zeros_like(velocity), atol=0.2, rtol=0)
    for frame in frames:
        torch.testing.assert_close(frame, x, atol=0.02, rtol=0)


def test_roughness_by_hand():
    velocity = torch.zeros(1, 2, 2, 3)
    velocity[0, 0] = torch.tensor([[0.0, 1, 1], [0, 1, 3]])
    assert float(roughness(velocity)) == pytest.approx(2 / 6 + (1 + 0 + 1 + 2) / 8)


def test_the_student_learns_from_crops_and_the_teacher_follows(pair):
    torch.manual_seed(0)
    model = SelfDistillation(Corrector(reach=(4, 2), dim=4), margin=4, warmup=1)
    frames, velocity = model.student(pair, (0.5,))
    cycle = cycle_loss(frames, velocity, pair, times=(0.5,), rows=rows())
    cycle = cycle + agreement(pair, velocity, times=(0.5,), rows=rows()) + model.smooth * roughness(velocity)
    torch.testing.assert_close(model(pair, (0.5,)), cycle)  # before the distillation begins
    cut = ..., slice(4, -4), slice(4, -4)
    crop = model.student(tuple(x[cut] for x in pair), (0.5,), tuple(t[4:-4] for t in rows()))[0][0]
    wanted = model.teacher(pair, (0.5,))[0][0][cut]
    both = model(pair, (0.5,))
    torch.testing.assert_close(both, cycle + model.weight * F.l1_loss(crop, wanted))
    both.backward()
    assert all(p.grad is not None for p in model.student.parameters())
    assert all(p.grad is None for p in model.teacher.parameters())
    with torch.no_grad():
        model.student.sharp.add_(10)
    before = model.teacher.sharp.clone()
    model.follow()
    assert before < model.teacher.sharp < model.student.sharp


def test_one_time_for_each_frame(pair):
    with pytest.raises(ValueError, match="each frame has one time, got 1 frames and 2 times"):
        cycle_loss([pair[0]], moved(), pair, times=(0.0, 1.0), rows=rows())
