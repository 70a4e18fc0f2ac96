"""What the examples of shrinking are made of, on made-up weights and pictures: their downloads are not here."""

import sys
from importlib import import_module

import pytest
import torch
from documents import ROOT
from torch import nn

NAMES = ("lite0", "cifar", "detector", "saliency", "upscaler")


@pytest.fixture(autouse=True)
def beside_them(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")


@pytest.mark.dear("imports timm")
@pytest.mark.parametrize("name", NAMES)
def test_an_example_says_what_it_takes(name, monkeypatch, capsys):
    example = import_module(f"shrink_{name}")
    monkeypatch.setattr(sys, "argv", [f"shrink_{name}.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        example.main()
    assert stopped.value.code == 0
    assert f"python examples/shrink_{name}.py" in capsys.readouterr().out


def test_a_teacher_that_remembers_answers_once():
    example = import_module("shrink_lite0")
    asked = []

    def answer(x):
        asked.append(x.shape)
        return x.mean((1, 2, 3))

    teacher = example.remembering(answer)
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(teacher(x), teacher(x.clone()))
    assert not torch.equal(teacher(x), teacher(x.flip(0)))
    assert asked == [(2, 3, 260, 260)] * 2


@pytest.mark.dear("builds FastestDet")
def test_the_detector_makes_a_map_of_every_size():
    example = import_module("shrink_detector")
    model = example.FastestDet(classes=3).eval()
    with torch.no_grad():
        maps = model(torch.rand(2, 3, 64, 96))
    assert maps.shape == (2, 8, 4, 6)
    torch.testing.assert_close(maps[:, 5:].sum(1), torch.ones(2, 4, 6))
    assert sum(p.numel() for p in example.FastestDet().parameters()) == 244_490


@pytest.mark.dear("imports torchvision")
def test_boxes_are_read_off_the_map():
    example = import_module("shrink_detector")
    maps = torch.zeros(1, 7, 2, 2)
    maps[0, :, 1, 0] = torch.tensor([0.9, 0.0, 0.0, 0.0, 0.0, 0.1, 0.8])
    (found,) = example.boxes(maps)
    score = 0.9**0.6 * 0.8**0.4
    torch.testing.assert_close(found, torch.tensor([[-0.25, 0.25, 0.25, 0.75, score, 1.0]]))


@pytest.mark.parametrize(
    ("scores", "wanted"),
    [
        ([("right", 0.9), ("right", 0.8)], 51 / 101),  # the second of one thing is a mistake, after the first
        ([("wrong", 0.9), ("right", 0.8)], 0.5 * 51 / 101),
        ([("wrong", 0.9)], 0.0),
        ([], 0.0),
    ],
)
def test_average_precision_by_hand(scores, wanted):
    example = import_module("shrink_detector")
    places = {"right": [0.0, 0.0, 0.5, 0.45], "wrong": [0.5, 0.5, 1.0, 1.0]}
    found = torch.tensor([[*places[where], score, 4.0] for where, score in scores]).reshape(-1, 6)
    truth = torch.tensor([[0.0, 0.0, 0.5, 0.5, 4.0], [0.6, 0.0, 1.0, 0.3, 4.0]])  # half of them is found
    assert example.average_precision([found], [truth]) == pytest.approx(100 * wanted)


def test_the_area_under_the_curve_by_hand():
    example = import_module("shrink_saliency")
    scores, truth = torch.tensor([[0.1, 0.4], [0.3, 0.8]]), torch.tensor([[False, False], [True, True]])
    assert example.under_curve(scores, truth) == pytest.approx(75.0)  # three pairs of four
    assert example.under_curve(1 - scores, truth) == pytest.approx(25.0)


@pytest.mark.dear("builds a small ViT")
def test_the_map_of_merged_tokens_is_whole():
    example = import_module("shrink_saliency")
    torch.manual_seed(0)
    model = example.Saliency(dim=64, img_size=56, embed_dim=64, depth=2, num_heads=2).eval()
    x = torch.rand(1, 3, 56, 56)
    with torch.no_grad():
        before = model(x)
        merged = example.recipe(0.6)[0].apply(model)(x)
    assert before.shape == merged.shape == (1, 1, 56, 56)
    assert float((before - merged).abs().max()) > 0


def test_convolutions_alone_are_pruned():
    example = import_module("shrink_upscaler")
    model = nn.Module()
    model.layers = nn.Sequential(nn.Conv2d(3, 32, 3), nn.LeakyReLU(0.1), nn.Conv2d(32, 16, 3))
    model.other = nn.Conv2d(3, 32, 3)
    from foveal.shrink import Data

    data = Data(torch.rand(2, 3, 9, 9), lambda _: 0.0)
    smaller = example.recipe(0.5, 1)[0].apply(model, data)
    assert [layer.out_channels for layer in (smaller.layers[0], smaller.layers[2], smaller.other)] == [16, 16, 32]


@pytest.mark.dear("builds timm's networks")
def test_the_networks_of_cifar():
    example = import_module("shrink_cifar")
    for name, parameters in (("resnet", 4_927_618), ("vit", 2_693_194)):
        model = example.build(name).eval()
        assert sum(p.numel() for p in model.parameters()) == parameters
        with torch.no_grad():
            assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)
