"""`foveal models`: bundles to run, and networks to train."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from foveal.cli._options import Json, stop

__all__ = ["models"]


def models(
    filter: Annotated[  # noqa: A002
        str, typer.Argument(metavar="NAME", help="Part of a name, or a shell pattern such as 'sesr_*'.")
    ] = "*",
    as_json: Json = False,
) -> None:
    """List shipped bundles, ready to run, and registered networks, ready to train.

    Without torch only the bundles are listed.

    Args:
        filter: part of a name, or a shell pattern.
        as_json: print one JSON document.

    Raises:
        typer.Exit: a damaged bundle, or no bundle or network of that name.

    Example:
        $ foveal models fast_x4
        bundle         scale  quality  parameters  s/MP   Set5   licence
        fast_x4        4      fast     21,056      0.006  30.93  Apache-2.0
        clean_fast_x4  4      fast     21,577      –      –      Apache-2.0
    """
    from foveal._install import install_hint
    from foveal.cli._tables import console, table
    from foveal.runtime.bundle import BundleError

    try:
        bundles = _bundles(filter)
    except BundleError as error:
        stop("models", error)
    networks = _networks(filter)
    out = console()
    if as_json:
        out.print_json(json.dumps({"bundles": bundles, "models": networks}))
        return
    if bundles:
        head = ("bundle", "scale", "quality", "parameters", "s/MP", "Set5", "licence")
        lines = [
            (
                b["name"],
                str(b["scale"]),
                b["quality"],
                f"{b['parameters']:,}",
                _shown(b["seconds_per_megapixel"], 3),
                _shown(b["measured"].get("Set5"), 2),
                b["licence"],
            )
            for b in bundles
        ]
        table(out, head, lines)
        out.print()
    if networks:
        rows = [
            (n["name"], f"{n['parameters']:,}" if n["parameters"] else "–", "yes" if n["pretrained"] else "no")
            for n in networks
        ]
        table(out, ("model", "parameters", "shipped weights"), rows)
    elif networks is None:
        out.print(f"Networks to train need torch: {install_hint('torch')}", markup=False, highlight=False)
    if not bundles and not networks:
        stop("models", f"nothing is called {filter!r}; foveal models lists all")


def _shown(value: Any, digits: int) -> str:
    """A figure from a card: a number, or the PSNR of a {psnr, ssim} pair; "–" if there is none."""
    if isinstance(value, dict):
        value = value.get("psnr")
    return f"{value:.{digits}f}" if isinstance(value, int | float) else "–"


def _bundles(pattern: str) -> list[dict[str, Any]]:
    from fnmatch import fnmatch

    from foveal.runtime.bundle import available

    pattern = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    listed = []
    for bundle in available():
        card = bundle.card
        if fnmatch(card.name, pattern):
            measured = dict(card.measured)
            seconds = measured.get("seconds_per_megapixel")
            listed.append(
                {
                    "name": card.name,
                    "scale": card.scale,
                    "quality": card.quality,
                    "parameters": card.parameters,
                    "seconds_per_megapixel": seconds,
                    "licence": card.licence,
                    "data": card.data,
                    "measured": measured,
                    "folder": str(bundle.folder),
                }
            )
    return listed


def _networks(pattern: str) -> list[dict[str, Any]] | None:
    """The networks that match a pattern; None without torch."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        return None
    from foveal.measure.cost import count_parameters
    from foveal.measure.meta import without_storage
    from foveal.models import create_model, list_models

    trained, listed = set(list_models(pretrained=True)), []
    with without_storage():
        for name in list_models(pattern):
            try:
                size = count_parameters(create_model(name))
            except ImportError:  # it needs a package that is not installed
                size = None
            listed.append({"name": name, "parameters": size, "pretrained": name in trained})
    return listed
