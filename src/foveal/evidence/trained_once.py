"""Networks that several claims start from, such as teachers, trained once on a machine.

The weights are kept in the cache folder (see `foveal doctor`) under a hash of everything they depend on: the code, the
arguments, torch's version and the number of threads. Deleting the folder costs the time to train them again.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from foveal.evidence.closure import closure_hash
from foveal.evidence.rehearsal import rehearsing
from foveal.runtime.machine import cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

__all__ = ["trained_once"]


def trained_once(
    build: Callable[[], nn.Module], train: Callable[[], nn.Module], *, modules: list[str], key: str
) -> nn.Module:
    """A trained network, from the cache if it was trained before.

    Args:
        build: builder of a network of the same structure.
        train: function that trains and returns it.
        modules: dotted names of the modules whose code determines the result.
        key: text of everything else that determines it: name, steps, seed.

    Returns:
        The network in eval mode.
    """
    if rehearsing():
        return train()
    text = f"{closure_hash(modules)} {key} torch {torch.__version__} {torch.get_num_threads()} threads"
    path = cache_folder() / "trained" / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors"
    if path.is_file():
        model = build().eval()
        model.load_state_dict(load_file(path))
        return model
    model = train().eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file({name: x.contiguous().clone() for name, x in model.state_dict().items()}, part, metadata={"key": text})
    part.replace(path)
    return model
