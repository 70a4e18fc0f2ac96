import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from foveal.measure.cost import count_macs
from foveal.shrink.data import Data
from foveal.shrink.prune.score import magnitude, random_scores, taylor
from foveal.shrink.prune.structure import Prune, widths
from foveal.shrink.step import noted

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def build(name, **options):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=7, **options).eval()


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_channels_really_go(name):
    model = build(name)
    pruned = Prune(keep=0.5).apply(model, X)
    assert pruned(X).shape == (2, 7)
    assert count_macs(pruned, (1, 3, 32, 32)) < 0.45 * count_macs(model, (1, 3, 32, 32))
    assert model(X).shape == (2, 7)
    assert pruned(X).isfinite().all()


def test_widths_are_rounded_to_eights():
    pruned = Prune(keep=0.4).apply(build("test_resnet"), X)
    found = {m.out_channels for m in pruned.modules() if isinstance(m, nn.Conv2d)}
    assert {width % 8 for width in found} == {0}


def test_a_vit_needs_nothing_set_by_hand():
    model = build("test_vit", img_size=32)
    heads = model.blocks[0].attn.num_heads
    pruned = Prune(keep=0.5).apply(model, X)
    attention = pruned.blocks[0].attn
    assert attention.num_heads == heads // 2
    assert attention.attn_dim == attention.num_heads * attention.head_dim == attention.qkv.out_features // 3
    assert pruned.blocks[0].mlp.fc1.out_features == model.blocks[0].mlp.fc1.out_features // 2
    assert pruned(X).shape == (2, 7)
    assert pruned.embed_dim == model.embed_dim


def test_the_stream_of_a_vit_is_pruned_when_asked_for():
    model = build("test_vit", img_size=32)
    with noted() as notes:
        Prune(keep=0.5).apply(model, X)
    assert any("residual stream of 64 channels" in line for line in notes)
    pruned = Prune(keep=0.5, heads=1.0, stream=True).apply(model, X)
    assert pruned.head.in_features == 32
    assert pruned(X).shape == (2, 7)


def test_heads_that_matter_least_go():
    model = build("test_vit", img_size=32)
    attention = model.blocks[2].attn
    with torch.no_grad():  # a head without weight does nothing
        attention.qkv.weight.unflatten(0, (3, attention.num_heads, -1))[:, 1] = 0
        attention.qkv.bias.unflatten(0, (3, attention.num_heads, -1))[:, 1] = 0
        attention.proj.weight.unflatten(1, (attention.num_heads, -1))[:, 1] = 0
    heads = attention.num_heads
    x = torch.randn(2, 5, 64)
    pruned = Prune(keep=1.0, heads=(heads - 1) / heads).apply(model, X)
    assert pruned.blocks[2].attn.num_heads == heads - 1
    torch.testing.assert_close(pruned.blocks[2].attn(x), attention(x))


def test_units_that_do_nothing_go_first_and_nothing_changes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    with torch.no_grad():
        model[0].weight[::2] = 0
        model[0].bias[::2] = 0
        model[2].weight[:, ::2] = 0
    x = torch.randn(4, 5)
    pruned = Prune(keep=0.5).apply(model, x)
    assert pruned[0].out_features == 8
    torch.testing.assert_close(pruned(x), model(x))


class Odd(nn.Module):
    """A layer called twice, tied weights, and a layer that may be pruned."""

    def __init__(self):
        super().__init__()
        self.stem, self.twice = nn.Linear(6, 16), nn.Linear(16, 16)
        self.a, self.b, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 2)
        self.free, self.back = nn.Linear(16, 32), nn.Linear(32, 16)
        self.b.weight = self.a.weight

    def forward(self, x):
        x = self.twice(F.relu(self.twice(self.stem(x))))
        x = x + self.back(F.relu(self.free(x)))
        return self.head(self.b(F.relu(self.a(x))))


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x.flip(-1)

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient.flip(-1)


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x):
        return self.outer(Double.apply(self.inner(x)))


