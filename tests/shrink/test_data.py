"""Data of a compression."""

import pytest
import torch

from foveal.shrink.data import Data, calibration

X = torch.arange(12.0).view(6, 2)


@pytest.mark.parametrize("given", [X, [X[:4], X[4:]], Data(X, quality=lambda model: 0.0)])
def test_every_form_gives_the_same_inputs(given):
    assert torch.equal(calibration(given, step="Toy"), X)
    assert len(calibration(given, step="Toy", limit=5)) == 5


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        (None, ValueError, "Toy observes activations and needs data, got none; pass some inputs of the model"),
        ([], ValueError, "Toy needs at least one batch of data, got none"),
        ([(X, X)], TypeError, "Toy calibrates on tensors, got tuple; yield inputs alone, without labels"),
        (X[:0], ValueError, r"Toy needs at least one input, got a tensor of shape \(0, 2\)"),
    ],
)
def test_what_it_refuses(given, error, says):
    with pytest.raises(error, match=says):
        calibration(given, step="Toy")
