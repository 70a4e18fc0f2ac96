"""Uses the network on pixels of your own, a synthetic 16-bit gradient with transparency, and looks at what came out."""

import numpy as np

from foveal import Upscaler

height, width = 40, 60
ramp = np.linspace(0, 65535, width).astype(np.uint16)
colour = np.broadcast_to(ramp, (height, width))
alpha = np.zeros((height, width), np.uint16)
alpha[10:30, 15:45] = 65535
picture = np.stack([colour, colour[:, ::-1], colour, alpha], axis=-1)

large = Upscaler(scale=2, quality="fast")(picture)
print(large.shape, large.dtype)
# (80, 120, 4) uint16
