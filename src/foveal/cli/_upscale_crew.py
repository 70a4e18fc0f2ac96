"""What the workers of a crew are told: the pictures of one `foveal upscale`, and what each worker is made of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.runtime.crew import Order, Setup

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from foveal.cli._upscale_run import Wishes
    from foveal.runtime.batch import Job
    from foveal.runtime.plan import Plan
    from foveal.runtime.upscaler import Upscaler

__all__ = ["order_for", "setup_for"]


def order_for(job: Job, plan: Plan, wishes: Wishes) -> Order:
    """A picture as its worker is told, whatever folder that runs in.

    Args:
        job: the picture.
        plan: its plan.
        wishes: options of the user.

    Returns:
        The order.
    """
    try:
        size = job.source.stat().st_size
    except OSError:  # its worker says so
        size = -1
    return Order(
        source=_absolute(job.source),
        target=_absolute(job.target),
        size=size,
        seconds=plan.seconds - plan.start,
        megapixels=plan.megapixels,
        overwrite=wishes.overwrite or wishes.resume,
        limit_pixels=wishes.limit_pixels,
        background=wishes.background,
        page=job.page,
    )


def setup_for(upscaler: Upscaler, options: Mapping[str, Any], orders: Sequence[Order]) -> Setup:
    """What every worker is made of.

    Args:
        upscaler: upscaler of this machine, whose engines and tiles they take.
        options: its arguments.
        orders: pictures of the batch.

    Returns:
        The setup.
    """
    import foveal
    from foveal.runtime.batch import settings_of
    from foveal.runtime.bundle import SHIPPED

    model = options["model"]
    if model is not None and upscaler.bundle.folder.parent != SHIPPED:
        model = str(_absolute(Path(model)))
    return Setup(
        options={**options, "model": model},
        settled=upscaler.settled(),
        settings=settings_of(upscaler),
        version=str(foveal.__version__),
        folders=tuple(dict.fromkeys(path.parent for order in orders for path in (order.source, order.target))),
    )


def _absolute(path: Path) -> Path:
    """The path from the root; links in it stay as the user named them."""
    return Path(os.path.abspath(path))  # noqa: PTH100
