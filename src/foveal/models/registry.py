"""Build a network by name.

Names come from the `METHOD` records at the end of the files in this package, read as text (`foveal.index`): files
register nothing, and only the file of the requested network is imported.
"""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import inspect
import json
import re
import struct
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from foveal.index import models

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

__all__ = ["builder", "create_model", "list_models", "load_model"]


def builder(name: str) -> Callable[..., nn.Module]:
    """The function or class that builds a network.

    Args:
        name: one of `list_models()`.

    Returns:
        The function or class; no other network's file is imported.

    Raises:
        ValueError: if the name is unknown; the message lists the closest.
    """
    known = models()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0)
        raise ValueError(f"no model is called {name!r}; the closest are {', '.join(near)}; `foveal models` lists all")
    with torch.device("cpu"):  # constants of the file hold values, also where a network without storage is asked for
        return importlib.import_module(known[name].module).METHOD.models[name]


def _natural(name: str) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _header(path: Path) -> dict[str, Any]:
    """The training recipe stored in a weights file, {} if there is none."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        metadata = json.loads(file.read(length)).get("__metadata__", {})
    return json.loads(metadata.get("recipe", "{}"))


def _shipped() -> list[tuple[Path, dict[str, Any]]]:
    folder = Path(str(resources.files("foveal"))) / "bundles"
    return [(path, _header(path)) for path in sorted(folder.glob("*/model.safetensors"))]


def list_models(filter: str = "*", *, pretrained: bool | None = None) -> list[str]:  # noqa: A002 - timm's word
    """Names that `create_model` accepts.

    Args:
        filter: shell pattern, "*" for all; a word without wildcards matches anywhere in the name.
        pretrained: True for those with shipped weights, False for those without, None for all.

    Returns:
        Names in natural order (m5 before m11).
    """
    pattern = filter if any(c in filter for c in "*?[") else f"*{filter}*"
    names = [name for name in models() if fnmatch.fnmatch(name, pattern)]
    if pretrained is not None:
        trained = {recipe.get("model") for _, recipe in _shipped()}
        names = [name for name in names if (name in trained) == pretrained]
    return sorted(names, key=_natural)


def create_model(name: str, *, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build a network by name.

    The network is returned in eval mode, unlike timm's: call `.train()` before training, as `foveal train` does.

    Args:
        name: one of `list_models()`.
        pretrained: whether to load the shipped weights for this name and scale.
        **kwargs: arguments of the network, such as `scale`.

    Returns:
        The network.

    Raises:
        ValueError: if the name is unknown, or `pretrained` is set and there are no shipped weights.
        TypeError: if the network does not have one of the arguments.

    Example:
        >>> import foveal
        >>> model = foveal.create_model("sesr_m5", scale=2, in_channels=1)
        >>> sum(p.numel() for p in model.collapse().parameters())
        13600
    """
    build = builder(name)
    known = inspect.signature(build).parameters
    if kwargs.get("scale") == 1 and "scale" not in known:  # networks that do not upscale have no such argument
        del kwargs["scale"]
    if unknown := sorted(set(kwargs) - set(known)):
        raise TypeError(f"{name} takes {', '.join(known)}; got {unknown[0]!r}")
    if not pretrained:
        return build(**kwargs).eval()
    if "scale" not in known:
        raise ValueError(
            f"no weights for {name} are shipped, only for {', '.join(list_models(pretrained=True))}; "
            "leave pretrained out"
        )
    scale = kwargs.get("scale", known["scale"].default)
    fitting = [(path, recipe) for path, recipe in _shipped() if recipe.get("model") == name]
    for path, recipe in fitting:
        if recipe.get("scale") == scale:
            return _loaded(build(**{**recipe.get("arguments", {}), "scale": scale, **kwargs}), path)
    scales = ", ".join(str(recipe.get("scale")) for _, recipe in fitting) or "none"
    raise ValueError(
        f"no weights for {name} at scale {scale} are shipped (scales with weights: {scales}); "
        "train it with `foveal train` or leave pretrained out"
    )


def load_model(path: str | Path) -> nn.Module:
    """Build the network of a weights file and load the weights.

    Args:
        path: `model.safetensors` as written by `foveal train`, with its recipe in the header.

    Returns:
        The network in eval mode.

    Raises:
        ValueError: if there is no such file, or it does not name its network.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file of weights")
    try:
        recipe = _header(path)
    except (struct.error, ValueError, MemoryError):
        recipe = {}
    if "model" not in recipe:
        raise ValueError(f"{path} does not name its network; only files written by `foveal train` do")
    arguments = {**recipe.get("arguments", {}), "scale": recipe["scale"]}
    return _loaded(create_model(recipe["model"], **arguments), path)


def _loaded(model: nn.Module, path: Path) -> nn.Module:
    from safetensors.torch import load_file

    model.load_state_dict(load_file(path))
    return model.eval()
