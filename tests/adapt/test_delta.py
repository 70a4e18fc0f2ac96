import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from foveal.adapt import AdaptError, Delta
from foveal.adapt.delta import Dense, LowRank, Replaced, fingerprint, tensor_of


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3)).eval()


def changes(seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    return {
        "0.weight": LowRank(draw(4, 2), draw(2, 18)),
        "1.running_mean": Dense(draw(4)),
        "3.bias": Dense(draw(3)),
    }


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_folding_adds_and_undoing_restores_every_bit():
    model, given = network(), changes()
    before = weights(model)
    undo = Delta(given).fold_(model)
    after = weights(model)
    torch.testing.assert_close(
        after["0.weight"] - before["0.weight"], (given["0.weight"].up @ given["0.weight"].down).view(4, 2, 3, 3)
    )
    torch.testing.assert_close(after["1.running_mean"] - before["1.running_mean"], given["1.running_mean"].value)
    assert torch.equal(after["3.weight"], before["3.weight"])
    assert set(dict(model.named_parameters())) == {f"{i}.{part}" for i in (0, 1, 3) for part in ("weight", "bias")}
    undo()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())


def test_a_model_keeps_what_learns():
    model = network()
    model[3].bias.requires_grad_(False)
    undo = Delta(changes()).fold_(model)
    assert (model[0].weight.requires_grad, model[3].bias.requires_grad) == (True, False)
    undo()
    assert not model[3].bias.requires_grad


def test_sums_and_multiples_are_those_of_the_differences():
    first, second = Delta(changes(0)), Delta(changes(1))
    both = 0.5 * first + second * 2
    assert isinstance(both.changes["0.weight"], LowRank)
    assert both.changes["0.weight"].up.shape == (4, 4)
    for name in first.changes:
        torch.testing.assert_close(
            both.changes[name].difference(),
            0.5 * first.changes[name].difference() + 2 * second.changes[name].difference(),
        )


def test_factors_and_a_whole_difference_add_up():
    low = LowRank(torch.ones(4, 1), torch.ones(1, 18))
    for pair in ((low, Dense(torch.ones(4, 2, 3, 3))), (Dense(torch.ones(4, 2, 3, 3)), low)):
        total = (Delta({"0.weight": pair[0]}) + Delta({"0.weight": pair[1]})).changes["0.weight"]
        assert torch.equal(total.difference(), torch.full((4, 2, 3, 3), 2.0))


def test_a_new_head_may_have_other_classes():
    model = network()
    x = torch.randn(5, 2, 3, 3)
    before = model(x)
    undo = Delta({"3.weight": Replaced(torch.zeros(7, 4)), "3.bias": Replaced(torch.ones(7))}).fold_(model)
    assert torch.equal(model(x), torch.ones(5, 7))
    assert model[3].out_features == 7
    undo()
    assert torch.equal(model(x), before)
    assert model[3].out_features == 3


def test_a_file_holds_everything(tmp_path):
    model = network()
    base = {"3.bias": fingerprint(model[3].bias)}
    delta = Delta({**changes(), "3.weight": Replaced(torch.zeros(7, 4))}, base, {"method": "by hand"})
    delta.save(tmp_path / "d.safetensors")
    read = Delta.load(tmp_path / "d.safetensors")
    assert (read.base, read.about, set(read.changes)) == (base, {"method": "by hand"}, set(delta.changes))
    assert read.changes["0.weight"].kind == "low-rank"
    for name, change in delta.changes.items():
        for part in vars(change):
            assert torch.equal(getattr(read.changes[name], part), getattr(change, part))
    assert read.values == delta.values == 8 + 36 + 4 + 3 + 28
    assert read.bytes == 4 * read.values


def test_a_part_of_a_delta():
    part = Delta(changes(), {"3.bias": "x", "0.weight": "y"}).only(lambda name: name.startswith("3"))
    assert (list(part.changes), part.base) == (["3.bias"], {"3.bias": "x"})


def test_fingerprints_tell_values_shapes_and_types_apart():
    x = torch.arange(6.0)
    others = [x + 1, x.view(2, 3), x.double(), x.half()]
    assert len({fingerprint(tensor) for tensor in [x, *others]}) == 5
    assert fingerprint(x.view(2, 3).t()) == fingerprint(x.view(2, 3).t().contiguous())


def test_a_tensor_that_is_not_there():
    model = network()
    assert tensor_of(model, "3.bias") is model[3].bias
    assert tensor_of(model, "1.running_var") is model[1].running_var
    assert tensor_of(model, "3.scale") is tensor_of(model, "nowhere.bias") is None


def folded_twice():
    model = network()
    delta = Delta({"3.bias": Dense(torch.ones(3))}, {"3.bias": fingerprint(model[3].bias)})
    delta.fold_(model)
    delta.fold_(model)


def load(path, **metadata):
    save_file({"x": torch.zeros(1)}, path, metadata=metadata)
    return Delta.load(path)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (folded_twice, "made for other weights: '3.bias' has the fingerprint .* take off the delta"),
        (lambda: Delta({"9.bias": Dense(torch.ones(3))}, about={"model": "timm x"}).fold_(network()), r"\(timm x\)"),
        (lambda: Delta({"3.bias": Dense(torch.ones(4))}).fold_(network()), r"shape \(4,\), the tensor \(3,\)"),
        (lambda: 0.5 * Delta({"a": Replaced(torch.ones(1))}), "cannot be scaled by 0.5; leave it out with `only`"),
        (lambda: Replaced(torch.ones(1)).difference(), "a replaced tensor has no difference"),
        (
            lambda: Delta({"a": Replaced(torch.ones(1))}) + Delta({"a": Dense(torch.ones(1))}),
            "both deltas replace 'a'; leave it out of one",
        ),
        (
            lambda: Delta({"a": Dense(torch.ones(1))}, {"a": "1"}) + Delta({"a": Dense(torch.ones(1))}, {"a": "2"}),
            "deltas of different weights do not add up: 'a' had the fingerprints 1 and 2",
        ),
    ],
)
def test_what_it_refuses(call, text):
    with pytest.raises(AdaptError, match=text):
        call()


def test_files_that_it_refuses(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(AdaptError, match="cannot be read"):
        Delta.load(tmp_path / "nothing.safetensors")
    with pytest.raises(AdaptError, match="no delta but weights"):
        load(path)
    with pytest.raises(AdaptError, match="format 99, this foveal reads 1"):
        load(path, **{"foveal.delta": '{"format": 99, "kinds": {}, "base": {}, "about": {}}'})
    with pytest.raises(AdaptError, match="of the kind 'odd', which this foveal does not know"):
        load(path, **{"foveal.delta": '{"format": 1, "kinds": {"x": "odd"}, "base": {}, "about": {}}'})


def test_equal_new_heads_add_up():
    head = Delta({"a": Replaced(torch.ones(2))})
    assert (head + copy.deepcopy(head)).changes["a"] is head.changes["a"]
