"""Facets of compression methods and of state space models: the taxonomies of four surveys, as data.

`method`, `modality`, `target` and `data` follow "A Survey on Transformer Compression" (arXiv:2402.05964, section 2) and
"Comprehensive Survey of Model Compression and Speed up for Vision Transformers" (arXiv:2404.10407, section 2); the
facets of quantisers follow "Model Quantization and Hardware Acceleration for Vision Transformers" (arXiv:2405.00314,
section 3). `network` and `scan` of state space models follow "A Comprehensive Survey of Mamba Architectures for Medical
Image Analysis" (arXiv:2410.02362); that survey's hybrids with graph networks have no row here. `facets.jsonl` has one
line per row; a row covered by a survey that lacks a value is an error.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from foveal.catalogue.collect import CatalogueError
from foveal.catalogue.entries import entries

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from foveal.catalogue.entries import Entry

__all__ = ["COMPRESSION", "QUANTIZERS", "STATE_SPACES", "chosen", "covered", "facets", "unclassified"]

COMPRESSION: Mapping[str, tuple[str, ...]] = {
    "method": ("architecture", "distillation", "low-rank", "pruning", "quantization", "tokens"),
    "modality": ("attention", "classification", "dense", "language", "restoration", "vision-language"),
    "target": (
        "activations kept for training", "adapters", "attention", "gradients", "linear layers", "whole network",
    ),
    "data": ("none", "calibration", "full"),
}  # fmt: skip
QUANTIZERS: Mapping[str, tuple[str, ...]] = {
    "levels": ("binary", "block floating point", "codebook", "floating point", "power of two", "uniform"),
    "range": ("dynamic", "learned", "static"),
    "granularity": ("channel", "group", "tensor"),
    "when": ("post-training", "quantization-aware"),
}
STATE_SPACES: Mapping[str, tuple[str, ...]] = {
    "network": ("pure", "u-shaped", "hybrid with convolution", "hybrid with attention"),
    # names of `foveal.nn.scan_orders` where it has the order
    "scan": ("atrous", "cross", "forward", "none", "points", "raster", "several", "snake", "tree"),
}  # fmt: skip
_KNOWN = {**COMPRESSION, **QUANTIZERS, **STATE_SPACES}
_ONLY_NAMED = (59, 73, 303)  # kernels for any model, a model that can take one, and another meaning of SSM
_FAMILIES = ("distill", "prune", "quantize", "tokens")


@cache
def facets() -> dict[int, dict[str, str]]:
    """Facets of all classified rows.

    Returns:
        Facets by the row's id.

    Raises:
        ValueError: two lines for one row, an unknown facet, or a value that the taxonomy does not have.
    """
    return read(files("foveal.catalogue").joinpath("facets.jsonl").read_text(encoding="utf-8"))


def read(text: str) -> dict[int, dict[str, str]]:
    """Read facets.

    Args:
        text: JSON lines, {"id": …, facet: value, …}.

    Returns:
        Facets by the row's id.

    Raises:
        ValueError: two lines for one row, an unknown facet, or a value that the taxonomy does not have.
    """
    found: dict[int, dict[str, str]] = {}
    for line in map(json.loads, text.splitlines()):
        number = line.pop("id")
        if number in found:
            raise ValueError(f"facets.jsonl: wanted one line for each row, got two for row {number}; keep one")
        for facet, value in line.items():
            if value not in _KNOWN.get(facet, ()):
                wanted = ", ".join(_KNOWN.get(facet, _KNOWN))
                raise ValueError(f"facets.jsonl, row {number}: wanted one of {wanted}, got {facet} = {value!r}")
        found[number] = line
    return found


def covered(rows: Iterable[Entry]) -> tuple[list[Entry], list[Entry], list[Entry]]:
    """Rows that the surveys cover.

    Args:
        rows: rows of the catalogue.

    Returns:
        Rows of compression, those of them that quantise, and state space models. Rows outside the families count when
        they are classified, and as state space models when title or mechanism names one.
    """
    known, rows = facets(), list(rows)
    compression = [row for row in rows if row.family in _FAMILIES or "method" in known.get(row.id, {})]
    quantizers = [
        row for row in compression if row.family == "quantize" or known.get(row.id, {}).get("method") == "quantization"
    ]
    return compression, quantizers, [row for row in rows if _is_state_space(row)]


def _is_state_space(row: Entry) -> bool:
    if row.family == "survey" or row.id in _ONLY_NAMED:
        return False
    named = any(word in row.title + row.mechanism for word in ("Mamba", "SSM", "selective scan", "state space model"))
    return named or row.family == "backbone-ssm" or "network" in facets().get(row.id, {})


def unclassified(rows: Iterable[Entry]) -> list[tuple[str, str]]:
    """Facets that rows covered by a survey lack.

    Args:
        rows: rows of the catalogue.

    Returns:
        Pairs of a row's name and a facet.
    """
    groups = zip(covered(rows), (COMPRESSION, QUANTIZERS, STATE_SPACES), strict=True)
    wanted = [(row, facet) for found, taxonomy in groups for row in found for facet in taxonomy]
    return [(row.name, facet) for row, facet in wanted if facet not in facets().get(row.id, {})]


def chosen(words: Iterable[str]) -> set[int]:
    """Rows with all the given facets.

    Args:
        words: texts such as "method=pruning".

    Returns:
        Ids of the rows.

    Raises:
        CatalogueError: an unknown facet or value, or a text of another form.
    """
    ids = set(entries())
    for word in words:
        facet, equals, value = word.partition("=")
        if not equals or facet not in _KNOWN:
            raise CatalogueError(f"a facet is NAME=VALUE with one of the names {', '.join(_KNOWN)}, got {word!r}")
        if value not in _KNOWN[facet]:
            raise CatalogueError(f"{facet} is one of {', '.join(_KNOWN[facet])}, got {value!r}")
        ids &= {number for number, found in facets().items() if found.get(facet) == value}
    return ids
