"""What scans trains under `torch.compile` as users call it, by inductor: one step, eager torch's gradients."""

import copy

import pytest
import torch

from foveal.models import create_model
from foveal.nn.mamba import Mamba
from foveal.nn.ss2d import S6, SS2D

FOUR = {"depths": (1, 1, 1, 1), "num_classes": 5}
UNET = {"dim": 8, "depths": (1, 1), "depths_up": (1, 1), "state": 2}
ISOTROPIC = {"dim": 8, "depth": 1, "state": 2, "patch_size": 4, "num_classes": 5}
FAMILIES = {
    "a2mamba_n": {"dims": (8, 8), "depths": (1, 1), "num_heads": (2, 2), "num_classes": 5},
    "efficientvmamba_tiny": {**FOUR, "dim": 8, "state": 2},
    "groupmamba_tiny": {**FOUR, "dims": (8, 8, 12, 16)},
    "hi_mamba": {"scale": 3, "dim": 8, "groups": 1, "depth": 1, "state": 2},
    "mhs_unet": {**UNET, "num_classes": 2},
    "msvmamba_nano": {**FOUR, "dim": 8},
    "plainmamba_l1": ISOTROPIC,
    "spatial_mamba_tiny": {"dim": 8, "depths": (1, 1), "num_classes": 5},
    "vcmamba_s": {**FOUR, "dims": (8, 8, 12, 16)},
    "vim2_tiny": {"dim": 8, "depths": (2, 1), "state": 2, "window": 2, "num_classes": 5},
    "vim_tiny": ISOTROPIC,
    "vm_unet": UNET,
    "vmamba_tiny": {**FOUR, "dim": 8},
    "vssd_micro": {**FOUR, "dim": 16},
}
BLOCKS = {
    "Mamba": (lambda: Mamba(8, state=4, bidirectional=True), (2, 9, 8)),
    "S6": (lambda: S6(8, state=4), (2, 4, 8, 35)),
    "SS2D": (lambda: SS2D(8, state=4), (2, 8, 5, 7)),
}


def trains(model, shape):
    """One step compiled is as near to float64 as one in eager torch, which untrained MHS-VM misses by a fifth."""
    torch._dynamo.reset()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    model.train()

    def step(run, like):
        leaf = x.to(next(like.parameters()).dtype).requires_grad_()
        leaves = [leaf, *(p for p in like.parameters() if p.requires_grad)]
        return torch.autograd.grad(run(leaf).sin().sum(), leaves, allow_unused=True)

    exact = copy.deepcopy(model).double()
    eager, wanted = step(model, model), step(exact, exact)
    for ours, theirs, right in zip(step(torch.compile(model), model), eager, wanted, strict=True):
        assert (ours is None) == (theirs is None) == (right is None)
        if right is not None:
            bound = 1e-3 * right.abs().max() + 2 * (theirs - right).abs().max() + 1e-6
            assert (ours - right).abs().max() <= bound


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a family is a hundred kernels, each compiled by the C++ compiler
@pytest.mark.parametrize("name", FAMILIES)
def test_families_train_compiled(name):
    torch.manual_seed(0)
    trains(create_model(name, **FAMILIES[name]), (2, 3, 32, 32))


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a family is a hundred kernels, each compiled by the C++ compiler
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_train_compiled(name):
    torch.manual_seed(0)
    build, shape = BLOCKS[name]
    trains(build(), shape)
