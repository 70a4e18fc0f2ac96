import pytest
import torch
import torch.nn.functional as F

from foveal.models.restore.seemore import ExpertLayer, SeemoRe, channel_shuffle


def test_names_are_those_of_the_authors():
    names = set(SeemoRe(2, dim=4, depth=1).state_dict())
    local, everywhere = "body.0.local_block.", "body.0.global_block."
    assert {local + "block.moe_layer.experts.2.conv_3.bias", local + "block.moe_layer.gate.body.2.weight"} <= names
    assert {local + "block.conv_2.0.conv.1.weight", local + "block.agg_conv.0.weight", "upsampler.0.bias"} <= names
    assert {everywhere + "block.to_qv.0.weight", everywhere + "ffn.fn_2.0.weight", "norm.weight"} <= names
    assert "mean" not in names


@pytest.mark.parametrize("size", [(1, 1), (7, 40), (16, 16), (17, 31)])
@pytest.mark.parametrize(("scale", "channels"), [(2, 3), (3, 1)])
def test_shape(scale, channels, size):
    out = SeemoRe(scale, dim=4, depth=1, in_channels=channels).eval()(torch.rand(2, channels, *size))
    assert out.shape == (2, channels, scale * size[0], scale * size[1])


def reference(network, x):
    """The equations for one picture."""
    state = network.state_dict()

    def conv(name, x, *, padding=0, stride=1, groups=1):
        return F.conv2d(x, state[name + ".weight"], state[name + ".bias"], stride, padding, groups=groups)

    def norm(name, x):
        out = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], state[name + ".weight"], state[name + ".bias"], 1e-6)
        return out.permute(0, 3, 1, 2)

    def stripes(name, x, k):
        x = conv(name + ".conv.0", x, padding=(0, k // 2), groups=x.shape[1])
        return conv(name + ".conv.1", x, padding=(k // 2, 0), groups=x.shape[1])

    def fed(name, x):
        y = F.gelu(conv(name + ".ffn.fn_1.0", norm(name + ".norm_2", x)))
        a, b = y[:, : x.shape[1]], y[:, x.shape[1] :]
        y = a * conv(name + ".ffn.gate", b, padding=1, groups=x.shape[1])
        return x + F.gelu(conv(name + ".ffn.fn_2.0", y))

    def ranked(name, x):
        y = conv(name + ".conv_1.2", F.gelu(conv(name + ".conv_1.0", x, padding=1)))
        c = x.shape[1]
        order = [i // 2 + (i % 2) * c for i in range(2 * c)]
        a, k = y[:, order[:c]], y[:, order[c:]]
        a = F.gelu(stripes(name + ".conv_2.0", a, 3))
        coarse = k
        for _ in range(2):
            coarse = F.gelu(conv(name + ".agg_conv.0", coarse, stride=4, groups=c))
        coarse = conv(name + ".conv.1", conv(name + ".conv.0", coarse, padding=1, groups=c))
        k = k + F.interpolate(coarse, size=k.shape[2:], mode="bilinear")
        weights = (state[name + ".moe_layer.gate.body.2.weight"] @ a.mean((2, 3))[0]).softmax(0)
        best = int(weights.argmax())
        expert = f"{name}.moe_layer.experts.{best}"
        low = conv(expert + ".conv_2", k) * conv(expert + ".conv_1", a)
        return conv(name + ".proj", a + weights[best] * conv(expert + ".conv_3", low))

    def seen(name, x):
        y = F.gelu(conv(name + ".to_qv.0", x))
        q, v = y[:, : x.shape[1]], y[:, x.shape[1] :]
        return conv(name + ".proj", stripes(name + ".attn", q, 11) * v)

    mean = network.mean
    begin = x = conv("conv_1", x - mean, padding=1)
    for i in range(len(network.body)):
        for part, block in ((f"body.{i}.local_block", ranked), (f"body.{i}.global_block", seen)):
            x = fed(part, x + block(part + ".block", norm(part + ".norm_1", x)))
    x = begin + conv("conv_2", norm("norm", x), padding=1)
    return F.pixel_shuffle(conv("upsampler.0", x, padding=1), network.scale) + mean


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(16, 32), (19, 27)])
def test_equals_the_equations(size, training):
    torch.manual_seed(0)
    network = SeemoRe(2, dim=8, depth=2).double().train(training)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        x = torch.rand(1, 3, *size, dtype=torch.float64)
        torch.testing.assert_close(network(x), reference(network, x), rtol=0, atol=1e-10)


def test_shuffle_takes_turns():
    assert channel_shuffle(torch.arange(6.0).view(1, 6, 1, 1)).flatten().tolist() == [0, 3, 1, 4, 2, 5]


def test_each_picture_takes_its_own_expert():
    torch.manual_seed(0)
    layer = ExpertLayer(3, (1, 2, 3)).double()
    layer.gate.body[-1].weight.data = 10 * torch.eye(3, dtype=torch.float64)
    a = torch.rand(4, 3, 5, 7, dtype=torch.float64)
    a[torch.arange(4), torch.tensor([0, 2, 1, 2])] += 1
    assert layer.gate(a).argmax(1).tolist() == [0, 2, 1, 2]
    torch.testing.assert_close(layer.sparse(a, 2 * a), layer.dense(a, 2 * a), rtol=0, atol=1e-12)


def test_only_the_chosen_expert_runs():
    layer, ran = ExpertLayer(3, (1, 2)).eval(), []
    for i, expert in enumerate(layer.experts):
        expert.register_forward_hook(lambda *_, i=i: ran.append(i))
    layer.gate.body[-1].weight.data = torch.tensor([[0.0, 0, 0], [1, 1, 1]])
    layer(torch.ones(1, 3, 4, 4), torch.ones(1, 3, 4, 4))
    assert ran == [1]
    layer.train()(torch.ones(1, 3, 4, 4), torch.ones(1, 3, 4, 4))
    assert ran == [1, 0, 1]


def test_a_small_picture_is_repeated_for_its_context():
    torch.manual_seed(0)
    network = SeemoRe(2, dim=4, depth=1).eval()
    out = network(torch.full((1, 3, 3, 3), 0.5))
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"scale": 0}, "scale must be at least 1, got 0"),
        ({"kernel_size": 10}, "kernel_size must be odd, got 10; take 11"),
        ({"ranks": ()}, "ranks must name at least one expert, got none"),
    ],
)
def test_wrong_arguments_are_refused(words, text):
    with pytest.raises(ValueError, match=text):
        SeemoRe(**words)
