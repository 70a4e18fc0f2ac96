import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from foveal.adapt import AdaptError
from foveal.adapt.adapt import score
from foveal.adapt.methods import Pictures
from foveal.adapt.visual_prompting import BorderPrompt, Prompted, visual_prompting


def filled(size, padding, channels=2):
    prompt = BorderPrompt(size, padding=padding, in_channels=channels)
    for parameter in prompt.parameters():
        parameter.data.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    return prompt


@pytest.mark.parametrize(("size", "padding"), [(7, 1), ((5, 9), 2), ((11, 6), 2)])
def test_the_frame_by_a_mask(size, padding):
    prompt = filled(size, padding)
    height, width = prompt.size
    x = torch.randn(3, 2, height, width)
    added = prompt(x) - x
    inside = torch.zeros(height, width, dtype=torch.bool)
    inside[padding : height - padding, padding : width - padding] = True
    assert (added[..., inside] == 0).all()
    assert (prompt.frame()[:, ~inside] != 0).all()  # every value of the border is one parameter
    assert sum(p.numel() for p in prompt.parameters()) == 2 * int((~inside).sum())
    torch.testing.assert_close(added, prompt.frame().expand_as(added), atol=1e-6, rtol=0)


def test_gradients_reach_the_border_only():
    prompt = filled(6, 2, channels=1)
    x = torch.randn(4, 1, 6, 6)
    weight = torch.randn(6, 6)
    (prompt(x) * weight).sum().backward()
    torch.testing.assert_close(prompt.top.grad, 4 * weight[None, :2])
    torch.testing.assert_close(prompt.right.grad, 4 * weight[None, 2:4, 4:])


def test_a_new_prompt_changes_nothing():
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(BorderPrompt(8, padding=3)(x), x)


def test_the_border_switches_the_answer():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    model[1].weight.data.zero_()[1, 0] = 1  # only the first pixel of the border tells classes 1 and 2 apart
    model[1].bias.data = torch.tensor([9.0, -5.0, 0.0])
    x, y = torch.randn(40, 1, 4, 4), torch.zeros(40).long()
    classes = (1, 2)
    assert score(Prompted(BorderPrompt(4, padding=1, in_channels=1), model, classes=classes), x, y) < 1
    prompt = visual_prompting(model, Pictures(x, y), padding=1, classes=classes, steps=25, lr=2.0)
    assert score(Prompted(prompt, model, classes=classes), x, y) > 99
    assert prompt.frame()[0, 0, 0] > 3
    assert (prompt.frame()[0, 1:].abs() < 1e-3).all()


def test_the_model_stays_as_it_is():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2), nn.BatchNorm1d(2)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(8, 1, 4, 4)
    visual_prompting(model, Pictures(x, torch.arange(8) % 2), padding=1, steps=3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("classes", [None, (2, 0)])
def test_saved_and_loaded(tmp_path, classes):
    prompt = filled((5, 7), 2)
    prompt.save(tmp_path / "prompt.safetensors", classes=classes)
    again, found = BorderPrompt.load(tmp_path / "prompt.safetensors")
    assert torch.equal(again.frame(), prompt.frame())
    assert found == classes


def test_what_cannot_be_loaded(tmp_path):
    with pytest.raises(AdaptError, match="cannot be read"):
        BorderPrompt.load(tmp_path / "none.safetensors")
    save_file({"top": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(AdaptError, match="holds no prompt"):
        BorderPrompt.load(tmp_path / "other.safetensors")


def test_what_it_refuses():
    with pytest.raises(ValueError, match="below half of the smaller side of 8×6, got 3"):
        BorderPrompt((8, 6), padding=3)
    with pytest.raises(ValueError, match="pictures must be 8×8, as the prompt is, got 8×9"):
        BorderPrompt(8, padding=1)(torch.zeros(1, 3, 8, 9))
    model, x = nn.Flatten(), torch.zeros(2, 1, 4, 4)
    with pytest.raises(AdaptError, match="a prompt is learned from labels"):
        visual_prompting(model, Pictures(x), padding=1)
    with pytest.raises(AdaptError, match="labels must be below 2, the number of assigned classes, got 3"):
        visual_prompting(model, Pictures(x, torch.tensor([0, 3])), padding=1, classes=(0, 1))
