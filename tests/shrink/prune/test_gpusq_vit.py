import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foveal.shrink.data import Data
from foveal.shrink.distill.distillation import Views, soft_targets
from foveal.shrink.prune.gpusq_vit import (
    GPUSQViT,
    compress,
    expand,
    feature_loss,
    mixed_loss,
    quantize_sparse_,
    sparse_,
    stored,
    stored_bits,
)
from foveal.shrink.prune.masks import is_n_of_m, masked
from foveal.shrink.quantize.fake import quantized_layers
from foveal.shrink.quantize.packed import unpack


class Network(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Linear(6, 8)
        self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = x + F.gelu(block(x))
        return self.head(x)


def inputs(seed=0, count=5):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def data():
    labels = torch.arange(5) % 3
    return Data(inputs(), lambda _: 0.0, batches=lambda step: (inputs(step), labels), loss=F.cross_entropy)


def views():
    torch.manual_seed(1)
    student, teacher = torch.randn(2, 3, requires_grad=True), torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0]])
    features = tuple(torch.randn(2, 4, 5, requires_grad=True) for _ in range(2))
    return Views(
        inputs(0, 2), torch.tensor([0, 2]), student, teacher, features, tuple(2 * f.detach() for f in features)
    )


def test_features_that_match_worst_weigh_most():
    teacher = (torch.ones(2, 4), torch.full((2, 3), 2.0))
    student = (torch.tensor([[1.0] * 4, [2.0] * 4]).requires_grad_(), torch.full((2, 3), 8.0).requires_grad_())
    # distances 0 and 1 in the first layer, 9 and 9 in the second
    loss = feature_loss(student, teacher)
    assert loss.item() == pytest.approx((0 * 0 + 1 * 1 + 9 * 9 + 9 * 9) / 19)
    loss.backward()
    torch.testing.assert_close(student[0].grad[1], torch.full((4,), 1 / 19 * 2 * 1 / 4))


def test_equal_features_cost_nothing():
    same = (torch.rand(2, 3),)
    assert feature_loss(same, same).item() == 0


def test_the_loss_is_the_sum_of_labels_logits_and_features():
    v = views()
    parts = (
        F.cross_entropy(v.student, v.targets),
        soft_targets(v.student, v.teacher, temperature=3.0),
        feature_loss(v.student_features, v.teacher_features),
    )
    for chosen in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.5, 2.0, 3.0)):
        hard, soft, feature = chosen
        found = mixed_loss(v, hard=hard, soft=soft, feature=feature, temperature=3.0)
        torch.testing.assert_close(found, sum(w * p for w, p in zip(chosen, parts, strict=True)))


def test_without_labels_the_teacher_decides():
    v = views()
    found = mixed_loss(v, soft=0.0, feature=0.0, supervised=False)
    torch.testing.assert_close(found, F.cross_entropy(v.student, torch.tensor([1, 0])))


def test_two_of_four_stay_in_layers_that_divide():
    model = Network()
    before = model.blocks[0].weight.detach().clone()
    sparse_(model)
    assert set(masked(model)) == {"blocks.0", "blocks.1", "head"}
    groups = masked(model)["blocks.0"].view(8, 2, 4)
    assert (groups.sum(-1) == 2).all()
    magnitude = before.abs().view(8, 2, 4)
    assert (magnitude.masked_fill(~groups, 9).amin(-1) >= magnitude.masked_fill(groups, 0).amax(-1)).all()


def test_compressed_values_expand_again():
    values = torch.tensor([[0, 5, 0, -3, 7, 1, 0, 0], [0, 0, 0, 0, 0, 0, 2, 0]])
    kept, positions = compress(values)
    assert kept.tolist() == [[5, -3, 7, 1], [0, 0, 0, 2]]
    assert positions.tolist() == [[1, 3, 0, 1], [0, 1, 0, 2]]
    assert torch.equal(expand(kept, positions), values)


@pytest.mark.parametrize("bits", [8, 4])
def test_the_step_leaves_two_of_four_integers_that_can_be_stored(bits):
    model = GPUSQViT(bits=bits, steps=2).apply(Network(), data())
    assert not model.training
    layers = dict(quantized_layers(model))
    assert set(layers) == {"blocks.0", "blocks.1", "head"}
    for layer in layers.values():
        weight = layer.quantized_weight()
        out, into = weight.shape
        assert is_n_of_m(weight, 2, 4)
        held = stored(layer)
        count = stored_bits(out, into, bits=bits)
        assert 8 * (len(held["codes"]) + len(held["positions"])) == count == out * into // 4 * (2 * bits + 4)
        codes = unpack(held["codes"], bits, (out, into // 2)) - 2 ** (bits - 1)
        whole = expand(codes, unpack(held["positions"], 2, (out, into // 2))) * held["scale"][:, None]
        assert torch.equal(whole, weight)


def test_both_stages_train_and_the_original_teaches():
    model, x = Network(), inputs()
    teacher = Network()(x)
    first = quantize_sparse_(sparse_(Network()))(x)
    trained = GPUSQViT(steps=60, lr=2e-2, hard=0.0, soft=1.0, feature=0.0).apply(
        model, Data(x, lambda _: 0.0, batches=lambda _: (x, torch.zeros(5, dtype=torch.long)), loss=F.cross_entropy)
    )
    assert (trained(x).softmax(1) - teacher.softmax(1)).abs().max() < 0.5 * (
        first.softmax(1) - teacher.softmax(1)
    ).abs().max()


def test_taps_that_are_named_are_used():
    assert GPUSQViT().distil(Network()).teacher_taps == ("blocks.0", "blocks.1")
    assert GPUSQViT(taps=("embed",)).distil(Network()).student_taps == ("embed",)


def test_what_cannot_be_pruned_raises():
    with pytest.raises(ValueError, match="Linear has no linear layer whose number of inputs is a multiple of four"):
        sparse_(nn.Linear(6, 4))
    with pytest.raises(ValueError, match="rows of 6 values do not divide into groups of four"):
        compress(torch.ones(2, 6))
    with pytest.raises(ValueError, match="a group of four holds more than two values"):
        compress(torch.ones(2, 4))
    model = quantize_sparse_(sparse_(Network()))
    with pytest.raises(ValueError, match=r"is quantised already \(blocks.0\); give the dense one"):
        GPUSQViT(steps=2).apply(model, data())
    with pytest.raises(ValueError, match="Distil trains and needs Data"):
        GPUSQViT(steps=2).apply(Network())
