"""Every order in which state space models scan a picture or a volume, and the one recurrence behind S4, S5 and S6.

*Source*: S. Bansal et al., "A Comprehensive Survey of Mamba Architectures for Medical Image Analysis: Classification,
Segmentation, Restoration and Beyond", 2024 (arXiv:2410.02362): its sections on S4, S5 and S6, on architectures and on
scans. Architecture and scan of each state space model are facets of the catalogue (`foveal catalogue --facet
scan=cross`), and `foveal.nn.scan_orders` has the orders by name:

    map      raster cross snake diagonal spiral hilbert window atrous forward omnidirectional zigzag
    volume   spatial-first temporal-first tri-oriented axes

For a state of N numbers, eigenvalues λ, step Δ and decay a = (1 + Δλ/2) / (1 - Δλ/2), input weights b = Δ / (1 - Δλ/2):

    S4   y = K * x, K_l = Σ_n c_n a_nˡ b_n                         one convolution, from Cauchy sums
    S5   h_t = a ∘ h_{t-1} + b x_t, y_t = c·h_t                    an associative scan
    S6   h_t = exp(Δ·A) ∘ h_{t-1} + Δ·B x_t, y_t = C·h_t           with A = log(a) / Δ, B = b / Δ and C = c constant

A route that steps from neighbour to neighbour should change less from token to token than rows do, which jump back at
the end of each; on pictures that is measured.

*Differs from the paper*: the survey draws its orders without formulas; those here are of the papers that it covers, see
`foveal.nn.scan_orders`. Orders that a model learns, and those of points in space, are no permutations of a map and
are not here.
*Provenance*: written from the survey's abstract and the papers on each order.
"""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from foveal.cases import Procedure
from foveal.evidence.rehearsal import cached, rehearsing
from foveal.measure import benchmarks
from foveal.models.sequence.convs5 import linear_scan
from foveal.models.sequence.s4 import s4_kernel
from foveal.nn.scan_orders import MAP_ORDERS, VOLUME_ORDERS, scan_along, scan_routes
from foveal.nn.ss2d import S6
from foveal.ops import selective_scan
from foveal.ops.scan2d import gather, scatter
from foveal.record import Method, Paper, bound, equal

__all__ = ["change", "recurrences"]

SIZES = ((1, 1), (1, 7), (5, 4), (8, 8), (7, 9))
DEPTHS = (1, 3)
CROP, PICTURES = 128, 100
ALL = (*MAP_ORDERS, *VOLUME_ORDERS)


def _found() -> list[tuple[str, Tensor, tuple[int, ...]]]:
    """Name, routes and shape for all orders and sizes."""
    volumes = [(depth, *size) for depth in DEPTHS for size in SIZES]
    sizes = {**dict.fromkeys(MAP_ORDERS, SIZES), **dict.fromkeys(VOLUME_ORDERS, volumes)}
    return [(order, scan_routes(order, *size, window=3), size) for order, some in sizes.items() for size in some]


def _gathered_and_back(*, ours: bool) -> Tensor:
    """A map taken along the routes of each order and put back, over how often it was visited; or the map itself."""
    out = []
    for order, found, size in _found():
        length = torch.Size(size).numel()
        x = torch.randn(1, 2, length, generator=torch.Generator().manual_seed(length))
        visits = 1 if order == "atrous" else len(found)
        out.append((scatter(gather(x, found), found, length) / visits if ours else x).flatten())
    return torch.cat(out)


