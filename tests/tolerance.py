"""How far a fast computation may be from an exact one."""

import torch


def allowed(dtype, terms, factor=16):
    """Greatest error over the greatest value.

    Sums of float32 numbers (float64 for float64) err as a random walk of as many steps as there are terms does,
    whichever order a library's products take; narrow results are rounded once more.
    """
    wide = torch.promote_types(dtype, torch.float32)
    rounded = 0.0 if dtype == wide else 4 * torch.finfo(dtype).eps
    return rounded + factor * torch.finfo(wide).eps * max(1, terms) ** 0.5
