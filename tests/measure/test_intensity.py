import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.measure.cost import count_macs
from foveal.measure.intensity import Counts, by_kind, counts, fit_share, rank_correlation, table, total


@pytest.fixture(scope="module", autouse=True)
def _decompositions():
    """Torch imports them with the first network that is counted, which takes seconds."""
    counts(nn.Linear(1, 1), (1, 1))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, bias=False)
        self.grouped = nn.Conv2d(8, 4, 1, groups=2)
        self.mix = nn.Conv2d(4, 6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.mix(self.grouped(self.depthwise(self.conv(x))))
        x = x.flatten(2).mT  # (B, N, 6)
        x = F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0]
        return self.head(x) @ self.head.weight


def test_each_layer_by_hand():
    layers = counts(Net(), (2, 3, 6, 7))
    tokens = 4 * 5
    assert [(c.name, c.kind, c.macs, c.weights, c.inputs, c.outputs) for c in layers] == [
        ("conv", "convolution", 2 * 42 * 8 * 27, 8 * 27 + 8, 2 * 3 * 42, 2 * 8 * 42),
        ("depthwise", "depthwise", 2 * tokens * 8 * 9, 8 * 9, 2 * 8 * 42, 2 * 8 * tokens),
        ("grouped", "grouped", 2 * tokens * 4 * 4, 4 * 4 + 4, 2 * 8 * tokens, 2 * 4 * tokens),
        ("mix", "pointwise", 2 * tokens * 4 * 6, 4 * 6 + 6, 2 * 4 * tokens, 2 * 6 * tokens),
        ("", "attention", 2 * 2 * tokens**2 * 6, 0, 3 * 2 * 6 * tokens, 2 * 6 * tokens),
        ("head", "linear", 2 * tokens * 6 * 5, 6 * 5 + 5, 2 * 6 * tokens, 2 * 5 * tokens),
        ("", "linear", 2 * tokens * 5 * 6, 6 * 5, 2 * 5 * tokens, 2 * 6 * tokens),
    ]
    assert total(layers).macs == count_macs(Net(), (2, 3, 6, 7))


def test_a_product_of_two_activations_has_no_weights():
    class Gram(nn.Module):
        def forward(self, x):
            return x @ x.mT

    (layer,) = counts(Gram(), (2, 3, 4))
    assert (layer.kind, layer.macs, layer.weights, layer.inputs, layer.outputs) == ("product", 72, 0, 48, 18)


def test_a_bias_counts_however_torch_adds_it():
    class Turned(nn.Linear):
        def forward(self, x):
            return super().forward(x.mT)  # of a transposed input torch adds it apart

    for made in (nn.Linear(4, 5), Turned(4, 5)):
        (layer,) = counts(made, (2, 4, 4))
        assert (layer.kind, layer.macs, layer.weights) == ("linear", 160, 25)


def test_the_model_is_left_as_it_was():
    model = Net().train()
    counts(model, (1, 3, 5, 5))
    assert model.training
    assert not model.conv._forward_hooks
    assert model.conv.weight.device.type == "cpu"


def test_intensities_and_sums():
    a, b = Counts("a", "linear", 60, 4, 2, 6), Counts("b", "linear", 40, 0, 3, 1)
    assert a.intensity == 5.0  # 60 / (4 + 8)
    assert a.weighted(1.0) == 7.5  # 60 / (2 · 4)
    assert a.weighted(0.0) == 3.75
    assert a.weighted(0.25) == 60 / (2 * (1 + 6))
    assert b.weighted(1.0) == 0.0
    both = total([a, b])
    assert (both.macs, both.weights, both.activations) == (100, 4, 12)
    assert by_kind([b, Counts("c", "product", 1, 0, 1, 1), a])[0] == total([a, b], "linear")
    assert a.to_json(0.25)["weighted"] == a.weighted(0.25)
    assert "weighted" not in a.to_json()
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\], got 1.5; 0.5 gives plain"):
        a.weighted(1.5)


def test_the_table():
    layers = [Counts("a", "linear", 6000, 4, 2, 6), Counts("b", "product", 40, 0, 3, 1)]
    assert table(layers, 1.0).splitlines() == [
        "layers   multiply-adds  weights  inputs  outputs  intensity  weighted",
        "linear           6,000        4       2        6      500.0     750.0",
        "product             40        0       3        1       10.0       0.0",
        "total            6,040        4       5        7      377.5     755.0",
    ]
    assert "weighted" not in table(layers)


def test_rank_correlation():
    assert rank_correlation([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9487, abs=1e-4)  # ties share a rank
    assert rank_correlation([1, 1], [1, 2]) == 0
    with pytest.raises(ValueError, match="takes two lists of at least 2 values each, got 1 and 2"):
        rank_correlation([1], [1, 2])


def test_the_share_that_made_the_rates_is_found_again():
    generator = torch.Generator().manual_seed(0)
    networks = [
        Counts("", "total", 1000, *torch.randint(1, 100, (3,), generator=generator).tolist()) for _ in range(60)
    ]
    for share in (0.1, 0.5, 0.9):
        assert fit_share(networks, [n.weighted(share) for n in networks]) == pytest.approx(share, abs=0.03)
