"""What scans trains under `torch.compile` as users call it, by inductor: one step, eager torch's gradients."""

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
    """One step with and without compiling."""
    torch._dynamo.reset()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    parameters = [p for p in model.train().parameters() if p.requires_grad]

    def step(run):
        leaf = x.clone().requires_grad_()
        y = run(leaf)
        return torch.autograd.grad(y.sin().sum(), [leaf, *parameters], allow_unused=True)

    for got, wanted in zip(step(torch.compile(model)), step(model), strict=True):
        assert (got is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max().item() + 1e-6)


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
