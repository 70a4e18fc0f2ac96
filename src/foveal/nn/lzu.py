"""LZU: a network reads a picture that is enlarged where it matters, and its features are brought back to their places.

*Source*: C. Thavamani, M. Li, F. Ferroni, D. Ramanan, "Learning to Zoom and Unzoom", CVPR 2023 (arXiv:2303.15390),
section 3. With a saliency S, (B, n, m), of the picture x, (B, C, H, W), and the separable grid T that follows it:

    z = x ∘ T                       (B, C, h, w), smaller than x; more of its pixels lie where S is high
    f = body(z)                     (B, D, h', w')
    y = head(f ∘ T⁻¹)

T is piecewise bilinear on the n×m knots of S, so T⁻¹ is found in closed form (`foveal.nn.sampling_grid`). S is a fixed
map for a whole data set, drawn from its boxes or labels; a map for each picture, from the boxes of the last frame; or
the output of a network that learns with the others.

*Differs from the paper*: positions count from edge to edge of a picture, not from the first pixel's centre to the last
one's, so that zooming to the same size with a uniform saliency is the identity for pictures and for features of every
stride; grids are separable only; features can be unzoomed to a larger map than theirs (`finer`), which keeps what was
seen in the enlarged parts. The saliency of boxes follows the idea of FOVEA (arXiv:2108.12102), with Gaussians of height
1 as wide as their boxes.
*Provenance*: written from the paper; the form of the attraction and its width (`reach`: 13 of 31×51 knots) as in the
authors' code, with which knots and inverse agree to 4e-7 on square grids; on others it cuts the kernel of both axes at
the shorter one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from foveal.cases import Operator
from foveal.nn.sampling_grid import SamplingGrid, centres, pull, push, resample_plain
from foveal.record import Method, Paper
from foveal.runtime.route import Route, recorded

__all__ = ["LZU", "box_saliency", "zoom_unzoom", "zoom_unzoom_plain"]


def box_saliency(boxes: Tensor, shape: tuple[int, int], *, amplitude: float = 1.0, bandwidth: float = 0.5) -> Tensor:
    """Saliency of boxes: 1 everywhere, and a Gaussian for each box, as wide as the box is.

    Args:
        boxes: centres, widths and heights as shares of the picture, (N, 4) in [0, 1]: x, y, width, height.
        shape: rows and columns of the map.
        amplitude: height of a single Gaussian, at least 0; the sum is divided by the number of boxes.
        bandwidth: standard deviation of a Gaussian over the side of its box, above 0.

    Returns:
        Saliency, (1, *shape).

    Raises:
        ValueError: boxes of another shape, or a number outside its range.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be (N, 4): x, y, width, height, got {tuple(boxes.shape)}")
    if amplitude < 0 or bandwidth <= 0:
        raise ValueError(f"amplitude must be at least 0 and bandwidth above 0, got {amplitude} and {bandwidth}")
    found = boxes.new_ones(1, *shape)
    if not len(boxes):
        return found
    # (N, rows) and (N, columns): a Gaussian in the plane is a product
    down, across = (
        torch.exp(-0.5 * ((torch.linspace(0, 1, count).to(boxes) - boxes[:, i, None]) / spread).square())
        for i, count, spread in (
            (1, shape[0], (bandwidth * boxes[:, 3, None]).clamp(min=0.5 / shape[0])),
            (0, shape[1], (bandwidth * boxes[:, 2, None]).clamp(min=0.5 / shape[1])),
        )
    )
    return found + amplitude * (down.mT @ across) / len(boxes)


