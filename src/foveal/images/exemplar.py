"""Wide holes filled with texture: every pixel agrees with patches from elsewhere in the picture. NumPy only.

From coarse to fine, in turns: each patch that touches the hole is given the most similar patch without one, and each
pixel of the hole becomes the mean of what the patches around it have there.

    offset(p) = argmin over o of  Σ_q |u(p + q) - u(p + o + q)|²,    u(p) = mean over q of u(p + q + offset(p + q))

*Sources*: Y. Wexler, E. Shechtman and M. Irani, "Space-Time Completion of Video", IEEE TPAMI 29(3), 2007, section 3,
for the two steps; C. Barnes et al., "PatchMatch", SIGGRAPH 2009, section 3, for the search: offsets spread to
neighbours and are tried at random in ever smaller windows. *Differs from the papers*: a patch is compared at 17 of its
49 pixels; offsets spread everywhere at once, in one step and in a longer one, so that NumPy does it in whole arrays;
at the finest level pixels are copied instead of averaged, so that texture stays sharp. *Provenance*: written from the
papers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from foveal.images.fill import grown, harmonic

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.float32]
    Mask = NDArray[np.bool_]
    Places = NDArray[np.intp]

__all__ = ["exemplar"]

RADIUS = 3  # of a patch, in pixels
PROBES = np.array([(0, 0), *((y, x) for y in range(-3, 4, 2) for x in range(-3, 4, 2))])
COARSEST = 10  # width of a hole, in pixels, below which the picture is not halved again
TURNS, SEARCHES = 5, 3  # at the coarse levels; the finest takes two turns of two
REACH = 1.5  # how far around a hole patches come from, in sizes of the hole
LEAST_REACH = 48  # the same in pixels


def _halved(x: NDArray) -> Pixels:
    """Means of 2×2 pixels; an odd last row or column is repeated."""
    x = np.pad(x, [(0, x.shape[0] % 2), (0, x.shape[1] % 2), *[(0, 0)] * (x.ndim - 2)], mode="edge").astype(np.float32)
    return (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4


class _Level:
    """One scale: the picture, which patches have to be found, and the best offset of each.

    Args:
        x: (H, W, C), the hole filled somehow.
        holes: (H, W).
        known: (H, W), where patches may come from.
        rng: source of the search's chance.
    """

    def __init__(self, x: Pixels, holes: Mask, known: Mask, rng: np.random.Generator) -> None:
        self.shape, self.rng, self.holes = holes.shape, rng, holes
        self.x = np.pad(x, [(RADIUS, RADIUS), (RADIUS, RADIUS), (0, 0)], mode="edge")
        inside = np.zeros(self.shape, np.bool_)
        inside[RADIUS : self.shape[0] - RADIUS, RADIUS : self.shape[1] - RADIUS] = True
        self.valid = inside & ~grown(~known, RADIUS)
        self.targets = np.argwhere(grown(holes, RADIUS))
        self.number = np.full(self.shape, -1, np.intp)
        self.number[tuple(self.targets.T)] = np.arange(len(self.targets))
        self.sources = np.argwhere(self.valid)
        self.best = np.zeros_like(self.targets)
        self.worth = np.full(len(self.targets), np.inf, np.float32)

    def _patches(self, centres: Places) -> Pixels:
        """Patches at some pixels, (n, 17, C)."""
        places = centres[:, None] + PROBES + RADIUS
        return self.x[places[..., 0], places[..., 1]]

    def begin(self, centres: Places | None) -> None:
        """Start from centres that a coarser level found, or from any."""
        drawn = self.sources[self.rng.integers(len(self.sources), size=len(self.targets))]
        self.ours = self._patches(self.targets)
        self._offer(drawn if centres is None else np.where(self._may(centres)[:, None], centres, drawn))

    def _may(self, centres: Places) -> Mask:
        """Which centres are those of patches without a hole."""
        within = np.asarray((centres >= 0).all(1) & (centres < self.shape).all(1))
        y, x = np.where(within[:, None], centres, 0).T
        return within & self.valid[y, x]

    def _offer(self, centres: Places, some: NDArray | None = None) -> None:
        """Take what is better than before."""
        which = np.flatnonzero(self._may(centres))
        if some is not None:
            which = which[some[which]]
        if len(which):
            worth = np.square(self._patches(centres[which]) - self.ours[which]).sum((1, 2))
            better = worth < self.worth[which]
            self.best[which[better]], self.worth[which[better]] = centres[which[better]], worth[better]

    def search(self, times: int) -> None:
        """Spread offsets and try others."""
        self.ours = self._patches(self.targets)
        self.worth = np.square(self._patches(self.best) - self.ours).sum((1, 2))
        for _ in range(times):
            for step in (1, 4):
                for move in ((0, step), (0, -step), (step, 0), (-step, 0)):
                    near = self.targets + move
                    within = np.asarray((near >= 0).all(1) & (near < self.shape).all(1))
                    of = np.where(within, self.number[tuple(np.where(within[:, None], near, 0).T)], -1)
                    self._offer(self.best[of] - move, of >= 0)
            window = max(self.shape) / 2
            while window >= 2:
                self._offer(self.best + self.rng.integers(-int(window), int(window) + 1, self.best.shape))
                window /= 3

    def vote(self, *, sharp: bool) -> None:
        """Give the hole what the patches say."""
        at = np.argwhere(self.holes)
        if sharp:
            y, x = self.best[self.number[tuple(at.T)]].T
            self.x[at[:, 0] + RADIUS, at[:, 1] + RADIUS] = self.x[y + RADIUS, x + RADIUS]
            return
        total, weights = np.zeros((len(at), self.x.shape[2]), np.float32), np.zeros((len(at), 1), np.float32)
        scale = float(np.quantile(self.worth, 0.75)) + 1e-6
        for move in PROBES:
            near = at + move
            within = np.asarray((near >= 0).all(1) & (near < self.shape).all(1))
            of = np.where(within, self.number[tuple(np.where(within[:, None], near, 0).T)], -1)
            seen = self.best[of] - move + RADIUS
            weight = np.where(of >= 0, np.exp(-self.worth[of] / (2 * scale)), 0).astype(np.float32)[:, None]
            total += weight * self.x[seen[:, 0], seen[:, 1]]
            weights += weight
        self.x[at[:, 0] + RADIUS, at[:, 1] + RADIUS] = total / np.maximum(weights, 1e-12)

    @property
    def filled(self) -> Pixels:
        """The picture."""
        return self.x[RADIUS:-RADIUS, RADIUS:-RADIUS]


def _filled(x: Pixels, holes: Mask, known: Mask, rng: np.random.Generator, width: float, top: bool) -> _Level | None:
    """A level with its coarser ones; None where no patch is whole."""
    coarser = None
    if width > COARSEST and min(holes.shape) >= 8 * RADIUS:
        some = _halved(holes) > 0
        coarser = _filled(_halved(x), some, _halved(known) == 1, rng, width / 2, False)
    level = _Level(x, holes, known, rng)
    if not len(level.sources):
        return None
    if coarser is not None:
        half = np.minimum(level.targets // 2, np.array(coarser.shape) - 1)
        of = coarser.number[tuple(half.T)]
        level.begin(2 * coarser.best[of] + level.targets % 2)
        rough = coarser.filled.repeat(2, 0).repeat(2, 1)[: holes.shape[0], : holes.shape[1]]
        level.filled[holes] = rough[holes]
    else:
        level.begin(None)
    turns, times = (2, 2) if top else (TURNS, SEARCHES)
    for turn in range(turns):
        level.search(times)
        level.vote(sharp=top and turn == turns - 1)
    return level


def exemplar(x: Pixels, holes: Mask, *, unknown: Mask | None = None, seed: int = 0) -> Pixels:
    """Holes filled with texture from around them.

    Args:
        x: (H, W, C), floats; what it holds inside the holes takes no part.
        holes: (H, W).
        unknown: (H, W), further pixels from which nothing is taken.
        seed: of the search.

    Returns:
        A copy with the holes filled, by the harmonic surface of their border where no patch of 7×7 pixels is whole.
    """
    lost = holes if unknown is None else holes | unknown
    out = harmonic(x, lost)
    if unknown is not None:
        out[unknown & ~holes] = x[unknown & ~holes]
    if not holes.any():
        return out
    # A part of the picture around the holes, so that work and memory follow their size.
    rows, columns = (np.flatnonzero(holes.any(axis)) for axis in (1, 0))
    margin = max(LEAST_REACH, int(REACH * min(np.ptp(rows), np.ptp(columns)) + 1))
    part = tuple(slice(max(0, line[0] - margin), line[-1] + margin + 1) for line in (rows, columns))
    core, width = holes[part], 0
    while core.any():
        core, width = ~grown(~core, 1), width + 2
    level = _filled(out[part], holes[part], ~lost[part], np.random.default_rng(seed), width, True)
    if level is not None:
        out[part][holes[part]] = level.filled[holes[part]]
    return out
