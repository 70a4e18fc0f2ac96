import pytest
import torch

from foveal.models.restore.repair_net import GRID, RepairNet, repair_clean, repair_weather

LEVEL = (0.5, 1.0, 0.3)


@pytest.fixture
def told():
    torch.manual_seed(0)
    made = repair_clean(channels=8, depth=2).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def test_at_the_start_it_is_the_identity():
    x = torch.rand(2, 3, 10, 14)
    assert torch.equal(RepairNet(channels=8, depth=1)(x), x)
    assert torch.equal(repair_clean(channels=8, depth=1)(x, torch.rand(2, 3)), x)


def test_the_plain_form_is_the_network_inside_its_margin(told):
    m = told.margin
    x = torch.rand(1, 3, 2 * m + 6, 2 * m + 8)
    inside = told(x, torch.tensor([LEVEL]))[..., m:-m, m:-m]
    torch.testing.assert_close(told.plain(LEVEL)(x), inside, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(told.plain()(x), inside, atol=1e-3)


def test_levels_differ_in_biases_alone(told):
    first, second = (told.plain(level).state_dict() for level in (GRID[1], GRID[12]))
    assert {name for name in first if not torch.equal(first[name], second[name])} == {
        "head.bias",
        "first.0.bias",
        "first.1.bias",
    }


def test_no_level_is_a_clean_one(told):
    x = torch.rand(1, 3, 6, 8)
    assert torch.equal(told(x), told(x, torch.zeros(1, 3)))


def test_beyond_the_margin_nothing_counts():
    made = repair_weather(channels=8, depth=1)
    torch.nn.init.normal_(made.tail.weight)
    side = 2 * made.margin + 2  # a block of two pixels and its margin
    x = torch.rand(1, 3, side, side, requires_grad=True)
    first = made.margin
    made(x)[0, :, first : first + 2, first : first + 2].sum().backward()
    seen = x.grad.abs().sum((0, 1)).nonzero()
    assert seen.amin(0).tolist() == [0, 0]
    assert seen.amax(0).tolist() == [side - 1, side - 1]


def test_it_does_not_enlarge():
    with pytest.raises(ValueError, match="at their own size, scale 1, got 4"):
        RepairNet(4)
