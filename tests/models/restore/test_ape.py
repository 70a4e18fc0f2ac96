import math

import pytest
import torch

from foveal.evidence.rivals.edsr import EDSR
from foveal.models.restore.ape import APE, capacity, grid_of, loss, patch_means
from foveal.runtime.route import recording

SMALL = {"dim": 6, "depth": 4, "interval": 2, "patch_size": 5}


def drawn(**words):
    """A network whose exits predict something, in float64."""
    torch.manual_seed(0)
    network = APE(2, **(SMALL | words)).double().eval()
    network.regressors.copy_(torch.randn_like(network.regressors))
    return network


def reference(network, x):
    """Every stage computed everywhere, and kept where patches stay; patch by patch, with its exit."""
    rows, columns, h, w = grid_of(*x.shape[2:], network.patch_size)
    first = features = network.head(x - 0.5)
    stays = torch.ones(len(x), rows, columns, dtype=torch.bool)
    for i, stage in enumerate(network.body):
        where = stays.repeat_interleave(h, 1).repeat_interleave(w, 2)[:, None, : x.shape[2], : x.shape[3]]
        for block in stage:
            features = torch.where(where, block(features), features)
        for b, r, c in torch.cartesian_prod(*map(torch.arange, stays.shape)).tolist():
            if i < len(network.body) - 1:
                patch = features[b, :, r * h : (r + 1) * h, c * w : (c + 1) * w]
                weight = network.regressors[i]
                stays[b, r, c] &= bool(patch.abs().mean((1, 2)) @ weight[:-1] + weight[-1] >= network.threshold)
    return network.tail(network.up(first + network.fuse(features))) + 0.5, stays


