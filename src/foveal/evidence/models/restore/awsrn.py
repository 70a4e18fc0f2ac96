"""Evidence for AWSRN: its tables' counts, EDSR with as many parameters, the network without its weakest branch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foveal.evidence.rivals.edsr import EDSR
from foveal.evidence.tasks import photos
from foveal.evidence.tasks.equal_minutes import Trial
from foveal.measure.cost import count_macs, count_parameters
from foveal.models.restore.awsrn import AWSRN, awsrn_m, awsrn_s, awsrn_sd, without_branch
from foveal.record import bound, equal, kept, macs, params, smaller

if TYPE_CHECKING:
    from collections.abc import Callable

small = partial(AWSRN, dim=12, hidden=32, depth=1, units=3)
plain = partial(EDSR, dim=16, depth=8)  # as many parameters to 1 %
TRIAL = Trial((small, plain), 2, 1)
# Tables 1 and 2 of the source: thousands of parameters at ×2, ×3, ×4.
PRINTED: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "AWSRN-S": (awsrn_s, (397, 477, 588)),
    "AWSRN-SD": (awsrn_sd, (348, 388, 444)),
    "AWSRN-M": (awsrn_m, (1063, 1143, 1254)),
    "AWSRN": (AWSRN, (1397, 1476, 1587)),
}


def _folded(*, fold: bool) -> Tensor:
    torch.manual_seed(0)
    network, x = AWSRN(2, dim=12, hidden=24, depth=2).eval(), torch.rand(2, 3, 23, 31)
    with torch.inference_mode():
        return (network.fold() if fold else network)(x)


def _removed(seed: int, *, absorb: bool = False) -> float:
    """Gain over bicubic of the network without its weakest branch, less that of the whole network."""
    network = TRIAL.trained(small, seed)
    assert isinstance(network, AWSRN)
    return photos.gain(without_branch(network, absorb=absorb), 2) - TRIAL.gain(small, seed)


def _without_nine() -> AWSRN:
    return without_branch(AWSRN(4), 9)


CLAIMS = (
    *(
        params(
            f"Parameters of {name} ×{scale}.",
            paper=f"{thousands} K",
            model=partial(build, scale),
            expect=1000 * thousands,
            tolerance=0.01,
            clause=1,
        )
        for name, (build, table) in PRINTED.items()
        for scale, thousands in zip((2, 3, 4), table, strict=True)
    ),
    macs(
        "Multiply-adds of AWSRN ×4 to 1280×720.",
        paper="91.1 G",
        model=AWSRN,
        shape=(1, 3, 180, 320),
        expect="91.1 G",
        beyond="compute of AWSRN",
    ),
    TRIAL.better(
        small,
        "After equal processor minutes a small ×2 is above EDSR with as many parameters.",
        than=plain,
        by=0.0,
        paper="better at similar parameters and compute",
        clause=2,
    ),
    bound(
        "The two have the same number of parameters to 1 %.",
        paper="",
        value=lambda: count_parameters(small(2)) / count_parameters(plain(2)),
        at_least=0.99,
        at_most=1.01,
        clause=2,
    ),
    kept(
        "Without the branch whose scalar is smallest, not trained further, it loses less than 0.1 dB.",
        paper="redundant branches can be removed",
        quality=_removed,
        at_least=-0.1,
        data=TRIAL.data,
        needs=photos.NEEDS,
        clause=3,
    ),
    kept(
        "If the largest other branch takes over what fits into its kernel, it loses less than 0.1 dB.",
        paper="",
        quality=partial(_removed, absorb=True),
        at_least=-0.1,
        data=TRIAL.data,
        needs=photos.NEEDS,
        beyond="removal without loss",
    ),
    smaller(
        "Removing the 9×9 branch of AWSRN ×4 saves its weights.",
        paper="",
        ours=lambda: count_parameters(_without_nine()),
        theirs=lambda: count_parameters(AWSRN(4)),
        at_least=1.08,
        beyond="a lighter network after removal",
    ),
    equal(
        "Folded to one reconstruction kernel and without weight normalisation, it gives the same picture.",
        ours=lambda: _folded(fold=True),
        theirs=lambda: _folded(fold=False),
        tolerance=1e-5,
        beyond="branches of the reconstruction are linear",
    ),
    smaller(
        "Folded, AWSRN-S ×4 takes fewer multiply-adds.",
        paper="",
        ours=lambda: count_macs(awsrn_s(4).fold(), (1, 3, 180, 320)),
        theirs=lambda: count_macs(awsrn_s(4), (1, 3, 180, 320)),
        at_least=1.27,
        beyond="cost of the branches",
    ),
)
