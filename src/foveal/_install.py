"""Location of the running package, and the command that installs an optional part of it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["checkout", "install_hint"]

_ROOT = Path(__file__).resolve().parents[2]


def checkout() -> Path | None:
    """The repository from which this package runs.

    Returns:
        Root of the repository, or None for an installed package.
    """
    return _ROOT if (_ROOT / "pyproject.toml").is_file() and (_ROOT / "src" / "foveal").is_dir() else None


def install_hint(extra: str) -> str:
    """The command that installs one of foveal's extras.

    Args:
        extra: name of the extra in `pyproject.toml`: "torch", "native", "openvino", …

    Returns:
        `pip install '.[torch]'` in a checkout (to be run in its root), `pip install 'foveal[torch]'` otherwise.
    """
    return f"pip install '{'foveal' if checkout() is None else '.'}[{extra}]'"
