import sys

import pytest
import torch
from torch import nn

from foveal.shrink.prune.structure import Prune
from foveal.shrink.step import ShrinkError


def test_without_torch_pruning_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ShrinkError, match=r"needs torch-pruning.*pip install '\.\[shrink\]'"):
        Prune(keep=0.5).apply(nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 2)), torch.randn(2, 4))
