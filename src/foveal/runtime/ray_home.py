"""What a Ray cluster of this machine alone is started with, so that it listens to and asks nobody."""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from foveal.runtime.machine import cache_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["home", "settings"]


def settings() -> dict[str, str]:
    """Settings of a cluster of this machine alone, where the user has none of his own.

    Returns:
        Value by environment variable.
    """
    return {
        # It listens on the loopback only, and nobody else on this machine can take part.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_REPORT_URL": "http://localhost:9",  # discarded
        "RAY_worker_niceness": "0",  # by default 15, behind all else on the machine
    }


@contextmanager
def home(folder: str | None) -> Iterator[None]:
    """Give processes that are started meanwhile a home in which Ray finds a description of the cluster, an empty one.

    Where there is none, Ray asks the metadata services of three clouds whether they run this machine, usage statistics
    or not.

    Args:
        folder: folder of the cluster; None leaves everything as it is.

    Yields:
        Nothing.
    """
    if folder is None:
        yield
        return
    home = Path(folder) / "home"
    home.mkdir()
    (home / "ray_bootstrap_config.yaml").write_text("{}\n", encoding="utf-8")
    before = {key: os.environ.get(key) for key in ("HOME", "FOVEAL_CACHE")}
    os.environ.update(FOVEAL_CACHE=str(cache_folder()), HOME=str(home))
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