@pytest.mark.parametrize("size", [(13, 17), (5, 5), (1, 7), (10, 4)])
@pytest.mark.parametrize("interval", [1, 2])
def test_patches_that_leave_stay_as_they_are(size, interval):
    network, x = drawn(interval=interval), torch.rand(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        network.threshold = float(
            network.predicted(0, network.body[0](network.head(x - 0.5)), grid_of(*size, 5)).mean()
        )
        wanted, stays = reference(network, x)
        torch.testing.assert_close(network(x), wanted, rtol=0, atol=1e-12)
    assert not stays.all()


def test_without_a_threshold_it_is_edsr():
    network, plain, x = APE(3, **SMALL), EDSR(3, dim=6, depth=4), torch.rand(2, 3, 7, 9)
    names = {"body.0.0": "body.0", "body.0.1": "body.1", "body.1.0": "body.2", "body.1.1": "body.3"}
    state = {k: v for k, v in network.state_dict().items() if k != "regressors"}
    plain.load_state_dict(
        {next((k.replace(a, b) for a, b in names.items() if k.startswith(a)), k): v for k, v in state.items()}
    )
    with torch.no_grad():
        whole = network(x)
        assert torch.equal(whole, plain(x))
        network.threshold = -math.inf
        assert torch.equal(network(x), whole)
        *_, (last, _) = network.exits(x)
        assert torch.equal(last, whole)


def test_if_all_leave_it_is_the_first_exit():
    network, x = drawn(), torch.rand(1, 3, 12, 11, dtype=torch.float64)
    network.threshold = math.inf
    with torch.no_grad(), recording() as routes:
        assert torch.equal(network(x), next(iter(network.exits(x)))[0])
    assert routes[0].counts == (9, 0)
    assert routes[0].unit == "patches"
    assert routes[0].work == pytest.approx(sum(network.costs()))


def test_the_route_counts_the_patches_of_each_stage():
    network, x = drawn(interval=1), torch.rand(2, 3, 13, 17, dtype=torch.float64)
    with torch.no_grad(), recording() as routes:
        network(x)
        network.threshold = 0.0
        network(x)
    whole, route = routes
    assert whole.counts == whole.of == (12, 12, 12, 12)
    assert whole.work == pytest.approx(1)
    fixed, stage = network.costs()
    assert route.work.sum() == pytest.approx(24 * fixed + 2 * stage * sum(route.counts))
    assert list(route.counts) == sorted(route.counts, reverse=True)
    assert route.share < 1


def test_capacity_is_the_fall_of_the_error():
    errors = torch.tensor([[0.1, 0.01], [0.01, 0.01], [0.02, 0.001]])
    torch.testing.assert_close(capacity(errors), 255**2 * torch.tensor([[0.09, 0], [-0.01, 0.009]]))
    wanted = torch.tensor([[10, 0], [10 * math.log10(0.5), 10]]).tanh()
    torch.testing.assert_close(capacity(errors, decibels=True), wanted)


@pytest.mark.parametrize("scale", [1, 2])
def test_means_of_patches_leave_out_what_is_beyond_the_picture(scale):
    x, grid = torch.rand(2, 3, 7 * scale, 11 * scale), grid_of(7, 11, 4)
    assert grid == (2, 3, 4, 4)
    means = patch_means(x, grid, scale=scale)
    side = 4 * scale
    for i in range(2):
        for j in range(3):
            wanted = x[:, :, i * side : (i + 1) * side, j * side : (j + 1) * side].mean((2, 3))
            torch.testing.assert_close(means[:, i, j], wanted)


def test_regressors_are_the_least_squares():
    network = drawn(interval=1)
    network.regressors.zero_()
    batches = [
        (torch.rand(2, 3, 10, 13, dtype=torch.float64), torch.rand(2, 3, 20, 26, dtype=torch.float64)) for _ in range(3)
    ]
    network.fit_regressors_(iter(batches), ridge=0)
    grid, rows, gains = grid_of(10, 13, 5), [], []
    with torch.no_grad():
        for low, high in batches:
            outputs = list(network.exits(low))
            rows.append(patch_means(outputs[1][1].abs(), grid).flatten(0, 2))
            falls = [patch_means((out - high).square(), grid, scale=2).mean(-1) for out, _ in outputs]
            gains.append(255**2 * (falls[1] - falls[2]).flatten())
    rows, gains = torch.cat(rows), torch.cat(gains)
    rows = torch.cat([rows, torch.ones(len(rows), 1)], 1)
    torch.testing.assert_close(network.regressors[1], torch.linalg.lstsq(rows, gains[:, None]).solution[:, 0])


@pytest.mark.parametrize("budget", [0.7, 0.85])
def test_a_budget_is_met_on_the_pictures_it_was_found_on(budget):
    network = drawn(interval=1, depth=6)
    pictures = [torch.rand(1, 3, 40, 35, dtype=torch.float64) for _ in range(3)]
    network.fit_budget_(budget, pictures)
    with torch.no_grad(), recording() as routes:
        for x in pictures:
            network(x)
    spent = sum(float(route.work.mean()) for route in routes) / 3
    least, again = sum(network.costs()), ((7 / 5) ** 2 + 1) / 2
    assert least + again * (spent - least) == pytest.approx(budget, abs=0.02)
    network.fit_budget_(1)
    assert network.threshold is None


def test_all_exits_are_trained():
    network = APE(2, **SMALL)
    loss(network, (torch.rand(2, 3, 6, 6), torch.rand(2, 3, 12, 12))).backward()
    assert all(p.grad is not None for p in network.parameters())
    x, y = torch.rand(2, 3, 6, 6), torch.rand(2, 3, 12, 12)
    wanted = sum((out - y).abs().mean() for out, _ in network.exits(x))
    torch.testing.assert_close(loss(network, (x, y)), wanted)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"scale": 5}, "scale must be 2, 3 or 4, got 5"),
        ({"interval": 3}, "interval must divide the depth of 4, got 3; 1 always does"),
        ({"interval": 0}, "got 0"),
        ({"patch_size": 1}, "patch_size must be at least 2, got 1; 32 is a good size"),
    ],
)
def test_wrong_arguments_are_refused(words, text):
    with pytest.raises(ValueError, match=text):
        APE(**(SMALL | words))


def test_what_cannot_be_fitted_is_refused():
    network = drawn()
    with pytest.raises(ValueError, match="regressors are solved for on pictures, got none"):
        network.fit_regressors_([])
    with pytest.raises(
        ValueError, match=r"budget must be at least 0\.\d+, what every place of a picture costs, got 0\.1"
    ):
        network.fit_budget_(0.1, [torch.rand(1, 3, 9, 9)])
