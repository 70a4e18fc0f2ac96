"""How time and memory of three mixers grow with the number of tokens: selective scan, attention, depthwise convolution.

*Source*: M. Heidari et al., "Computation-Efficient Era: A Comprehensive Survey of State Space Models in Medical Image
Analysis", 2024 (arXiv:2406.03430): a state space model costs as much per token however many there are, attention does
not. For n tokens of C = 384 channels, c = 64, one picture, float32:

    scan                   y = selective_scan(x, Δ, A, B, C)        time n, memory n         16 states a channel
    attention              y = softmax(q kᵀ / √c) v                 time n², memory n²       one head of c
    depthwise convolution  y = K * x on √n × √n positions           time n, memory n         K: 7×7

The exponent e of cost ~ nᵉ is fitted to 256, 1,024, 4,096 and 16,384 tokens. Memory is that of the tensors held at
once. `foveal catalogue NAME` prints the exponents of the scan for each row of the literature that has one.

*Differs from the paper*: the survey quotes asymptotic costs; here they are measured.
*Provenance*: written from the survey.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.cases import Procedure
from foveal.evidence.rehearsal import rehearsing
from foveal.evidence.timing import seconds
from foveal.measure.live import live_bytes
from foveal.ops import selective_scan
from foveal.record import Method, Paper, bound, grows

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MIXERS", "TOKENS", "bytes_of", "seconds_of"]

TOKENS = (256, 1024, 4096, 16_384)
DIM, STATES, KERNEL, HEAD = 384, 16, 7, 64  # as of ViT-S, whose heads have 64 channels


def _drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def _scan(tokens: int) -> Callable[[], Tensor]:
    x, step, weights = _drawn(1, DIM, tokens), _drawn(1, DIM, tokens).abs() / 10, _drawn(1, STATES, tokens)
    decay = -torch.arange(1.0, STATES + 1).expand(DIM, -1)
    return lambda: selective_scan(x, step, decay, weights, weights)


def _attention(tokens: int) -> Callable[[], Tensor]:
    query, key, value = _drawn(3, 1, tokens, HEAD)
    return lambda: torch.softmax(query @ key.mT * HEAD**-0.5, -1) @ value


def _fused(tokens: int) -> Callable[[], Tensor]:
    query, key, value = _drawn(3, 1, 1, tokens, HEAD)
    return lambda: F.scaled_dot_product_attention(query, key, value)


def _depthwise(tokens: int) -> Callable[[], Tensor]:
    side = round(tokens**0.5)
    x, kernel = _drawn(1, DIM, side, side), _drawn(DIM, 1, KERNEL, KERNEL)
    return lambda: torch.conv2d(x, kernel, padding=KERNEL // 2, groups=DIM)


MIXERS: dict[str, Callable[[int], Callable[[], Tensor]]] = {
    "scan": _scan,
    "attention": _attention,
    "fused attention": _fused,
    "depthwise convolution": _depthwise,
}


def seconds_of(mixer: str, tokens: int) -> float:
    """Time of one call.

    Args:
        mixer: name in `MIXERS`.
        tokens: n, a square.

    Returns:
        Seconds, the least of three calls after one.
    """
    with torch.inference_mode():
        return seconds(lambda: MIXERS[mixer](tokens))


def bytes_of(mixer: str, tokens: int) -> float:
    """Memory of the tensors that one call makes and holds at once.

    Args:
        mixer: name in `MIXERS`.
        tokens: n, a square.

    Returns:
        Bytes.
    """
    return live_bytes(MIXERS[mixer](tokens))


def _unlinked() -> float:
    """Rows with a scan for which the catalogue does not print the exponents."""
    if rehearsing():  # the command has its own tests
        return 0.0
    command = "from foveal.cli.main import main; main()"
    arguments = [sys.executable, "-c", command, "catalogue", "--all", "--json"]
    listed = json.loads(subprocess.run(arguments, capture_output=True, check=True).stdout)
    scanning = [row for row in listed if row["facets"].get("scan", "none") != "none"]
    return float(sum("tokens" not in row["scales"] for row in scanning) if scanning else 1)


METHOD = Method(
    id=301,
    name="SSM-Medical-Survey",
    kind="study",
    summary="How time and memory of scan, attention and depthwise convolution grow with the number of tokens.",
    paper=Paper(
        "Computation-Efficient Era: A Comprehensive Survey of State Space Models in Medical Image Analysis",
        "M. Heidari et al.",
        2024,
        "arXiv:2406.03430",
    ),
    cases={"bytes": Procedure(lambda seed: bytes_of("scan", 256) + 0.0 * seed)},
)

CLAIMS = (
    *(
        grows(
            f"Time of {words} from {TOKENS[0]} to {TOKENS[-1]:,} tokens.",
            paper=paper,
            cost=partial(seconds_of, mixer),
            sizes=TOKENS,
            exponent=exponent,
            rounds=3,
            clause=1,
        )
        for mixer, words, paper, exponent in (
            ("scan", "a selective scan", "linear", (0.8, 1.15)),
            ("attention", "softmax attention", "quadratic", (1.8, 2.2)),
            ("depthwise convolution", "a 7×7 depthwise convolution", "linear", (0.8, 1.15)),
        )
    ),
    *(
        grows(
            f"Memory of {words} from {TOKENS[0]} to {TOKENS[-1]:,} tokens.",
            paper=paper,
            cost=partial(bytes_of, mixer),
            sizes=TOKENS,
            exponent=exponent,
            clause=1,
        )
        for mixer, words, paper, exponent in (
            ("scan", "a selective scan", "linear", (0.95, 1.05)),
            ("attention", "softmax attention", "quadratic", (1.9, 2.1)),
            ("depthwise convolution", "a 7×7 depthwise convolution", "linear", (0.95, 1.05)),
        )
    ),
    grows(
        "Memory of fused attention is not quadratic, which the survey does not say.",
        paper="quadratic",
        cost=partial(bytes_of, "fused attention"),
        sizes=TOKENS,
        exponent=(0.95, 1.05),
        beyond="attention that keeps no scores",
    ),
    bound(
        "`foveal catalogue` prints the exponents for every row with a scan.",
        paper="",
        value=_unlinked,
        at_most=0.0,
        unit="rows without them",
        needs=("minutes",),
        clause=2,
    ),
)
