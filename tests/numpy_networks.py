"""Networks of NumPy whose sizes, colours and fields are known."""

import numpy as np


def repeated(x, scale):
    return x.repeat(scale, axis=2).repeat(scale, axis=3)


def local(radius, scale=2, share=0.2):
    """A pixel, and a share of the four pixels that lie `radius` away."""

    def run(x):
        p = np.pad(x, ((0, 0), (0, 0), (radius, radius), (radius, radius)))
        h, w = x.shape[2:]
        far = sum(p[:, :, dy : dy + h, dx : dx + w] for dy, dx in ((0, radius), (radius, 0), (2 * radius, radius)))
        far = far + p[:, :, radius : radius + h, 2 * radius : 2 * radius + w]
        return repeated((1 - share) * x + share / 4 * far, scale)

    return run


def trimmed(radius, scale=2):
    inside = local(radius, scale)
    edge = radius * scale
    return lambda x: inside(x)[:, :, edge:-edge, edge:-edge]


def windowed(side, share=0.3, pads=False):
    """A pixel, and a share of the mean of its window; windows start at the picture's corner."""

    def run(x):
        h, w = x.shape[2:]
        if (h % side or w % side) and not pads:
            raise RuntimeError(f"{h}×{w} is no multiple of {side}")
        p = np.pad(x, ((0, 0), (0, 0), (0, -h % side), (0, -w % side)), mode="edge")
        blocks = p.reshape(*p.shape[:2], p.shape[2] // side, side, p.shape[3] // side, side)
        mean = np.broadcast_to(blocks.mean((3, 5), keepdims=True), blocks.shape).reshape(p.shape)
        return ((1 - share) * p + share * mean)[:, :, :h, :w]

    return run


def whole(share=0.3):
    return lambda x: (1 - share) * x + share * x.mean((2, 3), keepdims=True)
