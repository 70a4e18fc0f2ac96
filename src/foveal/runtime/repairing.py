"""What was found is repaired band by band, and what that will take is planned. NumPy only."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from foveal.runtime.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from foveal.runtime.enlarge import Step
    from foveal.runtime.inputs import Size
    from foveal.runtime.repairs import Finding
    from foveal.runtime.ways import Way

__all__ = ["facts", "plan_repairs", "repaired", "told"]


def told(findings: Sequence[Finding]) -> str:
    """What was found.

    Args:
        findings: in the order of the repairs.

    Returns:
        One clause for the user.
    """
    return "; ".join(finding.says for finding in findings) or "nothing found to repair"


def facts(findings: Sequence[Finding]) -> dict[str, Any]:
    """What was found, as plain data.

    Args:
        findings: in the order of the repairs.

    Returns:
        Under "found" the facts of each, with the name of its repair.
    """
    return {"found": [finding.facts | {"repair": finding.repair} for finding in findings]}


def repaired(
    pixels: NDArray,
    alpha: bool,
    findings: Sequence[Finding],
    step: Step | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Iterator[NDArray]:
    """A picture repaired: by every repair but the last in memory, by the last one band by band where it can.

    Args:
        pixels: (H, W, C), uint8, uint16 or floats in [0, 1].
        alpha: the last channel is alpha, which stays, and with it what hides behind transparent pixels; only holes that
            transparency names become opaque.
        findings: what is repaired, in this order.
        step: function called after each batch of tiles.
        note: function called with sentences on what happened on the way.

    Yields:
        Bands of rows, (h, W, C), from top to bottom.
    """
    if not findings:
        if step is not None:
            step((0, 0, pixels.shape[1], pixels.shape[0]))
        yield pixels
        return
    *before, last = findings
    for finding in before:
        pixels = finding.way.picture(pixels, alpha, step, note)
    yield from last.way.bands(pixels, alpha, step, note)


def plan_repairs(ways: Sequence[Way], size: Size, *, engine: str, threads: int, file_format: str = "") -> Plan:
    """What repairs will take, one after the other.

    Args:
        ways: of the repairs.
        size: of the picture.
        engine: name of an engine, said where nothing is repaired.
        threads: processor threads.
        file_format: format of the result's file; "" for that of the source.

    Returns:
        The plan.

    Raises:
        EngineError: no engine runs a bundle.
    """
    pixel_bytes = size.channels * size.dtype.itemsize
    plans: list[Plan] = []
    for way in ways:
        file = "" if plans else file_format or size.file_format
        plans.append(way.plan(size, threads=threads, file_format=file))
    if not plans:
        return Plan(
            "nothing", engine, threads, 1, size.width, size.height, size.frames, (size.width, size.height), 1, 1, 0, 0,
            0.0,
        )  # fmt: skip
    return replace(
        plans[0],
        engine=next((plan.engine for plan in plans if plan.engine != "numpy"), "numpy"),
        bundle="+".join(plan.bundle for plan in plans),
        memory=max(plan.memory for plan in plans) + size.width * size.height * pixel_bytes * (len(plans) - 1),
        seconds=sum(plan.seconds for plan in plans),
        start=sum(plan.start for plan in plans),
    )
