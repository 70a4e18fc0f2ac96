import pytest
import timm
import torch
from torch import nn

from foveal.measure.cost import count_macs
from foveal.shrink.lowrank.step import LowRank, factorise_, factors, most_useful_rank
from foveal.shrink.step import ShrinkError, noted


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("aware", [False, True])
def test_a_matrix_of_low_rank_is_recovered(aware):
    weight = random(9, 3) @ random(3, 7, seed=1)
    x = random(50, 7, seed=2)
    b, a = factors(weight, 3, x.T @ x / 50 if aware else None)
    assert (b.shape, a.shape) == ((9, 3), (3, 7))
    torch.testing.assert_close(b @ a, weight, rtol=1e-4, atol=1e-4)


def test_factors_that_know_the_data_lose_less_of_the_output():
    weight, x = random(12, 10), random(200, 10, seed=1) * torch.tensor([10.0] * 3 + [0.1] * 7)
    covariance = x.T @ x / len(x)

    def lost(b, a):
        return float((x @ (b @ a - weight).T).square().mean())

    plain, aware = lost(*factors(weight, 3)), lost(*factors(weight, 3, covariance))
    assert aware < 0.05 * plain
    best = torch.linalg.svdvals((x @ weight.T).double())[3:].square().sum() / (200 * 12)  # Eckart and Young
    assert aware == pytest.approx(float(best), rel=0.02)


def test_a_rank_has_a_range():
    with pytest.raises(ValueError, match="rank must be in 1…7"):
        factors(random(9, 7), 8)


@pytest.mark.parametrize(("shape", "rank"), [((16, 16), 7), ((64, 32, 3, 3), 52), ((2, 2), 0)])
def test_the_largest_rank_that_saves(shape, rank):
    out, rest = shape[0], torch.Size(shape[1:]).numel()
    assert most_useful_rank(torch.empty(shape)) == rank
    assert rank * (out + rest) < out * rest <= (rank + 1) * (out + rest)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(9, 7), random(2, 5, 9)),
        (nn.Conv2d(5, 6, 1, bias=False), random(2, 5, 7, 9)),
        (nn.Conv2d(5, 7, 3, stride=2, padding=1), random(2, 5, 7, 9)),
        (nn.Conv2d(5, 7, (3, 1), dilation=2), random(2, 5, 9, 9)),
    ],
    ids=["linear", "1x1", "strided", "dilated"],
)
def test_at_full_rank_nothing_changes(layer, x):
    whole = nn.Sequential(layer)
    wanted = whole(x)
    rank = min(layer.weight.flatten(1).shape)
    thin = factorise_(whole, {"0": rank})
    assert len(thin[0]) == 2
    torch.testing.assert_close(thin(x), wanted, rtol=1e-4, atol=1e-5)


def test_a_network_keeps_its_budget_and_loses_where_it_hurts_least():
    torch.manual_seed(0)
    easy, hard = nn.Linear(64, 64), nn.Linear(64, 64)
    with torch.no_grad():
        easy.weight.copy_(random(64, 8) @ random(8, 64, seed=1) / 64)
    model, x = nn.Sequential(easy, nn.ReLU(), hard).eval(), random(32, 64, seed=3)
    thin = LowRank(keep=0.7).apply(model, x)
    assert isinstance(thin[0], nn.Sequential)
    assert isinstance(thin[2], nn.Linear)
    assert isinstance(model[0], nn.Linear)
    assert count_macs(thin, (1, 64)) <= 0.7 * count_macs(model, (1, 64))
    torch.testing.assert_close(thin(x), model(x), rtol=1e-3, atol=1e-3)


def test_a_timm_network_runs_with_fewer_multiply_adds():
    torch.manual_seed(0)
    model, x = timm.create_model("test_vit", num_classes=7, img_size=32).eval(), random(4, 3, 32, 32)
    with noted() as notes:
        thin = LowRank(keep=0.6, shares=(0.6, 0.4), samples=2).apply(model, x)
    assert thin(x).shape == (4, 7)
    assert count_macs(thin, (1, 3, 32, 32)) < 0.75 * count_macs(model, (1, 3, 32, 32))
    assert any("layers became two" in line for line in notes)


def test_a_budget_that_cannot_be_met_says_what_can():
    with pytest.raises(ShrinkError, match=r"keep = 0.05 cannot be met, the smallest ranks tried take 0\.\d+"):
        LowRank(keep=0.05).apply(nn.Sequential(nn.Linear(64, 64)).eval(), random(4, 64))


def test_nothing_to_factorise_is_said():
    with pytest.raises(ShrinkError, match="no layer that two factors of rank 8 or more make cheaper"):
        LowRank().apply(nn.Sequential(nn.Linear(4, 4)).eval(), random(4, 4))


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"keep": 1.0}, r"keep must be in \(0, 1\)"),
        ({"shares": ()}, r"shares must be in \(0, 1\)"),
        ({"samples": 0}, "samples must be"),
    ],
)
def test_arguments_in_their_range(wrong, text):
    with pytest.raises(ValueError, match=text):
        LowRank(**wrong)
