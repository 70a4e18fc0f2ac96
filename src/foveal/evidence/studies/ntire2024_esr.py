"""NTIRE2024-ESR: a score of super-resolution networks from their time, multiply-adds and parameters, behind a gate.

*Source*: B. Ren et al., "The Ninth NTIRE 2024 Efficient Super-Resolution Challenge Report", CVPR Workshops 2024
(arXiv:2404.10343), section 2.

    score = 0.7 exp(2 t / t₀) + 0.15 exp(2 F / F₀) + 0.15 exp(2 P / P₀)      less is better; RLFN, index 0, has exp(2)

t seconds of a picture, F multiply-adds, P parameters. A network is scored if its PSNR is not below the gate. The report
gates at 26.99 dB on its test pictures, where RLFN, trained by the organisers, has 27.07: 0.08 dB below it.

*Differs from the paper*: the gate is 0.08 dB below RLFN trained here as long as the others, on the pictures of this
machine; times are taken in turn with RLFN's on this processor, each network in its best engine. `foveal leaderboard` is
the command.
*Provenance*: written from the report; RLFN's time, count and weights are those of `foveal.evidence.rivals.rlfn`.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from foveal.cases import Procedure
from foveal.evidence.rivals.rlfn import RLFN
from foveal.record import Method, Paper, bound, macs, params

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["GATE", "WEIGHTS", "passes", "score"]

WEIGHTS = {"seconds": 0.7, "macs": 0.15, "parameters": 0.15}
GATE = 0.08  # dB below RLFN
MINUTES = 0.2  # processor minutes of each training of the claim


def score(ours: Mapping[str, float], baseline: Mapping[str, float]) -> float:
    """Score of a network; less is better.

    Args:
        ours: seconds, macs and parameters, each at least 0.
        baseline: those of RLFN, each above 0.

    Returns:
        Score; exp(2) for the baseline itself.

    Raises:
        ValueError: a figure that is missing, negative, or 0 for the baseline.
    """
    for name in WEIGHTS:
        if not (ours.get(name, -1) >= 0 and baseline.get(name, 0) > 0):
            raise ValueError(
                f"{name} must be at least 0, and above 0 for the baseline, got {ours.get(name)} and "
                f"{baseline.get(name)}; measure both"
            )
    return sum(weight * math.exp(2 * ours[name] / baseline[name]) for name, weight in WEIGHTS.items())


def passes(psnr: float, baseline: float, *, gate: float = GATE) -> bool:
    """Whether a network is good enough to be scored.

    Args:
        psnr: PSNR, dB.
        baseline: PSNR of RLFN on the same pictures, dB.
        gate: how much may be missing, dB.

    Returns:
        True for a PSNR of at least the baseline less the gate.
    """
    return psnr >= baseline - gate


def _of_a_twin(seed: int, *, of: Mapping[str, float] | None = None) -> float:
    return score(dict.fromkeys(WEIGHTS, (1 + seed) * 2.0) if of is None else of, dict.fromkeys(WEIGHTS, 2.0))


def _ranked() -> float:
    """Networks of a board that have a time and are scored, or gated for a PSNR that is too low; RLFN among them."""
    from foveal.evidence.leaderboard.standing import small_board

    lines = small_board(("espcn", "quicksrnet_small", "sesr_m5"), minutes=MINUTES)
    base = next(line for line in lines if line.name == "rlfn")
    right = [
        line.seconds[1] > 0 and line.gated == (not passes(line.mean, base.mean)) and line.gated == (line.score is None)
        for line in lines
    ]
    return float(sum(right))


METHOD = Method(
    id=6,
    name="NTIRE2024-ESR",
    kind="benchmark",
    summary="Super-resolution networks ranked by time, multiply-adds and parameters if their PSNR passes a gate.",
    paper=Paper(
        "The Ninth NTIRE 2024 Efficient Super-Resolution Challenge Report", "B. Ren et al.", 2024, "arXiv:2404.10343"
    ),
    cases={"twin": Procedure(_of_a_twin, partial(_of_a_twin, 0, of={}), refuses="seconds must be at least 0")},
)

CLAIMS = (
    params("Parameters of RLFN.", paper="0.317 M, 317,218 by the code", model=RLFN, expect=317_218, clause=1),
    macs(
        "Multiply-adds of RLFN at 256×256.",
        paper="19.67 G",
        model=RLFN,
        shape=(1, 3, 256, 256),
        expect=19.67e9,
        tolerance=0.001,
        clause=1,
    ),
    bound(
        "The score of the baseline is exp(2), 7.3891.",
        paper="exp(2)",
        value=lambda: abs(_of_a_twin(0) - 7.3891),
        at_most=1e-4,
        clause=2,
    ),
    bound(
        "Four ×4 networks, trained on bsds400 and tested on Set5, are gated or scored, from times taken in turn with "
        "RLFN's.",
        paper="the challenge's tables",
        value=_ranked,
        at_least=4,
        unit="networks",
        needs=("minutes", "bsds400", "Set5"),
        clause=3,
    ),
)
