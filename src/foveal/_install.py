"""The command that installs an optional part of foveal."""

from __future__ import annotations

from pathlib import Path

__all__ = ["install_hint"]

_ROOT = Path(__file__).resolve().parents[2]


def install_hint(extra: str) -> str:
    """The command that installs one of foveal's extras.

    Args:
        extra: name of the extra in `pyproject.toml`: "torch", "native", "openvino", …

    Returns:
        `pip install '.[torch]'` in a checkout (to be run in its root), `pip install 'foveal[torch]'` otherwise.
    """
    checkout = (_ROOT / "pyproject.toml").is_file() and (_ROOT / "src" / "foveal").is_dir()
    return f"pip install '{'.' if checkout else 'foveal'}[{extra}]'"
