"""Evidence for SeemoRe: spandrel's class with shared weights, the chosen expert alone, EDSR with as many parameters."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from foveal.evidence.rivals.edsr import EDSR
from foveal.evidence.tasks import equal_minutes
from foveal.measure.cost import count_parameters
from foveal.models.restore.seemore import ExpertLayer, SeemoRe, seemore_b, seemore_l
from foveal.record import bound, equal, params

small = partial(SeemoRe, dim=24, depth=2)
plain = partial(EDSR, dim=16, depth=6)  # as many parameters to 2 %


def _against_spandrel(*, ours: bool) -> Tensor:
    """Output of one of the two networks with the same weights on the same picture; needs `pip install spandrel`."""
    try:
        from spandrel.architectures.SeemoRe import SeemoRe as Theirs
    except ImportError as error:
        raise ImportError("this claim compares with spandrel; install it: pip install spandrel") from error

    torch.manual_seed(0)
    network = SeemoRe(2).eval()
    x = torch.rand(1, 3, 45, 67)
    if not ours:
        other = Theirs(scale=2, num_experts=3, num_layers=6, embedding_dim=36, lr_space="exp").eval()
        other.load_state_dict(network.state_dict())
    with torch.inference_mode():
        return (network if ours else other)(x)


def _routed() -> tuple[SeemoRe, Tensor]:
    """A network whose groups route a batch of pictures to different experts."""
    torch.manual_seed(0)
    network = SeemoRe(2, dim=16, depth=3).double().eval()
    for module in network.modules():
        if isinstance(module, ExpertLayer):
            router: Any = module.gate.body[-1]
            router.weight.data.mul_(50)
    return network, torch.rand(6, 3, 20, 20, dtype=torch.float64) * torch.linspace(0.1, 1, 6)[:, None, None, None]


def _sparse(*, sparse: bool) -> Tensor:
    network, x = _routed()
    with torch.inference_mode():
        return network.train(not sparse)(x)  # training evaluates all experts and weighs the others with 0


def _macs(*, sparse: bool) -> Tensor:
    """Multiply-adds of a layer of experts of ranks 2, 4 and 8 on one picture."""
    torch.manual_seed(0)
    layer, x = ExpertLayer(36, (2, 4, 8)).eval(), torch.rand(1, 36, 24, 24)
    with torch.inference_mode():
        chosen = int(layer.gate(x).argmax())
        with FlopCounterMode(display=False) as counter:
            (layer.sparse if sparse else layer.dense)(x, x)
    left_out = sum(rank for i, rank in enumerate((2, 4, 8)) if i != chosen)
    unused = 0 if sparse else 3 * 36 * left_out * 24 * 24
    return torch.tensor(counter.get_total_flops() // 2 - unused)


CLAIMS = (
    params("Parameters of SeemoRe-T ×2.", paper="220 K", model=SeemoRe, expect=220_104, clause=1),
    params("Parameters of SeemoRe-B ×2.", paper="authors' code", model=seemore_b, expect=490_364, beyond="size of B"),
    params("Parameters of SeemoRe-L ×2.", paper="authors' code", model=seemore_l, expect=953_308, beyond="size of L"),
    equal(
        "Equals spandrel's SeemoRe under shared weights.",
        ours=lambda: _against_spandrel(ours=True),
        theirs=lambda: _against_spandrel(ours=False),
        tolerance=1e-5,
        clause=2,
    ),
    equal(
        "Six pictures, each through its chosen experts alone, equal the evaluation of all experts with weights of 0.",
        ours=lambda: _sparse(sparse=True),
        theirs=lambda: _sparse(sparse=False),
        tolerance=1e-9,
        clause=3,
    ),
    equal(
        "The chosen expert alone saves the multiply-adds of the others.",
        ours=lambda: _macs(sparse=True),
        theirs=lambda: _macs(sparse=False),
        tolerance=0.0,
        beyond="only the chosen expert runs",
    ),
    equal_minutes.better(
        small,
        "After equal processor minutes a small ×2 is above EDSR with as many parameters.",
        than=plain,
        scale=2,
        minutes=1,
        by=0.0,
        paper="best of efficient networks",
        clause=4,
    ),
    bound(
        "The two have the same number of parameters to 2 %.",
        paper="",
        value=lambda: count_parameters(small(2)) / count_parameters(plain(2)),
        at_least=0.98,
        at_most=1.02,
        clause=4,
    ),
)
