"""A function in several processes that find each other by gloo on this machine; each hands its result to a file."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from foveal.evidence.rehearsal import rehearsal, rehearsing

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["body", "together"]

PATIENCE = 1800.0  # seconds that a process may take


def body(folder: str, rank: int) -> None:
    """What each process does: join the group, call the function, save its result.

    Args:
        folder: folder that holds the call, and in which the processes find each other.
        rank: rank of the process.
    """
    call = torch.load(f"{folder}/call.pt")
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", call["processes"])
    dist.init_process_group("gloo", store=store, rank=rank, world_size=call["processes"])
    with rehearsal() if call["rehearsing"] else nullcontext():
        found = getattr(importlib.import_module(call["module"]), call["name"])(rank, **call["arguments"])
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def together(function: Callable[..., Any], *, processes: int = 2, **arguments: Any) -> list[Any]:
    """Call a function in several processes at once, in one group, with one thread each.

    Args:
        function: function of a module; it gets the rank of its process first.
        processes: number of processes.
        **arguments: further arguments: numbers, texts, tensors.

    Returns:
        What it returned, by rank: tensors, numbers, texts, and lists and dicts of them.

    Raises:
        RuntimeError: one of the processes failed.
    """
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    call = {
        "module": function.__module__,
        "name": function.__name__,
        "arguments": arguments,
        "processes": processes,
        "rehearsing": rehearsing(),
    }
    code = "import sys; from foveal.evidence.processes import body; body(sys.argv[1], int(sys.argv[2]))"
    with tempfile.TemporaryDirectory() as folder:
        torch.save(call, f"{folder}/call.pt")
        started = [
            subprocess.Popen(
                [sys.executable, "-c", code, folder, str(rank)],
                stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path},
            )
            for rank in range(processes)
        ]
        said = [process.communicate(timeout=PATIENCE)[1].decode(errors="replace") for process in started]
        if any(process.returncode for process in started):
            raise RuntimeError(f"a process of the group failed: {' / '.join(s.strip()[-300:] for s in said)}")
        return [torch.load(f"{folder}/{rank}.pt") for rank in range(processes)]