@torch.no_grad()
def _scanned(*, ours: bool) -> Tensor:
    """Outputs of S6 with each order by its name, or of one plain scan for each route, position by position."""
    out = []
    for order in ALL:
        size = (5, 6) if order in MAP_ORDERS else (2, 3, 4)
        found = scan_routes(order, *size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            s6, x = S6(3, state=4, num_routes=len(found)).double(), torch.randn(2, 3, *size, dtype=torch.float64)
        if ours:
            out.append(scan_along(s6, x, order).flatten())
            continue
        flat, total = x.flatten(2), torch.zeros_like(x.flatten(2))
        parts = [t.unflatten(0, (len(found), -1)) for t in (-s6.A_log.exp(), s6.D, s6.dt_bias)]
        for route, step, b, c, decay, skip, bias in zip(
            found, *(t.unbind(1) for t in s6.project(flat)), *parts, strict=True
        ):
            at = route[route >= 0]
            u, delta, entering, leaving = (t[..., at] for t in (flat, step, b, c))
            total[..., at] += selective_scan(
                u, delta, decay, entering, leaving, skip, delta_bias=bias, delta_softplus=True, backend="reference"
            )
        out.append(total.flatten())
    return torch.cat(out)


def recurrences(length: int, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """One system of three channels and four real states as S4, S5 and S6.

    Args:
        length: L.
        seed: seed of the system and of the input.

    Returns:
        Outputs by S4's kernel, by S5's scan and by S6's, (3, L) each, float64.
    """
    generator = torch.Generator().manual_seed(seed)
    x, leaving = (torch.randn(3, n, generator=generator, dtype=torch.float64) for n in (length, 4))
    rates = -0.2 - torch.rand(3, 4, generator=generator, dtype=torch.float64)
    step = 0.1 + torch.rand(3, generator=generator, dtype=torch.float64)
    half = rates * step[:, None] / 2
    decay, entering = (1 + half) / (1 - half), step[:, None] / (1 - half)
    # S4 keeps one of each conjugate pair and what C is for this length; a real state counts as both of its pair
    zero, one = torch.zeros(3, 4, dtype=torch.complex128), torch.ones(3, 4, dtype=torch.complex128)
    cut = (leaving / 2 * (1 - decay**length)).to(torch.complex128)
    kernel = s4_kernel(rates.to(torch.complex128), zero, one, cut, step, length)
    by_s4 = torch.fft.irfft(torch.fft.rfft(kernel, 2 * length) * torch.fft.rfft(x, 2 * length), 2 * length)[:, :length]
    states = torch.stack(
        [linear_scan((b * y[:, None])[None], a)[0] for a, b, y in zip(decay, entering, x, strict=True)]
    )
    by_s5 = (states * leaving[:, None]).sum(-1)
    steps = step[:, None].expand(-1, length).contiguous()
    by_s6 = selective_scan(x[None], steps[None], decay.log() / step[:, None], entering / step[:, None], leaving)[0]
    return by_s4, by_s5, by_s6


@cached(maxsize=1)
def _pictures() -> Tensor:
    """Middles of photographs, luminance in [0, 1], (n, 1, H·W)."""
    if rehearsing():
        return torch.rand(2, 1, CROP * CROP, generator=torch.Generator().manual_seed(0))
    paths = sorted(path for path in benchmarks.find("bsds400").rglob("*") if path.suffix in {".png", ".jpg"})[:PICTURES]
    middles = []
    for path in paths:
        with Image.open(path) as picture:
            grey = torch.from_numpy(np.array(picture.convert("L"))).float() / 255
        top, left = ((side - CROP) // 2 for side in grey.shape)
        middles.append(grey[top : top + CROP, left : left + CROP].flatten())
    return torch.stack(middles)[:, None]


@cached(maxsize=16)
def change(order: str) -> float:
    """Mean difference from token to token along the first route of an order, over photographs.

    Args:
        order: name of an order of a map.

    Returns:
        Difference of neighbours in the sequence, in 1/255.
    """
    along = gather(_pictures(), scan_routes(order, CROP, CROP)[:1])
    return 255 * float(along.diff(dim=-1).abs().mean())


def _unclassified() -> float:
    """State space models of the catalogue without an architecture or a scan."""
    if rehearsing():  # the command has its own tests
        return 0.0
    command = "from foveal.cli.main import main; main()"
    arguments = [sys.executable, "-c", command, "catalogue", "--all", "--json"]
    listed = json.loads(subprocess.run(arguments, capture_output=True, check=True).stdout)
    literature = [row for row in listed if row["id"] is not None and row["family"] != "survey"]
    models = [row for row in literature if row["family"] == "backbone-ssm" or "Mamba" in row["title"]]
    missing = [row for row in models if not {"network", "scan"} <= row["facets"].keys()]
    return float(len(missing)) if len(models) > len(missing) else float("inf")


METHOD = Method(
    id=292,
    name="Mamba-Medical-Survey",
    kind="study",
    summary="All scan orders by name, and S4, S5 and S6 as one recurrence.",
    paper=Paper(
        "A Comprehensive Survey of Mamba Architectures for Medical Image Analysis: Classification, Segmentation, "
        "Restoration and Beyond",
        "S. Bansal et al.",
        2024,
        "arXiv:2410.02362",
    ),
    cases={"recurrences": Procedure(lambda seed: torch.stack(recurrences(9, seed=seed)))},
)

CLAIMS = (
    equal(
        f"A map taken along the routes of each of {len(ALL)} orders and put back is itself.",
        paper="scans cover the map",
        ours=lambda: _gathered_and_back(ours=True),
        theirs=lambda: _gathered_and_back(ours=False),
        tolerance=1e-6,
        clause=1,
    ),
    equal(
        "Each order, by its name, gives in S6 what one plain scan for each route gives, position by position.",
        paper="",
        ours=lambda: _scanned(ours=True),
        theirs=lambda: _scanned(ours=False),
        tolerance=1e-10,
        clause=1,
    ),
    bound(
        "No state space model of the catalogue lacks its architecture or its scan.",
        paper="taxonomy of architectures and scans",
        value=_unclassified,
        at_most=0.0,
        unit="rows",
        needs=("minutes",),
        clause=2,
    ),
    equal(
        "S4's convolution and S5's scan give the same outputs for one system.",
        paper="S4, S5 and S6 share the recurrence",
        ours=lambda: recurrences(50)[0],
        theirs=lambda: recurrences(50)[1],
        tolerance=1e-10,
        beyond="one recurrence, three parameterisations",
    ),
    equal(
        "S6 with constant step and weights gives them too.",
        paper="S4, S5 and S6 share the recurrence",
        ours=lambda: recurrences(50)[2],
        theirs=lambda: recurrences(50)[1],
        tolerance=1e-10,
        beyond="one recurrence, three parameterisations",
    ),
    *(
        bound(
            f"On photographs, neighbours along a {order} differ no more than along rows.",
            paper="continuous scans keep neighbours together",
            value=lambda order=order: change(order) / change("raster"),  # type: ignore[misc]
            at_most=1.0,
            unit="of the change along rows",
            needs=("bsds400",),
            beyond="continuous scans",
        )
        for order in ("snake", "spiral", "hilbert")
    ),
)
