import pytest
import torch
from torch import nn

from foveal.measure.cost import count_macs
from foveal.vlm.joint_adaptive import Block, JointAdaptive, summaries
from foveal.vlm.method import VlmError


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model(**words):
    torch.manual_seed(0)
    return JointAdaptive(8, **{"num_heads": 2, "tokens": (2, 3), "iterations": 2, "hidden": 12} | words)


def test_summaries_by_hand():
    features = torch.tensor([[[1.0, 0.0], [0.0, 3.0]]])
    # weights 1 : e^(ln 3) = 1 : 3
    query = torch.tensor([[[0.0, 3**-1 * 2**0.5 * torch.log(torch.tensor(3.0))]]])
    torch.testing.assert_close(summaries(features, query), torch.tensor([[[0.25, 2.25]]]))
    # nothing looked for: the mean
    torch.testing.assert_close(summaries(features, torch.zeros(1, 4, 2)), torch.tensor([0.5, 1.5]).expand(1, 4, 2))


def test_it_does_not_matter_in_which_order_features_come():
    net, text, picture = model(), drawn(3, 5, 8), drawn(3, 7, 8, seed=1)
    torch.testing.assert_close(net(text, picture), net(text.flip(1), picture.flip(1)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("words", "patches"), [(1, 1), (7, 63)])
def test_the_state_has_one_size_for_any_number_of_features(words, patches):
    net = model()
    fused = net(drawn(2, words, 8), drawn(2, patches, 8, seed=1))
    assert fused.shape == (2, 5, 8)
    fused.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_padding_is_not_read():
    net, text, picture = model(), drawn(2, 5, 8), drawn(2, 7, 8, seed=1)
    real = torch.tensor([[True] * 3 + [False] * 2] * 2)
    torch.testing.assert_close(net(text, picture, real), net(text[:, :3], picture), atol=1e-5, rtol=1e-4)


def test_what_is_read_of_the_picture_depends_on_the_text():
    net, text, picture = model(), drawn(1, 5, 8), drawn(1, 7, 8, seed=1)
    seen = []
    net.readings[0][1].register_forward_hook(lambda _, __, output: seen.append(output))
    net(text, picture)
    net(text + torch.arange(8.0), picture)
    assert (seen[0] - seen[1]).abs().max() > 0.01


def test_a_later_iteration_reads_by_what_an_earlier_one_found():
    net, text, picture = model(), drawn(1, 5, 8), drawn(1, 7, 8, seed=1)
    seen = []
    net.readings[1][1].weigh.register_forward_hook(lambda _, __, output: seen.append(output))
    net(text, picture)
    with torch.no_grad():
        net.readings[0][0].out.bias += torch.arange(8.0)  # the text, read in the first iteration
    net(text, picture)
    assert (seen[0] - seen[1]).abs().max() > 0.01


def test_a_layer_is_that_of_torch():
    torch.manual_seed(0)
    block, theirs = (
        Block(8, 2, 12),
        nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, activation="gelu", batch_first=True, norm_first=True),
    )
    names = {"qkv.weight": "self_attn.in_proj_weight", "qkv.bias": "self_attn.in_proj_bias"}
    names |= {f"project.{part}": f"self_attn.out_proj.{part}" for part in ("weight", "bias")}
    names |= {f"feed.{i}.{part}": f"linear{1 + i // 2}.{part}" for i in (0, 2) for part in ("weight", "bias")}
    theirs.load_state_dict({names.get(name, name): value for name, value in block.state_dict().items()})
    x, real = drawn(2, 5, 8), torch.tensor([[True] * 5, [True] * 4 + [False]])
    torch.testing.assert_close(block(x), theirs(x), atol=1e-5, rtol=1e-4)
    ours, wanted = block(x, real), theirs(x, src_key_padding_mask=~real)
    torch.testing.assert_close(ours[real], wanted[real], atol=1e-5, rtol=1e-4)


def test_multiply_adds_of_layers_do_not_grow_with_the_picture():
    class OfPicture(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model()

        def forward(self, x):
            return self.net(x[:, :2], x)

    few, many = (count_macs(OfPicture(), (1, n, 8)) for n in (10, 110))
    assert many - few == 2 * 2 * 3 * 100 * 8


def test_errors():
    with pytest.raises(VlmError, match=r"must be at least 1, got \(0, 3\), 2 and 1; a token for each modality"):
        model(tokens=(0, 3))
    with pytest.raises(VlmError, match="must be equally wide, got 8 and 6 channels; project one of them first"):
        model()(drawn(1, 5, 8), drawn(1, 7, 6))
    with pytest.raises(ValueError, match="dim must be a multiple of num_heads, got 8 and 3 heads; change one of them"):
        Block(8, 3, 12)