def test_what_must_stay_is_said_with_its_reason():
    model, x = Odd().eval(), torch.randn(2, 6)
    with noted() as notes:
        pruned = Prune(keep=0.5).apply(model, x)
    said = "\n".join(notes)
    assert "left twice: called more than once" in said
    assert "left a: tied weights" in said
    assert pruned.free.out_features == 16
    assert pruned.twice.out_features == pruned.a.out_features == 16
    assert pruned(x).shape == (2, 2)


def test_a_custom_operator_keeps_its_layers():
    model = nn.Sequential(nn.Linear(6, 16), Mixer(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2)).eval()
    with noted() as notes:
        pruned = Prune(keep=0.5).apply(model, torch.randn(2, 6))
    assert any(line == "prune: left 1.inner: custom operator DoubleBackward" for line in notes)
    assert pruned[1].inner.out_features == 32
    assert pruned[2].out_features == 16


class Stubborn(nn.Module):
    """A network that checks a width itself."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, x):
        x = self.a(x)
        if x.shape[-1] != 16:
            raise RuntimeError("sixteen or nothing")
        return self.c(self.b(x))


def test_a_layer_without_which_nothing_runs_is_found_and_left():
    with noted() as notes:
        pruned = Prune(keep=0.5).apply(Stubborn().eval(), torch.randn(2, 4))
    assert pruned.a.out_features == 16
    assert pruned.b.out_features == 8
    assert any("left a: " in line and "sixteen or nothing" in line for line in notes)


def test_a_network_that_hides_its_graph_is_left_as_it_is():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 16)

        def forward(self, x):
            return {"logits": self.a(x)}["logits"].detach()

    assert Prune(keep=0.5).apply(Hidden().eval(), torch.randn(2, 4)).a.out_features == 16


def data():
    def batches(step):
        generator = torch.Generator().manual_seed(step)
        return torch.randn(8, 5, generator=generator), torch.randint(3, (8,), generator=generator)

    return Data(batches(0)[0], lambda _: 0.0, batches=batches, loss=F.cross_entropy)


def test_taylor_scores_see_what_the_loss_sees():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    with torch.no_grad():
        model[0].weight[:8] *= 100  # large, and read by nobody
        model[2].weight[:, :8] = 0
    x = data().inputs
    kept = Prune(keep=0.5, scorer="taylor").apply(model, data())
    torch.testing.assert_close(kept(x), model(x))
    assert not torch.allclose(Prune(keep=0.5, scorer="random").apply(model, x)(x), model(x))
    with pytest.raises(ValueError, match="Taylor scores need Data with batches and loss"):
        Prune(keep=0.5, scorer="taylor").apply(model, x)


def test_scorers_by_hand():
    weight, gradient = torch.tensor([[1.0, -2.0], [3.0, 0.0]]), torch.tensor([[1.0, 1.0], [2.0, 5.0]])
    assert magnitude(weight, None).tolist() == [5, 9]
    assert taylor(weight, gradient).tolist() == [1, 36]
    assert random_scores(weight).tolist() == random_scores(2 * weight).tolist()
    with pytest.raises(ValueError, match="taylor needs gradients"):
        taylor(weight, None)


def test_widths_name_what_can_go():
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 3)).eval()
    assert widths(model, torch.randn(1, 5)) == {"2": 24, "0": 16}


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"keep": 0.0}, r"keep must be in \(0, 1\]"),
        ({"keep": 0.5, "heads": 2.0}, r"heads must be in \(0, 1\]"),
        ({"keep": 0.5, "scorer": "luck"}, "scorer must be a function or one of magnitude, taylor, random"),
        ({"keep": 0.5, "round_to": 0}, "round_to must be at least 1"),
    ],
)
def test_arguments_in_their_range(wrong, text):
    with pytest.raises(ValueError, match=text):
        Prune(**wrong)