class LZU(nn.Module):
    """(B, C, H, W) to what `head` makes of unzoomed features, as if they came from the picture itself.

    Args:
        body: network from zoomed pictures, (B, C, *size), to features, (B, D, h', w'), or a list of such.
        size: height and width of the zoomed picture.
        saliency: fixed map, (n, m) above 0; or a network from pictures, (B, C, H, W), to maps, (B, n, m) above 0; or
            None where each call gives a map.
        head: network that gets what `body` gives, unzoomed; None returns that.
        reach: width of the attraction, a share of each axis.
        finer: how many times larger each map of features becomes in unzooming, at least 1.

    Raises:
        ValueError: a saliency or `finer` that does not fit.
    """

    fixed: Tensor | None

    def __init__(
        self,
        body: nn.Module,
        size: tuple[int, int],
        *,
        saliency: Tensor | nn.Module | None = None,
        head: nn.Module | None = None,
        reach: float = 0.25,
        finer: int = 1,
    ) -> None:
        super().__init__()
        if finer < 1:
            raise ValueError(f"finer must be at least 1, got {finer}; features may only be enlarged")
        self.body, self.head, self.size, self.reach, self.finer = body, head, size, reach, finer
        self.looks = saliency if isinstance(saliency, nn.Module) else None
        if isinstance(saliency, Tensor):
            if saliency.ndim != 2:
                raise ValueError(f"a fixed saliency must be (n, m), got {tuple(saliency.shape)}; it has no batch")
            saliency = saliency[None]
        self.register_buffer("fixed", saliency if isinstance(saliency, Tensor) else None)

    def grid(self, x: Tensor, saliency: Tensor | None = None) -> SamplingGrid:
        """The grid through which a picture is read.

        Args:
            x: pictures, (B, C, H, W).
            saliency: map for these pictures, (B or 1, n, m) above 0; it goes before the module's own.

        Returns:
            The grid.

        Raises:
            ValueError: no saliency at all.
        """
        if saliency is None:
            saliency = self.fixed if self.looks is None else self.looks(x)
        if saliency is None:
            raise ValueError("no saliency was given; pass one to this call, or to LZU(…, saliency=)")
        return SamplingGrid.from_saliency(saliency, reach=self.reach)

    def forward(self, x: Tensor, saliency: Tensor | None = None) -> Any:
        """Zoom, compute, unzoom.

        Args:
            x: pictures, (B, C, H, W).
            saliency: map for these pictures, see `grid`.

        Returns:
            Output of `head`; without one features, (B, D, finer·h', finer·w'), or a list of such.
        """
        grid = self.grid(x, saliency)
        if (routes := recorded()) is not None:
            height, width = x.shape[2:]
            read = grid.density((height, width), self.size).detach().clamp(max=1).expand(len(x), -1, -1)
            counts = float(self.size[0] * self.size[1]), float(height * width)
            routes.append(Route(read.float().cpu().numpy(), counts[:1], counts[1:], unit="pixels"))
        features = self.body(grid.zoom(x, self.size))

        def back(f: Tensor) -> Tensor:
            return grid.unzoom(f, (self.finer * f.shape[2], self.finer * f.shape[3]))

        features = back(features) if isinstance(features, Tensor) else [back(f) for f in features]
        return features if self.head is None else self.head(features)


def zoom_unzoom(x: Tensor, saliency: Tensor, size: tuple[int, int]) -> Tensor:
    """Zoom a picture and bring it back, with nothing in between.

    Args:
        x: pictures, (B, C, H, W).
        saliency: map, (B or 1, n, m) above 0.
        size: height and width of the zoomed picture.

    Returns:
        Pictures, (B, C, H, W).
    """
    grid = SamplingGrid.from_saliency(saliency)
    return grid.unzoom(grid.zoom(x, size), (x.shape[2], x.shape[3]))


def zoom_unzoom_plain(x: Tensor, saliency: Tensor, size: tuple[int, int]) -> Tensor:
    """`zoom_unzoom` as matrix products.

    Args:
        x: pictures, (B, C, H, W).
        saliency: map, (B or 1, n, m) above 0.
        size: height and width of the zoomed picture.

    Returns:
        Pictures, (B, C, H, W).
    """
    grid = SamplingGrid.from_saliency(saliency)
    small = resample_plain(x, *(push(t, centres(n, t)) for t, n in zip((grid.rows, grid.columns), size, strict=True)))
    sides = zip((grid.rows, grid.columns), x.shape[2:], strict=True)
    return resample_plain(small, *(pull(t, centres(n, t)) for t, n in sides))


def _inputs(seed: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "x": torch.rand(2, 3, 9, 11, generator=draw),
        "saliency": 0.1 + torch.rand(2, 5, 7, generator=draw),
        "size": (7, 6),
    }


METHOD = Method(
    id=128,
    name="LZU",
    kind="operator",
    summary="A picture is enlarged where it matters before a network reads it, and its features are put back in place.",
    paper=Paper("Learning to Zoom and Unzoom", "C. Thavamani et al.", 2023, "arXiv:2303.15390"),
    cases={"round trip": Operator(zoom_unzoom, zoom_unzoom_plain, _inputs)},
)
